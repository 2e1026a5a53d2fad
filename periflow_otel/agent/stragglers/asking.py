"""Asks a rank for its Python stack. Nobody is sent a signal who is not certainly that rank, and can answer."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

from periflow_otel.journal.life import is_certainly
from periflow_otel.journal.stacks import STACK_BYTES, StackFile
from periflow_otel.processes import Process
from periflow_otel.translate.stragglers.stacks import Stack, parse

_OUTERMOST: Final = frozenset({"<module>", "_bootstrap"})
"""Where stacks mostly end; of another one it is not known at once whether there is more to come."""


class Question:
    """What one rank was asked, for as long as it may answer."""

    def __init__(self, file: StackFile) -> None:
        """Note where the answer will begin."""
        self._file = file
        self._offset = file.end()
        self._before = ""

    def answer(self) -> Stack | None:
        """Return the stack that the rank has given; None if it has not answered yet."""
        before, self._before = self._before, self._file.read(self._offset, STACK_BYTES)
        stacks = parse(self._before)
        is_whole = bool(stacks) and (self._before == before or (stacks[0] and stacks[0][-1].function in _OUTERMOST))
        return stacks[0] if is_whole else None


class Respondent:
    """A rank that can be asked. Who it is was made sure of once, and holds as long as this object."""

    def __init__(self, folder: Path, process: Process) -> None:
        """Make sure of it.

        Args:
            folder: Its journal.
            process: Who writes that.

        Raises:
            OSError: It has ended.
            ValueError: It cannot be asked: it is in another container, telemetry has turned that off, or the signal is
                the script's own.
        """
        self._pid = process.pid
        self._file = StackFile(folder)
        self._handle = _Handle(process.pid)  # first: from now on the number is no other process's
        if not (self._file.line.can_be_asked and is_certainly(process, folder)):
            message = f"process {process.pid} cannot be asked"
            raise ValueError(message)

    def ask(self) -> Question | None:
        """Ask it what it does now; return where the answer comes, mostly within a millisecond; None: it does not.

        Raises:
            OSError: It has ended.
        """
        if not self._file.is_of(self._pid):
            return None
        question = Question(self._file)
        self._handle.send(signal.SIGURG)
        return question


def respondent(folder: Path, process: Process) -> Respondent | None:
    """Return a rank that can be asked; None if it cannot."""
    try:
        return Respondent(folder, process)
    except (OSError, ValueError, TypeError):  # it has ended meanwhile, or never wrote such a file
        return None


def ask(folder: Path, process: Process) -> Question | None:
    """Ask a rank once what it does now; return where the answer comes, None if it cannot be asked."""
    rank = respondent(folder, process)
    with suppress(OSError):  # it has ended meanwhile
        return rank.ask() if rank else None
    return None


class _Handle:
    """Sends signals to a process, and to no later one of the same number where the system can tell."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._descriptor = -1
        with suppress(AttributeError, OSError):  # not Linux, or one of before 2019
            self._descriptor = os.pidfd_open(pid)

    def send(self, number: signal.Signals) -> None:
        if self._descriptor >= 0:
            signal.pidfd_send_signal(self._descriptor, number)
        else:
            os.kill(self._pid, number)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
