"""The writing end of a journal, in the training process: no thread, no socket, and no device is waited for.

One lock is shared by all threads that record. It is held while a record is copied into the mapping, a microsecond or
less; and for one record in some 50 000 also while the next segment is made and the oldest deleted: a millisecond or so
on a local disk, and as long as the disk takes where it hangs. Who records meanwhile waits, as that record must survive
the process too. ``docs/journal.md`` says what holds of the format.
"""

import errno
import logging
import mmap
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from zlib import crc32

from periflow_otel.journal.files import SCARCE, move_aside
from periflow_otel.journal.folders import make_private
from periflow_otel.journal.life import WriterLock
from periflow_otel.journal.overflow import MAX_BYTES, Overflow
from periflow_otel.journal.segment import (
    CHECKPOINT_STEP,
    CLOSED,
    COMMIT,
    HEADER_BYTES,
    OFFSET_MASK,
    ONE_FRAME,
    PAUSE,
    SEGMENT_BYTES,
    STEP,
    STEP_STARTED_UNIX_NS,
    URGENT_SEQUENCE,
    create_segment,
    cut,
    frame,
    pack_head,
    segment_path,
    split_commit,
)
from periflow_otel.journal.space import make_room
from periflow_otel.records import Missing, RankRun, encode_missing

RETRY_INTERVAL_S: Final = 30.0
"""How often a disk that took nothing is asked again."""
SCARCE_INTERVAL_S: Final = 1.0
"""How often it is tried again where too many files were open."""
DROP_WARNING_INTERVAL_S: Final = 60.0
"""How often it is said that the oldest records are dropped."""
LEAST_SEGMENT_BYTES: Final = 64 << 10
"""Smallest segment that is tried where the disk has no room for a whole one."""
TAIL_BYTES: Final = 256
"""Kept free in each segment: there it is told how a run ended for which the disk has no room any more."""
MAX_RUN_BYTES: Final = 4 << 10
"""What the run takes in the header, or less."""
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_MISSING_BYTES: Final = 24
_log = logging.getLogger("periflow_otel")
_writers: "weakref.WeakSet[JournalWriter]" = weakref.WeakSet()


class JournalWriter:
    """Appends records to the segments of one rank.

    When ``append`` has returned, the record survives the death of the process. It may be called from several threads,
    and from a signal handler that interrupts it. In a forked child it does nothing.
    """

    _life: WriterLock | None = None
    """Says that this process lives. It is held until then, whatever ends before."""

    def __init__(
        self,
        folder: Path,
        run: RankRun,
        *,
        max_bytes: int = 256 << 20,
        segment_bytes: int = SEGMENT_BYTES,
        opening: bytes = b"",
    ) -> None:
        """Begin a journal in ``folder``, which exists and is empty.

        Args:
            folder: Where the segments go.
            run: Who writes.
            max_bytes: Bound of all segments of the rank together, over all its attempts; beyond it the oldest goes.
                The present segment and the next are always kept.
            segment_bytes: Size of one segment: a header, the opening and the largest record must fit.
            opening: An encoded record that every segment begins with, so that it stays when the oldest go; none if
                empty.
        """
        self._folder = folder
        self._run = run
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._opening = frame(opening) if opening else b""
        self._lock = threading.RLock()
        self._is_writing = False
        self._interrupting: deque[bytes] = deque()
        self._index = 0
        self._map: mmap.mmap | bytearray = bytearray()
        self._words = memoryview(bytearray(HEADER_BYTES)).cast("Q")
        self._path: Path | None = None
        self._first_sequence = 0
        self._commit = 0
        self._capacity = 0
        self._status: os.stat_result
        self._overflow = Overflow()
        self._retry_at_s = 0.0
        self._drop_warning_due_s = 0.0
        self._last: bytes | None = None
        self._has_ended = False
        self._is_closed = False
        self._has_refused = False
        self._untold = 0
        self._is_child = False
        _writers.add(self)
        self._open_next()

    @property
    def sequence(self) -> int:
        """Number of records that were appended so far."""
        with self._lock:
            count, _ = split_commit(self._commit)
            kept = self._overflow.dropped + len(self._overflow.frames)
            return self._first_sequence + count + kept + self._untold

    def append(self, payload: bytes) -> None:
        """Append one encoded record of at most ``records.MAX_RECORD_BYTES``. Raises nothing when the disk is full."""
        with self._lock:
            if self._is_writing:  # a signal handler interrupted this very call, which goes on for both
                is_late = self._has_ended
                if not is_late:
                    self._interrupting.append(payload)
            else:
                self._is_writing = True
                try:
                    is_late = self._is_closed
                    if not is_late:
                        self._write(pack_head(len(payload), crc32(payload)) + payload)  # frame(), without its call
                finally:
                    self._is_writing = False
                    if self._interrupting or self._has_ended:
                        self._settle()
        if is_late:
            self._refuse()

    def open_with(self, payload: bytes) -> None:
        """Append a record, and begin every segment from the next on with it."""
        with self._lock:
            self._opening = frame(payload)
            self.append(payload)

    def begin_step(self, step: int, unix_ns: int) -> None:
        """Show the agent which step is going on, so that a stuck or a killed one is visible."""
        words = self._words
        words[STEP_STARTED_UNIX_NS] = unix_ns
        words[STEP] = step

    def note_pause(self, pause: int) -> int:
        """Show the agent that no step is to be expected; return what was shown before.

        Args:
            pause: One more than the step in or after which it begins; 0: it is over.
        """
        before, self._words[PAUSE] = self._words[PAUSE], pause
        return before

    def note_checkpoint(self, step: int) -> None:
        """Keep the step of the last checkpoint where the next attempt finds it."""
        self._words[CHECKPOINT_STEP] = step

    def ask_for_delivery(self) -> None:
        """Ask the agent to deliver at once what was appended so far."""
        self._words[URGENT_SEQUENCE] = self.sequence

    def look(self) -> None:
        """See whether the journal is where it was, and go on in a new folder if that was deleted, moved or replaced.

        Takes some 10 µs; to be called about once a second.
        """
        with self._lock:
            if self._is_writing or self._has_ended or self._retry_at_s:
                return
            self._is_writing = True
            try:
                if self._is_in_place():
                    with suppress(OSError):  # no descriptor is free, say: later, then
                        self._hold_life()
                else:
                    _log.warning("the journal in %s was deleted or moved; recording goes on in a new one", self._folder)
                    self._open_next()
            finally:
                self._is_writing = False
                self._settle()

    def finish(self, payload: bytes) -> int:
        """Append the last record and close the journal, in one: no record comes after it.

        Where a signal handler calls this and has interrupted a record, both are written when the handler returns.

        Returns:
            How many records there are, the last one included.
        """
        with self._lock:
            if not self._has_ended:
                self._last = payload
            self.close()
            return self.sequence + len(self._interrupting) + (self._last is not None)

    def close(self) -> None:
        """Write what is still kept in memory, if the disk takes it by now; take no records from then on."""
        with self._lock:
            self._has_ended = True
            if not self._is_writing:  # else a signal handler closes, and the call that it interrupted goes on
                self._settle()

    def go_inert(self) -> None:
        """Do nothing from now on, and touch nothing that is shared: this is a forked child."""
        self._is_child = self._is_closed = self._has_ended = True
        self._lock = threading.RLock()  # a thread that the child does not have may hold the other
        self._leave()
        self._let_go()

    def _settle(self) -> None:
        """Do what signal handlers wanted that interrupted a record, and close the journal if it has ended."""
        while self._interrupting:
            self.append(self._interrupting.popleft())
        if self._has_ended and not self._is_closed:
            self._close()

    def _close(self) -> None:
        self._is_writing = self._is_closed = True
        try:
            self._recover()
            if self._last is not None:
                self._write(frame(self._last))
            self._leave_behind()
            self.ask_for_delivery()
        finally:
            self._last = None
            self._is_writing = False
            left = self._path, self._words, self._commit & OFFSET_MASK
            self._leave()
            _give_back(*left)

    def _refuse(self) -> None:
        """Say once that a record is dropped; but nothing in a forked child, or in a half-gone interpreter."""
        if not self._has_refused and not self._is_child and not sys.is_finalizing():
            self._has_refused = True
            _log.warning("run %s is over: what is recorded from now on is dropped", self._run.run_id)

    def _leave(self) -> None:
        """Write into nothing from now on. A child that was forked in ``_close`` must not cut its parent's segment."""
        self._path = None
        self._words = memoryview(bytearray(HEADER_BYTES)).cast("Q")
        self._map, self._capacity = bytearray(), sys.maxsize

    def _let_go(self) -> None:
        """Close the lock that says that this process lives; the parent of a forked child still has it."""
        life, self._life = self._life, None
        if life is not None:
            life.release()

    def __del__(self) -> None:
        """Let go of the lock: there is nobody left who could write."""
        self._let_go()

    def _write(self, data: bytes) -> None:
        start = self._commit & OFFSET_MASK
        end = start + len(data)
        if end > self._capacity:
            self._write_elsewhere(data)
            return
        self._map[start:end] = data
        # An exception out of a signal handler between these two stores loses only the record whose call it ends.
        self._commit = self._words[COMMIT] = self._commit + ONE_FRAME + len(data)

    def _write_elsewhere(self, data: bytes) -> None:
        """Write into the next segment, or keep ``data`` in memory if the disk takes none."""
        if time.monotonic() >= self._retry_at_s and self._open_next(len(data)):
            self._recover()
            self._write(data)
        else:
            self._overflow.keep(data)

    def _open_next(self, frame_bytes: int = 0) -> bool:
        """Go on in a new segment, with room for a frame at least; return False if the disk has none."""
        self._index += 1  # never used again, even if this comes to nothing: the agent may have seen it
        path = segment_path(self._folder, self._index)
        first_sequence = self.sequence - len(self._overflow.frames)
        try:
            self._make_folder()
            self._hold_life()
            self._make_room()
            mapping = self._create(path, first_sequence, frame_bytes)
            status = path.lstat()
        except OSError as error:
            self._give_up_for_now(error)
            return False
        words = memoryview(mapping)[:HEADER_BYTES].cast("Q")
        if self._is_child:  # a signal handler forked meanwhile, and this is the child
            self._let_go()
            return False
        # No call from here on: neither another thread nor an exception out of a signal handler sees a half of this.
        words[PAUSE:COMMIT] = self._words[PAUSE:COMMIT]
        left = self._path, self._words, self._commit & OFFSET_MASK
        self._map, self._words, self._path, self._status = mapping, words, path, status
        self._capacity = len(mapping) - TAIL_BYTES
        self._first_sequence, self._commit, self._overflow.dropped = first_sequence, words[COMMIT], 0
        _give_back(*left)
        if self._retry_at_s:
            self._retry_at_s = 0.0
            _log.warning("the journal in %s can be written again", self._folder)
        return True

    def _make_folder(self) -> None:
        """See to it that there is a folder; a link, a file or a pipe in its place makes room."""
        if self._folder.is_symlink() or (self._folder.exists() and not self._folder.is_dir()):
            move_aside(self._folder)
        make_private(self._folder)

    def _hold_life(self) -> None:
        """Hold the lock that says that this process lives."""
        if self._life is None or not self._life.is_in_place():
            before, self._life = self._life, WriterLock(self._folder)
            if before is not None:
                before.release()

    def _is_in_place(self) -> bool:
        """Tell whether the present segment is found where it was made."""
        try:
            found = self._path is None or os.path.samestat(self._status, self._path.lstat())
            return found and not self._folder.is_symlink()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    def _create(self, path: Path, first_sequence: int, frame_bytes: int) -> mmap.mmap:
        """Create a segment; a smaller one where the disk has only little room, so that at least the agent gets on."""
        progress = self._words[PAUSE:COMMIT].tolist()
        size_bytes = self._segment_bytes
        opening = self._opening
        least_bytes = HEADER_BYTES + MAX_RUN_BYTES + len(opening) + frame_bytes + TAIL_BYTES
        while size_bytes // 2 >= max(LEAST_SEGMENT_BYTES, least_bytes):
            with _suppress_no_room():
                return create_segment(path, self._run, first_sequence, size_bytes, progress, opening)
            size_bytes //= 2
        return create_segment(path, self._run, first_sequence, size_bytes, progress, opening)

    def _recover(self) -> None:
        """Write what is kept in memory, as far as the disk takes it."""
        frames = self._overflow.frames
        while frames and (
            len(frames[0]) <= self._capacity - (self._commit & OFFSET_MASK) or self._open_next(len(frames[0]))
        ):
            self._write(self._overflow.take())

    def _leave_behind(self) -> None:
        """Write down how many records the disk does not take, and the last of them: it tells how the run ended."""
        overflow, self._overflow = self._overflow, Overflow()
        if not overflow.frames:
            return
        lost, last = overflow.dropped + len(overflow.frames), overflow.frames[-1]
        room = len(self._map) - (self._commit & OFFSET_MASK)
        if _MISSING_BYTES + len(last) <= room:
            self._note_missing(lost := lost - 1)
            self._put(last, 1)
        elif room >= _MISSING_BYTES:
            self._note_missing(lost)
        else:
            self._untold = lost  # nobody counts them, so nobody will say that they are done with
        if lost:
            _log.warning("%d records could not be written into %s", lost, self._folder)

    def _note_missing(self, records: int) -> None:
        if records:
            payload = encode_missing(Missing(records))
            self._put(frame(payload), records)

    def _put(self, data: bytes, records: int) -> None:
        """Write a frame that stands for a number of records; there is room."""
        start = self._commit & OFFSET_MASK
        self._map[start : start + len(data)] = data
        self._commit = self._words[COMMIT] = self._commit + records * ONE_FRAME + len(data)

    def _make_room(self) -> None:
        if not make_room(self._folder, self._segment_bytes, self._max_bytes):
            return
        if time.monotonic() >= self._drop_warning_due_s:
            self._drop_warning_due_s = time.monotonic() + DROP_WARNING_INTERVAL_S
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
                error.strerror or error,
                MAX_BYTES >> 20,
            )
        self._retry_at_s = time.monotonic() + (SCARCE_INTERVAL_S if error.errno in SCARCE else RETRY_INTERVAL_S)
        self._capacity = 0


@contextmanager
def _suppress_no_room() -> Iterator[None]:
    """Go on where the disk, or what this user may have of it, is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise


def _give_back(path: Path | None, words: "memoryview[int]", end: int) -> None:
    """Give back the space of a segment behind its last record; nobody writes there any more."""
    words[CLOSED] = 1
    if path is not None:
        with suppress(OSError):  # everybody has had it
            cut(path, end)


def _forget_parent() -> None:
    for writer in list(_writers):
        writer.go_inert()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
