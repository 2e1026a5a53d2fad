"""What was set aside stands in a file that is private and bounded, is read back once, and can be sent again."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from faulty_receiver import FaultyGrpcReceiver, FaultyReceiver, refuse, status
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import read_logs, read_points, read_spans
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

from periflow_otel.agent.dead_letters import DeadLetters, all_dead_letters, count_dead_letters
from periflow_otel.agent.resend import Resent, folders_with_letters, resend
from periflow_otel.config.export import ExportSettings
from periflow_otel.journal.folders import node_folder
from periflow_otel.otlp.from_json import request_from_json
from periflow_otel.otlp.json import logs_json, metrics_json, traces_json
from periflow_otel.records import Metric

RUN = make_run()


def spans(*names: str) -> list[Any]:
    """Return spans of these names, with their rank."""
    return [(RUN, make_span(name=name)) for name in names]


def set_aside(folder: Path, *names: str, consumer: str = "otlp.traces") -> DeadLetters:
    """Set spans aside."""
    letters = DeadLetters(folder, consumer)
    assert all(letters.add(item, "refused", "HTTP 400") for item in spans(*names))
    return letters


def test_what_is_set_aside_is_read_back(tmp_path: Path):
    """As OTLP JSON, in order, with the reason, in a file for its owner alone."""
    letters = set_aside(tmp_path, "a", "b")
    assert [letter.reason for letter in letters.read()] == ["refused", "refused"]
    (path,) = tmp_path.iterdir()
    assert (path.name, stat.S_IMODE(path.stat().st_mode)) == ("set-aside.otlp.traces.jsonl", 0o600)
    first = json.loads(path.read_text().splitlines()[0])
    assert first["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["name"] == "a"
    assert first["setAside"] == {"reason": "refused", "message": "HTTP 400"}


def test_what_was_set_aside_twice_counts_once(tmp_path: Path):
    """An agent that died before its cursor moved sets the same aside again."""
    set_aside(tmp_path, "a", "b")
    set_aside(tmp_path, "a", "c")
    set_aside(tmp_path, "a", consumer="sdk.acme.traces")
    assert count_dead_letters(tmp_path) == {("otlp.traces", "refused"): 3, ("sdk.acme.traces", "refused"): 1}


def test_half_a_line_is_no_item(tmp_path: Path):
    """It is cut before the next one is written."""
    letters = set_aside(tmp_path, "a", "b")
    (path,) = tmp_path.iterdir()
    os.truncate(path, path.stat().st_size - 10)
    assert len(letters.read()) == 1
    set_aside(tmp_path, "c")
    assert len(letters.read()) == 2


def test_a_file_has_a_bound(tmp_path: Path):
    """What would go beyond it is not kept, and that is said."""
    letters = DeadLetters(tmp_path, "otlp.traces", max_file_bytes=2000)
    kept = [letters.add(item, "refused", "") for item in spans(*map(str, range(100)))]
    assert kept == sorted(kept, reverse=True)
    assert kept.count(True) == len(letters.read()) > 0
    assert next(tmp_path.iterdir()).stat().st_size <= 2000


def test_what_has_no_otlp_cannot_be_set_aside(tmp_path: Path):
    """Such as a line of the metric log, or a folder that has gone."""
    assert not DeadLetters(tmp_path, "metric_log").add((RUN, Metric(1, 1, {})), "refused", "")
    assert not DeadLetters(tmp_path / "gone", "otlp.traces").add(spans("a")[0], "refused", "")


@settings(deadline=None)
@given(SPAN_ITEMS)
def test_spans_come_back_from_json(items: list[Any]):
    """As what protobuf makes of them."""
    found = request_from_json("traces", traces_json(items))
    expected = traces_message(items)
    assert sorted(map(repr, read_spans(type(expected).FromString(found)))) == sorted(map(repr, read_spans(expected)))


@settings(deadline=None)
@given(POINT_ITEMS)
def test_points_come_back_from_json(items: list[Any]):
    """As what protobuf makes of them."""
    found = request_from_json("metrics", metrics_json(items))
    expected = metrics_message(items)
    assert sorted(map(repr, read_points(type(expected).FromString(found)))) == sorted(map(repr, read_points(expected)))


@settings(deadline=None)
@given(LOG_ITEMS)
def test_log_records_come_back_from_json(items: list[Any]):
    """As what protobuf makes of them."""
    found = request_from_json("logs", logs_json(items))
    expected = logs_message(items)
    assert list(map(repr, read_logs(type(expected).FromString(found)))) == list(map(repr, read_logs(expected)))


@given(
    st.binary(max_size=50).map(b"\xff".__add__) | st.sampled_from([b"null", b'{"resourceSpans": 3}', b'{"traceId": 5}'])
)
def test_what_is_no_otlp_json_is_told(data: bytes):
    """Whatever it is."""
    with pytest.raises(ValueError, match="no OTLP JSON of traces"):
        request_from_json("traces", data)


def settings_for(endpoint: str, protocol: str) -> ExportSettings:
    """Return the settings that name a receiver."""
    return ExportSettings.from_environ(
        {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "PERIFLOW_ENABLED": "1"}
    )


@pytest.mark.parametrize("protocol", ["http/protobuf", "http/json", "grpc"])
def test_what_is_set_aside_is_sent_again(tmp_path: Path, protocol: str):
    """Spans, points and log records, in few requests, and then it is gone."""
    folder = node_folder(tmp_path / "run")
    folder.mkdir(parents=True)
    set_aside(folder, "a", "b")
    DeadLetters(folder, "otlp.metrics").add((RUN, make_point(1.0)), "failed", "HTTP 500")
    DeadLetters(folder, "otlp.logs").add((RUN, make_log_record(body="said")), "failed", "HTTP 500")
    assert list(folders_with_letters([tmp_path])) == [folder]
    with FaultyGrpcReceiver() if protocol == "grpc" else FaultyReceiver() as receiver:
        assert resend(folder, settings_for(receiver.endpoint, protocol)) == Resent(4, 0)
        assert [span.name for span in receiver.spans()] == ["a", "b"]
        assert len(receiver.points()) == 1
        assert [record.body for record in receiver.logs()] == ["said"]
        assert len(receiver.requests) == 3
    assert not any(all_dead_letters(folder))


def test_what_is_still_refused_stays(tmp_path: Path):
    """And is what it was."""
    letters = set_aside(tmp_path, "a", "bad", "c")
    with FaultyReceiver(refuse("bad")) as receiver:
        assert resend(tmp_path, settings_for(receiver.endpoint, "http/protobuf"))[:2] == (2, 1)
        assert [span.name for span in receiver.spans()] == ["a", "c"]
    assert [b'"bad"' in letter.data for letter in letters.read()] == [True]


def test_a_receiver_in_trouble_gets_them_another_time(tmp_path: Path):
    """Nothing is lost, and the reason is told."""
    letters = set_aside(tmp_path, "a", "b")
    with FaultyReceiver(status(503, message="busy")) as receiver:
        resent = resend(tmp_path, settings_for(receiver.endpoint, "http/protobuf"))
    assert resent[:2] == (0, 2)
    assert "busy" in resent.message
    assert len(letters.read()) == 2


def test_without_a_receiver_all_stays(tmp_path: Path):
    """Also what was meant for an exporter of another package."""
    set_aside(tmp_path, "a", consumer="sdk.acme.traces")
    resent = resend(tmp_path, settings_for("http://127.0.0.1:1", "http/protobuf"))
    assert resent == Resent(0, 1, "no OTLP receiver is set for sdk.acme.traces")
