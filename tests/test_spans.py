"""From records to spans: what is on them, whose children they are, and when they leave."""

import math
from collections.abc import Sequence
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorder import MS, SCRIPTS, STARTED_NS, Input, Recorder, S, Script, give, make_run, play

from periflow_otel import ids
from periflow_otel.records import Config, Metric, RankLost, RankRun, RunFinished, StepEnded, decode, encode_metric
from periflow_otel.translate.spans import SpanTranslator
from periflow_otel.translate.telemetry import Event, Link, Span
from periflow_otel.translate.values import MAX_KEYS, MAX_TEXT_CHARS

RANK_1 = make_run(rank=1, local_rank=1, node_rank=0)
SAMPLED_OUT = make_run(sampling_ratio=0.0)
LAUNCHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def translate(inputs: Sequence[Input], run: RankRun | None = None) -> list[Span]:
    """Return the spans of records, but for the one that says that the run has begun."""
    translator = SpanTranslator(run or make_run())
    translator.take()
    give(translator, inputs)
    return translator.take()


def named(name: str, spans: Sequence[Span]) -> list[Span]:
    """Return the spans of a name."""
    return [span for span in spans if span.name == name]


def steps(spans: Sequence[Span]) -> list[Span]:
    """Return the spans of steps."""
    return named("periflow.step", spans)


def only_step(recorder: Recorder, run: RankRun | None = None) -> Span:
    """Finish, and return the span of the one step that there was."""
    recorder.finish()
    [span] = steps(translate(recorder.inputs, run))
    return span


def one_step(error: str | None = None) -> Recorder:
    """Return what a step of two seconds has recorded, which began one second after the run."""
    recorder = Recorder()
    recorder.work(S)
    with recorder.step(error):
        recorder.work(2 * S)
    return recorder


def test_the_run_spans_tell_the_run_from_others():
    """What is known at the start is on the first span, and all that was added on the last; also after a restart."""
    translator = SpanTranslator(make_run())
    translator.feed([Config({"lr": 0.1, "betas": [0.9, 0.99]})])
    [start] = translator.take()
    assert {"periflow.config.lr": 0.1, "periflow.config.betas": "[0.9, 0.99]"}.items() <= start.attributes.items()
    translator.feed([Config({"lr": 0.2})])
    translator = SpanTranslator(make_run(), translator.encode_state())
    translator.feed([RunFinished(STARTED_NS + S)])
    [run] = translator.take()
    assert {key: run.attributes[key] for key in run.attributes if "config" in key} == {"periflow.config.lr": 0.2}


def test_a_run_says_at_once_that_it_has_begun():
    """The first span is there before any record, and is a child of the run span, which comes last."""
    run = make_run(total_steps=9)
    translator = SpanTranslator(run)
    [began] = translator.take()
    give(translator, _finished(one_step()).inputs)
    ended = translator.take()[-1]
    assert (began.name, began.start_unix_ns, began.end_unix_ns) == ("periflow.run.start", STARTED_NS, STARTED_NS)
    assert (began.trace_id, began.parent_span_id) == (ended.trace_id, ended.span_id)
    assert began.attributes["periflow.run.total_steps"] == 9


def _finished(recorder: Recorder, error: str | None = None) -> Recorder:
    recorder.finish(error)
    return recorder


def test_a_step_is_held_until_the_next_begins():
    """Nothing leaves at its end, since a metric or a checkpoint may follow."""
    recorder = one_step()
    translator = SpanTranslator(make_run())
    translator.take()
    give(translator, recorder.inputs)
    assert translator.take() == []
    translator.step_began(2, recorder.now_ns)
    assert [span.attributes["periflow.step.number"] for span in translator.take()] == [1]


def test_the_step_that_is_going_on_lets_go_of_nothing():
    """To see again that a step began does not end it, and to see that it began does not either."""
    translator = SpanTranslator(make_run())
    translator.take()
    translator.step_began(1, STARTED_NS)
    give(translator, one_step().inputs)
    translator.step_began(1, STARTED_NS)
    assert translator.take() == []


def test_a_record_of_the_next_step_lets_go_too():
    """The agent may not have looked while the next step was open."""
    recorder = one_step()
    with recorder.step():
        recorder.metric({"loss": 1.0})
    inputs = [each for each in recorder.inputs if isinstance(each, StepEnded)]
    assert [span.attributes["periflow.step.number"] for span in steps(translate(inputs))] == [1]


def test_a_step_says_who_when_and_where():
    """Times are those of the record, and step and ranks are attributes."""
    span = only_step(one_step(), make_run(rank=3, local_rank=1, node_rank=1))
    assert (span.start_unix_ns, span.end_unix_ns) == (STARTED_NS + S, STARTED_NS + 3 * S)
    assert span.attributes == {
        "periflow.step.number": 1, "periflow.rank": 3, "periflow.local_rank": 1, "periflow.node_rank": 1,
    }  # fmt: skip
    assert (span.error, span.events) == (None, ())


def test_metrics_are_on_the_span_of_their_step():
    """Those within the step and those after it, the last value of a key."""
    recorder = Recorder()
    with recorder.step():
        recorder.metric({"loss": 2.0, "lr": 0.1})
    recorder.metric({"loss": 1.0, "epoch": 3, "best": True, "mode": "täst"})
    attributes = only_step(recorder).attributes
    found = {key: attributes[f"periflow.metric.{key}"] for key in ("loss", "lr", "epoch", "best", "mode")}
    assert found == {"loss": 1.0, "lr": 0.1, "epoch": 3, "best": True, "mode": "täst"}


def test_what_is_no_scalar_is_no_attribute():
    """Lists and None are in the metric log alone."""
    recorder = one_step()
    recorder.metric({"list": [1], "none": None, "loss": 1.0})
    assert [key for key in only_step(recorder).attributes if "metric" in key] == ["periflow.metric.loss"]


def test_scalars_in_mappings_are_attributes_under_keys_with_dots():
    """NaN among them marks the step; a key that has dots itself is one and the same."""
    recorder = one_step()
    recorder.metric({"train": {"loss": math.nan, "top": {"5": 0.9}, "list": [1]}, "train.top.5": 0.8})
    attributes = only_step(recorder).attributes
    assert {key: value for key, value in attributes.items() if "metric" in key or "keys" in key} == {
        "periflow.metric.train.loss": "NaN",
        "periflow.metric.train.top.5": 0.8,
        "periflow.step.nonfinite_keys": ["train.loss"],
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1 << 64, float(1 << 64)), (-(1 << 63), -(1 << 63)), (10**400, "Infinity"), ("a\ud800b", "a?b")],
    ids=["2^64", "-2^63", "beyond float", "lone surrogate"],
)
def test_values_fit_their_attribute(value: object, shown: object):
    """What neither OTLP nor the state can hold becomes what is nearest, before it is held."""
    recorder = one_step()
    record = decode(encode_metric(1, recorder.now_ns, {"x": value}))
    translator = SpanTranslator(make_run())
    give(translator, [*recorder.inputs, record])
    translator = SpanTranslator(make_run(), translator.encode_state())
    translator.step_began(2, 0)
    assert translator.take()[-1].attributes["periflow.metric.x"] == shown


def test_long_text_does_not_fill_the_state():
    """Text is cut when it comes in, not only when it leaves."""
    recorder = one_step()
    recorder.metric({"text": "x" * 10 * MAX_TEXT_CHARS})
    assert len(str(only_step(recorder).attributes["periflow.metric.text"])) < 2 * MAX_TEXT_CHARS


def test_attributes_that_are_left_out_are_counted():
    """As the standard wants it, so that nobody takes a step for whole."""
    recorder = one_step()
    recorder.metric({f"key {number}": number for number in range(MAX_KEYS + 7)})
    assert only_step(recorder).dropped_attributes == 7
    assert only_step(one_step()).dropped_attributes == 0


def test_a_step_with_endless_keys_has_a_thousand():
    """The span stays one that a receiver takes; the rest is counted, and known keys go on changing."""
    recorder = one_step()
    recorder.metric({f"key {number}": 0 for number in range(999)})
    recorder.metric({"loss": 1.0, "one too many": 2.0})
    recorder.metric({"loss": 3.0, "two too many": 2.0})
    recorder.finish()
    translator = SpanTranslator(make_run())
    give(translator, recorder.inputs)
    attributes = steps(translator.take())[0].attributes
    assert sum(key.startswith("periflow.metric.") for key in attributes) == 1000
    assert attributes["periflow.metric.loss"] == 3.0
    assert translator.dropped() == {"too_many_keys": 2}


def test_values_that_are_not_finite_mark_the_step():
    """Their keys stand in one attribute, each once, and the values where all values stand."""
    recorder = one_step()
    recorder.metric({"loss": math.nan, "norm": 1.0})
    recorder.metric({"loss": math.nan, "norm": -math.inf})
    attributes = only_step(recorder).attributes
    assert attributes["periflow.step.nonfinite_keys"] == ["loss", "norm"]
    assert attributes["periflow.metric.loss"] == "NaN"
    assert attributes["periflow.metric.norm"] == "-Infinity"


def test_a_metric_before_the_first_step_is_on_no_span():
    """It has a point, and the step after it is as if it had not been."""
    recorder = Recorder()
    recorder.metric({"parameters": 10})
    with recorder.step():
        recorder.work(S)
    assert "periflow.metric.parameters" not in only_step(recorder).attributes


def test_a_metric_of_a_step_that_has_left_is_on_no_span():
    """A thread may be late; the step that is open now does not get what is not its own."""
    late = Metric(1, STARTED_NS, {"late": 1.0})
    recorder = one_step()
    recorder.start_step()
    recorder.inputs.append(late)
    recorder.metric({"loss": 1.0})
    recorder.inputs.append(late)
    recorder.end_step()
    recorder.finish()
    found = steps(translate(recorder.inputs))
    assert [span.attributes["periflow.step.number"] for span in found] == [1, 2]
    assert not any("periflow.metric.late" in span.attributes for span in found)


def test_the_gap_before_a_step_is_on_its_span():
    """In seconds, but not before the first step: that is no gap."""
    recorder = one_step()
    recorder.work(500 * MS)
    with recorder.step():
        recorder.work(S)
    recorder.finish()
    first, second = steps(translate(recorder.inputs))
    assert "periflow.step.gap" not in first.attributes
    assert second.attributes["periflow.step.gap"] == 0.5


@pytest.mark.parametrize("set_by_s", [-10, 3600])
def test_a_clock_that_is_set_changes_no_gap(set_by_s: int):
    """It is measured by the clock that nobody sets."""
    recorder = one_step()
    recorder.work(2 * S)
    recorder.now_ns += set_by_s * S
    with recorder.step():
        recorder.work(S)
    recorder.finish()
    assert steps(translate(recorder.inputs))[1].attributes["periflow.step.gap"] == 2


def test_an_error_ends_a_step_as_opentelemetry_wants_it():
    """The status is ERROR, and an exception event has the type and nothing else."""
    span = only_step(one_step("ValueError"))
    assert span.error == "ValueError"
    assert span.events == (Event("exception", STARTED_NS + 3 * S, {"exception.type": "ValueError"}),)


def test_a_checkpoint_after_the_step_takes_it_along_at_once():
    """The upload waits for the event, so the step is not held for the next to begin."""
    recorder = one_step()
    recorder.work(S)
    recorder.checkpoint()
    [span] = translate(recorder.inputs)
    [event] = span.events
    assert (span.name, event.name, event.time_unix_ns) == (
        "periflow.step", "periflow.checkpoint.upload", STARTED_NS + 4 * S,
    )  # fmt: skip
    assert datetime.fromisoformat(str(event.attributes["periflow.checkpoint.trigger_time"])) == datetime.fromtimestamp(
        STARTED_NS // S + 4, timezone.utc
    )
    assert {key: value for key, value in event.attributes.items() if "time" not in key} == {
        "periflow.step.number": 1,
        "periflow.checkpoint.save_type": "NORMAL",
        "periflow.checkpoint.id": "run/1/1/0",
        "periflow.rank": 0,
        "periflow.local_rank": 0,
        "periflow.node_rank": 0,
    }


def test_a_step_leaves_once():
    """After a checkpoint nothing more comes of the step, whatever else is recorded of it."""
    recorder = one_step()
    recorder.checkpoint()
    recorder.metric({"loss": 1.0})
    recorder.finish()
    assert len(steps(translate(recorder.inputs))) == 1


def test_a_checkpoint_in_an_open_step_leaves_at_once_and_once():
    """A span of its own below the step carries the event, and the step's span does not repeat it."""
    recorder = Recorder()
    recorder.start_step()
    recorder.checkpoint()
    [carrier] = translate(recorder.inputs)
    recorder.work(S)
    recorder.end_step()
    step = only_step(recorder)
    assert [event.name for event in carrier.events] == ["periflow.checkpoint.upload"]
    assert (carrier.name, carrier.trace_id) == ("periflow.checkpoint", step.trace_id)
    assert (carrier.parent_span_id, step.events) == (step.span_id, ())


def test_what_is_told_of_another_step_leaves_at_once_below_that():
    """Values and a checkpoint, of a step that is over or yet to come; the span of the step in between has neither."""
    recorder = Recorder()
    for _ in range(3):
        with recorder.step():
            recorder.work(S)
    before = len(translate(recorder.inputs))
    recorder.metric({"late": math.nan}, step=1)
    recorder.metric({"early": 1}, step=5)
    recorder.checkpoint_of(2)
    late, early, checkpoint = translate(recorder.inputs)[before:]
    for told, name, step in ((late, "metrics", 1), (early, "metrics", 5), (checkpoint, "checkpoint", 2)):
        assert told.name == f"periflow.{name}"
        assert told.trace_id == ids.step_trace_id("run", 1, step)
        assert told.parent_span_id == ids.step_span_id("run", 1, step, 0)
        assert told.attributes["periflow.step.number"] == step
    assert late.span_id != early.span_id
    assert late.attributes["periflow.metric.late"] == "NaN"
    assert late.attributes["periflow.step.nonfinite_keys"] == ["late"]
    assert [each.attributes["periflow.step.number"] for each in checkpoint.events] == [2]
    recorder.finish()
    held = steps(translate(recorder.inputs))[-1]
    assert (held.events, "periflow.metric.late" in held.attributes) == ((), False)


def test_what_is_told_of_a_step_that_is_sampled_out_goes_with_it():
    """Counted, as it is."""
    recorder = one_step()
    recorder.metric({"late": 1.0}, step=0)
    recorder.finish()
    spans, dropped = sampled(recorder, make_run(sampling_ratio=0.0))
    assert named("periflow.metrics", spans) == []
    assert dropped == {"sampled_out": 2}


def test_the_last_checkpoint_is_that_of_the_latest_step():
    """Threads may finish in another order than they began."""
    recorder = Recorder()
    for _ in range(4):
        with recorder.step():
            recorder.work(S)
    recorder.checkpoint_of(3)
    recorder.checkpoint_of(2)
    recorder.finish()
    [run] = named("periflow.run", translate(recorder.inputs))
    assert run.attributes["periflow.run.last_checkpoint"] == 3


@pytest.mark.parametrize("initial_step", [0, 7])
def test_a_checkpoint_before_the_first_step_belongs_to_the_run(initial_step: int):
    """There is no step to be a child of."""
    recorder = Recorder(initial_step)
    recorder.checkpoint()
    recorder.finish()
    carrier, run = translate(recorder.inputs, make_run(initial_step=initial_step))
    assert (carrier.trace_id, carrier.parent_span_id) == (run.trace_id, run.span_id)
    assert run.attributes["periflow.run.last_checkpoint"] == initial_step


def test_an_emergency_save_says_how_long_it_took():
    """Save type and delay since the request, in seconds."""
    recorder = one_step()
    recorder.checkpoint(request_delay_ns=1500 * MS)
    [event] = only_step(recorder).events
    assert event.attributes["periflow.checkpoint.save_type"] == "EMERGENCY"
    assert event.attributes["periflow.checkpoint.request_delay"] == 1.5


def test_a_local_checkpoint_is_marked():
    """Nothing is uploaded in local mode, and the event says so."""
    recorder = one_step()
    recorder.checkpoint()
    [event] = only_step(recorder, make_run(mode="local")).events
    assert event.attributes["periflow.mode"] == "local"


def test_an_exception_and_a_checkpoint_are_both_on_the_step():
    """Neither event hides the other."""
    recorder = one_step("OSError")
    recorder.checkpoint()
    assert [event.name for event in only_step(recorder).events] == ["exception", "periflow.checkpoint.upload"]


def test_other_ranks_are_children_of_rank_0():
    """The parent is rank 0's span, which this node may never see; the trace is the same."""
    mine, zero = only_step(one_step(), RANK_1), only_step(one_step())
    assert (zero.parent_span_id, mine.parent_span_id) == (None, zero.span_id)
    assert mine.trace_id == zero.trace_id
    assert mine.span_id != zero.span_id


def test_a_step_is_linked_to_its_run():
    """From one step the whole run can be found."""
    recorder = _finished(one_step())
    step, run = translate(recorder.inputs)
    assert step.links == (Link(run.trace_id, run.span_id),)
    assert step.trace_id != run.trace_id


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(None, "finished"), ("KeyError", "failed"), ("some.where.UnfinishedTrainingError", "interrupted")],
)
def test_a_run_span_tells_the_outcome(error: str | None, outcome: str):
    """Steps, the last of them, the last checkpoint and the target are on it, and the exception that ended it."""
    recorder = Recorder(initial_step=4)
    for _ in range(3):
        with recorder.step():
            recorder.work(S)
    recorder.checkpoint()
    recorder.finish(error)
    span = translate(recorder.inputs, make_run(initial_step=4, total_steps=10))[-1]
    assert (span.name, span.start_unix_ns, span.end_unix_ns) == ("periflow.run", STARTED_NS, STARTED_NS + 3 * S)
    assert span.attributes == {
        "periflow.rank": 0, "periflow.local_rank": 0, "periflow.node_rank": 0, "periflow.run.total_steps": 10,
        "periflow.run.outcome": outcome, "periflow.run.steps": 3, "periflow.run.last_step": 7,
        "periflow.run.last_checkpoint": 7, **({"error.type": error} if error else {}),
    }  # fmt: skip
    assert span.error == error
    assert [event.attributes for event in span.events] == ([{"exception.type": error}] if error else [])


def test_a_parent_of_another_process_is_remote():
    """The launcher, and rank 0 for all others; what a rank has itself is not."""
    recorder = _finished(one_step())
    (zero_step, zero), (mine_step, mine) = (
        translate(recorder.inputs, make_run(rank=rank, traceparent=LAUNCHER)) for rank in (0, 1)
    )
    assert [each.is_parent_remote for each in (zero_step, zero, mine_step, mine)] == [False, True, True, True]
    assert not translate(recorder.inputs)[-1].is_parent_remote


def test_the_state_of_the_launchers_trace_goes_on():
    """On the spans of that trace, and on no others; without a launcher there is none."""
    recorder = Recorder()
    with recorder.phase("load"):
        recorder.checkpoint()
    with recorder.step(), recorder.phase("forward"):
        pass
    inputs = _finished(recorder).inputs
    found = translate(inputs, make_run(traceparent=LAUNCHER, tracestate="ot=th:8"))
    assert {span.name: span.trace_state for span in found} == {
        "load": "ot=th:8", "periflow.checkpoint": "ot=th:8", "periflow.run": "ot=th:8",
        "forward": "", "periflow.step": "",
    }  # fmt: skip
    assert not any(span.trace_state for span in translate(inputs, make_run(tracestate="ot=th:8")))


def test_where_nothing_is_sampled_only_the_run_and_checkpoints_are_told():
    """No step leaves, however remarkable it is; a checkpoint is not waited for in vain."""
    recorder = Recorder()
    with recorder.phase("load"):
        pass
    with recorder.step("ValueError"), recorder.phase("forward"):
        recorder.metric({"loss": math.nan})
    recorder.checkpoint()
    with recorder.step():
        recorder.checkpoint()
    found = translate(_finished(recorder).inputs, make_run(sampling_ratio=ids.SAMPLE_NOTHING))
    assert [span.name for span in found] == ["periflow.checkpoint", "periflow.checkpoint", "periflow.run"]


def test_the_runs_of_all_ranks_hang_below_that_of_rank_0():
    """And rank 0's run hangs below the launcher, if that says who it is."""
    zero = translate(_finished(Recorder()).inputs, make_run(traceparent=LAUNCHER))[-1]
    mine = translate(_finished(Recorder()).inputs, make_run(rank=1, traceparent=LAUNCHER))[-1]
    assert (zero.trace_id, zero.parent_span_id) == (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331)
    assert (mine.trace_id, mine.parent_span_id) == (zero.trace_id, zero.span_id)


@pytest.mark.parametrize("traceparent", [None, "", "nonsense", LAUNCHER.replace("b7ad6b7169203331", "0" * 16)])
def test_without_a_launcher_the_run_is_a_root(traceparent: str | None):
    """A context that names no span gives neither a parent nor a trace."""
    span = translate(_finished(Recorder()).inputs, make_run(traceparent=traceparent))[-1]
    assert (span.trace_id, span.parent_span_id) == (ids.run_trace_id("run", 1), None)


def test_a_killed_rank_leaves_its_open_step():
    """The step ends with ERROR when its process is found dead, and the run says killed. No exception was seen."""
    recorder = one_step()
    recorder.work(S)
    recorder.start_step()
    recorder.metric({"loss": 1.0})
    recorder.work(5 * S)
    recorder.be_killed()
    _, step, run = translate(recorder.inputs)
    assert (step.attributes["periflow.step.number"], step.error, step.events) == (2, "killed", ())
    assert (step.start_unix_ns, step.end_unix_ns) == (STARTED_NS + 4 * S, STARTED_NS + 9 * S)
    assert step.attributes["periflow.metric.loss"] == 1.0
    assert (run.attributes["periflow.run.outcome"], run.error) == ("killed", "killed")
    assert run.attributes["periflow.run.steps"] == run.attributes["periflow.run.last_step"] == 1


def test_a_rank_killed_in_a_silent_step_leaves_that_too():
    """The step needs no record: that it began is known from the journal's header."""
    step, _ = translate([RankLost(STARTED_NS + S, 5, STARTED_NS)], make_run(initial_step=4))
    assert (step.attributes["periflow.step.number"], step.error) == (5, "killed")


@pytest.mark.parametrize("initial_step", [0, 7])
def test_a_rank_killed_between_steps_has_no_open_step(initial_step: int):
    """The last step ended well, or there was none; only the run is killed."""
    run = make_run(initial_step=initial_step)
    recorder = Recorder(initial_step)
    recorder.be_killed()
    assert [span.name for span in translate(recorder.inputs, run)] == ["periflow.run"]
    recorder = Recorder(initial_step)
    with recorder.step():
        recorder.work(S)
    recorder.be_killed()
    assert [span.error for span in translate(recorder.inputs, run)] == [None, "killed"]


def test_a_resumed_run_begins_after_the_steps_before():
    """The first step has the number after those that were done, and no gap."""
    recorder = Recorder(initial_step=100)
    with recorder.step():
        recorder.work(S)
    span = only_step(recorder, make_run(initial_step=100))
    assert span.attributes["periflow.step.number"] == 101
    assert span.trace_id == ids.step_trace_id("run", 1, 101)


def test_a_step_whose_end_is_lost_hides_no_other():
    """Its metrics make no span, its phases do, and the step after it is whole."""
    recorder = one_step()
    with recorder.step():
        recorder.metric({"loss": 1.0})
        with recorder.phase("load"):
            recorder.work(S)
    lost = recorder.inputs.pop()
    assert isinstance(lost, StepEnded)
    with recorder.step():
        recorder.metric({"loss": 3.0})
    recorder.finish()
    spans = translate(recorder.inputs)
    assert [span.attributes["periflow.step.number"] for span in steps(spans)] == [1, 3]
    assert steps(spans)[1].attributes["periflow.metric.loss"] == 3.0
    assert len(named("load", spans)) == 1


def test_a_phase_is_a_child_of_its_step():
    """It has the step's trace, and says who and which step besides what the user says."""
    recorder = Recorder()
    with recorder.step(), recorder.phase("load", batch=3, source=["a", "b"], nothing=None):
        recorder.work(S)
    recorder.finish()
    phase, step, _ = translate(recorder.inputs)
    assert (phase.name, phase.trace_id, phase.parent_span_id) == ("load", step.trace_id, step.span_id)
    assert (phase.start_unix_ns, phase.end_unix_ns) == (STARTED_NS, STARTED_NS + S)
    assert phase.attributes == {
        "batch": 3, "source": '["a", "b"]',
        "periflow.rank": 0, "periflow.local_rank": 0, "periflow.node_rank": 0, "periflow.step.number": 1,
    }  # fmt: skip


def test_a_phase_outside_steps_is_a_child_of_the_run():
    """Also between two steps, and it leaves when it is over."""
    recorder = one_step()
    with recorder.phase("evaluate"):
        recorder.work(S)
    [phase] = translate(recorder.inputs)
    recorder.finish()
    run = translate(recorder.inputs)[-1]
    assert (phase.trace_id, phase.parent_span_id) == (run.trace_id, run.span_id)
    assert "periflow.step.number" not in phase.attributes


def test_phases_nest():
    """An inner phase is a child of the outer one, in the same trace."""
    recorder = Recorder()
    with recorder.phase("epoch"):
        with recorder.phase("load"), recorder.phase("decode"):
            recorder.work(S)
        with recorder.step(), recorder.phase("forward"):
            recorder.work(S)
    recorder.finish()
    spans = {span.name: span for span in translate(recorder.inputs)}
    parents = {name: span.parent_span_id for name, span in spans.items()}
    assert parents["decode"] == spans["load"].span_id
    assert parents["load"] == spans["epoch"].span_id
    assert parents["epoch"] == spans["periflow.run"].span_id
    assert parents["forward"] == spans["periflow.step"].span_id
    assert spans["decode"].trace_id == spans["epoch"].trace_id == spans["periflow.run"].trace_id


def test_a_phase_may_outlast_its_step():
    """It stays a child of the step in which it began, even if that has left long ago."""
    recorder = Recorder()
    recorder.start_step()
    with recorder.phase("odd"):
        recorder.end_step()
        with recorder.step():
            recorder.work(S)
    recorder.finish()
    spans = translate(recorder.inputs)
    [phase], first = named("odd", spans), steps(spans)[0]
    assert (phase.trace_id, phase.parent_span_id) == (first.trace_id, first.span_id)


def test_an_error_ends_a_phase_too():
    """Status and event are as on a step."""
    recorder = Recorder()
    with recorder.phase("load", error="OSError"):
        recorder.work(S)
    [phase] = translate(recorder.inputs)
    assert phase.error == "OSError"
    assert phase.events == (Event("exception", STARTED_NS + S, {"exception.type": "OSError"}),)


def test_a_phase_cannot_pretend_to_be_another_rank():
    """Our attributes win over the user's of the same name."""
    recorder = Recorder()
    with recorder.phase("load", **{"periflow.rank": 99}):
        recorder.work(S)
    assert translate(recorder.inputs)[0].attributes["periflow.rank"] == 0


def sampled(recorder: Recorder, run: RankRun) -> tuple[list[Span], dict[str, int]]:
    """Return the spans and what was dropped."""
    translator = SpanTranslator(run)
    give(translator, recorder.inputs)
    return translator.take(), translator.dropped()


def test_a_step_that_is_sampled_out_takes_its_phases_along():
    """No child without its parent: not one that outlasts the step either. All are counted."""
    recorder = Recorder()
    recorder.start_step()
    with recorder.phase("load"):
        recorder.work(S)
    with recorder.phase("outlasts"):
        recorder.end_step()
    recorder.start_step()
    with recorder.phase("outlasts by far"):
        recorder.end_step()
        with recorder.step():
            recorder.work(S)
    recorder.finish()
    spans, dropped = sampled(recorder, SAMPLED_OUT)
    assert [span.name for span in spans] == ["periflow.run.start", "periflow.run"]
    assert dropped == {"sampled_out": 6}


def test_a_step_that_is_kept_keeps_its_phases():
    """Phases wait until it is known whether the step is remarkable, also one that ends after the step."""
    recorder = Recorder()
    recorder.start_step()
    with recorder.phase("load"):
        recorder.work(S)
    with recorder.phase("outlasts"):
        recorder.end_step("OSError")
    recorder.finish()
    spans, dropped = sampled(recorder, SAMPLED_OUT)
    assert [span.name for span in spans][1:] == ["load", "outlasts", "periflow.step", "periflow.run"]
    assert dropped == {}


def test_remarkable_steps_are_always_kept():
    """An error, a checkpoint after or within, a value that is not finite, and a step that is slow."""
    recorder = Recorder()
    for number in range(1, 41):
        with recorder.step("OSError" if number == 30 else None):
            recorder.work(10 * S if number == 31 else S)
            if number == 32:
                recorder.checkpoint()
            if number == 33:
                recorder.metric({"loss": math.nan})
        if number == 34:
            recorder.checkpoint()
    recorder.finish()
    spans, dropped = sampled(recorder, SAMPLED_OUT)
    assert [span.attributes["periflow.step.number"] for span in steps(spans)] == [30, 31, 32, 33, 34]
    assert dropped == {"sampled_out": 35}


def test_what_is_slow_is_remembered_through_a_restart():
    """The durations of the steps before are part of the state."""
    recorder = Recorder()
    for number in range(1, 31):
        with recorder.step():
            recorder.work(10 * S if number == 30 else S)
    translator = SpanTranslator(SAMPLED_OUT)
    give(translator, recorder.inputs[:-2])
    translator.take()
    translator = SpanTranslator(SAMPLED_OUT, translator.encode_state())
    give(translator, recorder.inputs[-2:])
    translator.step_began(31, 0)
    assert [span.attributes["periflow.step.number"] for span in translator.take()] == [30]


def test_a_ratio_keeps_the_same_steps_on_every_rank():
    """So that a trace that is kept is whole."""
    recorder = Recorder()
    for _ in range(200):
        with recorder.step():
            recorder.work(S)
    recorder.finish()
    traces = []
    for rank in (0, 5):
        spans, dropped = sampled(recorder, make_run(rank=rank, sampling_ratio=0.5))
        traces.append([span.trace_id for span in steps(spans)])
        assert len(steps(spans)) + dropped["sampled_out"] == 200
    assert traces[0] == traces[1]
    assert 50 < len(traces[0]) < 150


@pytest.mark.parametrize("value", [1 << 80, "a\ud800b", {"deep": ["ü"]}], ids=["large", "broken text", "nested"])
def test_any_attribute_of_a_phase_can_be_held(value: object):
    """A step in doubt is held with its phases, in a state that is written down."""
    recorder = Recorder()
    with recorder.step("OSError"), recorder.phase("load\ud800", x=value):
        recorder.work(S)
    translator = SpanTranslator(SAMPLED_OUT)
    give(translator, recorder.inputs)
    translator.take()
    translator = SpanTranslator(SAMPLED_OUT, translator.encode_state())
    translator.step_began(2, 0)
    assert [span.name for span in translator.take()] == ["load?", "periflow.step"]


def test_a_phase_that_cannot_be_shown_spoils_nothing_else():
    """It fails when it is fed, where it is counted, and not when its step leaves."""
    recorder = Recorder()
    with recorder.step("OSError"), recorder.phase("bad", x=[10**5000]):
        recorder.work(S)
    translator = SpanTranslator(SAMPLED_OUT)
    with pytest.raises(ValueError, match="digits"):
        give(translator, recorder.inputs)
    give(translator, recorder.inputs[-1:])
    translator.step_began(2, 0)
    assert translator.take()[-1].name == "periflow.step"


def test_the_state_does_not_grow():
    """Ten thousand steps leave no more behind than ten."""
    translator = SpanTranslator(make_run(sampling_ratio=0.1))
    recorder = Recorder()
    sizes = {}
    with recorder.phase("epoch"):
        for number in range(10_000):
            with recorder.step(), recorder.phase("load"):
                recorder.work(S)
            recorder.metric({"loss": 1.0})
            give(translator, recorder.inputs)
            recorder.inputs.clear()
            translator.take()
            sizes[number] = len(translator.encode_state()) if number in (200, 9_999) else 0
    assert sizes[9_999] < sizes[200] + 50


RATIOS = st.sampled_from([0.0, 0.5, 1.0])


@given(SCRIPTS, RATIOS, st.sampled_from(["finish", "be_killed"]), st.data())
def test_a_restart_changes_no_span(script: Script, ratio: float, end: str, data: st.DataObject):
    """Cut anywhere, written down and gone on with, the records give the spans of one pass, in their order."""
    recorder = Recorder()
    play(script, recorder)
    getattr(recorder, end)()
    run = make_run(sampling_ratio=ratio)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(recorder.inputs)), max_size=3)))
    spans: list[Span] = []
    state, dropped = b"", {}
    for start, stop in zip([0, *cuts], [*cuts, len(recorder.inputs)], strict=True):
        translator = SpanTranslator(run, state)
        give(translator, recorder.inputs[start:stop])
        spans += translator.take()
        state, dropped = translator.encode_state(), translator.dropped()
    whole = SpanTranslator(run)
    give(whole, recorder.inputs)
    assert repr(spans) == repr(whole.take())  # which finds NaN equal
    assert dropped == whole.dropped()


@given(SCRIPTS, RATIOS)
def test_spans_do_not_depend_on_when_the_agent_looks(script: Script, ratio: float):
    """Whether it sees a step that is open or only its end, the spans are the same, perhaps in another order."""
    recorder = Recorder()
    play(script, recorder)
    recorder.finish()
    run = make_run(sampling_ratio=ratio)
    blind = [each for each in recorder.inputs if not isinstance(each, tuple)]
    assert sorted(map(repr, translate(recorder.inputs, run))) == sorted(map(repr, translate(blind, run)))


@given(SCRIPTS)
def test_every_record_has_its_one_span(script: Script):
    """Each is shown once, ids are unique, and every parent is there but that of values of a step that never came."""
    recorder = Recorder()
    play(script, recorder)
    recorder.finish()
    spans = translate(recorder.inputs)
    kinds = [type(each).__name__ for each in recorder.inputs]
    events = [event.name for span in spans for event in span.events]
    assert len(steps(spans)) == kinds.count("StepEnded")
    told = [each for each in recorder.inputs if isinstance(each, Metric) and each.during is not None]
    assert len(named("periflow.metrics", spans)) == len(told)
    others = len(steps(spans)) + len(named("periflow.checkpoint", spans)) + len(told) + 1
    assert len(spans) - others == kinds.count("Phase")
    assert events.count("periflow.checkpoint.upload") == kinds.count("Checkpoint")
    owners = {span.span_id: span.trace_id for span in spans}
    assert len(owners) == len(spans)
    children = [span for span in spans if span.parent_span_id and span.name != "periflow.metrics"]
    assert all(owners[span.parent_span_id] == span.trace_id for span in children if span.parent_span_id)
