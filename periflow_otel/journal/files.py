"""Opening files that are certainly this user's own: no link, no pipe, and nothing of somebody else's."""

import os
import stat
from pathlib import Path
from typing import Final

_LAST_STREAM: Final = 2
_FLAGS: Final = os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) if os.name == "posix" else 0


def open_own(path: Path, flags: int) -> int:
    """Open a regular file of this user, mode 0600 if it is created; return its descriptor, never a standard stream's.

    Raises:
        PermissionError: It is something else than a file, or somebody else's.
        OSError: It cannot be opened.
    """
    descriptor = _beyond_streams(os.open(path, flags | _FLAGS, 0o600))
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
        return descriptor
    os.close(descriptor)
    message = f"{path} is not a file of this user"
    raise PermissionError(message)


class OwnFile:
    """A file of this user that stays open, in a process where others may close whatever they find open."""

    def __init__(self, path: Path, flags: int) -> None:
        """Open it as :func:`open_own` does, with what that raises."""
        self.descriptor = open_own(path, flags)
        self._status = os.fstat(self.descriptor)

    def is_at(self, path: Path) -> bool:
        """Tell whether a path leads to this file, and it is open: it may have been deleted, replaced or closed."""
        try:
            return self._is_open() and os.path.samestat(self._status, path.lstat())
        except OSError:
            return False

    def close(self) -> None:
        """Close it, unless somebody else has: then the number may be another file's by now."""
        descriptor, self.descriptor = self.descriptor, -1
        if self._is_open(descriptor):
            os.close(descriptor)

    def _is_open(self, descriptor: int | None = None) -> bool:
        try:
            return os.path.samestat(self._status, os.fstat(self.descriptor if descriptor is None else descriptor))
        except OSError:
            return False


def is_at(descriptor: int, path: Path) -> bool:
    """Tell whether a path leads to the file that a descriptor has open: it may have been deleted or replaced."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


def _beyond_streams(descriptor: int) -> int:
    """Return a descriptor of the same file that is no standard stream's: those may be closed, and are set anew."""
    if descriptor > _LAST_STREAM:
        return descriptor
    import fcntl  # noqa: PLC0415  # Windows, which has no journal, has no such module

    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _LAST_STREAM + 1)
    finally:
        os.close(descriptor)
