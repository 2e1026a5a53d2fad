"""Which steps leave a trace."""

from statistics import median_high

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from periflow_otel.ids import is_sampled, step_trace_id
from periflow_otel.translate.sampling import SamplerState, StepSampler

DROPPED = (1 << 64) - 1
"""A trace that no ratio below 1 keeps."""


def steady(steps: int, duration_s: float = 0.1) -> StepSampler:
    """Return a sampler that has seen steps of equal duration."""
    sampler = StepSampler(SamplerState())
    for _ in range(steps):
        sampler.keep(DROPPED, 0, duration_s, is_marked=False)
    return sampler


def test_every_step_is_kept_by_default():
    """A ratio of 1 keeps everything."""
    assert StepSampler(SamplerState()).keep(DROPPED, 1.0, 0.1, is_marked=False)


def test_a_ratio_decides_on_the_trace():
    """Steady steps are kept or dropped by the hash that all ranks share."""
    sampler = StepSampler(SamplerState())
    traces = [step_trace_id("run", 1, step) for step in range(1000)]
    kept = [sampler.keep(trace, 0.1, 0.1, is_marked=False) for trace in traces]
    assert kept == [is_sampled(trace, 0.1) for trace in traces]
    assert 50 < sum(kept) < 200


def test_a_marked_step_is_always_kept():
    """A checkpoint, an error or a non-finite metric is kept even if no step is."""
    assert steady(50).keep(DROPPED, 0, 0.1, is_marked=True)


def test_a_step_far_over_the_median_is_kept():
    """Three times the median is where a step is slow."""
    assert not steady(50).keep(DROPPED, 0, 0.29, is_marked=False)
    assert steady(50).keep(DROPPED, 0, 0.31, is_marked=False)


def test_the_first_steps_are_not_slow():
    """Before 20 durations are known there is no median to be far over."""
    assert not steady(19).keep(DROPPED, 0, 10.0, is_marked=False)
    assert steady(20).keep(DROPPED, 0, 10.0, is_marked=False)


def test_what_is_slow_moves_with_training():
    """When steps become long for good, they stop being slow."""
    sampler = steady(200)
    kept = [sampler.keep(DROPPED, 0, 1.0, is_marked=False) for _ in range(100)]
    assert kept[0]
    assert not kept[-1]


def test_a_decoded_sampler_goes_on():
    """State that was written and read again decides as if nothing had happened."""
    durations = [0.1 + 0.02 * (step * step % 37) for step in range(400)]
    whole, state = StepSampler(SamplerState()), b""
    for duration_s in durations:
        decoded = msgspec.msgpack.decode(state, type=SamplerState) if state else SamplerState()
        kept = StepSampler(decoded).keep(DROPPED, 0, duration_s, is_marked=False)
        state = msgspec.msgpack.encode(decoded)
        assert kept == whole.keep(DROPPED, 0, duration_s, is_marked=False)


@given(st.lists(st.floats(0, 1e6), max_size=300))
def test_the_median_is_that_of_the_last_101(durations: list[float]):
    """Each step is compared with the median of what came before, whatever the durations are."""
    sampler = StepSampler(SamplerState())
    for number, duration_s in enumerate(durations):
        before = durations[max(0, number - 101) : number]
        is_slow = len(before) >= 20 and duration_s > 3 * median_high(before)
        assert sampler.keep(DROPPED, 0, duration_s, is_marked=False) == is_slow
