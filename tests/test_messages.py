"""OTLP requests, held against the SDK's own encoder and protobuf's own JSON."""

import base64
import json
import math
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from programs import read_attributes, read_points, read_spans

from periflow_otel import names
from periflow_otel.exporters.sdk import sdk_metrics, sdk_spans
from periflow_otel.messages import metrics_request, to_json_line, traces_request
from periflow_otel.records import RunStarted
from periflow_otel.translate.telemetry import (
    Event,
    Exemplar,
    ExponentialHistogram,
    Histogram,
    Link,
    Point,
    Span,
)
from periflow_otel.translate.values import MAX_TEXT_CHARS

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


def make_run(run_id: str = "run", rank: int = 0, resource: tuple[tuple[str, str | int], ...] = ()) -> RunStarted:
    """Return one rank of a run."""
    return RunStarted(
        run_id=run_id,
        attempt=1,
        rank=rank,
        local_rank=rank,
        node_rank=0,
        world_size=2,
        mode="local",
        pid=1,
        process_start=1,
        boot_id="boot",
        started_unix_ns=1,
        initial_step=0,
        total_steps=None,
        consumers=(),
        local_log=None,
        traceparent=None,
        sampling_ratio=1.0,
        resource=resource,
    )


RUNS = st.sampled_from(
    [make_run(), make_run(rank=1), make_run("other", resource=(("host.name", "bücher"), ("host.cpus", 8)))]
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


def make_span(**fields: Any) -> Span:
    """Return a span, the same but for ``fields``."""
    return Span("step", 1, 2, None, 10, 20, {})._replace(**fields)


def make_point(value: Any, time_unix_ns: int = 1, instrument: names.Instrument = LOSS) -> Point:
    """Return a point."""
    return Point(instrument, (("periflow.rank", 0),), time_unix_ns, value)


def only_span(**fields: Any) -> Any:
    """Return the message of a span."""
    request = traces_request([(make_run(), make_span(**fields))])
    return request.resource_spans[0].scope_spans[0].spans[0]


def only_data_point(value: Any) -> Any:
    """Return the message of a gauge's point."""
    request = metrics_request([(make_run(), make_point(value))])
    return request.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points[0]


@settings(deadline=None)
@given(SPAN_ITEMS)
def test_spans_become_what_the_sdk_makes_of_them(items: list[tuple[RunStarted, Span]]):
    """Any spans give the very bytes that the SDK's encoder gives."""
    assert as_bytes(traces_request(items)) == as_bytes(encode_spans(sdk_spans(items)))


@settings(deadline=None)
@given(POINT_ITEMS)
def test_points_become_what_the_sdk_makes_of_them(items: list[tuple[RunStarted, Point]]):
    """Any points give the very bytes that the SDK's encoder gives."""
    assert as_bytes(metrics_request(items)) == as_bytes(encode_metrics(sdk_metrics(items)))


def as_bytes(message: Message) -> bytes:
    """Return a message's bytes: unlike messages, they are equal where both have NaN."""
    return message.SerializeToString(deterministic=True)


@settings(deadline=None)
@given(SPAN_ITEMS)
def test_json_of_spans_reads_back(items: list[tuple[RunStarted, Span]]):
    """Protobuf's own parser finds the same spans in a line, once the ids are base64 as it wants them."""
    assert_reads_back(traces_request(items))


@settings(deadline=None)
@given(POINT_ITEMS)
def test_json_of_points_reads_back(items: list[tuple[RunStarted, Point]]):
    """Protobuf's own parser finds the same points in a line, once the ids are base64 as it wants them."""
    assert_reads_back(metrics_request(items))


def assert_reads_back(request: Message) -> None:
    """Fail unless the JSON line of a request is one line and holds the request."""
    line = to_json_line(request)
    assert "\n" not in line
    read = json_format.ParseDict(with_base64_ids(json.loads(line)), type(request)())
    assert json_format.MessageToDict(read) == json_format.MessageToDict(request)


def with_base64_ids(value: Any) -> Any:
    """Return OTLP JSON as protobuf's JSON."""
    if isinstance(value, list):
        return [with_base64_ids(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: base64.b64encode(bytes.fromhex(each)).decode()
        if key in ("traceId", "spanId", "parentSpanId")
        else with_base64_ids(each)
        for key, each in value.items()
    }


def test_json_is_as_otlp_wants_it():
    """Ids are lower-case hexadecimal, 64-bit integers text, enumerations numbers, and NaN and infinities words."""
    span = make_span(trace_id=0xAB, span_id=0xCD, parent_span_id=0xEF, attributes={"step": 3, "ok": True, "é": "ü"})
    line = json.loads(to_json_line(traces_request([(make_run(), span)])))
    assert line["resourceSpans"][0]["scopeSpans"][0]["spans"] == [
        {
            "traceId": "000000000000000000000000000000ab",
            "spanId": "00000000000000cd",
            "parentSpanId": "00000000000000ef",
            "name": "step",
            "kind": 1,
            "startTimeUnixNano": "10",
            "endTimeUnixNano": "20",
            "attributes": [
                {"key": "step", "value": {"intValue": "3"}},
                {"key": "ok", "value": {"boolValue": True}},
                {"key": "é", "value": {"stringValue": "ü"}},
            ],
            "status": {},
            "flags": 256,
        }
    ]
    points = [(make_run(), make_point(value)) for value in (math.nan, math.inf, -math.inf, 1.5, 1 << 62)]
    metric = json.loads(to_json_line(metrics_request(points)))["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]
    values = [point.get("asDouble", point.get("asInt")) for point in metric["gauge"]["dataPoints"]]
    assert values == ["NaN", "Infinity", "-Infinity", 1.5, str(1 << 62)]


@pytest.mark.parametrize(
    ("given_text", "sent"),
    [
        ("a\ud800b", "a?b"),
        ("x" * MAX_TEXT_CHARS, "x" * MAX_TEXT_CHARS),
        ("x" * (MAX_TEXT_CHARS + 1), "x" * MAX_TEXT_CHARS + "…[truncated]"),
        ("ü" * (MAX_TEXT_CHARS + 1), "ü" * MAX_TEXT_CHARS + "…[truncated]"),
    ],
    ids=["lone surrogate", "longest", "too long", "too long and not ASCII"],
)
def test_text_survives_everywhere(given_text: str, sent: str):
    """Text that is not Unicode or has no end is mended, wherever it stands, and takes nothing else with it."""
    span = only_span(
        name=given_text,
        error=given_text,
        attributes={given_text: given_text, "list": [given_text]},
        events=(Event(given_text, 1, {given_text: given_text}),),
    )
    attributes = read_attributes(span.attributes)
    event = span.events[0]
    assert (span.name, span.status.message, event.name) == (sent, sent, sent)
    assert attributes == {sent: sent, "list": [sent]}
    assert read_attributes(event.attributes) == {sent: sent}


@pytest.mark.parametrize(
    ("value", "sent"),
    [(1 << 63, float(1 << 63)), (-(1 << 63) - 1, float(-(1 << 63) - 1)), (10**400, math.inf), (-(10**400), -math.inf)],
    ids=["2^63", "-2^63 - 1", "beyond float", "beyond float, negative"],
)
def test_integers_beyond_64_bits_are_sent_as_floats(value: int, sent: float):
    """An integer that OTLP cannot hold goes as the nearest float, as an attribute and as a point."""
    assert read_attributes(only_span(attributes={"n": value}).attributes) == {"n": sent}
    assert only_data_point(value).as_double == sent


@pytest.mark.parametrize("value", [(1 << 63) - 1, -(1 << 63), 0, True])
def test_integers_of_64_bits_are_sent_exactly(value: int):
    """An integer that OTLP can hold stays one; a bool is one as the value of a point."""
    point = only_data_point(value)
    assert (point.WhichOneof("value"), point.as_int) == ("as_int", value)


def test_streams_stay_in_order_within_one_metric_per_instrument():
    """Points of two ranks, interleaved, make one metric per instrument, in the order given."""
    lr = names.user_instrument("lr")
    runs = make_run(), make_run(rank=1)
    items = [(runs[i % 2], make_point(float(i), i, lr if i % 3 else LOSS)) for i in range(1, 9)]
    request = metrics_request(items)
    metrics = request.resource_metrics[0].scope_metrics[0].metrics
    times = {metric.name: [point.time_unix_nano for point in metric.gauge.data_points] for metric in metrics}
    assert times == {"periflow.metric.lr": [1, 2, 4, 5, 7, 8], "periflow.metric.loss": [3, 6]}


def test_ranks_of_a_node_share_a_resource():
    """Spans of two ranks stand under one resource, those of another run under another."""
    runs = [make_run(), make_run(rank=1), make_run("other")]
    request = traces_request([(run, make_span(span_id=n)) for n, run in enumerate([*runs, *runs], 1)])
    assert [len(each.scope_spans[0].spans) for each in request.resource_spans] == [4, 2]
    assert [span.resource["periflow.run.id"] for span in read_spans(request)] == ["run"] * 4 + ["other"] * 2


def test_every_point_of_a_gauge_keeps_its_time_and_nan():
    """Several points of one stream, NaN among them, are several data points of one gauge."""
    values = [1.0, math.nan, 3.0]
    points = list(read_points(metrics_request([(make_run(), make_point(v, t)) for t, v in enumerate(values, 1)])))
    assert [point.time_unix_ns for point in points] == [1, 2, 3]
    assert [point.value for point in points] == pytest.approx(values, nan_ok=True)
