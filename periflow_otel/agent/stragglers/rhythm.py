"""How long the steps of a rank usually take, and when one has taken so much longer that it is worth a look. Pure.

A step counts from its start to the next one, so what lies between two is a part of it. Whoever looks need not see each.
"""

from collections import deque
from statistics import median
from typing import Final

from periflow_otel.journal.reader import Head

LOOK_FACTOR: Final = 1.5
"""A step that takes so many times the usual is worth a look"""
LOOK_EXCESS_S: Final = 0.05
"""and this much longer; it costs little, and most of what delays it is still to come."""
SLOW_FACTOR: Final = 2.0
"""A step is slow that takes so many times the usual"""
SLOW_EXCESS_S: Final = 0.1
"""and this much longer."""
LEAST_KNOWN: Final = 8
"""So many looks tell what is usual."""
_KNOWN: Final = 64


class Rhythm:
    """One rank's."""

    def __init__(self) -> None:
        """Begin before the first look."""
        self._head: Head | None = None
        self._periods_s: deque[float] = deque(maxlen=_KNOWN)

    def look(self, head: Head) -> float | None:
        """Take what a journal says of its rank.

        Args:
            head: The present one.

        Returns:
            The mean of the steps that have ended since the last look, in seconds; None if none has.
        """
        before = self._head
        if before is None or head.step < before.step:
            self._head = head
        if before is None or head.step <= before.step:
            return None
        self._head = head
        if not before.step_started_unix_ns:
            return None
        elapsed_ns = head.step_started_unix_ns - before.step_started_unix_ns
        period_s = elapsed_ns / 1e9 / (head.step - before.step)
        self._periods_s.append(period_s)
        return period_s

    @property
    def usual_s(self) -> float | None:
        """How long a step usually takes; None: not known yet."""
        return median(self._periods_s) if len(self._periods_s) >= LEAST_KNOWN else None

    def left_s(self, now_unix_ns: int) -> float | None:
        """Return after how many seconds the present step is worth a look; None: nobody knows.

        Args:
            now_unix_ns: On the clock of the rank.
        """
        usual_s = self.usual_s
        if usual_s is None or self._head is None or self._head.is_pausing:
            return None
        limit_s = max(LOOK_FACTOR * usual_s, usual_s + LOOK_EXCESS_S)
        return limit_s - (now_unix_ns - self._head.step_started_unix_ns) / 1e9


def is_slow(period_s: float, usual_s: float) -> bool:
    """Tell whether a step was so much longer than usual that it is worth a word."""
    return period_s >= max(SLOW_FACTOR * usual_s, usual_s + SLOW_EXCESS_S)
