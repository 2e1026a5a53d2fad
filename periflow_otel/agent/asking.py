"""Asks a rank for its Python stack. Nobody is sent a signal who is not certainly that rank, and can answer."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from periflow_otel.journal.life import is_certainly
from periflow_otel.journal.stacks import StackFile
from periflow_otel.processes import Process
from periflow_otel.translate.stacks import Stack, parse

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
        before, self._before = self._before, self._file.read(self._offset)
        stacks = parse(self._before)
        is_whole = bool(stacks) and (self._before == before or (stacks[0] and stacks[0][-1].function in _OUTERMOST))
        return stacks[0] if is_whole else None


def ask(folder: Path, process: Process) -> Question | None:
    """Ask a rank what it does now.

    Args:
        folder: Its journal.
        process: Who writes that.

    Returns:
        Where the answer comes, mostly within a millisecond; None if it cannot be asked: it is gone or in another
        container, telemetry has turned that off, or the signal is the script's own.
    """
    try:
        file = StackFile(folder)
        with _handle(process.pid) as send:  # first: from now on the number is no other process's
            if not (file.line.can_be_asked and is_certainly(process, folder) and file.is_of(process.pid)):
                return None
            question = Question(file)
            send(signal.SIGURG)
    except (OSError, ValueError, TypeError):  # it has ended meanwhile, or never wrote such a file
        return None
    return question


@contextmanager
def _handle(pid: int) -> Iterator[Callable[[signal.Signals], None]]:
    """Yield what sends a signal to a process, and to no later one of the same number where the system can tell."""
    try:
        descriptor = os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, or one of before 2019
        yield partial(os.kill, pid)
        return
    try:
        yield partial(signal.pidfd_send_signal, descriptor)
    finally:
        os.close(descriptor)
