"""Opening and replacing files that are certainly this user's own: no link, no pipe, and nothing of somebody else's.

What a journal's header, a cursor or a lock says is obeyed: files are named in it that the agent then writes to. So
nothing is read that another user may have written, at whatever level it stands.
"""

import errno
import logging
import os
import secrets
import stat
import tempfile
from pathlib import Path
from typing import Final

from periflow_otel.descriptors import LAST_STREAM, copy_descriptor

SCARCE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors that say nothing about a file: there were too many others."""
_NO_FILE: Final = frozenset({None, errno.ELOOP, errno.EISDIR, errno.ENXIO})
"""Errors by which something else is there: somebody else's, a pipe, a link, a folder, a socket."""
_FLAGS: Final = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"))
"""Those that there are: on Windows, where nothing is recorded, none."""
_log = logging.getLogger("periflow_otel")


def open_own(path: Path, flags: int) -> int:
    """Open a regular file of this user, mode 0600 if it is created; return its descriptor, never a standard stream's.

    Whatever the umask is, this user can open it again.

    Raises:
        PermissionError: It is something else than a file, or somebody else's.
        OSError: It cannot be opened.
    """
    descriptor = _beyond_streams(os.open(path, flags | _FLAGS, 0o600))
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
        if flags & os.O_CREAT and status.st_mode & 0o600 != 0o600:
            os.fchmod(descriptor, 0o600)
        return descriptor
    os.close(descriptor)
    raise _not_own(path)


def make_own(path: Path, flags: int) -> int:
    """Open as :func:`open_own` does a file that is made if there is none, in a folder of this user.

    Anything else that stands there is no part of a journal. It is moved aside, as training must go on.

    Raises:
        OSError: It cannot be opened.
    """
    try:
        return open_own(path, flags | os.O_CREAT)
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
    move_aside(path)
    return open_own(path, flags | os.O_CREAT)


def move_aside(path: Path) -> None:
    """Make room where something else stands than what is this user's own.

    Raises:
        OSError: It cannot be moved.
    """
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.aside")
    path.rename(aside)
    _log.warning("%s was not this user's own, and is called %s now", path, aside.name)


def read_own(path: Path, max_bytes: int) -> bytes | None:
    """Return the content of a file of this user; None if there is none, it is longer, or it is something else.

    Raises:
        OSError: This process has too many files open: that says nothing about the file.
    """
    try:
        return load_own(path, max_bytes)
    except OSError as error:
        if error.errno in SCARCE:
            raise
        return None


def load_own(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file of this user.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read, is longer, or is something else.
    """
    descriptor = open_own(path, os.O_RDONLY)
    try:
        content = os.pread(descriptor, max_bytes + 1, 0)
    finally:
        os.close(descriptor)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content


def read_end(path: Path, max_bytes: int) -> bytes:
    """Return the end of a file of this user; nothing if it cannot be read."""
    try:
        descriptor = open_own(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.pread(descriptor, max_bytes, max(0, os.fstat(descriptor).st_size - max_bytes))
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file, mode 0600, so that a reader sees the old content or the new, never a part.

    Raises:
        OSError: The disk takes nothing; the old file is still there.
    """
    descriptor, draft = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def list_own(folder: Path) -> list[Path]:
    """Return what is in a folder of this user; raise as :func:`names_own` does."""
    return [folder / name for name in names_own(folder)]


def names_own(folder: Path) -> list[str]:
    """Return the names of what is in a folder of this user.

    Raises:
        PermissionError: It is a link, somebody else's, or cannot be read.
        OSError: It is not there, is no folder, or this process has too many files open.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
    except OSError as error:
        if error.errno == errno.ELOOP or (error.errno == errno.ENOTDIR and folder.is_symlink()):
            raise _not_own(folder) from None
        raise
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise _not_own(folder)
        return os.listdir(descriptor)  # noqa: PTH208  # a Path may be another folder by now
    finally:
        os.close(descriptor)


def _not_own(path: Path) -> PermissionError:
    return PermissionError(f"{path} is not this user's own, and is left alone")


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
    if descriptor > LAST_STREAM:
        return descriptor
    try:
        return copy_descriptor(descriptor)
    finally:
        os.close(descriptor)
