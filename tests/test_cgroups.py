"""Limits of containers: what may be used is what the control groups say, not what the machine has."""

import os
from pathlib import Path

import pytest

from periflow_otel import conventions, names
from periflow_otel.agent.machine.cgroups import Cgroups, Memory, Processors
from periflow_otel.agent.machine.system import System

TICKS = os.sysconf("SC_CLK_TCK")


def groups(folder: Path, own: str, **files: str) -> Cgroups:
    """Return control groups that these files make; ``__`` stands for a folder and ``_`` is itself."""
    root = folder / "cgroup"
    root.mkdir()
    for name, text in files.items():
        file = root / name.replace("__", "/").replace("DOT", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (folder / "own").write_text(own)
    return Cgroups(root, folder / "own", folder / "pressure")


def version_2(folder: Path, own: str = "0::/\n", **files: str) -> Cgroups:
    """Return groups of version 2."""
    return groups(folder, own, cgroupDOTcontrollers="cpu memory", **files)


CPU_STAT = "usage_usec 5000000\nuser_usec 3000000\nsystem_usec 2000000\nnr_throttled 4\nthrottled_usec 1500000\n"


def test_version_2_limits_memory_and_processors(tmp_path: Path):
    """What has been read of files does not count as used: the kernel gives it up when others need it."""
    found = version_2(
        tmp_path, memoryDOTmax="1000\n", memoryDOTcurrent="700\n", memoryDOTstat="anon 5\ninactive_file 200\n",
        cpuDOTmax="250000 100000\n", cpuDOTstat=CPU_STAT,
    )  # fmt: skip
    assert found.memory() == Memory(1000, 500, 200)
    assert found.processors() == Processors(2.5, 3.0, 2.0, 1.5)


def test_the_lowest_limit_of_all_groups_around_holds(tmp_path: Path):
    """A job's, a user's, a pod's."""
    found = version_2(
        tmp_path, "0::/pod/job\n", pod__job__memoryDOTmax="max\n", pod__memoryDOTmax="400\n",
        pod__memoryDOTcurrent="100\n", memoryDOTmax="900\n", pod__job__cpuDOTmax="max 100000\n",
    )  # fmt: skip
    assert found.memory() == Memory(400, 100, 0)
    assert found.processors() is None


def test_version_1_limits_memory_and_processors(tmp_path: Path):
    """Each by a controller of its own; the path is that of the machine, where a container sees its own as the root."""
    found = groups(
        tmp_path, "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n",
        memory__memoryDOTlimit_in_bytes="2000\n", memory__memoryDOTusage_in_bytes="600\n",
        memory__memoryDOTstat="total_inactive_file 100\n", cpu__cpuDOTcfs_quota_us="50000\n",
        cpu__cpuDOTcfs_period_us="100000\n", cpu__cpuDOTstat="nr_throttled 1\nthrottled_time 2000000000\n",
        cpuacct__cpuacctDOTstat=f"user {7 * TICKS}\nsystem {3 * TICKS}\n",
    )  # fmt: skip
    assert found.memory() == Memory(2000, 500, 100)
    assert found.processors() == Processors(0.5, 7.0, 3.0, 2.0)


@pytest.mark.parametrize("limit", ["9223372036854771712\n", "", "nonsense"])
def test_no_limit_is_none(tmp_path: Path, limit: str):
    """Version 1 has a number for it, and what cannot be read is none."""
    found = groups(tmp_path, "4:memory:/\n", memory__memoryDOTlimit_in_bytes=limit, cpu__cpuDOTcfs_quota_us="-1\n")
    assert found.memory() is None
    assert found.processors() is None


def test_the_node_is_what_the_container_may_use(tmp_path: Path):
    """Its memory, and its processors' time; how long it was held back is told too."""
    found = version_2(
        tmp_path, memoryDOTmax="1000\n", memoryDOTcurrent="700\n", memoryDOTstat="inactive_file 200\n",
        cpuDOTmax="50000 100000\n", cpuDOTstat=CPU_STAT,
    )  # fmt: skip
    system = System(found)
    seen = {(each.instrument, *(value for _, value in each.attributes)): each.value for each in system.read()}
    assert seen[conventions.SYSTEM_MEMORY_LIMIT,] == 1000
    assert [seen[conventions.SYSTEM_MEMORY_USAGE, each] for each in ("used", "free", "cached")] == [500, 300, 200]
    assert seen[conventions.SYSTEM_MEMORY_UTILIZATION, "used"] == 0.5
    assert seen[conventions.SYSTEM_CPU_TIME, "user"] == 3.0
    assert seen[names.MACHINE_CPU_LIMIT,] == system.cpu_limit() == 0.5
    assert seen[names.MACHINE_CPU_THROTTLED,] == 1.5


PRESSURE = "some avg10=0.00 avg60=0.00 avg300=0.00 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"


def test_who_has_to_wait_is_said_of_the_group_or_else_of_the_machine(tmp_path: Path):
    """Not every kernel says it, nor of every resource."""
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure" / "io").write_text(PRESSURE.format(9_000_000))
    (tmp_path / "pressure" / "memory").write_text(PRESSURE.format(500_000))
    found = version_2(tmp_path, "0::/job\n", job__ioDOTpressure=PRESSURE.format(2_000_000))
    assert [found.stalled_s(resource) for resource in ("io", "memory", "cpu")] == [2.0, 0.5, None]
