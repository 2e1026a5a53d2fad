"""What is known of one rank in one attempt."""

from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from operator import itemgetter
from typing import Any, Final, Literal

from periflow_otel import conventions, names
from periflow_otel.view.growth import Growth, find_growth
from periflow_otel.view.heat import Heat, bins_of
from periflow_otel.view.lately import Lately, Sums
from periflow_otel.view.series import MAX_ROWS, MIN_ROWS, Series

SeriesKind = Literal["metric", "step", "gap", "start", "machine", "pause"]

MAX_MARKS: Final = 200
"""Of each kind of thing that a rank did at one moment, so many are kept: the first half and the latest."""
MAX_SAVINGS: Final = 20
"""Of so many checkpoints, the latest, it is known how long a rank was busy with them."""
MAX_NAMES: Final = 1000
"""Metric keys, text values and phases of a rank; what has another name is counted, and not kept."""
MAX_STACK_CHARS: Final = 4000
WARM_UP_STEPS: Final = 10
"""The first steps of an attempt compile and fill caches."""
_NAN: Final = float("nan")
CLOCK_SET_S: Final = 1.0
"""By so much a clock was set; less are corrections."""
_PACE_S: Final = 30.0
"""The pace of now is that of about the last half minute."""


@dataclass(frozen=True, slots=True)
class Member:
    """A rank of an attempt, and where it is."""

    attempt: int
    rank: int
    local_rank: int = 0
    node_rank: int = 0
    host: str = ""
    started_s: float | None = None
    """Unix seconds, as all times here."""
    initial_step: int = 0
    target_step: int | None = None


@dataclass(slots=True)
class Marks:
    """Moments of one kind: how many there were, and by time the first and the latest, in whatever order told."""

    count: int = 0
    kept: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **mark: Any) -> None:
        """Note one more."""
        self.count += 1
        insort(self.kept, mark, key=itemgetter("time"))
        if len(self.kept) > MAX_MARKS:
            del self.kept[MAX_MARKS // 2]


@dataclass(slots=True)
class Limits:
    """What all series of a run share."""

    max_total_rows: int
    series: int = 0
    """How many there are."""
    revision: int = 1
    """Number of the change that is under way."""

    @property
    def max_rows(self) -> int:
        """Rows that each may have."""
        return max(MIN_ROWS, min(MAX_ROWS, self.max_total_rows // max(self.series, 1)))


Attributes = tuple[tuple[str, Any], ...]


def machine_key(name: str, attributes: Attributes) -> str:
    """Return the key of a series that is of the machine."""
    shown = ", ".join(f"{key}={value}" for key, value in sorted(attributes) if key != names.RANK)
    return f"{name} {shown}" if shown else name


def growth_of(name: str) -> str:
    """Return what the growth of a sum is called."""
    return f"{name} per second"


class RankView:
    """Takes what a rank has recorded, in the order in which it did so."""

    def __init__(self, member: Member, limits: Limits) -> None:
        """Begin with nothing."""
        self.member = member
        self._limits = limits
        self._begin_sums()
        self.series: dict[tuple[SeriesKind, str], Series] = {}
        self.heat = Heat()
        self.steps = 0
        """Completed in this attempt."""
        self.ended_step = self.last_step = member.initial_step
        """The last step that has ended, and the last that has begun."""
        self.step_started_s: float | None = None
        self.seen_s = member.started_s or 0.0
        """When it last recorded something."""
        self.ended_s: float | None = None
        self.outcome: str | None = None
        """None while the run goes on."""
        self.last_words: str | None = None
        """What its interpreter has said of the fatal signal that ended it, and where that hit."""
        self.stack = ""
        """Of what ended it, where that is recorded."""
        self.redone_steps = 0
        self.restart_gap_s = 0.0
        self.done: dict[str, float] = {}
        """Work by kind,"""
        self.well_ended = 0.0
        """and in how many steps that was done."""
        self.peak_flops: float | None = None
        """Floating-point operations per second that its device can do."""
        self.spent_s: dict[str, float] = {}
        """Wall time by kind."""
        self.checkpoints, self.errors, self.nonfinite = Marks(), Marks(), Marks()
        self.nonfinite_by_key: Counter[str] = Counter()
        self.phases: dict[str, list[float]] = {}
        """By name: how many there were, and their seconds together."""
        self.text: dict[str, str] = {}
        self.machine: dict[tuple[str, Attributes], float] = {}
        """The latest of the machine, by stream; of a sum also, as ``growth_of`` it, how fast it grows."""
        self._seen_s: dict[tuple[str, Attributes], float] = {}
        """When sums of the machine were seen last."""
        self.pauses: dict[str, float] = {}
        """Seconds that garbage collections took in steps, by generation."""
        self.late: dict[str, float] = {}
        """How often it was the last of its node to begin a step, and by how many seconds together and at most."""
        self.left_out = 0
        """Values of keys beyond ``MAX_NAMES``."""
        self._ends: list[tuple[float, int]] = []

    def _begin_sums(self) -> None:
        self.durations: Counter[int] = Counter()
        self.gaps: Counter[int] = Counter()
        """Of all steps, by bin."""
        self.lateness: Mapping[float, float] = {}
        """How often it was the last to begin by so many seconds or more; empty where it is not known."""
        self.savings_s: deque[float] = deque(maxlen=MAX_SAVINGS)
        """How long it was busy with each of its latest checkpoints, where that is known."""
        self.lately = Lately()
        self.clock_sets = Marks()
        """When its clock went otherwise than time."""
        self._stopped_s = _NAN
        """When the last step ended."""

    def change(self, **fields: Any) -> None:
        """Note what is known of the rank only now; None is nothing."""
        known = {name: value for name, value in fields.items() if value is not None}
        self.member = replace(self.member, **known)
        self.seen_s = max(self.seen_s, self.member.started_s or 0.0)
        self.last_step, self.ended_step = (
            max(each, self.member.initial_step) for each in (self.last_step, self.ended_step)
        )

    def moved_to(self, limits: Limits) -> "RankView":
        """Let it share the space of another run's view, as something new there."""
        self._limits = limits
        limits.series += len(self.series)
        for series in self.series.values():
            series.revision = series.redrawn = limits.revision
        return self

    def step_at(self, time_s: float) -> int:
        """Return the step that was going on, or had ended last, as far as the rows of its series tell."""
        starts = self.series.get(("start", ""))
        return starts.step_at(time_s) if starts else self.ended_step

    def set_late(self, count: int, sum_s: float, max_s: float, lateness: Mapping[float, float] | None = None) -> None:
        """Note how often it was the last of its node to begin a step, and by how much together and at most.

        Args:
            count: How often.
            sum_s: By so many seconds together.
            max_s: By so many seconds at most.
            lateness: How often by so many seconds or more, where it is known.
        """
        self.late = {"count": count, "sum": sum_s, "max": max_s}
        self.lateness = lateness or {}

    def begin_step(self, step: int, started_s: float) -> None:
        """Note the step that is going on."""
        if step > self.last_step:
            self.last_step, self.step_started_s = step, started_s or None
            self.seen_s = max(self.seen_s, started_s)

    def note_ended(self) -> None:
        """Take the number of steps that ended well for how far it is, where spans of some were not exported."""
        self.ended_step = max(self.ended_step, min(self.last_step, self.member.initial_step + int(self.well_ended)))

    def end_steps(
        self, steps: Sequence[int], starts_s: Sequence[float], durations_s: Sequence[float], gaps: Sequence[float]
    ) -> None:
        """Add steps; the gap of the first may be unknown: NaN."""
        if not steps:
            return
        ends_s = [start + duration for start, duration in zip(starts_s, durations_s, strict=True)]
        self._extend("step", "", steps, ends_s, durations_s)
        self._extend("start", "", steps, starts_s, starts_s)
        known = slice(int(not isfinite(gaps[0])), None)
        self._extend("gap", "", steps[known], starts_s[known], gaps[known])
        self._look_at_clock(steps, starts_s, ends_s, gaps)
        bins = bins_of(durations_s)
        self.heat.extend(steps, bins)
        self.durations.update(bins)
        self.gaps.update(bins_of(gaps[known]))
        self.steps += len(steps)
        self.ended_step = max(self.ended_step, steps[-1])
        self.begin_step(steps[-1], starts_s[-1])
        self._note_pace(ends_s[-1])

    def _look_at_clock(
        self, steps: Sequence[int], starts_s: Sequence[float], ends_s: Sequence[float], gaps: Sequence[float]
    ) -> None:
        """Compare the clock with the time between steps, which is measured without it, where both are known."""
        stops_s, self._stopped_s = [self._stopped_s, *ends_s[:-1]], ends_s[-1]
        set_by_s = [start - stop - gap for start, stop, gap in zip(starts_s, stops_s, gaps, strict=True)]
        # NaN is neither: of the first step it is not known what was before
        for i in [i for i, by_s in enumerate(set_by_s) if by_s > CLOCK_SET_S or by_s < -CLOCK_SET_S]:
            if steps[i] == (steps[i - 1] if i else self.ended_step) + 1:  # else the one before was not exported
                self.clock_sets.add(step=steps[i], time=round(starts_s[i], 3), seconds=round(set_by_s[i], 3))

    def add_values(
        self, key: str, steps: Sequence[int], times_s: Sequence[float], values: Sequence[float],
        kind: SeriesKind = "metric",
    ) -> None:  # fmt: skip
        """Add values of a metric."""
        self._extend(kind, key, steps, times_s, values)
        self.seen_s = max(self.seen_s, times_s[-1])
        if not isfinite(sum(values)):
            for step, time_s, value in zip(steps, times_s, values, strict=True):
                if not isfinite(value):
                    self.nonfinite_by_key[key] += 1
                    self.nonfinite.add(key=key, step=step, time=round(time_s, 3), value=_named(value))

    def add_pause(self, kind: str, step: int, time_s: float, duration_s: float) -> None:
        """Note that garbage collections have held up a step."""
        self.pauses[kind] = self.pauses.get(kind, 0.0) + duration_s
        self._extend("pause", "", [step], [time_s], [duration_s])

    def add_of_machine(
        self, name: str, attributes: Attributes, time_s: float, value: float, *, is_sum: bool, step: int | None = None
    ) -> None:
        """Add a value of the machine, where it was seen in the step that is told, else in that of its time.

        Of a sum it is of interest how fast it grows. That the machine was looked at is no sign of the rank.
        """
        if is_sum:
            growth = self._growth((name, attributes), time_s, value)
            self._keep_of_machine((name, attributes), value)
            value, name = growth, growth_of(name)
        if isfinite(value):
            self._keep_of_machine((name, attributes), value)
            step = self.step_at(time_s) if step is None else step
            self._extend("machine", machine_key(name, attributes), [step], [time_s], [value])

    def _growth(self, stream: tuple[str, Attributes], time_s: float, value: float) -> float:
        """Return by how much a sum grows in a second; NaN where that is not known."""
        before_s, before = self._seen_s.get(stream, time_s), self.machine.get(stream, value)
        self._seen_s[stream] = time_s
        return (value - before) / (time_s - before_s) if time_s > before_s and value >= before else _NAN

    def _keep_of_machine(self, stream: tuple[str, Attributes], value: float) -> None:
        if stream in self.machine or len(self.machine) < MAX_NAMES:
            self.machine[stream] = value

    def memory_growth(self) -> Growth | None:
        """Return how the memory of its process grows without end, after the first steps."""
        series = self.series.get(("machine", conventions.PROCESS_MEMORY_USAGE.name))
        if series is None:
            return None
        first = bisect_left(series.step, self.member.initial_step + WARM_UP_STEPS)
        return find_growth(series.time[first:], series.low[first:], series.high[first:])

    def add_work(self, steps: int, amounts: Iterable[tuple[str, float]]) -> None:
        """Add what was done in steps that ended well: so much in each, by kind."""
        self.well_ended += steps
        for kind, amount in amounts:
            self.done[kind] = self.done.get(kind, 0.0) + steps * amount

    def add_text(self, key: str, value: str) -> None:
        """Keep the latest text that was given under a key."""
        if key in self.text or len(self.text) < MAX_NAMES:
            self.text[key] = value

    def add_phase(self, name: str, duration_s: float) -> None:
        """Count a phase that is over."""
        if name in self.phases or len(self.phases) < MAX_NAMES:
            phase = self.phases.setdefault(name, [0, 0.0])
            phase[0] += 1
            phase[1] += duration_s

    def add_saving(self, took_s: float) -> None:
        """Note how long the rank was busy with a checkpoint."""
        self.savings_s.append(took_s)

    def add_checkpoint(self, step: int, time_s: float, save_type: str) -> None:
        """Note a checkpoint that was announced."""
        self.checkpoints.add(step=step, time=round(time_s, 3), save_type=save_type)
        self.seen_s = max(self.seen_s, time_s)

    def add_error(self, step: int, time_s: float, error: str) -> None:
        """Note what has ended a step."""
        self.errors.add(step=step, time=round(time_s, 3), error=error)

    def end(self, outcome: str, time_s: float) -> None:
        """Note the end of the run."""
        self.outcome, self.ended_s = outcome, time_s
        self.seen_s = max(self.seen_s, time_s)

    def set_stack(self, stack: str) -> None:
        """Keep where that came from which ended it: the innermost part."""
        self.stack = stack[-MAX_STACK_CHARS:]

    def sums(self) -> Sums:
        """Return what there is of all that grows from step to step, as it is now."""
        return {
            "durations": dict(self.durations),
            "gaps": dict(self.gaps),
            "time": dict(self.spent_s),
            "phase_counts": {name: count for name, (count, _) in self.phases.items()},
            "phases": {name: duration_s for name, (_, duration_s) in self.phases.items()},
            "pauses": dict(self.pauses),
            "late": {"count": self.late.get("count", 0), "sum": self.late.get("sum", 0.0)},
            "lateness": dict(self.lateness),
        }

    def note(self, time_s: float) -> None:
        """Note how much there is at a time, in Unix seconds: what comes later is of late, for a while."""
        self.lately.note(time_s, self.steps, self.sums())

    def fit(self) -> None:
        """Give up rows where series have come to share the space since."""
        for series in self.series.values():
            series.fit(self._limits.max_rows, self._limits.revision)

    def pace(self) -> float | None:
        """Return the steps per second of about the last half minute that it has worked."""
        (first_s, first), (last_s, last) = (self._ends[0], self._ends[-1]) if self._ends else ((0, 0), (0, 0))
        return (last - first) / (last_s - first_s) if last_s > first_s and last > first else None

    def work_pace(self, steps_per_s: float) -> dict[str, float]:
        """Return what is done in a second, by kind, at a pace."""
        return {kind: done / self.well_ended * steps_per_s for kind, done in self.done.items() if self.well_ended}

    def _extend(
        self, kind: SeriesKind, key: str, steps: Sequence[int], times_s: Sequence[float], values: Sequence[float]
    ) -> None:
        series = self.series.get((kind, key))
        if series is None:
            if len(self.series) >= MAX_NAMES:
                self.left_out += len(values)
                return
            series = self.series[kind, key] = Series()
            self._limits.series += 1
        series.extend(steps, times_s, values, self._limits.max_rows, self._limits.revision)

    def _note_pace(self, end_s: float) -> None:
        self.seen_s = max(self.seen_s, end_s)
        ends = self._ends
        if not ends and self.member.started_s:
            ends.append((self.member.started_s, self.member.initial_step))
        ends.append((end_s, self.ended_step))
        while len(ends) > 2 and (ends[1][0] < end_s - _PACE_S or len(ends) > 1000):
            del ends[0]


def _named(value: float) -> str:
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"  # noqa: PLR0124  # NaN is not itself
