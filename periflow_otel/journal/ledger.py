"""What stays known of an attempt of a rank when its process is gone, and when its journal is gone too."""

import contextlib
from pathlib import Path
from typing import Final

import msgspec

from periflow_otel.journal.attempts import earlier_parts
from periflow_otel.journal.cursors import replace_file
from periflow_otel.journal.files import read_own
from periflow_otel.journal.folders import LEDGER, journal_folder, make_private, own_attempts
from periflow_otel.journal.life import is_written
from periflow_otel.journal.reader import JournalReader
from periflow_otel.records import Earlier, RankLost

LOST_FILE: Final = "lost"
_MAX_BYTES: Final = 64 << 10

_decode_loss = msgspec.msgpack.Decoder(RankLost).decode
_decode_entry = msgspec.json.Decoder(Earlier).decode


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
        if earlier := _look(journal, attempt, ended_unix_ns):
            replace_file(ledger / journal.name, msgspec.json.encode(earlier) + b"\n")


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
