"""An emergency save is asked for from outside: all ranks of the node save, at the same step, and once."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from programs import Collector, wait_until
from recorder import make_run
from training import Training, agents, cloud, end

from periflow_otel.journal.control import ANY_STEP, Control
from periflow_otel.journal.emergency import LiveRun, live_ranks, live_runs, request_save, take_request_file
from periflow_otel.journal.folders import EMERGENCY_FILE, journal_folder, make_private, node_folder, run_folder
from periflow_otel.journal.writer import JournalWriter
from periflow_otel.processes import Process, boot_id, pid_namespace, process_start

Join = Callable[..., None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a run on this node."""
    folder = node_folder(run_folder(tmp_path / "state", "job"))
    make_private(folder)
    return folder


@pytest.fixture
def join(folder: Path) -> Iterator[Join]:
    """Return what lets a rank take part in the run, in a step, in this process or another."""
    writers = []

    def join(rank: int, step: int, *, pid: int = os.getpid(), attempt: int = 1, initial_step: int = 0) -> None:
        run = make_run(
            run_id="job", rank=rank, attempt=attempt, initial_step=initial_step,
            process=Process(pid, process_start(pid) or 0, boot_id(), pid_namespace()),
        )  # fmt: skip
        journal = journal_folder(folder, attempt, rank)
        journal.mkdir()
        writers.append(JournalWriter(journal, run, segment_bytes=4096))
        if step:
            writers[-1].begin_step(step, 1)

    yield join
    for writer in writers:
        writer.close()


def test_all_ranks_are_asked_at_one_step(folder: Path, join: Join):
    """Two after the foremost."""
    for rank, step in enumerate([7, 8, 7]):
        join(rank, step)
    asked = request_save(folder)
    assert (asked.ranks, asked.is_new) == (3, True)
    assert asked.request == Control(folder).last()
    assert (asked.request.step, asked.request.not_before) == (ANY_STEP, 10)


def test_ranks_that_are_about_to_save_are_not_asked_again(folder: Path, join: Join):
    """The request before is the one that counts."""
    join(0, 7)
    join(1, 7)
    first = request_save(folder)
    again = request_save(folder)
    assert (again.is_new, again.request) == (False, first.request)


def test_a_resumed_rank_before_its_first_step_is_where_it_resumes(folder: Path, join: Join):
    """Its journal knows of no step yet."""
    join(0, 0, initial_step=500)
    join(1, 501, initial_step=500)
    assert [rank.step for rank in live_ranks(folder)] == [500, 501]
    assert request_save(folder).request.not_before == 503


def test_ranks_that_are_gone_are_not_asked(folder: Path, join: Join):
    """Nor do they hold up the others."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        join(0, 1000, pid=process.pid)
        join(1, 7)
        assert len(live_ranks(folder)) == 2
    assert [(rank.run.rank, rank.step) for rank in live_ranks(folder)] == [(1, 7)]
    assert request_save(folder).ranks == 1


def test_an_attempt_that_goes_on_in_the_same_process_takes_the_place_of_the_one_before(folder: Path, join: Join):
    """A journal that is not delivered yet says nothing about now."""
    join(0, 1000, attempt=1)
    join(0, 3, attempt=2)
    assert [rank.step for rank in live_ranks(folder)] == [3]


@pytest.mark.parametrize(("steps", "earliest"), [([7], 8), ([7, 8], 10)])
def test_a_step_must_be_still_to_come_for_all_ranks(folder: Path, join: Join, steps: list[int], earliest: int):
    """Else some would save and others not; the message says which step would do."""
    for rank, step in enumerate(steps):
        join(rank, step)
    with pytest.raises(ValueError, match=f"^step {earliest - 1} is too early, .* give {earliest} or more$"):
        request_save(folder, earliest - 1)
    assert Control(folder).number() == 0
    assert request_save(folder, earliest).request.step == earliest


def test_runs_that_are_going_on_are_found(tmp_path: Path, folder: Path, join: Join):
    """Others are not: without a journal, or with a dead process."""
    make_private(node_folder(run_folder(tmp_path / "state", "empty")))
    assert list(live_runs(tmp_path / "state")) == []
    join(0, 1)
    join(1, 1)
    assert list(live_runs(tmp_path / "state")) == [LiveRun("job", folder)]
    assert list(live_runs(tmp_path / "other")) == []


# The file


def write_request(folder: Path, text: str) -> Path:
    """Put a request file into the folder of a run, a while ago."""
    file = folder / EMERGENCY_FILE
    file.write_text(text)
    os.utime(file, (1, 1))
    return file


@pytest.mark.parametrize(("text", "step"), [("", ANY_STEP), ("\n", ANY_STEP), ("50", 50), (" 50\n", 50)])
def test_a_file_asks_once(folder: Path, join: Join, text: str, step: int):
    """Then it is gone."""
    join(0, 7)
    file = write_request(folder, text)
    take_request_file(folder)
    take_request_file(folder)
    assert Control(folder).last()[:2] == (1, step)
    assert not file.exists()


@pytest.mark.parametrize("text", ["now", "5", "1.5", "\x00", "1 2"])
def test_a_file_that_asks_for_nothing_is_taken_away_with_a_word(
    folder: Path, join: Join, caplog: pytest.LogCaptureFixture, text: str
):
    """No number, or one of a step that has been."""
    join(0, 7)
    file = write_request(folder, text)
    take_request_file(folder)
    take_request_file(folder)
    (warning,) = caplog.messages
    assert warning.startswith(f"{file} asks for no emergency save: ")
    assert (Control(folder).number(), file.exists()) == (0, False)


def test_a_file_that_is_being_written_is_left_alone(folder: Path, join: Join):
    """It is empty for a moment, which must not mean "now"."""
    join(0, 7)
    with (folder / EMERGENCY_FILE).open("w") as file:
        take_request_file(folder)
        file.write("50")
    take_request_file(folder)
    assert Control(folder).last()[:2] == (1, 50)


# Real ranks

RANKS = 3
LOCKSTEP = """
import multiprocessing, os, sys, threading, time
import periflow_otel as pf

def train(rank, barrier):
    os.environ["RANK"] = str(rank)
    pf.init(10_000)
    os.write(1, b"pid %d\\n" % os.getpid())
    for step in range(1, 10_001):
        try:
            with pf.train_step():
                time.sleep(0.01)
                barrier.wait()  # as a collective does it
        except threading.BrokenBarrierError:
            break
        if pf.is_emergency_save():
            pf.upload_checkpoint()
            os.write(1, b"saved %d\\n" % step)
        if os.path.exists("enough"):
            barrier.abort()  # the others need not have seen it
            break

fork = multiprocessing.get_context("fork")
barrier = fork.Barrier(int(os.environ["WORLD_SIZE"]))
ranks = [fork.Process(target=train, args=(rank, barrier)) for rank in range(barrier.parties)]
for rank in ranks:
    rank.start()
for rank in ranks:
    rank.join()
"""


class Lockstep(Training):
    """Ranks that take every step together, until there is a file that says enough."""

    def __init__(self, collector: Collector, **environ: str) -> None:
        """Start them and wait until all have begun."""
        given = cloud(collector.http_endpoint, WORLD_SIZE=str(RANKS), PERIFLOW_RUN_ID="job", **environ)
        super().__init__(code=LOCKSTEP, **given)
        self.pids = [int(self.read_line().split()[1]) for _ in range(RANKS)]
        self.folder = node_folder(run_folder(self.state, "job"))
        wait_until(lambda: self.step() > 5, 30)

    def __exit__(self, *_: object) -> None:
        """End the ranks too, if they still run: they would keep their output open."""
        for pid in self.pids:
            end(pid)
        super().__exit__()

    def step(self) -> int:
        """Return the step of the foremost rank."""
        return max(rank.step for rank in live_ranks(self.folder))

    def wait_for_saves(self) -> set[int]:
        """Wait until every rank has saved; return at which steps."""
        return {int(self.read_line().split()[1]) for _ in range(RANKS)}

    def go_on_and_end(self) -> str:
        """Let some more steps go by, and end; return what was still said."""
        step = self.step()
        wait_until(lambda: self.step() > step + 10, 30)
        Path("enough").touch()
        self.wait()
        self.wait_for_agent()
        return self.output


def emergencies(collector: Collector) -> list[tuple[int, int, bool]]:
    """Return rank, step and whether the delay makes sense of every checkpoint, all of which are emergencies."""
    found = []
    for span in collector.spans():
        for name, _, attributes in span.events:
            if name == "periflow.checkpoint.upload":
                assert attributes["periflow.checkpoint.save_type"] == "EMERGENCY"
                delay_s = attributes["periflow.checkpoint.request_delay"]
                found.append((attributes["periflow.rank"], attributes["periflow.step.number"], 0 < delay_s < 10))
    return sorted(found)


def test_signals_ask_for_one_save_at_one_step(collector: Collector):
    """SIGUSR1 comes to one rank after the other, and to each twice; the receiver knows of one save of each."""
    with Lockstep(collector, PERIFLOW_EMERGENCY_SIGNALS="SIGUSR1") as ranks:
        asked_at = ranks.step()
        for pid in ranks.pids * 2:
            os.kill(pid, signal.SIGUSR1)
        (step,) = ranks.wait_for_saves()
        assert step == Control(ranks.folder).last().not_before
        assert asked_at < step
        assert ranks.go_on_and_end() == ""
    assert emergencies(collector) == [(rank, step, True) for rank in range(RANKS)]


def test_a_file_asks_all_ranks_and_a_second_one_too(collector: Collector):
    """The agent finds it; whoever wrote it needs nothing of ours."""
    with Lockstep(collector) as ranks:
        steps = []
        for _ in range(2):
            (ranks.folder / EMERGENCY_FILE).touch()
            (step,) = ranks.wait_for_saves()
            steps.append(step)
        target = ranks.step() + 100
        (ranks.folder / EMERGENCY_FILE).write_text(f"{target}\n")
        assert ranks.wait_for_saves() == {target}
        assert ranks.go_on_and_end() == ""
    assert emergencies(collector) == [(rank, step, True) for rank in range(RANKS) for step in [*steps, target]]


def test_the_warning_of_a_job_manager_does_not_end_the_agent(collector: Collector):
    """It goes to every process of the job, and the agent has work to do until the end."""
    with Lockstep(collector, PERIFLOW_EMERGENCY_SIGNALS="SIGUSR1") as ranks:
        wait_until(collector.spans, 30)  # the agent is at work
        (agent,) = agents(ranks.state)
        for pid in (agent, *ranks.pids):
            os.kill(pid, signal.SIGUSR1)
        os.kill(agent, signal.SIGUSR2)
        ranks.wait_for_saves()
        assert agents(ranks.state) == [agent]
        ranks.go_on_and_end()
    assert len(emergencies(collector)) == RANKS
