"""Files of lines, each of which is there whole or not at all. They belong to one process at a time, mode 0600."""

import errno
import os
import stat


def open_lines(path: str) -> int:
    """Open a file to append to, and cut the half of a line that a killed process left.

    Raises:
        OSError: It cannot be opened, is a link, or is no regular file.
    """
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _check_regular(file)
        _cut_torn_line(file)
    except OSError:
        os.close(file)
        raise
    return file


def append_line(file: int, line: bytes) -> None:
    """Append a line with its end, or leave the file as it was.

    Raises:
        OSError: The disk takes nothing.
    """
    written = 0
    try:
        while written < len(line):
            written += os.write(file, memoryview(line)[written:])
    except OSError:
        _take_back(file, written)
        raise


def _check_regular(file: int) -> None:
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise OSError(errno.EINVAL, "not a regular file")


def _cut_torn_line(file: int) -> None:
    """Cut what an agent left that was killed while it wrote: the line comes again, as its cursor has not moved."""
    size = end = os.fstat(file).st_size
    while end and os.pread(file, 1, end - 1) != b"\n":
        start = max(0, end - (1 << 16))
        end = start + os.pread(file, end - start, start).rfind(b"\n") + 1
    if end < size:
        os.ftruncate(file, end)


def _take_back(file: int, written: int) -> None:
    """Cut the beginning of a line, unless another process has written behind it."""
    end = os.lseek(file, 0, os.SEEK_CUR)
    if written and os.fstat(file).st_size == end:
        os.ftruncate(file, end - written)
