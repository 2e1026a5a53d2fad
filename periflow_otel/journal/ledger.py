"""What stays known of an attempt of a rank when its process is gone, and when its journal is gone too."""

import contextlib
from pathlib import Path
from typing import Final

import msgspec

from periflow_otel.journal.attempts import earlier_parts
from periflow_otel.journal.files import read_own, replace_file
from periflow_otel.journal.folders import (
    LEDGER,
    journal_folder,
    journal_folders,
    last_lines,
    make_private,
    own_attempts,
)
from periflow_otel.journal.life import is_written
from periflow_otel.journal.reader import JournalReader
from periflow_otel.records import Earlier, RankLost, RankRun

LOST_FILE: Final = "lost"
_MAX_BYTES: Final = 64 << 10


class Entry(Earlier, frozen=True):
    """A line of the ledger: how far an attempt of a rank came, and, for who lists runs, which it was."""

    run: RankRun | None = None
    is_lost: bool = False
    """Its process had gone without ending the run."""


_decode_loss = msgspec.msgpack.Decoder(RankLost).decode
_decode_entry = msgspec.json.Decoder(Earlier).decode
_decode_line = msgspec.json.Decoder(Entry).decode


def note_loss(journal: Path, loss: RankLost) -> None:
    """Write down that the process of a journal is gone: once, so that every consumer tells the same story."""
    with contextlib.suppress(OSError):  # without the note, repetitions differ in one time
        replace_file(journal / LOST_FILE, msgspec.msgpack.encode(loss))


def noted_loss(journal: Path) -> RankLost | None:
    """Return what was written down of the loss of a process, if it was.

    Raises:
        OSError: This process has too many files open.
    """
    try:
        return _decode_loss(read_own(journal / LOST_FILE, _MAX_BYTES) or b"")
    except msgspec.DecodeError:
        return None


def note_end(journal: Path, attempt: int, ended_unix_ns: int) -> None:
    """Write down how far an attempt came, before its journal goes.

    Args:
        journal: Folder of the journal.
        attempt: Its number.
        ended_unix_ns: When its process was last there.
    """
    ledger = journal.parent / LEDGER
    with contextlib.suppress(OSError):  # the next attempt then knows less
        make_private(ledger)
        if entry := _entry(journal, attempt, ended_unix_ns):
            replace_file(ledger / journal.name, msgspec.json.encode(entry) + b"\n")


def last_attempt(folder: Path) -> list[Entry]:
    """Return how far the ranks of the last attempt of a run came, of which none is at work any more.

    Args:
        folder: Folder of the run on this node.
    """
    lines = [entry for path in last_lines(folder) if (entry := _line(path))]
    # Of those that are still there, because somebody waits for them or because the agent was killed, there is no line.
    journals = [entry for journal in journal_folders(folder) if (entry := _open_entry(journal))]
    last = max((entry.attempt for entry in (*lines, *journals)), default=0)
    found = {entry.run.rank: entry for entry in (*journals, *lines) if entry.attempt == last and entry.run}
    return [found[rank] for rank in sorted(found)]


def _line(path: Path) -> Entry | None:
    with contextlib.suppress(OSError, msgspec.DecodeError):  # damaged, or of an older version
        return _decode_line(read_own(path, _MAX_BYTES) or b"")
    return None


def _entry(journal: Path, attempt: int, ended_unix_ns: int) -> Entry | None:
    reader = JournalReader(journal)
    seen, is_lost = _look(journal, attempt, ended_unix_ns), noted_loss(journal) is not None and not reader.is_closed()
    return Entry(**msgspec.structs.asdict(seen), run=reader.run(), is_lost=is_lost) if seen else None


def _open_entry(journal: Path) -> Entry | None:
    """Return what the line of a journal would be that is still there, of a process that is not."""
    reader = JournalReader(journal)
    run = reader.run()
    entry = _entry(journal, run.attempt, 0) if run else None
    return msgspec.structs.replace(entry, is_lost=not reader.is_closed()) if entry else None


def find_earlier(node: Path, rank: int, attempt: int) -> Earlier | None:
    """Return what is known of the last attempt of a rank before ``attempt``, on whichever node.

    None if there was none, or if its process goes on beside this one.

    Args:
        node: Folder of the run on this node.
        rank: Whose attempt.
        attempt: Number of the present one.
    """
    try:
        return _find_earlier(node, rank, attempt)
    except OSError:  # too many files are open
        return None


def _find_earlier(node: Path, rank: int, attempt: int) -> Earlier | None:
    here = ((number, node) for number in own_attempts(node, rank))
    found = [each for each in (*here, *earlier_parts(node.parent, rank)) if each[0] < attempt]
    if not found:
        return None
    number, place = max(found)
    journal = journal_folder(place, number, rank)
    if _goes_on(journal):
        return None
    loss = noted_loss(journal)
    seen = _look(journal, number, loss.time_unix_ns if loss else 0)
    # Asked last: it is written before a journal goes, which may be what was looked at.
    return _noted_end(journal) or seen


def _goes_on(journal: Path) -> bool:
    """Tell whether another process is still writing a journal; one that this process has ended does not go on."""
    run = JournalReader(journal).run()
    return run is not None and not run.process.is_current() and is_written(journal, run.process)


def _noted_end(journal: Path) -> Earlier | None:
    try:
        return _decode_entry(read_own(journal.parent / LEDGER / journal.name, _MAX_BYTES) or b"")
    except msgspec.DecodeError:
        return None


def _look(journal: Path, attempt: int, ended_unix_ns: int) -> Earlier | None:
    """Look how far an attempt came, with those before it: one that died early did not take back what they had done."""
    reader = JournalReader(journal)
    run, head = reader.run(), reader.head()
    if run is None:
        return None
    before = run.earlier or Earlier(0, 0, 0, 0)
    return Earlier(
        attempt,
        max(head.step, before.last_step),
        head.checkpoint_step or before.last_checkpoint,
        ended_unix_ns or head.step_started_unix_ns or run.started_unix_ns,
    )
