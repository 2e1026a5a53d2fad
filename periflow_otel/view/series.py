"""A curve of any length in a bounded number of rows, from which no spike disappears.

A row stands for ``width`` consecutive steps, and holds what there was in them: lowest, highest, last and mean value. A
series begins with a row for each step that has a value; when there are too many, ``width`` doubles and neighbours
become one.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from math import isfinite
from operator import add
from typing import Any, Final

MAX_ROWS: Final = 512
"""Rows of a series: about two points of a wide screen for each, once they are full."""
MIN_ROWS: Final = 32


class Series:
    """Values by step. Steps are 0 or more, times Unix seconds, values may be NaN or infinite."""

    __slots__ = ("_revised", "count", "high", "last", "low", "nonfinite", "redrawn", "revision", "step",
                 "time", "total", "width")  # fmt: skip

    def __init__(self) -> None:
        """Begin without rows."""
        self.width = 1
        """Steps for which a row stands: row ``i`` has those with the quotient ``step[i] // width``."""
        self.step, self.time, self.last = array("d"), array("d"), array("d")
        """Of the last value in a row; ``last`` is the last finite one, NaN if there is none."""
        self.low, self.high, self.total = array("d"), array("d"), array("d")
        """Over the finite values in a row; infinite the wrong way round where there are none."""
        self.count, self.nonfinite = array("q"), array("q")
        """How many finite values a row has, and how many others."""
        self._revised = array("q")
        self.revision = 0
        self.redrawn = 0
        """The last revision that changed another row than the last."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.step)

    def extend(
        self, steps: Sequence[int], times: Sequence[float], values: Sequence[float], max_rows: int, revision: int
    ) -> None:
        """Add values, best many at once.

        Args:
            steps: The step of each value.
            times: When it was recorded.
            values: What it is.
            max_rows: Rows are joined until there are no more of them.
            revision: Number of this change: not lower than that of the one before.
        """
        self.revision = revision
        if steps != (ordered := sorted(steps)):
            order = sorted(range(len(steps)), key=steps.__getitem__)
            steps, times, values = ordered, [times[i] for i in order], [values[i] for i in order]
        if not steps:
            return
        self._make_room(steps, max_rows)
        known = bisect_left(steps, self._end()) if isfinite(sum(values)) else len(steps)
        for part in self._parts(steps[:known]):
            self._put(steps[part.stop - 1], times[part.stop - 1], values[part])
        self._append(steps[known:], times[known:], values[known:])

    def _make_room(self, steps: Sequence[int], max_rows: int) -> None:
        """Join rows at once, before there are too many: values need not be put into rows that are joined anyway."""
        while len(self.step) + min(len(steps), steps[-1] // self.width - steps[0] // self.width + 1) > max_rows:
            buckets = {step // self.width for step in steps}
            buckets.update(int(step // self.width) for step in self.step)
            if len(buckets) <= max_rows:
                return
            self._coarsen()

    def _end(self) -> float:
        """Return the first step that is of no row yet, nor of one before."""
        return (self.step[-1] // self.width + 1) * self.width if len(self.step) else 0

    def _parts(self, steps: Sequence[int]) -> list[slice]:
        """Return which of the steps are of one row each."""
        parts, start = [], 0
        while start < len(steps):
            end = bisect_left(steps, (steps[start] // self.width + 1) * self.width, start)
            parts.append(slice(start, end))
            start = end
        return parts

    def fit(self, max_rows: int, revision: int) -> None:
        """Join rows until there are no more than so many."""
        while len(self.step) > max_rows:
            self.revision = revision
            self._coarsen()

    def latest(self) -> float | None:
        """Return the last value, NaN where it was not finite; None if there is none."""
        if not len(self.step):
            return None
        return self.last[-1] if self.count[-1] else _NAN

    def step_at(self, time: float) -> int:
        """Return the step of the last row that is not later, or of the first."""
        return int(self.step[max(0, bisect_right(self.time, time) - 1)])

    def since(self, revision: int) -> int:
        """Return the index of the first row that has changed after a revision."""
        return 0 if revision < self.redrawn else bisect_right(self._revised, revision)

    def to_dict(self, start: int = 0, digits: int | None = None) -> dict[str, Any]:
        """Return the rows from one on as columns; without a finite value in it, a row has None.

        Args:
            start: The first row.
            digits: Round values to so many, which takes a while.
        """
        columns: dict[str, Any] = {
            "width": self.width,
            "from": start,
            "step": list(map(int, self.step[start:])),
            "time": [round(each, 3) for each in self.time[start:]],
            "last": _shown(self.last[start:], digits),
        }
        if any(count != 1 for count in self.count[start:]):
            columns["min"], columns["max"] = (_shown(column[start:], digits) for column in (self.low, self.high))
            sums = zip(self.total[start:], self.count[start:], strict=True)
            columns["mean"] = _shown([total / count if count else _NAN for total, count in sums], digits)
            columns["count"] = list(self.count[start:])
        if any(self.nonfinite[start:]):
            columns["nonfinite"] = list(self.nonfinite[start:])
        return columns

    def _append(self, steps: Sequence[int], times: Sequence[float], values: Sequence[float]) -> None:
        """Add values, all finite, that are later than all rows."""
        parts = self._parts(steps)
        lasts, rows = [part.stop - 1 for part in parts], [values[part] for part in parts]
        for column, of in ((self.step, steps), (self.time, times), (self.last, values)):
            column.extend([of[last] for last in lasts])
        self.low.extend(map(min, rows))
        self.high.extend(map(max, rows))
        self.total.extend(map(sum, rows))
        self.count.extend(map(len, rows))
        self.nonfinite.extend([0] * len(rows))
        self._revised.extend([self.revision] * len(rows))

    def _put(self, step: int, time: float, values: Sequence[float]) -> None:
        """Add values of one row, with the last step and time among them."""
        finite, total = values, sum(values)
        if not isfinite(total):
            finite = [value for value in values if isfinite(value)]
            total = sum(finite)
        row = self._row(step // self.width)
        if finite:
            self.low[row] = min(self.low[row], *finite)
            self.high[row] = max(self.high[row], *finite)
            self.total[row] += total
            self.count[row] += len(finite)
        self.nonfinite[row] += len(values) - len(finite)
        if step >= self.step[row]:
            self.step[row], self.time[row] = step, time
            if finite:
                self.last[row] = finite[-1]

    def _row(self, bucket: int) -> int:
        """Return the row of a bucket, which may be a new one."""
        row = bisect_left(self.step, bucket * self.width)
        if row == len(self.step) or self.step[row] // self.width != bucket:
            nothing = (bucket * self.width, _NAN, _NAN, _INFINITE, -_INFINITE, 0.0, 0, 0, 0)
            for column, value in zip((*self._columns(), self._revised), nothing, strict=True):
                column.insert(row, value)
        self._revised[row] = self.revision
        if row < len(self.step) - 1:
            self.redrawn = self.revision
        return row

    def _coarsen(self) -> None:
        """Let a row stand for twice as many steps: of two neighbours one is made, or one stays as it is."""
        self.width *= 2
        self.redrawn = self.revision
        buckets = [step // self.width for step in self.step]
        firsts = [row for row, bucket in enumerate(buckets) if not row or bucket != buckets[row - 1]]
        lasts = [row - 1 for row in (*firsts, len(buckets))[1:]]
        pairs = list(zip(firsts, lasts, strict=True))
        for column, join in zip(self._columns(), _JOINS, strict=True):
            joined = [column[one] if one == other else join(column[one], column[other]) for one, other in pairs]
            column[:] = array(column.typecode, joined)
        self._revised = array("q", [self.revision]) * len(pairs)

    def _columns(self) -> tuple["array[Any]", ...]:
        return self.step, self.time, self.last, self.low, self.high, self.total, self.count, self.nonfinite


def _later(_: float, other: float) -> float:
    return other


def _later_known(value: float, other: float) -> float:
    return value if other != other else other  # noqa: PLR0124  # NaN alone is not itself


_JOINS: Final[tuple[Callable[[Any, Any], Any], ...]] = (_later, _later, _later_known, min, max, add, add, add)
"""How two neighbours become one, by column."""
_NAN: Final = float("nan")
_INFINITE: Final = float("inf")


def _shown(values: Sequence[float], digits: int | None) -> list[float | None]:
    """Return values with None for those that are not finite."""
    if digits is not None:
        values = [float(f"{value:.{digits}g}") for value in values]
    return [value if isfinite(value) else None for value in values]
