"""The layout of a segment: a header of 64-bit words and the run, then frames of one record each.

A frame is the length and the CRC-32 of a payload, four bytes each, then the payload. The word ``COMMIT`` says how
many frames count and where they end. It is written last and in one store, so a process that is killed in the
middle of a frame leaves nothing that a reader could mistake for a record. The word ``CLOSED`` is 1 once the writer has
left the segment, which is then cut to what it holds.
"""

import errno
import mmap
import os
import struct
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from periflow_otel.journal.files import SCARCE, names_own, open_own
from periflow_otel.records import RankRun, decode_run, encode_run

SEGMENT_BYTES: Final = 8 << 20
"""Size of a segment. It is reserved at once, and holds some 50 000 records."""
SUFFIX: Final = ".segment"

# Header words. The first ones never change; CHECKSUM covers them and the run.
MAGIC, FIRST_SEQUENCE, RUN_BYTES, CREATED_UNIX_NS, CREATED_MONOTONIC_NS, CHECKSUM = range(6)
# A reader copies the words in order: it may see an old step with a new commit, but never the reverse.
PAUSE, STEP, STEP_STARTED_UNIX_NS, CHECKPOINT_STEP, URGENT_SEQUENCE, COMMIT, CLOSED = range(7, 14)
WORDS: Final = 16
WORD_BYTES: Final = 8
HEADER_BYTES: Final = WORDS * WORD_BYTES
MAGIC_NUMBER: Final = int.from_bytes(b"PFJRNL\x00\x01", "little")

OFFSET_MASK: Final = 0xFFFFFFFF
"""The lower half of ``COMMIT``: where the frames end."""
ONE_FRAME: Final = 1 << 32
"""One in the upper half of ``COMMIT``: the number of frames."""

frame_head: Final = struct.Struct("<II")
pack_head: Final = frame_head.pack
_words: Final = struct.Struct(f"={WORDS}Q")
_PIECE_BYTES: Final = 256 << 10


def frame(payload: bytes) -> bytes:
    """Return a payload with its length and checksum before it."""
    return frame_head.pack(len(payload), zlib.crc32(payload)) + payload


def unframe(data: bytes, offset: int = 0) -> bytes | None:
    """Return the payload of the frame at an offset, or None where no whole one is."""
    if offset + frame_head.size > len(data):
        return None
    size, checksum = frame_head.unpack_from(data, offset)
    payload = data[offset + frame_head.size : offset + frame_head.size + size]
    return payload if size and len(payload) == size and zlib.crc32(payload) == checksum else None


def whole_frames(data: bytes) -> Iterator[bytes]:
    """Yield the payloads of the whole frames that data begins with, in one loop: there are very many."""
    offset, end = 0, len(data) - frame_head.size
    while offset <= end:
        size, checksum = frame_head.unpack_from(data, offset)
        start = offset + frame_head.size
        offset = start + size
        payload = data[start:offset]
        if not size or len(payload) != size or zlib.crc32(payload) != checksum:
            return
        yield payload


def split_commit(word: int) -> tuple[int, int]:
    """Return the number of frames and the offset of their end."""
    return word >> 32, word & OFFSET_MASK


def segment_path(folder: Path, index: int) -> Path:
    """Return the path of a segment; indices count from 1."""
    return folder / f"{index:08d}{SUFFIX}"


def segment_indices(folder: Path) -> list[int]:
    """Return the indices of the segments that are there, in order; none if there is no such folder.

    Raises:
        OSError: This process has too many files open.
    """
    try:
        stems = [name.removesuffix(SUFFIX) for name in names_own(folder) if name.endswith(SUFFIX)]
    except OSError as error:
        if error.errno in SCARCE:
            raise
        return []
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def create_segment(
    path: Path,
    run: RankRun,
    first_sequence: int,
    size_bytes: int,
    progress: Sequence[int] = (0,) * (COMMIT - PAUSE),
    opening: bytes = b"",
) -> mmap.mmap:
    """Create a segment with its space reserved and its header written; return its mapping.

    Args:
        path: Where.
        run: Who writes.
        first_sequence: Number of records before it.
        size_bytes: Its size; it never grows.
        progress: The first values of the words from ``PAUSE`` to ``URGENT_SEQUENCE``.
        opening: A frame that is there from the beginning.

    Raises:
        OSError: The file cannot be created, or its space cannot be had: better now than as SIGBUS later.
    """
    header = _header(run, first_sequence, progress, opening)
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    descriptor = open_own(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        reserve(descriptor, size_bytes)
        mapping = mmap.mmap(descriptor, size_bytes)
        mapping[: len(header)] = header
        draft.rename(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return mapping


def _header(run: RankRun, first_sequence: int, progress: Sequence[int], opening: bytes) -> bytes:
    blob = encode_run(run)
    words = [0] * WORDS
    words[MAGIC] = MAGIC_NUMBER
    words[FIRST_SEQUENCE] = first_sequence
    words[RUN_BYTES] = len(blob)
    words[CREATED_UNIX_NS] = time.time_ns()
    words[CREATED_MONOTONIC_NS] = time.monotonic_ns()
    words[CHECKSUM] = _checksum(words, blob)
    words[PAUSE:COMMIT] = progress
    words[COMMIT] = HEADER_BYTES + len(blob) + len(opening) + (ONE_FRAME if opening else 0)
    return _words.pack(*words) + blob + opening


def _checksum(words: list[int], blob: bytes) -> int:
    return zlib.crc32(blob, zlib.crc32(struct.pack(f"={CHECKSUM}Q", *words[:CHECKSUM])))


def cut(path: Path, size_bytes: int) -> int:
    """Cut a segment that nobody writes to any more; return how much shorter it is now. Its times tell of the writer.

    Raises:
        OSError: It is gone, or cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if status.st_size > size_bytes:
            os.ftruncate(descriptor, size_bytes)
            os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))
        return max(0, status.st_size - size_bytes)
    finally:
        os.close(descriptor)


def reserve(descriptor: int, size_bytes: int) -> None:
    """Have the space of a file, from its beginning.

    Raises:
        OSError: There is not enough of it, or it would be more than this user may have.
    """
    if sys.platform == "linux":
        try:
            # In pieces: where a signal interrupts the call it begins again, and with a profiler's signals never ends.
            for offset in range(0, size_bytes, _PIECE_BYTES):
                os.posix_fallocate(descriptor, offset, min(_PIECE_BYTES, size_bytes - offset))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
        else:
            return
    write_zeros(descriptor, size_bytes)


def write_zeros(descriptor: int, size_bytes: int) -> None:
    """Reserve the space of a file where the system has no call for it, as on macOS.

    Raises:
        OSError: There is not enough of it.
    """
    offset = 0
    while offset < size_bytes:
        offset += os.pwrite(descriptor, bytes(min(_PIECE_BYTES, size_bytes - offset)), offset)


class Segment:
    """A segment, open for reading. Reads go through the descriptor: a mapping of a file that is cut raises SIGBUS."""

    def __init__(self, path: Path) -> None:
        """Open a segment.

        Raises:
            OSError: The file is not there, cannot be opened, or is not this user's own.
            ValueError: Its header is damaged.
            msgspec.DecodeError: Its header is of another version.
        """
        self._descriptor = -1
        self._descriptor = open_own(path, os.O_RDONLY)
        words = self.words()
        blob = self.read(HEADER_BYTES, min(words[RUN_BYTES], SEGMENT_BYTES))
        if words[MAGIC] != MAGIC_NUMBER or words[CHECKSUM] != _checksum(words, blob):
            message = f"the header of {path} is damaged"
            raise ValueError(message)
        self.run = decode_run(blob)
        self.first_sequence = words[FIRST_SEQUENCE]
        self.data_offset = HEADER_BYTES + len(blob)

    def words(self) -> list[int]:
        """Return the header words as they are now; zeros where the file is too short or cannot be read."""
        return list(_words.unpack(self.read(0, HEADER_BYTES).ljust(HEADER_BYTES, b"\0")))

    def is_left(self) -> bool:
        """Tell whether the writer has left the segment: nothing is added to it."""
        return any(self.read(CLOSED * WORD_BYTES, WORD_BYTES))

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes of the file; fewer than asked for where it ends, none where the device fails."""
        try:
            return os.pread(self._descriptor, size_bytes, offset)
        except OSError:
            return b""

    def __del__(self) -> None:
        """Close the file when the last reader has let go of it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
