"""What flows back to training: the step at which an emergency save is asked for."""

import mmap
import os
import time
from pathlib import Path
from typing import Final, NamedTuple

CONTROL_FILE: Final = "control"
ANY_STEP: Final = -1
"""Save at the next opportunity."""

RECENT_NS: Final = 5_000_000_000
"""A signal reaches all ranks of a node, one after the other: those that come within this time are one request."""

_REQUEST, _STEP, _UNIX_NS, _NOT_BEFORE = range(4)
_BYTES: Final = 64
_FLAGS: Final = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


class Request(NamedTuple):
    """A request for an emergency save."""

    number: int
    """Counts the requests from 1; 0: there was none."""
    step: int
    unix_ns: int
    not_before: int = 0
    """First step at which a request for any step counts, so that ranks that are a step apart save at the same."""

    def is_for(self, step: int) -> bool:
        """Tell whether the request is to be answered at ``step``."""
        return self.step == step or (self.step == ANY_STEP and step >= self.not_before)


class Control:
    """The request word of a run, shared by all its ranks on this node."""

    def __init__(self, folder: Path) -> None:
        """Open the word of the run in ``folder``.

        Raises:
            OSError: The file cannot be opened or mapped.
        """
        self._path = folder / CONTROL_FILE
        descriptor = os.open(self._path, _FLAGS | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, b"\0", _BYTES - 1)
            self._words = memoryview(mmap.mmap(descriptor, _BYTES)).cast("q")
        finally:
            os.close(descriptor)

    def request(self, step: int = ANY_STEP, *, not_before: int = 0, is_repeated: bool = True) -> None:
        """Ask every rank on this node to save at ``step``, or at once.

        Args:
            step: Number of the step, or ``ANY_STEP``.
            not_before: First step at which a request for any step counts.
            is_repeated: Ask also if somebody has just asked.

        Raises:
            OSError: The file is gone.
        """
        import fcntl  # noqa: PLC0415  # Windows, which has no journal, has no such module

        words = self._words
        descriptor = os.open(self._path, _FLAGS)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # two at once get two numbers
            now = time.time_ns()
            if is_repeated or not words[_REQUEST] or not 0 <= now - words[_UNIX_NS] < RECENT_NS:
                words[_STEP], words[_NOT_BEFORE], words[_UNIX_NS] = step, not_before, now
                words[_REQUEST] += 1
        finally:
            os.close(descriptor)

    def number(self) -> int:
        """Return the number of the last request: cheap enough to ask at every step."""
        return self._words[_REQUEST]

    def last(self) -> Request:
        """Return the last request."""
        words = self._words
        return Request(words[_REQUEST], words[_STEP], words[_UNIX_NS], words[_NOT_BEFORE])
