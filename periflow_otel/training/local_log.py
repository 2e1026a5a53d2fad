"""Where the metric log of local mode is."""

import itertools
import logging
import os
import stat
import time
from pathlib import Path
from typing import Final

from periflow_otel.errors import ConfigurationError, shown

_log = logging.getLogger("periflow_otel")


def find_log(
    given: str | os.PathLike[str] | None, rank: int | None, other_folder: Path, *, is_written: bool
) -> str | None:
    """Return the absolute path of the metric log, in a folder that exists; None if there can be none.

    Args:
        given: What the caller has named, if anything.
        rank: Rank of this process, if there are others.
        other_folder: Where to make a log that the caller has not named, if the working folder cannot be written.
        is_written: An agent will write it. Then a log that the caller has not named is made now, so that no run that
            begins in the same second takes it.

    Raises:
        ConfigurationError: What the caller has named is not a path, or cannot be written.
    """
    if not isinstance(given, str | os.PathLike | None):
        message = f"local_log_name is {shown(given)}; give the path of a file, as text"
        raise ConfigurationError(message)
    if given:
        return _given_log(given)
    suffix = "" if rank is None else f"_{rank}"
    try:
        return _new_log(Path.cwd(), suffix, is_made=is_written)
    except OSError as error:
        reason = error.strerror or error
    try:
        log = _new_log(other_folder, suffix, is_made=is_written)
    except OSError:
        log = None
    _log.warning(
        "the working folder cannot be written (%s); the metric log is %s. Give init() a local_log_name.",
        reason,
        log or "left out",
    )
    return log


def is_file(log: str | None) -> bool:
    """Tell whether a metric log is a file, or will be: beside a device or a pipe there is no place for others."""
    try:
        return log is not None and stat.S_ISREG(Path(log).stat().st_mode)
    except OSError:
        return True


_named: Final[set[Path]] = set()
"""The logs of all runs that this process has begun and that had no name."""


def _new_log(folder: Path, suffix: str, *, is_made: bool) -> str:
    """Name a metric log that no other run has."""
    stem = f"periflow_trainer_{int(time.time())}{suffix}"
    names = (folder / f"{stem}{'' if number == 1 else f'-{number}'}.log" for number in itertools.count(1))
    path = next(path for path in names if path not in _named and _is_free(path, is_made=is_made))
    _named.add(path)
    return str(path)


def _is_free(path: Path, *, is_made: bool) -> bool:
    if not is_made:
        return not path.exists()
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    return True


def _given_log(name: str | os.PathLike[str]) -> str:
    path = Path(os.path.expanduser(name))  # noqa: PTH111  # Path raises
    try:
        path = path.absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        is_writable = os.access(path, os.W_OK) or (not path.exists() and os.access(path.parent, os.W_OK))
        reason = None if is_writable and not path.is_dir() else "not writable"
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError:
        reason = "a null character in its name"
    if reason is None:
        return str(path)
    message = f"the metric log {str(path)!r} cannot be written ({reason}); give init() another local_log_name"
    raise ConfigurationError(message)
