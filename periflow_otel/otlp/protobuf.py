"""Finished spans and points as OTLP requests. Pure.

Requests are built from plain fields, without the SDK's objects between: that takes a fraction of the time, and a test
holds that the SDK's encoder makes the same of the same telemetry.
"""

import json
from base64 import b64encode
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import starmap
from typing import Any, Final

from google.protobuf.json_format import ParseDict, ParseError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from periflow_otel.names import SCOPE
from periflow_otel.otlp import CUMULATIVE, DELTA, FLAGS, SPAN_KIND_INTERNAL, STATUS_CODE_ERROR
from periflow_otel.records import RankRun
from periflow_otel.translate.groups import by_metric, by_resource
from periflow_otel.translate.resource import SCOPE_VERSION
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

Fields = dict[str, Any]
"""Fields of a message by name. Protobuf takes them for the message itself, and faster, but its stubs do not say so."""


def traces_request(items: Iterable[tuple[RankRun, Span]]) -> ExportTraceServiceRequest:
    """Build the request that exports spans, in the order given within each resource."""
    groups = by_resource(items).items()
    return ExportTraceServiceRequest(resource_spans=starmap(_resource_spans, groups))  # type: ignore[arg-type]  # Fields


def metrics_request(items: Iterable[tuple[RankRun, Point]]) -> ExportMetricsServiceRequest:
    """Build the request that exports points: one metric per instrument and resource, its points in the order given."""
    groups = by_resource(items).items()
    return ExportMetricsServiceRequest(resource_metrics=starmap(_resource_metrics, groups))  # type: ignore[arg-type]  # Fields


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


def _with_base64_ids(fields: Fields) -> Fields:
    """Return fields as protobuf's own JSON has them: bytes in base64, also ids."""
    ids = fields.keys() & {"traceId", "spanId", "parentSpanId"}
    return {**fields, **{name: b64encode(bytes.fromhex(fields[name])).decode() for name in ids}}


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
        "kind": SPAN_KIND_INTERNAL,
        "start_time_unix_nano": span.start_unix_ns,
        "end_time_unix_nano": span.end_unix_ns,
        "attributes": _attributes(span.attributes.items()),
        "flags": FLAGS,
        "status": _OK if span.error is None else {"code": STATUS_CODE_ERROR, "message": text(span.error)},
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
        "flags": FLAGS,
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
    data: Fields = {"data_points": data_points, "aggregation_temporality": DELTA if first.is_delta else CUMULATIVE}
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
_OK: Final[Fields] = {}
