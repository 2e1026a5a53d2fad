"""The journals of a run on this node, and what is known of the ranks that write them."""

import contextlib
import json
import shutil
import time
from pathlib import Path
from typing import Final

import msgspec

from periflow_otel.journal.cursors import replace_file
from periflow_otel.journal.folders import LEDGER, journal_folders, make_private
from periflow_otel.journal.processes import is_process_alive
from periflow_otel.journal.reader import Head, JournalReader
from periflow_otel.records import RankLost, RunStarted

LOST_FILE: Final = "lost"
"""When the agent noticed that the rank was gone: noted once, so that every consumer tells the same story."""

_decode = msgspec.msgpack.Decoder(RankLost).decode


class RankJournal:
    """One rank's journal, and whether the rank still lives."""

    def __init__(self, folder: Path, run: RunStarted) -> None:
        """Begin to watch.

        Args:
            folder: Of the journal.
            run: Who writes it.
        """
        self.folder = folder
        self.run = run
        self.reader = JournalReader(folder)
        self.lost = self._noted_loss()
        self._urgent_sequence = -1
        self._first_segment = 0

    @property
    def is_alive(self) -> bool:
        """Tell whether the process that writes the journal is there."""
        return self.lost is None

    def look(self) -> bool:
        """Look at the rank; return whether something should be delivered at once."""
        head = self.reader.head()
        if self.lost is None and not is_process_alive(self.run.pid, self.run.process_start, self.run.boot_id):
            self.lost = self._note_loss()
            return True
        is_urgent = head.urgent_sequence != self._urgent_sequence
        self._urgent_sequence = head.urgent_sequence
        return is_urgent

    def forget(self, before: int) -> None:
        """Delete the segments before index ``before``: everybody has had them."""
        if before > self._first_segment:
            self._first_segment = before
            self.reader.forget(before)

    def retire(self) -> None:
        """Delete the journal: everybody has had it. A line in the ledger of the run stays."""
        line = {"rank": self.run.rank, "attempt": self.run.attempt, "last_started_step": self.reader.head().step}
        ledger = self.folder.parent / LEDGER
        with contextlib.suppress(OSError):
            make_private(ledger)
            replace_file(ledger / self.folder.name, json.dumps(line).encode() + b"\n")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _noted_loss(self) -> RankLost | None:
        try:
            return _decode((self.folder / LOST_FILE).read_bytes())
        except (OSError, msgspec.DecodeError):
            return None

    def _note_loss(self) -> RankLost:
        head: Head = self.reader.head()  # asked again: only now it says nothing more
        lost = RankLost(time.time_ns(), head.step, head.step_started_unix_ns)
        with contextlib.suppress(OSError):  # without the note, repetitions differ in one time
            replace_file(self.folder / LOST_FILE, msgspec.msgpack.encode(lost))
        return lost


def find_journals(folder: Path, known: dict[Path, RankJournal]) -> dict[Path, RankJournal]:
    """Return the journals of a run: those known that are still there, and new ones."""
    found: dict[Path, RankJournal] = {}
    for each in journal_folders(folder):
        journal = known.get(each)
        if journal is None and (run := JournalReader(each).run()):
            journal = RankJournal(each, run)
        if journal is not None:
            found[each] = journal
    return found
