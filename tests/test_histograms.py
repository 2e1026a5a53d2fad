"""Histograms, compared with those of the OpenTelemetry SDK."""

import math
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import (
    Aggregation,
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    View,
)

from periflow_otel.names import SECONDS_BOUNDS
from periflow_otel.translate.histograms import Buckets, ExplicitBuckets, ExponentialBuckets
from periflow_otel.translate.telemetry import ExponentialHistogram, Histogram

SECONDS = st.floats(0, 1e4) | st.sampled_from([0.0, 1.0, 0.5, 2.0, *SECONDS_BOUNDS])
ANYTHING = st.floats(0, 1e300, allow_subnormal=False) | st.integers(-1000, 1000).map(lambda power: 2.0**power)
VALUES = st.lists(SECONDS | ANYTHING, min_size=1, max_size=60)


def from_the_sdk(values: list[float], aggregation: Aggregation) -> Any:
    """Return the data point that the SDK makes of values."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], views=[View(instrument_name="h", aggregation=aggregation)])
    histogram = provider.get_meter("m").create_histogram("h")
    for value in values:
        histogram.record(value)
    data = reader.get_metrics_data()
    provider.shutdown()
    assert data is not None
    return data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points[0]


def recorded(buckets: Buckets, values: list[float]) -> Any:
    """Record values and return the snapshot."""
    for value in values:
        buckets.record(value)
    return buckets.snapshot()


def by_index(offset: int, counts: tuple[int, ...]) -> dict[int, int]:
    """Return the buckets that are not empty by their index."""
    return {offset + position: count for position, count in enumerate(counts) if count}


@given(VALUES)
@example([0.0, 5e-324, 1.7e308, 0.001, 600.0, 600.0000001])
def test_explicit_buckets_are_those_of_the_sdk(values: list[float]):
    """Every field is the SDK's, whatever the values are."""
    ours = recorded(ExplicitBuckets(SECONDS_BOUNDS), values)
    sdk = from_the_sdk(values, ExplicitBucketHistogramAggregation(SECONDS_BOUNDS))
    assert ours == Histogram(sdk.count, sdk.sum, sdk.min, sdk.max, tuple(sdk.explicit_bounds), tuple(sdk.bucket_counts))


@given(VALUES)
@example([1.0])
@example([1.0, 1.0000001])
@example([2.2250738585072014e-308, 1.7976931348623157e308])
@example([0.0, 0.0])
@example([5e-324, 1e-310])
@example([0.1, 0.1, 100.0, 0.0])
def test_exponential_buckets_are_those_of_the_sdk(values: list[float]):
    """Scale, zero count and every bucket are the SDK's, whatever the values are."""
    ours = recorded(ExponentialBuckets(), values)
    sdk = from_the_sdk(values, ExponentialBucketHistogramAggregation())
    assert (ours.count, ours.sum, ours.min, ours.max) == (sdk.count, sdk.sum, sdk.min, sdk.max)
    assert (ours.scale, ours.zero_count) == (sdk.scale, sdk.zero_count)
    assert by_index(ours.offset, ours.bucket_counts) == by_index(sdk.positive.offset, sdk.positive.bucket_counts)


@given(VALUES)
def test_exponential_buckets_hold_what_their_bounds_say(values: list[float]):
    """Bucket i has the values above base ** i, up to base ** (i + 1), but for rounding at the bounds."""
    ours = recorded(ExponentialBuckets(), values)
    positions = [math.log2(max(value, sys.float_info.min)) * 2.0**ours.scale for value in values if value]
    for index, count in by_index(ours.offset, ours.bucket_counts).items():
        assert sum(index - 1e-6 < position <= index + 1 + 1e-6 for position in positions) >= count


@given(VALUES)
def test_there_are_never_more_than_160_buckets(values: list[float]):
    """The finest scale is used at which all values fit."""
    ours = recorded(ExponentialBuckets(), values)
    assert len(ours.bucket_counts) <= 160
    assert ours.scale <= 20


def test_durations_of_training_are_counted_finely():
    """Steps between 80 and 120 ms differ by less than one percent from bucket to bucket."""
    ours = recorded(ExponentialBuckets(), [0.08 + 0.0004 * step for step in range(100)])
    assert 2.0 ** (2.0**-ours.scale) < 1.01


@pytest.mark.parametrize("kind", [ExplicitBuckets, ExponentialBuckets])
def test_a_reset_forgets_everything(kind: type[Buckets]):
    """After a reset a histogram is like a new one, and records like one."""
    used, new = kind(), kind()
    recorded(used, [0.0, 1e-9, 1e9])
    used.reset()
    assert used.snapshot() == new.snapshot()
    assert recorded(used, [0.25, 0.3]) == recorded(new, [0.25, 0.3])


def test_a_recorded_value_tells_its_bucket():
    """An exemplar can be kept for each bucket; a value that equals a bound lies below it."""
    assert [ExplicitBuckets((1.0, 2.0)).record(value) for value in (0.0, 1.0, 1.5, 2.5)] == [0, 0, 1, 2]


@given(VALUES)
def test_exponential_buckets_have_few_exemplars(values: list[float]):
    """However many buckets there are, their exemplars are bounded."""
    buckets = ExponentialBuckets()
    assert {buckets.record(value) for value in values} <= set(range(20))


def test_a_snapshot_does_not_change():
    """What is recorded later is not in an earlier snapshot."""
    buckets = ExplicitBuckets((1.0,))
    before = buckets.snapshot()
    buckets.record(0.5)
    assert before == Histogram(0, 0.0, 0.0, 0.0, (1.0,), (0, 0))


def test_two_new_histograms_share_nothing():
    """A default is not shared by all that use it."""
    recorded(ExponentialBuckets(), [1.0])
    assert ExponentialBuckets().snapshot() == ExponentialHistogram(0, 0.0, 0.0, 0.0, 0, 0, 0, ())


@given(VALUES, VALUES, st.sampled_from([ExponentialBuckets(), ExplicitBuckets(SECONDS_BOUNDS)]))
def test_a_decoded_histogram_goes_on(before: list[float], after: list[float], new: Buckets):
    """State that was written and read again counts as if nothing had happened."""
    new.reset()
    recorded(new, before)
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(new), type=ExplicitBuckets | ExponentialBuckets)
    assert recorded(decoded, after) == recorded(new, after)
