"""The reading end of a journal, in the agent: whole records in order, and an exact count of what is missing."""

import contextlib
import zlib
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from periflow_otel.journal.segment import (
    COMMIT,
    STEP,
    STEP_STARTED_UNIX_NS,
    URGENT_SEQUENCE,
    Segment,
    frame_head,
    segment_indices,
    segment_path,
    split_commit,
)
from periflow_otel.records import Record, RunStarted, decode

READ_BYTES: Final = 256 << 10
"""How much of a segment is read at a time."""


class Position(msgspec.Struct, frozen=True, array_like=True):
    """A place in a journal."""

    segment: int = 0
    """0: before the first."""
    offset: int = 0
    sequence: int = 0
    """Number of records before it."""


class Head(NamedTuple):
    """What a journal says of its rank right now."""

    sequence: int
    """Number of records that were appended so far."""
    urgent_sequence: int
    """Up to here delivery is asked for at once."""
    step: int
    """The last step that began; 0 before the first."""
    step_started_unix_ns: int


class Chunk(NamedTuple):
    """Some records and what follows them."""

    records: list[Record]
    position: Position
    lost: int
    """Records before ``position`` that are damaged or were dropped, and so are not in ``records``."""


class JournalReader:
    """Reads the journal of one rank. Reading leaves no trace in it; any number of readers may use one object."""

    def __init__(self, folder: Path) -> None:
        """Prepare to read ``folder``; it may be empty or gone."""
        self.folder = folder
        self._segments: dict[int, Segment | None] = {}

    def run(self) -> RunStarted | None:
        """Return who wrote the journal, or None if no segment can tell."""
        for index in segment_indices(self.folder):
            if segment := self._segment(index):
                return segment.run
        return None

    def head(self) -> Head:
        """Return the present state of the rank; zeros if there is no segment."""
        for index in reversed(segment_indices(self.folder)):
            if segment := self._segment(index):
                words = segment.words()
                count, _ = split_commit(words[COMMIT])
                sequence = segment.first_sequence + count
                return Head(sequence, words[URGENT_SEQUENCE], words[STEP], words[STEP_STARTED_UNIX_NS])
        return Head(0, 0, 0, 0)

    def read(self, position: Position, max_records: int) -> Chunk:
        """Return the records after ``position``: at most ``max_records``, none if there are no more yet.

        Raises nothing: what is damaged is passed over and counted as lost.
        """
        records: list[Record] = []
        lost = 0
        while len(records) < max_records:
            # Asked before the frames are read: once there is a next segment, this one grows no more.
            following = self._following(position.segment)
            chunk = self._read_segment(position, max_records - len(records))
            records += chunk.records
            lost += chunk.lost
            progressed = chunk.position != position
            position = chunk.position
            if progressed:
                continue
            if following is None:
                break
            entered, missed = self._enter(following, position)
            position = entered
            lost += missed
        return Chunk(records, position, lost)

    def forget(self, before: int) -> None:
        """Delete the segments before index ``before``: everybody has had them."""
        for index in segment_indices(self.folder):
            if index < before:
                segment_path(self.folder, index).unlink(missing_ok=True)
        for index in [index for index in self._segments if index < before]:
            del self._segments[index]

    def _segment(self, index: int) -> Segment | None:
        """Return a segment, or None where it is damaged or gone."""
        if index not in self._segments:
            try:
                self._segments[index] = Segment(segment_path(self.folder, index))
            except (ValueError, msgspec.DecodeError):
                self._segments[index] = None
            except OSError:
                return None
        return self._segments[index]

    def _following(self, index: int) -> int | None:
        return next((each for each in segment_indices(self.folder) if each > index), None)

    def _enter(self, index: int, position: Position) -> tuple[Position, int]:
        """Go to the beginning of a segment; what lies between is lost."""
        segment = self._segment(index)
        if segment is None:
            return Position(index, 0, position.sequence), 0
        missed = max(0, segment.first_sequence - position.sequence)
        return Position(index, segment.data_offset, segment.first_sequence), missed

    def _read_segment(self, position: Position, max_records: int) -> Chunk:
        segment = self._segment(position.segment)
        if segment is None:
            return Chunk([], position, 0)
        count, end = split_commit(segment.words()[COMMIT])
        data = segment.read(position.offset, max(0, min(end - position.offset, READ_BYTES)))
        records, size = _whole_records(data, max_records)
        sequence = position.sequence + len(records)
        reached = Position(position.segment, position.offset + size, sequence)
        if records or reached.offset >= end:
            return Chunk(records, reached, 0)
        return self._read_large(segment, reached, end, segment.first_sequence + count)

    def _read_large(self, segment: Segment, position: Position, end: int, last_sequence: int) -> Chunk:
        """Read a record that is larger than a read, or give up the rest of a damaged segment."""
        records, size = _whole_records(segment.read(position.offset, end - position.offset), 1)
        if records:
            return Chunk(records, Position(position.segment, position.offset + size, position.sequence + 1), 0)
        lost = max(0, last_sequence - position.sequence)
        return Chunk([], Position(position.segment, end, position.sequence + lost), lost)


def _whole_records(data: bytes, max_records: int) -> tuple[list[Record], int]:
    """Return the whole records at the beginning of ``data``, and the bytes that they take."""
    records: list[Record] = []
    offset = 0
    view = memoryview(data)
    with contextlib.suppress(msgspec.DecodeError):
        while len(records) < max_records and offset + frame_head.size <= len(data):
            size, checksum = frame_head.unpack_from(data, offset)
            payload = view[offset + frame_head.size : offset + frame_head.size + size]
            if len(payload) < size or zlib.crc32(payload) != checksum:
                break
            records.append(decode(payload))  # type: ignore[arg-type]  # msgspec takes any buffer
            offset += frame_head.size + size
    return records, offset
