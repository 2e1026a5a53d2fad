"""How far one consumer has got in one journal: it reads on from there, and knows what became of what it has read."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from periflow_otel.agent.watch import RankJournal
from periflow_otel.journal.cursors import Cursor, CursorFile
from periflow_otel.journal.reader import Chunk
from periflow_otel.records import RankLost, RankRun, Record, RunFinished
from periflow_otel.translate import MakeTranslator, Translator
from periflow_otel.translate.values import MAX_KEYS, TOO_MANY_KEYS

RECORDS_PER_ROUND: Final = 2048
"""Records that are read, delivered and committed together, or one chunk more: what a dead agent may deliver twice."""
ITEMS_PER_ROUND: Final = 4096
BYTES_PER_ROUND: Final = 1 << 20
"""No more records are read in a round that has made this many items, or whose records take this much."""

_LAST_WORDS: Final = frozenset({RunFinished, RankLost})
_log = logging.getLogger("periflow_otel")


class Budget:
    """How much one round may still take in."""

    __slots__ = ("_items", "_records", "_size_bytes")

    def __init__(self) -> None:
        """Begin a round."""
        self._records = RECORDS_PER_ROUND
        self._size_bytes = BYTES_PER_ROUND
        self._items = ITEMS_PER_ROUND

    def spend(self, chunk: Chunk, items: int) -> None:
        """Take note of what was read, and of how many items it made."""
        self._records -= len(chunk.records)
        self._size_bytes -= chunk.size_bytes
        self._items -= items

    def is_spent(self) -> bool:
        """Tell whether the round is over."""
        return self._records <= 0 or self._size_bytes <= 0 or self._items <= 0


@dataclass(slots=True)
class Account:
    """What became of the items of one rank."""

    delivered: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """By reason."""
    set_aside: Counter[str] = field(default_factory=Counter)
    """By reason."""


class Track:
    """Reads one journal for one consumer, in one thread. What is read is final once it is committed."""

    def __init__(self, journal: RankJournal, consumer: str, make_translator: MakeTranslator) -> None:
        """Go on where the cursor of the consumer is."""
        self.journal = journal
        self._file = CursorFile(journal.folder, consumer)
        self.cursor = self._file.cursor
        """What is committed."""
        self.account = Account(self.cursor.delivered, Counter(self.cursor.dropped), Counter(self.cursor.set_aside))
        self._consumer = consumer
        self._translator = self._resume(make_translator)
        self._position = self.cursor.position
        self._is_complete = self.cursor.is_complete
        self._refreshed_at_s = time.monotonic()
        self._observed = journal.observed

    @property
    def run(self) -> RankRun:
        """Whose journal it is."""
        return self.journal.run

    def has_moved(self) -> bool:
        """Tell whether there is something to commit."""
        return self._position != self.cursor.position or self._is_complete != self.cursor.is_complete

    def is_behind(self) -> bool:
        """Tell whether there was more to read, when the journal was looked at last."""
        return self._position.sequence < self.journal.head.sequence

    def read(self, budget: Budget, refresh_s: float) -> list[Any]:
        """Return what the next records make.

        Args:
            budget: How much may be read; what is read is taken off it.
            refresh_s: After so many seconds the state of the instruments is due, even if nothing is new.
        """
        lost = self.journal.lost  # asked first: what is read after it is all there is
        head = self.journal.head
        items: list[Any] = []
        for made in self._chunks(budget, head.sequence):
            items += made
        if self._position.sequence >= head.sequence and not self._is_complete:
            self._translator.step_began(head.step, head.step_started_unix_ns)
            if lost is not None:
                self._feed([lost])
        if self._position.sequence >= head.sequence and self.journal.observed is not self._observed:
            self._observed = self.journal.observed  # also at the end: how large it was when it was killed
            self._translator.observe(self._observed)
        self._translator.settle(time.time_ns() if self._is_due(refresh_s) else None)
        items += self._translator.take()
        return items

    def commit(self) -> None:
        """Write down how far it has got. A disk that takes nothing changes nothing but what a restart repeats."""
        self._save(self._snapshot())

    def note_declined(self, *, is_declined: bool) -> None:
        """Write down whether its receiver takes nothing of the kind, so that nobody waits for it."""
        if is_declined != self.cursor.is_declined:
            self._save(msgspec.structs.replace(self.cursor, is_declined=is_declined))

    def _save(self, cursor: Cursor) -> None:
        if TOO_MANY_KEYS in cursor.dropped.keys() - self.cursor.dropped.keys():
            _log.warning("%s: there are more than %d metric keys; other values are dropped", self._consumer, MAX_KEYS)
        try:
            self._file.save(cursor)
        except OSError as error:
            _log.warning("%s: its cursor cannot be saved (%s)", self._consumer, error.strerror or error)
        self.cursor = cursor  # last: a journal that everybody has had is deleted

    def _resume(self, make_translator: MakeTranslator) -> Translator:
        try:
            return make_translator(self.run, self.cursor.state)
        except msgspec.DecodeError as error:  # another version of this package wrote it
            _log.warning("%s cannot go on from what it remembers (%s); what adds up begins anew", self._consumer, error)
            return make_translator(self.run, b"")

    def _chunks(self, budget: Budget, end_sequence: int) -> Iterator[list[Any]]:
        while self._position.sequence < end_sequence and not budget.is_spent():
            chunk = self.journal.recent.read(self._position, end_sequence)
            self._feed(chunk.records)
            if chunk.lost:
                self.account.dropped["journal"] += chunk.lost
                _log.warning("%d records of rank %d are lost: damaged, or dropped", chunk.lost, self.run.rank)
            if chunk.position == self._position:
                break
            self._position = chunk.position
            made = list(self._translator.take())
            budget.spend(chunk, len(made))
            yield made

    def _feed(self, records: list[Record]) -> None:
        """Translate records; one that cannot be must not hold up all others."""
        rest, is_fed = iter(records), False
        while not is_fed:
            try:
                self._translator.feed(rest)
                is_fed = True
            except Exception:  # noqa: BLE001, PERF203  # whatever it is
                _log.exception("%s cannot translate a record; it is dropped", self._consumer)
                self.account.dropped["untranslatable"] += 1
        self._is_complete |= not _LAST_WORDS.isdisjoint(map(type, records))

    def _is_due(self, refresh_s: float) -> bool:
        is_due = time.monotonic() - self._refreshed_at_s >= refresh_s and not self._is_complete
        if is_due:
            self._refreshed_at_s = time.monotonic()
        return is_due

    def _snapshot(self) -> Cursor:
        return Cursor(
            self._position,
            b"" if self._is_complete else self._translator.encode_state(),
            self.account.delivered,
            {**self.account.dropped, **self._translator.dropped()},
            self._is_complete,
            dict(self.account.set_aside),
            self.cursor.is_declined,
        )
