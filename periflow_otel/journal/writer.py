"""The writing end of a journal, in the training process: no thread, no socket, no lock held across I/O to a device."""

import logging
import mmap
import os
import threading
import time
import weakref
from collections import deque
from pathlib import Path
from typing import Final

from periflow_otel.journal.segment import (
    COMMIT,
    HEADER_BYTES,
    OFFSET_MASK,
    ONE_FRAME,
    SEGMENT_BYTES,
    STEP,
    STEP_STARTED_UNIX_NS,
    URGENT_SEQUENCE,
    create_segment,
    frame,
    segment_indices,
    segment_path,
    split_commit,
)
from periflow_otel.records import RunStarted

MEMORY_BYTES: Final = 32 << 20
"""How much is kept in memory while the disk takes nothing."""
RETRY_INTERVAL_S: Final = 30.0
"""How often a disk that took nothing is asked again."""

_log = logging.getLogger("periflow_otel")
_writers: "weakref.WeakSet[JournalWriter]" = weakref.WeakSet()


class JournalWriter:
    """Appends records to the segments of one rank.

    When ``append`` has returned, the record survives the death of the process. It may be called from several threads, and
    from a signal handler that interrupts it. In a forked child it does nothing.
    """

    def __init__(
        self, folder: Path, run: RunStarted, *, max_bytes: int = 256 << 20, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        """Begin a journal in ``folder``, which exists and is empty.

        Args:
            folder: Where the segments go.
            run: Who writes.
            max_bytes: Bound of all segments together; beyond it the oldest goes.
            segment_bytes: Size of one segment.
        """
        self._folder = folder
        self._run = run
        self._max_segments = max(2, max_bytes // segment_bytes)
        self._segment_bytes = segment_bytes
        self._lock = threading.RLock()
        self._is_writing = False
        self._interrupting: deque[bytes] = deque()
        self._index = 0
        self._map: mmap.mmap | None = None
        self._words = memoryview(bytearray(HEADER_BYTES)).cast("Q")
        self._first_sequence = 0
        self._commit = 0
        self._capacity = 0
        self._memory = _Memory()
        self._retry_at_s = 0.0
        self._is_inert = False
        _writers.add(self)
        self._open_next()

    @property
    def sequence(self) -> int:
        """Number of records that were appended so far."""
        count, _ = split_commit(self._commit)
        return self._first_sequence + count + self._memory.taken

    def append(self, payload: bytes) -> None:
        """Append one encoded record of at most ``records.MAX_RECORD_BYTES``. Raises nothing when the disk is full."""
        if self._is_inert:
            return
        with self._lock:
            if self._is_writing:  # a signal handler interrupted this very thread: the call below it goes on for us
                self._interrupting.append(payload)
                return
            self._is_writing = True
            try:
                self._write(frame(payload))
            finally:
                self._is_writing = False
            while self._interrupting:
                self.append(self._interrupting.popleft())

    def begin_step(self, step: int, unix_ns: int) -> None:
        """Show the agent which step is going on, so that a stuck or a killed one is visible."""
        words = self._words
        words[STEP_STARTED_UNIX_NS] = unix_ns
        words[STEP] = step

    def ask_for_delivery(self) -> None:
        """Ask the agent to deliver at once what was appended so far."""
        self._words[URGENT_SEQUENCE] = self.sequence

    def go_inert(self) -> None:
        """Do nothing from now on and touch nothing that is shared: this is a forked child, or the run is over."""
        self._is_inert = True
        self._words = memoryview(bytearray(HEADER_BYTES)).cast("Q")
        self._map = None

    def _write(self, data: bytes) -> None:
        start = self._commit & OFFSET_MASK
        end = start + len(data)
        if end > self._capacity:
            self._write_elsewhere(data)
            return
        self._map[start:end] = data  # type: ignore[index]  # what has a capacity has a mapping
        # An exception out of a signal handler between these two stores loses only the record whose call it ends.
        self._commit = self._words[COMMIT] = self._commit + ONE_FRAME + len(data)

    def _write_elsewhere(self, data: bytes) -> None:
        """Write into the next segment, or keep ``data`` in memory if the disk takes none."""
        if time.monotonic() >= self._retry_at_s and self._open_next():
            self._write(data)
        else:
            self._memory.keep(data)

    def _open_next(self) -> bool:
        path = segment_path(self._folder, self._index + 1)
        first_sequence = self.sequence - len(self._memory.frames)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._drop_oldest()
            mapping = create_segment(path, self._run, first_sequence, self._segment_bytes)
        except OSError as error:
            self._give_up_for_now(error)
            return False
        words = memoryview(mapping)[:HEADER_BYTES].cast("Q")
        for word in (STEP, STEP_STARTED_UNIX_NS, URGENT_SEQUENCE):
            words[word] = self._words[word]
        kept, self._memory = self._memory.frames, _Memory()
        self._map, self._words, self._capacity = mapping, words, self._segment_bytes
        self._first_sequence, self._commit = first_sequence, words[COMMIT]
        self._index += 1
        self._recover(kept)
        return True

    def _recover(self, kept: deque[bytes]) -> None:
        """Write what was kept in memory while the disk took nothing."""
        if self._retry_at_s:
            _log.warning("the journal in %s can be written again", self._folder)
            self._retry_at_s = 0.0
        for data in kept:
            self._write(data)

    def _drop_oldest(self) -> None:
        indices = segment_indices(self._folder)
        for index in indices[: max(0, len(indices) + 1 - self._max_segments)]:
            segment_path(self._folder, index).unlink(missing_ok=True)
            _log.warning(
                "the journal in %s has reached its bound; its oldest records are dropped. Is the agent or the "
                "collector down? PERIFLOW_JOURNAL_MAX_BYTES raises the bound.",
                self._folder,
            )

    def _give_up_for_now(self, error: OSError) -> None:
        if self._retry_at_s == 0:
            _log.warning(
                "the journal in %s cannot be written (%s); training goes on, up to %d MiB are kept in memory",
                self._folder,
                error.strerror,
                MEMORY_BYTES >> 20,
            )
        self._retry_at_s = time.monotonic() + RETRY_INTERVAL_S
        self._map, self._capacity = None, 0


class NoJournal:
    """Takes records and keeps none: telemetry is off, or this platform has no journal."""

    sequence = 0

    def append(self, payload: bytes) -> None:
        """Forget a record."""

    def begin_step(self, step: int, unix_ns: int) -> None:
        """Show nobody anything."""

    def ask_for_delivery(self) -> None:
        """Ask nobody."""

    def go_inert(self) -> None:
        """Do nothing more, as before."""


class _Memory:
    """Frames that the disk did not take, the oldest dropped first."""

    __slots__ = ("frames", "size_bytes", "taken")

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()
        self.size_bytes = 0
        self.taken = 0

    def keep(self, data: bytes) -> None:
        self.frames.append(data)
        self.taken += 1
        self.size_bytes += len(data)
        while self.size_bytes > MEMORY_BYTES:
            self.size_bytes -= len(self.frames.popleft())


def _forget_parent() -> None:
    for writer in list(_writers):
        writer.go_inert()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
