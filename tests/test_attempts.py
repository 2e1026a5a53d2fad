"""Which attempt a rank joins: what is known of the ranks that came before decides, and they agree at once."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from disks import no_descriptors

from periflow_otel.journal.attempts import (
    Made,
    Membership,
    Wish,
    earlier_parts,
    has_attempts,
    join,
    join_agreed,
    new_seed,
)
from periflow_otel.journal.folders import ATTEMPTS
from periflow_otel.processes import Process


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """Return the folder of a run on this node."""
    (tmp_path / "run" / "node").mkdir(parents=True)
    return tmp_path / "run" / "node"


def wish(
    rank: int = 0,
    *,
    ranks: int = 2,
    restarts: int | None = None,
    meeting_point: str | None = None,
    attempt: int | None = None,
    is_named: bool = False,
) -> Wish:
    """Return what a rank knows before it looks."""
    return Wish(rank, Made(new_seed(), ranks, restarts, meeting_point), attempt, is_named)


def finish(node: Path, rank: int = 0, **known: int) -> int:
    """Take part and finish; return the attempt."""
    return _end(join(node, wish(rank, **known)), None)  # type: ignore[arg-type]


def fail(node: Path, rank: int = 0, **known: int) -> int:
    """Take part and fail; return the attempt."""
    return _end(join(node, wish(rank, **known)), "ValueError")  # type: ignore[arg-type]


def _end(membership: Membership | None, error: str | None) -> int:
    assert membership is not None
    membership.leave(error)
    return membership.number


def kill(node: Path, rank: int = 0) -> None:
    """Take part in a process that is killed."""
    code = (
        "import os, sys; from pathlib import Path; from periflow_otel.journal.attempts import Made, Wish, join\n"
        "part = join(Path(sys.argv[1]), Wish(int(sys.argv[2]), Made('killed', 2, None))); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(node), str(rank)], check=False).returncode == 9


def joined(membership: Membership | None) -> Membership:
    """Return a membership that there must be."""
    assert membership is not None
    return membership


def test_ranks_join_the_one_that_lives(node: Path):
    """They have its attempt and its seed."""
    first = joined(join(node, wish(0)))
    other = joined(join(node, wish(1)))
    assert (first.number, first.seed) == (other.number, other.seed) == (1, first.seed)


def test_ranks_that_come_one_after_the_other_are_in_one_attempt(node: Path):
    """The first has finished before the second comes: that is no restart."""
    assert [finish(node, 0), finish(node, 1)] == [1, 1]


def test_a_restart_is_the_next_attempt_for_all(node: Path):
    """Also for the rank that had died before it took part, whoever comes first."""
    kill(node, 0)
    late = joined(join(node, wish(1)))
    again = joined(join(node, wish(0)))
    assert (late.number, again.number) == (2, 2)
    assert late.seed == again.seed != "killed"


@pytest.mark.parametrize("end", [fail, kill])
def test_a_run_that_has_not_finished_goes_on(node: Path, end: Callable[[Path], object]):
    """As its next attempt."""
    end(node)
    assert finish(node) == 2


def put_pipe(path: Path) -> None:
    """Put a pipe, whose reader would wait."""
    path.unlink()
    os.mkfifo(path)


def empty(path: Path) -> None:
    """Leave nothing of a file, as a machine may that lost its power."""
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [put_pipe, empty])
@pytest.mark.parametrize("name", ["made", "r00000"])
def test_an_attempt_that_cannot_be_read_is_over(node: Path, damage: Callable[[Path], None], name: str):
    """Whoever comes makes the next one, and waits for nobody."""
    finish(node)
    damage(node.parent / ATTEMPTS / "001" / name)
    assert finish(node) == 2


def test_a_run_that_has_finished_does_not_go_on(node: Path):
    """What comes now in the same place is another run."""
    finish(node)
    assert join(node, wish()) is None


def test_a_run_that_the_user_names_goes_on_though_it_has_finished(node: Path):
    """More of the same training."""
    finish(node)
    assert joined(join(node, wish(is_named=True))).number == 2


def test_two_processes_that_are_the_same_rank_are_two_runs(node: Path):
    """The first one lives; under a name of the user's the second is another attempt."""
    first = joined(join(node, wish()))
    assert join(node, wish()) is None
    assert joined(join(node, wish(is_named=True))).number == first.number + 1


def test_a_rank_that_is_ahead_begins_the_next_run(node: Path):
    """It has finished, and the others are not as far yet."""
    slow = joined(join(node, wish(1)))
    finish(node, 0)
    assert join(node, wish(0)) is None
    slow.leave(None)


def test_one_lost_rank_keeps_the_run_from_being_finished(node: Path):
    """All begin again, those too that had come to the end."""
    kill(node, 1)
    again = joined(join_agreed(node, Wish(0, Made("killed", 2, None), 1)))
    again.leave(None)
    assert finish(node, 0) == 2


def test_a_restart_that_the_launcher_counts_is_believed(node: Path):
    """Ranks on other nodes may have failed, of which nothing is seen here."""
    finish(node, restarts=0)
    assert finish(node, restarts=1) == 2
    assert finish(node, 1, restarts=1) == 2


def test_a_launcher_that_counts_anew_is_another_run(node: Path):
    """It was started again in the place of one that has finished; its restarts belong to the run that came after."""
    finish(node, restarts=0)
    assert join(node, wish(restarts=0)) is None
    assert join(node, wish(restarts=1), has_successor=True) is None


@pytest.mark.parametrize("other", [{"ranks": 3}, {"restarts": 1}, {"meeting_point": "host:2"}])
def test_another_world_is_another_attempt(node: Path, other: dict[str, int]):
    """Ranks of one attempt have as many others, as many restarts and one place to meet."""
    known = {"ranks": 2, "restarts": 0, "meeting_point": "host:1"}
    first = joined(join(node, wish(0, **known)))  # type: ignore[arg-type]
    assert joined(join(node, wish(1, **known | other))).number == 2  # type: ignore[arg-type]
    first.leave(None)


def test_a_number_that_the_user_gives_is_the_attempt(node: Path):
    """Whatever was before, unless the rank has been in it."""
    parts = [joined(join(node, wish(rank, attempt=7))) for rank in (0, 1)]
    assert [each.number for each in parts] == [7, 7]
    assert joined(join(node, wish(0, attempt=7, is_named=True))).number == 8
    assert joined(join(node, wish(0, attempt=3))).number == 3


def test_attempts_that_only_the_ledger_knows_count(node: Path):
    """The files that tell who took part are gone."""
    assert joined(join(node, wish(), known=4)).number == 5


def test_what_was_agreed_on_holds_although_its_number_is_taken(node: Path):
    """Where this node knows another attempt by that number, its folder has a later one."""
    finish(node, 0)
    parts = [joined(join_agreed(node, Wish(rank, Made("agreed", 2, None), 1))) for rank in (0, 1)]
    assert [(each.number, each.seed) for each in parts] == [(2, "agreed")] * 2


def test_a_rank_of_another_machine_counts_as_alive_until_it_says_otherwise(node: Path):
    """Nobody here can see its lock."""
    first = joined(join(node, wish(0)))
    path = node.parent / ATTEMPTS / "001" / "r00000"
    elsewhere = msgspec.structs.replace(Process.current(), boot_id="another")
    first.release()
    path.write_bytes(msgspec.json.encode({"process": elsewhere, "node": "other"}) + b"\n")
    assert joined(join(node, wish(1))).number == 1
    assert list(earlier_parts(node.parent, 0)) == [(1, node.parent / "other")]


@pytest.mark.parametrize("is_locked", [True, False])
def test_of_a_rank_in_another_container_its_lock_says_whether_it_lives(node: Path, *, is_locked: bool):
    """Its process cannot be seen."""
    first = joined(join(node, wish(0)))
    path = node.parent / ATTEMPTS / "001" / "r00000"
    elsewhere = msgspec.structs.replace(Process.current(), pid_namespace=1)
    path.write_bytes(msgspec.json.encode({"process": elsewhere, "node": "node"}) + b"\n")
    if not is_locked:
        first.release()
    assert joined(join(node, wish(1))).number == (1 if is_locked else 2)
    first.release()


def test_an_attempt_that_is_being_made_is_joined(node: Path):
    """Its folder is there, and nothing in it yet."""
    (node.parent / ATTEMPTS / "001").mkdir(parents=True)
    assert joined(join(node, wish())).number == 1


def test_a_child_does_not_keep_its_parents_lock(node: Path):
    """Where the process cannot be seen, in another container, the lock alone says who lives."""
    part = joined(join(node, wish()))
    context = multiprocessing.get_context("fork")
    lines = context.SimpleQueue()
    child = context.Process(target=lambda: lines.put(_open_parts()))
    child.start()
    child.join()
    assert (lines.get(), _open_parts()) == (0, 1)
    part.leave(None)


def _open_parts() -> int:
    """Count the descriptors of this process that are of files of attempts."""
    targets = [os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()]
    return sum(ATTEMPTS in each for each in targets)


AT_ONCE = """
import sys
from collections.abc import Callable
from pathlib import Path
from periflow_otel.journal.attempts import Made, Wish, join, new_seed
rank = int(sys.argv[2])
sys.stdout.write("ready"); sys.stdout.flush()
sys.stdin.readline()
part = join(Path(sys.argv[1]), Wish(rank, Made(new_seed(), 8, None)))
print("", part and (part.number, part.seed)); sys.stdout.flush()
sys.stdin.readline()
"""


def test_ranks_that_come_at_once_agree(node: Path):
    """Eight processes find one seed, and eight more that are the same ranks are refused."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([sys.executable, "-c", AT_ONCE, str(node), str(rank)], **pipes)  # type: ignore[call-overload]
        for rank in [*range(8), *range(8)]
    ]
    assert {process.stdout.read(5) for process in processes} == {"ready"}
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.stdout.readline().strip() for process in processes]
    for process in processes:
        process.communicate("\n")
    assert answers.count("None") == 8
    assert len(set(answers)) == 2


def test_a_run_without_files_has_no_attempts(node: Path):
    """Nor has one without a folder."""
    assert not has_attempts(node.parent)
    assert list(earlier_parts(node.parent, 0)) == []
    finish(node)
    assert has_attempts(node.parent)


def test_a_place_that_cannot_be_used_is_refused(node: Path):
    """Who asks goes on alone."""
    (node.parent / ATTEMPTS).write_text("in the way")
    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        join(node, wish())


def test_a_rank_is_not_alive_for_lack_of_descriptors(node: Path):
    """Too many files are open: it says so."""
    with no_descriptors(), pytest.raises(OSError, match="Too many open files"):
        join(node, wish())
