"""What a person wants to know of a run: bounded, and with nothing that stands out smoothed away."""

import json
import logging
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder import SCRIPTS, STARTED_NS, Recorder, S, Script, StepBegan, give, make_run, play

from periflow_otel.otlp.json import logs_json, metrics_json, traces_json
from periflow_otel.records import Earlier, LogLine, Metric, StepEnded, Work
from periflow_otel.translate import as_is
from periflow_otel.translate.log_records import LogTranslator
from periflow_otel.translate.points import PointTranslator
from periflow_otel.translate.spans import SpanTranslator
from periflow_otel.view.gpu_peaks import peak_of
from periflow_otel.view.heat import bins_of, quantile
from periflow_otel.view.log_entries import MAX_CHARS, MAX_KEPT
from periflow_otel.view.otlp import OtlpFeed
from periflow_otel.view.rank_view import MAX_MARKS, Marks
from periflow_otel.view.records import RecordFeed
from periflow_otel.view.run_view import RunView
from periflow_otel.view.series import MAX_ROWS, MIN_ROWS, Series

MS = 1_000_000


def view_of(recorder: Recorder, **fields: Any) -> dict[str, Any]:
    """Return what a view says of what one rank has recorded."""
    view = RunView("run")
    feed = RecordFeed(view, make_run(**fields))
    give(feed, recorder.inputs)
    feed.settle()
    return view.to_dict()


def series(whole: dict[str, Any], kind: str = "metric", key: str = "", rank: int = 0) -> dict[str, Any]:
    """Return the one series of a kind, key and rank."""
    (found,) = [each for each in whole["series"] if (each["kind"], each["key"], each["rank"]) == (kind, key, rank)]
    return found


def drawn(steps: list[int], values: list[float], chunk: int = 512, max_rows: int = MAX_ROWS) -> Series:
    """Return a series of values, added in chunks."""
    made = Series()
    for i in range(0, len(steps), chunk):
        part = slice(i, i + chunk)
        made.extend(steps[part], list(map(float, steps[part])), values[part], max_rows, 1)
    return made


VALUES = st.lists(st.tuples(st.integers(0, 5000), st.floats(width=32)), max_size=300)


@given(VALUES, st.integers(1, 8), st.sampled_from([1, 4, 32]))
def test_rows_are_what_the_values_in_them_are(pairs: list[tuple[int, float]], chunk: int, max_rows: int):
    """However often rows were joined, and in whatever order values came, each tells of exactly its own steps."""
    made = drawn([step for step, _ in pairs], [value for _, value in pairs], chunk, max_rows)
    assert len(made) <= max_rows
    rows: dict[int, list[float]] = {}
    for step, value in pairs:
        rows.setdefault(step // made.width, []).append(value)
    assert [step // made.width for step in made.step] == sorted(rows)
    for i, number in enumerate(sorted(rows)):
        finite = [value for value in rows[number] if math.isfinite(value)]
        assert made.count[i] == len(finite)
        assert made.nonfinite[i] == len(rows[number]) - len(finite)
        assert made.step[i] == max(step for step, _ in pairs if step // made.width == number)
        if finite:
            assert (made.low[i], made.high[i]) == (min(finite), max(finite))
            assert made.total[i] == pytest.approx(math.fsum(finite), rel=1e-6, abs=1e32)


def test_one_spike_among_a_million_values_is_there():
    """No down-sampling hides the step that somebody looks for."""
    values = [1.0] * 1_000_000
    values[654_321] = 9.0
    made = drawn(list(range(1, 1_000_001)), values, chunk=5_000)
    assert len(made) <= MAX_ROWS
    row = next(i for i, high in enumerate(made.high) if high == 9)
    assert row == 654_322 // made.width - 1 // made.width
    assert made.last[-1] == 1


def test_a_sparse_curve_keeps_every_value():
    """An evaluation every thousand steps is exact, however long the run is."""
    steps = list(range(1000, 400_001, 1000))
    made = drawn(steps, [float(step) for step in steps])
    assert (made.width, list(made.last)) == (1, [float(step) for step in steps])


@given(VALUES, st.data())
def test_rows_that_have_changed_make_the_whole(pairs: list[tuple[int, float]], data: st.DataObject):
    """Who asks for what is new, again and again, has what somebody has who asks once."""
    made, seen, revision = Series(), [], 0
    rest = pairs
    while rest:
        now, rest = rest[: (size := data.draw(st.integers(1, 60)))], rest[size:]
        made.extend([s for s, _ in now], [float(s) for s, _ in now], [v for _, v in now], MIN_ROWS, revision + 1)
        start = made.since(revision)
        columns = made.to_dict(start)
        seen[start:] = zip(columns["step"], columns["last"], strict=True)
        revision += 1
    columns = made.to_dict()
    assert seen == list(zip(columns["step"], columns["last"], strict=True))


def test_nan_is_a_gap_and_not_hidden():
    """A loss that is not a number interrupts the curve, and its step is noted."""
    recorder = Recorder()
    for value in (1.0, math.nan, 3.0):
        with recorder.step():
            recorder.work(S)
            recorder.metric({"loss": value})
    whole = view_of(recorder)
    columns = ("last", "min", "max", "mean")
    assert [series(whole, key="loss")[name] for name in columns] == [[1.0, None, 3.0]] * 4
    assert series(whole, key="loss")["nonfinite"] == [0, 1, 0]
    assert [mark["step"] for mark in whole["ranks"][0]["nonfinite"]["kept"]] == [2]
    assert whole["ranks"][0]["nonfinite"]["by_key"] == {"loss": 1}


@given(st.permutations(range(3 * MAX_MARKS)))
@settings(max_examples=10)
def test_the_first_and_the_latest_marks_are_kept(times: list[int]):
    """In whatever order they are told: metrics are put away one after the other."""
    marks = Marks()
    for time in times:
        marks.add(step=time, time=float(time))
    half = MAX_MARKS // 2
    assert [mark["step"] for mark in marks.kept] == [*range(half), *range(len(times) - half, len(times))]
    assert marks.count == len(times)


def test_values_are_at_their_steps():
    """Also what was told to be of an earlier step, and what comes after the last one."""
    recorder = Recorder()
    for _ in range(3):
        with recorder.step():
            recorder.work(S)
            recorder.metric({"loss": float(recorder.step_number)})
    recorder.metric({"eval": 0.5}, step=2)
    recorder.metric({"deep": {"a": 1, "b": {"c": True}}, "note": "warm", "list": [1], "none": None})
    whole = view_of(recorder)
    assert series(whole, key="loss")["step"] == [1, 2, 3]
    assert series(whole, key="eval")["step"] == [2]
    assert series(whole, key="deep.a")["last"] == [1.0]
    assert series(whole, key="deep.b.c")["last"] == [1.0]
    assert whole["ranks"][0]["text"] == {"note": "warm"}
    assert whole["run"]["last"] == {"loss": 3.0, "eval": 0.5, "deep.a": 1.0, "deep.b.c": 1.0}


@given(SCRIPTS)
def test_it_does_not_matter_when_records_are_put_away(script: Script):
    """One by one, as where somebody looks all the time, or all at once, as where nobody does."""
    recorder = Recorder()
    play(script, recorder)
    at_once, one_by_one = RunView("run"), RunView("run")
    feed = RecordFeed(at_once, make_run())
    give(feed, recorder.inputs)
    feed.settle()
    feed = RecordFeed(one_by_one, make_run())
    for each in recorder.inputs:
        feed.feed([as_is.StepBegan(*each) if isinstance(each, StepBegan) else each])
        feed.settle()
    assert rows_of(at_once) == rows_of(one_by_one)
    ((_, rank),), ((_, other),) = at_once.ranks.items(), one_by_one.ranks.items()
    kinds = ("durations", "gaps", "time", "phases", "phase_counts")
    assert [rank.sums()[kind] for kind in kinds] == [other.sums()[kind] for kind in kinds]
    for name in ("steps", "ended_step", "last_step", "text", "checkpoints", "errors", "nonfinite_by_key"):
        assert getattr(rank, name) == getattr(other, name), name
    assert rank.seen_s == pytest.approx(other.seen_s, rel=0, abs=1e-6)


def rows_of(view: RunView) -> list[dict[str, Any]]:
    """Return all series by name, without means, which differ by how they were rounded."""
    found = sorted(view.to_dict()["series"], key=lambda each: (each["kind"], each["key"]))
    return [{name: each[name] for name in each if name != "mean"} for each in found]


def test_a_gap_that_is_not_known_is_none():
    """As between two halves of a run in a notebook: it is not the shortest one."""
    view = RunView("run")
    feed = RecordFeed(view, make_run())
    feed.feed(StepEnded(step, STARTED_NS + step * S, S // 2, None, gap) for step, gap in ((1, None), (2, S), (3, None)))
    feed.settle()
    assert view.to_dict()["ranks"][0]["gap"]["usual"] == pytest.approx(1, rel=0.05)


def test_the_wall_time_is_that_of_the_instruments():
    """Steps, gaps and phases add up as ``periflow.time`` does."""
    recorder = Recorder()
    recorder.work(2 * S)
    for _ in range(4):
        with recorder.phase("data"):
            recorder.work(S)
        with recorder.step():
            recorder.work(3 * S)
        recorder.work(S // 2)
    recorder.finish()
    whole = view_of(recorder)
    assert whole["ranks"][0]["time"] == {kind: ns / 1e9 for kind, ns in recorder.spent_ns.items()}
    assert whole["ranks"][0]["phases"] == {"data": {"count": 4, "seconds": 4.0}}
    assert whole["run"]["state"] == "finished"
    assert series(whole, "gap")["last"] == [1.5, 1.5, 1.5]


def test_time_left_is_what_the_pace_makes_of_the_rest():
    """Ten steps in ten seconds, ten to go."""
    recorder = Recorder()
    for _ in range(10):
        with recorder.step():
            recorder.work(S)
    run = view_of(recorder, total_steps=20)["run"]
    assert (run["state"], run["step"], run["pace"], run["seconds_left"]) == ("running", 10, 1.0, 10.0)


WORK = Work((("tokens", 100.0), ("flops", 6e9)), 12e9)


def two_seconds_of_steps() -> Recorder:
    """Return what a rank has recorded that takes four steps in two seconds, one of which fails."""
    recorder = Recorder()
    for error in (None, None, "KeyError", None):
        with recorder.step(error):
            recorder.work(S // 2)
    return recorder


def test_work_is_shown_by_the_second():
    """Of all that ranks do in a step at the pace of now, and as a share of what their devices can do."""
    run = view_of(two_seconds_of_steps(), work=WORK)["run"]
    assert (run["pace"], run["work"], run["utilization"]) == (2, {"tokens": 200, "flops": 12e9}, 1)


@pytest.mark.parametrize("is_delta", [False, True])
def test_work_is_the_same_from_files(is_delta: bool):  # noqa: FBT001  # a parameter of pytest
    """Spans and points say what records do."""
    recorder, run, feed = two_seconds_of_steps(), make_run(work=WORK), OtlpFeed()
    spans, points = SpanTranslator(run), PointTranslator(run, is_delta=is_delta)
    for half in (recorder.inputs[:4], recorder.inputs[4:]):
        give(spans, half)
        give(points, half)
        points.snapshot()
        feed.feed(traces_json((run, each) for each in spans.take()))
        feed.feed(metrics_json((run, each) for each in points.take()))
    summary = feed.views["run"].summary()
    assert (summary["work"], summary["utilization"]) == ({"tokens": 200, "flops": 12e9}, 1)


def test_without_a_peak_there_is_no_share():
    """And no work where none was told."""
    run = view_of(two_seconds_of_steps(), work=Work((("flops", 6e9),)))["run"]
    assert (run["work"], run["utilization"]) == ({"flops": 12e9}, None)
    assert view_of(two_seconds_of_steps())["run"]["work"] == {}


def test_a_killed_rank_was_in_a_step():
    """The step that was open is told, and the run has ended."""
    recorder = Recorder()
    with recorder.step():
        recorder.work(S)
    recorder.start_step()
    recorder.work(S)
    recorder.be_killed()
    whole = view_of(recorder)
    assert whole["run"]["state"] == "killed"
    assert whole["ranks"][0]["errors"]["kept"] == [{"step": 2, "time": (STARTED_NS + 2 * S) // MS / 1000,
                                                     "error": "killed"}]  # fmt: skip
    assert whole["ranks"][0]["steps"] == 1


def test_steps_that_are_done_again_are_counted():
    """An attempt that goes on from step 2 of one that had come to 5 does three of them again."""
    recorder = Recorder(initial_step=2)
    for _ in range(6):
        with recorder.step():
            recorder.work(S)
    earlier = Earlier(1, last_step=5, last_checkpoint=2, last_seen_unix_ns=STARTED_NS - 7 * S)
    (attempt,) = view_of(recorder, attempt=2, initial_step=2, earlier=earlier)["attempts"]
    assert (attempt["redone_steps"], attempt["restart_gap"]) == (3, 7.0)


def test_the_view_is_bounded():
    """Ten times the steps, checkpoints and NaN take no more space."""
    sizes = []
    for steps in (5_000, 50_000):
        view = RunView("run")
        feed = RecordFeed(view, make_run())
        for step in range(1, steps + 1):
            start = STARTED_NS + step * S
            feed.feed([StepEnded(step, start, S // 2, None, S // 2), Metric(step, start, {"loss": math.nan})])
        feed.settle()
        whole = view.to_dict()
        assert len(whole["ranks"][0]["nonfinite"]["kept"]) == MAX_MARKS
        sizes.append(len(json.dumps(whole)))
    assert sizes[1] < 1.3 * sizes[0]


def test_many_series_share_the_space():
    """With hundreds of keys each has fewer rows."""
    view = RunView("run", max_total_rows=10_000)
    feed = RecordFeed(view, make_run())
    for step in range(1, 1001):
        feed.feed([Metric(step, STARTED_NS + step * S, {f"key{i}": 0.5 for i in range(100)})])
    feed.settle()
    whole = view.to_dict()
    assert sum(len(each["step"]) for each in whole["series"]) <= 10_000


@given(st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=400))
def test_percentiles_are_right_to_within_a_bin(durations: list[float]):
    """Half a bin is 5 %."""
    bins = Counter(bins_of(durations))
    for share in (0.5, 0.95, 1.0):
        exact = sorted(durations)[max(0, math.ceil(share * len(durations)) - 1)]
        assert quantile(bins, share) == pytest.approx(exact, rel=0.06)


def logged(level: int, message: str, number: int = 0, step: int | None = 1) -> LogLine:
    """Return what a script has logged."""
    time_ns = STARTED_NS + number * MS
    name = logging.getLevelName(level)
    return LogLine(time_ns, time_ns, step, 0, b"", "data", level, name, message, "/a.py", 1, "load", 1, "MainThread")


def test_warnings_and_errors_are_kept_with_their_step():
    """What is no warning is not; who said it, and in which step, is."""
    recorder = Recorder()
    recorder.inputs += [logged(20, "all is well"), logged(30, "slow"), logged(40, "broken", 1, step=None)]
    logs = view_of(recorder, rank=3)["logs"]
    assert (logs["warnings"], logs["errors"]) == (1, 1)
    assert [(each["rank"], each["step"], each["level"], each["message"]) for each in logs["kept"]] == [
        (3, 1, "WARNING", "slow"), (3, None, "ERROR", "broken"),
    ]  # fmt: skip


def test_many_warnings_do_not_push_out_an_error():
    """Of each the latest are kept, and long messages are cut."""
    recorder = Recorder()
    recorder.inputs.append(logged(40, "the only one"))
    recorder.inputs += [logged(30, f"{number} {'x' * 1000}", number) for number in range(1, 1001)]
    logs = view_of(recorder)["logs"]
    assert logs["warnings"] == 1000
    assert logs["kept"][0]["message"] == "the only one"
    assert [each["message"].split()[0] for each in logs["kept"][1:]] == [str(n) for n in range(1001 - MAX_KEPT, 1001)]
    assert max(len(each["message"]) for each in logs["kept"]) == MAX_CHARS + 1


def test_files_tell_what_was_logged_as_records_do():
    """The same lines, from log records as OTLP JSON."""
    recorder, run = Recorder(), make_run()
    recorder.inputs += [logged(30, "slow"), logged(20, "nothing"), logged(40, "broken at https://a:secret@b/", 1)]
    translator = LogTranslator(run)
    translator.feed(recorder.inputs)
    feed = OtlpFeed()
    feed.feed(logs_json([(run, record) for record in translator.take()]))
    found = feed.views[run.run_id].to_dict()["logs"]
    assert found == view_of(recorder)["logs"]
    assert "secret" not in str(found)


def test_what_was_logged_in_earlier_attempts_stays():
    """In front of what this one has said."""
    views = []
    for attempt, message in ((1, "first"), (2, "second")):
        view = RunView("run")
        feed = RecordFeed(view, make_run(attempt=attempt))
        feed.feed([logged(40, message, attempt)])
        feed.settle()
        views.append(view)
    views[1].add_earlier(views[0])
    logs = views[1].to_dict()["logs"]
    assert (logs["errors"], [each["message"] for each in logs["kept"]]) == (2, ["first", "second"])


@pytest.mark.parametrize(
    ("model", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 835), ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 836), ("NVIDIA A100-SXM4-80GB", 312), ("A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA B200", 2250), ("NVIDIA GB200", 2500), ("NVIDIA GH200 480GB", 990), ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181), ("NVIDIA L4", 121), ("NVIDIA A10", 125), ("NVIDIA A10G", None), ("NVIDIA A30", 165),
        ("NVIDIA RTX A4000", None), ("NVIDIA H1000", None), ("", None),
    ],
)  # fmt: skip
def test_the_peak_of_a_gpu_is_known_by_its_name(model: str, tflops: float | None):
    """As its driver says it; of one that only looks like it, nothing."""
    assert peak_of(model) == (tflops and tflops * 1e12)


@pytest.mark.parametrize(
    ("gpus", "given", "expected"),
    [
        ([{"hw.id": "a", "hw.model": "NVIDIA H100 PCIe"}], None, 0.1 / 0.756),
        (
            [{"hw.id": "a", "hw.model": "NVIDIA H100 PCIe"}, {"hw.id": "b", "hw.model": "NVIDIA H100 PCIe"}],
            None,
            0.1 / 1.512,
        ),
        ([{"hw.id": "a", "hw.model": "NVIDIA H100 PCIe"}], 1e15, 0.1),
        ([{"hw.id": "a", "hw.model": "NVIDIA H100 PCIe", "hw.parent": "b"}], None, None),
        ([{"hw.id": "a", "hw.model": "unheard of"}], None, None),
        ([], None, None),
    ],
    ids=["known", "two of them", "given", "a part of one", "unknown", "none"],
)
def test_utilization_needs_no_peak_where_the_gpu_is_known(
    gpus: list[dict[str, str]], given: float | None, expected: float | None
):
    """Of all GPUs of a rank together; what the script says of the peak comes first."""
    recorder = Recorder()
    for _ in range(10):
        with recorder.step():
            recorder.work(S)
    view = RunView("run")
    feed = RecordFeed(view, make_run(work=Work((("flops", 1e14),), given)))
    give(feed, recorder.inputs)
    feed.settle()
    for gpu in gpus:
        attributes = tuple({"periflow.rank": 0, **gpu}.items())
        view.ranks[1, 0].add_of_machine("hw.gpu.memory.limit", attributes, STARTED_NS / 1e9, 1.0, is_sum=False)
    assert view.summary()["utilization"] == (expected and pytest.approx(expected, rel=1e-6))
