"""From records to points: every value at its time, and instruments that add up."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorder import MS, SCRIPTS, STARTED_NS, Input, Recorder, S, Script, give, make_run, play

from periflow_otel import ids
from periflow_otel.names import CONFIG_VALUE, METRIC_KEY, METRICS_STEP, RUN_CONFIG, SECONDS_BOUNDS, Instrument
from periflow_otel.records import (
    Config,
    Metric,
    RankLost,
    RankRun,
    RunFinished,
    StepEnded,
    Work,
    decode,
    encode_metric,
)
from periflow_otel.translate.histograms import ExplicitBuckets, ExponentialBuckets
from periflow_otel.translate.points import PointTranslator
from periflow_otel.translate.spans import SpanTranslator
from periflow_otel.translate.telemetry import Histogram, Observation, Observed, Point
from periflow_otel.translate.values import MAX_KEYS

Stream = tuple[str, tuple[tuple[str, str | int], ...]]


def translate(inputs: Sequence[Input], run: RankRun | None = None, **options: bool) -> list[Point]:
    """Return the points of records, with a snapshot at the end."""
    translator = PointTranslator(run or make_run(), **options)
    give(translator, inputs)
    translator.snapshot()
    return translator.take()


def user_points(points: Iterable[Point], key: str = "loss") -> list[Point]:
    """Return the points of a user's metric."""
    return [point for point in points if ("periflow.key", key) in point.attributes and point.instrument.kind == "gauge"]


def streams(points: Iterable[Point]) -> dict[Stream, list[Point]]:
    """Return points by the stream that they belong to."""
    found = defaultdict(list)
    for point in points:
        found[point.instrument.name, point.attributes].append(point)
    return found


def last_values(points: Iterable[Point]) -> dict[Any, Any]:
    """Return the last value of each stream: by name, and by the attribute that tells its streams apart."""
    found = {}
    for (name, attributes), stream in streams(points).items():
        labels = [value for key, value in attributes if key != "periflow.rank"]
        found[(name, *labels) if labels else name] = stream[-1].value
    return found


def metrics(*values: Any, every_ns: int = MS) -> list[Input]:
    """Return calls that record values of one key, one after the other."""
    return [Metric(1, STARTED_NS + number * every_ns, {"loss": value}) for number, value in enumerate(values)]


def run_of(*durations_s: float, gap_s: float = 1) -> Recorder:
    """Return what steps of given durations have recorded."""
    recorder = Recorder()
    for duration_s in durations_s:
        recorder.work(int(gap_s * S))
        with recorder.step():
            recorder.work(int(duration_s * S))
    return recorder


def test_every_call_is_a_point_of_its_own():
    """At the time of the call in whole milliseconds, with rank and the user's spelling of the key."""
    points = user_points(translate(metrics(3.0, 2.0, 1.0, every_ns=5 * MS), make_run(rank=4)))
    assert [point.value for point in points] == [3.0, 2.0, 1.0]
    assert [point.time_unix_ns - STARTED_NS // MS * MS for point in points] == [0, 5 * MS, 10 * MS]
    assert {point.instrument.name for point in points} == {"periflow.metric.loss"}
    assert {point.attributes for point in points} == {(("periflow.key", "loss"), ("periflow.rank", 4))}
    assert {point.start_unix_ns for point in points} == {0}


def config_points(points: Iterable[Point]) -> list[tuple[str, str, float]]:
    """Return what tells a run from others: key, value, and whether it holds."""
    found = []
    for point in points:
        if point.instrument is RUN_CONFIG:
            attributes = dict(point.attributes)
            found.append((str(attributes[METRIC_KEY]), str(attributes[CONFIG_VALUE]), point.value))
    return found  # type: ignore[return-value]  # gauges have numbers


def test_what_tells_a_run_from_others_is_a_gauge_with_the_value_beside_it():
    """A point for each value, as text, and 0 once for one that was replaced."""
    translator = PointTranslator(make_run())
    translator.feed([Config({"lr": 0.1, "model": "small", "amp": True, "betas": [0.9, 0.99]})])
    translator.settle()
    values = [("model", "small", 1), ("amp", "true", 1), ("betas", "[0.9, 0.99]", 1)]
    assert config_points(translator.take()) == [("lr", "0.1", 1), *values]
    translator.feed([Config({"lr": 0.2, "model": "small", "amp": True, "betas": [0.9, 0.99]})])
    translator.settle()
    assert config_points(translator.take()) == [("lr", "0.1", 0), ("lr", "0.2", 1), *values]


def test_what_tells_a_run_from_others_is_shown_again_before_it_is_forgotten():
    """Not at each snapshot: it would be most of what is sent. After a restart of the agent it is."""
    translator = PointTranslator(make_run())
    config = Config({"lr": 0.1})
    shown = []
    for after_s in (0, 1, 200, 241):
        translator.feed([config])  # as at the beginning of each segment
        translator.snapshot(STARTED_NS + after_s * S)
        shown.append(len(config_points(translator.take())))
    translator = PointTranslator(make_run(), translator.encode_state())
    translator.snapshot(STARTED_NS + 242 * S)
    assert (shown, config_points(translator.take())) == ([1, 0, 0, 1], [("lr", "0.1", 1)])


def test_what_tells_a_run_from_others_is_shown_by_rank_0_alone():
    """The others say the same."""
    translator = PointTranslator(make_run(rank=1))
    translator.feed([Config({"lr": 0.1})])
    translator.snapshot()
    assert config_points(translator.take()) == []


def test_calls_within_a_millisecond_are_points_of_different_ones():
    """No two points of a stream share a time, and those of other streams do not matter."""
    calls: list[Input] = [Metric(1, STARTED_NS + n, {"loss": n, "lr": n}) for n in range(5)]
    points = translate(calls)
    for key in ("loss", "lr"):
        times = [point.time_unix_ns for point in user_points(points, key)]
        assert [later - earlier for earlier, later in pairwise(times)] == [MS] * 4


def test_a_clock_set_back_turns_no_stream_around():
    """Points go on, a millisecond apart, until the clock is where it was."""
    calls = [*metrics(1.0, 2.0), Metric(1, STARTED_NS - 60 * S, {"loss": 3.0}), Metric(1, STARTED_NS, {"loss": 4.0})]
    times = [point.time_unix_ns for point in user_points(translate(calls))]
    assert [later - earlier for earlier, later in pairwise(times)] == [MS] * 3


@pytest.mark.parametrize(
    ("value", "shown"),
    [(True, 1), (False, 0), (7, 7), (-(1 << 63), -(1 << 63)), (1 << 63, float(1 << 63)), (10**400, math.inf)],
)
def test_numbers_become_numbers(value: object, shown: float):
    """A bool is an integer, and an integer beyond 64 bits is the nearest float."""
    record = decode(encode_metric(1, STARTED_NS, {"loss": value}))
    [point] = user_points(translate([record]))
    assert (point.value, type(point.value)) == (shown, type(shown))


def test_numbers_in_mappings_become_points_under_keys_with_dots():
    """A key that has dots itself is one and the same; so each is a point."""
    values = {"train": {"loss": 0.5, "top": {"5": 0.9, "names": ["a"]}, "note": "text"}, "train.loss": 0.25}
    points = [each for each in translate([Metric(1, STARTED_NS, values)]) if "train" in each.instrument.name]
    assert [(each.instrument.name, each.value) for each in points] == [
        ("periflow.metric.train.loss", 0.5),
        ("periflow.metric.train.top.5", 0.9),
        ("periflow.metric.train.loss", 0.25),
    ]
    assert (METRIC_KEY, "train.top.5") in points[1].attributes


@pytest.mark.parametrize("value", ["text", None, [1.0], [{"a": 1.0}], {}, {"a": "text"}])
def test_what_is_no_number_is_no_point(value: object):
    """And takes no key away from those that are."""
    translator = PointTranslator(make_run())
    give(translator, metrics(value))
    assert translator.take() == []
    assert translator.state.last_ms == {}


def test_values_that_are_not_finite_are_kept_and_counted():
    """By key; an integer that only infinity is near to counts too."""
    calls = metrics(math.nan, 1.0, -math.inf, 10**400)
    points = translate([*calls, Metric(1, STARTED_NS, {"lr": math.nan})])
    values = [point.value for point in user_points(points)]
    assert values == pytest.approx([math.nan, 1.0, -math.inf, math.inf], nan_ok=True)
    found = last_values(points)
    assert found["periflow.step.nonfinite_values", "loss"] == 3
    assert found["periflow.step.nonfinite_values", "lr"] == 1


def test_there_are_a_thousand_keys():
    """Values of further keys are counted and nothing else is; known keys go on."""
    translator = PointTranslator(make_run())
    for number in range(MAX_KEYS + 5):
        translator.feed([Metric(1, STARTED_NS, {f"key {number}": math.nan})])
    translator.feed([Metric(1, STARTED_NS, {"key 0": 1.0})])
    assert len(translator.take()) == MAX_KEYS + 1
    assert translator.dropped() == {"too_many_keys": 5}
    translator.snapshot()
    counted = [point for point in translator.take() if point.instrument.name == "periflow.step.nonfinite_values"]
    assert len(counted) == MAX_KEYS


def test_nothing_is_dropped_but_that():
    """A run with few keys drops nothing."""
    translator = PointTranslator(make_run())
    give(translator, metrics(1.0))
    assert translator.dropped() == {}


def test_a_snapshot_shows_every_instrument():
    """All that is known of a run, under its name."""
    recorder = Recorder(initial_step=10)
    recorder.work(S)
    for error in (None, "OSError", None):
        recorder.work(500 * MS)
        with recorder.step(error):
            recorder.work(2 * S)
    recorder.metric({"loss": math.nan})
    recorder.checkpoint()
    with recorder.step():
        recorder.work(2 * S)
    recorder.work(S)
    recorder.checkpoint(request_delay_ns=1)
    with recorder.phase("evaluate"):
        recorder.work(4 * S)
    found = last_values(translate(recorder.inputs, make_run(initial_step=10, total_steps=100)))
    duration, gap = found.pop("periflow.step.duration"), found.pop("periflow.step.gap")
    assert math.isnan(found.pop(("periflow.metric.loss", "loss")))
    assert found == {
        ("periflow.step.completed", "ok"): 3,
        ("periflow.step.completed", "error"): 1,
        "periflow.run.up": 1,
        "periflow.step.current": 14,
        "periflow.step.last_ended": 14,
        "periflow.step.target": 100,
        "periflow.step.started_at": STARTED_NS / 1e9 + 8.5,
        ("periflow.time", "startup"): 1.5,
        ("periflow.time", "step"): 8.0,
        ("periflow.time", "gap"): 1.0,
        ("periflow.time", "checkpoint"): 1.0,
        ("periflow.time", "evaluate"): 4.0,
        ("periflow.checkpoint.uploads", "NORMAL"): 1,
        ("periflow.checkpoint.uploads", "EMERGENCY"): 1,
        "periflow.checkpoint.last_step": 14,
        ("periflow.step.nonfinite_values", "loss"): 1,
    }
    assert (duration.count, duration.sum, duration.min, duration.max) == (4, 8, 2, 2)
    assert (gap.count, gap.sum, gap.min, gap.max) == (3, 1, 0, 0.5)
    assert duration.bounds == gap.bounds == SECONDS_BOUNDS
    assert duration.bucket_counts[SECONDS_BOUNDS.index(2.5)] == 4


def test_a_new_run_shows_what_it_knows():
    """The step that earlier attempts reached, and nothing that has not been."""
    found = last_values(translate([], make_run(initial_step=7)))
    assert found == {"periflow.run.up": 1, "periflow.step.current": 7, "periflow.step.last_ended": 7}


@pytest.mark.parametrize(
    ("last", "outcome"),
    [
        (RunFinished(STARTED_NS + S), "finished"),
        (RunFinished(STARTED_NS + S, "ValueError"), "failed"),
        (RankLost(STARTED_NS + S, 0, 0), "killed"),
    ],
)
@pytest.mark.parametrize("is_delta", [False, True])
def test_the_last_points_say_that_the_run_is_over_and_how(last: Input, outcome: str, is_delta: bool):  # noqa: FBT001  # a case
    """Whoever watches need not take silence for a fault."""
    translator = PointTranslator(make_run(), is_delta=is_delta)
    translator.snapshot()
    give(translator, [last])
    translator.settle()
    found = last_values(translator.take())
    assert found["periflow.run.up"] == 0
    assert {key: value for key, value in found.items() if key[0] == "periflow.run.ended"} == {
        ("periflow.run.ended", outcome): 1
    }


def test_a_step_that_is_open_has_not_ended():
    """Whoever hangs in a step, even in the last one, can be told from one that is done."""
    recorder = Recorder()
    with recorder.step():
        recorder.work(S)
    translator = PointTranslator(make_run(total_steps=2))
    give(translator, recorder.inputs)
    translator.step_began(2, STARTED_NS + 2 * S)
    translator.settle()
    found = last_values(translator.take())
    assert (found["periflow.step.current"], found["periflow.step.last_ended"]) == (2, 1)


def test_a_checkpoint_before_the_first_step_is_shown():
    """Step 0 is a step to resume from, not none."""
    recorder = Recorder()
    recorder.checkpoint()
    assert last_values(translate(recorder.inputs))["periflow.checkpoint.last_step"] == 0


def test_every_point_carries_the_rank():
    """Whatever its instrument is."""
    recorder = run_of(1, 1)
    recorder.metric({"loss": math.nan})
    recorder.checkpoint()
    assert all(("periflow.rank", 5) in point.attributes for point in translate(recorder.inputs, make_run(rank=5)))


@pytest.mark.parametrize("set_by_s", [-10, 3600])
def test_a_clock_that_is_set_changes_no_gap(set_by_s: int):
    """It is measured by the clock that nobody sets."""
    recorder = run_of(1)
    recorder.work(2 * S)
    recorder.now_ns += set_by_s * S
    with recorder.step():
        recorder.work(S)
    gap = last_values(translate(recorder.inputs))["periflow.step.gap"]
    assert (gap.min, gap.max) == (2, 2)


def test_a_stuck_step_is_visible():
    """It has no record, but when it began is known; an older step does not come back."""
    translator = PointTranslator(make_run())
    give(translator, run_of(1).inputs)
    translator.step_began(2, STARTED_NS + 90 * S)
    translator.step_began(1, STARTED_NS)
    translator.snapshot()
    found = last_values(translator.take())
    assert (found["periflow.step.current"], found["periflow.step.started_at"]) == (2, STARTED_NS / 1e9 + 90)


def test_a_killed_rank_shows_the_step_it_was_in():
    """Also if nobody looked while it was open."""
    found = last_values(translate([*run_of(1).inputs, RankLost(STARTED_NS + 9 * S, 2, STARTED_NS + 4 * S)]))
    assert found["periflow.step.current"] == 2
    assert found["periflow.time", "step"] == 6


def test_settling_shows_only_what_is_new():
    """Once at the start, then after a change, and whenever a time is given."""
    translator = PointTranslator(make_run())
    settled = []
    for inputs in ([], [], run_of(1).inputs, [], metrics(1.0), metrics(math.nan), []):
        give(translator, inputs)
        translator.take()
        translator.settle()
        settled.append(bool(translator.take()))
    assert settled == [True, False, True, False, False, True, False]
    translator.settle(STARTED_NS + 60 * S)
    assert {point.time_unix_ns for point in translator.take()} == {-(-(STARTED_NS + 60 * S) // MS) * MS}


def test_a_change_that_was_not_shown_is_shown_after_a_restart():
    """And one that was shown is not shown again."""
    translator = PointTranslator(make_run())
    give(translator, run_of(1).inputs)
    for is_shown in (True, False):
        translator = PointTranslator(make_run(), translator.encode_state())
        translator.settle()
        assert bool(translator.take()) == is_shown


@given(st.lists(st.none() | st.integers(-10 * S, 10 * S), min_size=2))
def test_times_of_snapshots_only_rise(offsets_ns: list[int | None]):
    """Whatever the clock says, no two points of a stream share a time, and none is before the run."""
    translator = PointTranslator(make_run())
    give(translator, run_of(1, 2).inputs)
    for offset_ns in offsets_ns:
        translator.snapshot(None if offset_ns is None else STARTED_NS + offset_ns)
    for stream in streams(translator.take()).values():
        times = [point.time_unix_ns for point in stream]
        assert all(earlier < later for earlier, later in pairwise(times))
        assert all(point.start_unix_ns < point.time_unix_ns for point in stream)
        assert all(time_ns % MS == 0 for time_ns in times)


def test_cumulative_points_count_since_the_run_began():
    """All of them have the same start, also after a restart; a gauge has none."""
    translator = PointTranslator(make_run())
    starts = set()
    for _ in range(3):
        give(translator, run_of(1).inputs)
        translator.snapshot()
        starts |= {(point.instrument.kind, point.start_unix_ns, point.is_delta) for point in translator.take()}
        translator = PointTranslator(make_run(), translator.encode_state())
    assert starts == {("counter", STARTED_NS, False), ("histogram", STARTED_NS, False), ("gauge", 0, False)}


def test_delta_points_count_since_the_snapshot_before():
    """The first since the run began; where nothing is new there is no point."""
    translator = PointTranslator(make_run(), is_delta=True)
    taken = []
    for inputs in (run_of(1, 1).inputs, run_of(1).inputs, []):
        give(translator, inputs)
        translator.snapshot()
        taken.append([point for point in translator.take() if point.instrument.kind != "gauge"])
    first, second, third = taken
    assert {point.start_unix_ns for point in first} == {STARTED_NS}
    assert {point.start_unix_ns for point in second} == {point.time_unix_ns for point in first}
    assert last_values(second)["periflow.step.completed", "ok"] == 1
    assert all(point.is_delta for point in [*first, *second])
    assert third == []


def test_exemplars_lead_to_the_step():
    """For each bucket the last step in it: its duration, its end, its trace and its span."""
    recorder = run_of(1, 1, 9)
    [point] = [p for p in translate(recorder.inputs, make_run(rank=3)) if p.instrument.name == "periflow.step.duration"]
    found = {each.value: each for each in point.exemplars}
    assert set(found) == {1, 9}
    for value, step in ((1, 2), (9, 3)):
        assert found[value].trace_id == ids.step_trace_id("run", 1, step)
        assert found[value].span_id == ids.step_span_id("run", 1, step, 3)
    assert found[9].time_unix_ns == recorder.now_ns


def test_a_value_that_is_told_of_another_step_leads_to_that():
    """By an exemplar: the time of its point lies in the step that was going on."""
    recorder = run_of(1, 1)
    recorder.metric({"loss": 0.5}, step=1)
    recorder.metric({"loss": 0.25})
    told, other = user_points(translate(recorder.inputs, make_run(rank=3)))
    assert (told.value, told.time_unix_ns) == (0.5, recorder.now_ns // MS * MS)
    [exemplar] = told.exemplars
    assert (exemplar.value, exemplar.time_unix_ns) == (0.5, told.time_unix_ns)
    assert (exemplar.trace_id, exemplar.span_id) == (ids.step_trace_id("run", 1, 1), ids.step_span_id("run", 1, 1, 3))
    assert other.exemplars == ()


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_exemplars_lead_only_to_steps_that_are_kept(ratio: float):
    """The slow step and the one with an error are kept, and others as the ratio says."""
    run = make_run(sampling_ratio=ratio)
    recorder = Recorder()
    points, spans = PointTranslator(run), SpanTranslator(run)
    led_to = set()
    for number in range(1, 101):
        with recorder.step("OSError" if number == 50 else None):
            recorder.work(9 * S if number == 70 else S)
        give(points, recorder.inputs[-2:])
        points.snapshot()
        led_to |= {each.span_id for point in points.take() for each in point.exemplars}
    give(spans, recorder.inputs)
    spans.step_began(101, 0)
    kept = {span.span_id for span in spans.take() if span.name == "periflow.step"}
    assert led_to == kept
    assert {ids.step_span_id("run", 1, step, 0) for step in (50, 70)} <= kept


def total(points: Iterable[Point]) -> dict[Stream, Any]:
    """Return what the points of each stream add up to, but for buckets that depend on the values before."""
    return {
        stream: _total([point.value for point in found])
        for stream, found in streams(points).items()
        if found[0].instrument.kind != "gauge"
    }


def _total(values: Sequence[Any]) -> Any:
    if isinstance(values[0], int | float):
        return pytest.approx(sum(values))
    count, seconds = sum(each.count for each in values), pytest.approx(sum(each.sum for each in values))
    least, most = min(each.min for each in values), max(each.max for each in values)
    is_explicit = isinstance(values[0], Histogram)
    columns = zip(*(each.bucket_counts for each in values), strict=True) if is_explicit else ()
    return count, seconds, least, most, [sum(column) for column in columns]


@given(SCRIPTS, st.booleans(), st.data())
def test_deltas_add_up_to_the_whole(script: Script, is_exponential: bool, data: st.DataObject):  # noqa: FBT001
    """Whenever snapshots are taken, and wherever a restart is between them."""
    recorder = Recorder()
    play(script, recorder)
    recorder.finish()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(recorder.inputs)), max_size=4)))
    deltas, state = [], b""
    for start, stop in zip([0, *cuts], [*cuts, len(recorder.inputs)], strict=True):
        translator = PointTranslator(make_run(), state, is_delta=True, is_exponential=is_exponential)
        give(translator, recorder.inputs[start:stop])
        translator.settle()
        deltas += translator.take()
        state = translator.encode_state()
    whole = translate(recorder.inputs, is_exponential=is_exponential)
    assert total(deltas) == total(whole)


@given(SCRIPTS, st.booleans(), st.sampled_from([0.5, 1.0]), st.data())
def test_a_restart_changes_no_point(script: Script, is_exponential: bool, ratio: float, data: st.DataObject):  # noqa: FBT001
    """Cut anywhere and gone on with, values, totals, histograms and exemplars are those of one pass."""
    recorder = Recorder()
    play(script, recorder)
    recorder.finish()
    run = make_run(sampling_ratio=ratio)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(recorder.inputs)), max_size=3)))
    points, state = [], b""
    for start, stop in zip([0, *cuts], [*cuts, len(recorder.inputs)], strict=True):
        translator = PointTranslator(run, state, is_exponential=is_exponential)
        give(translator, recorder.inputs[start:stop])
        points += translator.take()
        state = translator.encode_state()
    translator = PointTranslator(run, state, is_exponential=is_exponential)
    translator.snapshot()
    whole = translate(recorder.inputs, run, is_exponential=is_exponential)
    assert repr([*points, *translator.take()]) == repr(whole)  # which finds NaN equal


@given(SCRIPTS, st.lists(st.integers(0, 20)))
def test_snapshots_between_change_no_total(script: Script, places: list[int]):
    """Cumulative instruments show at the end what they would without."""
    recorder = Recorder()
    play(script, recorder)
    translator = PointTranslator(make_run())
    for place, each in enumerate(recorder.inputs):
        give(translator, [each])
        if place in places:
            translator.snapshot()
    translator.snapshot()
    found, whole = last_values(translator.take()), last_values(translate(recorder.inputs))
    assert sorted(map(repr, found.items())) == sorted(map(repr, whole.items()))


@given(SCRIPTS)
def test_the_time_by_kind_is_the_time_of_the_run(script: Script):
    """The counter adds up to the age of the run."""
    recorder = Recorder()
    play(script, recorder)
    recorder.finish()
    times: list[Any] = [point.value for point in translate(recorder.inputs) if point.instrument.name == "periflow.time"]
    assert sum(times) == pytest.approx((recorder.now_ns - STARTED_NS) / S, abs=1e-6)


@given(st.lists(st.floats(0.0001, 700), max_size=20), st.booleans())
def test_durations_are_counted_as_their_histogram_counts(durations_s: list[float], is_exponential: bool):  # noqa: FBT001
    """The instrument has the buckets that were asked for."""
    buckets = ExponentialBuckets() if is_exponential else ExplicitBuckets()
    for duration_s in durations_s:
        buckets.record(int(duration_s * S) / 1e9)
    found = last_values(translate(run_of(*durations_s).inputs, is_exponential=is_exponential))
    assert found.get("periflow.step.duration") == (buckets.snapshot() if durations_s else None)


def test_the_state_does_not_grow():
    """Twenty thousand steps leave no more behind than two hundred, and nothing is left to take."""
    recorder, translator = Recorder(), PointTranslator(make_run(sampling_ratio=0.1))
    sizes = {}
    with recorder.phase("epoch"):
        for number in range(20_000):
            with recorder.phase("load"):
                recorder.work(S)
            with recorder.step():
                recorder.work(S)
            recorder.metric({"loss": 1.0})
            give(translator, recorder.inputs)
            recorder.inputs.clear()
            translator.settle()
            translator.take()
            sizes[number] = len(translator.encode_state()) if number in (200, 19_999) else 0
    assert sizes[19_999] < sizes[200] + 100


def test_a_state_of_a_thousand_keys_stays_small():
    """It is written at every commit."""
    translator = PointTranslator(make_run())
    translator.feed([Metric(1, STARTED_NS, {f"train/some/metric_{number}": 1.0 for number in range(MAX_KEYS)})])
    assert len(translator.encode_state()) < 50_000


@given(SCRIPTS, st.integers(1, 9))
def test_what_is_taken_later_is_not_of_an_earlier_time(script: Script, every: int):
    """Receivers take the points of an instance in the order of their times, whatever the clock does."""
    translator, latest_unix_ns = PointTranslator(make_run(), shows_steps=True), 0
    recorder = Recorder()
    play(script, recorder)
    for start in range(0, len(recorder.inputs), every):
        give(translator, recorder.inputs[start : start + every])
        translator.settle(STARTED_NS + 5 * S if start % 2 else None)
        times = [point.time_unix_ns for point in translator.take()]
        assert not times or min(times) >= latest_unix_ns
        latest_unix_ns = max([latest_unix_ns, *times])


def test_every_value_can_be_placed_on_its_step():
    """By the point of the step at or before it, however fast steps are, and wherever values were told to belong."""
    calls = [
        Metric(number // 3, STARTED_NS + number, {key: float(number // 3)}) for number, key in enumerate("aabbab" * 9)
    ]
    calls += [Metric(2, STARTED_NS + 100, {"a": 2.0, "b": 2}, during=18), Metric(18, STARTED_NS + 101, {"a": 18.0})]
    points = translate(calls, shows_steps=True)
    steps = {point.time_unix_ns: point.value for point in points if point.instrument is METRICS_STEP}
    values = [point for key in "ab" for point in user_points(points, key)]
    assert len(values) == len(calls) + 1
    for point in values:
        assert point.value == steps[max(time for time in steps if time <= point.time_unix_ns)]


@pytest.mark.parametrize("is_delta", [False, True])
def test_exemplars_are_within_their_points(is_delta: bool):  # noqa: FBT001  # a case
    """A measurement is not older than what counts it, and not younger."""
    translator = PointTranslator(make_run(), is_delta=is_delta)
    for step in range(1, 9):
        give(translator, [StepEnded(step, STARTED_NS + step * 999_999, 333_333)])
        translator.settle(STARTED_NS + 5 * MS if step == 4 else None)
    found = [(point, each) for point in translator.take() for each in point.exemplars]
    assert found
    assert all(point.start_unix_ns <= each.time_unix_ns <= point.time_unix_ns for point, each in found)


MEMORY = Instrument("process.memory.usage", "updowncounter", "By", "")
CPU = Instrument("process.cpu.time", "counter", "s", "")


def observe(translator: PointTranslator, time_unix_ns: int, *seen: Observation) -> list[Point]:
    """Return the points of what the agent has seen of a rank."""
    translator.observe(Observed(time_unix_ns, seen))
    translator.settle()
    instruments = {each.instrument for each in seen}
    return [point for point in translator.take() if point.instrument in instruments]


def test_what_is_seen_of_a_rank_is_shown_once_in_the_order_of_its_times():
    """A reading from before the last record gets the time of the snapshot."""
    translator = PointTranslator(make_run())
    give(translator, [StepEnded(1, STARTED_NS, 10 * S)])
    (early,) = observe(translator, STARTED_NS + 9 * S, Observation(MEMORY, 7))
    (late,) = observe(translator, STARTED_NS + 20 * S, Observation(MEMORY, 8))
    translator.snapshot()
    assert MEMORY not in {point.instrument for point in translator.take()}
    assert (early.value, early.time_unix_ns) == (7, -(-(STARTED_NS + 10 * S) // MS) * MS)
    assert (late.value, late.time_unix_ns) == (8, -(-(STARTED_NS + 20 * S) // MS) * MS)
    assert early.attributes == (("periflow.rank", 0),)


def test_sums_that_are_seen_can_be_told_as_differences():
    """From the second reading on: what was before it, the agent before this one may have told."""
    translator = PointTranslator(make_run(), observes_deltas=True)
    times = [STARTED_NS + each * S for each in (10, 20, 30)]
    taken = [
        observe(translator, time, Observation(CPU, value, (("cpu.mode", "user"),), 5), Observation(MEMORY, 9, (), 5))
        for time, value in zip(times, (2.5, 4.0, 4.0), strict=True)
    ]
    told = [[(point.value, point.is_delta) for point in points] for points in taken]
    assert told == [[(9, False)], [(1.5, True), (9, False)], [(9, False)]]
    assert taken[1][0].start_unix_ns == taken[0][0].time_unix_ns


def test_what_was_done_counts_steps_that_ended_well():
    """By kind; the peak is beside it, where it is known."""
    recorder = Recorder()
    for error in (None, "KeyError", None):
        with recorder.step(error):
            recorder.work(S)
    run = make_run(work=Work((("tokens", 100.0), ("flops", 6e9)), 12e9))
    found = last_values(translate(recorder.inputs, run))
    done = {key: found[key] for key in found if "periflow.work" in str(key)}
    assert done == {
        ("periflow.work.done", "tokens"): 200,
        ("periflow.work.done", "flops"): 12e9,
        "periflow.work.peak": 12e9,
    }
