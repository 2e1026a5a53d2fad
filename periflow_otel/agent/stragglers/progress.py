"""Whether a rank goes on as it usually does. Pure: looks come with their time, so tests have hours in milliseconds.

Time counts only while somebody looks. If the agent itself was stopped, or the machine slept, nothing was to be seen.
"""

from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Final

from periflow_otel.journal.reader import Head
from periflow_otel.records import StepEnded

FACTOR: Final = 10
"""A step that takes so many times the usual is stuck."""
LONGEST_FACTOR: Final = 2
"""So many times as long as the longest pause before: an evaluation comes again."""
LONG_FACTOR: Final = 30
"""What takes long by nature may take so many times the least: compiling, the first steps, an evaluation by its name."""
PAUSE_FACTOR: Final = 180
"""And so many times if the script has announced it."""
LEAST_STEPS: Final = 3
"""After so many steps it is known what is usual. The first of an attempt do not count: they load and compile."""
_KNOWN: Final = 64
_LONGEST_LOOK_S: Final = 1.0
"""What lies between two looks is taken for no more than this."""


class Progress:
    """One rank's."""

    def __init__(self, before: Sequence[StepEnded] = ()) -> None:
        """Begin before the first look.

        Args:
            before: Steps that had ended by then.
        """
        self.waited_s = 0.0
        """Since it has gone on for the last time, as far as it was looked at."""
        self.is_reported = False
        """It was said that this takes too long, so it is not what a later wait is measured by."""
        self._head: Head | None = None
        self._looked_s = 0.0
        self._step_s = 0.0
        """Since a step has begun."""
        known_s = [(each.gap_ns + each.duration_ns) / 1e9 for each in before if each.gap_ns is not None]
        self._periods_s = deque(known_s, maxlen=_KNOWN)
        self._longest_s = max(known_s, default=0.0)
        self._steps = len(known_s)

    def look(self, head: Head, now_s: float) -> bool:
        """Take what a journal says of its rank; return whether the rank has gone on: another thread may still record.

        Args:
            head: The present one.
            now_s: On a clock that stands still while the machine sleeps.
        """
        elapsed_s = min(now_s - self._looked_s, _LONGEST_LOOK_S) if self._head else 0.0
        before, self._head, self._looked_s = self._head, head, now_s
        self.waited_s += elapsed_s
        self._step_s += elapsed_s
        if before is None or (head.step, head.pause) == (before.step, before.pause):
            return before is None
        self._go_on(head.step - before.step)
        return True

    def forgive(self) -> None:
        """Count from now on: that it did not go on had a good reason."""
        self.waited_s = 0.0

    def limit_s(self, least_s: float) -> float:
        """Return how long it may wait before it is worth a look, in seconds.

        Args:
            least_s: At least so many.
        """
        if self._head is not None and self._head.is_pausing:
            return PAUSE_FACTOR * least_s
        if len(self._periods_s) < LEAST_STEPS:
            return LONG_FACTOR * least_s
        return max(least_s, FACTOR * median(self._periods_s), LONGEST_FACTOR * self._longest_s)

    def _go_on(self, steps: int) -> None:
        waited_s, self.waited_s = self.waited_s, 0.0
        is_reported, self.is_reported = self.is_reported, False
        if self._steps and not is_reported:
            self._longest_s = max(self._longest_s, waited_s)
        if steps > 0:
            if self._steps:
                self._periods_s.extend([self._step_s / steps] * min(steps, LEAST_STEPS))
            self._steps += steps
            self._step_s = 0.0
