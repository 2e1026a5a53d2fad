"""Where the time goes: every kind gets its own, and together they are the whole."""

from collections.abc import Sequence
from itertools import groupby, pairwise

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recorder import MS, PLAIN_SCRIPTS, SCRIPTS, STARTED_NS, Input, Recorder, S, Script, StepBegan, play

from periflow_otel.records import Checkpoint, Metric, Phase, RankLost, Record, RunFinished, StepEnded
from periflow_otel.translate.walltime import MAX_KINDS, WallTime


def new() -> WallTime:
    """Return the line of a run that begins."""
    return WallTime(accounted_unix_ns=STARTED_NS)


def follow(inputs: Sequence[Input], wall_time: WallTime | None = None) -> WallTime:
    """Follow the line through records."""
    wall_time = wall_time or new()
    for each in inputs:
        if not isinstance(each, tuple):
            _feed(wall_time, each)
    return wall_time


def _feed(wall_time: WallTime, record: Record) -> None:
    match record:
        case StepEnded():
            wall_time.end_step(record)
        case Phase():
            wall_time.end_phase(record)
        case Metric():
            wall_time.note(record.time_unix_ns)
        case Checkpoint():
            wall_time.end_checkpoint(record)
        case RunFinished():
            wall_time.close(record.time_unix_ns)
        case RankLost():
            wall_time.lose(record)


def seconds(recorder: Recorder) -> dict[str, float]:
    """Return the seconds by kind."""
    return {kind: spent_ns / S for kind, spent_ns in follow(recorder.inputs).spent_ns.items()}


@settings(max_examples=300)
@given(SCRIPTS, st.sampled_from(["finish", "be_killed"]))
def test_the_kinds_add_up_to_the_wall_time(script: Script, end: str):
    """Whatever a script does, in the end no nanosecond is missing and none counted twice."""
    recorder = Recorder()
    play(script, recorder)
    getattr(recorder, end)()
    wall_time = follow(recorder.inputs)
    assert sum(wall_time.spent_ns.values()) == recorder.now_ns - STARTED_NS
    assert min(wall_time.spent_ns.values(), default=0) >= 0
    assert wall_time.waiting == {}


@settings(max_examples=300)
@given(PLAIN_SCRIPTS)
def test_every_kind_has_its_own_time(script: Script):
    """Time belongs to the innermost phase, else to the step, else to what is between steps."""
    recorder = Recorder()
    play(script, recorder)
    recorder.finish()
    assert follow(recorder.inputs).spent_ns == {kind: ns for kind, ns in recorder.spent_ns.items() if ns}


@given(SCRIPTS, st.data())
def test_time_is_only_ever_added(script: Script, data: st.DataObject):
    """A counter never falls, and a line that was written down goes on as if nothing had happened."""
    recorder = Recorder()
    play(script, recorder)
    recorder.finish()
    cut = data.draw(st.integers(0, len(recorder.inputs)))
    wall_time = follow(recorder.inputs[:cut])
    before = dict(wall_time.spent_ns)
    wall_time = follow(recorder.inputs[cut:], msgspec.msgpack.decode(msgspec.msgpack.encode(wall_time), type=WallTime))
    assert all(wall_time.spent_ns[kind] >= spent_ns for kind, spent_ns in before.items())
    assert wall_time == follow(recorder.inputs)


def test_before_the_first_step_is_startup():
    """And after it what is between steps is a gap."""
    recorder = Recorder()
    recorder.work(3 * S)
    with recorder.step():
        recorder.work(5 * S)
    recorder.work(2 * S)
    with recorder.step():
        recorder.work(5 * S)
    assert seconds(recorder) == {"startup": 3, "step": 10, "gap": 2}


def test_a_run_without_steps_is_startup():
    """Nothing was trained."""
    recorder = Recorder()
    recorder.work(3 * S)
    recorder.finish()
    assert seconds(recorder) == {"startup": 3}


def test_saving_is_from_the_record_before_to_the_checkpoint():
    """What was before a metric is a gap; what is between it and the checkpoint is saving."""
    recorder = Recorder()
    with recorder.step():
        recorder.work(5 * S)
    recorder.work(S)
    recorder.metric({"loss": 1.0})
    recorder.work(4 * S)
    recorder.checkpoint()
    assert seconds(recorder) == {"step": 5, "gap": 1, "checkpoint": 4}


def test_a_checkpoint_of_another_step_took_no_time():
    """A thread has saved it while training went on."""
    recorder = Recorder()
    for _ in range(2):
        with recorder.step():
            recorder.work(5 * S)
    recorder.work(4 * S)
    recorder.checkpoint_of(1)
    recorder.finish()
    assert seconds(recorder) == {"step": 10, "gap": 4}


@given(PLAIN_SCRIPTS)
@example([("step", None, [("work", S)]), ("work", 2 * S), ("step", None, [("work", 3 * S)]), ("step", None, [])])
def test_steps_counted_together_are_those_counted_one_by_one(script: Script):
    """Where nothing lies between them, a batch of steps is only a faster way."""
    recorder = Recorder()
    play(script, recorder)
    records = [each for each in recorder.inputs if not isinstance(each, StepBegan | Metric)]
    together, one_by_one = new(), follow(records)
    for is_step, group in groupby(records, lambda each: isinstance(each, StepEnded)):
        if is_step:
            together.end_steps(list(group))  # type: ignore[arg-type]  # as just seen
        else:
            follow(list(group), together)
    assert together == one_by_one


@pytest.mark.parametrize("set_by_s", [-3600, -0.3, 0.3, 3600])
def test_a_clock_that_is_set_between_steps_takes_no_time(set_by_s: float):
    """Nothing took an hour."""
    recorder = Recorder()
    with recorder.step():
        recorder.work(5 * S)
    recorder.work(S)
    recorder.metric({"loss": 1.0})
    recorder.now_ns += int(set_by_s * S)
    with recorder.step():
        recorder.work(5 * S)
    recorder.work(2 * S)
    recorder.finish()
    assert seconds(recorder) == {"step": 10, "gap": 3}


def test_saving_within_a_step_is_a_part_of_the_step():
    """An open step has all of its time."""
    recorder = Recorder()
    with recorder.step():
        recorder.work(5 * S)
        recorder.checkpoint()
        recorder.work(S)
    assert seconds(recorder) == {"step": 6}


def test_a_phase_has_what_no_inner_phase_has():
    """Before, between and after the inner ones, within a step and outside."""
    recorder = Recorder()
    for around in (recorder.phase("epoch"), recorder.step()):
        recorder.work(7 * S)
        with around:
            for _ in range(3):
                recorder.work(S)
                with recorder.phase("outer"):
                    recorder.work(100 * MS)
                    with recorder.phase("inner"):
                        recorder.work(10 * MS)
                    recorder.work(100 * MS)
            recorder.work(S)
    assert seconds(recorder) == pytest.approx({"startup": 14, "epoch": 4, "step": 4, "outer": 1.2, "inner": 0.06})


def test_what_is_before_a_step_is_a_gap_whatever_is_around():
    """A phase around an epoch does not hide how long steps wait for data; it has what is left."""
    recorder = Recorder()
    with recorder.step():
        recorder.work(S)
    with recorder.phase("epoch"):
        for _ in range(3):
            recorder.work(S)
            with recorder.step():
                recorder.work(S)
        recorder.work(5 * S)
    assert seconds(recorder) == {"step": 4, "gap": 3, "epoch": 5}


def test_a_phase_that_outlasts_its_step_has_the_rest():
    """The step has its whole duration, and nothing is counted twice."""
    recorder = Recorder()
    recorder.start_step()
    recorder.work(S)
    with recorder.phase("odd"):
        recorder.work(S)
        recorder.end_step()
        recorder.work(3 * S)
    with recorder.step():
        recorder.work(S)
    recorder.finish()
    assert seconds(recorder) == {"step": 3, "odd": 3}


def test_a_killed_process_was_in_its_step():
    """A step that hung for a minute did not make a gap of a minute."""
    recorder = Recorder()
    with recorder.step():
        recorder.work(S)
    recorder.work(S)
    recorder.start_step()
    with recorder.phase("load"):
        recorder.work(S)
    recorder.work(60 * S)
    recorder.be_killed()
    assert seconds(recorder) == {"step": 61, "gap": 1, "load": 1}


def test_a_process_killed_between_steps_was_in_a_gap():
    """The last step is not counted again."""
    recorder = Recorder()
    with recorder.step():
        recorder.work(S)
    recorder.work(60 * S)
    recorder.be_killed()
    assert seconds(recorder) == {"step": 1, "gap": 60}


def test_phases_that_never_end_make_no_hole():
    """A run that is left in the midst of a phase has its time all the same."""
    recorder = Recorder()
    with recorder.phase("lost"):
        recorder.work(S)
        with recorder.phase("inner"):
            recorder.work(S)
        recorder.work(S)
        with recorder.phase("inner"):
            recorder.work(S)
    recorder.inputs.pop()
    recorder.finish()
    assert seconds(recorder) == {"startup": 2, "inner": 2}


def test_phases_of_several_threads_are_not_counted_twice():
    """Two seconds are two seconds, and the one that ends first has what it had alone."""
    phases = [
        Phase("a", 1, 0, 1, STARTED_NS, 1 * S, None, {}),
        Phase("b", 2, 0, 1, STARTED_NS, 2 * S, None, {}),
    ]
    wall_time = follow([*phases, StepEnded(1, STARTED_NS, 2 * S), RunFinished(STARTED_NS + 2 * S)])
    assert wall_time.spent_ns == {"a": S, "b": S}


_SHORT = st.integers(0, 400 * MS)
ODD_RECORDS = st.lists(
    st.one_of(
        st.builds(StepEnded, st.integers(1, 5), _SHORT.map(STARTED_NS.__add__), _SHORT),
        st.builds(
            Phase,
            name=st.sampled_from(["a", "b"]),
            number=st.integers(1, 4),
            parent=st.integers(0, 4),
            step=st.none() | st.integers(1, 5),
            start_unix_ns=_SHORT.map(STARTED_NS.__add__),
            duration_ns=_SHORT,
            error=st.none(),
            attributes=st.just({}),
        ),
        st.builds(Metric, st.just(1), _SHORT.map(STARTED_NS.__add__), st.just({})),
        st.builds(Checkpoint, st.just(1), _SHORT.map(STARTED_NS.__add__), st.booleans(), st.booleans()),
    ),
    max_size=12,
)


@settings(max_examples=300)
@given(ODD_RECORDS)
def test_no_nonsense_counts_time_twice(records: list[Record]):
    """Overlapping steps and phases in any order still add up to the time that passed."""
    end = STARTED_NS + S
    spent_ns = follow([*records, RunFinished(end)]).spent_ns
    assert sum(spent_ns.values()) == S
    assert min(spent_ns.values()) > 0


def test_records_a_little_out_of_order_are_no_clock_set_back():
    """Half a second between the end of a phase and its record does not count a step again."""
    records = [StepEnded(1, STARTED_NS, S), Phase("late", 1, 0, 1, STARTED_NS, S // 2, None, {})]
    assert follow(records).spent_ns == {"step": S}


def test_endless_names_of_phases_make_no_endless_series():
    """A name with the step in it is a mistake that costs the breakdown, not the back end; nothing is lost."""
    recorder = Recorder()
    for number in range(10 * MAX_KINDS):
        with recorder.phase(f"step {number}"):
            recorder.work(S)
    with recorder.step():
        recorder.work(S)
    found = seconds(recorder)
    assert len(found) == MAX_KINDS + 2
    assert (found["other"], found["step"]) == (9 * MAX_KINDS, 1)


def test_the_state_does_not_grow():
    """Ten thousand steps and phases within a phase around all leave no more behind than ten."""
    recorder, wall_time, sizes = Recorder(), new(), []
    with recorder.phase("all"):
        for number in range(10_000):
            recorder.work(S)
            with recorder.phase("load"):
                recorder.work(S)
            with recorder.step(), recorder.phase("forward"):
                recorder.work(S)
            follow(recorder.inputs, wall_time)
            recorder.inputs.clear()
            if number in (10, 9_999):
                sizes.append(len(msgspec.msgpack.encode(wall_time)))
    assert all(later < earlier + 20 for earlier, later in pairwise(sizes))
