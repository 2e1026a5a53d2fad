"""What was read of a journal last: several consumers read the same at about the same time, and one has it decoded."""

import threading
from typing import Final

from periflow_otel.journal.reader import Chunk, JournalReader, Position

MAX_RECORDS: Final = 512
"""So many records of a rank are kept at most: some 100 KiB. Whoever catches up reads larger chunks, and alone."""


class RecentChunks:
    """Reads a journal for several consumers, in threads of their own. Nobody may change the records that it returns."""

    def __init__(self, reader: JournalReader) -> None:
        """Begin with nothing.

        Args:
            reader: Reads what nobody has read yet.
        """
        self._reader = reader
        self._lock = threading.Lock()
        self._chunks: dict[Position, Chunk] = {}
        """By where they begin, the oldest first."""
        self._records = 0

    def read(self, position: Position, max_records: int) -> Chunk:
        """Return the records after ``position``, with all that :meth:`JournalReader.read` says."""
        with self._lock:  # who comes second finds what the first one has read
            chunk = self._chunks.get(position)
            if chunk is None or len(chunk.records) > max_records:
                chunk = self._reader.read(position, max_records)
                self._keep(position, chunk)
        return chunk

    def _keep(self, position: Position, chunk: Chunk) -> None:
        if not 0 < len(chunk.records) <= MAX_RECORDS or position in self._chunks:
            return
        self._chunks[position] = chunk
        self._records += len(chunk.records)
        while self._records > MAX_RECORDS:
            self._records -= len(self._chunks.pop(next(iter(self._chunks))).records)
