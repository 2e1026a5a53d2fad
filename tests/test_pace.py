"""When something is done again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from periflow_otel.agent.pace import Turns, interval_for, until_beat_s


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


def test_few_ranks_have_their_turn_at_each_beat():
    """Once, however often somebody asks; a new one at once."""
    turns: Turns[int] = Turns(1.0)
    assert turns.take([0, 1], 10.2) == [0, 1]
    assert turns.take([0, 1], 10.9) == []
    assert turns.take([0, 1, 2], 10.9) == [2]
    assert turns.take([0, 1, 2], 11.0) == [0, 1, 2]


@given(st.integers(64, 700), st.floats(0, 1e6))
def test_of_many_ranks_each_beat_serves_a_part(ranks: int, began_s: float):
    """Nearly as many each time, each once until all have had their turn, and the same for all who ask."""
    parts = 1 + ranks // 64
    turns, others = Turns[int](0.5), Turns[int](0.5)
    assert turns.take(range(ranks), began_s) == others.take(range(ranks), began_s - 0.1) == list(range(ranks))
    others.take(range(ranks), began_s)
    served = [turns.take(range(ranks), began_s + 0.5 * beat) for beat in range(1, parts + 1)]
    assert served == [others.take(range(ranks), began_s + 0.5 * beat) for beat in range(1, parts + 1)]
    assert sorted(rank for each in served for rank in each) == list(range(ranks))
    assert max(map(len, served)) - min(map(len, served)) <= 1


@given(st.lists(st.tuples(st.integers(1, 300), st.floats(0.0, 5.0)), min_size=1, max_size=20))
def test_nobody_waits_longer_than_a_round(calls: list[tuple[int, float]]):
    """However many come, go or are late: a rank that is there all the time has its turn when it is due."""
    turns: Turns[int] = Turns(1.0)
    now_s, served_s = 0.0, 0.0
    for ranks, pause_s in calls:
        now_s += pause_s
        if 0 in turns.take(range(ranks), now_s):
            served_s = now_s
        assert now_s - served_s < 1 + ranks // 64
