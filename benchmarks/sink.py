"""A local OTLP/HTTP receiver that counts: ``python benchmarks/sink.py`` prints its address."""

import gzip
import json
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

SPANS: set[bytes] = set()
POINTS: Counter[str] = Counter()
"""Data points of the gauges, by name: those are the values that the training script gave."""


class Sink(BaseHTTPRequestHandler):
    """Takes exports and tells what it has."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        """Count one export."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/traces":
            count_spans(ExportTraceServiceRequest.FromString(body))
        else:
            count_points(ExportMetricsServiceRequest.FromString(body))
        self._answer(b"")

    def do_GET(self) -> None:
        """Tell the counts."""
        self._answer(json.dumps({"spans": len(SPANS), "points": POINTS}).encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Stay silent."""


def count_spans(request: ExportTraceServiceRequest) -> None:
    """Add the step spans of a request; a span that comes twice counts once."""
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            SPANS.update(span.span_id for span in scope.spans if span.name == "periflow.step")


def count_points(request: ExportMetricsServiceRequest) -> None:
    """Add the gauge points of a request."""
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                POINTS[metric.name] += len(metric.gauge.data_points)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
