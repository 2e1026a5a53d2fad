"""The metric log holds what ``periflow_sdk`` would have written, in whole lines."""

import json
import math
import os
import stat
from pathlib import Path

import pytest
from disks import file_size_limit
from recorder import make_run

from periflow_otel.exporters import Outcome, Verdict, taken
from periflow_otel.exporters.metric_log import MetricLog
from periflow_otel.records import Metric, RankRun

HARD_TO_WRITE = {
    "损失": math.nan,
    "up": math.inf,
    'quote"\n': [1, None, True, {"a": "é"}],
    "broken": "\ud800",
    "big": 1 << 80,
}


def run(path: Path | None, rank: int = 0) -> RankRun:
    """Return a rank that logs to a file."""
    return make_run(run_id="job", rank=rank, local_rank=rank, mode="local", local_log=path and str(path))


def metric(**values: object) -> Metric:
    """Return one call of ``pf.metric``."""
    return Metric(1, 1, values)


def test_lines_are_those_of_the_original(tmp_path: Path):
    """A line is ``json.dumps`` of the mapping as it was given, and nothing else."""
    path = tmp_path / "a.log"
    assert MetricLog().export([(run(path), Metric(1, 1, HARD_TO_WRITE)), (run(path), metric(loss=0.5))]) == taken(2)
    assert path.read_text() == json.dumps(HARD_TO_WRITE) + '\n{"loss": 0.5}\n'


def test_nan_is_written_as_nan(tmp_path: Path):
    """A value that is not a number is in the file, spelled as the original spells it."""
    path = tmp_path / "a.log"
    MetricLog().export([(run(path), metric(loss=math.nan))])
    assert path.read_text() == '{"loss": NaN}\n'


def test_ranks_write_to_their_own_files(tmp_path: Path):
    """Metrics of several ranks in one batch reach the file of each rank in order."""
    paths = [tmp_path / f"{rank}.log" for rank in range(3)]
    items = [(run(path, rank), metric(i=i)) for i in range(4) for rank, path in enumerate(paths)]
    assert MetricLog().export(items) == taken(12)
    assert [path.read_text() for path in paths] == ["".join(f'{{"i": {i}}}\n' for i in range(4))] * 3


def test_existing_file_is_appended_to(tmp_path: Path):
    """What the file held before stays in front."""
    path = tmp_path / "a.log"
    path.write_text("before\n")
    MetricLog().export([(run(path), metric(a=1))])
    assert path.read_text() == 'before\n{"a": 1}\n'


def test_torn_last_line_does_not_swallow_the_next(tmp_path: Path):
    """After half a line a new one begins."""
    path = tmp_path / "a.log"
    path.write_text('{"a": 1}\n{"a"')
    MetricLog().export([(run(path), metric(a=2))])
    assert path.read_text() == '{"a": 1}\n{"a"\n{"a": 2}\n'


def test_new_file_belongs_to_its_owner_alone(tmp_path: Path):
    """A file that the log creates cannot be read by other users, whatever the umask."""
    path = tmp_path / "a.log"
    umask = os.umask(0)
    try:
        MetricLog().export([(run(path), metric(a=1))])
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_symbolic_link_of_the_user_is_followed(tmp_path: Path):
    """A log that the user has linked to another disk is written there."""
    (tmp_path / "a.log").symlink_to(tmp_path / "elsewhere.log")
    MetricLog().export([(run(tmp_path / "a.log"), metric(a=1))])
    assert (tmp_path / "elsewhere.log").read_text() == '{"a": 1}\n'
    assert (tmp_path / "a.log").is_symlink()


def test_deleted_file_comes_back(tmp_path: Path):
    """A file that is moved away between batches is written anew."""
    path = tmp_path / "a.log"
    log = MetricLog()
    log.export([(run(path), metric(a=1))])
    path.rename(tmp_path / "a.log.1")
    log.export([(run(path), metric(a=2))])
    assert path.read_text() == '{"a": 2}\n'


def test_rank_without_a_log_is_delivered(tmp_path: Path):
    """In cloud mode there is no file and nothing to wait for."""
    assert MetricLog().export([(run(None), metric(a=1)), (run(tmp_path / "a.log"), metric(a=2))]) == taken(2)


def test_missing_folder_is_an_outcome(tmp_path: Path):
    """Items before the file that cannot be opened are done, the rest is wanted again."""
    good, bad = tmp_path / "a.log", tmp_path / "gone" / "b.log"
    outcome = MetricLog().export([(run(good), metric(a=1)), (run(bad), metric(a=2)), (run(good), metric(a=3))])
    cause = f"cannot write the metric log {str(bad)!r}: No such file or directory"
    assert outcome == Outcome(Verdict.LATER, cause, done=1)
    assert good.read_text() == '{"a": 1}\n'


@pytest.mark.parametrize("room", range(46))
def test_full_disk_leaves_whole_lines(tmp_path: Path, room: int):
    """Wherever the space ends, the file ends with a whole line and the outcome counts those that fit."""
    path = tmp_path / "a.log"
    path.write_text("before\n")
    items = [(run(path), metric(a=i)) for i in range(5)]  # 9 bytes each
    with file_size_limit(7 + room):
        outcome = MetricLog().export(items)
    assert outcome.done == room // 9
    assert bool(outcome.message) == (room < 45)
    assert path.read_text() == "before\n" + "".join(f'{{"a": {i}}}\n' for i in range(room // 9))


def test_writing_goes_on_when_there_is_space_again(tmp_path: Path):
    """What did not fit is delivered by the next call, nothing twice."""
    path = tmp_path / "a.log"
    items = [(run(path), metric(a=i)) for i in range(5)]
    with file_size_limit(20):
        done = MetricLog().export(items).done
    assert MetricLog().export(items[done:]) == taken(5 - done)
    assert path.read_text() == "".join(f'{{"a": {i}}}\n' for i in range(5))


def test_full_device_is_an_outcome():
    """A device that refuses every byte neither raises nor counts as delivered."""
    outcome = MetricLog().export([(run(Path("/dev/full")), metric(a=1))])
    assert outcome == Outcome(Verdict.LATER, "cannot write the metric log '/dev/full': No space left on device")


def test_pipe_without_a_reader_does_not_block(tmp_path: Path):
    """The log never waits for somebody to read it."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        items = [(run(tmp_path / "pipe"), metric(text="x" * 4000))] * 100
        assert 0 < MetricLog().export(items).done < 100
    finally:
        os.close(reader)


def test_integer_without_json_is_rejected_alone(tmp_path: Path):
    """An integer too long for ``json`` costs its own line only."""
    path = tmp_path / "a.log"
    items = [(run(path), metric(a=a)) for a in (1, 10**5000, 3)]
    outcome = MetricLog().export(items)
    assert (outcome.done, outcome.rejected) == (3, 1)
    assert path.read_text() == '{"a": 1}\n{"a": 3}\n'


def test_no_file_stays_open(tmp_path: Path):
    """Many ranks cost no descriptors."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    MetricLog().export([(run(tmp_path / f"{rank}.log", rank), metric(a=1)) for rank in range(64)])
    assert len(list(Path("/proc/self/fd").iterdir())) == before
