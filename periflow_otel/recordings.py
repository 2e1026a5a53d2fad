"""The files that local mode has left: which belong together, and what they tell of."""

import logging
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from periflow_otel.errors import ConfigurationError
from periflow_otel.view.otlp import OtlpFeed
from periflow_otel.view.run_view import RunView

_log = logging.getLogger("periflow_otel")
_IS_TOLD: Final = re.compile(rb'"eventName"|"severityNumber": ?(1[3-9]|2)')
_NAME: Final = re.compile(r"(?P<stem>.+)\.(?P<signal>traces|metrics|logs)(\.(?P<number>\d+))?\.jsonl")


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Return the OTLP JSON files of runs, in the order in which they are to be read: spans first, oldest first.

    Args:
        paths: Folders, for all files in them; metric logs, and OTLP JSON files, for all that stand beside them with
            the same name, also those that have grown large and are numbered.

    Raises:
        ConfigurationError: There is nothing at a path.
    """
    found = dict.fromkeys(file for path in paths for file in _files_of(path))
    return sorted(found, key=_order)


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
        with file.open("rb") as lines:
            for line in _told(lines, _signal(file)):
                with suppress(msgspec.DecodeError):  # the last one of a file that is being written, or a disk's fault
                    feed.feed(line)
    return feed.views


def _told(lines: Iterable[bytes], signal: str) -> Iterable[bytes]:
    """Return the lines that tell something: of what was logged, those with events, warnings and errors."""
    return filter(_IS_TOLD.search, lines) if signal == "logs" else lines


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        return [each for each in path.iterdir() if _NAME.fullmatch(each.name) and _can_be_read(each)]
    match = _NAME.fullmatch(path.name)
    stem = match["stem"] if match else path.name.removesuffix(".log")
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
