"""What becomes of items on their way to an exporter that takes, refuses, fails or raises. No time passes here."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from exporters import Scripted, down, fail, take
from hypothesis import given
from hypothesis import strategies as st
from recorder import make_run

from periflow_otel.agent.delivery import MAX_SUSPECTS, Batch, Delivery
from periflow_otel.agent.pace import HASTY_REQUESTS, HASTY_REQUESTS_PER_S, MAX_BACKOFF_S
from periflow_otel.agent.tracks import Account
from periflow_otel.exporters import Item, Outcome, Verdict, taken

RANKS = [make_run(rank=rank) for rank in range(3)]
Answer = Callable[[list[Any]], Outcome]


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    """Spend no time on what thousands of attempts have to say."""
    logger = logging.getLogger("periflow_otel")
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(logging.NOTSET)


class Given:
    """A delivery of numbers, some from each rank, and a clock that moves when it is told."""

    def __init__(self, answer: Answer, *items: list[Any], keeps: bool = True) -> None:
        """Give the first rank the first items, and so on."""
        self.exporter = Scripted(answer)
        self.now_s = 100.0
        self.kept: list[tuple[Item, str, str]] = []
        self._keeps = keeps
        self.accounts = [Account() for _ in items]
        self.delivery = Delivery("test", self.exporter, self._set_aside, lambda: self.now_s)
        self.give(*items)

    def give(self, *items: list[Any]) -> None:
        """Give the ranks more."""
        self.delivery.give(Batch(*each) for each in zip(RANKS, self.accounts, items, strict=False))

    def run(self, attempts: int = 10_000) -> list[float]:
        """Attempt until more is wanted, or so often; return how long each attempt was waited for."""
        waits_s = []
        for _ in range(attempts):
            if self.delivery.wants_more():
                break
            waits_s.append(max(0.0, self.delivery.due_s - self.now_s))
            self.now_s += waits_s[-1]
            self.delivery.attempt()
        return waits_s

    @property
    def taken(self) -> list[Any]:
        """What the exporter took, in the order in which it did."""
        return [item for _, item in self.exporter.taken]

    @property
    def set_aside(self) -> list[Any]:
        """What was set aside."""
        return [item for (_, item), _, _ in self.kept]

    def _set_aside(self, item: Item, reason: str, message: str) -> bool:
        self.kept.append((item, reason, message))
        return self._keeps


def unless(bad: set[Any], answer: Answer) -> Answer:
    """Take what has nothing bad in it."""
    return lambda items: answer(items) if bad & set(items) else take(items)


def refuse(_: list[Any]) -> Outcome:
    """Say that some of it is wrong."""
    return Outcome(Verdict.REFUSED, "HTTP 400", "bad data")


def explode(_: list[Any]) -> Outcome:
    """Have a fault."""
    raise ZeroDivisionError


def too_large(limit: int) -> Answer:
    """Take no more than so many at once."""
    return lambda items: take(items) if len(items) <= limit else Outcome(Verdict.TOO_LARGE, "HTTP 413")


def in_turn(*answers: Answer) -> Answer:
    """Give one answer after the other, and the last for ever."""
    waiting = list(answers)

    def answer(items: list[Any]) -> Outcome:
        following = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        return following(items)

    return answer


def test_everything_that_is_taken_is_counted_for_its_rank():
    """In the order given."""
    these = Given(take, [1, 2], [3], [])
    these.run()
    assert these.exporter.taken == [(RANKS[0], 1), (RANKS[0], 2), (RANKS[1], 3)]
    assert [each.delivered for each in these.accounts] == [2, 1, 0]


def test_what_is_left_is_given_again_later():
    """With pauses that grow, up to a bound, and that begin anew after progress."""
    these = Given(down, list(range(10)))
    waits_s = these.run(12)
    assert waits_s[1] < 1
    assert waits_s[1] < waits_s[3] < waits_s[5]
    assert MAX_BACKOFF_S / 2 <= max(waits_s) <= MAX_BACKOFF_S
    these.exporter.answer = lambda items: Outcome(Verdict.LATER, "slow", done=4) if len(items) > 4 else take(items)
    assert these.run()[1] < 1
    assert these.taken == list(range(10))
    assert these.accounts[0].delivered == 10


@pytest.mark.parametrize("verdict", [Verdict.LATER, Verdict.FAILED, Verdict.WRONG, Verdict.DECLINED])
def test_a_receiver_is_left_alone_for_as_long_as_it_asks(verdict: Verdict):
    """Neither shorter nor longer."""
    these = Given(lambda _: Outcome(verdict, "busy", retry_after_s=42.0), [1])
    assert these.run(3) == [0, 42, 42]
    assert not these.delivery.is_due()


@pytest.mark.parametrize("verdict", [Verdict.LATER, Verdict.WRONG, Verdict.DECLINED])
def test_what_is_not_about_the_items_never_blames_them(verdict: Verdict):
    """However often it is said, everything is kept and given as a whole."""
    these = Given(lambda _: Outcome(verdict, "not now"), [1, 2, 3])
    these.run(100)
    assert these.exporter.calls == [[1, 2, 3]] * 100
    these.exporter.answer = take
    these.run()
    assert these.accounts[0] == Account(3)


@given(st.integers(1, 60), st.sets(st.integers(0, 59)))
@pytest.mark.parametrize(("answer", "reason"), [(refuse, "refused"), (explode, "refused"), (fail, "failed")])
def test_exactly_what_is_bad_is_set_aside(answer: Answer, reason: str, count: int, bad: set[int]):
    """Wherever it is and however much: all others are delivered, and it is counted."""
    good = [number for number in range(count) if number not in bad] + [100]
    these = Given(unless(bad, answer), [*range(count), 100])
    these.run()
    assert these.delivery.is_done()
    assert sorted(these.taken) == good
    assert sorted(these.set_aside) == [number for number in range(count) if number in bad]
    assert +these.accounts[0].set_aside == ({reason: len(these.set_aside)} if these.set_aside else {})
    assert these.accounts[0].delivered == len(good)


@given(st.integers(1, 60), st.sets(st.integers(0, 59)))
def test_the_order_stays_where_items_are_refused(count: int, bad: set[int]):
    """What comes later must not arrive sooner: a receiver may take no points older than the last."""
    these = Given(unless(bad, refuse), list(range(count)))
    these.run()
    assert these.taken == [number for number in range(count) if number not in bad]


def test_one_item_that_always_fails_is_found_soon():
    """In twenty seconds and some thirty requests, and all others pass."""
    these = Given(unless({1234}, fail), list(range(4096)))
    began_s = these.now_s
    these.run()
    assert (these.set_aside, len(these.taken)) == ([1234], 4095)
    assert these.now_s - began_s < 20
    assert len(these.exporter.calls) < 40


def test_a_single_item_that_fails_is_kept_until_others_have_passed():
    """Alone it proves nothing; meanwhile more is asked for."""
    these = Given(fail, ["poison"])
    these.run()
    for _ in range(20):  # nothing more comes for a while
        these.delivery.attempt()
    assert (these.set_aside, these.delivery.is_done(), these.delivery.wants_more()) == ([], False, True)
    these.exporter.answer = unless({"poison"}, fail)
    these.give([1])
    these.run()
    assert (these.set_aside, these.taken) == (["poison"], [1])


def test_a_receiver_that_fails_at_everything_is_no_reason_to_blame_items():
    """After an hour of it nothing is set aside, and then everything is delivered, in order."""
    these = Given(fail, list(range(100)))
    while these.now_s < 3700 or these.delivery.due_s <= these.now_s:
        these.run(1)
        if these.delivery.wants_more():
            these.give([len(these.taken)])
    assert these.set_aside == []
    assert len(these.exporter.calls) < 3600
    these.exporter.answer = take
    these.run()
    assert these.set_aside == []
    assert these.taken[:100] == list(range(100))


@pytest.mark.parametrize("attempts", range(1, 120, 3))
def test_the_order_stays_whenever_a_receiver_is_well_again(attempts: int):
    """Suspects are tried before anything new, for a receiver may take nothing older than what it has."""
    these = Given(fail, list(range(60)))
    these.run(attempts)
    while these.delivery.due_s <= these.now_s:
        these.run(1)
    these.exporter.answer = take
    these.run()
    assert these.taken == list(range(60))


def test_what_many_suspects_have_in_common_is_the_receiver():
    """They are tried together again."""
    numbers = list(range(2 * MAX_SUSPECTS))
    these = Given(fail, numbers)
    these.run(100)
    assert these.exporter.calls.count(numbers) > 3


@given(st.lists(st.booleans(), max_size=300), st.integers(1, 40))
def test_a_receiver_that_fails_at_times_loses_nothing(fails: list[bool], count: int):
    """What it fails at is delivered later, or set aside: once, and counted."""
    these = Given(in_turn(*(fail if each else take for each in fails), take), list(range(count)))
    these.run()
    while not these.delivery.is_done():
        these.give([1000])
        these.run(100)
    account = these.accounts[0]
    assert sorted(each for each in (*these.taken, *these.set_aside) if each < 1000) == list(range(count))
    assert account.delivered == len(these.taken)
    assert account.set_aside.total() == len(these.set_aside)


@given(st.integers(1, 400), st.integers(1, 400))
def test_requests_that_are_too_large_are_halved(count: int, limit: int):
    """Everything arrives in order, nothing is set aside, and the next batch does not begin from the start."""
    these = Given(too_large(limit), list(range(count)))
    these.run()
    assert these.taken == list(range(count))
    assert these.set_aside == []
    before = len(these.exporter.calls)
    these.give(list(range(count)))
    these.run()
    assert len(these.exporter.calls) - before <= count // max(1, limit // 2) + 2


def test_a_receiver_that_takes_more_again_is_given_more():
    """Somebody has raised its limit: each batch tries twice as much as the one before."""
    these = Given(in_turn(*[too_large(10)] * 20, take), list(range(100)))
    for _ in range(5):
        these.run()
        before = len(these.exporter.calls)
        these.give(list(range(100)))
    assert before
    these.run()
    assert len(these.exporter.calls) - before == 1


def test_an_item_that_is_too_large_alone_is_set_aside():
    """As nothing makes it smaller."""
    these = Given(unless({7}, too_large(0)), list(range(10)))
    these.run()
    assert (these.set_aside, these.accounts[0].set_aside) == ([7], {"too_large": 1})


@pytest.mark.parametrize("place", [0, 1000, 1999])
@pytest.mark.parametrize("answer", [refuse, too_large(0)])
def test_one_bad_item_costs_a_few_requests(place: int, answer: Answer):
    """Also where it is too large: that says nothing of how many others are, in this batch and the next."""
    these = Given(unless({place}, answer), list(range(2000)))
    these.run()
    these.give(list(range(2000, 4000)))
    these.run()
    assert these.set_aside == [place]
    assert len(these.exporter.calls) < 40


def test_what_cannot_be_set_aside_is_dropped_and_counted():
    """A disk may be full."""
    these = Given(unless({2}, refuse), [1, 2, 3], keeps=False)
    these.run()
    assert these.accounts[0] == Account(2, these.accounts[0].dropped)
    assert +these.accounts[0].dropped == {"refused": 1}


def test_refusals_are_counted_for_the_rank_that_they_are_of():
    """Not for the first of the call."""
    these = Given(unless({3, 4}, refuse), [1, 2], [3, 4])
    these.run()
    assert [each.delivered for each in these.accounts] == [2, 0]
    assert [dict(each.set_aside) for each in these.accounts] == [{}, {"refused": 2}]


def test_ranks_share_requests_unless_somebody_takes_things_out():
    """A receiver that does so does not say of which rank they are."""
    these = Given(take, [1, 2], [3])
    these.run()
    these.give([1, 2], [3])
    these.run()
    assert these.exporter.calls == [[1, 2], [3], [1, 2, 3]]
    these.exporter.answer = lambda items: taken(len(items), rejected=items.count(3))
    for _ in range(3):
        these.give([1, 2], [3])
        these.run()
    assert these.exporter.calls[3:] == [[1, 2, 3], [1, 2], [3], [1, 2], [3]]
    assert [dict(each.dropped) for each in these.accounts] == [{"rejected": 1}, {"rejected": 2}]


@given(st.lists(st.integers(0, 10), min_size=3, max_size=3), st.data())
def test_counts_add_up_for_every_rank(sizes: list[int], data: st.DataObject):
    """However much of each call is taken, and however much of that the receiver takes out."""

    def answer(items: list[Any]) -> Outcome:
        done = data.draw(st.integers(1, len(items)))
        rejected = data.draw(st.integers(0, done))
        return Outcome(Verdict.TAKEN if done == len(items) else Verdict.LATER, done=done, rejected=rejected)

    these = Given(answer, *([object()] * size for size in sizes))
    these.run()
    assert [each.delivered + each.dropped["rejected"] for each in these.accounts] == sizes


def test_a_receiver_that_refuses_everything_is_not_flooded():
    """Refusals follow each other at a bounded rate, whatever the number of items."""
    these = Given(refuse, list(range(4096)))
    began_s = these.now_s
    these.run()
    assert len(these.set_aside) == 4096
    assert len(these.exporter.calls) <= HASTY_REQUESTS + HASTY_REQUESTS_PER_S * (these.now_s - began_s) + 2
    assert len(these.exporter.calls) < 2 * 4096


def test_what_is_declined_is_dropped_only_when_it_is_given_up():
    """It is kept as long as somebody may yet change something, and counted when not."""
    these = Given(lambda _: Outcome(Verdict.DECLINED, "no metrics", retry_after_s=60.0), [1], [2, 3])
    these.run(5)
    assert these.delivery.is_declined
    these.delivery.give_up()
    assert these.delivery.is_done()
    assert [dict(each.dropped) for each in these.accounts] == [{"declined": 1}, {"declined": 2}]


def test_a_receiver_that_is_away_proves_nothing_against_a_suspect():
    """Others have passed before; it is tried again when the receiver is back."""
    these = Given(unless({0}, fail), [0, 1])
    while these.taken != [1]:
        these.run(1)
    these.exporter.answer = down
    these.run(10)
    these.exporter.answer = take
    these.run()
    assert (these.set_aside, these.taken) == ([], [1, 0])


def test_a_suspect_that_is_refused_is_set_aside_at_once():
    """Then it is known."""
    these = Given(unless({0}, fail), [0, 1])
    while these.taken != [1]:
        these.run(1)
    these.exporter.answer = unless({0}, refuse)
    these.run(1)
    assert (these.set_aside, these.accounts[0].set_aside) == ([0], {"refused": 1})


def test_failures_that_pass_by_themselves_make_no_request_smaller():
    """A few at a time, with successes between them."""
    these = Given(in_turn(fail, fail, take, fail, fail, take), list(range(10)))
    these.run()
    these.give(list(range(10)))
    these.run()
    assert {len(call) for call in these.exporter.calls} == {10}


def test_what_is_declined_is_said_once(caplog: pytest.LogCaptureFixture):
    """It is asked again each minute, and the answer is no news."""
    caplog.set_level(logging.WARNING, "periflow_otel")
    Given(lambda _: Outcome(Verdict.DECLINED, "no metrics", retry_after_s=60.0), [1]).run(5)
    assert len(caplog.messages) == 1


def test_a_suspect_is_given_up_like_all_others():
    """It is counted once, and nothing of it is left."""
    these = Given(unless({0}, fail), [0, 1])
    while these.taken != [1]:
        these.run(1)
    these.delivery.give_up()
    assert (dict(these.accounts[0].dropped), these.accounts[0].delivered) == ({"declined": 1}, 1)
    assert these.delivery.is_done()


def test_a_signal_that_is_taken_again_is_declined_no_more():
    """Somebody has changed the receiver."""
    these = Given(in_turn(lambda _: Outcome(Verdict.DECLINED, "no metrics"), take), [1])
    these.run()
    assert not these.delivery.is_declined
    assert these.accounts[0] == Account(1)


def test_what_the_receiver_says_is_logged(caplog: pytest.LogCaptureFixture):
    """Of a success too."""
    caplog.set_level(logging.WARNING, "periflow_otel")
    Given(lambda items: taken(len(items), said="this address is switched off on 1 May"), [1]).run()
    assert "this address is switched off on 1 May" in caplog.text


def test_the_same_trouble_has_the_same_cause_whatever_the_receiver_says(caplog: pytest.LogCaptureFixture):
    """So that words which differ every time are not logged every time."""
    caplog.set_level(logging.WARNING, "periflow_otel")
    numbers = iter(range(100))
    Given(lambda _: Outcome(Verdict.LATER, "HTTP 503", f"request {next(numbers)}"), [1]).run(5)
    assert len({record.getMessage() for record in caplog.records}) == 5
    assert len({record.cause for record in caplog.records}) == 1  # type: ignore[attr-defined]  # ours
