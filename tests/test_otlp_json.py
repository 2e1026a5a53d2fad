"""OTLP JSON, held against the messages of the same telemetry and protobuf's own parser."""

import base64
import json
import math
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given
from recorder import make_run
from telemetry import (
    LOG_ITEMS,
    POINT_ITEMS,
    SPAN_ITEMS,
    logs_message,
    make_log_record,
    make_point,
    make_span,
    metrics_message,
    traces_message,
)

from periflow_otel.otlp.json import logs_json, metrics_json, traces_json
from periflow_otel.records import RankRun
from periflow_otel.translate.telemetry import LogRecord, Point, Span


@given(SPAN_ITEMS)
def test_json_of_spans_reads_as_their_message(items: list[tuple[RankRun, Span]]):
    """Protobuf's own parser makes the very message of a line, once the ids are base64 as it wants them."""
    assert_reads_as(traces_json(items), traces_message(items))


@given(POINT_ITEMS)
def test_json_of_points_reads_as_their_message(items: list[tuple[RankRun, Point]]):
    """Protobuf's own parser makes the very message of a line, once the ids are base64 as it wants them."""
    assert_reads_as(metrics_json(items), metrics_message(items))


@given(LOG_ITEMS)
def test_json_of_log_records_reads_as_their_message(items: list[tuple[RankRun, LogRecord]]):
    """Protobuf's own parser makes the very message of a line, once the ids are base64 as it wants them."""
    assert_reads_as(logs_json(items), logs_message(items))


def assert_reads_as(line: bytes, request: Message) -> None:
    """Fail unless JSON is one line, strict, and holds the request."""
    assert b"\n" not in line
    read = json_format.ParseDict(with_base64_ids(json.loads(line, parse_constant=refuse)), type(request)())
    assert json_format.MessageToDict(read) == json_format.MessageToDict(request)


def refuse(constant: str) -> None:
    """Refuse NaN and infinities that are no words."""
    raise AssertionError(constant)


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
    line = json.loads(traces_json([(make_run(), span)]))
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
    record = make_log_record(event_name="periflow.checkpoint.upload", body=None, trace_id=0xAB, span_id=0xCD)
    scope_logs = json.loads(logs_json([(make_run(), record)]))["resourceLogs"][0]["scopeLogs"][0]
    assert scope_logs["scope"] == {"name": "script"}
    assert scope_logs["logRecords"] == [
        {
            "timeUnixNano": "10",
            "observedTimeUnixNano": "11",
            "severityNumber": 9,
            "severityText": "INFO",
            "attributes": [],
            "traceId": "000000000000000000000000000000ab",
            "spanId": "00000000000000cd",
            "flags": 1,
            "eventName": "periflow.checkpoint.upload",
        }
    ]
    points = [(make_run(), make_point(value)) for value in (math.nan, math.inf, -math.inf, 1.5, 1 << 62)]
    metric = json.loads(metrics_json(points))["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]
    values = [point.get("asDouble", point.get("asInt")) for point in metric["gauge"]["dataPoints"]]
    assert values == ["NaN", "Infinity", "-Infinity", 1.5, str(1 << 62)]


def test_ranks_of_a_node_differ_early_in_a_line():
    """What tells them apart comes before the resource: the Collector knows a file by its beginning."""
    resource = tuple((f"host.attribute.{number}", "x" * 60) for number in range(20))
    runs = [make_run(rank=rank, resource=resource) for rank in range(2)]
    lines = [traces_json([(run, make_span(span_id=1 + run.rank))]) for run in runs]
    assert lines[0][:1000] != lines[1][:1000]
    assert lines[0].index(b'"resource"') == lines[1].index(b'"resource"') > lines[0].index(b'"spans"')
