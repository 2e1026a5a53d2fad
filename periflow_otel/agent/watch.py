"""The journals of a run on this node, and what is known of the ranks that write them."""

import shutil
import time
from pathlib import Path
from typing import Final

from periflow_otel.agent.last_words import last_words
from periflow_otel.journal.folders import journal_folders
from periflow_otel.journal.ledger import note_end, note_loss, noted_loss
from periflow_otel.journal.life import is_written
from periflow_otel.journal.reader import Head, JournalReader
from periflow_otel.journal.recent import RecentChunks, Shelf
from periflow_otel.journal.segment import SUFFIX
from periflow_otel.journal.space import trim
from periflow_otel.processes import Lifeline
from periflow_otel.records import RankLost, RankRun
from periflow_otel.translate.telemetry import Observed

NOTHING: Final = Observed(0, ())


class RankJournal:
    """One rank's journal, and whether the rank still lives."""

    def __init__(self, folder: Path, run: RankRun, shelf: Shelf) -> None:
        """Begin to watch.

        Args:
            folder: Of the journal.
            run: Who writes it.
            shelf: Where what was read of it is kept for others.
        """
        self.folder = folder
        self.run = run
        self.reader = JournalReader(folder)
        self.recent = RecentChunks(self.reader, shelf)
        self.lost = noted_loss(folder)
        self.observed = NOTHING
        """What was seen of the process last; replaced by each look at the machine."""
        self._was_alive = False
        self._lifeline = Lifeline(run.process)
        self._head: Head | None = None
        self._first_segment = 0

    @property
    def is_alive(self) -> bool:
        """Tell whether the process that writes the journal is there."""
        return self.lost is None

    @property
    def head(self) -> Head:
        """What it said of its rank at the last look."""
        return self._head or self.reader.head()

    def look(self) -> bool:
        """Look at the rank; return whether something should be delivered at once."""
        before, self._head = self._head, self.reader.head()
        is_moving = before is not None and self._head != before
        if self.lost is None and not is_moving and not self._is_there():
            head = self._head = self.reader.head(is_last=True)  # asked again: only now it says nothing more
            gone_unix_ns = time.time_ns() if self._was_alive else self._last_write_unix_ns()
            gone_unix_ns = max(gone_unix_ns, head.step_started_unix_ns)
            words = last_words(self.folder)
            self.lost = RankLost(gone_unix_ns, head.step, head.step_started_unix_ns, *words)
            note_loss(self.folder, self.lost)
            trim(self.folder)
            return True
        self._was_alive = True
        return before is None or self._head.urgent_sequence != before.urgent_sequence

    def _is_there(self) -> bool:
        return self._lifeline.holds() or is_written(self.folder, self.run.process)

    def _last_write_unix_ns(self) -> int:
        """Return when the journal was written last, as the file system knows it: to half a minute or so."""
        times = [entry.stat().st_mtime_ns for entry in self.folder.glob(f"*{SUFFIX}")]
        return max(times, default=self.run.started_unix_ns)

    def forget(self, before: int) -> None:
        """Delete the segments before index ``before``: everybody has had them."""
        if before > self._first_segment:
            self._first_segment = before
            self.reader.forget(before)

    def retire(self) -> None:
        """Delete the journal: everybody has had it. A line in the ledger of the run stays."""
        note_end(self.folder, self.run.attempt, self.lost.time_unix_ns if self.lost else time.time_ns())
        shutil.rmtree(self.folder, ignore_errors=True)


def find_journals(folder: Path, known: dict[Path, RankJournal], shelf: Shelf | None = None) -> dict[Path, RankJournal]:
    """Return the journals of a run: those known that are still there, and new ones.

    Args:
        folder: Of the run.
        known: By their folders.
        shelf: What the new ones share. Default: nothing with those that are known.
    """
    shelf = shelf or Shelf()
    found: dict[Path, RankJournal] = {}
    for each in journal_folders(folder):
        journal = known.get(each)
        if journal is None and (run := JournalReader(each).run()):
            journal = RankJournal(each, run, shelf)
        if journal is not None:
            found[each] = journal
    return found
