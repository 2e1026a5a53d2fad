"""Who counts as alive: only what the kernel says, and the living whenever it says nothing."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from disks import no_descriptors
from programs import wait_until
from recorder import ELSEWHERE, make_run

from periflow_otel.journal.life import WRITER_LOCK, WriterLock, is_written
from periflow_otel.journal.writer import JournalWriter
from periflow_otel.processes import Process

WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from recorder import ELSEWHERE, make_run
from periflow_otel.journal.writer import JournalWriter
writer = JournalWriter(Path(sys.argv[1]), make_run())
print("open", flush=True)
input()
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that writes a journal and waits."""
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


def test_a_writer_in_another_container_is_alive_until_it_is_killed(writer: subprocess.Popen[str], tmp_path: Path):
    """Its lock says so, also while it is stopped; the kernel lets go of it with the process."""
    assert is_written(tmp_path, ELSEWHERE)
    writer.send_signal(signal.SIGSTOP)
    assert is_written(tmp_path, ELSEWHERE)
    writer.kill()
    writer.wait()
    assert not is_written(tmp_path, ELSEWHERE)


def test_a_writer_on_another_machine_is_alive_while_it_has_its_lock(tmp_path: Path):
    """Two machines of the same name may share a disk."""
    lock = WriterLock(tmp_path)
    assert is_written(tmp_path, Process(1, 1, "another boot", 1))
    lock.release()
    assert not is_written(tmp_path, Process(1, 1, "another boot", 1))


def test_who_asks_in_the_same_process_takes_no_lock_away(tmp_path: Path):
    """An agent in a thread may ask as often as it likes, and any number at once."""
    writer = JournalWriter(tmp_path, make_run())
    assert [is_written(tmp_path, ELSEWHERE) for _ in range(3)] == [True] * 3
    writer.close()
    assert is_written(tmp_path, ELSEWHERE), "the process outlives its run"
    del writer
    gc.collect()
    assert not is_written(tmp_path, ELSEWHERE)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of forking beside threads
def test_a_forked_child_does_not_keep_its_parent_alive(tmp_path: Path):
    """A data loader that outlives its killed parent has let go of the lock; while the parent lives, it stays locked."""
    outer, inner = multiprocessing.Pipe()
    parent = os.fork()
    if not parent:
        writer = JournalWriter(tmp_path, make_run())
        if not os.fork():
            inner.send(is_written(tmp_path, ELSEWHERE))
            inner.recv()
            os._exit(0)
        signal.pause()
        os._exit(bool(writer))
    assert outer.recv() is True
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    has_lock = is_written(tmp_path, ELSEWHERE)
    outer.send(None)  # the data loader may go
    assert not has_lock


def test_a_child_that_a_library_forked_does_not_either(tmp_path: Path):
    """It runs no handler of Python's and keeps the lock, but the writer is seen to be gone."""
    lock = WriterLock(tmp_path)
    dead = msgspec.structs.replace(Process.current(), start=Process.current().start - 1)
    assert not is_written(tmp_path, dead)
    lock.release()


def test_a_program_that_is_started_does_not_inherit_the_lock(tmp_path: Path):
    """A helper that outlives training keeps nothing."""
    lock = WriterLock(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False) as child:
        lock.release()
        wait_until(lambda: not is_written(tmp_path, ELSEWHERE), 5)
        child.kill()


def test_without_a_lock_what_is_not_known_to_be_dead_is_alive(tmp_path: Path):
    """Somebody deleted it, say: the process id still tells, where it means anything."""
    assert is_written(tmp_path, Process.current())
    assert is_written(tmp_path, ELSEWHERE)
    assert not is_written(tmp_path, Process(1, 1, "another boot", 1))


def test_who_can_open_nothing_takes_nobody_for_dead(tmp_path: Path):
    """No descriptor is free for a moment: that says nothing about the writer."""
    WriterLock(tmp_path).release()
    with no_descriptors():
        assert is_written(tmp_path, Process(1, 1, "another boot", 1))
    assert not is_written(tmp_path, Process(1, 1, "another boot", 1))


def test_something_else_in_the_place_of_the_lock_blocks_nobody(tmp_path: Path):
    """A pipe is not waited for, and says nothing."""
    os.mkfifo(tmp_path / WRITER_LOCK)
    assert is_written(tmp_path, ELSEWHERE)


def test_the_lock_is_found_locked_or_not_at_all(tmp_path: Path):
    """There is no moment at which a writer that begins looks dead."""
    (tmp_path / WRITER_LOCK).with_suffix(".new").write_text("left behind by one that was killed")
    lock = WriterLock(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [WRITER_LOCK]
    lock.release()


def test_a_lock_is_no_standard_stream(tmp_path: Path):
    """Where a script has closed one, its number is left to whoever opens it anew."""
    before = os.dup(0)
    os.close(0)
    try:
        lock = WriterLock(tmp_path)
    finally:
        os.dup2(before, 0)
        os.close(before)
    assert lock._file.descriptor > 2
    lock.release()
