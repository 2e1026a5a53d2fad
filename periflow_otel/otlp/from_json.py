"""Requests from OTLP JSON, which was set aside, or is in a file.

Protobuf's own parser takes anything that is right, and a long time for it. What writers usually write, and we do, is
put into the form from which a message is made at once, in C; for what is not made so that parser is asked.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from periflow_otel.config.endpoints import Signal

_IDS: Final = frozenset({"traceId", "spanId", "parentSpanId"})
"""In hexadecimal here, and in base64 for protobuf."""


def request_from_json(signal: Signal, data: bytes) -> bytes:
    """Return the request that exports what a ``TracesData``, ``MetricsData`` or ``LogsData`` in OTLP JSON holds.

    Raises:
        ValueError: It is none.
    """
    try:
        return _REQUESTS[signal](**json.loads(data, object_hook=_as_arguments)).SerializeToString()
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return _parsed(signal, data)


def _parsed(signal: Signal, data: bytes) -> bytes:
    request: Message = _REQUESTS[signal]()
    try:
        fields = json.loads(data, object_hook=_with_base64_ids)
        return ParseDict(fields, request, ignore_unknown_fields=True).SerializeToString()
    except (ParseError, RecursionError, AttributeError, TypeError, ValueError) as error:
        message = f"no OTLP JSON of {signal}"
        raise ValueError(message) from error


def _as_arguments(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields as what makes a message takes them.

    Raises:
        KeyError: There is a field that no message has.
    """
    arguments = {}
    for key, value in fields.items():
        name, convert = _FIELDS[key]
        if convert is None or type(value) is dict:
            arguments[name] = value
        else:
            arguments[name] = [convert(each) for each in value] if type(value) is list else convert(value)
    return arguments


def _with_base64_ids(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields as protobuf's own JSON has them: bytes in base64, also ids."""
    ids = fields.keys() & _IDS
    return {**fields, **{name: b64encode(bytes.fromhex(fields[name])).decode() for name in ids}}


def _fields(message: Any, seen: set[str]) -> Iterator[FieldDescriptor]:
    seen.add(message.full_name)
    for field in message.fields:
        yield field
        if field.message_type and field.message_type.full_name not in seen:
            yield from _fields(field.message_type, seen)


def _converter(field: FieldDescriptor) -> Callable[[Any], Any] | None:
    """Return what makes a value of a field, or each of its values, of what JSON has; None: it is the same."""
    by_kind: dict[int, Callable[[Any], Any]] = {
        FieldDescriptor.CPPTYPE_INT64: _integer, FieldDescriptor.CPPTYPE_UINT64: _integer,
        FieldDescriptor.CPPTYPE_DOUBLE: float,
    }  # fmt: skip
    if field.type == FieldDescriptor.TYPE_BYTES:
        return bytes.fromhex if field.json_name in _IDS else partial(b64decode, validate=True)
    return by_kind.get(field.cpp_type)


def _integer(value: Any) -> int:
    """Return an integer, which JSON has as text where it may be large."""
    number = int(value)
    if number != (float(value) if type(value) is not str else number):
        raise ValueError(value)
    return number


_REQUESTS: Final[dict[Signal, type[Message]]] = {
    "traces": ExportTraceServiceRequest,
    "metrics": ExportMetricsServiceRequest,
    "logs": ExportLogsServiceRequest,
}
_FIELDS: Final = {
    field.json_name: (field.name, _converter(field))
    for request in _REQUESTS.values()
    for field in sorted(_fields(request.DESCRIPTOR, set()), key=lambda each: each.message_type is None)
}
"""By the name in JSON: the name of the field, and what converts its value. Where one name is that of a message and of a
number, messages are left as they are."""
