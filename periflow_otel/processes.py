"""A process, named for good although the kernel uses process ids again."""

import os
import subprocess
import time
from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec

_PROC: Final = Path("/proc")


class Process(msgspec.Struct, frozen=True):
    """One process of one start of one machine."""

    pid: int
    start: int
    """What :func:`process_start` said of it."""
    boot_id: str
    """What :func:`boot_id` said on its machine."""

    @classmethod
    def current(cls) -> "Process":
        """Return the process that asks."""
        pid = os.getpid()
        return cls(pid, process_start(pid) or 0, boot_id())

    def is_current(self) -> bool:
        """Tell whether this is the process that asks, and not a forked child of it."""
        return self.pid == os.getpid()

    def is_alive(self) -> bool:
        """Tell whether exactly this process still runs on this machine; one of another machine counts as dead."""
        return self.boot_id == boot_id() and self.start == process_start(self.pid)


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Return what names this start of this machine: the same in all its processes and containers."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return _run("sysctl", "-n", "kern.bootsessionuuid") or "unknown"


def process_start(pid: int) -> int | None:
    """Return when a process began, or None if it is not running; a zombie is not.

    The unit is the kernel's and good for comparing only: clock ticks since boot on Linux, Unix seconds elsewhere.
    """
    if not (_PROC / "self/stat").exists():
        return _process_start_from_ps(pid)
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    # The name of the program comes first, in brackets, and may itself hold blanks and brackets.
    state, *fields = stat.rpartition(b")")[2].split()
    return None if state in b"ZX" else int(fields[18])


def _process_start_from_ps(pid: int) -> int | None:
    state, _, started = _run("ps", "-o", "stat=,lstart=", "-p", str(pid)).partition(" ")
    if not started or state.startswith("Z"):
        return None
    return int(time.mktime(time.strptime(started.strip(), "%a %b %d %H:%M:%S %Y")))


def _run(*command: str) -> str:
    """Return what a program of the system prints, or nothing where there is no such program."""
    try:
        done = subprocess.run(  # noqa: S603  # fixed programs, and a number
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
            env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
