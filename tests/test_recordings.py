"""What is read from the files of local mode is what was recorded."""

import gzip
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from privileges import UNPRIVILEGED
from recorder import SCRIPTS, STARTED_NS, Recorder, S, Script, StepBegan, give, make_run, play

from periflow_otel import names
from periflow_otel.errors import ConfigurationError
from periflow_otel.exporters.otlp_file import OtlpLogFile, OtlpPointFile, OtlpSpanFile
from periflow_otel.recordings import find_files, read_views
from periflow_otel.records import Earlier, RankRun
from periflow_otel.translate.histograms import ExplicitBuckets
from periflow_otel.translate.log_records import LogTranslator
from periflow_otel.translate.points import PointTranslator
from periflow_otel.translate.spans import SpanTranslator
from periflow_otel.translate.telemetry import Point
from periflow_otel.view.records import RecordFeed
from periflow_otel.view.run_view import RunView

OF_NO_RUN = b"""
{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"x","gauge":{"dataPoints":[{"asDouble":1}]}}]}]}]}
{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"x"}]}]}]}
"""


def record(
    folder: Path,
    recorder: Recorder,
    max_file_bytes: int = 1 << 20,
    *,
    is_delta: bool = False,
    events: str = "span",
    **fields: Any,
) -> RankRun:
    """Write the files of a rank, a few records at a time."""
    run = make_run(mode="local", local_log=str(folder / "train.log"), **fields)
    spans = SpanTranslator(run, has_events=events != "log")
    logs = LogTranslator(run, has_events=events != "span")
    points = PointTranslator(run, shows_steps=True, is_delta=is_delta)
    span_file, point_file, log_file = (each(max_file_bytes) for each in (OtlpSpanFile, OtlpPointFile, OtlpLogFile))
    for i in range(0, len(recorder.inputs), 7):
        give(spans, recorder.inputs[i : i + 7])
        give(points, recorder.inputs[i : i + 7])
        give(logs, recorder.inputs[i : i + 7])
        points.settle()
        span_file.export([(run, span) for span in spans.take()])
        point_file.export([(run, point) for point in points.take()])
        if events != "span":
            log_file.export([(run, record) for record in logs.take()])
    for file in (span_file, point_file, log_file):
        file.close()
    return run


@pytest.mark.parametrize("events", ["log", "both"])
def test_events_are_read_as_what_they_were_written(tmp_path: Path, events: str):
    """From log records, from spans, or from both, each once; what was said beside them changes nothing."""
    recorder = Recorder()
    for _ in range(3):
        with recorder.step():
            recorder.work(S)
        recorder.checkpoint()
    recorder.finish()
    earlier = Earlier(1, last_step=5, last_checkpoint=2, last_seen_unix_ns=STARTED_NS - 5 * S)
    run = record(tmp_path, recorder, events=events, attempt=2, earlier=earlier)
    with (tmp_path / "train.logs.jsonl").open("a") as file:
        file.write('{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"said"}}]}]}]}\n')
    (view,) = read_views(find_files([tmp_path / "train.log"])).values()
    assert view.to_dict()["ranks"][0]["checkpoints"] == from_records(recorder, run)["ranks"][0]["checkpoints"]
    assert [rank.restart_gap_s for rank in view.ranks.values()] == [5.0]


def from_records(recorder: Recorder, run: RankRun) -> dict[str, Any]:
    """Return the view that the same records make without a file."""
    view = RunView(run.run_id)
    feed = RecordFeed(view, run)
    give(feed, recorder.inputs)
    feed.settle()
    return view.to_dict()


def trained(steps: int = 5) -> Recorder:
    """Return a recorder that has taken some steps, with a value in each, and has finished."""
    recorder = Recorder()
    for _ in range(steps):
        with recorder.step():
            recorder.work(S)
            recorder.metric({"loss": 1 / recorder.step_number})
    recorder.finish()
    return recorder


def series(whole: dict[str, Any], kind: str = "metric") -> dict[str, list[tuple[Any, ...]]]:
    """Return steps and values of the series of a kind, by key."""
    return {
        each["key"]: list(zip(each["step"], each["last"], strict=True))
        for each in whole["series"]
        if each["kind"] == kind
    }


@settings(max_examples=60)
@given(script=SCRIPTS, end=st.sampled_from(["finish", "be_killed"]))
def test_files_tell_what_the_records_do(tmp_path_factory: pytest.TempPathFactory, script: Script, end: str):
    """The page while a run lasts and the report afterwards show the same."""
    folder = tmp_path_factory.mktemp("run")
    recorder = Recorder()
    play(script, recorder)
    getattr(recorder, end)()
    run = record(folder, recorder, total_steps=9)
    (view,) = read_views(find_files([folder])).values()
    found, wanted = view.to_dict(), from_records(recorder, run)
    for whole in (found, wanted):
        del whole["run"]["last"], whole["telemetry"], whole["run"]["pace"]
        for rank in whole["ranks"]:
            # Instruments show the state of the last snapshot; spans know no text but the last of a step.
            # Points of a stream are pushed apart by a millisecond.
            del rank["seen"], whole["run"]["seen"]
            for name in ("time", "text", "local_rank", "nonfinite", "step_started", "left_out"):
                del rank[name]
    for kind in ("step", "gap", "start"):
        assert series(found, kind) == series(wanted, kind)
    assert found["run"] == wanted["run"]
    assert found["ranks"] == wanted["ranks"]
    assert found["step_time"] == wanted["step_time"]
    assert series(found) == series(wanted)


def test_values_and_times_come_back(tmp_path: Path):
    """Values at their steps, NaN as a gap, wall time by kind, configuration and name."""
    recorder = trained()
    recorder.inputs.insert(0, StepBegan(0, 0))
    run = record(tmp_path, recorder, resource=(("host.name", "h"), ("periflow.run.name", "first try")))
    (view,) = read_views(find_files([tmp_path / "train.log"])).values()
    found = view.to_dict()
    assert series(found) == {"loss": [(step, pytest.approx(1 / step)) for step in range(1, 6)]}
    assert found["ranks"][0]["time"] == from_records(recorder, run)["ranks"][0]["time"]
    assert (found["ranks"][0]["host"], found["run"]["name"], found["run"]["state"]) == ("h", "first try", "finished")


def test_another_way_to_write_the_same_is_read_the_same(tmp_path: Path):
    """With spaces, numbers as numbers, keys in another order, and a text that looks like what a step may have."""
    recorder = Recorder()
    text = '{"key":"periflow.step.number","value":{"intValue":"7"}},{"key":"periflow.rank","value":{"intValue":"3"}}]'
    for values in ({"loss": 1.0}, {"loss": 0.5, "text": text}, {"loss": math.inf}):
        with recorder.step():
            recorder.work(S)
            recorder.metric(values)
    recorder.finish()
    run = record(tmp_path, recorder)
    (view,) = read_views(find_files([tmp_path])).values()
    for file in find_files([tmp_path]):
        lines = map(reversed_keys, map(json.loads, file.read_text().splitlines()))
        file.write_text("".join(f"{json.dumps(line, indent=None)}\n" for line in lines))
    (again,) = read_views(find_files([tmp_path])).values()
    assert sorted_json(again) == sorted_json(view)
    assert view.ranks[1, 0].text == {"text": text}
    assert series(view.to_dict(), "step") == series(from_records(recorder, run), "step")


def sorted_json(view: RunView) -> bytes:
    """Return a view as text, in which what is not a number is the same as another of its kind."""
    return msgspec.json.encode(view.to_dict(), order="sorted")


def reversed_keys(value: Any) -> Any:
    """Return JSON with the keys of its objects in reverse, and integers that are text as numbers."""
    if isinstance(value, dict):
        return {key: reversed_keys(each) for key, each in reversed(value.items())}
    if isinstance(value, list):
        return list(map(reversed_keys, value))
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,19}", value) else value


def test_a_value_that_is_not_finite_is_a_gap(tmp_path: Path):
    """OTLP JSON has a word for it, and that is read."""
    recorder = Recorder()
    for value in (1.0, math.nan, math.inf, 2.0):
        with recorder.step():
            recorder.work(S)
            recorder.metric({"loss": value})
    record(tmp_path, recorder)
    (view,) = read_views(find_files([tmp_path])).values()
    assert series(view.to_dict())["loss"] == [(1, 1.0), (2, None), (3, None), (4, 2.0)]
    assert [mark["value"] for mark in view.to_dict()["ranks"][0]["nonfinite"]["kept"]] == ["NaN", "Infinity"]


def test_files_that_have_grown_large_are_read_in_order(tmp_path: Path):
    """The numbered ones hold the oldest."""
    record(tmp_path, trained(60), max_file_bytes=10_000)
    assert len(list(tmp_path.iterdir())) > 4
    (view,) = read_views(find_files([tmp_path / "train.traces.jsonl"])).values()
    assert [step for step, _ in series(view.to_dict())["loss"]] == list(range(1, 61))


def test_values_come_from_spans_where_there_are_no_points(tmp_path: Path):
    """Somebody has turned the metrics off, or lost their file."""
    record(tmp_path, trained())
    (tmp_path / "train.metrics.jsonl").unlink()
    (view,) = read_views(find_files([tmp_path])).values()
    assert [step for step, _ in series(view.to_dict())["loss"]] == [1, 2, 3, 4, 5]


def test_attempts_are_told_apart(tmp_path: Path):
    """A restart writes into the same files; what was done again is counted."""
    record(tmp_path, trained())
    again = Recorder(initial_step=2)
    again.now_ns += 100 * S
    for _ in range(4):
        with again.step():
            again.work(S)
            again.metric({"loss": 0.5})
    again.finish()
    earlier = Earlier(1, last_step=5, last_checkpoint=2, last_seen_unix_ns=STARTED_NS + 5 * S)
    record(tmp_path, again, attempt=2, initial_step=2, earlier=earlier, started_unix_ns=STARTED_NS + 100 * S)
    (view,) = read_views(find_files([tmp_path])).values()
    first, second = view.to_dict()["attempts"]
    assert (first["initial_step"], first["ended_step"], first["redone_steps"]) == (0, 5, 0)
    assert (second["initial_step"], second["ended_step"], second["redone_steps"]) == (2, 6, 3)
    assert second["restart_gap"] == 95


def test_sums_since_the_last_point_add_up(tmp_path: Path):
    """Files of another temporality tell the same."""
    recorder = trained(30)
    with recorder.phase("evaluation"):
        recorder.work(S)
    wholes = []
    for is_delta in (False, True):
        folder = tmp_path / str(is_delta)
        folder.mkdir()
        record(folder, recorder, is_delta=is_delta)
        (view,) = read_views(find_files([folder])).values()
        (rank,) = view.to_dict()["ranks"]
        wholes.append(rank["time"])
    assert wholes[0] == pytest.approx(wholes[1])
    assert wholes[0]["step"] == 30


def test_who_was_late_is_a_rank_of_the_last_attempt(tmp_path: Path):
    """What an agent says is of no attempt."""
    record(tmp_path, trained(1))
    run = record(tmp_path, trained(1), attempt=2)
    skew = ExplicitBuckets()
    skew.record(0.5)
    late = Point(names.STEP_SKEW, ((names.LAST_RANK, 0), (names.NODE_RANK, 0)), STARTED_NS + 9 * S, skew.snapshot(), 1)
    file = OtlpPointFile()
    file.export([(run.of_agent(), late)])
    file.close()
    (view,) = read_views(find_files([tmp_path])).values()
    assert [(member, bool(rank.late)) for member, rank in view.ranks.items()] == [((1, 0), False), ((2, 0), True)]


@pytest.mark.parametrize("damage", [b"", b"{", b'{"resourceSpans": 7}\n', b"\xff\n", b"[]\n", OF_NO_RUN])
def test_a_damaged_line_is_left_out(tmp_path: Path, damage: bytes):
    """A disk that was full, a file that is being written, or one of another program."""
    record(tmp_path, trained())
    for file in tmp_path.iterdir():
        file.write_bytes(damage + b"\n" + file.read_bytes()[:-30])
    (view,) = read_views(find_files([tmp_path])).values()
    assert [step for step, _ in series(view.to_dict())["loss"]][:3] == [1, 2, 3]


@pytest.mark.parametrize("names", [["nothing.log"], ["train.log", "missing/train.log"]])
def test_what_is_not_there_is_said(tmp_path: Path, names: Sequence[str]):
    """A wrong name makes no empty report."""
    record(tmp_path, trained())
    with pytest.raises(ConfigurationError, match=f"{names[-1]}.*no OTLP JSON file"):
        find_files([tmp_path / name for name in names])


def test_what_is_no_file_is_left_alone(tmp_path: Path):
    """A pipe would be waited for, a link may lead nowhere, or to itself."""
    record(tmp_path, trained())
    os.mkfifo(tmp_path / "pipe.traces.jsonl")
    (tmp_path / "folder.traces.jsonl").mkdir()
    (tmp_path / "nowhere.traces.jsonl").symlink_to("not-there")
    (tmp_path / "circle.traces.jsonl").symlink_to("circle.traces.jsonl")
    assert {each.name for each in find_files([tmp_path])} == {"train.traces.jsonl", "train.metrics.jsonl"}
    with pytest.raises(ConfigurationError, match="no OTLP JSON file"):
        find_files([tmp_path / "pipe.traces.jsonl"])


def test_a_file_of_somebody_else_is_said_and_left_out(tmp_path: Path):
    """In a folder that many use, what can be read is shown."""
    record(tmp_path, trained())
    other = tmp_path / "other.traces.jsonl"
    other.write_text("")
    other.chmod(0)
    command = [*UNPRIVILEGED, sys.executable, "-m", "periflow_otel", "export"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout.count("loss")) == (0, 5)
    assert ended.stderr == "periflow_otel: other.traces.jsonl cannot be read, and is left out\n"


def test_what_is_compressed_is_read_too(tmp_path: Path):
    """People compress what has grown large; where both are there, they are the same."""
    record(tmp_path, trained())
    plain = read_views(find_files([tmp_path]))["run"].to_dict()
    for file in find_files([tmp_path]):
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    assert all(file.suffix == ".jsonl" for file in find_files([tmp_path]))
    for file in find_files([tmp_path]):
        file.unlink()
    assert read_views(find_files([tmp_path / "train.log"]))["run"].to_dict() == plain


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no gzip" + data])
def test_of_a_compressed_file_that_is_damaged_the_beginning_is_read(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """And it is said which."""
    path = tmp_path / "train.traces.jsonl.gz"
    path.write_bytes(damage(gzip.compress(OF_NO_RUN * 10)))
    assert read_views([path]) == {}
    assert f"{path} is damaged" in caplog.text


def test_steps_whose_spans_are_sampled_out_are_no_trouble(tmp_path: Path):
    """All are counted, and the time of those that are not there is not taken for a clock that was set."""
    recorder = Recorder()
    for _ in range(20):
        with recorder.step():
            recorder.work(2 * S)
    record(tmp_path, recorder)
    traces = tmp_path / "train.traces.jsonl"
    lines = list(map(json.loads, traces.read_bytes().splitlines()))
    for scope in (scope for line in lines for spans in line["resourceSpans"] for scope in spans["scopeSpans"]):
        scope["spans"] = [
            span for number, span in enumerate(scope["spans"]) if number == 0 or span["name"] != names.STEP_SPAN
        ]
    traces.write_text("\n".join(map(json.dumps, lines)))
    view = read_views(find_files([tmp_path]))["run"].to_dict()
    assert 0 < view["ranks"][0]["steps"] < 10
    assert view["run"]["step"] == 20
    assert view["findings"] == []
