"""What a container may use of its machine, as the kernel's control groups say, of version 1 and 2.

Where a group is limited its own figures tell how much is left, and those of the machine mislead.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_ROOT: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")
_PRESSURE: Final = Path("/proc/pressure")
_STALLED: Final = re.compile(r"some .* total=(\d+)")
"""Microseconds in which some process had to wait, since the kernel or the group began."""
_UNLIMITED: Final = 1 << 60
"""Version 1 says a little less than 2^63 where there is no limit."""


class Memory(NamedTuple):
    """Memory of a group that has a limit."""

    limit: int
    used: int
    """Without what the kernel gives up when others need it, as what has been read of files."""
    cached: int


class Processors(NamedTuple):
    """Processor time of a group that has a limit."""

    limit: float
    """In processors."""
    user_s: float
    system_s: float
    throttled_s: float
    """How long it was kept from running by its limit."""


class Cgroups:
    """The groups that this process is in, with those around them."""

    def __init__(self, root: Path = _ROOT, own: Path = _OWN, pressure: Path = _PRESSURE) -> None:
        """Find them.

        Args:
            root: Where the file system of control groups is mounted.
            own: Says which groups this process is in.
            pressure: Says for how long processes of the machine had to wait.
        """
        self._pressure = pressure
        paths = _paths(own)
        self._version = 2 if (root / "cgroup.controllers").exists() else 1
        if self._version == 2:
            self._memory = self._processors = list(_upwards(root, paths.get("", "/")))
            self._times = self._processors
        else:
            self._memory, self._processors, self._times = (
                list(_upwards(root / name, paths.get(name, "/"))) for name in ("memory", "cpu", "cpuacct")
            )

    def memory(self) -> Memory | None:
        """Return the memory of the group with the lowest limit; None where there is no limit."""
        limit, used, cached = (
            ("memory.max", "memory.current", "inactive_file")
            if self._version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        limits = [(found, group) for group in self._memory if (found := _number(group / limit)) < _UNLIMITED]
        if not limits:
            return None
        least, group = min(limits)
        reclaimable = _table(group / "memory.stat").get(cached, 0)
        return Memory(least, max(0, _number(group / used) - reclaimable), reclaimable)

    def processors(self) -> Processors | None:
        """Return the processor time of the group with the lowest limit; None where there is no limit."""
        limits = [(found, at) for at, group in enumerate(self._processors) if (found := self._quota(group))]
        if not limits:
            return None
        least, at = min(limits)
        statistics = _table(self._processors[at] / "cpu.stat")
        if self._version == 2:
            user_s, system_s, throttled_s = (
                statistics.get(name, 0) / 1e6 for name in ("user_usec", "system_usec", "throttled_usec")
            )
            return Processors(least, user_s, system_s, throttled_s)
        ticks = os.sysconf("SC_CLK_TCK")
        times = _table(self._times[min(at, len(self._times) - 1)] / "cpuacct.stat")
        user_s, system_s = times.get("user", 0) / ticks, times.get("system", 0) / ticks
        return Processors(least, user_s, system_s, statistics.get("throttled_time", 0) / 1e9)

    def stalled_s(self, resource: str) -> float | None:
        """Return for how long some process of the group, else of the machine, had to wait for a resource.

        Args:
            resource: ``cpu``, ``memory`` or ``io``.
        """
        own = [self._processors[0] / f"{resource}.pressure"] if self._version == 2 else []
        found = (_STALLED.match(_text(path)) for path in (*own, self._pressure / resource))
        return next((int(each[1]) / 1e6 for each in found if each), None)

    def _quota(self, group: Path) -> float:
        """Return how many processors a group may use; 0: as many as there are."""
        if self._version == 2:
            quota, _, period = _text(group / "cpu.max").partition(" ")
        else:
            quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
        return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else 0.0


def _paths(own: Path) -> dict[str, str]:
    """Return the path of each group of this process, by controller; that of version 2 has none."""
    lines = (line.split(":", 2) for line in _text(own).splitlines())
    return {name: path for _, names, path in (line for line in lines if len(line) == 3) for name in names.split(",")}


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """Yield a group and those around it. A container may see its own as the root, and be told of another path."""
    group = root / path.lstrip("/")
    while group != root and ".." not in group.parts:
        if group.exists():
            yield group
        group = group.parent
    yield root


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


def _number(path: Path) -> int:
    """Return a number; what is no number has no limit."""
    text = _text(path)
    return int(text) if text.isdecimal() else _UNLIMITED


def _table(path: Path) -> dict[str, int]:
    """Return numbers by the word before them."""
    words = (line.split() for line in _text(path).splitlines())
    return {line[0]: int(line[1]) for line in words if len(line) == 2 and line[1].isdecimal()}
