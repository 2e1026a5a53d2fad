"""What was logged, and events, as OpenTelemetry has them."""

import logging
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from recorder import SCRIPTS, STARTED_NS, Recorder, S, Script, StepBegan, give, make_run, play

from periflow_otel import ids, names
from periflow_otel.records import LogLine, RankRun, Record
from periflow_otel.translate.log_records import LogTranslator, severity
from periflow_otel.translate.spans import SpanTranslator
from periflow_otel.translate.telemetry import LogRecord

LINE = LogLine(
    STARTED_NS, STARTED_NS + 5, 3, 0, b"", "script.loop", logging.INFO, "INFO", "loss 0.12", "/src/train.py", 12,
    "main", 9, "loader",
)  # fmt: skip


def said(run: RankRun | None = None, **fields: Any) -> LogRecord:
    """Return the log record of a line."""
    translator = LogTranslator(run or make_run())
    translator.feed([msgspec.structs.replace(LINE, **fields)])
    (record,) = translator.take()
    return record


def test_a_line_becomes_a_log_record():
    """With the names of the semantic conventions, and the ids of its step."""
    run = make_run(rank=1)
    assert said(run) == LogRecord(
        scope="script.loop",
        time_unix_ns=STARTED_NS,
        observed_unix_ns=STARTED_NS + 5,
        severity=9,
        severity_text="INFO",
        body="loss 0.12",
        attributes={"periflow.step.number": 3},
        trace_id=ids.step_trace_id(run.seed, 1, 3),
        span_id=ids.step_span_id(run.seed, 1, 3, 1),
        flags=1,
        source=(
            ("periflow.rank", 1), ("code.file.path", "/src/train.py"), ("code.function.name", "main"),
            ("code.line.number", 12), ("thread.id", 9), ("thread.name", "loader"),
        ),
    )  # fmt: skip


def test_a_line_has_the_ids_of_where_it_was_said():
    """Of a phase in a step or outside, of the run, of the launcher's trace, or of a span of the script's own."""
    run = make_run()
    launched = make_run(traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
    step, attempt = ids.step_trace_id("run", 1, 3), ids.run_trace_id("run", 1)
    places = [
        (said(run, phase=2), step, ids.phase_span_id("run", 1, 0, 2)),
        (said(run, step=None, phase=2), attempt, ids.phase_span_id("run", 1, 0, 2)),
        (said(run, step=None), attempt, ids.run_span_id("run", 1, 0)),
        (said(launched, step=None), int("a" * 32, 16), ids.run_span_id("run", 1, 0)),
        (said(run, span=bytes(15) + b"\1" + bytes(7) + b"\2" + b"\1"), 1, 2),
    ]
    assert [(record.trace_id, record.span_id) for record, _, _ in places] == [place[1:] for place in places]
    assert names.STEP not in places[2][0].attributes


def test_flags_say_whether_the_step_is_sampled():
    """A back end looks for no span that was not sent; a span of the script's own says it itself."""
    assert [said(make_run(sampling_ratio=ratio)).flags for ratio in (1.0, 0.0)] == [1, 0]
    assert [said(make_run(sampling_ratio=ratio), step=None).flags for ratio in (0.0, ids.SAMPLE_NOTHING)] == [1, 0]
    assert said(span=b"\1" * 24 + b"\0").flags == 0


def test_an_exception_is_told_by_its_conventional_names():
    """And a stack without one by another."""
    attributes = said(error="ValueError", error_message="bad", stack="Traceback").attributes
    assert {key: attributes[key] for key in attributes if key.startswith("exception.")} == {
        "exception.type": "ValueError", "exception.message": "bad", "exception.stacktrace": "Traceback"
    }  # fmt: skip
    assert said(stack="Stack").attributes["code.stacktrace"] == "Stack"


def test_no_url_shows_a_password():
    """Neither in a message nor in the text of an exception."""
    record = said(
        message="get https://me:pw@host/x", error="E", error_message="s3://me:pw@b", stack="to http://me:pw@c"
    )
    assert record.body == "get https://***@host/x"
    assert record.attributes["exception.message"] == "s3://***@b"
    assert record.attributes["exception.stacktrace"] == "to http://***@c"


def test_extra_does_not_hide_what_we_say():
    """A key of the script's that is one of ours gives way."""
    record = said(extra={"lr": 0.1, "periflow.rank": 7}, dropped=2)
    assert record.attributes == {"lr": 0.1, names.STEP: 3}
    assert record.dropped_attributes == 3


@pytest.mark.parametrize(
    ("level", "number"),
    [(0, 0), (5, 1), (10, 5), (20, 9), (25, 12), (30, 13), (31, 14), (39, 16), (40, 17), (50, 21), (59, 24), (99, 24)],
)
def test_levels_have_the_numbers_of_opentelemetry(level: int, number: int):
    """Those between two levels lie between their numbers."""
    assert severity(level) == number


def records_of(script: Script) -> list[Record | StepBegan]:
    """Return what a script records up to its end."""
    recorder = Recorder()
    play(script, recorder)
    recorder.finish("ValueError")
    return recorder.inputs


@settings(max_examples=30)
@given(SCRIPTS)
def test_events_of_spans_become_the_equal_log_records(script: Script):
    """Each once, with name, time, attributes and ids; and a restart on the way changes nothing."""
    run, inputs = make_run(initial_step=0), records_of(script)
    spans = SpanTranslator(run)
    give(spans, inputs)
    wanted = [
        (span.trace_id, span.span_id, event.name, event.time_unix_ns, event.attributes)
        for span in spans.take()
        for event in span.events
    ]
    translator, records = LogTranslator(run, has_events=True), list[LogRecord]()
    for each in inputs:
        give(translator, [each])
        records += translator.take()
        translator = LogTranslator(run, translator.encode_state(), has_events=True)
    found = [(each.trace_id, each.span_id, each.event_name, each.time_unix_ns, each.attributes) for each in records]
    assert found == wanted
    assert {each.severity for each in records if each.event_name == names.EXCEPTION} <= {17}


def test_without_events_spans_lose_nothing_else():
    """They are the same but for that."""
    recorder = Recorder()
    with recorder.step("ValueError"):
        recorder.work(S)
    recorder.checkpoint()
    recorder.finish()
    spans = []
    for has_events in (True, False):
        translator = SpanTranslator(make_run(), has_events=has_events)
        give(translator, recorder.inputs)
        spans.append(translator.take())
    assert any(span.events for span in spans[0])
    assert spans[1] == [msgspec.structs.replace(span, events=()) for span in spans[0]]
