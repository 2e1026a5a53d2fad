"""A curve in a terminal hides nothing."""

import math

from hypothesis import given
from hypothesis import strategies as st

from periflow_otel.page.braille import curve

VALUES = st.lists(st.none() | st.floats(allow_nan=True, allow_infinity=True), max_size=300)


def dots(lines: list[str]) -> set[tuple[int, int]]:
    """Return the dots of a curve, from the top left."""
    bits = {0: (0, 0), 1: (0, 1), 2: (0, 2), 6: (0, 3), 3: (1, 0), 4: (1, 1), 5: (1, 2), 7: (1, 3)}
    return {
        (2 * x + bits[bit][0], 4 * y + bits[bit][1])
        for y, line in enumerate(lines)
        for x, char in enumerate(line)
        for bit in range(8)
        if (ord(char) - 0x2800) >> bit & 1
    }


def test_a_line_that_falls_goes_from_corner_to_corner():
    """The largest value is at the top."""
    assert dots(curve([3.0, 2.0, 1.0, 0.0], 2, 1)) == {(0, 0), (1, 1), (2, 2), (3, 3)}


def test_a_spike_among_many_reaches_the_top():
    """However many values a column stands for."""
    values = [0.0] * 100_000
    values[77_777] = 1.0
    found = dots(curve(values, 40, 2))
    assert [x for x, y in found if y == 0] == [77_777 * 80 // 100_000]


def test_gaps_are_gaps():
    """What is not finite is not drawn, and does not move the scale."""
    assert dots(curve([0.0, math.nan, None, 1.0, math.inf], 3, 1)) == {(0, 3), (3, 0)}


def test_a_constant_is_a_line():
    """At the bottom."""
    assert dots(curve([5.0, 5.0], 1, 1)) == {(0, 3), (1, 3)}


@given(VALUES, st.integers(1, 40), st.integers(1, 5))
def test_any_values_fit_into_their_place(values: list[float | None], width: int, height: int):
    """A column is empty only where no value of it is finite."""
    lines = curve(values, width, height)
    assert len(lines) == height
    assert all(len(line) <= width for line in lines)
    count = min(2 * width, len(values))
    finite = {i * count // len(values) for i, each in enumerate(values) if each is not None and math.isfinite(each)}
    assert len({x for x, _ in dots(lines)}) <= count
    assert bool(dots(lines)) == bool(finite)
