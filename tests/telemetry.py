"""Spans and points of every kind, as hypothesis makes them up."""

from collections.abc import Iterable
from typing import Any

import msgspec
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from recorder import make_run

from periflow_otel import names
from periflow_otel.otlp.protobuf import metrics_request, traces_request
from periflow_otel.records import RankRun
from periflow_otel.translate.telemetry import (
    Event,
    Exemplar,
    ExponentialHistogram,
    Histogram,
    Link,
    Point,
    Span,
)

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
VALUES = {"gauge": NUMBERS, "counter": NUMBERS, "histogram": HISTOGRAMS | EXPONENTIAL_HISTOGRAMS}
INSTRUMENTS = st.sampled_from(names.INSTRUMENTS) | ANY_TEXT.map(names.user_instrument)
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
SPAN_ITEMS = st.lists(st.tuples(RUNS, SPANS), max_size=4)
POINT_ITEMS = st.lists(st.tuples(RUNS, POINTS), max_size=6)


def traces_message(items: Iterable[tuple[RankRun, Span]]) -> ExportTraceServiceRequest:
    """Return the request of spans, as protobuf's own classes read it."""
    return ExportTraceServiceRequest.FromString(traces_request(items))


def metrics_message(items: Iterable[tuple[RankRun, Point]]) -> ExportMetricsServiceRequest:
    """Return the request of points, as protobuf's own classes read it."""
    return ExportMetricsServiceRequest.FromString(metrics_request(items))


def make_span(**fields: Any) -> Span:
    """Return a span, the same but for ``fields``."""
    return msgspec.structs.replace(Span("step", 1, 2, None, 10, 20, {}), **fields)


def make_point(value: Any, time_unix_ns: int = 1, instrument: names.Instrument = LOSS) -> Point:
    """Return a point."""
    return Point(instrument, (("periflow.rank", 0),), time_unix_ns, value)
