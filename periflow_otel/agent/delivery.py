"""Sees items through to one exporter, however long it takes, and accounts for them rank by rank.

It never waits itself: ``attempt`` makes one, and ``due_s`` says when the next may be made. So one thread can see to
many deliveries, and a test needs no time.
"""

import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

from periflow_otel.agent.tracks import Account
from periflow_otel.exporters import Exporter, Item, Outcome
from periflow_otel.records import RankRun

MIN_BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 8.0

_log = logging.getLogger("periflow_otel")


class Batch(NamedTuple):
    """Items of one rank."""

    run: RankRun
    account: Account
    """Where it is noted what becomes of them."""
    items: Sequence[Any]


class Delivery:
    """What is on its way to one exporter. Nothing new is taken before all of it is done with."""

    def __init__(self, name: str, exporter: Exporter[Any], monotonic: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing.

        Args:
            name: Whose delivery it is, for the log.
            exporter: Where items go.
            monotonic: Tells the time in seconds.
        """
        self.due_s = 0.0
        """When the next attempt may be made, on the monotonic clock."""
        self._name = name
        self._exporter = exporter
        self._monotonic = monotonic
        self._pending: Sequence[Item] = ()
        self._accounts: dict[int, Account] = {}
        """By the identity of the rank."""
        self._backoff_s = MIN_BACKOFF_S

    def is_done(self) -> bool:
        """Tell whether everything is done with: delivered, or lost and counted."""
        return not self._pending

    def is_due(self) -> bool:
        """Tell whether an attempt may be made."""
        return bool(self._pending) and self._monotonic() >= self.due_s

    def give(self, batches: Iterable[Batch]) -> None:
        """Take what is to be delivered next, in this order. All before must be done with."""
        batches = list(batches)
        self._accounts = {id(batch.run): batch.account for batch in batches}
        self._pending = [(batch.run, item) for batch in batches for item in batch.items]

    def attempt(self) -> None:
        """Give the exporter what is left, once."""
        outcome = self._export(self._pending)
        done = outcome.delivered + outcome.rejected
        self._account(self._pending[:done], outcome)
        self._pending = self._pending[done:]
        if self._pending:
            self._put_off(outcome, is_progress=done > 0)
        else:
            self._backoff_s = MIN_BACKOFF_S

    def _export(self, items: Sequence[Item]) -> Outcome:
        """Give items to the exporter; where one makes it fail unexpectedly, only that one is lost."""
        try:
            return self._exporter.export(items)
        except Exception as error:  # noqa: BLE001  # whatever it is, the others may pass
            if len(items) > 1:
                return self._export(items[: len(items) // 2])._replace(retry_after_s=0.0)
            _log.exception("%s cannot export an item; it is dropped", self._name)
            return Outcome(0, 1, f"{type(error).__name__} in the exporter")

    def _account(self, done: Sequence[Item], outcome: Outcome) -> None:
        if outcome.rejected:
            _log.warning("%s: refused were %d of its items: %s", self._name, outcome.rejected, outcome.message)
        rejected = outcome.rejected
        for _, group in groupby(done, lambda item: id(item[0])):
            items = list(group)
            account, refused = self._accounts[id(items[0][0])], min(rejected, len(items))
            account.delivered += len(items) - refused
            account.dropped["rejected"] += refused
            rejected -= refused

    def _put_off(self, outcome: Outcome, *, is_progress: bool) -> None:
        """Wait as long as the receiver wants, or a little longer at each failure."""
        if outcome.retry_after_s == 0:  # it only had enough for once
            return
        _log.warning("%s: cannot deliver now, nothing is lost: %s", self._name, outcome.message)
        if is_progress:
            self._backoff_s = MIN_BACKOFF_S
        wait_s = outcome.retry_after_s
        if wait_s is None:
            wait_s = self._backoff_s * random.uniform(0.5, 1.0)  # noqa: S311  # jitter
            self._backoff_s = min(2 * self._backoff_s, MAX_BACKOFF_S)
        self.due_s = self._monotonic() + wait_s
