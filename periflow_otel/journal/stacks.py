"""Where a rank says what it is doing: a file in the folder of its journal, which the interpreter itself writes.

When SIGURG comes, the handler of ``faulthandler`` writes the Python stack of the thread that takes it: in C and without
the interpreter's lock, so it does even where a call has that lock, or never returns. Nothing runs before. By default
the signal does nothing, so a process without that handler comes to no harm. What a fatal signal has to say goes into
the same file.

A handler, or ``faulthandler``, that the script has set up itself stays as it is.
"""

import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Final, NamedTuple

from periflow_otel.journal.files import open_own

STACKS_FILE: Final = "stacks"
MAX_BYTES: Final = 1 << 20
"""A file that is longer is emptied before the next stack."""
STACK_BYTES: Final = 64 << 10
"""No stack is longer: it has a hundred frames at most."""
_FATAL: Final = frozenset(
    number
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")
    if (number := getattr(signal, name, None)) is not None
)
_HEADER_BYTES: Final = 64
_STATUS: Final = "/proc/self/status"


class Speaker:
    """Has the interpreter of this process write stacks into the folder of a journal. There is one for the process."""

    def __init__(self) -> None:
        """Begin without a file; nothing is set up yet."""
        self._descriptor = -1
        self._status: os.stat_result | None = None
        self._path: Path | None = None
        self._can_be_asked = False
        self._is_refused = False

    def speak(self, folder: Path) -> None:
        """Write into this folder from now on. Where that cannot be, nobody is told what the process does."""
        if self._is_refused or (self._descriptor >= 0 and not self._has_file()):
            return
        path = folder / STACKS_FILE
        try:
            descriptor = open_own(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            self._descriptor = self._take(descriptor)
            if self._descriptor < 0:
                path.unlink()
                return
            self._status, self._path = os.fstat(self._descriptor), path
            line = Line(self._descriptor, int(self._can_be_asked))
            os.write(self._descriptor, " ".join(map(str, line)).encode() + b"\n")
        except OSError:  # the disk is full, or too many files are open
            return

    def look(self, folder: Path) -> None:
        """See whether the file is where it was; a folder that was deleted gets another. Some µs."""
        if self._path is None or self._is_refused:
            return
        if not self._has_file():
            self._give_up()
        elif self._can_be_asked and signal.getsignal(signal.SIGURG) is not signal.SIG_DFL:
            self._can_be_asked = False  # the signal is the script's by now
            self._path.unlink(missing_ok=True)
            self.speak(folder)
        elif folder != self._path.parent or not _is_at(self._path, self._status):
            self.speak(folder)

    def go_silent(self) -> None:
        """Write nothing more: this is a forked child, and the file is its parent's."""
        if self._has_file():
            with suppress(OSError):
                nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
                os.dup2(nothing, self._descriptor, inheritable=False)
                os.close(nothing)
        self._status = self._path = None
        self._descriptor = -1

    def _take(self, descriptor: int) -> int:
        """Let the interpreter write into a file; return the descriptor that it has of it, -1 if there is none."""
        if self._descriptor >= 0:
            os.dup2(descriptor, self._descriptor, inheritable=False)
            os.close(descriptor)
            return self._descriptor
        has_last_words, self._can_be_asked = _register(descriptor)
        self._is_refused = not (has_last_words or self._can_be_asked)
        if self._is_refused:
            os.close(descriptor)
            return -1
        return descriptor

    def _has_file(self) -> bool:
        """Tell whether the descriptor is still of the file: a script may have closed it, and have another by now."""
        try:
            return self._status is not None and os.path.samestat(self._status, os.fstat(self._descriptor))
        except OSError:
            return False

    def _give_up(self) -> None:
        """Keep the interpreter from writing into what is a file of the script by now."""
        import faulthandler  # noqa: PLC0415  # loaded already

        self._is_refused = True
        faulthandler.unregister(signal.SIGURG)
        faulthandler.disable()


speaker: Final = Speaker()
"""Of this process."""


class Line(NamedTuple):
    """How a rank can be asked: what it has written at the beginning of its file."""

    descriptor: int
    """Of the file, in the process of the rank."""
    can_be_asked: int
    """0: the signal is the script's, and only last words go into the file."""


class StackFile:
    """The file of a rank, for those who read it."""

    def __init__(self, folder: Path) -> None:
        """Open the file in the folder of a journal.

        Raises:
            OSError: There is none, it cannot be read, or is not this user's own.
            ValueError: It does not begin as it should.
        """
        self._descriptor = -1
        self._descriptor = open_own(folder / STACKS_FILE, os.O_RDWR)
        header, newline, _ = os.pread(self._descriptor, _HEADER_BYTES, 0).partition(b"\n")
        self.line = Line(*map(int, header.split()))
        self._header_bytes = len(header) + len(newline)

    def is_of(self, pid: int) -> bool:
        """Tell whether a process has this very file open where it says; where nobody can tell, it may."""
        if not sys.platform.startswith("linux"):
            return True
        try:
            there = os.stat(f"/proc/{pid}/fd/{self.line.descriptor}")  # noqa: PTH116  # no Path: ten times a second
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self._descriptor))

    def size(self) -> int:
        """Return how long it is."""
        return os.fstat(self._descriptor).st_size

    def end(self) -> int:
        """Return where the next stack will begin. A file that has grown large is emptied first."""
        size = self.size()
        if size > MAX_BYTES:
            os.ftruncate(self._descriptor, self._header_bytes)
            return self._header_bytes
        return size

    def read(self, offset: int = 0, size_bytes: int = MAX_BYTES) -> str:
        """Return what was written from an offset on."""
        return os.pread(self._descriptor, size_bytes, offset).decode("ascii", "replace")

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        """Close it when nobody reads it any more."""
        self.close()


def _is_at(path: Path, status: os.stat_result | None) -> bool:
    try:
        return status is not None and os.path.samestat(status, path.lstat())
    except OSError:
        return False


def _register(descriptor: int) -> tuple[bool, bool]:
    """Set up what is not set up yet; return whether last words are written, and whether stacks are that are asked for.

    Of several threads only the one that takes the signal writes its stack: the others may change theirs meanwhile.
    """
    import faulthandler  # noqa: PLC0415  # not before it is wanted

    if not _is_main_interpreter():
        return False, False
    caught = _caught_signals()
    has_last_words = not (faulthandler.is_enabled() or caught & _FATAL)
    if has_last_words:
        faulthandler.enable(descriptor)
    can_be_asked = signal.SIGURG not in caught and signal.getsignal(signal.SIGURG) is signal.SIG_DFL
    if can_be_asked:
        faulthandler.register(signal.SIGURG, descriptor, all_threads=False, chain=False)
    return has_last_words, can_be_asked


def _caught_signals() -> set[int]:
    """Return the signals for which somebody in this process has a handler, be it in C; as far as can be told."""
    try:
        descriptor = os.open(_STATUS, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return {number for number in signal.valid_signals() if callable(signal.getsignal(number))}
    try:
        content = os.read(descriptor, 1 << 16)
    finally:
        os.close(descriptor)
    mask = int(content.partition(b"SigCgt:")[2].split(None, 1)[0], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def _is_main_interpreter() -> bool:
    with suppress(ImportError):  # PyPy
        interpreters = import_module("_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters")
        return bool(interpreters.get_current() == interpreters.get_main())
    return True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=speaker.go_silent)
