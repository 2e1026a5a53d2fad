"""What a rank did of late: who is slow now must not hide behind three good days.

Sums grow from the start of an attempt. They are noted every few seconds, so that the difference to an earlier note
tells of the time since.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

Sums = Mapping[str, Mapping[Any, float]]
"""By kind, and in that by whatever is counted."""
SPAN_S: Final = 30.0
"""So much of a rank's past is its present,"""
LEAST_STEPS: Final = 20
"""or so many steps, if they took longer."""
NOTE_S: Final = 5.0
"""How often sums are noted."""


class Lately:
    """Notes sums of one rank, time and again."""

    def __init__(self) -> None:
        """Begin with nothing noted: up to then, all there is is of late."""
        self._notes: deque[tuple[float, int, Sums]] = deque()

    def note(self, time_s: float, steps: int, sums: Sums) -> None:
        """Note how much there is at a time, in Unix seconds, and forget what is too long ago to be of use."""
        notes = self._notes
        if notes and time_s < notes[-1][0]:
            notes.clear()  # the clock was set back
        notes.append((time_s, steps, sums))
        while len(notes) > 1 and notes[1][0] <= time_s - SPAN_S and notes[1][1] <= steps - LEAST_STEPS:
            notes.popleft()

    def since_s(self) -> float | None:
        """Return when it began, in Unix seconds; None: with the attempt."""
        return self._notes[0][0] if self._notes else None

    def of(self, sums: Sums) -> Sums:
        """Return what is new in sums."""
        return minus(sums, self._notes[0][2]) if self._notes else sums


def minus(sums: Sums, before: Sums) -> Sums:
    """Return by how much sums have grown, without what has not."""
    return {
        kind: {key: more for key, value in of.items() if (more := value - before.get(kind, {}).get(key, 0)) > 0}
        for kind, of in sums.items()
    }
