"""Being the one agent of a run on this node: the lock of the run, that of its folder, and the note in the lock file.

The lock of the folder is for those who come while an agent is at work although somebody has deleted its lock file.
"""

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from periflow_otel.journal.agent_lock import (
    is_lock_in_place,
    is_next_waiting,
    lock_again,
    lock_folder,
    take_agent_lock,
    unlock,
)
from periflow_otel.journal.agent_note import AgentNote, clear_note, write_note
from periflow_otel.journal.files import SCARCE

_TIMEOUT_S: Final = 60.0
"""How long to wait for an agent that is to let go."""
_LOOK_INTERVAL_S: Final = 0.05


class Tenure:
    """Held by an agent from its beginning to its end."""

    def __init__(
        self, folder: Path, lock: int, next_lock: int | None, note: AgentNote, stopping: threading.Event
    ) -> None:
        """Prepare.

        Args:
            folder: Folder of the run.
            lock: Descriptor that holds the lock of the run; closed in the end.
            next_lock: Descriptor that holds the lock of the next agent, if another one still has that of the run.
            note: What the lock file says of this agent.
            stopping: Set when nothing is waited for any more.
        """
        self._folder = folder
        self._lock = lock
        self._next_lock = next_lock
        self._folder_lock: int | None = None
        self._note = note
        self._stopping = stopping

    def begin(self) -> bool:
        """Wait for another agent that is to let go, if there is one; return whether it has."""
        return (self._next_lock is None or self._take_over(self._next_lock)) and self._have_folder()

    def has_ended(self) -> bool:
        """Tell whether another agent has the run, or waits for it; make the lock file anew if somebody deleted it."""
        return not self._has_lock() or is_next_waiting(self._folder)

    def note_work(self) -> None:
        """Write down that this agent is at work."""
        self._write_note(0)

    def note_failure(self) -> None:
        """Write down that it has failed."""
        self._write_note(max(1, self._note.failures))

    def let_go(self) -> None:
        """Let others have the run."""
        with suppress(OSError):
            clear_note(self._lock)
        unlock(self._lock)

    def resume(self) -> bool:
        """Take the run back, unless another agent has it by now; return whether it is taken."""
        return lock_again(self._lock)

    def close(self) -> None:
        """Close all locks."""
        self._let_go_of_folder()
        os.close(self._lock)

    def _take_over(self, next_lock: int) -> bool:
        """Wait for the lock of the run, and return whether it is there."""
        deadline_s = time.monotonic() + _TIMEOUT_S
        while not lock_again(self._lock):
            if self._stopping.wait(_LOOK_INTERVAL_S) or time.monotonic() > deadline_s:
                return False
        os.close(next_lock)
        return True

    def _have_folder(self) -> bool:
        """Wait for an agent that is still at work although its lock file is gone; return whether it has ended."""
        deadline_s = time.monotonic() + _TIMEOUT_S
        self._let_go_of_folder()
        while (folder_lock := lock_folder(self._folder)) is None:
            if self._stopping.wait(_LOOK_INTERVAL_S) or time.monotonic() > deadline_s:
                return False
        self._folder_lock = folder_lock
        return True

    def _let_go_of_folder(self) -> None:
        folder_lock, self._folder_lock = self._folder_lock, None
        if folder_lock is not None:
            os.close(folder_lock)

    def _has_lock(self) -> bool:
        if is_lock_in_place(self._folder, self._lock):
            return True
        try:
            lock = take_agent_lock(self._folder)
        except OSError as error:  # the folder is gone, unless too many files are open
            return error.errno in SCARCE
        if lock is None:
            return False
        os.dup2(lock, self._lock, inheritable=False)
        os.close(lock)
        self.note_work()
        return self._have_folder()

    def _write_note(self, failures: int) -> None:
        with suppress(OSError):  # the disk is full
            write_note(self._lock, replace(self._note, failures=failures))
