"""How much is given to an exporter at once, and how soon after the last attempt. Pure, with the time as an argument."""

import random
from collections.abc import Hashable, Iterable
from typing import Final, Generic, TypeVar

MIN_BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 8.0
HASTY_REQUESTS: Final = 100
"""So many requests that are refused may follow each other without a pause; it is this many more"""
HASTY_REQUESTS_PER_S: Final = 50.0
"""for each second."""
RANKS_PER_INTERVAL: Final = 64
"""Where there are so many ranks, what costs something for each of them is done half as often; a third for twice as
many: the processors are there for training."""
_GROWTH: Final = 4
_Rank = TypeVar("_Rank", bound=Hashable)


def interval_for(ranks: int, interval_s: float) -> float:
    """Return how often something is done for so many ranks that is done every ``interval_s`` for few."""
    return interval_s * (1 + ranks // RANKS_PER_INTERVAL)


def until_beat_s(interval_s: float, now_s: float) -> float:
    """Return how long it is until the next beat: all with one interval meet there, and read a journal once for all."""
    return interval_s - now_s % interval_s


class Turns(Generic[_Rank]):
    """Whose turn it is. Where there are many ranks, each beat serves a part of them, and all who ask then the same."""

    def __init__(self, interval_s: float) -> None:
        """Begin before the first turn of all.

        Args:
            interval_s: From beat to beat.
        """
        self._interval_s = interval_s
        self._served: dict[_Rank, tuple[int, int]] = {}

    def take(self, ranks: Iterable[_Rank], now_s: float) -> list[_Rank]:
        """Return those whose turn has come since the last call; a new one's has at once.

        Args:
            ranks: All that there are, in the same order for all who ask.
            now_s: On the monotonic clock.
        """
        ranks = list(ranks)
        beat, parts = int(now_s // self._interval_s), 1 + len(ranks) // RANKS_PER_INTERVAL
        turns = {rank: (parts, (beat + place) // parts) for place, rank in enumerate(ranks)}
        due = [rank for rank, turn in turns.items() if turn != self._served.get(rank)]
        self._served = turns
        return due


class Window:
    """How many of the items are given at once: all, until somebody among them is looked for."""

    def __init__(self) -> None:
        """Begin with all."""
        self._size = 0
        """0: all."""
        self._region = 0
        """Among so many of the next items there is one to blame; 0: nobody knows."""
        self._limit = 0
        """More are too large for a request; 0: nobody knows."""

    def has_culprit(self) -> bool:
        """Tell whether an item to blame is known to be among the next."""
        return self._region > 0

    def size(self, rest: int) -> int:
        """Return how many of ``rest`` items are given next."""
        return min(self._size or rest, self._limit or rest)

    def begin_batch(self) -> None:
        """Try a larger request than was possible the last time."""
        self._limit *= 2

    def shrink_to_fit(self, failed: int) -> None:
        """Give half of so many that were too large."""
        self._limit = failed // 2

    def close_in(self, failed: int) -> None:
        """Give half of so many, among which there is an item to blame."""
        self._size, self._region = failed // 2, failed

    def grow(self, passed: int, rest: int) -> None:
        """Go on after so many that passed: nearer to whoever is looked for, else with more."""
        self._region = max(0, self._region - passed)
        if self._region:
            self._size = max(1, self._region // 2)
        elif self._size:
            self._size = 0 if self._size * _GROWTH >= rest else self._size * _GROWTH

    def begin_small(self) -> None:
        """Go on after an item that was found: whether the next ones pass is not known."""
        self._size, self._region, self._limit = 1, 0, 0


class Backoff:
    """Pauses that grow, with some chance in them, so that many agents do not come all at once."""

    def __init__(self) -> None:
        """Begin small."""
        self._pause_s = MIN_BACKOFF_S

    def next_s(self) -> float:
        """Return the next pause."""
        pause_s = self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311  # jitter
        self._pause_s = min(2 * self._pause_s, MAX_BACKOFF_S)
        return pause_s

    def begin_anew(self) -> None:
        """Take note of a success."""
        self._pause_s = MIN_BACKOFF_S


class Haste:
    """Bounds requests that follow each other without a pause."""

    def __init__(self, now_s: float) -> None:
        """Begin rested."""
        self._left = float(HASTY_REQUESTS)
        self._seen_s = now_s

    def next_s(self, now_s: float) -> float:
        """Take note of a request, and return when the next may follow."""
        self._left = min(HASTY_REQUESTS, self._left + (now_s - self._seen_s) * HASTY_REQUESTS_PER_S) - 1
        self._seen_s = now_s
        return now_s + max(0.0, -self._left) / HASTY_REQUESTS_PER_S
