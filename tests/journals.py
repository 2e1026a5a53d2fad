"""What the tests of the journal share: numbered records, and all that a journal gives."""

from pathlib import Path
from typing import NamedTuple

from periflow_otel.journal.reader import JournalReader, Position
from periflow_otel.records import Metric, Record, encode_metric

SMALL = 4096
"""Bytes of a segment that holds a few dozen records."""


def numbered(number: int) -> bytes:
    """Return an encoded record that carries a number."""
    return encode_metric(1, 1, {"n": number})


class Everything(NamedTuple):
    """All that a reader gives."""

    records: list[Record]
    position: Position
    lost: int

    @property
    def numbers(self) -> list[int]:
        """The numbers that the records carry."""
        return [each.values["n"] for each in self.records if isinstance(each, Metric)]


def read_all(source: Path | JournalReader, position: Position | None = None) -> Everything:
    """Read a journal to its present end."""
    reader = source if isinstance(source, JournalReader) else JournalReader(source)
    records: list[Record] = []
    position, lost = position or Position(), 0
    while True:
        chunk = reader.read(position, 100)
        records += chunk.records
        lost += chunk.lost
        if chunk.position == position:
            return Everything(records, position, lost)
        position = chunk.position
