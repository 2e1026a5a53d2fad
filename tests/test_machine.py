"""What the agent sees of the machine: the values that psutil gives, told by the one whose they are."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
from programs import Collector, ReceivedPoint, wait_until
from recorder import MS, STARTED_NS, S, make_run
from training import Training, cloud

from periflow_otel import conventions, names
from periflow_otel.agent.machine.cgroups import Cgroups
from periflow_otel.agent.machine.children import observe_children
from periflow_otel.agent.machine.processes import Processes
from periflow_otel.agent.machine.system import System, mountpoint_of
from periflow_otel.otlp.json import metrics_json
from periflow_otel.processes import Process
from periflow_otel.records import RankRun, StepEnded
from periflow_otel.translate.telemetry import Observation, Observed, Point
from periflow_otel.view.otlp import OtlpFeed
from periflow_otel.view.records import RecordFeed
from periflow_otel.view.run_view import RunView

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of /proc, as it is now, from which psutil reads: values stand still, and can be written."""
    copy = tmp_path / "proc"
    for part in (".", "net", str(os.getpid()), f"{os.getpid()}/fd"):
        (copy / part).mkdir(parents=True, exist_ok=True)
        for each in (Path("/proc") / part).iterdir():
            if each.name in FILES and each.is_file():
                shutil.copyfile(each, copy / part / each.name)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(copy))
    return copy


MEMINFO = """\
MemTotal: 8000000 kB
MemFree: 1000000 kB
MemAvailable: 3000000 kB
Buffers: 20000 kB
Cached: 2000000 kB
SReclaimable: 30000 kB
Shmem: 40000 kB
Active: 50000 kB
Inactive: 60000 kB
Slab: 70000 kB
SwapTotal: 5000 kB
SwapFree: 3500 kB
"""


@pytest.fixture
def no_limits(tmp_path: Path) -> Cgroups:
    """Return control groups without any limit, whatever those of this machine are."""
    return Cgroups(tmp_path / "no groups", tmp_path / "none")


FILES = frozenset({"stat", "statm", "status", "io", "meminfo", "vmstat", "zoneinfo", "diskstats", "dev"})


def values(seen: Iterable[Observation]) -> dict[Any, float]:
    """Return what was seen, by instrument and the values of its attributes."""
    found: dict[Any, float] = {}
    for each in seen:
        key = (each.instrument, *(value for _, value in each.attributes))
        assert key not in found
        found[key] = each.value
    return found


@pytest.mark.usefixtures("proc")
def test_times_of_processors_are_those_of_psutil(no_limits: Cgroups):
    """To the digit, added up over all of them."""
    seen, known = values(System(no_limits).read()), psutil.cpu_times()
    assert {key[1]: value for key, value in seen.items() if key[0] is conventions.SYSTEM_CPU_TIME} == {
        "user": known.user,
        "nice": known.nice,
        "system": known.system,
        "idle": known.idle,
        "iowait": known.iowait,
        "interrupt": known.irq + known.softirq,
        "steal": known.steal,
    }


def test_utilization_is_of_the_time_since_the_reading_before(proc: Path, no_limits: Cgroups):
    """The first has none before it."""
    (proc / "stat").write_text("cpu  100 0 100 800 0 0 0 0 0 0\nbtime 1700000000\n")
    system = System(no_limits)
    assert conventions.SYSTEM_CPU_UTILIZATION not in {each.instrument for each in system.read()}
    (proc / "stat").write_text("cpu  175 0 110 810 5 0 0 0 0 0\nbtime 1700000000\n")
    seen = values(system.read())
    shares = {mode: seen[conventions.SYSTEM_CPU_UTILIZATION, mode] for mode in ("user", "system", "idle", "iowait")}
    assert shares == pytest.approx({"user": 0.75, "system": 0.1, "idle": 0.1, "iowait": 0.05})


def test_memory_swap_disks_and_network_are_those_of_psutil(proc: Path, no_limits: Cgroups):
    """To the byte."""
    (proc / "meminfo").write_text(MEMINFO)
    (proc / "vmstat").write_text("pswpin 7\npswpout 9\n")
    seen = values(System(no_limits).read())
    memory, swap, disks, nics = (
        psutil.virtual_memory(), psutil.swap_memory(), psutil.disk_io_counters(), psutil.net_io_counters(pernic=True),
    )  # fmt: skip
    assert seen[conventions.SYSTEM_MEMORY_LIMIT,] == memory.total == 8_000_000 * 1024
    for state in ("used", "free", "cached", "buffers"):
        assert seen[conventions.SYSTEM_MEMORY_USAGE, state] == getattr(memory, state)
        assert seen[conventions.SYSTEM_MEMORY_UTILIZATION, state] == getattr(memory, state) / memory.total
    assert seen[conventions.SYSTEM_PAGING_USAGE, "used"] == swap.used == 1_500 * 1024
    assert seen[conventions.SYSTEM_PAGING_OPERATIONS, "in"] == 7
    assert seen[conventions.SYSTEM_PAGING_OPERATIONS, "out"] == 9
    if disks:
        assert seen[conventions.SYSTEM_DISK_IO, "write"] == disks.write_bytes
        assert seen[conventions.SYSTEM_DISK_OPERATIONS, "read"] == disks.read_count
    names = {key[2] for key in seen if key[0] is conventions.SYSTEM_NETWORK_IO}
    assert "lo" not in names
    for name in names:
        assert seen[conventions.SYSTEM_NETWORK_IO, "receive", name] == nics[name].bytes_recv
        assert seen[conventions.SYSTEM_NETWORK_ERRORS, "transmit", name] == nics[name].errout


def test_the_file_systems_of_folders_are_told_of_once(tmp_path: Path):
    """Their states add up to their size."""
    seen = values(System().read([tmp_path, tmp_path / "missing"]))
    mountpoint = mountpoint_of(tmp_path)
    sizes = [seen[conventions.SYSTEM_FILESYSTEM_USAGE, state, mountpoint] for state in ("used", "free", "reserved")]
    assert sum(sizes) == seen[conventions.SYSTEM_FILESYSTEM_LIMIT, mountpoint] == psutil.disk_usage(str(tmp_path)).total
    assert 0 <= seen[conventions.SYSTEM_FILESYSTEM_UTILIZATION, mountpoint] <= 1


def test_what_cannot_be_seen_takes_nothing_else_along(proc: Path, no_limits: Cgroups):
    """As in sandboxes without some files of /proc."""
    for missing in ("meminfo", "net/dev"):
        (proc / missing).unlink()
    found = {each.instrument for each in System(no_limits).read()}
    assert conventions.SYSTEM_CPU_TIME in found
    assert conventions.SYSTEM_PAGING_USAGE not in found or conventions.SYSTEM_MEMORY_LIMIT not in found


def test_what_is_seen_of_a_process_is_what_psutil_says(proc: Path):
    """To the digit."""
    (proc / str(os.getpid()) / "statm").write_text("5000 1234 500 1 0 600 0\n")
    (proc / str(os.getpid()) / "fd" / "7").touch()
    seen, known = values(Processes().read(Process.current())), psutil.Process()
    assert seen[conventions.PROCESS_MEMORY_USAGE,] == known.memory_info().rss == 1234 * PAGE_BYTES
    assert seen[conventions.PROCESS_MEMORY_VIRTUAL,] == known.memory_info().vms == 5000 * PAGE_BYTES
    assert seen[conventions.PROCESS_CPU_TIME, "user"] == known.cpu_times().user
    assert seen[conventions.PROCESS_CPU_TIME, "system"] == known.cpu_times().system
    assert seen[conventions.PROCESS_THREAD_COUNT,] == known.num_threads()
    assert seen[conventions.PROCESS_FILE_COUNT,] == known.num_fds() == 1
    assert seen[conventions.PROCESS_CONTEXT_SWITCHES, "voluntary"] == known.num_ctx_switches().voluntary
    assert seen[conventions.PROCESS_DISK_IO, "write"] == known.io_counters().write_bytes


def test_the_share_of_a_process_is_of_all_processors_that_it_may_use():
    """Half of the time of two is all of one."""
    processes, own = Processes(), Process.current()
    began_s, before, first_s = time.monotonic(), values(processes.read(own, 2.0)), time.monotonic()
    busy_until_s = time.process_time() + 0.1
    wait_until(lambda: sum(range(100_000)) and time.process_time() > busy_until_s, 60)
    last_s, after, ended_s = time.monotonic(), values(processes.read(own, 2.0)), time.monotonic()
    assert (conventions.PROCESS_CPU_UTILIZATION, "user") not in before
    spent_s = after[conventions.PROCESS_CPU_TIME, "user"] - before[conventions.PROCESS_CPU_TIME, "user"]
    share = after[conventions.PROCESS_CPU_UTILIZATION, "user"]
    assert spent_s / (ended_s - began_s) <= share * 2 <= spent_s / (last_s - first_s)


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


def machine_series(whole: dict[str, Any]) -> dict[str, list[float]]:
    """Return what a view shows of the machine, by key."""
    return {each["key"]: each["last"] for each in whole["series"] if each["kind"] == "machine"}


def test_the_page_shows_how_fast_sums_grow():
    """Of the rank as of the node, live as from files; one reading alone says nothing of that."""
    view, run = RunView("run"), make_run()
    feed = RecordFeed(view, run)
    sent = (conventions.NETWORK_DIRECTION, "transmit")
    items: list[tuple[RankRun, Point]] = []
    for second, (memory, total) in enumerate([(10, 1000), (30, 1500), (20, 3500)]):
        time_unix_ns = STARTED_NS + 2 * second * S
        seen = Observation(conventions.PROCESS_MEMORY_USAGE, memory), Observation(conventions.PROCESS_DISK_IO, total)
        feed.feed([StepEnded(second + 1, time_unix_ns, MS), Observed(time_unix_ns, seen)])
        feed.settle()
        point = Point(conventions.SYSTEM_NETWORK_IO, (sent,), time_unix_ns, total)
        items.append((run.of_agent(), point))
        view.add_reports([point])
    expected = {
        "process.memory.usage": [10.0, 30.0, 20.0],
        "process.disk.io per second": [250.0, 1000.0],
        "system.network.io per second network.io.direction=transmit": [250.0, 1000.0],
    }
    assert machine_series(view.to_dict()) == expected
    stored = OtlpFeed()
    for item in items:
        stored.feed(metrics_json([item]))
    assert list(machine_series(stored.views["run"].to_dict()).values()) == [[1000.0]]


def test_a_look_at_the_machine_is_no_sign_of_the_rank():
    """A rank that hangs has not been seen, though its memory has."""
    view, run = RunView("run"), make_run()
    feed = RecordFeed(view, run)
    feed.feed([StepEnded(1, STARTED_NS, S), Observed(STARTED_NS + 60 * S, (MEMORY,))])
    feed.settle()
    assert view.to_dict()["ranks"][0]["seen"] - STARTED_NS / 1e9 == pytest.approx(1.0, abs=0.01)


MEMORY = Observation(conventions.PROCESS_MEMORY_USAGE, 1)


def test_processes_below_a_rank_are_counted_with_their_memory():
    """Also those of another thread, and below another; a process without any has no such values."""
    assert list(observe_children(os.getpid())) == []
    wait = "import sys; sys.stdin.read()"
    parent = (
        f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {wait!r}]); print(); child.wait()"
    )
    started: list[subprocess.Popen[str]] = []

    def start() -> None:
        command = [sys.executable, "-uc", parent]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert started[0].stdout
        assert started[0].stdout.readline() == "\n"
        found.update({each.instrument: each.value for each in observe_children(os.getpid())})

    found: dict[names.Instrument, float] = {}
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    below = psutil.Process(started[0].pid)
    least = below.memory_info().rss / 2
    started[0].communicate("")
    assert found[names.MACHINE_CHILDREN] == 2
    assert least < found[names.MACHINE_CHILDREN_MEMORY] < 20 * least
