"""Requests from OTLP JSON that was set aside: this is rare, so protobuf's own parser does it."""

import json
from base64 import b64encode
from typing import Any

from google.protobuf.json_format import ParseDict, ParseError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def request_from_json(signal: str, data: bytes) -> bytes:
    """Return the request that exports what a ``TracesData`` or ``MetricsData`` in OTLP JSON holds.

    Raises:
        ValueError: It is none.
    """
    request = ExportTraceServiceRequest() if signal == "traces" else ExportMetricsServiceRequest()
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
