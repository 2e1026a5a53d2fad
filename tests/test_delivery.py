"""What becomes of items on their way to an exporter that takes, refuses, raises or stalls. No time passes here."""

from collections.abc import Callable
from typing import Any

from exporters import Scripted
from hypothesis import given
from hypothesis import strategies as st
from recorder import make_run

from periflow_otel.agent.delivery import MAX_BACKOFF_S, Batch, Delivery
from periflow_otel.agent.tracks import Account
from periflow_otel.exporters import Outcome

RANKS = [make_run(rank=rank) for rank in range(3)]


class Given:
    """A delivery of numbers, some from each rank, and a clock that moves when it is told."""

    def __init__(self, exporter: Scripted, *items: list[Any]) -> None:
        """Give the first rank the first items, and so on."""
        self.now_s = 100.0
        self.accounts = [Account() for _ in items]
        self.delivery = Delivery("test", exporter, lambda: self.now_s)
        self.delivery.give(Batch(*each) for each in zip(RANKS, self.accounts, items, strict=False))

    def run(self, attempts: int = 1000) -> list[float]:
        """Attempt until all is done, or so often; return how long each attempt was waited for."""
        waits_s = []
        for _ in range(attempts):
            if self.delivery.is_done():
                break
            waits_s.append(max(0.0, self.delivery.due_s - self.now_s))
            self.now_s += waits_s[-1]
            self.delivery.attempt()
        return waits_s


def test_everything_that_is_taken_is_counted_for_its_rank():
    """In one attempt, in the order given."""
    exporter = Scripted()
    given_ = Given(exporter, [1, 2], [3], [])
    assert given_.run() == [0]
    assert exporter.taken == [(RANKS[0], 1), (RANKS[0], 2), (RANKS[1], 3)]
    assert [each.delivered for each in given_.accounts] == [2, 1, 0]


def test_what_is_left_is_given_again_later():
    """With pauses that grow, up to a bound, and that begin anew after progress."""
    exporter = Scripted(lambda _: Outcome(0, message="down"))
    given_ = Given(exporter, list(range(10)))
    waits_s = given_.run(12)
    assert waits_s[1] < 1
    assert waits_s[1] < waits_s[3] < waits_s[5]
    assert MAX_BACKOFF_S / 2 <= max(waits_s) <= MAX_BACKOFF_S
    exporter.answer = lambda items: Outcome(min(4, len(items)), message="slow")
    assert given_.run()[1] < 1
    assert exporter.taken == [(RANKS[0], number) for number in range(10)]
    assert given_.accounts[0].delivered == 10


def test_a_receiver_is_left_alone_for_as_long_as_it_asks():
    """Neither shorter nor longer."""
    exporter = Scripted(lambda _: Outcome(0, message="busy", retry_after_s=42.0))
    given_ = Given(exporter, [1])
    assert given_.run(3) == [0, 42, 42]
    assert not given_.delivery.is_due()


def test_an_exporter_that_had_enough_for_once_is_asked_again_at_once():
    """Without a word."""
    exporter = Scripted(lambda items: Outcome(1, retry_after_s=0.0 if len(items) > 1 else None))
    assert Given(exporter, [1, 2, 3]).run() == [0, 0, 0]


@given(st.integers(1, 40), st.sets(st.integers(0, 39)))
def test_what_makes_an_exporter_raise_is_lost_alone(count: int, bad: set[int]):
    """Wherever it is: all others are delivered, and it is counted."""

    def answer(items: list[Any]) -> Outcome:
        if bad & set(items):
            raise ZeroDivisionError
        return Outcome(len(items))

    exporter = Scripted(answer)
    given_ = Given(exporter, list(range(count)))
    given_.run()
    assert [item for _, item in exporter.taken] == [number for number in range(count) if number not in bad]
    lost = len(bad & set(range(count)))
    assert given_.accounts[0].delivered == count - lost
    assert given_.accounts[0].dropped["rejected"] == lost


@given(st.lists(st.integers(0, 10), min_size=3, max_size=3), st.data())
def test_counts_add_up_for_every_rank(sizes: list[int], data: st.DataObject):
    """However much of each call is taken or refused."""

    def answer(items: list[Any]) -> Outcome:
        done = data.draw(st.integers(1, len(items)))
        rejected = data.draw(st.integers(0, done))
        return Outcome(done - rejected, rejected, retry_after_s=0.0)

    given_ = Given(Scripted(answer), *([object()] * size for size in sizes))
    given_.run(100_000)
    assert [each.delivered + each.dropped["rejected"] for each in given_.accounts] == sizes


def _refuse(*bad: int) -> Callable[[list[Any]], Outcome]:
    return lambda items: Outcome(0, 1, "bad") if items[0] in bad else Outcome(1)


def test_refusals_are_counted_for_the_rank_that_they_are_of():
    """Not for the first of the call."""
    given_ = Given(Scripted(_refuse(3, 4)), [1, 2], [3, 4])
    given_.run()
    assert [each.delivered for each in given_.accounts] == [2, 0]
    assert [dict(+each.dropped) for each in given_.accounts] == [{}, {"rejected": 2}]
