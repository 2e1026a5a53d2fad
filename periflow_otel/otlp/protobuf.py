"""Finished spans, points and log records as OTLP requests in protobuf. Pure.

They are written straight into the wire format, field by field, by their numbers in the ``.proto`` files: to build
messages takes several times as long. What many of them share is written once and remembered. A test holds that
the SDK's encoder makes the same of the same telemetry, whatever it is.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from struct import Struct, pack
from typing import Final

from periflow_otel.names import SCHEMA_URL, SCOPE, VERSION, Instrument
from periflow_otel.otlp import CUMULATIVE, DELTA, FLAGS, REMOTE, SMALL, SPAN_KIND_INTERNAL, STATUS_CODE_ERROR
from periflow_otel.otlp.wire import FIXED32, FIXED64, VARINT, delimited, head, integer, signed, tag, varint
from periflow_otel.records import RankRun
from periflow_otel.translate.groups import by_metric, by_resource, by_scope
from periflow_otel.translate.telemetry import (
    AttributeValue,
    Event,
    Exemplar,
    ExponentialHistogram,
    Histogram,
    Link,
    LogRecord,
    Point,
    Resource,
    Span,
)
from periflow_otel.translate.values import number, text


def traces_request(items: Iterable[tuple[RankRun, Span]]) -> bytes:
    """Write the request that exports spans, in the order given within each resource."""
    return b"".join(_of_resource(resource, map(_span, spans)) for resource, spans in by_resource(items).items())


def metrics_request(items: Iterable[tuple[RankRun, Point]]) -> bytes:
    """Write the request that exports points: one metric per instrument and resource, its points in the order given."""
    groups = by_resource(items).items()
    return b"".join(_of_resource(resource, map(_metric, by_metric(points))) for resource, points in groups)


def logs_request(items: Iterable[tuple[RankRun, LogRecord]]) -> bytes:
    """Write the request that exports log records, in the order given within each resource."""
    return b"".join(_resource_logs(resource, records) for resource, records in by_resource(items).items())


def _resource_logs(resource: Resource, records: Iterable[LogRecord]) -> bytes:
    scopes = [
        delimited(2, _log_scope(name) + b"".join(map(_log_record, each)) + _SCHEMA) for name, each in by_scope(records)
    ]
    return delimited(1, _resource(resource) + b"".join(scopes) + _SCHEMA)


def _of_resource(resource: Resource, content: Iterable[bytes]) -> bytes:
    """Return the ``ResourceSpans`` or ``ResourceMetrics`` of spans or metrics."""
    scope = delimited(2, _SCOPE + b"".join(content) + _SCHEMA)
    return delimited(1, _resource(resource) + scope + _SCHEMA)


@lru_cache(maxsize=1024)
def _resource(resource: Resource) -> bytes:
    return delimited(1, _attributes(1, resource.attributes))


def _attributes(field: int, attributes: Iterable[tuple[str, AttributeValue]]) -> bytes:
    parts = []
    for key, value in attributes:  # in one loop: there are very many, and nearly all of them are numbers
        kind = type(value)
        if kind is float:
            parts.append(_attribute_head(field, key, 9) + _pack_double(_ANY_DOUBLE, value))
        elif kind is int and 0 <= value < SMALL:  # type: ignore[operator]  # as just seen
            parts.append(_small_attribute(field, key, value))
        else:
            parts.append(_attribute(field, key, value))
    return b"".join(parts)


def _attribute(field: int, key: str, value: AttributeValue) -> bytes:
    content = _any_value(value)
    return _attribute_head(field, key, len(content)) + content


@lru_cache(maxsize=8192)
def _small_attribute(field: int, key: str, value: int) -> bytes:
    """Return an attribute such as the rank, which is the same for many."""
    return _attribute_head(field, key, 1 + len(varint(value))) + _ANY_INTEGER + varint(value)


@lru_cache(maxsize=8192)
def _attribute_head(field: int, key: str, size_bytes: int) -> bytes:
    """Return what comes before the value of an attribute, which takes so many bytes."""
    start = _text(1, key) + head(2, size_bytes)
    return head(field, len(start) + size_bytes) + start


def _any_value(value: AttributeValue) -> bytes:
    if isinstance(value, float):
        return _pack_double(_ANY_DOUBLE, value)
    if isinstance(value, str):
        return _text(1, value)
    if isinstance(value, bool):
        return integer(2, value)
    if isinstance(value, int):
        held = number(value)
        return _any_value(held) if isinstance(held, float) else _ANY_INTEGER + varint(held)
    return delimited(5, b"".join(delimited(1, _text(1, each)) for each in value))


def _text(field: int, value: str) -> bytes:
    return delimited(field, text(value).encode())


def _span(span: Span) -> bytes:
    parts = [
        _SPAN_TRACE_ID,
        span.trace_id.to_bytes(16, "big"),
        _SPAN_ID,
        span.span_id.to_bytes(8, "big"),
        b"" if span.parent_span_id is None else _PARENT_SPAN_ID + span.parent_span_id.to_bytes(8, "big"),
        _name_and_kind(span.name),
        _pack_times(_STARTED, span.start_unix_ns, _ENDED, span.end_unix_ns),
        _attributes(9, span.attributes.items()),
        *map(_event, span.events),
        *map(_link, span.links),
        _OK if span.error is None else _FAILED,
        _REMOTE_FLAGS if span.is_parent_remote else _SPAN_FLAGS,
    ]
    if span.trace_state:
        parts.append(_text(3, span.trace_state))
    if span.dropped_attributes:
        parts.append(integer(10, span.dropped_attributes))
    return delimited(2, b"".join(parts))


@lru_cache(maxsize=4096)
def _name_and_kind(name: str) -> bytes:
    return _text(5, name) + integer(6, SPAN_KIND_INTERNAL)


def _event(event: Event) -> bytes:
    time = _pack_fixed(_EVENT_TIME, event.time_unix_ns)
    return delimited(11, time + _text(2, event.name) + _attributes(3, event.attributes.items()))


@lru_cache(maxsize=1024)
def _link(link: Link) -> bytes:
    """Return a link; all steps of a rank have the same."""
    trace_id, span_id = link.trace_id.to_bytes(16, "big"), link.span_id.to_bytes(8, "big")
    return delimited(13, delimited(1, trace_id) + delimited(2, span_id) + _LINK_FLAGS)


@lru_cache(maxsize=4096)
def _log_scope(name: str) -> bytes:
    """Return a logger as a scope; our own has a version."""
    return _SCOPE if name == SCOPE else delimited(1, _text(1, name))


def _log_record(record: LogRecord) -> bytes:
    parts = [
        _pack_fixed(_LOG_TIME, record.time_unix_ns),
        _severity(record.severity, record.severity_text),
        b"" if record.body is None else delimited(5, _text(1, record.body)),
        _attributes(6, record.attributes.items()),
        _source(record.source),
        integer(7, record.dropped_attributes) if record.dropped_attributes else b"",
        _pack_flags(_LOG_FLAGS, record.flags) if record.flags else b"",
        _LOG_TRACE_ID,
        record.trace_id.to_bytes(16, "big"),
        _LOG_SPAN_ID,
        record.span_id.to_bytes(8, "big"),
        _pack_fixed(_OBSERVED, record.observed_unix_ns),
        _text(12, record.event_name) if record.event_name else b"",
    ]
    return delimited(2, b"".join(parts))


@lru_cache(maxsize=4096)
def _source(attributes: tuple[tuple[str, str | int], ...]) -> bytes:
    """Return what all records of a line of code share."""
    return _attributes(6, attributes)


@lru_cache(maxsize=256)
def _severity(number: int, name: str) -> bytes:
    return (integer(2, number) if number else b"") + (_text(3, name) if name else b"")


def _metric(points: Sequence[Point]) -> bytes:
    return delimited(2, _instrument(points[0].instrument) + _data(points[0], b"".join(map(_point, points))))


@lru_cache(maxsize=4096)
def _instrument(instrument: Instrument) -> bytes:
    return _text(1, instrument.name) + _text(2, instrument.meaning) + _text(3, instrument.unit)


def _data(first: Point, points: bytes) -> bytes:
    """Return the data of a metric, whose first point tells its kind."""
    if first.instrument.kind == "gauge":
        return delimited(5, points)
    temporality = integer(2, DELTA if first.is_delta else CUMULATIVE)
    if first.instrument.kind == "counter":
        return delimited(7, points + temporality + integer(3, True))  # noqa: FBT003  # it is monotonic
    if first.instrument.kind == "updowncounter":
        return delimited(7, points + temporality)
    return delimited(10 if isinstance(first.value, ExponentialHistogram) else 9, points + temporality)


def _point(point: Point) -> bytes:
    if type(point.value) is float and point.instrument.kind == "gauge" and not point.exemplars:  # as nearly all are
        return _gauge_head(point.attributes) + _pack_gauge(_TIME, point.time_unix_ns, _AS_DOUBLE, point.value)
    if isinstance(point.value, Histogram):
        return _data_point(point, _histogram(point.value), attributes=9, exemplars=8)
    if isinstance(point.value, ExponentialHistogram):
        return _data_point(point, _exponential_histogram(point.value), attributes=1, exemplars=11)
    return _data_point(point, _number(_AS_DOUBLE, point.value), attributes=7, exemplars=5)


@lru_cache(maxsize=4096)
def _gauge_head(attributes: tuple[tuple[str, str | int], ...]) -> bytes:
    """Return what comes before time and value of a point, which take as much in all of them."""
    stream = _stream(7, attributes)
    return head(1, len(stream) + _gauge.size) + stream


def _data_point(point: Point, value: bytes, *, attributes: int, exemplars: int) -> bytes:
    """Return a data point of any kind; ``attributes`` and ``exemplars`` are the numbers of these fields."""
    content = _stream(attributes, point.attributes) + _pack_fixed(_TIME, point.time_unix_ns) + value
    if point.instrument.kind != "gauge":
        content += _pack_fixed(_START_TIME, point.start_unix_ns)
    for exemplar in point.exemplars:
        content += delimited(exemplars, _exemplar(exemplar))
    return delimited(1, content)


@lru_cache(maxsize=4096)
def _stream(field: int, attributes: tuple[tuple[str, str | int], ...]) -> bytes:
    """Return what all points of a stream share."""
    return _attributes(field, attributes)


def _number(as_double: int, value: float) -> bytes:
    """Return a number as a double, of which the tag is given, or as an integer of 64 bits."""
    if isinstance(value, float):
        return _pack_double(as_double, value)
    held = number(value)
    return _number(as_double, held) if isinstance(held, float) else _pack_signed(_AS_INTEGER, held)


def _histogram(value: Histogram) -> bytes:
    counts, bounds = _packed("Q", value.bucket_counts), _packed("d", value.bounds)
    return _totals(value, 11, 12) + delimited(6, counts) + delimited(7, bounds)


def _packed(kind: str, values: Sequence[float]) -> bytes:
    return pack(f"<{len(values)}{kind}", *values)


def _exponential_histogram(value: ExponentialHistogram) -> bytes:
    zeros = _pack_fixed(_ZERO_COUNT, value.zero_count)
    return _totals(value, 12, 13) + signed(6, value.scale) + zeros + _buckets(value)


def _buckets(value: ExponentialHistogram) -> bytes:
    if not value.bucket_counts:
        return b""
    return delimited(8, signed(1, value.offset) + delimited(2, b"".join(map(varint, value.bucket_counts))))


def _totals(value: Histogram | ExponentialHistogram, min_field: int, max_field: int) -> bytes:
    if value.min is None or value.max is None:
        return _pack_fixed(_COUNT, value.count) + _pack_double(_SUM, value.sum)
    least, most = tag(min_field, FIXED64), tag(max_field, FIXED64)
    return _pack_totals(_COUNT, value.count, _SUM, value.sum, least, value.min, most, value.max)


def _exemplar(exemplar: Exemplar) -> bytes:
    span_id, trace_id = exemplar.span_id.to_bytes(8, "big"), exemplar.trace_id.to_bytes(16, "big")
    ids = delimited(4, span_id) + delimited(5, trace_id)
    return _pack_fixed(_EXEMPLAR_TIME, exemplar.time_unix_ns) + _number(_EXEMPLAR_DOUBLE, exemplar.value) + ids


_pack_fixed: Final = Struct("<BQ").pack
_pack_signed: Final = Struct("<Bq").pack
_pack_double: Final = Struct("<Bd").pack
_gauge: Final = Struct("<BQBd")
_pack_gauge: Final = _gauge.pack
_pack_times: Final = Struct("<BQBQ").pack
_pack_totals: Final = Struct("<BQBdBdBd").pack
# Of a value in an attribute
_ANY_DOUBLE: Final = tag(4, FIXED64)
_ANY_INTEGER: Final = varint(tag(3, VARINT))
# Of a span, an event and a link
_SPAN_TRACE_ID, _SPAN_ID, _PARENT_SPAN_ID = head(1, 16), head(2, 8), head(4, 8)
_STARTED, _ENDED = tag(7, FIXED64), tag(8, FIXED64)
_OK, _FAILED = delimited(15, b""), delimited(15, integer(3, STATUS_CODE_ERROR))
_SPAN_FLAGS, _REMOTE_FLAGS = (
    varint(tag(16, FIXED32)) + flags.to_bytes(4, "little") for flags in (FLAGS, FLAGS | REMOTE)
)
_EVENT_TIME: Final = tag(1, FIXED64)
_LINK_FLAGS: Final = varint(tag(6, FIXED32)) + FLAGS.to_bytes(4, "little")
# Of a log record
_LOG_TIME, _OBSERVED, _LOG_FLAGS = tag(1, FIXED64), tag(11, FIXED64), tag(8, FIXED32)
_LOG_TRACE_ID, _LOG_SPAN_ID = head(9, 16), head(10, 8)
_pack_flags: Final = Struct("<BI").pack
# Of a data point and an exemplar
_START_TIME, _TIME, _COUNT, _SUM, _ZERO_COUNT = (tag(field, FIXED64) for field in (2, 3, 4, 5, 7))
_AS_DOUBLE, _AS_INTEGER = tag(4, FIXED64), tag(6, FIXED64)
_EXEMPLAR_TIME, _EXEMPLAR_DOUBLE = tag(2, FIXED64), tag(3, FIXED64)
_SCOPE: Final = delimited(1, _text(1, SCOPE) + _text(2, VERSION))
_SCHEMA: Final = _text(3, SCHEMA_URL)
"""Of resources and scopes alike."""
