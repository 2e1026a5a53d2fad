"""Curves for a terminal: two by four dots a character. Pure."""

from collections.abc import Sequence
from math import isfinite
from typing import Final

_DOTS: Final = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bits of a character, by column from the left and row from the top."""
_BLANK: Final = 0x2800


def curve(values: Sequence[float | None], width: int, height: int) -> list[str]:
    """Return the lines of a curve, the top one first: all of the values, from the smallest to the largest.

    Args:
        values: At equal distances; one that is None or not finite is a gap.
        width: Characters in a line.
        height: Lines.
    """
    columns = _columns(values, 2 * width)
    known = [each for column in columns for each in column]
    if not known:
        return ["" for _ in range(height)]
    low, high = min(known), max(known)
    rows = 4 * height - 1
    cells = [[_BLANK] * width for _ in range(height)]
    for x, column in enumerate(columns):
        if column:
            tops = [rows - round((each - low) / (high - low) * rows) if high > low else rows for each in column]
            for y in range(min(tops), max(tops) + 1):
                cells[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
    return ["".join(map(chr, line)).rstrip(chr(_BLANK)) for line in cells]


def _columns(values: Sequence[float | None], count: int) -> list[tuple[float, ...]]:
    """Return the smallest and the largest value of each column, nothing for a gap: no spike disappears."""
    columns: list[tuple[float, ...]] = []
    for x in range(min(count, len(values))):
        begin = x * len(values) // min(count, len(values))
        end = max(begin + 1, (x + 1) * len(values) // min(count, len(values)))
        known = [each for each in values[begin:end] if each is not None and isfinite(each)]
        columns.append((min(known), max(known)) if known else ())
    return columns
