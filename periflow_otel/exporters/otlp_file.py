"""OTLP JSON files beside the metric log of a rank, one ``TracesData``, ``MetricsData`` or ``LogsData`` a line.

The Collector's file exporter writes this format and its ``otlp_json_file`` receiver reads it. ``train.log`` has
``train.traces.jsonl`` and ``train.metrics.jsonl`` beside it, and ``train.logs.jsonl`` where logs are recorded. A file
that has grown large gets the next free number: ``train.traces.1.jsonl`` holds the oldest spans. A line is there whole
or not at all, and nothing is deleted.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count, groupby
from pathlib import Path
from typing import Final, Generic, TypeVar

from periflow_otel.config.endpoints import Signal
from periflow_otel.exporters import Outcome, Verdict, taken
from periflow_otel.exporters.lines import append_line, open_lines
from periflow_otel.otlp.json import logs_json, metrics_json, traces_json
from periflow_otel.records import RankRun
from periflow_otel.translate.telemetry import LogRecord, Point, Span

MAX_FILE_BYTES: Final = 64 << 20
MAX_LINE_BYTES: Final = 1_000_000
"""Longest line of more than one item. The Collector's receiver loses lines beyond 1 MiB."""
MAX_OPEN_FILES: Final = 64
"""Of one exporter: far more than a node has ranks, and far fewer than a process may open."""

_Item = TypeVar("_Item")


class _OtlpFile(Generic[_Item]):
    """Appends to the file of each rank; items of a rank without a metric log count as delivered."""

    def __init__(
        self, signal: Signal, encode: Callable[[Sequence[tuple[RankRun, _Item]]], bytes], max_file_bytes: int
    ) -> None:
        self._signal = signal
        self._encode = encode
        self._files = _Files(max_file_bytes)

    def export(self, items: Sequence[tuple[RankRun, _Item]]) -> Outcome:
        """Append items, consecutive ones of a rank in one line; stop at the first line that cannot be written."""
        delivered = 0
        for run, group in groupby(items, lambda item: item[0]):
            batch = list(group)
            if run.local_log is None:
                delivered += len(batch)
                continue
            stem = f"{run.local_log.removesuffix('.log')}.{self._signal}"
            for count_of_line, line in self._lines(batch):
                try:
                    self._files.append(stem, line)
                except OSError as error:
                    return Outcome(Verdict.LATER, f"cannot write {stem}.jsonl: {error.strerror}", done=delivered)
                delivered += count_of_line
        return taken(delivered)

    def _lines(self, batch: Sequence[tuple[RankRun, _Item]]) -> Iterator[tuple[int, bytes]]:
        """Yield lines, each with the number of items in it: one, or more where that would be too long."""
        line = self._encode(batch) + b"\n"
        if len(line) > MAX_LINE_BYTES and len(batch) > 1:
            middle = len(batch) // 2
            yield from self._lines(batch[:middle])
            yield from self._lines(batch[middle:])
        else:
            yield len(batch), line

    def close(self) -> None:
        """Close the files."""
        self._files.close()


class OtlpSpanFile(_OtlpFile[Span]):
    """Writes spans to ``<log name>.traces.jsonl``."""

    def __init__(self, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        """Open nothing yet; a file that would grow beyond ``max_file_bytes`` is numbered and a new one begun."""
        super().__init__("traces", traces_json, max_file_bytes)


class OtlpPointFile(_OtlpFile[Point]):
    """Writes points to ``<log name>.metrics.jsonl``."""

    def __init__(self, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        """Open nothing yet; a file that would grow beyond ``max_file_bytes`` is numbered and a new one begun."""
        super().__init__("metrics", metrics_json, max_file_bytes)


class OtlpLogFile(_OtlpFile[LogRecord]):
    """Writes log records to ``<log name>.logs.jsonl``."""

    def __init__(self, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        """Open nothing yet; a file that would grow beyond ``max_file_bytes`` is numbered and a new one begun."""
        super().__init__("logs", logs_json, max_file_bytes)


class _Files:
    """Files that lines are appended to. The last used ones stay open: on a cluster's file system opening is dear."""

    def __init__(self, max_file_bytes: int) -> None:
        self._max_file_bytes = max_file_bytes
        self._open: OrderedDict[str, int] = OrderedDict()

    def append(self, stem: str, line: bytes) -> None:
        """Append a line to ``stem`` + ``.jsonl``, or raise ``OSError`` and leave the file as it was."""
        try:
            file = self._file(stem)
            size = os.fstat(file).st_size
            if size and size + len(line) > self._max_file_bytes:
                _number(stem, file)
                self._close(stem)
                file = self._file(stem)
            append_line(file, line)
        except OSError:
            self._close(stem)
            raise

    def close(self) -> None:
        for stem in list(self._open):
            self._close(stem)

    def _file(self, stem: str) -> int:
        if stem in self._open and os.fstat(self._open[stem]).st_nlink == 0:  # somebody deleted it
            self._close(stem)
        if stem not in self._open:
            if len(self._open) >= MAX_OPEN_FILES:
                self._close(next(iter(self._open)))
            self._open[stem] = open_lines(f"{stem}.jsonl")
        self._open.move_to_end(stem)
        return self._open[stem]

    def _close(self, stem: str) -> None:
        file = self._open.pop(stem, None)
        if file is not None:
            with suppress(OSError):  # a network file system reports here what could not be written; it is too late
                os.close(file)


def _number(stem: str, file: int) -> None:
    """Give the file the next free number, unless it is no longer the one of that name."""
    path = f"{stem}.jsonl"
    with suppress(FileNotFoundError):  # somebody has moved it away
        if os.path.samestat(os.lstat(path), os.fstat(file)):
            free = next(name for number in count(1) if not _is_taken(name := f"{stem}.{number}.jsonl"))
            Path(path).rename(free)


def _is_taken(name: str) -> bool:
    """Tell whether there is such a file, also one that somebody has compressed since."""
    return os.path.lexists(name) or os.path.lexists(f"{name}.gz")
