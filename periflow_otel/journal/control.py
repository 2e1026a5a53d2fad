"""What flows back to training: the step at which an emergency save is asked for."""

import mmap
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from periflow_otel.journal.files import make_own, open_own

CONTROL_FILE: Final = "control"
ANY_STEP: Final = -1
"""Save at the next opportunity."""

RECENT_NS: Final = 5_000_000_000
"""A signal reaches all ranks of a node, one after the other: those that come within this time are one request."""

ANSWER_NS: Final = 600_000_000_000
"""How long ranks may take to answer; a rank that takes no steps never does."""

_REQUEST, _STEP, _UNIX_NS, _NOT_BEFORE = range(4)
_BYTES: Final = 64


class Request(NamedTuple):
    """A request for an emergency save."""

    number: int
    """Counts the requests from 1; 0: there was none."""
    step: int
    unix_ns: int
    not_before: int = 0
    """First step at which a request for any step counts."""

    def is_for(self, step: int) -> bool:
        """Tell whether the request is to be answered at ``step``."""
        return self.number > 0 and (self.step == step or (self.step == ANY_STEP and step >= self.not_before))

    def is_under_way(self, steps: Sequence[int]) -> bool:
        """Tell whether ranks in ``steps`` are about to answer: another request now would reach some in between."""
        if not self.number or not steps:
            return False
        if self.step == ANY_STEP:
            return min(steps) <= self.not_before
        return min(steps) <= self.step <= max(steps)


class Control:
    """The request word of a run, shared by all its ranks on this node."""

    def __init__(self, folder: Path) -> None:
        """Open the word of the run in ``folder``.

        Raises:
            OSError: The file cannot be opened or mapped.
        """
        self._path = folder / CONTROL_FILE
        descriptor = make_own(self._path, os.O_RDWR)
        try:
            os.pwrite(descriptor, b"\0", _BYTES - 1)
            self._words = memoryview(mmap.mmap(descriptor, _BYTES)).cast("q")
            self._status = os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def is_in_place(self) -> bool:
        """Tell whether others find this word: its file may have been deleted, or replaced by another one."""
        try:
            return os.path.samestat(self._status, self._path.lstat())
        except OSError:
            return False

    def request(
        self, step: int = ANY_STEP, *, steps: Sequence[int] = (), since_unix_ns: int = 0, is_signal: bool = False
    ) -> bool:
        """Ask every rank on this node to save at ``step``, or at once; return False if they are about to already.

        Args:
            step: Number of the step, or ``ANY_STEP``.
            steps: The steps that the ranks are in. Where there are several, "at once" is a step that none of them can
                have begun, so that they all save at the same.
            since_unix_ns: When the ranks started: what was asked before was not asked of them.
            is_signal: The request may be a copy of one that was just made, and must not wait: the call that it would
                wait for may be the one that it interrupts.

        Raises:
            OSError: The file is gone; or ``is_signal``, and another request is being made right now.
        """
        with self._locked(is_waiting=not is_signal):
            now, last = time.time_ns(), self.last()
            is_copy = is_signal and now - last.unix_ns < RECENT_NS
            is_under_way = last.is_under_way(steps) and now - last.unix_ns < ANSWER_NS
            if since_unix_ns <= last.unix_ns <= now and (is_copy or is_under_way):
                return False
            words = self._words
            words[_STEP], words[_NOT_BEFORE] = step, max(steps) + 2 if len(steps) > 1 else 0
            words[_UNIX_NS] = now
            words[_REQUEST] += 1
        return True

    def number(self) -> int:
        """Return the number of the last request: cheap enough to ask at every step."""
        return self._words[_REQUEST]

    def last(self) -> Request:
        """Return the last request."""
        words = self._words
        return Request(words[_REQUEST], words[_STEP], words[_UNIX_NS], words[_NOT_BEFORE])

    @contextmanager
    def _locked(self, *, is_waiting: bool) -> Iterator[None]:
        """Hold the file, so that two requests at once get two numbers."""
        import fcntl  # noqa: PLC0415  # Windows, which has no journal, has no such module

        descriptor = open_own(self._path, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if is_waiting else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)
