"""What the agent sees of the machine: the values that psutil gives, told by the one whose they are."""

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from programs import Collector, ReceivedPoint, wait_until
from training import Training, cloud

from periflow_otel import conventions
from periflow_otel.agent.machine.processes import Processes
from periflow_otel.agent.machine.system import System
from periflow_otel.processes import Process
from periflow_otel.translate.telemetry import Observation

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of /proc, as it is now, from which psutil reads: values stand still, and can be written."""
    copy = tmp_path / "proc"
    for part in (".", str(os.getpid())):
        (copy / part).mkdir()
        for each in (Path("/proc") / part).iterdir():
            if each.name in FILES:
                with suppress(OSError):
                    shutil.copyfile(each, copy / part / each.name)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(copy))
    return copy


FILES = frozenset({"stat", "statm", "status", "io", "meminfo", "vmstat", "diskstats", "limits"})


def values(seen: Iterable[Observation]) -> dict[Any, float]:
    """Return what was seen, by instrument and the values of its attributes."""
    found: dict[Any, float] = {}
    for each in seen:
        key = (each.instrument, *(value for _, value in each.attributes))
        assert key not in found
        found[key] = each.value
    return found


def test_times_of_processors_are_those_of_psutil(proc: Path):
    """To the digit, added up over all of them."""
    seen, known = values(System().read()), psutil.cpu_times()
    assert (proc / "stat").exists()
    assert {mode: value for (each, mode), value in seen.items() if each is conventions.SYSTEM_CPU_TIME} == {
        "user": known.user,
        "nice": known.nice,
        "system": known.system,
        "idle": known.idle,
        "iowait": known.iowait,
        "interrupt": known.irq + known.softirq,
        "steal": known.steal,
    }


def test_utilization_is_of_the_time_since_the_reading_before(proc: Path):
    """The first has none before it."""
    (proc / "stat").write_text("cpu  100 0 100 800 0 0 0 0 0 0\nbtime 1700000000\n")
    system = System()
    assert conventions.SYSTEM_CPU_UTILIZATION not in {each.instrument for each in system.read()}
    (proc / "stat").write_text("cpu  175 0 110 810 5 0 0 0 0 0\nbtime 1700000000\n")
    seen = values(system.read())
    shares = {mode: seen[conventions.SYSTEM_CPU_UTILIZATION, mode] for mode in ("user", "system", "idle", "iowait")}
    assert shares == pytest.approx({"user": 0.75, "system": 0.1, "idle": 0.1, "iowait": 0.05})


def test_memory_of_a_process_is_that_of_psutil(proc: Path):
    """To the byte."""
    (proc / str(os.getpid()) / "statm").write_text("5000 1234 500 1 0 600 0\n")
    seen = values(Processes().read(Process.current()))
    assert seen[conventions.PROCESS_MEMORY_USAGE,] == psutil.Process().memory_info().rss == 1234 * PAGE_BYTES


def test_a_process_that_is_gone_has_no_values():
    """Nor has another one that has its number now."""
    processes, own = Processes(), Process.current()
    assert processes.read(own)
    assert processes.read(Process(own.pid, own.start + 1, own.boot_id, own.pid_namespace)) == ()


def test_values_are_told_by_the_one_whose_they_are(collector: Collector):
    """The node's and its own by the agent, once; a rank's by the rank."""
    environ = cloud(collector.http_endpoint, PERIFLOW_MACHINE_INTERVAL="0.1", PERIFLOW_RUN_ID="job")
    with Training(100_000, 0.002, **environ) as training:
        wait_until(lambda: len(told(collector.points("process.memory.usage"))) > 1, 60, "values of both processes")
        wait_until(lambda: collector.points("system.cpu.utilization"), 60, "values of the node")
        pid = training.process.pid
        resident = psutil.Process(pid).memory_info().rss
        training.kill()
        training.wait_for_agent()
    assert set(told(collector.points("system.cpu.utilization"))) == {"job/agent-0"}
    memory = told(collector.points("process.memory.usage"))
    assert set(memory) == {"job/1/0", "job/agent-0"}
    assert memory["job/1/0"][-1].attributes == {"periflow.rank": 0}
    assert memory["job/agent-0"][-1].attributes == {"periflow.node_rank": 0}
    assert memory["job/1/0"][-1].value == pytest.approx(resident, rel=0.5)


def told(points: Iterable[ReceivedPoint]) -> dict[str, list[ReceivedPoint]]:
    """Return points by the service instance that they are of."""
    found = defaultdict(list)
    for point in points:
        found[point.resource["service.instance.id"]].append(point)
    return found
