"""What was read of journals last: several consumers read the same at about the same time, and one has it decoded."""

import threading
from collections import deque
from typing import Final

from periflow_otel.journal.reader import Chunk, JournalReader, Position

MAX_RECORDS: Final = 8192
"""So many records are kept at most, of all ranks together: some 4 MiB."""
CHUNK_RECORDS: Final = 512
"""So many are read at once."""
_MAX_STARTS: Final = 24
"""In so many chunks of a journal a place is looked for: some come every quarter of a second, others every five."""


class Shelf:
    """The chunks of all journals that one agent reads, the oldest first."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.lock = threading.Lock()
        """To be held by whoever calls."""
        self._chunks: dict[tuple[object, Position], Chunk] = {}
        self._records = 0

    def find(self, journal: object, position: Position) -> Chunk | None:
        """Return the chunk that begins at a position of a journal, if it is still there."""
        return self._chunks.get((journal, position))

    def keep(self, journal: object, position: Position, chunk: Chunk) -> None:
        """Keep a chunk, and let go of the oldest if there are too many records."""
        self._chunks[journal, position] = chunk
        self._records += len(chunk.records)
        while self._records > MAX_RECORDS:
            self._records -= len(self._chunks.pop(next(iter(self._chunks))).records)


class RecentChunks:
    """Reads a journal for several consumers, in threads of their own. Nobody may change the records that it returns."""

    def __init__(self, reader: JournalReader, shelf: Shelf) -> None:
        """Begin to read.

        Args:
            reader: Reads what nobody has read yet.
            shelf: Where it is put.
        """
        self._reader = reader
        self._shelf = shelf
        self._name = object()  # not the reader: what is on the shelf must not keep the files of a journal open
        self._starts: deque[Position] = deque(maxlen=_MAX_STARTS)
        """Of the chunks that were read last, the latest first."""

    def read(self, position: Position, end: int) -> Chunk:
        """Return some records after ``position``, with all that :meth:`JournalReader.read` says.

        Args:
            position: Where to go on.
            end: How many records to read up to, counted from the first of all. More come if somebody has read them.
        """
        with self._shelf.lock:  # who comes second finds what the first one has read
            found = next(filter(None, (self._rest(start, position) for start in (position, *self._starts))), None)
            return found or self._read(position, min(CHUNK_RECORDS, end - position.sequence))

    def _rest(self, start: Position, position: Position) -> Chunk | None:
        """Return what follows a position in the chunk that begins at ``start``: others may have stopped elsewhere."""
        passed = position.sequence - start.sequence
        chunk = self._shelf.find(self._name, start) if passed >= 0 and position.segment == start.segment else None
        if chunk is None or passed >= len(chunk.records) or (passed and chunk.lost):
            return None
        size_bytes = chunk.size_bytes - (position.offset - start.offset)
        return chunk._replace(records=chunk.records[passed:], size_bytes=size_bytes) if passed else chunk

    def _read(self, position: Position, max_records: int) -> Chunk:
        chunk = self._reader.read(position, max_records)
        if chunk.records:
            self._shelf.keep(self._name, position, chunk)
            self._starts.appendleft(position)
        return chunk
