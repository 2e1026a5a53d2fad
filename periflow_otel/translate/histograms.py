"""Histograms that grow value by value, as the OpenTelemetry data model defines them.

Values are finite. The fields are the state of a histogram, to be encoded and decoded as they are.
"""

import sys
from bisect import bisect_left
from math import floor, frexp, ldexp, log
from typing import Final

import msgspec

from periflow_otel.names import SECONDS_BOUNDS
from periflow_otel.translate.telemetry import ExponentialHistogram, Histogram

_MAX_BUCKETS: Final = 160
_MAX_SCALE: Final = 20
_EXEMPLARS: Final = 20
"""What the specification recommends for exponential histograms."""
_BUCKETS_PER_UNIT_OF_LOG: Final = [ldexp(1 / log(2), scale) for scale in range(_MAX_SCALE + 1)]


class ExplicitBuckets(msgspec.Struct, array_like=True, tag="explicit"):
    """Counts values between given bounds; a value that equals a bound lies below it."""

    bounds: tuple[float, ...] = SECONDS_BOUNDS
    """In ascending order."""
    counts: list[int] = []
    """One more than there are bounds."""
    count: int = 0
    sum: float = 0.0
    min: float = 0.0
    max: float = 0.0

    def __post_init__(self) -> None:
        """Begin with empty buckets."""
        if not self.counts:
            self.reset()

    def record(self, value: float) -> int:
        """Count a value, and return the position of its bucket."""
        position = bisect_left(self.bounds, value)
        self.counts[position] += 1
        _summarize(self, value)
        return position

    def snapshot(self) -> Histogram:
        """Return the values since the last reset; ``min`` and ``max`` of none are 0."""
        return Histogram(self.count, self.sum, self.min, self.max, self.bounds, tuple(self.counts))

    def reset(self) -> None:
        """Forget all values."""
        self.counts = [0] * (len(self.bounds) + 1)
        self.count, self.sum, self.min, self.max = 0, 0.0, 0.0, 0.0


class ExponentialBuckets(msgspec.Struct, array_like=True, tag="exponential"):
    """Counts values in buckets that grow by a constant factor: as fine as 160 buckets for all of them allow.

    Bucket ``i`` holds values above ``base ** i`` and up to ``base ** (i + 1)``, where ``base = 2 ** (2 ** -scale)``.
    A value of 0 or below counts as zero.
    """

    scale: int = _MAX_SCALE
    counts: dict[int, int] = {}
    """By the index of the bucket."""
    low: int = 0
    high: int = -1
    """Lowest and highest index; ``high`` below ``low`` while there are none."""
    zero_count: int = 0
    count: int = 0
    sum: float = 0.0
    min: float = 0.0
    max: float = 0.0

    def record(self, value: float) -> int:
        """Count a value, and return which of 20 exemplars it may replace: neighbours have different ones."""
        index = 0
        if value > 0:
            index = self._count_positive(value)
        else:
            self.zero_count += 1
        _summarize(self, value)
        return index % _EXEMPLARS

    def snapshot(self) -> ExponentialHistogram:
        """Return the values since the last reset; ``min`` and ``max`` of none are 0."""
        buckets = tuple(self.counts.get(index, 0) for index in range(self.low, self.high + 1))
        scale = self.scale if buckets else 0
        return ExponentialHistogram(self.count, self.sum, self.min, self.max, scale, self.zero_count, self.low, buckets)

    def reset(self) -> None:
        """Forget all values, and be as fine as possible again."""
        self.scale, self.counts, self.low, self.high = _MAX_SCALE, {}, 0, -1
        self.zero_count, self.count, self.sum, self.min, self.max = 0, 0, 0.0, 0.0, 0.0

    def _count_positive(self, value: float) -> int:
        index = _bucket(value, self.scale)
        if not self.counts:
            self.low = self.high = index
        elif not self.low <= index <= self.high:
            index = self._make_room(index)
        self.counts[index] = self.counts.get(index, 0) + 1
        return index

    def _make_room(self, index: int) -> int:
        """Take an index into the range, with wider buckets where there would be too many; return the index then."""
        low, high, shift = min(self.low, index), max(self.high, index), 0
        while (high >> shift) - (low >> shift) >= _MAX_BUCKETS:
            shift += 1
        self.low, self.high = low >> shift, high >> shift
        if shift:
            self._widen(shift)
        return index >> shift

    def _widen(self, shift: int) -> None:
        """Merge buckets until each holds ``2 ** shift`` of those before."""
        self.scale -= shift
        narrow, self.counts = self.counts, {}
        for index, count in narrow.items():
            self.counts[index >> shift] = self.counts.get(index >> shift, 0) + count


Buckets = ExplicitBuckets | ExponentialBuckets


def _summarize(buckets: Buckets, value: float) -> None:
    if not buckets.count:
        buckets.min = buckets.max = value
    elif value < buckets.min:
        buckets.min = value
    elif value > buckets.max:
        buckets.max = value
    buckets.count += 1
    buckets.sum += value


def _bucket(value: float, scale: int) -> int:
    """Return the index of a positive value; one below the smallest normal number counts as that."""
    fraction, exponent = frexp(max(value, sys.float_info.min))
    if fraction == 0.5:  # A power of two is the upper bound of its bucket, which the logarithm may miss.
        exponent -= 1
        return (exponent << scale) - 1 if scale > 0 else (exponent - 1) >> -scale
    if scale > 0:
        return min(floor(log(value) * _BUCKETS_PER_UNIT_OF_LOG[scale]), (sys.float_info.max_exp << scale) - 1)
    return (exponent - 1) >> -scale
