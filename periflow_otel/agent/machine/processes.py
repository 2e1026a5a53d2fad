"""What is read of a process: a rank of this node, or the agent itself."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from periflow_otel import conventions
from periflow_otel.processes import Process
from periflow_otel.translate.telemetry import Observation


class _Spent(NamedTuple):
    """Processor time of a process at one time."""

    at_s: float
    user_s: float
    system_s: float


class Processes:
    """Reads processes, time and again."""

    def __init__(self) -> None:
        """Find psutil.

        Raises:
            ImportError: It is missing or broken.
        """
        import psutil  # noqa: PLC0415  # in an agent that reads the machine alone

        self._psutil: Any = psutil
        self._known: dict[Process, Any] = {}
        self._spent: dict[Process, _Spent] = {}

    def read(self, process: Process, cpus: float = 1.0) -> tuple[Observation, ...]:
        """Return what there is to see of a process now: nothing, if it is gone or cannot be seen from here.

        Args:
            process: Which one.
            cpus: Of how many processors it may use the time.
        """
        try:
            if process.is_alive():
                if process not in self._known:
                    self._known[process] = self._psutil.Process(process.pid)
                return tuple(self._read(process, self._known[process], cpus))
        except self._psutil.Error:  # it has ended just now, or is another user's
            pass
        self._known.pop(process, None)
        self._spent.pop(process, None)
        return ()

    def _read(self, process: Process, known: Any, cpus: float) -> Iterator[Observation]:
        with known.oneshot():
            began_s, times, memory = known.create_time(), known.cpu_times(), known.memory_info()
            threads, switches = known.num_threads(), known.num_ctx_switches()
        if not memory.rss:
            return  # it is ending, and has given its memory back
        began = int(began_s * 1e9)
        spent = _Spent(time.monotonic(), times.user, times.system)
        before, self._spent[process] = self._spent.get(process), spent
        for mode, time_s in (("user", times.user), ("system", times.system)):
            yield Observation(conventions.PROCESS_CPU_TIME, time_s, ((conventions.CPU_MODE, mode),), began)
        if before and spent.at_s > before.at_s:
            may_s = (spent.at_s - before.at_s) * cpus
            for mode, mode_s in (("user", times.user - before.user_s), ("system", times.system - before.system_s)):
                attributes = ((conventions.CPU_MODE, mode),)
                yield Observation(conventions.PROCESS_CPU_UTILIZATION, mode_s / may_s, attributes)
        yield Observation(conventions.PROCESS_MEMORY_USAGE, memory.rss, (), began)
        yield Observation(conventions.PROCESS_MEMORY_VIRTUAL, memory.vms, (), began)
        yield Observation(conventions.PROCESS_THREAD_COUNT, threads, (), began)
        yield Observation(conventions.PROCESS_UPTIME, max(0.0, time.time() - began_s))
        for kind in ("voluntary", "involuntary"):
            attributes = ((conventions.CONTEXT_SWITCH_TYPE, kind),)
            yield Observation(conventions.PROCESS_CONTEXT_SWITCHES, getattr(switches, kind), attributes, began)
        yield from self._files(known, began)

    def _files(self, known: Any, began: int) -> Iterator[Observation]:
        try:
            yield Observation(conventions.PROCESS_FILE_COUNT, known.num_fds(), (), began)
            found = known.io_counters() if hasattr(known, "io_counters") else None
        except self._psutil.AccessDenied:  # a process that is not dumpable, though it is of this user
            return
        if found:
            for direction, size in (("read", found.read_bytes), ("write", found.write_bytes)):
                attributes = ((conventions.DISK_DIRECTION, direction),)
                yield Observation(conventions.PROCESS_DISK_IO, size, attributes, began)
