"""The reading end of a journal, in the agent: whole records in order, and an exact count of what is missing."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from periflow_otel.journal.files import SCARCE, list_own
from periflow_otel.journal.folders import journal_folders
from periflow_otel.journal.life import is_written
from periflow_otel.journal.segment import (
    CHECKPOINT_STEP,
    CLOSED,
    COMMIT,
    PAUSE,
    STEP,
    STEP_STARTED_UNIX_NS,
    SUFFIX,
    URGENT_SEQUENCE,
    Segment,
    frame_head,
    segment_indices,
    segment_path,
    split_commit,
    unframe,
    whole_frames,
)
from periflow_otel.records import MAX_RECORD_BYTES, Missing, RankRun, Record, decode

READ_BYTES: Final = 256 << 10
"""How much of a segment is read at a time."""
LIST_INTERVAL_S: Final = 5.0
"""How often a folder is listed while its writer seems to be in the last segment that is known. It says so when it
leaves, unless it is ended at that very moment."""
TAIL_BYTES: Final = 16 << 10
"""How much the last records take."""
OPEN_SEGMENTS: Final = 8
"""How many segments of a rank are kept open, for consumers in different places."""

_NO_RECORD: Final = (msgspec.DecodeError, ValueError, RecursionError)
_LARGEST_FRAME_BYTES: Final = frame_head.size + MAX_RECORD_BYTES


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
    checkpoint_step: int
    """Step of the last checkpoint that was announced; 0: there was none."""
    pause: int
    """One more than the step in or after which a pause has begun that the script has announced; 0: there is none."""

    @property
    def is_pausing(self) -> bool:
        """Whether the script has said that no step is to be expected: it evaluates, say."""
        return self.pause == self.step + 1


class Chunk(NamedTuple):
    """Some records and what follows them."""

    records: list[Record]
    position: Position
    lost: int
    """Records before ``position`` that are damaged or were dropped, and so are not in ``records``."""
    size_bytes: int = 0
    """What the records take in the journal."""


class JournalReader:
    """Reads the journal of one rank. Reading leaves no trace in it; any number of readers may use one object."""

    def __init__(self, folder: Path, *, holds_on: bool = False) -> None:
        """Prepare to read ``folder``; it may be empty or gone.

        Args:
            folder: The journal.
            holds_on: Go on reading what somebody has deleted meanwhile, though it takes up space as long.
        """
        self._holds_on = holds_on
        self.folder = folder
        self._segments: dict[int, Segment | None] = {}
        self._listing = threading.Lock()
        self._known: Sequence[int] = ()
        self._known_at_s = -LIST_INTERVAL_S

    def run(self) -> RankRun | None:
        """Return who wrote the journal, or None if no segment can tell.

        Raises:
            OSError: This process has too many files open.
        """
        for index in self._indices():
            if segment := self._segment(index):
                return segment.run
        return None

    def first_sequence(self) -> int:
        """Return how many records came before those that are still there; 0 if there is no segment.

        Raises:
            OSError: This process has too many files open.
        """
        for index in self._indices():
            if segment := self._segment(index):
                return segment.first_sequence
        return 0

    def is_closed(self) -> bool:
        """Tell whether the writer has ended the journal itself: no record comes after that.

        Raises:
            OSError: This process has too many files open.
        """
        for index in reversed(self._indices()):
            if segment := self._segment(index):
                return segment.is_left()
        return False

    def head(self, *, is_last: bool = False) -> Head:
        """Return the present state of the rank; zeros if there is no segment.

        Args:
            is_last: Its process is gone, so this is its last state; else a segment that it has just begun in an unusual
                way may be seen seconds later.

        Raises:
            OSError: This process has too many files open.
        """
        last = None if is_last else self._recent_last()
        words = last.words() if last else []
        if last is None or words[CLOSED]:
            last = next(filter(None, map(self._segment, reversed(self._indices()))), None)
            words = last.words() if last else []
        if last is None:
            return Head(0, 0, 0, 0, 0, 0)
        sequence = last.first_sequence + split_commit(words[COMMIT])[0]
        return Head(
            sequence,
            words[URGENT_SEQUENCE],
            words[STEP],
            words[STEP_STARTED_UNIX_NS],
            words[CHECKPOINT_STEP],
            words[PAUSE],
        )

    def read(self, position: Position, max_records: int) -> Chunk:
        """Return the records after ``position``: none if there are no more yet.

        At most ``max_records``, and no more once they take ``READ_BYTES``.
        What is damaged or gone is passed over and counted as lost.

        Raises:
            OSError: This process has too many files open; nothing is passed over.
        """
        records: list[Record] = []
        lost = size_bytes = 0
        while len(records) < max_records and size_bytes < READ_BYTES:
            # Asked before the frames are read: once there is a next segment, this one grows no more.
            following = next((index for index in self._recent_indices() if index > position.segment), None)
            chunk = self._read_segment(position, max_records - len(records))
            if chunk.position == position and following is not None:
                chunk = self._enter(following, position)
            records += chunk.records
            lost += chunk.lost
            size_bytes += chunk.size_bytes
            position = chunk.position
            if following is None:
                break
        return Chunk(records, position, lost, size_bytes)

    def last_records(self) -> list[Record]:
        """Return the last records, as many as a few KiB hold: found from the end, so it takes no longer where many are.

        Raises:
            OSError: This process has too many files open.
        """
        last = next(filter(None, map(self._segment, reversed(self._indices()))), None)
        if last is None:
            return []
        end = split_commit(last.words()[COMMIT])[1]
        start = max(last.data_offset, end - TAIL_BYTES)
        tail = last.read(start, end - start)
        first = next((offset for offset in range(len(tail)) if unframe(tail, offset) is not None), len(tail))
        return _whole_frames(tail[first:], Position(), len(tail)).records

    def forget(self, before: int) -> None:
        """Delete the segments before index ``before``: everybody has had them."""
        for index in self._indices():
            if index < before:
                with contextlib.suppress(OSError):
                    segment_path(self.folder, index).unlink()
                self._segments.pop(index, None)

    def _indices(self) -> Sequence[int]:
        """Return the indices of the segments that are there, and let go of those that are not: they take up space."""
        with self._listing:  # what is known was never listed before what was known
            now_s = time.monotonic()
            self._known = indices = segment_indices(self.folder)
            self._known_at_s = now_s
            for index in () if self._holds_on else set(self._segments).difference(indices):
                self._segments.pop(index, None)
            return indices

    def _recent_indices(self) -> Sequence[int]:
        """Return the indices of the segments, as they were a moment ago if the writer is still in the last of them."""
        known, last = self._known, self._recent_last()
        return self._indices() if last is None or last.is_left() else known

    def _recent_last(self) -> Segment | None:
        """Return what was the last segment a moment ago; None if it is not known."""
        is_recent = time.monotonic() - self._known_at_s < LIST_INTERVAL_S
        return self._segments.get(self._known[-1]) if is_recent and self._known else None

    def _segment(self, index: int) -> Segment | None:
        """Return a segment, or None where it is damaged or gone."""
        with contextlib.suppress(KeyError):
            return self._segments[index]
        try:
            segment = Segment(segment_path(self.folder, index))
        except (ValueError, msgspec.DecodeError):
            segment = None
        except OSError as error:
            if error.errno in SCARCE:
                raise
            return None
        self._segments[index] = segment
        for oldest in list(self._segments)[:-OPEN_SEGMENTS]:
            self._segments.pop(oldest, None)
        return segment

    def _enter(self, index: int, position: Position) -> Chunk:
        """Go to the beginning of a segment; what lies between is lost."""
        segment = self._segment(index)
        if segment is None:
            return Chunk([], Position(index, 0, position.sequence), 0)
        missed = max(0, segment.first_sequence - position.sequence)
        return Chunk([], Position(index, segment.data_offset, segment.first_sequence), missed)

    def _read_segment(self, position: Position, max_records: int) -> Chunk:
        segment = self._segment(position.segment)
        if segment is None:
            return Chunk([], position, 0)
        count, end = split_commit(segment.words()[COMMIT])
        rest = max(0, end - position.offset)
        chunk = _whole_frames(segment.read(position.offset, min(rest, READ_BYTES)), position, max_records)
        if chunk.position == position and rest > READ_BYTES:
            chunk = _whole_frames(segment.read(position.offset, min(rest, _LARGEST_FRAME_BYTES)), position, 1)
        if chunk.position == position and rest:
            return _give_up(position, end, segment.first_sequence + count)
        return chunk


class Written(NamedTuple):
    """A journal of which is known who writes it, or wrote it."""

    journal: JournalReader
    run: RankRun

    @property
    def is_alive(self) -> bool:
        """Whether its writer may still be there."""
        return is_written(self.journal.folder, self.run.process)


def written_journals(folder: Path) -> Iterator[Written]:
    """Yield the journals of a run on this node of which is known who wrote them, the oldest attempt first.

    Raises:
        OSError: This process has too many files open.
    """
    for journal in map(JournalReader, journal_folders(folder)):
        if run := journal.run():
            yield Written(journal, run)


def unreadable_journals(folder: Path) -> list[Path]:
    """Return the journals of a run with segments of which none can tell who wrote it, or that cannot be looked at."""
    return [each for each in journal_folders(folder) if _is_unreadable(each)]


def _is_unreadable(journal: Path) -> bool:
    try:
        return any(entry.suffix == SUFFIX for entry in list_own(journal)) and JournalReader(journal).run() is None
    except FileNotFoundError:  # everybody has had it
        return False
    except OSError:
        return True


def _whole_frames(data: bytes, position: Position, max_frames: int) -> Chunk:
    """Return the records of the whole frames at the beginning of ``data``, which was read at ``position``."""
    records: list[Record] = []
    offset = frames = 0
    for payload in islice(whole_frames(data), max_frames):
        offset += frame_head.size + len(payload)
        frames += 1
        try:
            record = decode(payload)
        except _NO_RECORD:  # one of another version, perhaps: it costs only itself
            continue
        if isinstance(record, Missing):
            frames += record.records - 1
        else:
            records.append(record)
    reached = Position(position.segment, position.offset + offset, position.sequence + frames)
    return Chunk(records, reached, frames - len(records), offset)


def _give_up(position: Position, end: int, last_sequence: int) -> Chunk:
    """Pass over the rest of a segment: behind a damaged frame, nobody knows where the next one begins."""
    lost = max(0, last_sequence - position.sequence)
    return Chunk([], Position(position.segment, end, position.sequence + lost), lost)
