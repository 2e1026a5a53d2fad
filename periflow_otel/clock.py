"""The clocks that a run reads. Tests put their own in place."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple


class Clock(NamedTuple):
    """Two clocks: one tells the time of day, the other measures durations."""

    time_ns: Callable[[], int]
    """Nanoseconds since 1970. May jump."""
    monotonic_ns: Callable[[], int]
    """Nanoseconds since some moment. Never goes back."""


SYSTEM: Final = Clock(time.time_ns, time.monotonic_ns)

_current = SYSTEM


def current_clock() -> Clock:
    """Return the clock of every run that is given none: the system's, but where ``replaced_clock`` has put another."""
    return _current


@contextmanager
def replaced_clock(clock: Clock) -> Iterator[None]:
    """Let runs that begin inside read ``clock``, in all threads."""
    global _current  # noqa: PLW0603  # a run may begin in any thread, which rules out a context variable
    before, _current = _current, clock
    try:
        yield
    finally:
        _current = before
