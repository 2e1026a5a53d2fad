"""How long the garbage collector has held up a step, where that is worth telling."""

import gc
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

LEAST_NS: Final = 1_000_000
"""A collection that takes less is none of a step's troubles: most take microseconds."""


class Pauses:
    """Adds up the long collections of a step, by generation, in whichever thread they are: all threads stand still.

    What it costs is a few tenths of a microsecond for each collection, which itself takes ten times as long or more.
    """

    def __init__(self, monotonic_ns: Callable[[], int], is_step_open: Callable[[], bool]) -> None:
        """Begin to listen.

        Args:
            monotonic_ns: The clock.
            is_step_open: Asked at the end of a long collection: what is between steps is not counted.
        """
        self._monotonic_ns = monotonic_ns
        self._is_step_open = is_step_open
        self._began_ns = 0
        self.waiting: dict[int, int] = {}
        """Nanoseconds by generation that ``take`` has not returned yet."""
        gc.callbacks.append(self._note)

    def close(self) -> None:
        """Listen no more."""
        with suppress(ValueError):  # somebody has cleared the list
            gc.callbacks.remove(self._note)

    def take(self) -> dict[int, int]:
        """Return the nanoseconds by generation since the last call."""
        taken, self.waiting = self.waiting, {}
        return taken

    def _note(self, phase: str, info: Mapping[str, Any]) -> None:
        if phase == "start":
            self._began_ns = self._monotonic_ns()
            return
        began_ns, self._began_ns = self._began_ns, 0
        took_ns = self._monotonic_ns() - began_ns
        if began_ns and took_ns > LEAST_NS and self._is_step_open():
            generation = info["generation"]
            self.waiting[generation] = self.waiting.get(generation, 0) + took_ns
