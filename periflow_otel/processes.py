"""A process, named for good although the kernel uses process ids again, and gives the same ones in each container."""

import os
import select
import subprocess
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec

_PROC: Final = Path("/proc")
_UNKNOWN: Final = "unknown"
_LOOK_INTERVAL_S: Final = 0.1


class Process(msgspec.Struct, frozen=True):
    """One process of one start of one machine."""

    pid: int
    start: int
    """What :func:`process_start` said of it; 0: nothing."""
    boot_id: str
    """What :func:`boot_id` said on its machine."""
    pid_namespace: int
    """What :func:`pid_namespace` said to it."""

    @classmethod
    def current(cls) -> "Process":
        """Return the process that asks."""
        pid = os.getpid()
        try:
            start = process_start(pid) if _sees_itself() else None
        except OSError:
            start = None
        return cls(pid, start or 0, boot_id(), pid_namespace())

    def is_current(self) -> bool:
        """Tell whether this is the process that asks, and not a forked child of it."""
        return self.pid == os.getpid()

    def is_alive(self) -> bool | None:
        """Tell whether exactly this process still runs; None if that cannot be seen from here.

        Its id means something only in the same container, and since the same start of the same machine.
        """
        if not self.start or not self.is_of_this_boot() or self.pid_namespace != pid_namespace() or not _sees_itself():
            return None
        try:
            return self.start == process_start(self.pid)
        except OSError:
            return None

    def is_of_this_boot(self) -> bool:
        """Tell whether it began on this machine, and since the machine did."""
        return self.boot_id == boot_id() != _UNKNOWN


class Lifeline:
    """Knows at once that a process still runs, where the kernel has a descriptor for that: on Linux."""

    def __init__(self, process: Process) -> None:
        """Take hold of a process that runs and can be seen from here; of another there is nothing to hold."""
        self._descriptor = -1
        self._end = select.poll()
        with suppress(AttributeError, OSError):  # not Linux, or an old kernel, or too many files are open
            self._descriptor = os.pidfd_open(process.pid)
            self._end.register(self._descriptor, select.POLLIN)
        # Asked after it: the id may have become another process's until then.
        self._is_of_process = self._descriptor >= 0 and process.is_alive() is True

    def holds(self) -> bool:
        """Tell whether the process certainly runs. If not, :meth:`Process.is_alive` tells."""
        return self._is_of_process and not self._end.poll(0)

    def __del__(self) -> None:
        """Let go of it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)


def wait_for_end(pid: int) -> None:
    """Wait until a process has ended: without looking again and again, where the kernel has a descriptor for that."""
    start = process_start(pid)
    with suppress(AttributeError, OSError):  # as above
        descriptor = os.pidfd_open(pid)
        try:
            end = select.poll()
            end.register(descriptor, select.POLLIN)
            if process_start(pid) == start:  # else the descriptor may be another's, of the same id
                end.poll()
        finally:
            os.close(descriptor)
    while start is not None and process_start(pid) == start:
        time.sleep(_LOOK_INTERVAL_S)


def boot_id() -> str:
    """Return what names this start of this machine: the same in all its processes and containers."""
    try:
        return _boot_id()
    except OSError:  # too many files are open: asked again the next time
        return _UNKNOWN


@lru_cache(maxsize=1)
def _boot_id() -> str:
    path = _PROC / "sys/kernel/random/boot_id"
    if path.exists():
        return path.read_text(encoding="ascii").strip()
    return _run("sysctl", "-n", "kern.bootsessionuuid") or _UNKNOWN


def pid_namespace() -> int:
    """Return what names the set of process ids that this process is in, a container's for instance; 0 if nothing."""
    return _pid_namespace(os.getpid())


@lru_cache(maxsize=1)
def _pid_namespace(_pid: int) -> int:
    """Ask once in a process: it stays where it is, but a child may be elsewhere."""
    try:
        return (_PROC / "self/ns/pid").stat().st_ino
    except OSError:
        return 0


def process_start(pid: int) -> int | None:
    """Return when a process began, or None if it is not running; a zombie is not.

    The unit is the kernel's and good for comparing only: clock ticks since boot on Linux, Unix seconds elsewhere.

    Raises:
        OSError: This process has too many files open.
    """
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None if (_PROC / "self/stat").exists() else _process_start_from_ps(pid)
    # The name of the program comes first, in brackets, and may itself hold blanks and brackets.
    state, *fields = stat.rpartition(b")")[2].split()
    return None if state in b"ZX" else int(fields[18])


def is_held(pid: int) -> bool:
    """Tell whether somebody has stopped a process, or debugs it: it does not go on because it must not."""
    try:
        status = (_PROC / str(pid) / "status").read_bytes()
    except OSError:
        return False
    state, tracer = (status.partition(name)[2].split(None, 1)[:1] for name in (b"State:", b"TracerPid:"))
    return state in ([b"T"], [b"t"]) or tracer not in ([], [b"0"])


def process_started_unix_ns() -> int:
    """Return when this process began, to a hundredth of a second or so and never late; 0 if nobody can tell."""
    try:
        start = process_start(os.getpid()) if _sees_itself() else None
    except OSError:
        start = None
    if start is None or not _PROC.exists():
        return (start or 0) * 1_000_000_000
    age_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - start * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return time.time_ns() - age_ns


def _sees_itself() -> bool:
    """Tell whether process ids in /proc are those of this process: a container may see the /proc of its machine."""
    return _is_seen(os.getpid(), _PROC)


@lru_cache(maxsize=1)
def _is_seen(pid: int, proc: Path) -> bool:
    """Look once in a process, as for its namespace."""
    try:
        return int((proc / "self").readlink().name) == pid
    except OSError:
        return not proc.exists()


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
