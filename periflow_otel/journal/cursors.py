"""How far each consumer has got in a journal. A cursor moves only when its consumer has succeeded.

Its file has two slots of one size, which are written in turn: until the new one is whole, the one before counts. Of two
whole ones the later counts, by the number of the commit. Only a cursor that has outgrown its slot gets another file: to
rename one takes twenty times as long as to write into it.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from periflow_otel.journal.files import open_own, read_own, replace_file
from periflow_otel.journal.folders import LEDGER
from periflow_otel.journal.reader import Position
from periflow_otel.journal.segment import frame, unframe

SUFFIX = ".cursor"
MAX_BYTES = 256 << 20
"""A file that is larger is no cursor."""
_LEAST_SLOT_BYTES: Final = 2048
_TRIES: Final = 3
"""So often a file in which no slot is whole is read: both may just have been written."""


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


class _Slot(msgspec.Struct, frozen=True, array_like=True):
    """A cursor as it is written."""

    commit: int = 0
    """Counts how often it has moved."""
    cursor: Cursor = Cursor()


_decode = msgspec.msgpack.Decoder(_Slot).decode


def cursor_path(folder: Path, consumer: str) -> Path:
    """Return where the cursor of a consumer is: in the folder, whatever its name."""
    return folder / (quote(consumer, safe="") + SUFFIX)


def load_cursor(folder: Path, consumer: str) -> Cursor:
    """Return the cursor of a consumer; at the beginning if there is none or it is damaged.

    Raises:
        OSError: This process has too many files open.
    """
    _, slot = _load(cursor_path(folder, consumer))
    return slot.cursor


class CursorFile:
    """The file of one cursor, for the one consumer that moves it."""

    def __init__(self, folder: Path, consumer: str) -> None:
        """Go on where the cursor is.

        Raises:
            OSError: This process has too many files open.
        """
        self._path = cursor_path(folder, consumer)
        self._place, self._slot = _load(self._path)

    @property
    def cursor(self) -> Cursor:
        """What was saved last, or found."""
        return self._slot.cursor

    def save(self, cursor: Cursor) -> None:
        """Put a cursor in the place of the one before, in one step.

        Raises:
            OSError: The disk takes nothing; the old cursor is still there.
        """
        slot, place = _Slot(self._slot.commit + 1, cursor), 1 - self._place
        content = frame(msgspec.msgpack.encode(slot))
        if not self._write(content, place):
            replace_file(self._path, content.ljust(2 * _slot_bytes(content), b"\0"))
            place = 0
        self._place, self._slot = place, slot

    def _write(self, content: bytes, place: int) -> bool:
        """Write into a slot of the file; return False if there is none, or none that is large enough."""
        try:
            descriptor = open_own(self._path, os.O_WRONLY)
        except OSError:
            return False
        try:
            slot_bytes = os.fstat(descriptor).st_size // 2
            is_room = len(content) <= slot_bytes
            return is_room and os.pwrite(descriptor, content, place * slot_bytes) == len(content)
        finally:
            os.close(descriptor)


def _load(path: Path) -> tuple[int, _Slot]:
    """Return what the file of a cursor says, and in which of its slots."""
    for _ in range(_TRIES):
        content = read_own(path, MAX_BYTES) or b""
        slots = [(place, _decode_slot(content, place * (len(content) // 2))) for place in (0, 1)]
        whole = [(place, slot) for place, slot in slots if slot is not None]
        if whole or not content:
            break
    return max(whole, key=lambda each: each[1].commit, default=(0, _Slot()))


def _decode_slot(content: bytes, offset: int) -> _Slot | None:
    """Return what is in a slot; None if it was never written, or is being written, or is damaged."""
    payload = unframe(content, offset)
    try:
        return _decode(payload) if payload else None
    except msgspec.DecodeError:
        return None


def _slot_bytes(content: bytes) -> int:
    """Return the size of the slots of a new file: there is room to grow."""
    return max(_LEAST_SLOT_BYTES, 1 << len(content).bit_length())


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
