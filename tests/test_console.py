"""The console tells in one line now and then what a person wants to know of a run."""

import io
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorder import make_run

from periflow_otel import names
from periflow_otel.exporters import taken
from periflow_otel.exporters.console import Console
from periflow_otel.names import Instrument
from periflow_otel.records import Checkpoint, Metric, RankRun, StepEnded
from periflow_otel.translate.points import PointTranslator
from periflow_otel.translate.telemetry import Histogram, Point

Items = list[tuple[RankRun, Point]]


def run(
    rank: int = 0, total_steps: int | None = 1000, run_id: str = "job", attempt: int = 1, started_unix_ns: int = 1
) -> RankRun:
    """Return a rank of a run."""
    return make_run(
        run_id=run_id, attempt=attempt, rank=rank, local_rank=rank, world_size=8, mode="local",
        started_unix_ns=started_unix_ns, total_steps=total_steps,
    )  # fmt: skip


def gauge(instrument: Instrument, value: float, time_unix_ns: int = 1) -> Point:
    """Return a point of a gauge."""
    return Point(instrument, (), time_unix_ns, value)


def user(key: str, value: float, time_unix_ns: int = 1) -> Point:
    """Return a point of a user metric."""
    return gauge(names.user_instrument(key), value, time_unix_ns)


def seconds(instrument: Instrument, count: int, total_s: float) -> Point:
    """Return a point of a histogram of durations."""
    return Point(instrument, (), 1, Histogram(count, total_s, 0.0, total_s, (), (count,)))


def at(step: int, completed: int = 0, in_steps_s: float = 0.0, gaps_s: float = 0.0) -> list[Point]:
    """Return the state of a rank that is at a step and has completed some."""
    points = [gauge(names.STEP_CURRENT, step)]
    if completed:
        points.append(seconds(names.STEP_DURATION, completed, in_steps_s))
        points.append(seconds(names.STEP_GAP, completed - 1, gaps_s))
    return points


class Screen:
    """A console on a stream that remembers, with a clock that stands until it is moved."""

    def __init__(self) -> None:
        """Begin with an empty stream."""
        self.now_s = 100.0
        self.stream = io.StringIO()
        self.console = Console(self.stream, monotonic=lambda: self.now_s)

    def show(self, *points: Point, of: RankRun | None = None, after_s: float = 5.0) -> str:
        """Give points of a rank to the console after some time; return what it writes."""
        return self.write(lambda: self.console.export([(of or run(), point) for point in points]), after_s)

    def close(self) -> str:
        """Close the console at once; return what it writes."""
        return self.write(self.console.close, 0)

    def write(self, act: Callable[[], object], after_s: float) -> str:
        """Do something after some time; return what is written then."""
        self.now_s += after_s
        before = len(self.stream.getvalue())
        act()
        return self.stream.getvalue()[before:]


@pytest.fixture
def screen() -> Screen:
    """Return a console to watch."""
    return Screen()


def test_line_tells_progress_speed_metrics_and_eta(screen: Screen):
    """Everything that is known is in one line, the speed being that of the steps since the line before."""
    screen.show(*at(301, 300, 3000.0))
    shown = screen.show(*at(340, 340, 3004.92, 0.08), user("loss", 0.53199), user("learning_rate", 0.001))
    assert shown == "step 340/1000  34%  0.123 s/step  8 step/s  loss=0.532 learning_rate=0.001  ETA 1m 22s\n"


def test_records_of_a_rank_become_its_line(screen: Screen):
    """What is translated from the records of a run is understood."""
    translator = PointTranslator(run())
    for step in range(1, 11):
        start_unix_ns = step * 1_000_000_000
        gap_ns = 750_000_000 if step > 1 else None
        translator.feed([StepEnded(step, start_unix_ns, 250_000_000, None, gap_ns)])
        translator.feed([Metric(step, start_unix_ns + 1, {"loss": 1 / step, "note": "text"})])
    translator.feed([Checkpoint(10, 11_000_000_000, is_step_open=False, is_emergency=False)])
    translator.snapshot()
    assert screen.show(*translator.take()) == (
        "step 10/1000  1%  0.25 s/step  1.08 step/s  loss=0.1  ETA 15m 16s  checkpoint at step 10\n"
    )


def test_first_line_comes_at_once(screen: Screen):
    """Nobody has to wait to see that telemetry is on."""
    assert screen.show(*at(0), after_s=0) == "step 0/1000  0%\n"


def test_lines_keep_their_distance(screen: Screen):
    """Within five seconds of a line there is no other, and then the newest state is shown."""
    screen.show(*at(1))
    assert [screen.show(*at(step), after_s=1) for step in range(2, 8)] == [""] * 4 + ["step 6/1000  0%\n", ""]


def test_without_change_there_is_no_line(screen: Screen):
    """A run that stands still writes nothing, however often its state comes."""
    state = (*at(7, 6, 6.0), gauge(names.CHECKPOINT_LAST_STEP, 5))
    assert screen.show(*state)
    assert [screen.show(*state) for _ in range(3)] == ["", "", ""]


def test_the_last_line_comes_when_all_ranks_are_done(screen: Screen):
    """At once, while the script waits for it: after that the shell's prompt is there."""
    up, done = gauge(names.RUN_UP, 1), gauge(names.RUN_UP, 0)
    screen.show(up, user("loss", 0), of=run(0))
    screen.show(up, of=run(1), after_s=0)
    assert screen.show(done, user("loss", 1), of=run(0), after_s=0) == ""
    assert screen.show(done, of=run(1), after_s=0) == "loss=1\n"
    assert screen.close() == ""


def test_closing_writes_what_was_not_shown(screen: Screen):
    """The last state is in the log, though no line was due; and it is there once."""
    screen.show(*at(1))
    screen.show(*at(2), after_s=0)
    assert [screen.close(), screen.close()] == ["step 2/1000  0%\n", ""]


def test_closing_a_console_that_saw_nothing_writes_nothing(screen: Screen):
    """Without a run there is nothing to say."""
    assert screen.close() == ""


def test_without_target_there_is_neither_percentage_nor_eta(screen: Screen):
    """A run of unknown length is not guessed at."""
    assert screen.show(*at(9, 8, 4.0), of=run(total_steps=None)) == "step 9  0.5 s/step  2 step/s\n"


def test_at_the_last_step_there_is_no_eta(screen: Screen):
    """When nothing is left, no time is left to name."""
    assert screen.show(*at(1000, 1000, 500.0)) == "step 1000/1000  100%  0.5 s/step  2 step/s\n"


def test_hundred_percent_is_only_the_end(screen: Screen):
    """A run that is almost over is not called complete."""
    assert screen.show(*at(999)) == "step 999/1000  99%\n"


def test_pace_stands_while_a_long_step_lasts(screen: Screen):
    """A line between the ends of two steps has the speed and the metrics of the line before."""
    screen.show(*at(2, 2, 60.0), user("loss", 1.0))
    assert screen.show(*at(3, 2, 60.0)) == "step 3/1000  0%  30 s/step  0.0333 step/s  loss=1  ETA 8h 18m\n"


def test_steps_without_duration_have_no_rate(screen: Screen):
    """A clock that did not move is not divided by."""
    assert screen.show(*at(3, 2, 0.0)) == "step 3/1000  0%\n"


@pytest.mark.parametrize(
    ("given_s", "shown"),
    [
        *((0.4, "0 s"), (59.4, "59 s"), (59.6, "1m 0s"), (3599.4, "59m 59s")),
        *((3600, "1h 0m"), (86399, "23h 59m"), (86400, "1d 0h"), (5e6, "57d 20h")),
    ],
)
def test_eta_has_its_two_largest_units(screen: Screen, given_s: float, shown: str):
    """Nobody counts the seconds of days."""
    assert screen.show(*at(1, 1, given_s), of=run(total_steps=2)).endswith(f"  ETA {shown}\n")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf"), (1e-9, "1e-09"), (123456, "1.235e+05")),
        *((7, "7"), (0.30000000000000004, "0.3")),
    ],
)
def test_metric_has_four_digits(screen: Screen, value: float, shown: str):
    """Values are short, and what is no number is shown as it is."""
    assert screen.show(user("loss", value)) == f"loss={shown}\n"


def test_latest_value_of_a_metric_is_shown(screen: Screen):
    """Of several values since the last line, it is the last."""
    assert screen.show(user("loss", 3, 1), user("loss", 1, 2), user("loss", 2, 3)) == "loss=2\n"


def test_six_newest_metrics_keep_their_order(screen: Screen):
    """Of many keys those with the newest values are shown, where they always were."""
    assert screen.show(*(user(key, 1, 1) for key in "abcdefgh")) == "a=1 b=1 c=1 d=1 e=1 f=1\n"
    assert screen.show(user("h", 2, 2), user("b", 2, 2)) == "a=1 b=2 c=1 d=1 e=1 h=2\n"


def test_metric_of_the_lowest_rank_is_shown(screen: Screen):
    """A value does not jump from rank to rank; one that only another rank reports is there too."""
    screen.show(user("loss", 5), user("other", 5), of=run(5))
    screen.show(user("loss", 1), of=run(1), after_s=0)
    screen.show(user("loss", 5), of=run(5), after_s=0)
    assert screen.close() == "loss=1 other=5\n"


def test_counted_nonfinite_values_are_no_metric(screen: Screen):
    """A counter of ours below the prefix is not taken for a user's key, and a key of that name is."""
    assert screen.show(gauge(names.METRIC_NONFINITE, 9), user("nonfinite", 4)) == "nonfinite=4\n"


def test_slowest_rank_is_named_when_ranks_differ(screen: Screen):
    """The line has the step of the fastest rank, and tells which one is behind; the run is over when that one is."""
    for rank in range(4):
        screen.show(*at(337 if rank == 3 else 340, 300, 300.0), of=run(rank), after_s=0)
    assert screen.close() == "step 340/1000  34%  1 s/step  1 step/s  ETA 11m 3s  rank 3 is at step 337\n"


def test_equal_ranks_are_not_named(screen: Screen):
    """Nobody is slow when all are at the same step."""
    screen.show(*at(1), of=run(0), after_s=0)
    screen.show(*at(2), of=run(0), after_s=0)
    screen.show(*at(2), of=run(1), after_s=0)
    assert screen.close() == "step 2/1000  0%\n"


def test_checkpoint_is_noted_once(screen: Screen):
    """A new checkpoint is in the next line and in no other."""
    assert screen.show(gauge(names.CHECKPOINT_LAST_STEP, 300)) == "checkpoint at step 300\n"
    assert screen.show(*at(301)) == "step 301/1000  30%\n"
    assert screen.show(gauge(names.CHECKPOINT_LAST_STEP, 400)) == "step 301/1000  30%  checkpoint at step 400\n"


def test_instruments_that_say_nothing_to_people_write_nothing(screen: Screen):
    """Our own telemetry alone is no line."""
    others = set(names.INSTRUMENTS) - {names.STEP_CURRENT, names.CHECKPOINT_LAST_STEP}
    values = {"histogram": seconds(names.STEP_GAP, 1, 1.0).value, "counter": 1, "gauge": 1}
    assert screen.show(*(Point(each, (), 1, values[each.kind]) for each in sorted(others))) == ""


def test_next_attempt_begins_anew(screen: Screen):
    """The last state of the attempt before is shown, and nothing of it mixes with the next."""
    screen.show(*at(50, 50, 50.0), user("loss", 1.0))
    screen.show(*at(60, 60, 60.0), after_s=0)
    again = screen.show(*at(41, 1, 2.0), of=run(attempt=2, started_unix_ns=2), after_s=0)
    assert again == "step 60/1000  6%  1 s/step  1 step/s  loss=1  ETA 15m 40s\n"
    assert screen.close() == "step 41/1000  4%  2 s/step  0.5 step/s  ETA 31m 58s\n"


@pytest.mark.parametrize("late", [run(1, attempt=1), run(run_id="left behind")])
def test_points_of_an_earlier_attempt_or_run_are_taken_unseen(screen: Screen, late: RankRun):
    """What is left of earlier runs does not disturb the one that goes on."""
    screen.show(*at(5), of=run(attempt=2, started_unix_ns=9))
    assert screen.show(*at(900), user("loss", 1.0), of=late) == ""
    assert screen.show(*at(6), of=run(attempt=2, started_unix_ns=9)) == "step 6/1000  0%\n"


def test_all_items_count_as_delivered():
    """The console holds nothing back, shown or not."""
    console = Console(io.StringIO())
    assert console.export([(run(), user("loss", each)) for each in range(3)]) == taken(3)
    assert console.export([]) == taken(0)


def test_stream_is_stderr_as_it_is_when_a_line_is_written(capsys: pytest.CaptureFixture[str]):
    """A program that redirects its stderr finds the lines there."""
    console = Console()
    console.export([(run(), user("loss", 1.0))])
    assert capsys.readouterr() == ("", "loss=1\n")


def test_process_without_stderr_is_spared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Where there is no stderr nothing is written, to stdout neither."""
    monkeypatch.setattr(sys, "stderr", None)
    assert Console().export([(run(), user("loss", 1.0))]) == taken(1)
    assert capsys.readouterr().out == ""


def closed_stream(tmp_path: Path) -> io.TextIOWrapper:
    """Return a stream that somebody has closed."""
    stream = (tmp_path / "closed").open("w")
    stream.close()
    return stream


def full_disk(tmp_path: Path) -> io.TextIOWrapper:
    """Return a stream that takes nothing."""
    del tmp_path
    return io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True)


def ascii_stream(tmp_path: Path) -> io.TextIOWrapper:
    """Return a stream that cannot hold every key."""
    return (tmp_path / "ascii").open("w", encoding="ascii")


@pytest.mark.parametrize("make", [closed_stream, full_disk, ascii_stream])
def test_broken_stream_raises_nothing(tmp_path: Path, make: Callable[[Path], io.TextIOWrapper]):
    """Whatever has become of the log, the run goes on."""
    stream = make(tmp_path)
    console = Console(stream, interval_s=0)
    assert [console.export([(run(), user("损失", each))]) for each in range(2)] == [taken(1), taken(1)]
    console.close()
    stream.close()


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_key_cannot_leave_its_line(key: str):
    """No key ends the line, returns to its start or steers a terminal."""
    stream = io.StringIO(newline="")
    Console(stream).export([(run(), user(key, 1.0))])
    line = stream.getvalue()
    assert line.endswith("=1\n")
    assert line[:-1].isprintable()
