"""When it is said that ranks do not go on: a real rank that does as it is told, and a clock that is not waited for."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import wait_until
from typing_extensions import Self

from periflow_otel import names
from periflow_otel.agent.stragglers.progress import LONG_FACTOR
from periflow_otel.agent.stragglers.stuck import StuckWatch
from periflow_otel.agent.watch import RankJournal, find_journals
from periflow_otel.exporters import Item
from periflow_otel.journal.folders import node_folders
from periflow_otel.processes import is_held

USUAL_STEPS = 10
LOOK_S = 0.1
RANK = f"""
import sys, time
import periflow_otel as pf
run = pf.TrainingRun(int(sys.argv[1]), local_log_name="train.log")
def take(steps):
    for _ in range(steps):
        with run.train_step():
            time.sleep(0.001)
def hang():
    sys.stdin.readline()
def evaluate():
    sys.stdin.readline()
take({USUAL_STEPS})
while True:
    print("ready", flush=True)
    word = sys.stdin.readline().strip()
    if word == "take":
        take(1)
    elif not word:
        break
    else:
        run.start_step()
        print("open", flush=True)
        globals()[word]()
        run.end_step()
"""


class Rank:
    """A process that records steps, and stays in one when it is told to."""

    def __init__(self, total_steps: int) -> None:
        """Start it, and wait until it has taken its first steps."""
        environ = {**os.environ, "PERIFLOW_AGENT": "off"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", RANK, str(total_steps)],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._hear("ready")

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()

    def stay(self, where: str = "hang") -> None:
        """Begin a step, and stay in a function."""
        self._tell(where)
        self._hear("open")

    def go_on(self) -> None:
        """Leave that function, end the step, and take another."""
        for word in ("", "take"):
            self._tell(word)
            self._hear("ready")

    def _tell(self, word: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def _hear(self, word: str) -> None:
        assert self.process.stdout
        assert self.process.stdout.readline().strip() == word


class Watched:
    """A watch with a clock of its own, and what it has said."""

    def __init__(self) -> None:
        """Begin at the present state of the ranks in the current folder."""
        self.said: list[tuple[float, Item]] = []
        self.journals: dict[Path, RankJournal] = {}
        self.now_s = 1000.0
        self.watch = StuckWatch(1.0, self._note)
        self.look()

    def _note(self, items: list[Item]) -> None:
        self.said += [(self.now_s, item) for item in items]

    def look(self, seconds: float = 0.0) -> None:
        """Look as an agent does for a while; wait for answers alone, which takes real time."""
        until_s = self.now_s + seconds
        while True:
            [folder] = node_folders(Path(os.environ["PERIFLOW_STATE_DIR"]))
            self.journals = find_journals(folder, self.journals)
            for journal in self.journals.values():
                journal.look()
            self.watch.look(self.journals.values(), self.now_s)
            self._hear_out()
            if self.now_s >= until_s:
                return
            self.now_s += LOOK_S

    def _hear_out(self) -> None:
        end_s = time.monotonic() + 60
        while self.watch._inquiry is not None and time.monotonic() < end_s:
            time.sleep(0.002)  # a rank answers within a millisecond
            self.watch.look(self.journals.values(), self.now_s)

    def times_s(self) -> list[float]:
        """Return when something was said, in seconds from the beginning."""
        return [round(said_s - 1000.0, 1) for said_s, _ in self.said]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PERIFLOW_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rank() -> Iterator[Rank]:
    """Return a rank that has taken its usual steps."""
    with Rank(1000) as rank:
        yield rank


def test_what_stays_so_is_said_less_and_less_often(rank: Rank):
    """After a second, after two, four and eight; each with a span of its own."""
    rank.stay()
    watched = Watched()
    watched.look(10)
    after_s = watched.times_s()
    assert [round(each) for each in after_s] == [1, 2, 4, 8]
    assert len({item[1].span_id for _, item in watched.said}) == 4


def test_who_goes_on_is_looked_at_as_before(rank: Rank):
    """That it goes on is said, and the next time as soon as the first: what was said is no measure of what is usual."""
    watched = Watched()
    for _ in range(2):
        rank.stay()
        watched.said.clear()
        watched.look()
        began_s = watched.now_s
        watched.look(3)
        rank.go_on()
        watched.look()
        assert [round(said_s - began_s) for said_s, _ in watched.said] == [1, 2, 3]
        assert [item[1].attributes[names.STUCK_OVER] for _, item in watched.said] == [False, False, True]


def test_how_long_it_lasts_is_a_metric(rank: Rank):
    """By ranks and place, while it lasts and as nothing afterwards."""
    rank.stay()
    watched = Watched()
    watched.look(5)
    [journal] = watched.journals.values()
    [(_, during)] = watched.watch.report(journal.run)
    rank.go_on()
    watched.look()
    [(_, after)] = watched.watch.report(journal.run)
    assert (round(during.value), after.value) == (5, 0)
    assert dict(during.attributes)[names.STUCK_PLACE].endswith("(hang)")


def test_what_takes_long_by_nature_may_take_longer(rank: Rank):
    """An evaluation is not worth a word before half a minute."""
    rank.stay("evaluate")
    watched = Watched()
    watched.look(LONG_FACTOR - 1)
    assert watched.said == []
    watched.look(2 * LONG_FACTOR)
    assert watched.said != []


def test_who_is_stopped_is_given_its_time_anew(rank: Rank):
    """Somebody wants it so; it says nothing, and what it has not done meanwhile is not held against it."""
    rank.stay()
    watched = Watched()
    rank.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: is_held(rank.process.pid), 60, "it is stopped")
    watched.look(3.8)
    rank.process.send_signal(signal.SIGCONT)
    wait_until(lambda: not is_held(rank.process.pid), 60, "it goes on")
    watched.look(0.5)
    assert watched.said == []


def test_who_has_taken_all_its_steps_is_not_stuck():
    """It saves the model, or waits for others; the run comes to its end."""
    with Rank(USUAL_STEPS):
        watched = Watched()
        watched.look(5)
    assert watched.said == []


def test_nobody_asks_who_is_gone(rank: Rank):
    """That it was killed is told otherwise."""
    rank.stay()
    watched = Watched()
    rank.process.kill()
    rank.process.wait()
    wait_until(
        lambda: watched.look() or not any(each.is_alive for each in watched.journals.values()), 60, "it is missed"
    )
    watched.look(5)
    assert watched.said == []
