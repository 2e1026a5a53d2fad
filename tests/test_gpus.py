"""What the agent sees of GPUs: the values that the driver's library gives, and the rank that uses each."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gpus import H100, FakeGpus, build, use
from programs import Collector, wait_until
from recorder import make_run
from training import Training, cloud

from periflow_otel import conventions, names
from periflow_otel.agent.machine import gpus as gpus_module
from periflow_otel.agent.machine.gpu_users import Gpu, visible_gpus
from periflow_otel.agent.machine.gpus import make_read_gpus
from periflow_otel.agent.machine.reading import Rank
from periflow_otel.processes import Process, process_start
from periflow_otel.translate.telemetry import Observation

pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the library."""
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def gpus(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGpus:
    """Return GPUs, none to begin with."""
    monkeypatch.setenv("NVML_STUB", str(tmp_path / "gpus"))
    return use(library, tmp_path / "gpus")


@pytest.fixture
def sleeper() -> Iterator[Any]:
    """Return what starts processes with further variables, which end with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**environ: str) -> Process:
        command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **environ})
        started.append(child)
        assert child.stdout is not None
        child.stdout.readline()  # for a moment after its start a process has no environment that others can see
        own = Process.current()
        return Process(child.pid, process_start(child.pid) or 0, own.boot_id, own.pid_namespace)

    yield start
    for each in started:
        each.communicate()


def rank(number: int, process: Process, local_rank: int | None = None) -> Rank:
    """Return a rank that is this process."""
    run = make_run(rank=number, local_rank=number if local_rank is None else local_rank, process=process)
    return Rank(Path(f"r{number}"), run)


def seen(*ranks: Rank) -> list[Observation]:
    """Return what a first reading sees."""
    return list(make_read_gpus()(ranks).of_node)


def values(observations: list[Observation], **wanted: object) -> dict[Any, Any]:
    """Return values by instrument, with what tells its streams apart, of those that have these attributes."""
    found = {}
    for each in observations:
        attributes = dict(each.attributes)
        if all(attributes.get(key.replace("_", ".")) == value for key, value in wanted.items()):
            told_apart = (attributes.get(key) for key in ("hw.state", "error.type"))
            kind = attributes["hw.type"] if each.instrument is conventions.HW_STATUS else None
            found[(each.instrument, *filter(None, (kind, *told_apart)))] = each.value
    return found


def users(observations: list[Observation]) -> dict[str, object]:
    """Return the rank that each GPU is used by, None for no single one."""
    memory = (dict(each.attributes) for each in observations if each.instrument is conventions.GPU_MEMORY_USAGE)
    return {str(each[conventions.HW_ID]): each.get(names.RANK) for each in memory}


def test_values_are_those_of_the_library(gpus: FakeGpus):
    """To the digit, in the units of the semantic conventions."""
    gpus.add(0, **H100)
    handle = (pynvml.nvmlInit(), pynvml.nvmlDeviceGetHandleByIndex(0))[1]
    found = values(seen(), hw_id="GPU-11111111-aaaa", hw_name="GPU 0", hw_model="NVIDIA H100 80GB HBM3")
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2)
    assert found[conventions.GPU_MEMORY_USAGE,] == memory.used == 1200000000
    assert found[conventions.GPU_MEMORY_LIMIT,] == memory.total == 85520809984
    assert found[conventions.GPU_MEMORY_UTILIZATION,] == memory.used / memory.total
    assert found[conventions.GPU_UTILIZATION,] == 0.87
    assert found[conventions.HW_POWER,] == pynvml.nvmlDeviceGetPowerUsage(handle) / 1000 == 512.345
    assert found[conventions.HW_ENERGY,] == 987654.321
    assert found[conventions.HW_TEMPERATURE,] == 61
    assert found[conventions.HW_ERRORS, "corrected"] == 3
    assert found[conventions.HW_ERRORS, "uncorrected"] == 0


@pytest.mark.parametrize("older", ["!13", "!25"], ids=["function not found", "version mismatch"])
def test_older_drivers_are_asked_for_memory_their_way(gpus: FakeGpus, older: str):
    """They count what they keep for themselves as used."""
    gpus.add(0, **H100 | {"reserved": older})
    assert values(seen())[conventions.GPU_MEMORY_USAGE,] == 1234567890


@pytest.mark.parametrize(
    ("reasons", "degraded"),
    [(0, set()), (4, set()), (0x20, {"temperature", "gpu"}), (0x40 | 8, {"temperature", "gpu"}),
     (0x80, {"power_supply", "gpu"}), (8, {"gpu"})],
)  # fmt: skip
def test_a_gpu_that_is_held_back_is_degraded(gpus: FakeGpus, reasons: int, degraded: set[str]):
    """By heat or by its supply; the usual limit of its power (4) is no fault."""
    gpus.add(0, **H100 | {"reasons": reasons})
    found = values(seen())
    for kind in ("temperature", "power_supply", "gpu"):
        assert found[conventions.HW_STATUS, kind, "degraded"] == (kind in degraded)
        assert found[conventions.HW_STATUS, kind, "ok"] == (kind not in degraded)


def test_a_gpu_that_is_lost_has_failed(gpus: FakeGpus):
    """It says nothing else any more."""
    gpus.add(0, uuid="GPU-1", **dict.fromkeys(("memory", "utilization", "power", "reasons"), "!15"))
    found = values(seen())
    assert found[conventions.HW_STATUS, "gpu", "failed"] == 1
    assert found[conventions.HW_STATUS, "gpu", "ok"] == 0
    assert conventions.GPU_MEMORY_USAGE not in {each for each, *_ in found}


def test_what_a_gpu_does_not_know_is_left_out(gpus: FakeGpus):
    """All else is there."""
    gpus.add(0, uuid="GPU-1", memory=100, used=25)
    assert set(values(seen())) == {
        (conventions.GPU_MEMORY_LIMIT,),
        (conventions.GPU_MEMORY_USAGE,),
        (conventions.GPU_MEMORY_UTILIZATION,),
    }


def test_errors_of_the_driver_are_counted_by_their_number(gpus: FakeGpus):
    """From reading to reading."""
    gpus.add(0, **H100)
    read = make_read_gpus()
    assert not [each for each in values(list(read(()).of_node)) if "xid" in str(each)]
    gpus.say(xids="79,48,79")
    found = values(list(read(()).of_node))
    assert found[conventions.HW_ERRORS, "xid_79"] == 2
    assert found[conventions.HW_ERRORS, "xid_48"] == 1


def test_the_driver_says_which_rank_uses_a_gpu(gpus: FakeGpus, sleeper: Any):
    """Whatever the variable says; what several use has no single one."""
    first, second = sleeper(CUDA_VISIBLE_DEVICES="1"), sleeper()
    gpus.add(0, uuid="GPU-a", memory=1, used=1, pids=f"1,{first.pid}")
    gpus.add(1, uuid="GPU-b", memory=1, used=1, pids=second.pid)
    gpus.add(2, uuid="GPU-c", memory=1, used=1)
    assert users(seen(rank(0, first), rank(1, second))) == {"GPU-a": 0, "GPU-b": 1, "GPU-c": None}
    gpus.add(1, pids=f"{second.pid},{first.pid}")
    assert users(seen(rank(0, first), rank(1, second)))["GPU-b"] is None


@pytest.mark.parametrize("visible", ["1", "GPU-bb", "1,0"])
def test_a_variable_says_which_gpu_a_rank_is_to_use(gpus: FakeGpus, sleeper: Any, visible: str):
    """As long as it computes on none, and where the driver does not tell, as in some containers."""
    for number, uuid in enumerate(("GPU-aaa", "GPU-bbb")):
        gpus.add(number, uuid=uuid, memory=1, used=1)
    assert users(seen(rank(4, sleeper(CUDA_VISIBLE_DEVICES=visible), 0))) == {"GPU-aaa": None, "GPU-bbb": 4}


def test_without_a_word_no_rank_is_guessed(gpus: FakeGpus, sleeper: Any):
    """It may train on the processor."""
    gpus.add(0, uuid="GPU-a", memory=1, used=1)
    assert users(seen(rank(0, sleeper()))) == {"GPU-a": None}


def test_a_rank_may_use_a_part_of_a_gpu(gpus: FakeGpus, sleeper: Any):
    """The memory is that of the MIG device; power and the like are of the whole, which is nobody's."""
    process = sleeper(CUDA_VISIBLE_DEVICES="MIG-2")
    gpus.add(0, **H100 | {"mig": 1, "parts": 7, "pids": process.pid})
    for part, uuid in enumerate(("MIG-1", "MIG-2")):
        gpus.add(0, part, uuid=uuid, memory=10, used=part + 5)
    found = seen(rank(3, process))
    assert users(found) == {H100["uuid"]: None, "MIG-1": None, "MIG-2": 3}
    part = values(found, hw_id="MIG-2", hw_parent=H100["uuid"], hw_name="GPU 0 MIG 1")
    assert part[conventions.GPU_MEMORY_USAGE,] == 6
    assert conventions.HW_POWER not in {each for each, *_ in part}


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("0", ["GPU-aa1"]), ("2,0", ["GPU-bb1", "GPU-aa1"]), ("1,9,0", ["GPU-aa2"]), ("-1", []), ("", []),
     ("GPU-aa2,0", ["GPU-aa2", "GPU-aa1"]), ("GPU-aa", []), ("MIG-m1", ["MIG-m1"]), ("NoDevFiles", [])],
)  # fmt: skip
def test_the_variable_is_read_as_cuda_reads_it(visible: str, expected: list[str]):
    """Numbers and beginnings of UUIDs, up to the first that names no GPU, or several."""
    all_gpus = [Gpu(uuid, number, "", frozenset()) for number, uuid in enumerate(("GPU-aa1", "GPU-aa2", "GPU-bb1"))]
    all_gpus.append(Gpu("MIG-m1", 2, "GPU-bb1", frozenset()))
    assert [gpu.uuid for gpu in visible_gpus(all_gpus, visible)] == expected


def test_a_machine_without_gpus_has_no_values(gpus: FakeGpus):
    """Neither where there is no GPU nor where there is no driver; nobody is warned of that."""
    assert seen() == []
    gpus.say(init="!9")
    assert seen() == []


def test_a_missing_binding_is_of_interest_where_there_is_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Elsewhere there would be nothing to see."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(gpus_module, "_DRIVER", tmp_path / "none")
    assert seen() == []
    monkeypatch.setattr(gpus_module, "_DRIVER", tmp_path)
    with pytest.raises(ImportError):
        make_read_gpus()


def test_the_agent_tells_of_gpus(library: Path, gpus: FakeGpus, collector: Collector):
    """Once for the node, with the rank."""
    gpus.add(0, **H100)
    environ = cloud(collector.http_endpoint, PERIFLOW_MACHINE_INTERVAL="0.1", PERIFLOW_RUN_ID="job")
    with Training(100_000, 0.01, LD_LIBRARY_PATH=str(library), **environ) as training:
        gpus.add(0, pids=training.process.pid)
        wait_until(lambda: [each for each in collector.points("hw.power") if names.RANK in each.attributes], 60)
        training.kill()
        training.wait_for_agent()
    last = collector.points("hw.power")[-1]
    assert (last.value, last.unit, last.kind) == (512.345, "W", "gauge")
    assert last.resource["service.instance.id"] == "job/agent-0"
    assert last.attributes == {
        "hw.id": H100["uuid"], "hw.name": "GPU 0", "hw.model": H100["name"], "hw.type": "gpu",
        names.RANK: 0, names.NODE_RANK: 0,
    }  # fmt: skip
