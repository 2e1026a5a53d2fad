"""When something is done again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from periflow_otel.agent.pace import interval_for, until_beat_s


@given(st.floats(0.01, 10), st.floats(0, 1e8))
def test_there_is_always_a_beat_within_an_interval(interval_s: float, now_s: float):
    """Nobody waits longer, and nobody spins."""
    assert 0 < until_beat_s(interval_s, now_s) <= interval_s


@given(st.integers(1, 100), st.floats(0, 1e6))
def test_all_with_one_interval_meet(interval_s: int, now_s: float):
    """Whenever they begin to wait: so one has read a journal when the others come."""
    beat_s = now_s + until_beat_s(interval_s, now_s)
    assert abs(beat_s - interval_s * round(beat_s / interval_s)) < 1e-6


@pytest.mark.parametrize(("ranks", "factor"), [(0, 1), (1, 1), (63, 1), (64, 2), (128, 3), (200, 4)])
def test_where_there_are_many_ranks_less_is_done_often(ranks: int, factor: int):
    """So that what it costs in a second stops growing with their number."""
    assert interval_for(ranks, 0.25) == factor * 0.25
