"""Processes that live, die, are not buried, and whose ids are used again."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from disks import no_descriptors

from periflow_otel import processes
from periflow_otel.processes import Lifeline, Process, boot_id, pid_namespace, process_start, wait_for_end

SILENT = (sys.executable, "-c", "input()")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that runs until it is killed."""
    with subprocess.Popen(SILENT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        yield process
        process.kill()


def started(pid: int) -> int:
    """Return the start of a process that runs."""
    start = process_start(pid)
    assert start is not None
    return start


def process_of(pid: int) -> Process:
    """Return a process that runs."""
    return Process(pid, started(pid), boot_id(), pid_namespace())


def test_a_running_process_is_alive(child: subprocess.Popen[bytes]):
    """A process that runs is found by its id and start."""
    assert process_of(child.pid).is_alive()


def test_this_process_is_alive():
    """A process recognises itself."""
    assert Process.current().is_alive()


def test_a_zombie_is_dead(child: subprocess.Popen[bytes]):
    """A process that was killed is dead before its parent has asked for its exit status."""
    process = process_of(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not process.is_alive()


def test_a_buried_process_is_dead(child: subprocess.Popen[bytes]):
    """A process whose exit status was taken has no start any more."""
    child.kill()
    child.wait()
    assert process_start(child.pid) is None


def test_another_process_with_the_same_id_is_not_the_one(child: subprocess.Popen[bytes]):
    """The same id with another start is another process."""
    assert Process(child.pid, started(child.pid) - 1, boot_id(), pid_namespace()).is_alive() is False


@pytest.mark.parametrize("change", [{"boot_id": "another"}, {"boot_id": "unknown"}, {"pid_namespace": 1}, {"start": 0}])
def test_nothing_is_said_of_a_process_that_cannot_be_seen(change: dict[str, Any]):
    """On another machine, in another container, or without what tells it from others, it may be alive or not."""
    assert msgspec.structs.replace(Process.current(), **change).is_alive() is None


def test_a_process_that_sees_another_containers_processes_knows_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A container may see the /proc of its machine, where its own id is that of somebody else."""
    process = Process.current()
    for entry in ("sys", "stat"):
        (tmp_path / entry).symlink_to(f"/proc/{entry}")
    (tmp_path / "self").symlink_to("1")
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    assert (process.is_alive(), Process.current().start) == (None, 0)


def test_nothing_is_said_while_no_file_can_be_opened():
    """Where no descriptor is free for a moment, nobody counts as dead, and this process names itself right later."""
    process = Process.current()
    processes._boot_id.cache_clear()
    with no_descriptors():
        assert (process.is_alive(), Process.current().start, boot_id()) == (None, 0, "unknown")
    assert process.is_alive()
    assert Process.current() == process


def test_a_lifeline_holds_as_long_as_the_process_runs(child: subprocess.Popen[bytes]):
    """It is cut before the parent has asked for the exit status."""
    lifeline = Lifeline(process_of(child.pid))
    assert lifeline.holds()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not lifeline.holds()


@pytest.mark.parametrize("change", [{"start": 1}, {"start": 0}, {"boot_id": "another"}, {"pid_namespace": 1}])
def test_a_lifeline_never_holds_another_process(change: dict[str, Any]):
    """The same id may be another process's, of this machine or container or of another."""
    assert not Lifeline(msgspec.structs.replace(Process.current(), **change)).holds()


def test_without_a_descriptor_there_is_no_lifeline():
    """Where none is free, or the kernel knows no such thing, the process has to be asked for."""
    process = Process.current()
    with no_descriptors():
        lifeline = Lifeline(process)
    assert not lifeline.holds()
    assert process.is_alive()


def test_a_lifeline_is_let_go_of(child: subprocess.Popen[bytes]):
    """It takes a descriptor no longer than somebody asks."""
    lifeline = Lifeline(process_of(child.pid))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # names suffice
    assert lifeline.holds()
    del lifeline
    assert len(os.listdir("/proc/self/fd")) == before - 1  # noqa: PTH208


@pytest.mark.parametrize("missing", ["", "pidfd_open"])
def test_the_end_of_a_process_is_waited_for(
    child: subprocess.Popen[bytes], missing: str, monkeypatch: pytest.MonkeyPatch
):
    """Until it has ended, and not for its parent to hear of it; also where the kernel has no descriptor for that."""
    monkeypatch.delattr(os, missing, raising=False)
    waiter = threading.Thread(target=wait_for_end, args=(child.pid,), daemon=True)
    waiter.start()
    waiter.join(0.2)
    assert waiter.is_alive()
    child.kill()
    waiter.join(60)
    assert not waiter.is_alive()


def test_the_end_of_a_process_that_is_gone_is_not_waited_for(child: subprocess.Popen[bytes]):
    """However the thread comes to ask so late."""
    child.kill()
    child.wait()
    wait_for_end(child.pid)


def test_a_younger_process_has_a_later_start(child: subprocess.Popen[bytes]):
    """Starts are ordered in time."""
    assert started(child.pid) >= started(os.getpid())


def test_a_program_with_brackets_in_its_name_is_found(tmp_path: Path):
    """The name of the program does not confuse the reading of its state."""
    program = tmp_path / "a) Z (b"
    program.symlink_to(sys.executable)
    with subprocess.Popen([program, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert process_of(process.pid).is_alive()
        process.kill()


def test_ps_tells_the_start_where_there_is_no_proc(child: subprocess.Popen[bytes]):
    """Systems without /proc have ps, which says the same of the same process each time."""
    start = processes._process_start_from_ps(child.pid)
    assert start is not None
    assert start == processes._process_start_from_ps(child.pid)


def test_ps_knows_a_zombie(child: subprocess.Popen[bytes]):
    """A zombie has no start, according to ps too."""
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes._process_start_from_ps(child.pid) is None


def test_ps_knows_no_process_that_never_was():
    """An id that no process has gives no start."""
    assert processes._process_start_from_ps(2**22 + 1) is None
