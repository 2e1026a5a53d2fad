"""How long steps take, as a histogram of the durations for every stretch of a run."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import floor, isfinite, log2
from typing import Any, Final

BINS_PER_OCTAVE: Final = 8
"""A bin is 9 % wide, so that a percentile is right to within 5 %."""
MAX_ROWS: Final = 128
_SHORTEST_S: Final = 1e-9


class Heat:
    """A histogram for each stretch of ``width`` steps; stretches double when there are too many."""

    def __init__(self) -> None:
        """Begin without steps."""
        self.width = 1
        self.rows: dict[int, Counter[int]] = {}
        """By the number of the stretch: how many durations are in which bin."""

    def extend(self, steps: Sequence[int], bins: Sequence[int]) -> None:
        """Add the durations of steps, by their bins."""
        stretches = [step // self.width for step in steps]
        for (stretch, each), count in Counter(zip(stretches, bins, strict=True)).items():
            self.rows.setdefault(stretch, Counter())[each] += count
        while len(self.rows) > MAX_ROWS:
            self._coarsen()

    def to_dict(self) -> dict[str, Any]:
        """Return the rows in order: the first step of each, and the bins as pairs of number and count."""
        rows = sorted(self.rows.items())
        return {
            "width": self.width,
            "bins_per_octave": BINS_PER_OCTAVE,
            "step": [number * self.width for number, _ in rows],
            "bins": [sorted(row.items()) for _, row in rows],
            **{name: [quantile(row, share) for _, row in rows] for name, share in QUANTILES.items()},
        }

    def _coarsen(self) -> None:
        fine, self.rows, self.width = self.rows, {}, self.width * 2
        for number, row in fine.items():
            self.rows.setdefault(number // 2, Counter()).update(row)


QUANTILES: Final = {"p50": 0.5, "p95": 0.95, "max": 1.0}


def quantile(row: Mapping[int, float], share: float) -> float | None:
    """Return a quantile of a histogram in seconds, in the middle of its bin; None if nothing is in it."""
    left = share * sum(row.values())
    for each in sorted(row):
        left -= row[each]
        if left <= 0:
            return float(f"{_middle_s(each):.4g}")
    return None


def usual(row: Mapping[int, float], share: float = 0.95) -> float:
    """Return the mean of a histogram without its longest part, in seconds: what happens now and then is not usual."""
    left = share * sum(row.values())
    total_s, least = 0.0, left
    for each in sorted(row):
        taken = min(left, row[each])
        total_s, left = total_s + taken * _middle_s(each), left - taken
    return total_s / least if least else 0.0


def _middle_s(number: int) -> float:
    return float(2 ** ((number + 0.5) / BINS_PER_OCTAVE))


def bins_of(durations_s: Sequence[float]) -> list[int]:
    """Return for each duration the bin that holds it; what is not known is in none."""
    if not isfinite(sum(durations_s)):
        durations_s = [each for each in durations_s if isfinite(each)]
    if min(durations_s, default=1.0) < _SHORTEST_S:
        durations_s = [max(_SHORTEST_S, each) for each in durations_s]
    return list(map(floor, [BINS_PER_OCTAVE * each for each in map(log2, durations_s)]))


def merged(heats: Iterable["Heat"]) -> "Heat":
    """Return what several ranks have in common."""
    heats = list(heats)
    whole = Heat()
    whole.width = max((each.width for each in heats), default=1)
    for each in heats:
        for number, row in each.rows.items():
            whole.rows.setdefault(number * each.width // whole.width, Counter()).update(row)
    return whole
