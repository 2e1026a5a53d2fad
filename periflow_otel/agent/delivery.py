"""Sees items through to one exporter, however long it takes, and accounts for them rank by rank.

It never waits itself: ``attempt`` makes one, and ``due_s`` says when the next may be made. So one thread can see to
many deliveries, and a test needs no time.

One bad item never blocks the others. A request that is refused is made smaller until the item to blame is alone, and
that one is set aside. A request that fails again and again is made smaller too, but a failure may have nothing to do
with its items: an item that fails alone becomes a *suspect*, the next ones are tried, and only if they pass while it
goes on failing is it set aside. Everything leaves in the order in which it came, but for suspects.
"""

import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

from periflow_otel.agent.pace import MIN_BACKOFF_S, Backoff, Haste, Window
from periflow_otel.agent.tracks import Account
from periflow_otel.exporters import Exporter, Item, Outcome, Verdict
from periflow_otel.records import RankRun

PATIENCE: Final = 3
"""So often a request, or a suspect while others pass, may fail before its items are thought to be to blame."""
MAX_SUSPECTS: Final = 32
"""If so many fail alone, an item from somewhere else decides whether it is the receiver."""

_log = logging.getLogger("periflow_otel")

SetAside = Callable[[Item, str, str], bool]
"""Keeps an item that is not taken, with the reason and the message; returns whether it could."""


class Batch(NamedTuple):
    """Items of one rank."""

    run: RankRun
    account: Account
    """Where it is noted what becomes of them."""
    items: Sequence[Any]


@dataclass(slots=True)
class _Suspect:
    """An item that failed alone."""

    item: Item
    passes: int
    """How many requests had passed when it, or what it was a part of, failed first."""
    failures: int = 1


class Delivery:
    """What is on its way to one exporter. Nothing new is taken before all of it is done with, but for suspects."""

    def __init__(
        self,
        name: str,
        exporter: Exporter[Any],
        set_aside: SetAside | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with nothing.

        Args:
            name: Whose delivery it is, for the log.
            exporter: Where items go.
            set_aside: Keeps what is not taken; None drops it.
            monotonic: Tells the time in seconds.
        """
        self.due_s = 0.0
        """When the next attempt may be made, on the monotonic clock."""
        self.is_declined = False
        """The receiver takes nothing of the kind, up to now."""
        self._name = name
        self._exporter = exporter
        self._set_aside = set_aside
        self._monotonic = monotonic
        self._accounts: dict[int, Account] = {}
        """By the identity of the rank."""
        self._rest: Sequence[Item] = ()
        self._suspects: list[_Suspect] = []
        self._window = Window()
        self._mixes_ranks = False
        """Ranks share requests. A receiver may take things out and does not say whose, so that is seen first."""
        self._was_rejected = True
        """Something was taken out of the batch, or it is not known yet whether that happens."""
        self._looks_back = False
        """The first suspect is tried before anything new: if all is well again, the order stays."""
        self._failures = 0
        """Of requests since the last one that passed."""
        self._passes = self._passes_before_failure = 0
        self._backoff = Backoff()
        self._haste = Haste(monotonic())

    def is_done(self) -> bool:
        """Tell whether everything is done with: delivered, set aside, or lost and counted."""
        return not self._rest and not self._suspects

    def is_due(self) -> bool:
        """Tell whether an attempt may be made."""
        return not self.is_done() and self._monotonic() >= self.due_s

    def wants_more(self) -> bool:
        """Tell whether it takes more: either all is done with, or it depends on others what is to be done."""
        return not self._rest and not any(map(self._is_tried_again, self._suspects))

    def give(self, batches: Iterable[Batch]) -> None:
        """Take what is to be delivered next, in this order, once more is wanted."""
        batches = list(batches)
        if self.is_done():
            self._accounts = {}
            self._window.begin_batch()
            self._mixes_ranks, self._was_rejected = not self._was_rejected, False
        self._accounts |= {id(batch.run): batch.account for batch in batches}
        self._rest = [(batch.run, item) for batch in batches for item in batch.items]

    def give_up(self) -> None:
        """Drop all that is left, and count it: the receiver takes nothing of the kind."""
        for run, _ in (*(suspect.item for suspect in self._suspects), *self._rest):
            self._accounts[id(run)].dropped[Verdict.DECLINED.value] += 1
        self._rest, self._suspects = (), []

    def attempt(self) -> None:
        """Give the exporter what comes next, once."""
        suspect = next(filter(self._is_tried_again, self._suspects), None)
        if suspect or not self._rest or (self._looks_back and self._suspects):
            self._looks_back = False
            self._attempt_suspect(suspect or self._suspects[0])
            return
        if len(self._suspects) >= MAX_SUSPECTS:
            self._attempt_scout()
        else:
            self._attempt_next()
        self._looks_back = True

    def _is_tried_again(self, suspect: _Suspect) -> bool:
        """Tell whether others have passed, so that it is known that the receiver is not to blame."""
        return self._passes > suspect.passes

    def _attempt_next(self) -> None:
        items = self._next_items()
        outcome, done = self._try(items)
        if done:
            self._rest = self._rest[done:]
            self._window.grow(done, len(self._rest))
        if done < len(items):
            self._judge(items[done:], outcome)

    def _next_items(self) -> Sequence[Item]:
        items = self._rest[: self._window.size(len(self._rest))]
        if self._mixes_ranks:
            return items
        first = items[0][0]
        return items[: next((place for place, item in enumerate(items) if item[0] is not first), len(items))]

    def _attempt_suspect(self, suspect: _Suspect) -> None:
        outcome, done = self._try([suspect.item])
        suspect.failures += outcome.verdict is Verdict.FAILED
        is_guilty = suspect.failures >= PATIENCE and self._is_tried_again(suspect)
        if done:
            self._suspects.remove(suspect)
        elif is_guilty or outcome.verdict in _BLAMES:
            self._suspects.remove(suspect)
            self._lose(suspect.item, outcome)
        else:
            self._keep(outcome, self._pause_s(suspect))

    def _pause_s(self, suspect: _Suspect) -> float | None:
        if self._is_tried_again(suspect):
            return MIN_BACKOFF_S
        return 0.0 if self._rest else None  # the next item is tried right after it

    def _attempt_scout(self) -> None:
        """Try an item from anywhere: if it passes, it is the suspects, and if not, the receiver."""
        scout = random.randrange(len(self._rest))  # noqa: S311  # any will do
        outcome, done = self._try([self._rest[scout]])
        if done:
            self._rest = [*self._rest[:scout], *self._rest[scout + 1 :]]
            return
        if outcome.verdict is Verdict.FAILED:
            self._acquit()
        self._keep(outcome)

    def _try(self, items: Sequence[Item]) -> tuple[Outcome, int]:
        """Give some items to the exporter; return its answer and how many are done with, and account for these."""
        outcome = self._export(items)
        done = len(items) if outcome.verdict is Verdict.TAKEN else outcome.done
        if done:
            self._account(items[:done], outcome)
            self._passes += 1
            self._failures = 0
            self._backoff.begin_anew()
            self.is_declined = False
        return outcome, done

    def _export(self, items: Sequence[Item]) -> Outcome:
        try:
            return self._exporter.export(items)
        except Exception as error:  # noqa: BLE001  # whatever it is, the others may pass
            if len(items) == 1:
                _log.exception("%s cannot export an item", self._name)
            return Outcome(Verdict.REFUSED, f"{type(error).__name__} in the exporter")

    def _account(self, items: Sequence[Item], outcome: Outcome) -> None:
        if outcome.rejected:
            self._warn("%s: refused were %d of its items: %s", outcome, outcome.rejected)
        elif outcome.verdict is Verdict.TAKEN and outcome.said:
            self._warn("%s: delivered, but the receiver says: %s", outcome)
        rejected = outcome.rejected
        self._was_rejected |= rejected > 0
        for of_rank, group in groupby(map(id, map(itemgetter(0), items))):
            count = len(list(group))
            account, refused = self._accounts[of_rank], min(rejected, count)
            account.delivered += count - refused
            if refused:
                account.dropped["rejected"] += refused
            rejected -= refused

    def _judge(self, items: Sequence[Item], outcome: Outcome) -> None:
        """Decide what comes next after items that were not taken."""
        if outcome.verdict in _BLAMES:
            self._blame(items, outcome)
            self.due_s = self._haste.next_s(self._monotonic())
        elif outcome.verdict is Verdict.FAILED:
            self._doubt(items, outcome)
        else:
            self._keep(outcome)

    def _blame(self, items: Sequence[Item], outcome: Outcome) -> None:
        """Look for what is refused among items, without waiting."""
        if len(items) == 1:
            self._rest = self._rest[1:]
            self._window.begin_small()
            self._lose(items[0], outcome)
        elif outcome.verdict is Verdict.TOO_LARGE:
            self._window.shrink_to_fit(len(items))
        else:
            self._window.close_in(len(items))

    def _doubt(self, items: Sequence[Item], outcome: Outcome) -> None:
        """Try again, and after a while look for an item that may be to blame."""
        is_impatient = self._window.has_culprit() or self._failures + 1 >= PATIENCE
        if self._failures == 0 and not self._window.has_culprit():
            self._passes_before_failure = self._passes
        self._failures += 1
        if is_impatient and len(items) > 1:
            self._window.close_in(len(items))
            self._keep(outcome, MIN_BACKOFF_S)
            return
        if is_impatient:
            self._suspects.append(_Suspect(items[0], self._passes_before_failure))
            self._rest = self._rest[1:]
            self._window.begin_small()
        self._keep(outcome)

    def _acquit(self) -> None:
        """Take all suspects back: it is the receiver."""
        self._rest = [*(suspect.item for suspect in self._suspects), *self._rest]
        self._suspects = []
        self._failures = 0
        self._window = Window()

    def _lose(self, item: Item, outcome: Outcome) -> None:
        """Set an item aside; drop it if that cannot be."""
        reason = outcome.verdict.value
        account = self._accounts[id(item[0])]
        if self._set_aside is not None and self._set_aside(item, reason, outcome.message):
            self._warn("%s: an item is set aside: %s", outcome)
            account.set_aside[reason] += 1
        else:
            self._warn("%s: an item is dropped: %s", outcome)
            account.dropped[reason] += 1

    def _keep(self, outcome: Outcome, pause_s: float | None = None) -> None:
        """Wait as long as is asked for, or a little longer at each failure."""
        if outcome.verdict is not Verdict.DECLINED:
            self._warn("%s: cannot deliver now, nothing is lost: %s", outcome)
        elif not self.is_declined:
            self._warn("%s: %s", outcome)
        self.is_declined = outcome.verdict is Verdict.DECLINED
        if outcome.retry_after_s is not None:
            pause_s = outcome.retry_after_s
        self.due_s = self._monotonic() + (self._backoff.next_s() if pause_s is None else pause_s)

    def _warn(self, text: str, outcome: Outcome, *numbers: int) -> None:
        """Log something; what the receiver says does not make another cause of it."""
        _log.warning(text, self._name, *numbers, outcome.message, extra={"cause": (text, self._name, outcome.cause)})


_BLAMES: Final = frozenset({Verdict.REFUSED, Verdict.TOO_LARGE})
"""Something is to be done about the items."""
