"""A script is tested with what it records, and leaves nothing behind."""

import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import periflow_otel as pf
from periflow_otel import names, testing
from periflow_otel.journal.reader import JournalReader, Position
from periflow_otel.records import StepEnded

CLOUD = {
    "PERIFLOW_ENABLED": "1",
    "WORLD_SIZE": "1",
    "NODE_RANK": "0",
    "NUM_NODES": "1",
    "PROCESSED_ITERS": "10",
    "CKPT_DIR": "/checkpoints",
}


def train(losses: Iterable[float], total_steps: int = 3) -> None:
    """Train as in production: a step for every loss, and a checkpoint after the last one, or when asked."""
    pf.init(total_train_steps=total_steps)
    for number, loss in enumerate(losses, 1):
        with pf.train_step():
            pass
        pf.metric({"loss": loss})
        if number == total_steps or pf.is_emergency_save():
            pf.upload_checkpoint()


def break_off(error: BaseException) -> None:
    """Train as a script does that raises in the middle of a step."""
    pf.init()
    pf.start_step()
    raise error


def spans_named(captured: testing.Captured, name: str) -> list:
    """Return the captured spans of one name."""
    return [span for span in captured.spans if span.name == name]


def children() -> str:
    """Return the process ids that this thread has started and not waited for."""
    return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text("ascii")


# What is captured


def test_a_training_loop_is_captured():
    """Steps, metrics and checkpoints are there after the block."""
    with testing.capture() as captured:
        train([0.9, 0.7, 0.5])
    assert [step.number for step in captured.steps] == [1, 2, 3]
    assert captured.metrics("loss") == [0.9, 0.7, 0.5]
    assert captured.checkpoints == [3]


def test_it_is_captured_as_an_exporter_would_see_it():
    """Spans, points and events come from the translation that the agent does."""
    with testing.capture() as captured:
        train([0.9, 0.7, 0.5])
    assert [span.name for span in captured.spans] == [names.RUN_START_SPAN, *[names.STEP_SPAN] * 3, names.RUN_SPAN]
    assert [point.value for point in captured.points if point.instrument.name == "periflow.metric.loss"] == [
        0.9, 0.7, 0.5,
    ]  # fmt: skip
    assert [point.value for point in captured.points if point.instrument is names.STEP_COMPLETED] == [3]
    assert [event.attributes[names.STEP] for event in captured.events] == [3]


def test_it_can_be_looked_at_inside_the_block():
    """What is captured grows as the script goes on, the step that has just ended included."""
    with testing.capture() as captured:
        assert captured.runs == captured.steps == captured.spans == captured.points == []
        pf.init()
        for number in (1, 2):
            with pf.train_step():
                assert len(captured.steps) == number - 1
            assert [step.number for step in captured.steps] == [*range(1, number + 1)]
            assert len(spans_named(captured, names.STEP_SPAN)) == number


def test_the_step_that_is_going_on_shows_in_its_instrument():
    """An open step has no span yet, but the agent knows of it."""
    with testing.capture() as captured:
        pf.init(initial_step=4)
        pf.start_step()
        assert [point.value for point in captured.points if point.instrument is names.STEP_CURRENT] == [5]
        assert not spans_named(captured, names.STEP_SPAN)


def test_a_look_changes_nothing():
    """A checkpoint that follows a look still belongs to the span of its step."""
    with testing.capture() as captured:
        pf.init()
        with pf.train_step():
            pass
        assert not captured.events
        pf.upload_checkpoint()
        [step] = spans_named(captured, names.STEP_SPAN)
        assert list(step.events) == captured.events != []


def test_a_step_has_what_was_recorded_in_it_and_after_it():
    """Metrics belong to the step that started last, and the last value of a key counts."""
    with testing.capture() as captured:
        pf.init()
        pf.metric({"early": 0})
        with pf.train_step():
            pf.metric({"loss": 2.0, "note": "warm-up"})
        pf.metric({"loss": 1.0})
        with pf.train_step():
            pass
    assert [step.metrics for step in captured.steps] == [{"loss": 1.0, "note": "warm-up"}, {}]
    assert captured.metrics("loss") == [2.0, 1.0]
    assert captured.metrics("early") == [0]
    assert captured.metrics("unheard of") == []


def test_values_that_are_no_finite_numbers_are_captured():
    """NaN is a value; its step and a counter tell of it."""
    with testing.capture() as captured:
        train([math.nan, math.inf, 0.5])
    assert math.isnan(captured.metrics("loss")[0])
    assert captured.metrics("loss")[1:] == [math.inf, 0.5]
    marks = [names.NONFINITE in span.attributes for span in spans_named(captured, names.STEP_SPAN)]
    assert marks == [True, True, False]
    assert [point.value for point in captured.points if point.instrument is names.METRIC_NONFINITE] == [2]


def test_a_phase_is_captured_below_its_step():
    """A phase in a step is the child of the step's span; one outside belongs to the run."""
    with testing.capture() as captured:
        pf.init()
        with pf.train_step(), pf.span("forward", layer=3):
            pass
        with pf.span("evaluation"):
            pass
    [forward], [step] = spans_named(captured, "forward"), spans_named(captured, names.STEP_SPAN)
    [evaluation], [run] = spans_named(captured, "evaluation"), spans_named(captured, names.RUN_SPAN)
    assert (forward.parent_span_id, forward.attributes["layer"]) == (step.span_id, 3)
    assert evaluation.parent_span_id == run.span_id


def test_steps_do_not_depend_on_sampling(monkeypatch: pytest.MonkeyPatch):
    """A step without a span is a step all the same."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with testing.capture() as captured:
        train([0.9, 0.7, 0.5])
    assert len(captured.steps) == 3
    assert not spans_named(captured, names.STEP_SPAN)
    assert len(captured.events) == 1  # the checkpoint is told all the same


def test_metrics_from_many_threads_are_captured():
    """Every value is there once."""
    with testing.capture() as captured:
        pf.init()
        threads = [
            threading.Thread(target=lambda start=start: [pf.metric({"n": start + i}) for i in range(200)])
            for start in range(0, 1600, 200)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(captured.metrics("n")) == list(range(1600))


# Which runs are captured


def test_cloud_mode_is_captured(monkeypatch: pytest.MonkeyPatch):
    """The variables that PeriFlow sets may be set inside the block."""
    with testing.capture() as captured:
        for name, value in CLOUD.items():
            monkeypatch.setenv(name, value)
        train([0.9, 0.7], total_steps=12)
        pf.upload_checkpoint()
    assert [(run.mode, run.initial_step, run.total_steps) for run in captured.runs] == [("cloud", 10, 12)]
    assert [step.number for step in captured.steps] == [11, 12]
    [event] = captured.events
    assert event.attributes[names.STEP] == 12
    assert names.MODE not in event.attributes


def test_telemetry_that_is_off_for_tests_is_captured(monkeypatch: pytest.MonkeyPatch):
    """A test environment often disables OpenTelemetry; here it is what is tested."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with testing.capture() as captured:
        train([0.9, 0.7, 0.5])
    assert len(captured.steps) == 3


def test_runs_are_captured_in_the_order_in_which_they_began():
    """Each ``init`` is a run, or another attempt of one, even if no time passes between them."""
    with testing.capture(clock=testing.FakeClock()) as captured:
        for number, run_id in enumerate("bcab"):
            pf.init(run_id=run_id, initial_step=10 * number)
            with pf.train_step():
                pass
    assert [(run.run_id, run.attempt) for run in captured.runs] == [("b", 1), ("c", 1), ("a", 1), ("b", 2)]
    assert [step.number for step in captured.steps] == [1, 11, 21, 31]
    assert len(spans_named(captured, names.RUN_SPAN)) == 4


def test_a_run_object_is_captured_with_those_of_other_ranks():
    """``TrainingRun`` records here too, and need not be shut down for that."""
    with testing.capture() as captured:
        ranks = [pf.TrainingRun(run_id="r", environ={**os.environ, "RANK": rank, "WORLD_SIZE": "2"}) for rank in "01"]
        for run in reversed(ranks):
            with run.train_step():
                pass
    assert [(step.rank, step.number) for step in captured.steps] == [(0, 1), (1, 1)]
    first, second = spans_named(captured, names.STEP_SPAN)
    assert first.trace_id == second.trace_id
    for run in ranks:
        run.shutdown()


def run_child(code: str) -> int:
    """Run a rank in a process of its own; return how it ended."""
    return subprocess.run([sys.executable, "-c", f"import os, periflow_otel as pf\n{code}"], check=False).returncode


def test_a_rank_in_another_process_is_captured():
    """A process that is started inside the block records into the same place."""
    with testing.capture() as captured:
        assert run_child("pf.init()\nwith pf.train_step(): pass") == 0
    assert [step.number for step in captured.steps] == [1]
    assert [span.attributes[names.OUTCOME] for span in spans_named(captured, names.RUN_SPAN)] == ["finished"]


def test_a_rank_that_was_killed_is_captured():
    """Its open step and its run end as they do in production."""
    with testing.capture() as captured:
        assert run_child("pf.init()\npf.start_step()\npf.metric({'loss': 1.5})\nos.kill(os.getpid(), 9)") == -9
    assert captured.metrics("loss") == [1.5]
    [step], [run] = spans_named(captured, names.STEP_SPAN), spans_named(captured, names.RUN_SPAN)
    assert (step.error, run.attributes[names.OUTCOME]) == ("killed", "killed")


# Errors


def test_an_error_of_the_script_goes_on_and_what_it_recorded_stays():
    """The run has failed, as it would have at exit."""

    def losses() -> Iterator[float]:
        yield 0.9
        raise FloatingPointError

    with pytest.raises(FloatingPointError), testing.capture() as captured:
        train(losses())
    assert captured.metrics("loss") == [0.9]
    [run] = spans_named(captured, names.RUN_SPAN)
    assert (run.attributes[names.OUTCOME], run.error) == ("failed", "FloatingPointError")


def test_an_error_that_is_caught_inside_the_block_ends_its_step_only():
    """The test may catch what the script raises, and go on."""
    with testing.capture() as captured:
        pf.init()
        with pytest.raises(OverflowError), pf.train_step():
            raise OverflowError
        with pf.train_step():
            pass
    assert [step.error for step in captured.steps] == ["OverflowError", None]
    assert captured.events == []
    assert [span.attributes[names.OUTCOME] for span in spans_named(captured, names.RUN_SPAN)] == ["finished"]


def test_a_script_that_exits_has_finished():
    """``sys.exit`` is no failure, as in production."""
    with pytest.raises(SystemExit), testing.capture() as captured:
        break_off(SystemExit(1))
    assert [span.attributes[names.OUTCOME] for span in spans_named(captured, names.RUN_SPAN)] == ["finished"]


def test_a_step_left_open_does_not_reach_out_of_the_block():
    """After an error between ``start_step`` and ``end_step``, spans of the caller have no parent here."""
    from opentelemetry.trace import get_current_span  # noqa: PLC0415  # what the script itself would ask

    outside = get_current_span()
    with pytest.raises(ZeroDivisionError), testing.capture() as captured:
        break_off(ZeroDivisionError())
    assert get_current_span() is outside
    assert [step.error for step in captured.steps] == ["ZeroDivisionError"]


def test_nested_captures_are_refused():
    """There is one environment and one default run; and the outer capture goes on unharmed."""
    with testing.capture() as captured:
        with pytest.raises(pf.PeriFlowError, match="active already"), testing.capture():
            pass
        train([0.9, 0.7, 0.5])
    assert len(captured.steps) == 3


def test_captures_may_follow_each_other(monkeypatch: pytest.MonkeyPatch):
    """Each sees its own, also after one that failed."""
    monkeypatch.setenv("PERIFLOW_RUN_ID", "same")
    with pytest.raises(ZeroDivisionError), testing.capture() as first:
        break_off(ZeroDivisionError())
    with testing.capture() as second:
        pf.init()
    assert [run.attempt for run in (*first.runs, *second.runs)] == [1, 1]


# What is left behind


def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """No file in the working folder, the state folder or the temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with testing.capture() as captured:
        assert len(list(tmp_path.iterdir())) == 1
        train([0.9, 0.7, 0.5])
    assert list(tmp_path.iterdir()) == []
    assert len(captured.steps) == 3


def test_no_agent_is_started():
    """Starting one takes no time to come: the process would be there when ``init`` returns."""
    before = children()
    with testing.capture():
        train([0.9, 0.7, 0.5])
        assert children() == before


def test_the_environment_is_restored(monkeypatch: pytest.MonkeyPatch):
    """What was set has its value again, and what was not is unset, also when the script fails."""
    monkeypatch.setenv("PERIFLOW_AGENT", "thread")
    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError), testing.capture():
        break_off(ZeroDivisionError())
    assert dict(os.environ) == before


def test_a_run_that_was_active_before_is_active_after(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """It keeps its open step, and gets nothing of what is captured."""
    monkeypatch.setenv("PERIFLOW_AGENT", "off")
    pf.init(run_id="outer")
    try:
        pf.start_step()
        with testing.capture() as captured:
            train([0.9, 0.7, 0.5])
        pf.end_step()
    finally:
        pf.shutdown()
    assert [run.run_id == "outer" for run in captured.runs] == [False]
    [journal] = tmp_path.glob("outer/*/a*-r*")
    records = JournalReader(journal).read(Position(), 10).records
    assert [record.step for record in records if isinstance(record, StepEnded)] == [1]


def test_a_run_from_before_is_not_the_default_run_inside(monkeypatch: pytest.MonkeyPatch):
    """A script that forgets ``init`` is found out even where another run is active."""
    monkeypatch.setenv("PERIFLOW_AGENT", "off")
    pf.init()
    try:
        with testing.capture(), pytest.raises(pf.NotInitializedError):
            pf.metric({"loss": 0.5})
    finally:
        pf.shutdown()


def test_a_run_from_inside_is_not_the_default_run_after():
    """It is over, whether the script ended it or not."""
    latest = pf._latest
    with testing.capture():
        pf.init()
    with pytest.raises(pf.NotInitializedError):
        pf.metric({"loss": 0.5})
    assert pf._latest is latest


def test_the_script_may_end_its_run_itself():
    """There is one run span then too."""
    with testing.capture() as captured:
        train([0.9, 0.7, 0.5])
        pf.shutdown()
    assert len(spans_named(captured, names.RUN_SPAN)) == 1


def test_a_capture_takes_little_time():
    """Entering, a run and leaving take less than 50 ms together, of a processor that may be shared."""
    times_s = []
    for _ in range(5):
        began_s = time.process_time()
        with testing.capture():
            pf.init()
        times_s.append(time.process_time() - began_s)
    assert min(times_s) < 0.05


# The clock


@given(st.lists(st.tuples(st.integers(0, 10**13), st.integers(0, 10**13)), min_size=1, max_size=20))
def test_durations_are_what_the_clock_was_advanced_by(times_ns: list[tuple[int, int]]):
    """To the nanosecond, over hours, however many steps there are."""
    clock = testing.FakeClock()
    with testing.capture(clock=clock) as captured:
        pf.init()
        for step_ns, gap_ns in times_ns:
            with pf.train_step():
                clock.advance(step_ns / 1e9)
            clock.advance(gap_ns / 1e9)
    assert [step.duration_s for step in captured.steps] == [step_ns / 1e9 for step_ns, _ in times_ns]
    gaps_s = [span.attributes[names.GAP] for span in spans_named(captured, names.STEP_SPAN)[1:]]
    assert gaps_s == [gap_ns / 1e9 for _, gap_ns in times_ns[:-1]]


def test_everything_is_recorded_at_the_time_that_the_clock_tells():
    """Spans, points and events are as old as the clock says."""
    clock = testing.FakeClock(start_unix_s=1_000_000_000.5)
    with testing.capture(clock=clock) as captured:
        pf.init()
        with pf.train_step():
            clock.advance(0.25)
        pf.metric({"loss": 0.5})
        clock.advance(1)
        pf.upload_checkpoint()
        clock.advance(2)
    [step], [run] = spans_named(captured, names.STEP_SPAN), spans_named(captured, names.RUN_SPAN)
    assert (step.start_unix_ns, step.end_unix_ns) == (1_000_000_000_500_000_000, 1_000_000_000_750_000_000)
    assert (run.start_unix_ns, run.end_unix_ns) == (1_000_000_000_500_000_000, 1_000_000_003_750_000_000)
    assert [event.time_unix_ns for event in captured.events] == [1_000_000_001_750_000_000]
    assert [point.time_unix_ns for point in captured.points if point.instrument.name == "periflow.metric.loss"] == [
        1_000_000_000_750_000_000
    ]


def test_time_stands_still_by_itself():
    """Without ``advance`` a step takes no time at all."""
    with testing.capture(clock=testing.FakeClock()) as captured:
        train([0.9, 0.7, 0.5])
    assert [step.duration_s for step in captured.steps] == [0, 0, 0]


def test_a_run_that_begins_in_a_thread_reads_the_clock():
    """The clock holds for the whole process."""
    clock = testing.FakeClock()
    with testing.capture(clock=clock) as captured:
        thread = threading.Thread(target=train, args=([0.9, 0.7, 0.5],))
        thread.start()
        thread.join()
    assert [run.started_unix_ns for run in captured.runs] == [clock.time_ns()]


def test_the_clock_is_the_system_again_after_the_block(monkeypatch: pytest.MonkeyPatch):
    """A clock is replaced for one capture only."""
    monkeypatch.setenv("PERIFLOW_AGENT", "off")
    future = testing.FakeClock(start_unix_s=4_000_000_000)
    with testing.capture(clock=future) as captured:
        pf.init()
    after = pf.TrainingRun()
    after.shutdown()
    assert captured.runs[0].started_unix_ns == future.time_ns() > after.info.started_unix_ns


@given(st.lists(st.integers(0, 10**13), max_size=50))
def test_clock_arithmetic_is_exact(advances_ns: list[int]):
    """Both clocks move by the sum, with no error that grows."""
    clock = testing.FakeClock(start_unix_s=1_700_000_000)
    for advance_ns in advances_ns:
        clock.advance(advance_ns / 1e9)
    assert clock.monotonic_ns() == sum(advances_ns)
    assert clock.time_ns() == 1_700_000_000 * 10**9 + sum(advances_ns)


def test_the_clock_does_not_go_back():
    """A negative advance is a mistake in the test, and changes nothing."""
    clock = testing.FakeClock()
    with pytest.raises(ValueError, match="back"):
        clock.advance(-0.1)
    assert clock.monotonic_ns() == 0


# Emergency saves


def test_an_emergency_save_can_be_asked_for_at_a_step():
    """The script answers at that step with a checkpoint of its own kind."""
    with testing.capture() as captured:

        def losses() -> Iterator[float]:
            captured.request_emergency_save(step=2)
            yield from (0.9, 0.7, 0.6, 0.5)

        train(losses(), total_steps=4)
    assert captured.checkpoints == [2, 4]
    assert [event.attributes[names.SAVE_TYPE] for event in captured.events] == ["EMERGENCY", "NORMAL"]


def test_an_emergency_save_can_be_asked_for_at_once():
    """Without a step, the next question is answered with yes; and one checkpoint is enough."""
    with testing.capture() as captured:
        pf.init()
        assert not pf.is_emergency_save()
        captured.request_emergency_save()
        assert pf.is_emergency_save()
        pf.upload_checkpoint()
        assert not pf.is_emergency_save()


def test_an_emergency_save_needs_a_run_to_ask():
    """Asked for before ``init`` or after the block, it would silently never come."""
    with testing.capture() as captured:
        with pytest.raises(pf.PeriFlowError, match="no run"):
            captured.request_emergency_save()
        pf.init()
    with pytest.raises(pf.PeriFlowError, match="no run"):
        captured.request_emergency_save()
