"""OTLP requests, held against the SDK's own encoder."""

import math
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from programs import read_attributes, read_points, read_spans
from recorder import make_run
from telemetry import (
    LOG_ITEMS,
    LOSS,
    POINT_ITEMS,
    SPAN_ITEMS,
    logs_message,
    make_log_record,
    make_point,
    make_span,
    metrics_message,
    sdk_logs,
    traces_message,
)

from periflow_otel import names
from periflow_otel.exporters.sdk import sdk_metrics, sdk_spans
from periflow_otel.records import RankRun
from periflow_otel.translate.telemetry import Event, LogRecord, Point, Span
from periflow_otel.translate.values import MAX_TEXT_CHARS


def only_span(**fields: Any) -> Any:
    """Return the message of a span."""
    request = traces_message([(make_run(), make_span(**fields))])
    return request.resource_spans[0].scope_spans[0].spans[0]


def only_data_point(value: Any) -> Any:
    """Return the message of a gauge's point."""
    request = metrics_message([(make_run(), make_point(value))])
    return request.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points[0]


@given(SPAN_ITEMS)
def test_spans_become_what_the_sdk_makes_of_them(items: list[tuple[RankRun, Span]]):
    """Any spans give the very bytes that the SDK's encoder gives."""
    assert as_bytes(traces_message(items)) == as_bytes(encode_spans(sdk_spans(items)))


@given(POINT_ITEMS)
def test_points_become_what_the_sdk_makes_of_them(items: list[tuple[RankRun, Point]]):
    """Any points give the very bytes that the SDK's encoder gives."""
    assert as_bytes(metrics_message(items)) == as_bytes(encode_metrics(sdk_metrics(items)))


@given(LOG_ITEMS)
def test_log_records_become_what_the_sdk_makes_of_them(items: list[tuple[RankRun, LogRecord]]):
    """Any log records give the very messages that the SDK's encoder gives, which does not keep the order of scopes."""
    assert said_by(logs_message(items)) == said_by(encode_logs(sdk_logs(items)))


def said_by(request: ExportLogsServiceRequest) -> dict[tuple[bytes | str, ...], list[bytes]]:
    """Return the records of each resource and scope, in their order."""
    found: dict[tuple[bytes | str, ...], list[bytes]] = {}
    for resource in request.resource_logs:
        for record in (record for scope in resource.scope_logs for record in scope.log_records):
            if record.HasField("body") and record.body.WhichOneof("value") is None:  # the SDK's has one in any case
                record.ClearField("body")
        for scope in resource.scope_logs:
            who = as_bytes(resource.resource), as_bytes(scope.scope), resource.schema_url, scope.schema_url
            found.setdefault(who, []).extend(map(as_bytes, scope.log_records))
    return found


def test_log_records_stay_in_the_order_in_which_they_were_said():
    """Whatever logger said them."""
    items = [(make_run(), make_log_record(scope=scope, time_unix_ns=n)) for n, scope in enumerate("aabab", 1)]
    scopes = logs_message(items).resource_logs[0].scope_logs
    assert [scope.scope.name for scope in scopes] == ["a", "b", "a", "b"]
    assert [record.time_unix_nano for scope in scopes for record in scope.log_records] == [1, 2, 3, 4, 5]


def as_bytes(message: Message) -> bytes:
    """Return a message's bytes: unlike messages, they are equal where both have NaN."""
    return message.SerializeToString(deterministic=True)


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
    assert (span.name, span.status.message, event.name) == (sent, "", sent)
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
    """Points of two instruments, interleaved, make one metric per instrument, in the order given."""
    lr = names.user_instrument("lr")
    items = [(make_run(), make_point(float(i), i, lr if i % 3 else LOSS)) for i in range(1, 9)]
    request = metrics_message(items)
    metrics = request.resource_metrics[0].scope_metrics[0].metrics
    times = {metric.name: [point.time_unix_nano for point in metric.gauge.data_points] for metric in metrics}
    assert times == {"periflow.metric.lr": [1, 2, 4, 5, 7, 8], "periflow.metric.loss": [3, 6]}


def test_each_rank_has_a_resource():
    """Spans of a rank stand under one resource, those of another rank or run under another."""
    runs = [make_run(), make_run(rank=1), make_run(run_id="other")]
    request = traces_message([(run, make_span(span_id=n)) for n, run in enumerate([*runs, *runs], 1)])
    assert [len(each.scope_spans[0].spans) for each in request.resource_spans] == [2, 2, 2]
    assert [span.resource["periflow.run.id"] for span in read_spans(request)] == ["run"] * 4 + ["other"] * 2


def test_every_point_of_a_gauge_keeps_its_time_and_nan():
    """Several points of one stream, NaN among them, are several data points of one gauge."""
    values = [1.0, math.nan, 3.0]
    points = list(read_points(metrics_message([(make_run(), make_point(v, t)) for t, v in enumerate(values, 1)])))
    assert [point.time_unix_ns for point in points] == [1, 2, 3]
    assert [point.value for point in points] == pytest.approx(values, nan_ok=True)
