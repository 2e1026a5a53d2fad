"""``periflow-otel doctor``: it shows what would happen, finds what is wrong, and leaves everything as it is."""

import re
import socket
from pathlib import Path

import pytest
from faulty_receiver import FaultyReceiver, status
from programs import Collector, free_ports, wait_until
from training import Training, agents, cloud

from periflow_otel.cli import main

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Told:
    """What the command printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Run it."""
        capsys.readouterr()
        self.status = main(["doctor"])
        self.text = capsys.readouterr().out
        found = re.findall(r"^([! ]) (\w+(?: \S+)?)  *(.+)$", self.text, re.MULTILINE)
        self.faults = {subject: text for mark, subject, text in found if mark == "!"}
        *_, self.verdict = self.text.splitlines()


def test_where_all_is_well_it_shows_what_goes_where(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """A local run: files, an endpoint, nothing over the network."""
    told = Told(capsys)
    assert (told.status, told.verdict) == (0, "all is well")
    for expected in ("mode       local", "rank 0 of 1", "metric log, and OTLP JSON files", ENDPOINT, "/metrics"):
        assert expected in told.text
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_receiver_is_asked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, collector: Collector):
    """A real one takes the empty requests over HTTP and gRPC, and has nothing afterwards."""
    for endpoint, protocol in ((collector.http_endpoint, "http/protobuf"), (collector.grpc_endpoint, "grpc")):
        monkeypatch.setenv(ENDPOINT, endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        told = Told(capsys)
        assert told.status == 0
        assert len(re.findall(rf"{re.escape(protocol)}\) accepts them, in \d+ ms", told.text)) == 2
    assert not collector.spans()


def test_a_dead_receiver_is_a_fault(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Of each signal that goes there."""
    (port,) = free_ports(1)
    monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{port}")
    told = Told(capsys)
    assert told.status == 1
    assert set(told.faults) == {"traces", "metrics"}
    assert "Connection refused" in told.faults["traces"]
    assert told.verdict == "2 of these need attention (!)"


def test_a_refused_token_is_a_fault_and_is_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """What the receiver answers is."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20very-secret-token")
    with FaultyReceiver(status(401)) as receiver:
        monkeypatch.setenv(ENDPOINT, receiver.endpoint)
        told = Told(capsys)
    assert "HTTP 401" in told.faults["metrics"]
    assert "very-secret-token" not in told.text


def test_what_init_would_refuse_is_a_fault(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """With the message that init raises, the remedy in it."""
    monkeypatch.setenv("PERIFLOW_ENABLED", "1")
    told = Told(capsys)
    assert told.status == 1
    assert "WORLD_SIZE" in told.faults["settings"]


def test_a_folder_that_cannot_be_written_is_a_fault(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """There, nothing could be recorded."""
    monkeypatch.setenv("PERIFLOW_STATE_DIR", "/proc/periflow")
    assert "set PERIFLOW_STATE_DIR" in Told(capsys).faults["journals"]


def test_a_port_that_is_taken_is_no_fault(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """A run takes the next."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", str(taken.getsockname()[1]))
        told = Told(capsys)
    assert told.status == 0
    assert "the next free port" in told.text


def test_what_a_run_has_left_is_a_fault_until_it_is_delivered(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """It says how much waits for whom, why, and what to do."""
    with FaultyReceiver(status(401)) as receiver:
        more = {"PERIFLOW_EXIT_TIMEOUT": "0", "PERIFLOW_AGENT_LINGER": "0"}
        with Training(20, 0.001, **cloud(receiver.endpoint, PERIFLOW_RUN_ID="left", **more)) as training:
            training.wait()
            wait_until(lambda: not agents(training.state), 30, "the agent has given up")
    monkeypatch.setenv("PERIFLOW_STATE_DIR", str(training.state))
    (text,) = Told(capsys).faults.values()
    assert re.match(r"over, after step 20; \d+ records wait for otlp.traces; \d+ records wait for otlp.metrics", text)
    assert "periflow-otel replay delivers them; the agent said: otlp." in text
    assert "HTTP 401" in text
    with FaultyReceiver() as receiver:
        environ = {"PERIFLOW_STATE_DIR": str(training.state), **cloud(receiver.endpoint)}
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        assert main(["replay"]) == 0
        assert Told(capsys).status == 0


def test_a_run_that_is_going_on_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, collector: Collector
):
    """With the step that it is in."""
    with Training(100_000, 0.001, **cloud(collector.http_endpoint, PERIFLOW_RUN_ID="busy")) as training:
        training.read_line()
        monkeypatch.setenv("PERIFLOW_STATE_DIR", str(training.state))
        told = Told(capsys)
        training.kill()
    assert told.status == 0
    assert re.search(r"run busy +1 of 1 ranks are at work, in step \d+\n", told.text)
