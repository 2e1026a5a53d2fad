"""Copies of descriptors that are no standard stream's: those may be closed, and are set anew then."""

from typing import Final

LAST_STREAM: Final = 2


def copy_descriptor(descriptor: int) -> int:
    """Return another descriptor of the same open file, which children do not inherit.

    Raises:
        OSError: It is closed, or this process has too many files open.
    """
    import fcntl  # noqa: PLC0415  # Windows, where nothing is recorded, has no such module

    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, LAST_STREAM + 1)
