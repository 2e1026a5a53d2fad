"""Spans, points and log records of every kind, as hypothesis makes them up."""

from collections.abc import Iterable
from typing import Any

import msgspec
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord as SdkLogRecord
from opentelemetry._logs import SeverityNumber
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context
from recorder import make_run

from periflow_otel import conventions, names
from periflow_otel.exporters.sdk import _attributes
from periflow_otel.otlp.protobuf import logs_request, metrics_request, traces_request
from periflow_otel.records import RankRun
from periflow_otel.translate.resource import resource_of
from periflow_otel.translate.telemetry import (
    Event,
    Exemplar,
    ExponentialHistogram,
    Histogram,
    Link,
    LogRecord,
    Point,
    Span,
)
from periflow_otel.translate.values import text, whole

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
KEYS = st.text(min_size=1, max_size=20)
FLOATS = st.floats(allow_nan=True, allow_infinity=True)
INTEGERS = st.one_of(st.integers(-100, 100), st.integers(-(1 << 70), 1 << 70), st.just(10**400))
NUMBERS = st.one_of(FLOATS, INTEGERS, st.booleans())
TIMES = st.integers(1, (1 << 63) - 1)
COUNTS = st.integers(0, (1 << 63) - 1)
TRACE_IDS = st.integers(1, (1 << 128) - 1)
SPAN_IDS = st.integers(1, (1 << 64) - 1)
ATTRIBUTES = st.dictionaries(KEYS, st.one_of(ANY_TEXT, NUMBERS, st.lists(ANY_TEXT, max_size=3)), max_size=4)
LOSS = names.user_instrument("loss")
RUNS = st.sampled_from(
    [make_run(), make_run(rank=1), make_run(run_id="other", resource=(("host.name", "bücher"), ("host.cpus", 8)))]
)
SPANS = st.builds(
    Span,
    name=ANY_TEXT,
    trace_id=TRACE_IDS,
    span_id=SPAN_IDS,
    parent_span_id=st.none() | SPAN_IDS,
    start_unix_ns=TIMES,
    end_unix_ns=TIMES,
    attributes=ATTRIBUTES,
    events=st.lists(st.builds(Event, ANY_TEXT, TIMES, ATTRIBUTES), max_size=2).map(tuple),
    links=st.lists(st.builds(Link, TRACE_IDS, SPAN_IDS), max_size=2).map(tuple),
    error=st.none() | ANY_TEXT,
    trace_state=st.sampled_from(["", "ot=th:8,vendor=abc"]),
    dropped_attributes=st.integers(0, 9),
).flatmap(
    lambda span: st.booleans().map(
        lambda is_remote: msgspec.structs.replace(span, is_parent_remote=is_remote and span.parent_span_id is not None)
    )
)
TOTALS = {"count": COUNTS, "sum": FLOATS, "min": FLOATS, "max": FLOATS}
HISTOGRAMS = st.builds(Histogram, **TOTALS, bounds=st.just((0.5, 2.0)), bucket_counts=st.tuples(COUNTS, COUNTS, COUNTS))
EXPONENTIAL_HISTOGRAMS = st.builds(
    ExponentialHistogram,
    **TOTALS,
    scale=st.integers(-10, 20),
    zero_count=COUNTS,
    offset=st.integers(-1000, 1000),
    bucket_counts=st.lists(COUNTS, max_size=4).map(tuple),
)
VALUES = {
    "gauge": NUMBERS,
    "counter": NUMBERS,
    "updowncounter": NUMBERS,
    "histogram": HISTOGRAMS | EXPONENTIAL_HISTOGRAMS,
}
INSTRUMENTS = st.sampled_from((*names.INSTRUMENTS, *conventions.INSTRUMENTS)) | ANY_TEXT.map(names.user_instrument)
POINTS = INSTRUMENTS.flatmap(
    lambda instrument: st.builds(
        Point,
        instrument=st.just(instrument),
        attributes=st.dictionaries(KEYS, ANY_TEXT | st.integers(0, 9), max_size=3).map(
            lambda each: tuple(each.items())
        ),
        time_unix_ns=TIMES,
        value=VALUES[instrument.kind],
        start_unix_ns=TIMES,
        exemplars=st.lists(st.builds(Exemplar, TIMES, FLOATS, TRACE_IDS, SPAN_IDS), max_size=2).map(tuple),
        is_delta=st.booleans(),
    )
)
LOG_RECORDS = st.builds(
    LogRecord,
    scope=st.sampled_from([names.SCOPE, "script", "script.löop"]),
    time_unix_ns=TIMES,
    observed_unix_ns=TIMES,
    severity=st.integers(0, 24),
    severity_text=ANY_TEXT,
    body=st.none() | ANY_TEXT | st.just(whole("x" * 5000)),
    attributes=ATTRIBUTES,
    trace_id=TRACE_IDS,
    span_id=SPAN_IDS,
    flags=st.integers(0, 255),
    source=st.dictionaries(st.sampled_from(["code.file.path", "thread.id"]), ANY_TEXT | INTEGERS).map(
        lambda each: tuple(each.items())
    ),
    event_name=ANY_TEXT,
    dropped_attributes=st.integers(0, 9),
)
LOG_ITEMS = st.lists(st.tuples(RUNS, LOG_RECORDS), max_size=6)
SPAN_ITEMS = st.lists(st.tuples(RUNS, SPANS), max_size=4)
POINT_ITEMS = st.lists(st.tuples(RUNS, POINTS), max_size=6)


def traces_message(items: Iterable[tuple[RankRun, Span]]) -> ExportTraceServiceRequest:
    """Return the request of spans, as protobuf's own classes read it."""
    return ExportTraceServiceRequest.FromString(traces_request(items))


def metrics_message(items: Iterable[tuple[RankRun, Point]]) -> ExportMetricsServiceRequest:
    """Return the request of points, as protobuf's own classes read it."""
    return ExportMetricsServiceRequest.FromString(metrics_request(items))


def logs_message(items: Iterable[tuple[RankRun, LogRecord]]) -> ExportLogsServiceRequest:
    """Return the request of log records, as protobuf's own classes read it."""
    return ExportLogsServiceRequest.FromString(logs_request(items))


def make_log_record(**fields: Any) -> LogRecord:
    """Return a log record, the same but for ``fields``."""
    return msgspec.structs.replace(LogRecord("script", 10, 11, 9, "INFO", "said", {}, 1, 2, 1), **fields)


def make_span(**fields: Any) -> Span:
    """Return a span, the same but for ``fields``."""
    return msgspec.structs.replace(Span("step", 1, 2, None, 10, 20, {}), **fields)


def make_point(value: Any, time_unix_ns: int = 1, instrument: names.Instrument = LOSS) -> Point:
    """Return a point."""
    return Point(instrument, (("periflow.rank", 0),), time_unix_ns, value)


def sdk_logs(items: Iterable[tuple[RankRun, LogRecord]]) -> list[ReadableLogRecord]:
    """Return log records as the SDK's, in the order given."""
    return [ReadableLogRecord(_sdk_log(record), _sdk_resource(run), _sdk_scope(record.scope)) for run, record in items]


def _sdk_log(record: LogRecord) -> SdkLogRecord:
    context = SpanContext(record.trace_id, record.span_id, is_remote=False, trace_flags=TraceFlags(record.flags))
    attributes = BoundedAttributes(attributes=_attributes([*record.attributes.items(), *record.source]))
    attributes.dropped = record.dropped_attributes
    return SdkLogRecord(
        timestamp=record.time_unix_ns,
        observed_timestamp=record.observed_unix_ns,
        context=set_span_in_context(NonRecordingSpan(context)),
        severity_text=text(record.severity_text),
        severity_number=SeverityNumber(record.severity),
        body=None if record.body is None else text(record.body),
        attributes=attributes,
        event_name=text(record.event_name),
    )


def _sdk_resource(run: RankRun) -> Resource:
    return Resource(_attributes(resource_of(run).attributes), names.SCHEMA_URL)


def _sdk_scope(name: str) -> InstrumentationScope:
    return InstrumentationScope(name, names.VERSION if name == names.SCOPE else None, names.SCHEMA_URL)
