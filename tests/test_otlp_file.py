"""The OTLP JSON files hold whole lines that a real Collector takes, whatever happens to disk, file and writer."""

import gc
import json
import math
import os
import stat
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import requests
from disks import file_size_limit
from programs import Collector, Program, free_ports, program, read_points, read_spans, wait_until
from recorder import make_run
from telemetry import metrics_message, traces_message

from periflow_otel import names
from periflow_otel.exporters import Outcome, Verdict, taken
from periflow_otel.exporters.otlp_file import MAX_LINE_BYTES, MAX_OPEN_FILES, OtlpPointFile, OtlpSpanFile
from periflow_otel.records import RankRun
from periflow_otel.translate.telemetry import Event, Exemplar, ExponentialHistogram, Histogram, Link, Point, Span

NOW = 1_700_000_000_000_000_000
RESOURCE = tuple((f"host.attribute.{number}", "x" * 60) for number in range(20))
"""Longer than the 1000 bytes by which a Collector knows a file."""

SpanItems = list[tuple[RankRun, Span]]


def run(log: Path | None, rank: int = 0, attempt: int = 1) -> RankRun:
    """Return a rank that logs to a file."""
    return make_run(
        run_id="job", attempt=attempt, rank=rank, local_rank=rank, world_size=8, mode="local",
        started_unix_ns=attempt, local_log=log and str(log), resource=RESOURCE,
    )  # fmt: skip


def span(number: int = 1, **attributes: str | float) -> Span:
    """Return a span that has everything."""
    return Span(
        "periflow.step",
        (7 << 64) + number,
        number,
        None if number % 2 else 99,
        NOW,
        NOW + number,
        {"periflow.step.number": number, "keys": ["a", "é"], "nan": math.nan, "ok": True, **attributes},
        (Event("periflow.checkpoint.upload", NOW, {"step": number}),),
        (Link(5, 6),),
        None if number % 3 else "ValueError",
    )


def points(rank: int = 0) -> list[Point]:
    """Return points of every kind, among them values that JSON has no number for."""
    labels = ((names.RANK, rank),)
    values = (0.5, 7, math.nan, math.inf, -math.inf, 1 << 62)
    exemplars = (Exemplar(NOW, 0.3, 11, 12),)
    explicit = Histogram(3, 1.5, 0.1, 1.0, (0.5, 1.0), (1, 1, 1))
    exponential = ExponentialHistogram(6, 2.5, 0.0, 1.0, 3, 1, -4, (2, 0, 3))
    return [
        *(Point(names.user_instrument("loss"), labels, NOW + i, value) for i, value in enumerate(values)),
        Point(names.STEP_COMPLETED, (*labels, ("periflow.step.outcome", "ok")), NOW, 3, NOW - 9),
        Point(names.STEP_DURATION, labels, NOW, explicit, NOW - 9, exemplars),
        Point(names.STEP_GAP, labels, NOW, exponential, NOW - 9, exemplars, is_delta=True),
    ]


def spans(log: Path | None, count: int = 1, rank: int = 0) -> SpanItems:
    """Return spans of a rank, all different."""
    return [(run(log, rank), span(1000 * rank + number)) for number in range(1, count + 1)]


def lines(*paths: Path) -> list[Any]:
    """Return what the whole lines of files hold; every line must be whole, and JSON in the strict sense."""
    content = b"".join(path.read_bytes() for path in paths)
    assert content[-1:] in (b"\n", b"")
    return [json.loads(line, parse_constant=pytest.fail) for line in content.splitlines()]


def steps(*paths: Path) -> list[int]:
    """Return the numbers of the spans in files, in order."""
    return [
        int(each["attributes"][0]["value"]["intValue"])
        for line in lines(*paths)
        for each in line["resourceSpans"][0]["scopeSpans"][0]["spans"]
    ]


def as_text(received: Iterable[Any]) -> list[str]:
    """Return what a receiver got as text, in any order: NaN is equal to itself then."""
    items = list(received)
    for each in items:
        if getattr(each, "kind", "") == "exponential_histogram":
            each.value.negative.SetInParent()  # which the Collector does even where nothing is negative
    return sorted(map(repr, items))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return the metric log beside which the files are."""
    folder = tmp_path / "logs"
    folder.mkdir()
    return folder / "train.log"


@pytest.fixture
def span_file() -> Iterator[OtlpSpanFile]:
    """Return an exporter of spans."""
    with closing(OtlpSpanFile()) as exporter:
        yield exporter


class FileReader(Program):
    """A Collector that reads OTLP JSON files and sends what it finds, and nothing else, to another Collector."""

    def __init__(self, folder: Path, pattern: Path, forward_to: str) -> None:
        """Start it."""
        (port,) = free_ports(1)
        pipeline = {"receivers": ["otlp_json_file"], "exporters": ["otlp_http"]}
        configuration = {
            "receivers": {
                "otlp_json_file": {"include": [str(pattern)], "start_at": "beginning", "include_file_name": False}
            },
            "exporters": {"otlp_http": {"endpoint": forward_to, "compression": "none"}},
            "extensions": {"health_check": {"endpoint": f"127.0.0.1:{port}"}},
            "service": {
                "extensions": ["health_check"],
                "telemetry": {"metrics": {"level": "none"}},
                "pipelines": {"traces": pipeline, "metrics": pipeline},
            },
        }
        (folder / "reader.json").write_text(json.dumps(configuration))
        super().__init__([program("otelcol"), "--config", str(folder / "reader.json")], folder / "reader.log", [port])


def test_collector_reads_the_spans_of_all_ranks(log: Path, tmp_path: Path, collector: Collector):
    """Its file receiver finds every file, also of ranks that share a resource, numbered ones, and large batches."""
    items = [item for rank in range(3) for item in spans(log.with_name(f"train_{rank}.log"), 4, rank)]
    items += [(run(log, 9), span(9000 + number, **{f"m{i}": 0.123456789 for i in range(40)})) for number in range(512)]
    with closing(OtlpSpanFile(max_file_bytes=1_000_000)) as exporter:
        assert exporter.export(items) == taken(len(items))
    with FileReader(tmp_path, log.with_name("*.jsonl"), collector.http_endpoint):
        wait_until(lambda: len(collector.spans()) >= len(items), 30, "all spans have arrived")
    assert as_text(collector.spans()) == as_text(read_spans(traces_message(items)))


def test_collector_reads_the_points_of_all_ranks(log: Path, tmp_path: Path, collector: Collector):
    """Points of every kind come through its file receiver as they are, NaN and infinity included."""
    items = [(run(log.with_name(f"train_{rank}.log"), rank), point) for rank in range(3) for point in points(rank)]
    with closing(OtlpPointFile()) as exporter:
        assert exporter.export(items) == taken(len(items))
    with FileReader(tmp_path, log.with_name("*.jsonl"), collector.http_endpoint):
        wait_until(lambda: len(collector.points()) >= len(items), 30, "all points have arrived")
    assert as_text(collector.points()) == as_text(read_points(metrics_message(items)))


def test_line_is_a_request(log: Path, collector: Collector):
    """Posted unchanged, each line is taken as it would be from the network."""
    span_items, point_items = spans(log, 5), [(run(log), point) for point in points()]
    with closing(OtlpSpanFile()) as span_file, closing(OtlpPointFile()) as point_file:
        span_file.export(span_items)
        point_file.export(point_items)
    for signal in ("traces", "metrics"):
        for line in log.with_name(f"train.{signal}.jsonl").read_bytes().splitlines():
            headers = {"Content-Type": "application/json"}
            answer = requests.post(f"{collector.http_endpoint}/v1/{signal}", data=line, headers=headers, timeout=10)
            assert (answer.status_code, answer.json()) == (200, {"partialSuccess": {}})
    assert as_text(collector.spans()) == as_text(read_spans(traces_message(span_items)))
    assert as_text(collector.points()) == as_text(read_points(metrics_message(point_items)))


def test_ids_are_hexadecimal(log: Path, span_file: OtlpSpanFile):
    """Trace and span ids are as people and tools write them."""
    span_file.export([(run(log), span(2))])
    (line,) = lines(log.with_name("train.traces.jsonl"))
    written = line["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    assert written["traceId"] == "00000000000000070000000000000002"
    assert (written["spanId"], written["parentSpanId"]) == ("0000000000000002", "0000000000000063")


def test_batch_of_a_rank_is_one_line(log: Path, span_file: OtlpSpanFile):
    """Items that come together stay together, in order."""
    span_file.export(spans(log, 5))
    path = log.with_name("train.traces.jsonl")
    assert len(lines(path)) == 1
    assert steps(path) == [1, 2, 3, 4, 5]


def test_large_batch_is_cut_into_lines(log: Path, span_file: OtlpSpanFile):
    """No line is longer than receivers take, every item is there once, and one that is longer is alone."""
    items = [(run(log), span(number, text="x" * 4000)) for number in range(600)]
    attributes = {f"m{i}": "x" * 4000 for i in range(300)}
    assert span_file.export([*items, (run(log), span(600, **attributes)), (run(log), span(601))]) == taken(602)
    path = log.with_name("train.traces.jsonl")
    lengths = sorted(map(len, path.read_bytes().splitlines()))
    assert lengths[-1] > MAX_LINE_BYTES >= lengths[-2]
    assert steps(path) == list(range(602))


def test_ranks_have_files_of_their_own(log: Path, span_file: OtlpSpanFile):
    """Each rank finds its telemetry beside its log, whatever the order in which it comes."""
    logs = [log.with_name(f"train_{rank}.log") for rank in range(3)]
    items = [(run(logs[rank], rank), span(10 * rank + number)) for number in range(3) for rank in range(3)]
    assert span_file.export(items) == taken(9)
    assert [steps(each.with_suffix(".traces.jsonl")) for each in logs] == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]


def test_files_of_many_ranks_are_not_all_open(log: Path, span_file: OtlpSpanFile):
    """A node with many ranks does not run out of descriptors, and no line is missing."""
    gc.collect()  # what other tests have left open is closed now, and not meanwhile
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(2):
        items = [(run(log.with_name(f"{rank}.log"), rank), span(number)) for rank in range(MAX_OPEN_FILES + 10)]
        assert span_file.export(items) == taken(len(items))
    assert len(list(Path("/proc/self/fd").iterdir())) - before == MAX_OPEN_FILES
    assert {tuple(steps(path)) for path in log.parent.iterdir()} == {(0, 1)}


def test_rank_without_a_log_has_no_file(span_file: OtlpSpanFile, tmp_path: Path):
    """In cloud mode nothing is written, and nothing is held back."""
    assert span_file.export(spans(None, 3)) == taken(3)
    assert list(tmp_path.iterdir()) == []


def test_log_of_any_name_has_its_files(tmp_path: Path, span_file: OtlpSpanFile):
    """Only the ending ``.log`` is taken off."""
    span_file.export([(run(tmp_path / "train.txt"), span())])
    assert [path.name for path in tmp_path.iterdir()] == ["train.txt.traces.jsonl"]


def test_next_attempt_appends(log: Path):
    """A run that is restarted goes on in the file that is there."""
    for attempt in (1, 2):
        with closing(OtlpSpanFile()) as exporter:
            exporter.export([(run(log, attempt=attempt), span(attempt))])
    assert steps(log.with_name("train.traces.jsonl")) == [1, 2]


def test_large_file_gets_a_number(log: Path):
    """Files do not grow without end, nothing is deleted, and the numbers tell the order."""
    with closing(OtlpSpanFile(max_file_bytes=10_000)) as exporter:
        for item in spans(log, 20):
            assert exporter.export([item]) == taken(1)
    numbered = [log.with_name(f"train.traces.{number}.jsonl") for number in range(1, len(list(log.parent.iterdir())))]
    assert len(numbered) > 2
    assert all(path.stat().st_size <= 10_000 for path in log.parent.iterdir())
    assert steps(*numbered, log.with_name("train.traces.jsonl")) == list(range(1, 21))


def test_number_that_is_taken_is_left_alone(log: Path):
    """What has the next number already, even a dangling link, is not replaced."""
    log.with_name("train.traces.1.jsonl").write_text("mine\n")
    log.with_name("train.traces.2.jsonl").symlink_to("nowhere")
    log.with_name("train.traces.3.jsonl.gz").write_text("compressed since\n")
    with closing(OtlpSpanFile(max_file_bytes=1)) as exporter:
        for item in spans(log, 2):
            exporter.export([item])
    assert log.with_name("train.traces.1.jsonl").read_text() == "mine\n"
    assert log.with_name("train.traces.2.jsonl").is_symlink()
    assert steps(log.with_name("train.traces.4.jsonl")) == [1]


def test_line_larger_than_a_file_may_be_is_written(log: Path):
    """A bound that is too small for a line does not keep it out, and no empty file is numbered."""
    with closing(OtlpSpanFile(max_file_bytes=1)) as exporter:
        assert exporter.export(spans(log, 3)) == taken(3)
    assert [path.name for path in log.parent.iterdir()] == ["train.traces.jsonl"]


def test_torn_line_of_a_killed_writer_is_cut(log: Path):
    """Wherever a writer was killed, its half line goes: it comes again, as it was not confirmed."""
    path = log.with_name("train.traces.jsonl")
    with closing(OtlpSpanFile()) as exporter:
        for item in spans(log, 2):
            exporter.export([item])
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for size in (*range(20), *range(20, len(content), 97), first - 1, first, first + 1, len(content) - 1):
        path.write_bytes(content[:size])
        with closing(OtlpSpanFile()) as exporter:
            exporter.export([(run(log), span(3))])
        assert steps(path) == ([1, 3] if size >= first else [3])


def test_long_torn_line_is_cut(log: Path, span_file: OtlpSpanFile):
    """The start of the torn line is found however far back it is."""
    path = log.with_name("train.traces.jsonl")
    path.write_bytes(b"{}\n" + b"x" * 200_000)
    span_file.export([(run(log), span(3))])
    first, second = lines(path)
    assert (first, "resourceSpans" in second) == ({}, True)


def test_full_disk_tears_no_line(log: Path, span_file: OtlpSpanFile):
    """Wherever the disk ends, only whole lines are there, the cause is told, and it goes on when there is room."""
    path = log.with_name("train.traces.jsonl")
    first, second = spans(log, 2)
    span_file.export([first])
    size = path.stat().st_size
    for room in (0, 1, 100, size - 100):
        with file_size_limit(size + room):
            outcome = span_file.export([second])
        assert outcome == Outcome(Verdict.LATER, f"cannot write {path}: File too large")
        assert steps(path) == [1]
    assert span_file.export([second]) == taken(1)
    assert steps(path) == [1, 2]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_really_full_disk_tears_no_line(log: Path, span_file: OtlpSpanFile):
    """On a file system without room the same holds, and when there is room again nothing is missing."""
    with ExitStack() as stack:
        mount = [program("mount"), "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(log.parent)]
        mounted = subprocess.run(mount, capture_output=True, check=False)
        if mounted.returncode:
            pytest.skip("no file system can be mounted here")
        stack.callback(subprocess.run, [program("umount"), "--lazy", str(log.parent)], check=True)
        ballast, path = log.with_name("ballast"), log.with_name("train.traces.jsonl")
        ballast.write_bytes(b"x" * 50_000)
        left = spans(log, 8)
        while (outcome := span_file.export(left[:1])).done:
            left = left[1:]
        assert outcome.message == f"cannot write {path}: No space left on device"
        assert steps(path) == list(range(1, 9 - len(left)))
        ballast.unlink()
        assert span_file.export(left) == taken(len(left))
        assert steps(path) == list(range(1, 9))
        span_file.close()


def test_fault_of_one_rank_keeps_what_came_before(log: Path, span_file: OtlpSpanFile):
    """The outcome counts the items up to the line that could not be written."""
    items = [*spans(log, 3), *spans(log.with_name("gone") / "a.log", 2, rank=1), *spans(log, 1)]
    outcome = span_file.export(items)
    assert outcome.done == 3
    assert outcome.message.endswith("gone/a.traces.jsonl: No such file or directory")


def test_file_is_for_its_owner_alone(log: Path, span_file: OtlpSpanFile):
    """Nobody else reads what was trained, whatever the umask."""
    umask = os.umask(0)
    try:
        span_file.export(spans(log))
    finally:
        os.umask(umask)
    assert stat.S_IMODE(log.with_name("train.traces.jsonl").stat().st_mode) == 0o600


def test_symlink_is_refused(log: Path, tmp_path: Path, span_file: OtlpSpanFile):
    """A link that somebody put there does not lead the lines elsewhere."""
    path, target = log.with_name("train.traces.jsonl"), tmp_path / "target"
    target.touch()
    path.symlink_to(target)
    outcome = span_file.export(spans(log))
    assert (outcome.done, outcome.message.startswith(f"cannot write {path}: ")) == (0, True)
    assert target.read_bytes() == b""


def test_pipe_is_refused(log: Path, span_file: OtlpSpanFile):
    """What cannot be cut is not written to, and opening it waits for nobody."""
    path = log.with_name("train.traces.jsonl")
    os.mkfifo(path)
    assert span_file.export(spans(log)) == Outcome(Verdict.LATER, f"cannot write {path}: not a regular file")


def test_deleted_file_comes_back(log: Path, span_file: OtlpSpanFile):
    """Lines do not go to a file that nobody can find any more."""
    path = log.with_name("train.traces.jsonl")
    first, second = spans(log, 2)
    span_file.export([first])
    path.unlink()
    assert span_file.export([second]) == taken(1)
    assert steps(path) == [2]


def test_file_that_was_moved_away_keeps_its_lines(log: Path):
    """After a move nothing is lost: lines follow the file until it is full, then a new one begins."""
    path, moved = log.with_name("train.traces.jsonl"), log.with_name("moved")
    items = spans(log, 4)
    with closing(OtlpSpanFile(max_file_bytes=8_000)) as exporter:
        exporter.export(items[:1])
        path.rename(moved)
        assert [exporter.export([item]) for item in items[1:]] == [taken(1)] * 3
    assert (steps(moved), steps(path)) == ([1, 2], [3, 4])


def test_file_of_another_writer_is_not_numbered(log: Path):
    """When a file that was moved away is full, lines go on in the one that somebody has put in its place."""
    path = log.with_name("train.traces.jsonl")
    with closing(OtlpSpanFile(max_file_bytes=1)) as exporter:
        exporter.export(spans(log, 2))
        path.rename(log.with_name("moved"))
        with closing(OtlpSpanFile()) as other:
            other.export([(run(log, attempt=2), span(3))])
        exporter.export([(run(log), span(4))])
    assert steps(path) == [3, 4]
    assert {each.name for each in log.parent.iterdir()} == {path.name, "moved"}
