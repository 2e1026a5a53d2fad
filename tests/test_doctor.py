"""``periflow-otel doctor``: it shows what would happen, finds what is wrong, and leaves everything as it is."""

import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from faulty_receiver import Exchange, FaultyReceiver, ok, status
from journals import SMALL, numbered
from privileges import UNPRIVILEGED
from programs import Collector, free_ports, wait_until
from recorder import make_run
from training import Training, agents, cloud

from periflow_otel.cli import main
from periflow_otel.cli.runs import SHOWN
from periflow_otel.config.export import ExportSettings
from periflow_otel.journal.cursors import Cursor, CursorFile
from periflow_otel.journal.folders import journal_folder, make_private, node_folder, run_folder
from periflow_otel.journal.life import WriterLock
from periflow_otel.journal.reader import JournalReader, Position
from periflow_otel.journal.segment import HEADER_BYTES, segment_path
from periflow_otel.journal.writer import JournalWriter

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Told:
    """What the command printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Run it."""
        capsys.readouterr()
        self.status = main(["doctor"])
        self._read(capsys.readouterr().out)

    @classmethod
    def by(cls, *command: str) -> "Told":
        """Run it in a process of its own, which writes no errors."""
        code = "import sys; from periflow_otel.cli import main; sys.exit(main(['doctor']))"
        script = [*command, sys.executable, "-c", code]
        done = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
        assert not done.stderr
        told = cls.__new__(cls)
        told.status = done.returncode
        told._read(done.stdout)
        return told

    def _read(self, text: str) -> None:
        self.text = text
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


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_port_for_the_other_protocol_is_suspected(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, collector: Collector, protocol: str
):
    """What fails there says little; the answer names the variable."""
    monkeypatch.setenv(ENDPOINT, collector.http_endpoint if protocol == "grpc" else collector.grpc_endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    told = Told(capsys)
    assert told.status == 1
    assert told.faults["traces"].endswith(
        "; is that its port for OTEL_EXPORTER_OTLP_PROTOCOL? Usual are 4317 for grpc and 4318 for http/protobuf"
    )


def test_what_grpc_has_to_say_of_certificates_is_left_out(monkeypatch: pytest.MonkeyPatch, collector: Collector):
    """Nothing is on stderr though the handshake fails."""
    monkeypatch.setenv(ENDPOINT, collector.grpc_endpoint.replace("http:", "https:"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert set(Told.by().faults) == {"traces", "metrics"}


def test_both_signals_are_tried_at_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """A receiver that is silent costs its time-out once: this one answers neither before both are here."""
    both = threading.Barrier(2)

    def wait_for_both(exchange: Exchange) -> None:
        both.wait(5)
        ok(exchange)

    with FaultyReceiver(wait_for_both) as receiver:
        monkeypatch.setenv(ENDPOINT, receiver.endpoint)
        assert Told(capsys).status == 0


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


@pytest.mark.parametrize("depth", range(3))
def test_a_folder_that_cannot_be_read_is_a_fault(depth: int):
    """Be it that of a run, of the run on this node, or of a journal; nothing is taken for delivered."""
    journal = leave("closed")
    (journal.parent.parent, journal.parent, journal)[depth].chmod(0)
    told = Told.by(*UNPRIVILEGED)
    assert told.status == 1
    assert told.faults["run closed"] in (
        f"{journal.parent} cannot be read",
        f"1 journal in {journal.parent} cannot be read",
    )


def test_a_state_folder_below_one_that_cannot_be_entered_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """There, nothing could be recorded."""
    (tmp_path / "closed").mkdir(mode=0)
    monkeypatch.setenv("PERIFLOW_STATE_DIR", str(tmp_path / "closed" / "below" / "state"))
    assert "(Permission denied); set PERIFLOW_STATE_DIR" in Told.by(*UNPRIVILEGED).faults["journals"]


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
    assert re.match(r"over, after step 20; \d+ records wait for otlp.traces, otlp.metrics; they take", text)
    assert re.search(
        r"they take 0.0 MiB, for 0.0 h now; .*periflow-otel replay delivers them; the agent said: otlp.", text
    )
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


def leave(run_id: str = "left", count: int = 10, *, max_bytes: int = 1 << 20, **more: object) -> Path:
    """Leave a journal that nobody has delivered, of a process that is gone, and return its folder."""
    run = make_run(**{"run_id": run_id, "consumers": ("a", "b"), **more})
    journal = journal_folder(node_folder(run_folder(Path.cwd(), run_id)), run.attempt, run.rank)
    make_private(journal)
    writer = JournalWriter(journal, run, segment_bytes=SMALL, max_bytes=max_bytes)
    for number in range(count):
        writer.append(numbered(number))
    return journal


def test_what_a_container_has_left_is_told_of(capsys: pytest.CaptureFixture[str]):
    """By whatever name it ran; its lock is free."""
    journal = leave("pod")
    journal.parent.rename(journal.parent.with_name("train-7c9xk"))
    assert "10 records wait for a, b" in Told(capsys).faults["run pod"]


def test_what_is_for_other_credentials_says_why_it_waits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """It takes a run that has these, or a word."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=theirs")
    destination = ExportSettings.from_environ(os.environ).destination()
    leave("theirs", destination=destination)
    assert "other credentials" not in Told(capsys).faults["run theirs"]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=ours")
    assert "for another receiver, or for other credentials" in Told(capsys).faults["run theirs"]


@pytest.mark.parametrize("content", [b"", b"x" * HEADER_BYTES, None])
def test_a_journal_that_cannot_be_read_is_a_fault(capsys: pytest.CaptureFixture[str], content: bytes | None):
    """It is empty, its header is overwritten, or what the header says of the run; the other is told of as always."""
    leave("harmed", rank=1)
    segment = segment_path(leave("harmed"), 1)
    segment.write_bytes(segment.read_bytes()[: HEADER_BYTES + 9] + b"xxx" if content is None else content)
    told = Told(capsys)
    assert told.faults["run harmed"].startswith(
        f"over, after step 0; 1 journal in {segment.parents[1]} cannot be read; 10 records wait for a, b"
    )


def test_what_the_bound_of_a_journal_took_does_not_wait(capsys: pytest.CaptureFixture[str]):
    """It is dropped; only what is still there can be delivered."""
    journal = leave(count=1000, max_bytes=2 * SMALL)
    CursorFile(journal, "b").save(Cursor(Position(1, HEADER_BYTES, 5), dropped={"journal": 2}))
    there = 1000 - JournalReader(journal).first_sequence()
    assert 0 < there < 1000
    (text,) = Told(capsys).faults.values()
    assert text == (
        f"over, after step 0; {there} records wait for a, b; {1000 - there} were dropped (journal) for a; "
        f"{1000 - there - 5 + 2} were dropped (journal) for b; they take 0.0 MiB, for 0.0 h now; "
        "periflow-otel replay delivers them"
    )


def test_of_many_runs_the_latest_are_told_of(capsys: pytest.CaptureFixture[str]):
    """And how many more there are."""
    for number in range(SHOWN + 3):
        os.utime(leave(f"run-{number}").parent, (number, number))
    told = Told(capsys)
    assert told.faults.pop("runs") == "3 more in need of attention"
    assert list(told.faults) == [f"run run-{number}" for number in range(SHOWN + 2, 2, -1)]


def test_ranks_that_are_done_count_among_those_of_the_node(capsys: pytest.CaptureFixture[str]):
    """Though their journals are gone, and those of an earlier attempt are not."""
    leave(consumers=())
    journal = leave(consumers=(), attempt=2, local_world_size=3)
    lock = WriterLock(journal)  # its writer has not ended
    assert re.search(r"run left +1 of 3 ranks are at work, in step 0\n", Told(capsys).text)
    lock.release()
