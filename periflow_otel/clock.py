"""The clocks that a run reads. Tests put their own in place."""

import time
from collections.abc import Callable
from typing import Final, NamedTuple


class Clock(NamedTuple):
    """Two clocks: one tells the time of day, the other measures durations."""

    time_ns: Callable[[], int]
    """Nanoseconds since 1970. May jump."""
    monotonic_ns: Callable[[], int]
    """Nanoseconds since some moment. Never goes back."""


SYSTEM: Final = Clock(time.time_ns, time.monotonic_ns)
