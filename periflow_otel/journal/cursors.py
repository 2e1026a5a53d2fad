"""How far each consumer has got in a journal. A cursor moves only when its consumer has succeeded."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import msgspec

from periflow_otel.journal.files import read_own
from periflow_otel.journal.folders import LEDGER
from periflow_otel.journal.reader import Position
from periflow_otel.journal.segment import frame, unframe

SUFFIX = ".cursor"
MAX_BYTES = 64 << 20
"""A file that is larger is no cursor."""


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """A place in a journal, and what the consumer must remember of everything before it."""

    position: Position = Position()
    state: bytes = b""
    """The translator's state, encoded."""
    delivered: int = 0
    """Items delivered so far."""
    dropped: dict[str, int] = {}
    """Items lost so far, by reason."""
    is_complete: bool = False
    """The run of this rank is over, and the consumer has everything."""
    set_aside: dict[str, int] = {}
    """Items that the receiver did not take and that are kept beside the journal, by reason.

    After the death of an agent an item may be there twice; it is counted once."""
    is_declined: bool = False
    """The receiver takes nothing of the kind: nobody is to wait for it."""


_decode = msgspec.msgpack.Decoder(Cursor).decode


def cursor_path(folder: Path, consumer: str) -> Path:
    """Return where the cursor of a consumer is: in the folder, whatever its name."""
    return folder / (quote(consumer, safe="") + SUFFIX)


def load_cursor(folder: Path, consumer: str) -> Cursor:
    """Return the cursor of a consumer; at the beginning if there is none or it is damaged.

    Raises:
        OSError: This process has too many files open.
    """
    try:
        payload = unframe(read_own(cursor_path(folder, consumer), MAX_BYTES) or b"")
        return _decode(payload) if payload else Cursor()
    except msgspec.DecodeError:
        return Cursor()


def save_cursor(folder: Path, consumer: str, cursor: Cursor) -> None:
    """Put a cursor in the place of the one before, in one step.

    Raises:
        OSError: The disk takes nothing; the old cursor is still there.
    """
    replace_file(cursor_path(folder, consumer), frame(msgspec.msgpack.encode(cursor)))


def is_delivered(folder: Path, consumers: Iterable[str], sequence: int) -> bool:
    """Tell whether every consumer has the first ``sequence`` records of a journal; all have, once it is gone.

    One whose receiver takes nothing of the kind is not waited for.
    """
    if not folder.exists():
        return (folder.parent / LEDGER / folder.name).exists()
    cursors = (load_cursor(folder, each) for each in consumers)
    try:
        return all(each.is_declined or each.position.sequence >= sequence for each in cursors)
    except OSError:  # nobody can tell now
        return False


def replace_file(path: Path, content: bytes) -> None:
    """Write a file, mode 0600, so that a reader sees the old content or the new, never a part.

    Raises:
        OSError: The disk takes nothing; the old file is still there.
    """
    descriptor, draft = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
