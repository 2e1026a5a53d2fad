"""Who lives: a writer holds a lock on its journal for as long as it does, and only the kernel lets go of it.

A process id says less. It means nothing in another container, and the kernel uses it again.
"""

import errno
import os
from pathlib import Path
from typing import Final

from periflow_otel.journal.files import SCARCE, OwnFile, open_own
from periflow_otel.processes import Process

WRITER_LOCK: Final = "writer.lock"


class WriterLock:
    """Holds the lock of a journal's writer until it is released, or the process ends.

    A forked child shares the lock, so it must release it too; its parent still has it then.
    """

    def __init__(self, folder: Path) -> None:
        """Take the lock. Whoever finds the lock file finds it locked.

        Raises:
            OSError: The lock file cannot be made, or the file system has no locks.
        """
        import fcntl  # noqa: PLC0415  # Windows, which has no journal, has no such module

        self._path = folder / WRITER_LOCK
        draft = self._path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        self._file = OwnFile(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            fcntl.flock(self._file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.rename(self._path)
        except BaseException:
            self.release()
            draft.unlink(missing_ok=True)
            raise

    def is_in_place(self) -> bool:
        """Tell whether others find this lock: its folder may have been deleted, or be another one by now."""
        return self._file.is_at(self._path)

    def release(self) -> None:
        """Let go of it."""
        self._file.close()


def is_written(folder: Path, writer: Process) -> bool:
    """Tell whether a journal may still be written to: without evidence of the contrary, it may.

    Args:
        folder: Of the journal.
        writer: Who writes it, as its segments say.
    """
    return holds(writer, folder / WRITER_LOCK)


def is_certainly(process: Process, folder: Path) -> bool:
    """Tell whether a process lives that is certainly the writer of a journal: not without evidence."""
    return process.is_alive() is True and _is_locked(folder / WRITER_LOCK) is True


def holds(process: Process, path: Path) -> bool:
    """Tell whether a process may still hold the lock of a file: without evidence of the contrary, it may."""
    lives = process.is_alive()
    if lives is not None:  # a child that some library forked may have the lock, or a script may have closed it
        return lives
    is_locked = _is_locked(path)
    return process.is_of_this_boot() if is_locked is None else is_locked


def _is_locked(path: Path) -> bool | None:
    """Tell whether a process that lives has the lock of a file; None if there is no lock to ask."""
    import fcntl  # noqa: PLC0415  # as above

    try:
        descriptor = open_own(path, os.O_RDONLY)
    except OSError as error:
        return True if error.errno in SCARCE else None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that ask at once do not see each other
    except OSError as error:
        return True if error.errno in (errno.EWOULDBLOCK, errno.EACCES, *SCARCE) else None
    finally:
        os.close(descriptor)
    return False
