"""Whether memory grows without end: from quarter to quarter of a while, in its lows and its highs, and evenly.

What warms up, fills a cache or swings from step to step is not that: it slows down, stops, or comes back.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

LEAST_ROWS: Final = 8
LEAST_S: Final = 30.0
"""Nothing is said of less."""
LEAST_BYTES: Final = 64 << 20
LEAST_SHARE: Final = 0.05
"""Nor of memory that has grown by less, or by less of what it was."""
LEAST_PART: Final = 0.2
"""Each quarter adds a third of the growth where that is even; so much of it at the least."""
SLOWING: Final = 0.75
"""It slows down whose last quarter adds less than so much of what the second one does."""


class Growth(NamedTuple):
    """How memory grows."""

    rate: float
    """Bytes per second."""
    over_s: float
    """For how long it has done so, at the least."""


def find_growth(times_s: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> Growth | None:
    """Return how memory grows that does not stop to.

    Args:
        times_s: Of each row, in order.
        lows: Lowest value in a row, in bytes.
        highs: Highest one.
    """
    for start in (0, len(times_s) // 2, 3 * len(times_s) // 4):  # it may have begun only lately
        if len(times_s) - start < LEAST_ROWS or (over_s := times_s[-1] - times_s[start]) < LEAST_S:
            return None
        quarters = [slice(start + begin, start + end) for begin, end in _quarters(times_s[start:])]
        if any(each.start == each.stop for each in quarters):
            return None
        rises = _rises([min(lows[each]) for each in quarters])
        if min(rises) > 0 and rises[2] < SLOWING * rises[0]:
            return None
        is_even = all(map(_is_even, (rises, _rises([max(highs[each]) for each in quarters]))))
        is_highest = min(lows[quarters[3]]) > max(highs[: start + 1])
        if is_even and is_highest and sum(rises) > max(LEAST_BYTES, LEAST_SHARE * lows[start]):
            return Growth(sum(rises) / (times_s[quarters[3].start] - times_s[start]), over_s)
    return None


def _rises(values: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(values)]


def _is_even(rises: Sequence[float]) -> bool:
    return min(rises) > LEAST_PART * sum(rises) > 0


def _quarters(times_s: Sequence[float]) -> Iterator[tuple[int, int]]:
    """Yield where each quarter of the time begins and ends."""
    quarter_s, start = (times_s[-1] - times_s[0]) / 4, 0
    for number in range(1, 5):
        until_s = times_s[0] + number * quarter_s
        end = next((i for i in range(start, len(times_s)) if times_s[i] > until_s), len(times_s))
        yield start, len(times_s) if number == 4 else end
        start = end
