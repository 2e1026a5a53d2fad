"""Requests are made of OTLP JSON, quickly of what writers usually write, and rightly of all there is."""

import json
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from hypothesis import given, settings
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from telemetry import LOG_ITEMS, POINT_ITEMS, SPAN_ITEMS, logs_message, metrics_message, traces_message

from periflow_otel.config.endpoints import Signal
from periflow_otel.otlp import from_json
from periflow_otel.otlp.from_json import request_from_json
from periflow_otel.otlp.json import logs_json, metrics_json, traces_json
from periflow_otel.records import RankRun
from periflow_otel.translate.telemetry import LogRecord, Point, Span


def assert_is(signal: Signal, line: bytes, message: Message) -> None:
    """Fail unless a request is the message."""
    made = type(message).FromString(request_from_json(signal, line))
    assert MessageToDict(made) == MessageToDict(message)


@given(SPAN_ITEMS)
@settings(max_examples=20)
def test_spans_are_what_they_were(items: list[tuple[RankRun, Span]]):
    """All that is written of them comes back."""
    assert_is("traces", traces_json(items), traces_message(items))


@given(POINT_ITEMS)
@settings(max_examples=20)
def test_points_are_what_they_were(items: list[tuple[RankRun, Point]]):
    """With values that are not finite, and counts beyond what a float holds."""
    assert_is("metrics", metrics_json(items), metrics_message(items))


@given(LOG_ITEMS)
@settings(max_examples=20)
def test_log_records_are_what_they_were(items: list[tuple[RankRun, LogRecord]]):
    """With their bodies."""
    assert_is("logs", logs_json(items), logs_message(items))


def span(**fields: Any) -> bytes:
    """Return OTLP JSON of one span."""
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [fields]}]}]}).encode()


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"traceId": "00ff"}, "trace_id", b"\x00\xff"),
        ({"startTimeUnixNano": "1" + "0" * 18}, "start_time_unix_nano", 10**18),
        ({"startTimeUnixNano": 12}, "start_time_unix_nano", 12),
        ({"kind": "SPAN_KIND_CLIENT"}, "kind", 3),
        ({"kind": 3}, "kind", 3),
        ({"name": "x", "newInLaterVersions": {"a": [1]}}, "name", "x"),
        ({"name": "x", "count": 7}, "name", "x"),
        ({"trace_state": "a=b"}, "trace_state", "a=b"),
        ({"name": None}, "name", ""),
    ],
)
def test_what_others_write_is_read_too(fields: dict[str, Any], name: str, value: object):
    """Numbers as text or not, kinds by name, fields of later versions, and names as protobuf has them."""
    request = ExportTraceServiceRequest.FromString(request_from_json("traces", span(**fields)))
    assert getattr(request.resource_spans[0].scope_spans[0].spans[0], name) == value


def test_bytes_are_in_base64():
    """Also with the letters for addresses of the web, and without padding."""
    for text in ("+/8=", "-_8"):
        line = span(attributes=[{"key": "k", "value": {"bytesValue": text}}])
        request = ExportTraceServiceRequest.FromString(request_from_json("traces", line))
        assert request.resource_spans[0].scope_spans[0].spans[0].attributes[0].value.bytes_value == b"\xfb\xff"


@pytest.mark.parametrize(
    "line", [b"", b"1", b'{"resourceSpans": 1}', span(traceId="x"), span(startTimeUnixNano=0.5), span(name=1)]
)
def test_what_is_no_otlp_is_an_error(line: bytes):
    """And never half a request."""
    with pytest.raises(ValueError, match="no OTLP JSON of traces"):
        request_from_json("traces", line)


def test_what_we_write_is_made_at_once(monkeypatch: pytest.MonkeyPatch):
    """The parser that takes four times as long is not asked."""
    monkeypatch.setattr(from_json, "ParseDict", None)
    point = {"timeUnixNano": "5", "asDouble": "NaN", "attributes": [{"key": "k", "value": {"intValue": "7"}}]}
    metrics = [{"name": "x", "unit": "s", "gauge": {"dataPoints": [point]}}]
    line = json.dumps({"resourceMetrics": [{"scopeMetrics": [{"metrics": metrics}]}]}).encode()
    request = ExportMetricsServiceRequest.FromString(request_from_json("metrics", line))
    assert request.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points[0].time_unix_nano == 5
