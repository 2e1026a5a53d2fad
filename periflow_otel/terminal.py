"""Where a person may be reading along: written to without ever waiting for that person."""

import io
import os
import select
import stat
import sys
from contextlib import suppress
from typing import Final

from periflow_otel.descriptors import copy_descriptor

_PIECE_BYTES: Final = 512
"""What can be written at once wherever anything can: ``_POSIX_PIPE_BUF``."""
_ERASE_LINE: Final = "\r\x1b[K"
"""Where a terminal's line holds a progress bar, which is drawn again below."""


class Terminal(io.TextIOBase):
    """A stream of text that drops what cannot be written at once, and everything when it is closed.

    On a screen, a line begins at its left edge, whatever bar stands there: that is erased.
    Training writes to the same place, so its open file is left as it is: a pipe or a terminal is opened once more for
    this, to be written without waiting.
    """

    def __init__(self, descriptor: int) -> None:
        """Take over a descriptor; a negative one stands for a stream that is closed."""
        self._descriptor = descriptor if descriptor < 0 else _opened_again(descriptor)
        self._is_screen = descriptor >= 0 and os.isatty(self._descriptor) and os.environ.get("TERM") != "dumb"
        self._is_line_begun = False

    def write(self, text: str) -> int:
        """Write as much as can be written now."""
        erase = _ERASE_LINE if text and self._is_screen and not self._is_line_begun else ""
        self._is_line_begun = bool(text) and not text.endswith("\n")
        data = f"{erase}{text}".encode("utf-8", "replace")
        with suppress(OSError):
            while data and _takes(self._descriptor):
                data = data[os.write(self._descriptor, data[:_PIECE_BYTES]) :]
        return len(text)

    def writable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Let go of the descriptor; from now on nothing is written."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def is_screen() -> bool:
    """Tell whether ``sys.stderr`` is a terminal, where somebody may sit."""
    with suppress(OSError, ValueError):  # ValueError: it is closed
        return sys.stderr is not None and sys.stderr.isatty()
    return False


def say(line: str) -> None:
    """Write a line to where ``sys.stderr`` goes, without waiting for it where it is the stderr of the process.

    A notebook has another there, and a service may have none.
    """
    with suppress(OSError, ValueError):  # ValueError: it is closed, or cannot encode a character
        stream, is_own = sys.stderr, sys.stderr is sys.__stderr__
        if stream is not None and is_own:
            with Terminal(copy_descriptor(stream.fileno())) as terminal:
                terminal.write(f"{line}\n")
        elif stream is not None:
            stream.write(f"{line}\n")
            stream.flush()


def one_line(text: str) -> str:
    """Return text that can neither end the line nor steer a terminal."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _opened_again(descriptor: int) -> int:
    """Return a descriptor for the same place that never waits, if there is a way; it replaces the one given."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with suppress(OSError):
            again = os.open(f"/proc/self/fd/{descriptor}", flags)
            os.close(descriptor)
            return again
    return descriptor


def _takes(descriptor: int) -> bool:
    """Tell whether something can be written now."""
    if descriptor < 0:
        return False
    asked = select.poll()
    asked.register(descriptor, select.POLLOUT)
    return bool(asked.poll(0))
