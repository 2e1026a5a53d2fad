"""The lock that makes an agent the only one of its run on this node, and that of the one that waits for it."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from periflow_otel.journal.files import is_at, make_own
from periflow_otel.journal.folders import LOCK_FILE, NEXT_LOCK_FILE


def take_agent_lock(folder: Path) -> int | None:
    """Return a descriptor that holds the lock of a run, or None if an agent has it. Takes about 20 µs.

    Raises:
        OSError: The lock file cannot be opened.
    """
    return _take(folder / LOCK_FILE)


def take_next_lock(folder: Path) -> int | None:
    """Return a descriptor that holds the lock of the agent that comes next; None if there is one already.

    Raises:
        OSError: The lock file cannot be opened.
    """
    return _take(folder / NEXT_LOCK_FILE)


def is_locked(folder: Path) -> bool:
    """Tell whether a run has an agent."""
    return _is_held(folder / LOCK_FILE)


def is_next_waiting(folder: Path) -> bool:
    """Tell whether there is an agent that waits for the lock of a run."""
    return _is_held(folder / NEXT_LOCK_FILE)


def is_lock_in_place(folder: Path, descriptor: int) -> bool:
    """Tell whether a descriptor is of the lock file that others find: it may have been deleted, or replaced."""
    return is_at(descriptor, folder / LOCK_FILE)


def lock_folder(folder: Path) -> int | None:
    """Return a descriptor that locks the folder of a run itself; None while another agent has it.

    Somebody may delete the lock file while an agent is at work: then the next one can have the new file, but not this.
    Where folders have no locks, as on NFS, it locks nothing.

    Raises:
        OSError: The folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with suppress(OSError):
        if not lock_again(descriptor):
            os.close(descriptor)
            return None
    return descriptor


def open_lock(folder: Path) -> int:
    """Open the lock file of a run; nothing is locked yet.

    Raises:
        OSError: It cannot be opened.
    """
    return _open(folder / LOCK_FILE)


def _open(path: Path) -> int:
    return make_own(path, os.O_RDWR)


def _take(path: Path) -> int | None:
    descriptor = _open(path)
    if lock_again(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _is_held(path: Path) -> bool:
    try:
        descriptor = _take(path)
    except OSError:
        return False
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def lock_again(descriptor: int) -> bool:
    """Lock a descriptor of the lock file; return False if somebody else has the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Let go of the lock; the descriptor stays open."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
