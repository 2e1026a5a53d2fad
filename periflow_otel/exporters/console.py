"""Progress for people: one plain line every few seconds, made for a terminal as well as for the log of a job.

``step 340/1000  34%  0.123 s/step  8.1 step/s  loss=0.532 learning_rate=0.001  ETA 1m 21s``
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, TextIO

from periflow_otel import names
from periflow_otel.exporters import Outcome, taken
from periflow_otel.names import Instrument
from periflow_otel.records import RankRun
from periflow_otel.terminal import one_line, say
from periflow_otel.translate.telemetry import Point
from periflow_otel.view.words import duration_words

MAX_METRICS: Final = 6
"""User metrics in a line."""

_STATES: Final = frozenset({names.STEP_CURRENT, names.CHECKPOINT_LAST_STEP})
_TIMES: Final = frozenset({names.STEP_DURATION, names.STEP_GAP})


class Console:
    """Writes how far the newest attempt has come, whichever runs it is given. A broken stream is left alone."""

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        first_line: str = "",
        interval_s: float = 5.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write the first line, if there is one.

        Args:
            stream: Where lines go; None for what ``sys.stderr`` is when a line is written.
            first_line: What to say before the progress.
            interval_s: Shortest time between two lines.
            monotonic: Tells the time in seconds.
        """
        self._stream = stream
        self._interval_s = interval_s
        self._monotonic = monotonic
        self._due_s = monotonic()
        self._progress: _Progress | None = None
        self._write_line(first_line)

    def export(self, items: Sequence[tuple[RankRun, Point]]) -> Outcome:
        """Take points of any ranks, and write a line if one is due and has something new to say."""
        for run, point in items:
            progress = self._progress_of(run)
            if progress is not None:
                progress.update(run.rank, point)
        if self._monotonic() >= self._due_s or (self._progress and self._progress.comes_to_an_end()):
            self._write()
        return taken(len(items))

    def close(self) -> None:
        """Write what has not been shown."""
        self._write()

    def _progress_of(self, run: RankRun) -> "_Progress | None":
        """Return the progress of a rank's attempt; None if a newer one is shown."""
        shown = self._progress
        if shown is None or (run.run_id, run.attempt) != (shown.run.run_id, shown.run.attempt):
            if shown is not None and run.started_unix_ns < shown.run.started_unix_ns:
                return None
            self._write()
            self._progress = _Progress(run)
        return self._progress

    def _write(self) -> None:
        line = self._progress.take_line() if self._progress else ""
        if line:
            self._due_s = self._monotonic() + self._interval_s
            self._write_line(line)

    def _write_line(self, line: str) -> None:
        if line and self._stream is None:
            say(line)
        elif line and self._stream is not None:
            with suppress(OSError, ValueError):  # ValueError: it is closed, or cannot encode a key
                self._stream.write(line + "\n")
                self._stream.flush()


class _Pace(NamedTuple):
    """Steps that all ranks together have completed, and the seconds in and between them."""

    steps: int = 0
    in_steps_s: float = 0.0
    wall_s: float = 0.0


class _Progress:
    """What is known of an attempt, and what of it has been shown."""

    def __init__(self, run: RankRun) -> None:
        self.run = run
        self._is_new = False
        self._values: dict[Instrument, dict[int, Any]] = defaultdict(dict)
        """The latest of each rank."""
        self._metrics: dict[str, tuple[int, Point]] = {}
        """Of each key, first seen first: the lowest rank that reports it, and its latest point there."""
        self._total = self._recent = _Pace()
        self._checkpoint_shown = 0
        self._is_up: dict[int, Any] = {}
        """By rank; 0 when its run is over."""
        self._is_at_end = False

    def comes_to_an_end(self) -> bool:
        """Tell, once, whether the last step has ended on all ranks, or all are done."""
        are_done = bool(self._is_up) and not any(self._is_up.values())
        was_at_end, self._is_at_end = self._is_at_end, self._has_reached_target() or are_done
        return self._is_at_end and not was_at_end

    def _has_reached_target(self) -> bool:
        ended = [run_steps.count for run_steps in self._values[names.STEP_DURATION].values()]
        steps = (self.run.total_steps or 0) - self.run.initial_step
        return bool(ended) and 0 < steps <= min(ended)

    def update(self, rank: int, point: Point) -> None:
        """Take note of a point."""
        instrument = point.instrument
        if instrument in _STATES:
            self._is_new |= self._values[instrument].get(rank) != point.value
            self._values[instrument][rank] = point.value
        elif instrument is names.RUN_UP:
            self._is_up[rank] = point.value
        elif instrument in _TIMES:
            self._values[instrument][rank] = point.value
        elif instrument.kind == "gauge" and instrument.name.startswith(names.METRIC_PREFIX):
            key = instrument.name.removeprefix(names.METRIC_PREFIX)
            if rank <= self._metrics.get(key, (rank,))[0]:
                self._metrics[key] = rank, point
                self._is_new = True

    def take_line(self) -> str:
        """Return a line on the state; nothing if nothing has changed since the last."""
        if not self._is_new:
            return ""
        self._is_new = False
        self._measure_pace()
        return "  ".join((*self._step(), *self._pace(), *self._user_metrics(), *self._eta(), *self._notes()))

    def _measure_pace(self) -> None:
        durations, gaps = self._values[names.STEP_DURATION].values(), self._values[names.STEP_GAP].values()
        steps = sum(each.count for each in durations)
        in_steps_s = sum(each.sum for each in durations)
        wall_s = in_steps_s + sum(each.sum for each in gaps)
        before = self._total
        if steps > before.steps:  # else the pace of the steps before stands
            self._total = _Pace(steps, in_steps_s, wall_s)
            self._recent = _Pace(steps - before.steps, in_steps_s - before.in_steps_s, wall_s - before.wall_s)

    def _step(self) -> Iterator[str]:
        steps, target = self._values[names.STEP_CURRENT].values(), self.run.total_steps
        if steps:
            yield f"step {max(steps)}/{target}  {100 * max(steps) // target}%" if target else f"step {max(steps)}"

    def _pace(self) -> Iterator[str]:
        steps, in_steps_s, wall_s = self._recent
        if steps and wall_s:
            yield f"{in_steps_s / steps:.3g} s/step"
            yield f"{steps / wall_s:.3g} step/s"

    def _user_metrics(self) -> Iterator[str]:
        """Show the keys with the newest values, in the order in which they first came."""
        newest = sorted(self._metrics, key=lambda key: -self._metrics[key][1].time_unix_ns)[:MAX_METRICS]
        shown = (f"{one_line(key)}={self._metrics[key][1].value:.4g}" for key in self._metrics if key in newest)
        if newest:
            yield " ".join(shown)

    def _eta(self) -> Iterator[str]:
        steps, target = self._values[names.STEP_CURRENT].values(), self.run.total_steps
        if steps and target and target > min(steps) and self._recent.wall_s:
            left_s = (target - min(steps)) * self._recent.wall_s / self._recent.steps
            yield f"ETA {duration_words(round(left_s))}"

    def _notes(self) -> Iterator[str]:
        steps = self._values[names.STEP_CURRENT]
        if steps and min(steps.values()) < max(steps.values()):
            slowest = min(steps, key=lambda rank: (steps[rank], rank))
            yield f"rank {slowest} is at step {steps[slowest]}"
        checkpoint = max(self._values[names.CHECKPOINT_LAST_STEP].values(), default=0)
        if checkpoint != self._checkpoint_shown:
            self._checkpoint_shown = checkpoint
            yield f"checkpoint at step {checkpoint}"
