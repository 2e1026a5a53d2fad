"""Where the wall time of a rank went, by kind, without a hole: the kinds add up to the whole."""

from collections.abc import Sequence
from typing import Final

import msgspec

from periflow_otel.records import Checkpoint, Phase, RankLost, StepEnded
from periflow_otel.translate.values import text

STEP, GAP, CHECKPOINT, STARTUP, RESTART, OTHER = "step", "gap", "checkpoint", "startup", "restart", "other"
MAX_KINDS: Final = 100
"""Phases of further names count as ``OTHER``, so that a name with a number in it makes no endless series."""
_OPEN_STEP: Final = 0
"""Stands for the open step where phases go by their number, which is 1 or more."""
_CLOCK_SET_BACK_NS: Final = 1_000_000_000


class Waiting(msgspec.Struct, array_like=True):
    """Time that belongs to a step or a phase that has not ended, and that nothing within it explains."""

    start_unix_ns: int
    end_unix_ns: int
    """The first stretch: a part of it may lie before the step or phase, when that began is not known yet."""
    later_ns: int = 0
    """All later stretches: they lie within it."""


class WallTime(msgspec.Struct, array_like=True):
    """A line that is followed from left to right; each record says what the stretch up to its end was.

    A step or phase has the time that nothing within it has. What lies before a step is a gap, whatever is around it.
    """

    accounted_unix_ns: int = 0
    """Everything up to here is counted, or is waiting."""
    spent_ns: dict[str, int] = {}
    """By kind: step, gap, checkpoint, startup (before the first step), restart (since the attempt before), other, or
    the name of a phase."""
    ended_step: int = 0
    """The last step that ended, in this attempt or before it."""
    ended_unix_ns: int = 0
    """When it ended, if that was in this attempt."""
    has_stepped: bool = False
    """A step ended in this attempt."""
    noted_unix_ns: int = 0
    waiting: dict[int, Waiting] = {}
    """By the number of a phase, or ``_OPEN_STEP``."""

    def end_step(self, record: StepEnded) -> None:
        """Count a step, and what is between it and the record before as a gap."""
        if record.gap_ns is not None and self.ended_unix_ns:
            self._follow_clock(record.start_unix_ns - self.ended_unix_ns - record.gap_ns)
        self.ended_unix_ns = record.start_unix_ns + record.duration_ns
        self._end(_OPEN_STEP, None, STEP, record.start_unix_ns, record.duration_ns)
        self.ended_step, self.has_stepped = record.step, True

    def end_steps(self, records: Sequence[StepEnded]) -> None:
        """Count steps between which there is nothing else, as ``end_step`` would one by one."""
        self.end_step(records[0])
        rest = records[1:]
        if not rest or self.waiting or any(each.gap_ns is None for each in rest):
            for each in rest:
                self.end_step(each)
            return
        self._count(STEP, sum(each.duration_ns for each in rest))
        self._count(GAP, sum(each.gap_ns or 0 for each in rest))
        self.ended_step = rest[-1].step
        self.accounted_unix_ns = self.ended_unix_ns = rest[-1].start_unix_ns + rest[-1].duration_ns

    def end_phase(self, record: Phase) -> None:
        """Count a phase."""
        around = record.parent or (None if record.step is None else _OPEN_STEP)
        self._end(record.number, around, self._kind_of(record), record.start_unix_ns, record.duration_ns)

    def note(self, unix_ns: int) -> None:
        """Remember a metric: a checkpoint after it did not take the time before it."""
        self.noted_unix_ns = unix_ns

    def end_checkpoint(self, record: Checkpoint) -> None:
        """Count the time since the record before as saving; within an open step it is a part of that.

        Training did not wait for a checkpoint that was told to be of another step.
        """
        if record.is_step_open or record.during is not None:
            return
        self._advance(self.noted_unix_ns, None)
        self._spend(CHECKPOINT, record.time_unix_ns)

    def lose(self, record: RankLost) -> None:
        """Count the step that was open when the process went as a step, and what is left as a gap."""
        if record.last_started_step > self.ended_step:
            started = record.last_started_unix_ns
            duration_ns = max(0, record.time_unix_ns - started)
            self.end_step(StepEnded(record.last_started_step, started, duration_ns))
        self.close(record.time_unix_ns)

    def close(self, unix_ns: int) -> None:
        """Count what is left when the run is over."""
        for waiting in self.waiting.values():
            self._count(self._between, waiting.end_unix_ns - waiting.start_unix_ns + waiting.later_ns)
        self.waiting.clear()
        self._advance(unix_ns, None)

    def _follow_clock(self, set_by_ns: int) -> None:
        """Go on from where the clock is now: that it was set between two steps took no time."""
        self.accounted_unix_ns += set_by_ns
        self.noted_unix_ns += set_by_ns
        for waiting in self.waiting.values():
            waiting.start_unix_ns += set_by_ns
            waiting.end_unix_ns += set_by_ns

    @property
    def _between(self) -> str:
        return GAP if self.has_stepped else STARTUP

    def _end(self, number: int, around: int | None, kind: str, start_unix_ns: int, duration_ns: int) -> None:
        """Count a stretch, less what is counted already; what is before it belongs to the phase ``around`` it."""
        end_unix_ns = start_unix_ns + duration_ns
        # Records come in the order of their ends, but for the time it takes to write them.
        if end_unix_ns < self.accounted_unix_ns - _CLOCK_SET_BACK_NS:
            self.accounted_unix_ns = start_unix_ns
        if waiting := self.waiting.pop(number, None):
            middle = min(max(waiting.start_unix_ns, start_unix_ns), waiting.end_unix_ns)
            self._leave(waiting.start_unix_ns, middle, around)
            self._count(kind, waiting.end_unix_ns - middle + waiting.later_ns)
        self._advance(start_unix_ns, around)
        self._spend(kind, end_unix_ns)

    def _advance(self, unix_ns: int, around: int | None) -> None:
        """Go on to a time, with nothing that explains the stretch up to it."""
        self._leave(self.accounted_unix_ns, unix_ns, around)
        self.accounted_unix_ns = max(self.accounted_unix_ns, unix_ns)

    def _spend(self, kind: str, unix_ns: int) -> None:
        """Go on to a time, and count the stretch up to it."""
        self._count(kind, unix_ns - self.accounted_unix_ns)
        self.accounted_unix_ns = max(self.accounted_unix_ns, unix_ns)

    def _leave(self, start_unix_ns: int, end_unix_ns: int, around: int | None) -> None:
        """Let a stretch wait for the end of what is ``around`` it, or count it if that is nothing."""
        if end_unix_ns <= start_unix_ns:
            return
        if around is None:
            self._count(self._between, end_unix_ns - start_unix_ns)
        elif waiting := self.waiting.get(around):
            waiting.later_ns += end_unix_ns - start_unix_ns
        else:
            self.waiting[around] = Waiting(start_unix_ns, end_unix_ns)

    def _kind_of(self, record: Phase) -> str:
        kind = text(record.name)
        return kind if kind in self.spent_ns or len(self.spent_ns) < MAX_KINDS else OTHER

    def _count(self, kind: str, duration_ns: int) -> None:
        if duration_ns > 0:
            self.spent_ns[kind] = self.spent_ns.get(kind, 0) + duration_ns
