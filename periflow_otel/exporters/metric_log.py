"""The metric log of local mode: each ``pf.metric`` as one line of JSON, as ``periflow_sdk`` writes it."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate, groupby
from typing import Final

from periflow_otel.exporters import Outcome, Verdict, taken
from periflow_otel.records import Metric, RankRun

# The user named the file, so a symbolic link there is the user's too and is followed. Reading is for the last byte
# only. A named pipe must not be waited for.
_OPEN_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK


class MetricLog:
    """Appends metrics to the ``local_log`` of their rank; metrics of a rank without one count as delivered.

    A file is opened for each batch, as one that the user moves away or deletes must come back. It is created for its
    owner alone (0600), and begins on a fresh line where somebody left half of one.
    """

    def export(self, items: Sequence[tuple[RankRun, Metric]]) -> Outcome:
        """Append items, consecutive ones of a file in one write; on a full disk no part of a line stays behind."""
        written = rejected = 0
        for path, group in groupby(items, lambda item: item[0].local_log):
            lines = [_line(metric) for _, metric in group]
            done, error = (len(lines), None) if path is None else _append(path, lines)
            written += done
            rejected += lines[:done].count(b"")
            if error is not None:
                cause = f"cannot write the metric log {path!r}: {error.strerror}"
                return Outcome(Verdict.LATER, cause, done=written, rejected=rejected)
        return taken(written, rejected, "an integer has more digits than json can write" if rejected else "")

    def close(self) -> None:
        """Do nothing: no file stays open."""


def _line(metric: Metric) -> bytes:
    """Return the line, or nothing for what has no JSON: an integer beyond ``sys.get_int_max_str_digits``."""
    try:
        return json.dumps(metric.values).encode("ascii") + b"\n"
    except ValueError:
        return b""


def _append(path: str, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
    """Append whole lines; return how many are in the file and what kept out the rest."""
    try:
        file = os.open(path, _OPEN_FLAGS, 0o600)
    except OSError as error:
        return 0, error
    try:
        return _write(file, lines)
    finally:
        os.close(file)


def _write(file: int, lines: Sequence[bytes]) -> tuple[int, OSError | None]:
    data = memoryview(b"".join(lines))
    written = 0
    try:
        _end_torn_line(file)
        while written < len(data):
            written += os.write(file, data[written:])
    except OSError as error:
        ends = [end for end in accumulate(map(len, lines)) if end <= written]
        _cut(file, written - (ends[-1] if ends else 0))
        return len(ends), error
    return len(lines), None


def _end_torn_line(file: int) -> None:
    """Begin a fresh line where the last writer was killed, or the machine died, in the middle of one."""
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        os.write(file, b"\n")


def _cut(file: int, torn_bytes: int) -> None:
    """Take back the beginning of a line, unless somebody has written behind it."""
    with suppress(OSError):  # a pipe or a device has no end to move
        end = os.lseek(file, 0, os.SEEK_CUR)
        if torn_bytes and os.fstat(file).st_size == end:
            os.ftruncate(file, end - torn_bytes)
