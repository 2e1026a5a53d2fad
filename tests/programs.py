"""Real programs that the tests talk to: found, started on free loopback ports, read back and stopped."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from typing_extensions import Self


def program(name: str) -> str:
    """Return the path of a program; skip the test where there is none, but never in CI."""
    folder = os.environ.get("PERIFLOW_TEST_BIN", "")
    places = [(name, folder)] if folder else []
    places += [(name, None), (f"prometheus-{name}", None)]  # so it is called in Debian
    if found := next(filter(None, (shutil.which(called, path=path) for called, path in places)), None):
        return found
    reason = f"{name} is neither in PERIFLOW_TEST_BIN nor on PATH"
    if folder or os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def needs(package: str) -> pytest.MarkDecorator:
    """Skip tests whose scripts import a package that is not installed: the frameworks come for one Python only."""
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0, what: str = "") -> None:
    """Return once ``condition()`` is true; fail the test when it is not within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s:g} s: {what or getattr(condition, '__name__', condition)}")
        time.sleep(0.01)


def free_ports(count: int) -> list[int]:
    """Return loopback ports that were free a moment ago, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def is_listening(port: int) -> bool:
    """Say whether somebody accepts connections on a loopback port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class Program:
    """A program that runs until it is stopped; its output goes to ``log``."""

    def __init__(self, command: list[str], log: Path, ports: Iterable[int]) -> None:
        """Start it and wait until it listens on all its ports."""
        self.log = log
        self._command = command
        self._ports = list(ports)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, or start it again on the same ports."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_until(self._is_ready_or_gone, 30, f"{self._command[0]} is ready")
        except BaseException:
            self.kill()
            raise
        if self._process.poll() is not None:
            pytest.fail(f"{self._command[0]} ended at once:\n{self.log.read_text()[-4000:]}")

    def __enter__(self) -> Self:
        """Return the running program."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()

    def stop(self) -> None:
        """Let it finish what it has, and wait for it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._end(signal.SIGKILL)

    def restart(self, *more: str, command: list[str] | None = None) -> list[str]:
        """Stop it and start it with another command, or with more arguments; return the command that it had."""
        self.stop()
        former = self._command
        self._command = command or [*former, *more]
        self.start()
        return former

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let it stand still, as a program that is far too slow."""
        assert self._process, "it does not run"
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _is_ready_or_gone(self) -> bool:
        return (self._process is not None and self._process.poll() is not None) or all(map(is_listening, self._ports))

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class ReceivedSpan(NamedTuple):
    """A span as a receiver got it."""

    name: str
    trace_id: int
    span_id: int
    parent_span_id: int
    start_unix_ns: int
    end_unix_ns: int
    attributes: dict[str, Any]
    events: list[tuple[str, int, dict[str, Any]]]
    """Name, time and attributes."""
    links: list[tuple[int, int]]
    """Trace id and span id."""
    is_error: bool
    status_message: str
    scope: dict[str, Any]
    """Its attributes."""
    resource: dict[str, Any]


class ReceivedPoint(NamedTuple):
    """A data point as a receiver got it."""

    name: str
    unit: str
    kind: str
    """gauge, sum, histogram or exponential_histogram."""
    attributes: dict[str, Any]
    time_unix_ns: int
    start_unix_ns: int
    value: Any
    """A number, or the protobuf data point of a histogram."""
    is_delta: bool
    resource: dict[str, Any]


class ReceivedLog(NamedTuple):
    """A log record as a receiver got it."""

    scope: str
    event_name: str
    body: str
    severity: int
    severity_text: str
    time_unix_ns: int
    observed_unix_ns: int
    trace_id: int
    span_id: int
    attributes: dict[str, Any]
    resource: dict[str, Any]


class Collector(Program):
    """The OpenTelemetry Collector: receives OTLP over HTTP and gRPC and writes what it got into a file.

    A request is in the file when it has been answered, also if the collector is killed then.
    """

    def __init__(self, folder: Path, ports: Sequence[int] = (), *, takes_logs: bool = True) -> None:
        """Start it with its configuration and output in ``folder``, on ports for gRPC and HTTP or on free ones."""
        folder.mkdir(parents=True, exist_ok=True)
        grpc_port, http_port = ports or free_ports(2)
        self.http_endpoint = f"http://127.0.0.1:{http_port}"
        self.grpc_endpoint = f"http://127.0.0.1:{grpc_port}"
        self._traces, self._metrics, self._logs = (folder / f"{name}.pb" for name in ("traces", "metrics", "logs"))
        config = folder / "otelcol.json"
        files = {"traces": self._traces, "metrics": self._metrics, **({"logs": self._logs} if takes_logs else {})}
        config.write_text(json.dumps(self._configuration(grpc_port, http_port, files)))
        command = [program("otelcol"), "--config", str(config)]
        super().__init__(command, folder / "otelcol.log", [grpc_port, http_port])

    def spans(self) -> list[ReceivedSpan]:
        """Return all spans, in the order of their arrival."""
        requests = map(ExportTraceServiceRequest.FromString, _messages(self._traces))
        return [span for request in requests for span in read_spans(request)]

    def points(self, name: str = "") -> list[ReceivedPoint]:
        """Return all data points, or those of one metric, in the order of their arrival."""
        requests = map(ExportMetricsServiceRequest.FromString, _messages(self._metrics))
        return [point for request in requests for point in read_points(request) if name in ("", point.name)]

    def logs(self) -> list[ReceivedLog]:
        """Return all log records, in the order of their arrival."""
        requests = map(ExportLogsServiceRequest.FromString, _messages(self._logs))
        return [record for request in requests for record in read_logs(request)]

    @property
    def resources(self) -> list[dict[str, Any]]:
        """The different resources of all spans and points."""
        resources: list[dict[str, Any]] = []
        for item in (*self.spans(), *self.points()):
            if item.resource not in resources:
                resources.append(item.resource)
        return resources

    def _configuration(self, grpc_port: int, http_port: int, files: dict[str, Path]) -> dict[str, Any]:
        return {
            "receivers": {
                "otlp": {
                    "protocols": {
                        "grpc": {"endpoint": f"127.0.0.1:{grpc_port}"},
                        "http": {"endpoint": f"127.0.0.1:{http_port}"},
                    }
                }
            },
            "exporters": {f"file/{signal}": _file_exporter(path) for signal, path in files.items()},
            "service": {
                "telemetry": {"metrics": {"level": "none"}},
                "pipelines": {signal: {"receivers": ["otlp"], "exporters": [f"file/{signal}"]} for signal in files},
            },
        }


class Rotel(Program):
    """A second receiver that is not ours: takes OTLP over HTTP and gRPC and forwards it as OTLP over HTTP."""

    def __init__(self, folder: Path, forward_to: str) -> None:
        """Start it; ``forward_to`` is the base URL of a receiver of OTLP over HTTP."""
        rotel = pytest.importorskip("rotel", reason="rotel is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        grpc_port, http_port = free_ports(2)
        self.http_endpoint = f"http://127.0.0.1:{http_port}"
        self.grpc_endpoint = f"http://127.0.0.1:{grpc_port}"
        command = [
            *(str(Path(rotel.__file__).with_name("rotel-agent")), "start"),
            *("--otlp-grpc-endpoint", f"127.0.0.1:{grpc_port}", "--otlp-http-endpoint", f"127.0.0.1:{http_port}"),
            *("--exporter", "otlp", "--otlp-exporter-endpoint", forward_to, "--otlp-exporter-protocol", "http"),
            *("--batch-timeout", "100ms", "--pid-file", str(folder / "rotel.pid")),
        ]
        super().__init__(command, folder / "rotel.log", [grpc_port, http_port])


def read_spans(request: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    """Return the spans of a request as plain data."""
    for resource_spans in request.resource_spans:
        resource = read_attributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            scope = read_attributes(scope_spans.scope.attributes)
            for span in scope_spans.spans:
                yield ReceivedSpan(
                    name=span.name,
                    trace_id=int.from_bytes(span.trace_id, "big"),
                    span_id=int.from_bytes(span.span_id, "big"),
                    parent_span_id=int.from_bytes(span.parent_span_id, "big"),
                    start_unix_ns=span.start_time_unix_nano,
                    end_unix_ns=span.end_time_unix_nano,
                    attributes=read_attributes(span.attributes),
                    events=[(each.name, each.time_unix_nano, read_attributes(each.attributes)) for each in span.events],
                    links=[
                        (int.from_bytes(each.trace_id, "big"), int.from_bytes(each.span_id, "big"))
                        for each in span.links
                    ],
                    is_error=span.status.code == 2,
                    status_message=span.status.message,
                    scope=scope,
                    resource=resource,
                )


def read_points(request: ExportMetricsServiceRequest) -> Iterator[ReceivedPoint]:
    """Return the data points of a request as plain data."""
    for resource_metrics in request.resource_metrics:
        resource = read_attributes(resource_metrics.resource.attributes)
        for scope_metrics in resource_metrics.scope_metrics:
            for metric in scope_metrics.metrics:
                kind = str(metric.WhichOneof("data"))
                data = getattr(metric, kind)
                for point in data.data_points:
                    yield ReceivedPoint(
                        name=metric.name,
                        unit=metric.unit,
                        kind=kind,
                        attributes=read_attributes(point.attributes),
                        time_unix_ns=point.time_unix_nano,
                        start_unix_ns=point.start_time_unix_nano,
                        value=getattr(point, point.WhichOneof("value")) if kind in ("gauge", "sum") else point,
                        is_delta=kind != "gauge" and data.aggregation_temporality == 1,
                        resource=resource,
                    )


def read_logs(request: ExportLogsServiceRequest) -> Iterator[ReceivedLog]:
    """Return the log records of a request as plain data."""
    for resource_logs in request.resource_logs:
        resource = read_attributes(resource_logs.resource.attributes)
        for scope_logs in resource_logs.scope_logs:
            for record in scope_logs.log_records:
                yield ReceivedLog(
                    scope=scope_logs.scope.name,
                    event_name=record.event_name,
                    body=record.body.string_value,
                    severity=record.severity_number,
                    severity_text=record.severity_text,
                    time_unix_ns=record.time_unix_nano,
                    observed_unix_ns=record.observed_time_unix_nano,
                    trace_id=int.from_bytes(record.trace_id, "big"),
                    span_id=int.from_bytes(record.span_id, "big"),
                    attributes=read_attributes(record.attributes),
                    resource=resource,
                )


def read_attributes(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    """Return protobuf attributes as a dict."""
    return {each.key: _value(each.value) for each in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return read_attributes(value.kvlist_value.values)
    return getattr(value, kind) if kind else None


def _file_exporter(path: Path) -> dict[str, Any]:
    # Without rotation the exporter buffers, and begins with an empty file after a restart.
    return {"path": str(path), "format": "proto", "rotation": {"max_megabytes": 1 << 20}}


def _messages(path: Path) -> Iterator[bytes]:
    """Yield the whole messages of a file in which each comes after its length in four bytes."""
    data = path.read_bytes() if path.exists() else b""
    start = 0
    while start + 4 <= len(data):
        end = start + 4 + int.from_bytes(data[start : start + 4], "big")
        if end > len(data):
            return
        yield data[start + 4 : end]
        start = end
