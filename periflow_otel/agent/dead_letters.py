"""What receivers did not take of a run: kept as OTLP JSON in its folder, one file per consumer, one item a line.

The Collector's ``otlp_json_file`` receiver reads these files, and ``periflow-otel replay`` sends them again. An item
that was set aside twice, because an agent died before its cursor moved, is two equal lines and counts once.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from periflow_otel.exporters import Item
from periflow_otel.exporters.lines import append_line, open_lines
from periflow_otel.journal.files import replace_file
from periflow_otel.otlp.json import logs_json, metrics_json, traces_json
from periflow_otel.translate.telemetry import LogRecord, Point, Span

MAX_FILE_BYTES: Final = 16 << 20
"""What would make a file larger is dropped."""
_PREFIX: Final = "set-aside."
_SUFFIX: Final = ".jsonl"
_MARK: Final = b',"setAside":'
"""Where what we add begins: receivers pass over fields that they do not know."""


class Letter(NamedTuple):
    """One item."""

    data: bytes
    """``TracesData``, ``MetricsData`` or ``LogsData`` in OTLP JSON."""
    reason: str
    line: bytes
    """As it stands in the file."""


class DeadLetters:
    """The file of one consumer."""

    def __init__(self, folder: Path, consumer: str, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        """Name the file; it is made when it is needed.

        Args:
            folder: Folder of the run on this node.
            consumer: Whose items these are.
            max_file_bytes: Bound of the file.
        """
        self.consumer = consumer
        self._path = folder / f"{_PREFIX}{consumer}{_SUFFIX}"
        self._max_file_bytes = max_file_bytes

    def add(self, item: Item, reason: str, message: str) -> bool:
        """Write down an item; return whether that could be done.

        Args:
            item: A span, a point or a log record; there is no OTLP for other things.
            reason: Why it is here, in a word.
            message: Why, in the words of the receiver.
        """
        try:
            line = _line(item, reason, message)
            return line is not None and self._append(line)
        except (OSError, ValueError, TypeError):
            return False

    def read(self) -> list[Letter]:
        """Return the items, each once."""
        try:
            lines = self._path.read_bytes().splitlines()
        except OSError:
            return []
        return list({letter.data: letter for letter in map(_letter, lines) if letter}.values())

    def keep_only(self, letters: list[Letter]) -> None:
        """Forget all others.

        Raises:
            OSError: The disk takes nothing; all are still there.
        """
        if letters:
            replace_file(self._path, b"".join(letter.line + b"\n" for letter in letters))
        else:
            self._path.unlink(missing_ok=True)

    def _append(self, line: bytes) -> bool:
        file = open_lines(str(self._path))
        try:
            if os.fstat(file).st_size + len(line) > self._max_file_bytes:
                return False
            append_line(file, line)
            return True
        finally:
            os.close(file)


def all_dead_letters(folder: Path) -> Iterator[DeadLetters]:
    """Yield the files in the folder of a run; none if it cannot be looked at."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return
    for name in names:
        if name.startswith(_PREFIX) and name.endswith(_SUFFIX):
            yield DeadLetters(folder, name[len(_PREFIX) : -len(_SUFFIX)])


def count_dead_letters(folder: Path) -> Counter[tuple[str, str]]:
    """Count what is set aside in the folder of a run, by consumer and reason."""
    return Counter((each.consumer, letter.reason) for each in all_dead_letters(folder) for letter in each.read())


def _line(item: Item, reason: str, message: str) -> bytes | None:
    data = _data(item)
    if data is None:
        return None
    note = msgspec.json.encode({"reason": reason, "message": message})
    return data[:-1] + _MARK + note + b"}\n"


def _data(item: Item) -> bytes | None:
    encode = _ENCODERS.get(type(item[1]))
    return encode([item]) if encode else None


def _letter(line: bytes) -> Letter | None:
    data, mark, note = line.rpartition(_MARK)
    if not mark:
        return None
    try:
        return Letter(data + b"}", str(msgspec.json.decode(note[:-1])["reason"]), line)
    except (msgspec.DecodeError, KeyError, TypeError):
        return None


_ENCODERS: Final[dict[type, Callable[[list[Any]], bytes]]] = {
    Span: traces_json,
    Point: metrics_json,
    LogRecord: logs_json,
}
