"""Requests from OTLP JSON that was set aside: this is rare, so protobuf's own parser does it."""

import json
from base64 import b64encode
from typing import Any, Final

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from periflow_otel.endpoints import Signal


def request_from_json(signal: Signal, data: bytes) -> bytes:
    """Return the request that exports what a ``TracesData``, ``MetricsData`` or ``LogsData`` in OTLP JSON holds.

    Raises:
        ValueError: It is none.
    """
    request: Message = _REQUESTS[signal]()
    try:
        fields = json.loads(data, object_hook=_with_base64_ids)
        return ParseDict(fields, request, ignore_unknown_fields=True).SerializeToString()
    except (ParseError, RecursionError, AttributeError, TypeError, ValueError) as error:
        message = f"no OTLP JSON of {signal}"
        raise ValueError(message) from error


def _with_base64_ids(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields as protobuf's own JSON has them: bytes in base64, also ids."""
    ids = fields.keys() & {"traceId", "spanId", "parentSpanId"}
    return {**fields, **{name: b64encode(bytes.fromhex(fields[name])).decode() for name in ids}}


_REQUESTS: Final[dict[Signal, type[Message]]] = {
    "traces": ExportTraceServiceRequest,
    "metrics": ExportMetricsServiceRequest,
    "logs": ExportLogsServiceRequest,
}
