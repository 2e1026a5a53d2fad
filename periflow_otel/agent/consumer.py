"""One exporter and its way through the journals. It moves on only when the exporter has succeeded."""

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from periflow_otel.agent.watch import RankJournal
from periflow_otel.exporters import Exporter, Outcome
from periflow_otel.journal.cursors import Cursor, load_cursor, save_cursor
from periflow_otel.journal.reader import Position
from periflow_otel.records import RankRun, Record, RunFinished
from periflow_otel.translate.values import MAX_KEYS, TOO_MANY_KEYS

RECORDS_PER_ROUND: Final = 512
"""Records that are read, delivered and committed together: what a dead agent may deliver twice."""
RECORDS_PER_RANK: Final = 32
"""Where there are many ranks it is this for each, as every round costs something for each rank that it moves."""
ITEMS_PER_ROUND: Final = 4096
BYTES_PER_ROUND: Final = 1 << 20
"""No more records are read in a round that has made this many items, or whose records take this much."""
REPORT_EVERY: Final = 10
"""After so many intervals there is a report, whether the state of the instruments is due or not: who waits for a
straggler's name does not want to wait long for it."""
MIN_BACKOFF_S: Final = 0.5
MAX_BACKOFF_S: Final = 8.0

_log = logging.getLogger("periflow_otel")

Item = tuple[RankRun, Any]


class Translator(Protocol):
    """Turns the records of one rank into what an exporter takes."""

    def feed(self, record: Record) -> None:
        """Translate one record."""

    def step_began(self, step: int, started_unix_ns: int) -> None:
        """Note the step that is going on; the records of all steps before have been fed."""

    def settle(self, now_unix_ns: int | None = None) -> None:
        """End a round: show what has added up. ``now_unix_ns`` asks for it even if nothing is new."""

    def take(self) -> Sequence[object]:
        """Return what is complete, once."""

    def encode_state(self) -> bytes:
        """Return what a translator needs to go on from here."""

    def dropped(self) -> dict[str, int]:
        """Return how many items were dropped on purpose so far, by reason."""


class RecordTranslator:
    """Passes records of one kind on as they are."""

    def __init__(self, kind: type[Record], run: RankRun, state: bytes) -> None:
        """Begin; there is nothing to remember."""
        del run, state
        self._kind = kind
        self._records: list[Record] = []

    def feed(self, record: Record) -> None:
        """Keep a record of the kind, and no other."""
        if isinstance(record, self._kind):
            self._records.append(record)

    def step_began(self, step: int, started_unix_ns: int) -> None:
        """Do nothing: a record is complete as it is."""

    def settle(self, now_unix_ns: int | None = None) -> None:
        """Do nothing: records do not add up."""

    def take(self) -> list[Record]:
        """Return the records since the last call."""
        records, self._records = self._records, []
        return records

    def encode_state(self) -> bytes:
        """Return nothing."""
        return b""

    def dropped(self) -> dict[str, int]:
        """Return nothing."""
        return {}


class _Track:
    """How far a consumer has got in one journal."""

    def __init__(self, journal: RankJournal, cursor: Cursor, translator: Translator) -> None:
        self.journal = journal
        self.cursor = cursor
        self.translator = translator
        self.position = cursor.position
        self.delivered = cursor.delivered
        self.dropped = Counter(cursor.dropped)
        self.is_complete = cursor.is_complete
        self.refreshed_at_s = time.monotonic()
        self.pending: list[Item] = []
        """What could not be delivered; nothing more is read before it is."""
        self.held_until_s = 0.0
        """Nothing is tried before."""

    def snapshot(self) -> Cursor:
        """Return the present state as a cursor."""
        dropped = {**self.dropped, **self.translator.dropped()}
        state = b"" if self.is_complete else self.translator.encode_state()
        return Cursor(self.position, state, self.delivered, dropped, self.is_complete)


class _Budget:
    """How much one round may still take in."""

    __slots__ = ("_items", "_size_bytes", "records")

    def __init__(self, ranks: int) -> None:
        self.records = max(RECORDS_PER_ROUND, RECORDS_PER_RANK * ranks)
        self._size_bytes = BYTES_PER_ROUND
        self._items = ITEMS_PER_ROUND

    def spend(self, records: int, size_bytes: int, items: int) -> None:
        self.records -= records
        self._size_bytes -= size_bytes
        self._items -= items

    def is_spent(self) -> bool:
        return self.records <= 0 or self._size_bytes <= 0 or self._items <= 0


class Consumer:
    """Takes one exporter through all journals of a run, in a thread of its own."""

    def __init__(
        self,
        name: str,
        exporter: Exporter[Any],
        translator: Callable[[RankRun, bytes], Translator],
        *,
        interval_s: float,
        refresh_s: float = float("inf"),
        reports: Callable[[], Sequence[Item]] = tuple,
        forget: Callable[[RankRun], None] = lambda _: None,
        is_per_rank: bool = False,
    ) -> None:
        """Prepare a consumer; ``start`` sets it going.

        Args:
            name: Names its cursors.
            exporter: Where items go.
            translator: Makes a translator for a rank, from an encoded state.
            interval_s: How often it delivers what is there.
            refresh_s: How often it delivers the state of the instruments even if nothing is new.
            reports: Makes items on the agent itself, at least as often.
            forget: Told of each rank that is over and delivered everywhere.
            is_per_rank: Ranks have destinations of their own, and one that fails does not hold up the others.
        """
        self.name = name
        self._exporter = exporter
        self._translator = translator
        self._interval_s = interval_s
        self._refresh_s = refresh_s
        self._reports = reports
        self._report_s = min(refresh_s, REPORT_EVERY * interval_s)
        self._forget = forget
        self._is_per_rank = is_per_rank
        self._tracks: dict[Path, _Track] = {}
        self._journals: list[RankJournal] = []
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"periflow-{name}", daemon=True)
        self._backoff_s = MIN_BACKOFF_S
        self._reported_at_s = time.monotonic()
        self._turn = 0
        self._is_delivering = False
        self.last_success_s = time.monotonic()
        """On the monotonic clock; when nothing is left to deliver, that is a success too."""

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End after the request under way; what is not delivered stays in the journal."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout_s)

    def look_at(self, journals: Iterable[RankJournal]) -> None:
        """Say which journals there are."""
        self._journals = list(journals)

    def hurry(self) -> None:
        """Deliver at once what is there."""
        self._wake.set()

    def is_complete(self, journal: RankJournal) -> bool:
        """Tell whether the run of a rank is over and everything of it is delivered."""
        track = self._tracks.get(journal.folder)
        return track is not None and track.cursor.is_complete

    def position(self, journal: RankJournal) -> Position:
        """Return how far it has got in a journal."""
        return self.cursor(journal).position

    def cursor(self, journal: RankJournal) -> Cursor:
        """Return what became of a journal so far."""
        track = self._tracks.get(journal.folder)
        return track.cursor if track else Cursor()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                has_more = self._round()
            except Exception:  # noqa: BLE001  # whatever it is, the next round may succeed
                _log.exception("%s failed unexpectedly; trying again", self.name)
                self._tracks.clear()  # back to the committed state
                has_more = False
                self._pause(MAX_BACKOFF_S)
            if not has_more:
                self._wake.wait(self._interval_s)
                self._wake.clear()
        if self._is_delivering:
            self._report()
        self._exporter.close()

    def _round(self) -> bool:
        """Deliver some records; return whether there are more."""
        tracks = self._open_tracks()
        if self._is_per_rank:
            has_more = [self._deliver_next([track]) for track in tracks]
            return any(has_more)
        return self._deliver_next(tracks)

    def _deliver_next(self, tracks: Sequence[_Track]) -> bool:
        """Read, deliver and commit some records; return whether there are more."""
        items: list[Item] = []
        moved: list[_Track] = []
        budget = _Budget(len(tracks))
        for track in tracks:
            if budget.is_spent():
                break
            self._turn += 1
            items += self._read(track, budget)
            if track.position != track.cursor.position or track.is_complete:
                moved.append(track)
        self._is_delivering = self._deliver(items)
        if self._is_delivering:
            self._commit(moved)
            if time.monotonic() - self._reported_at_s >= self._report_s:
                self._report()
        return budget.is_spent() and not self._stopping.is_set()

    def _open_tracks(self) -> list[_Track]:
        tracks: dict[Path, _Track] = {}
        for journal in self._journals:
            track = self._tracks.get(journal.folder)
            if track is None:
                track = self._open_track(journal)
            tracks[journal.folder] = track
        for folder in self._tracks.keys() - tracks.keys():
            self._forget(self._tracks[folder].journal.run)
        self._tracks = tracks
        now_s = time.monotonic()
        waiting = [track for track in tracks.values() if not track.cursor.is_complete and track.held_until_s <= now_s]
        start = self._turn % len(waiting) if waiting else 0  # whose turn it was not last time comes first
        return waiting[start:] + waiting[:start]

    def _open_track(self, journal: RankJournal) -> _Track:
        """Go on where the cursor is."""
        cursor = load_cursor(journal.folder, self.name)
        try:
            translator = self._translator(journal.run, cursor.state)
        except msgspec.DecodeError as error:  # another version of this package wrote it
            _log.warning("%s cannot go on from what it remembers (%s); what adds up begins anew", self.name, error)
            translator = self._translator(journal.run, b"")
        return _Track(journal, cursor, translator)

    def _read(self, track: _Track, budget: "_Budget") -> list[Item]:
        """Translate the next records of a journal; mark it complete if they are the last."""
        if track.pending:
            pending, track.pending = track.pending, []
            return pending
        journal, translator = track.journal, track.translator
        lost = journal.lost  # asked first: what is read after it is all there is
        head = journal.reader.head()
        items = self._translate(track, budget, head.sequence)
        if track.position.sequence >= head.sequence and not track.is_complete:
            translator.step_began(head.step, head.step_started_unix_ns)
            if lost is not None:
                translator.feed(lost)
                track.is_complete = True
        is_due = time.monotonic() - track.refreshed_at_s >= self._refresh_s and not track.is_complete
        if is_due:
            track.refreshed_at_s = time.monotonic()
        translator.settle(time.time_ns() if is_due else None)
        items += [(journal.run, item) for item in translator.take()]
        track.delivered += len(items)
        return items

    def _translate(self, track: _Track, budget: "_Budget", end_sequence: int) -> list[Item]:
        items: list[Item] = []
        while track.position.sequence < end_sequence and not budget.is_spent():
            chunk = track.journal.reader.read(track.position, budget.records)
            for record in chunk.records:
                self._feed(track, record)
            if chunk.lost:
                track.dropped["journal"] += chunk.lost
                _log.warning("%d records of rank %d are lost: damaged, or dropped", chunk.lost, track.journal.run.rank)
            if chunk.position == track.position:
                break
            track.position = chunk.position
            made = [(track.journal.run, item) for item in track.translator.take()]
            budget.spend(len(chunk.records), chunk.size_bytes, len(made))
            items += made
        return items

    def _feed(self, track: _Track, record: Record) -> None:
        try:
            track.translator.feed(record)
        except Exception:  # noqa: BLE001  # one record must not hold up all others
            _log.exception("%s cannot translate a record; it is dropped", self.name)
            track.dropped["untranslatable"] += 1
        if isinstance(record, RunFinished):
            track.is_complete = True

    def _deliver(self, items: list[Item]) -> bool:
        """Deliver all items, however long it takes; return False if told to stop before."""
        while items:
            outcome = self._export(items)
            done = outcome.delivered + outcome.rejected
            if outcome.rejected:
                self._account(items[0][0], outcome)
            items = items[done:]
            if items and self._is_per_rank:
                self._hold(items, outcome)
                return False
            if items and not self._wait_to_retry(outcome, is_progress=done > 0):
                return False
        self._backoff_s = MIN_BACKOFF_S
        self.last_success_s = time.monotonic()
        return True

    def _hold(self, items: list[Item], outcome: Outcome) -> None:
        """Let a rank rest for a while."""
        run = items[0][0]
        _log.warning("%s of rank %d: cannot deliver now, nothing is lost: %s", self.name, run.rank, outcome.message)
        track = next(track for track in self._tracks.values() if track.journal.run is run)
        track.pending, track.held_until_s = items, time.monotonic() + MAX_BACKOFF_S

    def _export(self, items: list[Item]) -> Outcome:
        """Give items to the exporter; where one makes it fail unexpectedly, only that one is lost."""
        try:
            return self._exporter.export(items)
        except Exception as error:  # noqa: BLE001  # whatever it is, the others may pass
            if len(items) > 1:
                return self._export(items[: len(items) // 2])._replace(retry_after_s=0.0)
            _log.exception("%s cannot export an item; it is dropped", self.name)
            return Outcome(0, 1, f"{type(error).__name__} in the exporter")

    def _report(self) -> None:
        """Deliver what there is to say of the agent itself; the next report makes up for a lost one."""
        self._reported_at_s = time.monotonic()
        if reports := self._reports():
            self._exporter.export(reports)

    def _account(self, run: RankRun, outcome: Outcome) -> None:
        _log.warning("%s: refused were %d of its items: %s", self.name, outcome.rejected, outcome.message)
        track = next(each for each in self._tracks.values() if each.journal.run is run)
        track.dropped["rejected"] += outcome.rejected
        track.delivered -= outcome.rejected

    def _wait_to_retry(self, outcome: Outcome, *, is_progress: bool) -> bool:
        """Wait as long as the receiver wants, or a little longer at each failure; return False if told to stop."""
        if outcome.retry_after_s == 0:  # it only had enough for once
            return not self._stopping.is_set()
        _log.warning("%s: cannot deliver now, nothing is lost: %s", self.name, outcome.message)
        if is_progress:
            self._backoff_s = MIN_BACKOFF_S
        wait_s = outcome.retry_after_s
        if wait_s is None:
            wait_s = self._backoff_s * random.uniform(0.5, 1.0)  # noqa: S311  # jitter
            self._backoff_s = min(2 * self._backoff_s, MAX_BACKOFF_S)
        return self._pause(wait_s)

    def _pause(self, wait_s: float) -> bool:
        return not self._stopping.wait(wait_s)

    def _commit(self, tracks: Iterable[_Track]) -> None:
        for track in tracks:
            cursor = track.snapshot()
            if TOO_MANY_KEYS in cursor.dropped.keys() - track.cursor.dropped.keys():
                _log.warning("%s: there are more than %d metric keys; other values are dropped", self.name, MAX_KEYS)
            try:
                save_cursor(track.journal.folder, self.name, cursor)
            except OSError as error:
                _log.warning("%s: its cursor cannot be saved (%s)", self.name, error.strerror)
            track.cursor = cursor  # last: a journal that everybody has had is deleted
