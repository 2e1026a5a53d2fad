"""What is read of the node. In a container with limits it is what the container may use, and uses."""

import logging
import os
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from periflow_otel import conventions, names
from periflow_otel.agent.machine.cgroups import Cgroups, Processors
from periflow_otel.names import Instrument
from periflow_otel.translate.telemetry import Observation

_MODES: Final = {
    "user": "user", "nice": "nice", "system": "system", "idle": "idle", "iowait": "iowait", "irq": "interrupt",
    "softirq": "interrupt", "steal": "steal",
}  # fmt: skip
"""What psutil calls what a processor does, and what the semantic conventions call it."""
_PAGE_BYTES: Final = 4096
"""Of which psutil makes bytes from the pages that the kernel counts."""
_INTERFACES: Final = Path("/sys/class/net")

_log = logging.getLogger("periflow_otel")


class System:
    """Reads the node, time and again."""

    def __init__(self, cgroups: Cgroups | None = None) -> None:
        """Find psutil.

        Args:
            cgroups: Limits of the container. Default: those of this process.

        Raises:
            ImportError: psutil is missing or broken.
        """
        import psutil  # noqa: PLC0415  # in an agent that reads the machine alone

        self._psutil: Any = psutil
        self._cgroups = cgroups or Cgroups()
        self._booted_unix_ns = int(psutil.boot_time()) * 1_000_000_000
        self._spent_before: dict[str, float] = {}
        self._read_at_s = 0.0

    def read(self, folders: Iterable[Path] = ()) -> Iterator[Observation]:
        """Yield what there is to see now.

        Args:
            folders: On the file systems that matter.
        """
        filesystems = partial(self._filesystems, folders)
        for part in (
            self._processors,
            self._memory,
            self._paging,
            self._stalls,
            self._disks,
            self._network,
            filesystems,
        ):
            try:
                yield from list(part())
            except Exception as error:  # noqa: BLE001, PERF203  # sandboxes lack this and that
                _log.info("a part of the machine cannot be seen: %s: %s", type(error).__name__, error)

    def cpu_count(self) -> int:
        """Return how many processors may be used, by parts of the machine that containers are given."""
        count = self._psutil.cpu_count() or 1
        return min(count, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else count

    def cpu_limit(self) -> float:
        """Return of how many processors the time may be used."""
        processors = self._cgroups.processors()
        return min(self.cpu_count(), processors.limit) if processors else self.cpu_count()

    def _processors(self) -> Iterator[Observation]:
        yield Observation(conventions.SYSTEM_CPU_COUNT, self.cpu_count(), (), self._booted_unix_ns)
        processors = self._cgroups.processors()
        yield from self._limited_cpu(processors) if processors else self._cpu()

    def _cpu(self) -> Iterator[Observation]:
        found = self._psutil.cpu_times()
        times: dict[str, float] = {}
        for name, mode in _MODES.items():
            if hasattr(found, name):
                times[mode] = times.get(mode, 0.0) + getattr(found, name)
        spent_s = self._since_last(times)
        yield from self._sums(conventions.SYSTEM_CPU_TIME, conventions.CPU_MODE, times)
        yield from _gauges(conventions.SYSTEM_CPU_UTILIZATION, conventions.CPU_MODE, _shares(spent_s))

    def _limited_cpu(self, processors: Processors) -> Iterator[Observation]:
        times = {"user": processors.user_s, "system": processors.system_s}
        before_s, self._read_at_s = self._read_at_s, time.monotonic()
        spent_s = self._since_last(times)
        yield from self._sums(conventions.SYSTEM_CPU_TIME, conventions.CPU_MODE, times)
        yield Observation(names.MACHINE_CPU_LIMIT, processors.limit)
        yield Observation(names.MACHINE_CPU_THROTTLED, processors.throttled_s, (), self._booted_unix_ns)
        if spent_s:
            may_s = (self._read_at_s - before_s) * processors.limit
            shares = {mode: mode_s / may_s for mode, mode_s in spent_s.items()}
            shares["idle"] = max(0.0, 1.0 - sum(shares.values()))
            yield from _gauges(conventions.SYSTEM_CPU_UTILIZATION, conventions.CPU_MODE, shares)

    def _since_last(self, times: dict[str, float]) -> dict[str, float]:
        """Return by how much times have grown since the last reading; nothing at the first."""
        before, self._spent_before = self._spent_before, times
        return {mode: max(0.0, time_s - before.get(mode, time_s)) for mode, time_s in times.items()} if before else {}

    def _memory(self) -> Iterator[Observation]:
        found = self._psutil.virtual_memory()
        limit = found.total
        states = {name: getattr(found, name) for name in ("used", "free", "cached", "buffers") if hasattr(found, name)}
        limited = self._cgroups.memory()
        if limited and limited.limit < limit:
            limit, free = limited.limit, max(0, limited.limit - limited.used - limited.cached)
            states = {"used": limited.used, "free": free, "cached": limited.cached}
        yield Observation(conventions.SYSTEM_MEMORY_LIMIT, limit, (), self._booted_unix_ns)
        yield from self._sums(conventions.SYSTEM_MEMORY_USAGE, conventions.MEMORY_STATE, states)
        shares = {state: value / limit for state, value in states.items()}
        yield from _gauges(conventions.SYSTEM_MEMORY_UTILIZATION, conventions.MEMORY_STATE, shares)

    def _paging(self) -> Iterator[Observation]:
        found = self._psutil.swap_memory()
        yield from self._sums(
            conventions.SYSTEM_PAGING_USAGE, conventions.PAGING_STATE, {"used": found.used, "free": found.free}
        )
        pages = {"in": found.sin // _PAGE_BYTES, "out": found.sout // _PAGE_BYTES}
        yield from self._sums(conventions.SYSTEM_PAGING_OPERATIONS, conventions.PAGING_DIRECTION, pages)

    def _stalls(self) -> Iterator[Observation]:
        for resource in ("cpu", "memory", "io"):
            if (stalled_s := self._cgroups.stalled_s(resource)) is not None:
                attributes = ((names.MACHINE_RESOURCE, resource),)
                yield Observation(names.MACHINE_STALLED, stalled_s, attributes, self._booted_unix_ns)

    def _disks(self) -> Iterator[Observation]:
        if found := self._psutil.disk_io_counters():
            sizes = {"read": found.read_bytes, "write": found.write_bytes}
            yield from self._sums(conventions.SYSTEM_DISK_IO, conventions.DISK_DIRECTION, sizes)
            counts = {"read": found.read_count, "write": found.write_count}
            yield from self._sums(conventions.SYSTEM_DISK_OPERATIONS, conventions.DISK_DIRECTION, counts)

    def _network(self) -> Iterator[Observation]:
        every = self._psutil.net_io_counters(pernic=True)
        for name in _outward(every):
            found, interface = every[name], (conventions.INTERFACE, name)
            sizes = {"receive": found.bytes_recv, "transmit": found.bytes_sent}
            yield from self._sums(conventions.SYSTEM_NETWORK_IO, conventions.NETWORK_DIRECTION, sizes, interface)
            errors = {"receive": found.errin, "transmit": found.errout}
            yield from self._sums(conventions.SYSTEM_NETWORK_ERRORS, conventions.NETWORK_DIRECTION, errors, interface)

    def _filesystems(self, folders: Iterable[Path]) -> Iterator[Observation]:
        for mountpoint in sorted({mountpoint_of(folder) for folder in folders}):
            yield from self._filesystem(mountpoint)

    def _filesystem(self, mountpoint: str) -> Iterator[Observation]:
        try:
            found = self._psutil.disk_usage(mountpoint)
        except OSError:  # it is gone, or its server is
            return
        at = (conventions.MOUNTPOINT, mountpoint)
        states = {"used": found.used, "free": found.free, "reserved": found.total - found.used - found.free}
        yield from self._sums(conventions.SYSTEM_FILESYSTEM_USAGE, conventions.FILESYSTEM_STATE, states, at)
        yield Observation(conventions.SYSTEM_FILESYSTEM_LIMIT, found.total, (at,), self._booted_unix_ns)
        if usable := found.used + found.free:
            yield Observation(conventions.SYSTEM_FILESYSTEM_UTILIZATION, found.used / usable, (at,))

    def _sums(
        self, instrument: Instrument, key: str, values: dict[str, float], *more: tuple[str, str]
    ) -> Iterator[Observation]:
        for each, value in values.items():
            yield Observation(instrument, value, ((key, each), *more), self._booted_unix_ns)


def mountpoint_of(folder: Path) -> str:
    """Return where the file system of a folder is mounted."""
    path = folder
    while not path.is_mount() and path != path.parent:
        path = path.parent
    return str(path)


def _outward(interfaces: Iterable[str]) -> list[str]:
    """Return the network interfaces by which a node reaches others: those with hardware, else all but the loopback."""
    found = [name for name in interfaces if name != "lo"]
    return [name for name in found if (_INTERFACES / name / "device").exists()] or found


def _shares(values: dict[str, float]) -> dict[str, float]:
    total = sum(values.values())
    return {each: value / total for each, value in values.items()} if total else {}


def _gauges(instrument: Instrument, key: str, values: dict[str, float]) -> Iterator[Observation]:
    for each, value in values.items():
        yield Observation(instrument, value, ((key, each),))
