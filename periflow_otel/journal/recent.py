"""What was read of journals last: several consumers read the same at about the same time, and one has it decoded."""

import threading
from typing import Final

from periflow_otel.journal.reader import Chunk, JournalReader, Position

MAX_RECORDS: Final = 8192
"""So many records are kept at most, of all ranks together: some 4 MiB."""


class Shelf:
    """The chunks of all journals that one agent reads, the oldest first."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.lock = threading.Lock()
        """To be held by whoever calls."""
        self._chunks: dict[tuple[object, Position], Chunk] = {}
        self._records = 0

    def find(self, journal: object, position: Position) -> Chunk | None:
        """Return what begins at a position of a journal, if it is still there."""
        return self._chunks.get((journal, position))

    def keep(self, journal: object, position: Position, chunk: Chunk) -> None:
        """Keep a chunk, and let go of the oldest if there are too many records."""
        if not 0 < len(chunk.records) <= MAX_RECORDS or (journal, position) in self._chunks:
            return
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

    def read(self, position: Position, max_records: int) -> Chunk:
        """Return the records after ``position``, with all that :meth:`JournalReader.read` says."""
        with self._shelf.lock:  # who comes second finds what the first one has read
            chunk = self._shelf.find(self._name, position)
            if chunk is None or len(chunk.records) > max_records:
                chunk = self._reader.read(position, max_records)
                self._shelf.keep(self._name, position, chunk)
        return chunk
