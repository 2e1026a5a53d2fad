"""Each rank of an attempt is a service instance: receivers that want an instance's points in order get them so."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from faulty_receiver import FaultyGrpcReceiver, FaultyReceiver
from programs import Program, free_ports, program, wait_until
from stack import Prometheus, start_ranks, wait_for_ranks
from training import isolate

STEPS = 60
SCRIPT = f"""
import random, time
import periflow_otel as pf
pf.init()
for step in range(1, {STEPS} + 1):
    with pf.train_step():
        time.sleep(random.uniform(0.01, 0.03))
    pf.metric({{"loss": 1 / step}})
pf.shutdown(30)
"""
AWAY_S = 0.02


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep variables and journals of others out of it."""
    isolate(monkeypatch, tmp_path)


@contextmanager
def far_prometheus(folder: Path) -> Iterator[tuple[str, Prometheus]]:
    """Yield the endpoint of a Prometheus with its defaults that is 20 ms away, and itself."""
    port, *_ = free_ports(1)
    (folder / "prometheus.yml").write_text("global: {scrape_interval: 15s}\n")
    command = [
        program("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}", "--web.enable-otlp-receiver",
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with Program(command, folder / "prometheus.log", [port]), far(url) as endpoint:
        wait_until(lambda: requests.get(f"{url}/-/ready", timeout=5).ok, 30, "Prometheus is ready")
        yield f"{endpoint}/api/v1/otlp", Prometheus(url)


@contextmanager
def far(url: str) -> Iterator[str]:
    """Yield the address of a proxy that takes its time."""

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            time.sleep(AWAY_S)  # the way there
            kept = {name: self.headers[name] for name in ("content-type", "content-encoding") if name in self.headers}
            answer = requests.post(url + self.path, body, headers=kept, timeout=30)
            self.send_response(answer.status_code)
            self.send_header("content-type", answer.headers.get("content-type", ""))
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_prometheus_with_its_defaults_takes_every_value(tmp_path: Path, ranks: int):
    """It has no window for points that come out of order, as what is seen of the ranks between their records could."""
    with far_prometheus(tmp_path) as (endpoint, prometheus):
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_TRACES_EXPORTER": "none"}
        environ["PERIFLOW_MACHINE_INTERVAL"] = "0.1"
        wait_for_ranks(start_ranks(SCRIPT, ranks=ranks, PERIFLOW_RUN_ID="run", **environ))
        found = prometheus.query("periflow_metric_loss[10m]")
    assert [len(series.samples) for series in found] == [STEPS] * ranks


def test_attempts_do_not_hide_each_other(tmp_path: Path):
    """What describes an attempt can be joined with its series, also right after a restart."""
    with far_prometheus(tmp_path) as (endpoint, prometheus):
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_TRACES_EXPORTER": "none"}
        for attempt in ("1", "2"):
            wait_for_ranks(start_ranks(SCRIPT, ranks=1, PERIFLOW_RUN_ID="run", PERIFLOW_ATTEMPT=attempt, **environ))
        join = "periflow_step_current * on (job, instance) group_left (periflow_run_attempt) target_info"
        found = prometheus.query(join)
    assert {series.labels["periflow_run_attempt"] for series in found} == {"1", "2"}


@pytest.mark.parametrize("receiver", [FaultyReceiver, FaultyGrpcReceiver])
def test_points_of_an_instance_leave_in_the_order_of_their_times(receiver: type):
    """No request has an earlier point than the one before it, over HTTP and over gRPC."""
    with receiver() as sink:
        protocol = "grpc" if receiver is FaultyGrpcReceiver else "http/protobuf"
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_METRIC_EXPORT_INTERVAL": "100",
            "PERIFLOW_MACHINE_INTERVAL": "0.1",
        }
        wait_for_ranks(start_ranks(SCRIPT, ranks=2, PERIFLOW_RUN_ID="run", **environ))
        wait_until(lambda: sink.points("periflow.telemetry.exported"), 30, "the agent has said its last")
        sent = [request.points() for request in sink.accepted if request.points()]
    latest: dict[str, int] = {}
    for points in sent:
        before = dict(latest)
        for point in points:
            instance = point.resource["service.instance.id"]
            assert point.time_unix_ns >= before.get(instance, 0)
            latest[instance] = max(latest.get(instance, 0), point.time_unix_ns)
    assert len(latest) == 3, "two ranks and their agent"
    assert len(sent) > 2
