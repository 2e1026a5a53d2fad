"""Places for journals: a folder is judged by doing in it, once, all that a journal needs of it.

A file system may have no locks (Lustre without ``flock``, NFS without its daemon), no shared mappings (some FUSE), no
room, or a quota that only a real reservation meets. So nothing is asked but how many more files there can be: it is
tried.
"""

import errno
import fcntl
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from periflow_otel.journal.folders import make_private, private_inside
from periflow_otel.journal.segment import SEGMENT_BYTES, reserve

LEAST_FILES: Final = 100
"""For how many files there must be room: a rank has a dozen, besides its segments."""


def own_place(folder: Path) -> Path:
    """Return a folder, or a private one inside where it is a volume of root's that this user may write to.

    Kubernetes mounts volumes so: they belong to root, and a group that the pod is in may write.

    Raises:
        OSError: It cannot be looked at.
    """
    is_volume = folder.exists() and folder.stat().st_uid == 0 != os.geteuid()
    return private_inside(folder) if is_volume else folder


def make_usable(place: Path, folder: Path) -> None:
    """Make a folder of a run in a place, and see whether journals can be there; leave nothing behind if they cannot.

    Takes some 400 µs on a local disk, and where space must be written to be reserved as long as that takes.

    Raises:
        OSError: It cannot be made, is not this user's own, or one of the things that a journal does fails there.
    """
    missing = _missing(folder)
    try:
        make_place(place)
        make_private(folder.parent)
        make_private(folder)
        _try_out(folder)
    except BaseException:
        _remove(missing)
        raise


def make_place(place: Path) -> None:
    """Make a folder for journals. One that is there may be shared by the user, to whom it belongs: its mode stays.

    Raises:
        OSError: It cannot be made, or belongs to somebody else.
    """
    if not place.exists():
        make_private(place)
    if place.stat().st_uid != os.geteuid():
        message = f"{place} belongs to somebody else"
        raise PermissionError(message)


def judge(place: Path) -> None:
    """See whether journals can be in a folder, which need not be there, and leave nothing behind.

    Raises:
        OSError: As :func:`make_usable`.
    """
    missing = _missing(place)
    try:
        make_place(place)
        with tempfile.TemporaryDirectory(prefix="trial-", dir=place) as folder:
            _try_out(Path(folder))
    finally:
        _remove(missing)


def _missing(folder: Path) -> list[Path]:
    return [each for each in (folder, *folder.parents) if not each.exists()]


def _remove(made: list[Path]) -> None:
    for folder in made:
        with suppress(OSError):  # another rank has put something there meanwhile
            folder.rmdir()


def _try_out(folder: Path) -> None:
    """Create, rename, lock, reserve and map a file. It has no name by the time it takes space: nothing stays behind.

    How many more files there can be is asked where it is known: to make them would take a file server long.
    """
    files = os.statvfs(folder)
    if files.f_files and files.f_favail < LEAST_FILES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with _nameless_file(folder) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        reserve(descriptor, SEGMENT_BYTES)
        mmap.mmap(descriptor, SEGMENT_BYTES).close()


@contextmanager
def _nameless_file(folder: Path) -> Iterator[int]:
    descriptor, name = tempfile.mkstemp(prefix="trial-", dir=folder)
    draft = Path(name)
    try:
        try:
            draft = draft.rename(draft.with_suffix(".done"))
        finally:
            draft.unlink()
        yield descriptor
    finally:
        os.close(descriptor)
