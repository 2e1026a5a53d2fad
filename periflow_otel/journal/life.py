"""Who lives: a writer holds a lock on its journal for as long as it does, and only the kernel lets go of it.

A process id says less. It means nothing in another container, and the kernel uses it again.
"""

import errno
import os
from pathlib import Path
from typing import Final

from periflow_otel.journal.files import is_at, open_own
from periflow_otel.journal.segment import SCARCE
from periflow_otel.processes import Process

WRITER_LOCK: Final = "writer.lock"


def hold(folder: Path) -> int:
    """Return a descriptor that holds the lock of a journal's writer until the process ends or closes it.

    A forked child shares the lock, so it must close the descriptor.

    Raises:
        OSError: The lock file cannot be made, or the file system has no locks.
    """
    import fcntl  # noqa: PLC0415  # Windows, which has no journal, has no such module

    draft = folder / f"{WRITER_LOCK}.new"
    draft.unlink(missing_ok=True)
    descriptor = open_own(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        draft.rename(folder / WRITER_LOCK)  # whoever finds it finds it locked
    except BaseException:
        os.close(descriptor)
        draft.unlink(missing_ok=True)
        raise
    return descriptor


def is_held(folder: Path, descriptor: int) -> bool:
    """Tell whether a descriptor holds the lock that others find there: the folder may be another one by now."""
    return is_at(descriptor, folder / WRITER_LOCK)


def is_written(folder: Path, writer: Process) -> bool:
    """Tell whether a journal may still be written to: without evidence of the contrary, it may.

    Args:
        folder: Of the journal.
        writer: Who writes it, as its segments say.
    """
    lives = writer.is_alive()
    if lives is False:  # a child that some library forked may still have the lock
        return False
    is_locked = _is_locked(folder)
    return lives is not None or writer.is_of_this_boot() if is_locked is None else is_locked


def _is_locked(folder: Path) -> bool | None:
    """Tell whether a writer has its lock; None if there is no lock to ask."""
    import fcntl  # noqa: PLC0415  # as above

    try:
        descriptor = open_own(folder / WRITER_LOCK, os.O_RDONLY)
    except OSError as error:
        return True if error.errno in SCARCE else None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that ask at once do not see each other
    except OSError as error:
        return True if error.errno in (errno.EWOULDBLOCK, errno.EACCES, *SCARCE) else None
    finally:
        os.close(descriptor)
    return False
