"""Finished spans and points as OTLP requests, and OTLP requests as JSON lines. Pure.

Requests are built from plain fields, without the SDK's objects between: that takes a fraction of the time, and a test
holds that the SDK's encoder makes the same of the same telemetry.
"""

import math
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from itertools import starmap
from typing import Any, Final, TypeVar

import msgspec
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import SpanFlags, Status

from periflow_otel.names import SCOPE, Instrument
from periflow_otel.records import RunStarted
from periflow_otel.translate.resource import resource_of
from periflow_otel.translate.telemetry import (
    AttributeValue,
    Event,
    Exemplar,
    ExponentialHistogram,
    Histogram,
    Link,
    Point,
    Resource,
    Span,
)
from periflow_otel.translate.values import number, text

SCOPE_VERSION: Final = version("periflow_otel")

Fields = dict[str, Any]
"""Fields of a message by name. Protobuf takes them for the message itself, and faster, but its stubs do not say so."""
Item = TypeVar("Item")


def traces_request(items: Iterable[tuple[RunStarted, Span]]) -> ExportTraceServiceRequest:
    """Build the request that exports spans, in the order given within each resource."""
    groups = by_resource(items).items()
    return ExportTraceServiceRequest(resource_spans=starmap(_resource_spans, groups))  # type: ignore[arg-type]  # Fields


def metrics_request(items: Iterable[tuple[RunStarted, Point]]) -> ExportMetricsServiceRequest:
    """Build the request that exports points: one metric per instrument and resource, its points in the order given."""
    groups = by_resource(items).items()
    return ExportMetricsServiceRequest(resource_metrics=starmap(_resource_metrics, groups))  # type: ignore[arg-type]  # Fields


def by_resource(items: Iterable[tuple[RunStarted, Item]]) -> dict[Resource, list[Item]]:
    """Group items by resource, in the order given."""
    groups: dict[Resource, list[Item]] = {}
    group_of_run: dict[int, list[Item]] = {}  # by identity: to hash a run takes longer than all else here
    for run, item in items:
        group = group_of_run.get(id(run))
        if group is None:
            group = group_of_run[id(run)] = groups.setdefault(resource_of(run), [])
        group.append(item)
    return groups


def by_metric(points: Iterable[Point]) -> Iterable[list[Point]]:
    """Group points that one OTLP metric can hold: of one instrument, temporality and kind of histogram."""
    groups: dict[tuple[Instrument, bool, bool], list[Point]] = {}
    for point in points:
        key = point.instrument, point.is_delta, isinstance(point.value, ExponentialHistogram)
        groups.setdefault(key, []).append(point)
    return groups.values()


def attribute(value: AttributeValue) -> AttributeValue:
    """Return an attribute's value with the text and the numbers in it as OTLP can hold them."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return number(value)
    return [text(each) for each in value]


def _resource_spans(resource: Resource, spans: list[Span]) -> Fields:
    # Protobuf consumes the map as it goes: the fields of a span are freed at once, which spares the garbage collector.
    return {"resource": _resource(resource), "scope_spans": [{"scope": _SCOPE, "spans": map(_span, spans)}]}


def _resource_metrics(resource: Resource, points: list[Point]) -> Fields:
    metrics = map(_metric, by_metric(points))
    return {"resource": _resource(resource), "scope_metrics": [{"scope": _SCOPE, "metrics": metrics}]}


@lru_cache(maxsize=64)
def _resource(resource: Resource) -> Fields:
    return {"attributes": _attributes(resource.attributes)}


def _attributes(attributes: Iterable[tuple[str, AttributeValue]]) -> list[Fields]:
    return [{"key": text(key), "value": _any_value(value)} for key, value in attributes]


@lru_cache(maxsize=4096)
def _stream_attributes(attributes: tuple[tuple[str, str | int], ...]) -> list[Fields]:
    """Return what all points of a stream share."""
    return _attributes(attributes)


def _any_value(value: AttributeValue) -> Fields:
    if isinstance(value, float):
        return {"double_value": value}
    if isinstance(value, str):
        return {"string_value": text(value)}
    if isinstance(value, bool):
        return {"bool_value": value}
    if isinstance(value, int):
        held = number(value)
        return {"double_value": held} if isinstance(held, float) else {"int_value": held}
    return {"array_value": {"values": [{"string_value": text(each)} for each in value]}}


def _span(span: Span) -> Fields:
    fields: Fields = {
        "trace_id": span.trace_id.to_bytes(16, "big"),
        "span_id": span.span_id.to_bytes(8, "big"),
        "name": text(span.name),
        "kind": _INTERNAL,
        "start_time_unix_nano": span.start_unix_ns,
        "end_time_unix_nano": span.end_unix_ns,
        "attributes": _attributes(span.attributes.items()),
        "flags": _FLAGS,
        "status": _OK if span.error is None else {"code": Status.STATUS_CODE_ERROR, "message": text(span.error)},
    }
    if span.parent_span_id is not None:
        fields["parent_span_id"] = span.parent_span_id.to_bytes(8, "big")
    if span.events:
        fields["events"] = [_event(event) for event in span.events]
    if span.links:
        fields["links"] = [_link(link) for link in span.links]
    return fields


def _event(event: Event) -> Fields:
    return {
        "name": text(event.name),
        "time_unix_nano": event.time_unix_ns,
        "attributes": _attributes(event.attributes.items()),
    }


def _link(link: Link) -> Fields:
    return {
        "trace_id": link.trace_id.to_bytes(16, "big"),
        "span_id": link.span_id.to_bytes(8, "big"),
        "flags": _FLAGS,
    }


def _metric(points: Sequence[Point]) -> Fields:
    first = points[0]
    instrument = first.instrument
    return {
        "name": text(instrument.name),
        "description": text(instrument.meaning),
        "unit": instrument.unit,
        **_data(first, map(_data_point, points)),
    }


def _data(first: Point, data_points: Iterable[Fields]) -> Fields:
    """Return the data of a metric, whose first point tells its kind."""
    if first.instrument.kind == "gauge":
        return {"gauge": {"data_points": data_points}}
    data: Fields = {"data_points": data_points, "aggregation_temporality": _DELTA if first.is_delta else _CUMULATIVE}
    if first.instrument.kind == "counter":
        return {"sum": {**data, "is_monotonic": True}}
    if isinstance(first.value, ExponentialHistogram):
        return {"exponential_histogram": data}
    return {"histogram": data}


def _data_point(point: Point) -> Fields:
    fields = _value(point.value)
    fields["attributes"] = _stream_attributes(point.attributes)
    fields["time_unix_nano"] = point.time_unix_ns
    if point.instrument.kind != "gauge":
        fields["start_time_unix_nano"] = point.start_unix_ns
    if point.exemplars:
        fields["exemplars"] = [_exemplar(exemplar) for exemplar in point.exemplars]
    return fields


def _value(value: float | Histogram | ExponentialHistogram) -> Fields:
    if isinstance(value, Histogram):
        return {**_totals(value), "explicit_bounds": value.bounds, "bucket_counts": value.bucket_counts}
    if isinstance(value, ExponentialHistogram):
        return {**_totals(value), "scale": value.scale, "zero_count": value.zero_count, **_buckets(value)}
    return _number(value)


def _totals(value: Histogram | ExponentialHistogram) -> Fields:
    return {"count": value.count, "sum": value.sum, "min": value.min, "max": value.max}


def _buckets(value: ExponentialHistogram) -> Fields:
    if not value.bucket_counts:
        return {}
    return {"positive": {"offset": value.offset, "bucket_counts": value.bucket_counts}}


def _number(value: float) -> Fields:
    held = number(value)
    return {"as_double": held} if isinstance(held, float) else {"as_int": held}


def _exemplar(exemplar: Exemplar) -> Fields:
    return {
        "time_unix_nano": exemplar.time_unix_ns,
        "trace_id": exemplar.trace_id.to_bytes(16, "big"),
        "span_id": exemplar.span_id.to_bytes(8, "big"),
        **_number(exemplar.value),
    }


_SCOPE: Final[Fields] = {"name": SCOPE, "version": SCOPE_VERSION}
_INTERNAL: Final = SpanMessage.SPAN_KIND_INTERNAL
# As the SDK has it: every parent counts as local. A rank does not tell whether its parent is another one.
_FLAGS: Final = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_OK: Final[Fields] = {}
_CUMULATIVE: Final = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
_DELTA: Final = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA


def to_json_line(message: Message) -> str:
    """Write an OTLP message as OTLP JSON, in one line without its end.

    This is protobuf's JSON but for the trace and span ids, which are hexadecimal, and the enumerations, which are
    numbers.
    """
    return msgspec.json.encode(_json_object(message)).decode()


def _json_object(message: Message) -> dict[str, Any]:
    result = {}
    for field, value in message.ListFields():
        name, write = _json_field(field)
        result[name] = write(value)
    return result


@cache  # OTLP has a bounded number of fields
def _json_field(field: FieldDescriptor) -> tuple[str, Callable[[Any], Any]]:
    """Return how a field is called in JSON, and the function that makes JSON of its value."""
    write = _json_writer(field)
    if field.default_value == []:  # which says that it is repeated, in every version of protobuf
        return field.json_name, lambda values: [write(value) for value in values]
    return field.json_name, write


def _json_writer(field: FieldDescriptor) -> Callable[[Any], Any]:
    if field.message_type == KeyValue.DESCRIPTOR:
        return _json_attribute
    if field.type == FieldDescriptor.TYPE_BYTES:
        return bytes.hex if field.name in _IDS else _json_bytes
    return _JSON_WRITERS.get(field.cpp_type, _as_is)


def _json_attribute(attribute: KeyValue) -> dict[str, Any]:
    """Write what most of a message is, without a look at fields that are always there: in a third of the time."""
    kind = attribute.value.WhichOneof("value")
    if kind is None:
        return _json_object(attribute)
    name, write = _json_field(_VALUE_FIELDS[kind])
    return {"key": attribute.key, "value": {name: write(getattr(attribute.value, kind))}}


def _json_bytes(value: bytes) -> str:
    return b64encode(value).decode()


def _json_float(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _as_is(value: Any) -> Any:
    return value


_VALUE_FIELDS: Final = AnyValue.DESCRIPTOR.fields_by_name
_IDS: Final = frozenset({"trace_id", "span_id", "parent_span_id"})
_JSON_WRITERS: Final[dict[int, Callable[[Any], Any]]] = {
    FieldDescriptor.CPPTYPE_INT64: str,
    FieldDescriptor.CPPTYPE_UINT64: str,
    FieldDescriptor.CPPTYPE_DOUBLE: _json_float,
    FieldDescriptor.CPPTYPE_MESSAGE: _json_object,
}
