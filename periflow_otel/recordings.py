"""The files that local mode has left: which belong together, and what they tell of."""

import gzip
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, cast

import msgspec

from periflow_otel.errors import ConfigurationError
from periflow_otel.view.otlp import OtlpFeed
from periflow_otel.view.run_view import RunView

_log = logging.getLogger("periflow_otel")
_IS_TOLD: Final = re.compile(rb'"eventName"|"severityNumber": ?(1[3-9]|2)')
_NAME: Final = re.compile(r"(?P<stem>.+)\.(?P<signal>traces|metrics|logs)(\.(?P<number>\d+))?\.jsonl(\.gz)?")


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Return the OTLP JSON files of runs, in the order in which they are to be read: spans first, oldest first.

    Args:
        paths: Folders, for all files in them; metric logs, and OTLP JSON files, for all that stand beside them with
            the same name, also those that have grown large and are numbered.

    Raises:
        ConfigurationError: There is nothing at a path.
    """
    found = {file for path in paths for file in _files_of(path)}
    twins = {file.with_name(f"{file.name}.gz") for file in found}
    return sorted(found - twins, key=_order)


def read_views(files: Iterable[Path], make_view: Callable[[str], RunView] = RunView) -> dict[str, RunView]:
    """Return a view of each run that files tell of, by its id. A line that is damaged is left out.

    Args:
        files: In the order of ``find_files``.
        make_view: Makes the view of a run from its id.

    Raises:
        OSError: A file cannot be read.
    """
    files = list(files)
    feed = OtlpFeed(takes_span_metrics=not any(_signal(file) == "metrics" for file in files), make_view=make_view)
    for file in files:
        with open_recording(file) as lines:
            for line in _told(_readable(lines, file), _signal(file)):
                with suppress(msgspec.DecodeError):  # the last one of a file that is being written, or a disk's fault
                    feed.feed(line)
    return feed.views


def files_with(file: Path) -> list[Path]:
    """Return the files beside a metric log; any other file is what is meant itself."""
    try:
        return [file] if _NAME.fullmatch(file.name) else find_files([file])
    except ConfigurationError:
        return [file]


def open_recording(path: Path) -> BinaryIO:
    """Open a file to read it, also one that somebody has compressed with gzip."""
    return cast("BinaryIO", gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _readable(lines: Iterable[bytes], file: Path) -> Iterator[bytes]:
    """Yield lines up to where a compressed file is cut off or damaged."""
    try:
        yield from lines
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        _log.warning("%s is damaged; what comes after that is left out: %s", file, error)


def recording_of(path: Path) -> Path:
    """Return what is the same for a metric log and all files beside it: their path, up to what tells them apart."""
    path = path.resolve()
    return path.parent / _stem(path)


def _stem(path: Path) -> str:
    match = _NAME.fullmatch(path.name)
    return match["stem"] if match else path.name.removesuffix(".log")


def _told(lines: Iterable[bytes], signal: str) -> Iterable[bytes]:
    """Return the lines that tell something: of what was logged, those with events, warnings and errors."""
    return filter(_IS_TOLD.search, lines) if signal == "logs" else lines


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        return [each for each in path.iterdir() if _NAME.fullmatch(each.name) and _can_be_read(each)]
    stem = _stem(path)
    found = [each for each in _beside(path) if (other := _NAME.fullmatch(each.name)) and other["stem"] == stem]
    found = [each for each in found if each.is_file()]
    if not found:
        message = (
            f"{path}: there is no OTLP JSON file; give a folder, a metric log, or a file such as train.traces.jsonl"
        )
        raise ConfigurationError(message)
    return found


def _can_be_read(path: Path) -> bool:
    """Tell whether something in a folder is a file of this user's: nobody has asked for it by its name."""
    is_file = path.is_file()
    if is_file and not os.access(path, os.R_OK):
        _log.warning("%s cannot be read, and is left out", path)
        return False
    return is_file


def _beside(path: Path) -> Iterable[Path]:
    return path.parent.iterdir() if path.parent.is_dir() else ()


def _order(file: Path) -> tuple[bool, str, float, str]:
    match = _NAME.fullmatch(file.name)
    number = float(match["number"] or "inf") if match else 0
    return _signal(file) != "traces", str(file.parent / match["stem"] if match else file), number, file.name


def _signal(file: Path) -> str:
    match = _NAME.fullmatch(file.name)
    return match["signal"] if match else ""
