"""Where things are: names that no run id can escape, folders for one user, and journals for one process."""

import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from privileges import UNPRIVILEGED

from periflow_otel.journal.folders import (
    LEDGER,
    attempts,
    claim_journal,
    journal_folder,
    journal_folders,
    make_private,
    node_folder,
    node_folders,
    run_folder,
)

any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=300)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Create files with the rights that a mask leaves."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    """Return the access rights of a file."""
    return stat.S_IMODE(path.lstat().st_mode)


@given(any_text)
def test_a_run_has_a_folder_whatever_its_id(tmp_path_factory: pytest.TempPathFactory, run_id: str):
    """The folder is one that can be made, right below the state directory."""
    base = tmp_path_factory.getbasetemp()
    folder = run_folder(base, run_id)
    assert folder.parent == base
    assert folder.resolve() == base.resolve() / folder.name
    folder.mkdir(exist_ok=True)


@given(any_text, any_text)
def test_different_runs_have_different_folders(one: str, other: str):
    """No two ids share a folder."""
    assert (run_folder(Path("/state"), one) == run_folder(Path("/state"), other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [(".", "%2E."), ("..", "%2E.."), ("", "%2E"), ("a/b", "a%2Fb"), ("x" * 300, "x" * 301), ("é" * 200, "é" * 201)],
)
def test_ids_that_look_alike_have_different_folders(one: str, other: str):
    """Spelling an id as another's folder is named does not lead there; nor does a long common beginning."""
    assert run_folder(Path("/state"), one) != run_folder(Path("/state"), other)


def test_a_usual_id_is_its_own_folder():
    """People find a run by its id."""
    assert run_folder(Path("/state"), "bert large_2.1-a") == Path("/state/bert large_2.1-a")


def test_nodes_of_one_run_have_different_folders(tmp_path: Path):
    """The folder of this node bears its name, and is found again, the one left alone longest first."""
    assert node_folder(tmp_path / "run").name == socket.gethostname()
    for age, name in enumerate(["new", "old", "oldest"]):
        node_folder(tmp_path / name).mkdir(parents=True)
        os.utime(node_folder(tmp_path / name), (1e9 - age, 1e9 - age))
    (tmp_path / "of another node" / "elsewhere").mkdir(parents=True)
    (tmp_path / "file").touch()
    assert node_folders(tmp_path) == [node_folder(tmp_path / name) for name in ("oldest", "old", "new")]


def test_a_folder_that_cannot_be_looked_at_comes_first(tmp_path: Path):
    """Nobody can tell its age; one of somebody else is none of ours."""
    for name in ("open", "closed", "theirs"):
        node_folder(tmp_path / name).mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    if os.geteuid() == 0:
        os.chown(tmp_path / "theirs", 65534, 65534)
        (tmp_path / "theirs").chmod(0o700)
    else:
        shutil.rmtree(tmp_path / "theirs")
    code = (
        "import sys; from pathlib import Path; from periflow_otel.journal.folders import node_folders\n"
        "print(*(each.parent.name for each in node_folders(Path(sys.argv[1]))))"
    )
    command = [*UNPRIVILEGED, sys.executable, "-c", code, tmp_path]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "closed open\n"


def test_journals_are_found_the_oldest_attempt_first(tmp_path: Path):
    """The order is that of numbers, also beyond 999, and other things in the folder are no journals."""
    for attempt, rank in [(1000, 0), (999, 1), (2, 123_456), (2, 3)]:
        journal_folder(tmp_path, attempt, rank).mkdir()
    for name in ("ledger", "control", "a001", "xa001-r00001", "a001-r00001x", "a-r"):
        (tmp_path / name).mkdir()
    found = [path.name for path in journal_folders(tmp_path)]
    assert found == ["a002-r00003", "a002-r123456", "a999-r00001", "a1000-r00000"]


def test_a_run_without_a_folder_has_no_journals(tmp_path: Path):
    """Nothing there is no error."""
    assert list(journal_folders(tmp_path / "missing")) == []
    assert list(attempts(tmp_path / "missing", 0)) == []
    assert node_folders(tmp_path / "missing") == []


def test_attempts_are_those_of_the_rank_on_all_nodes(tmp_path: Path):
    """Attempts of other ranks do not count; those that are over, and only in a ledger, do."""
    one, other = tmp_path / "one", tmp_path / "other"
    journal_folder(one, 2, 0).mkdir(parents=True)
    journal_folder(one, 5, 1).mkdir()
    journal_folder(other / LEDGER, 3, 0).mkdir(parents=True)
    assert [sorted(attempts(tmp_path, rank)) for rank in (0, 1, 2)] == [[(2, one), (3, other)], [(5, one)], []]


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """Return the folder of a run on this node."""
    (tmp_path / "run" / "node").mkdir(parents=True)
    return tmp_path / "run" / "node"


def test_the_first_claim_is_the_first_attempt(node: Path):
    """A rank that was never there begins with attempt 1, in a folder that only its owner may enter."""
    with umask(0):
        assert claim_journal(node, 7) == (1, node / "a001-r00007")
    assert mode(node / "a001-r00007") == 0o700


def test_each_claim_is_one_more_than_the_last(node: Path):
    """Without a number from the launcher, attempts count up, also over those that are over."""
    journal_folder(node / LEDGER, 3, 0).mkdir(parents=True)
    assert [claim_journal(node, 0)[0] for _ in range(3)] == [4, 5, 6]
    assert claim_journal(node, 1)[0] == 1


def test_a_claim_begins_at_the_number_of_the_launcher(node: Path):
    """The launcher's count of restarts is believed where that attempt is free, though others are later."""
    assert claim_journal(node, 0, 5)[0] == 5
    assert claim_journal(node, 0, 3)[0] == 3


def test_an_attempt_that_is_taken_is_passed_over(node: Path):
    """A launcher that begins to count anew meets journals and lines in the ledger; neither is touched."""
    journal_folder(node, 1, 0).mkdir()
    (node / LEDGER).mkdir()
    journal_folder(node / LEDGER, 2, 0).touch()
    journal_folder(node, 3, 0).touch()
    journal_folder(node, 4, 1).mkdir()
    assert claim_journal(node, 0, 1) == (4, node / "a004-r00000")


def test_a_claim_where_nothing_can_be_made_is_refused(node: Path):
    """Without the folder of the run there is no journal."""
    with pytest.raises(FileNotFoundError):
        claim_journal(node / "missing", 0)
    (node / "file").touch()
    with pytest.raises(NotADirectoryError):
        claim_journal(node / "file", 0, 1)


CLAIM = """
import sys
from pathlib import Path
from periflow_otel.journal.folders import claim_journal
sys.stdout.write("ready")
sys.stdout.flush()
sys.stdin.read()
attempt = None if sys.argv[2] == "-" else int(sys.argv[2])
print([claim_journal(Path(sys.argv[1]), 0, attempt)[0] for _ in range(20)])
"""


@pytest.mark.parametrize("attempt", ["-", "1"])
def test_processes_that_claim_at_once_get_different_journals(node: Path, attempt: str):
    """Eight processes of the same rank never share a journal, and no number is left out."""
    command = [sys.executable, "-c", CLAIM, str(node), attempt]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(8)]  # type: ignore[call-overload]
    for process in processes:
        assert process.stdout.read(5) == "ready"
    for process in processes:
        process.stdin.close()
    claimed = [eval(process.stdout.read()) for process in processes]  # noqa: S307  # a list of our own
    for process in processes:
        process.stdout.close()
        assert process.wait() == 0
    assert sorted(number for numbers in claimed for number in numbers) == list(range(1, 161))


def test_a_private_folder_is_for_one_user_with_all_above_it(tmp_path: Path):
    """Every folder that had to be made can be entered by its owner alone, whatever the umask."""
    with umask(0):
        make_private(tmp_path / "a" / "b" / "c")
    assert [mode(tmp_path / name) for name in ("a", "a/b", "a/b/c")] == [0o700] * 3


def test_an_open_folder_is_made_private_and_those_above_it_stay(tmp_path: Path):
    """Rights that others have are taken from the folder itself, not from what holds it."""
    (tmp_path / "shared" / "mine").mkdir(parents=True)
    (tmp_path / "shared").chmod(0o755)
    (tmp_path / "shared" / "mine").chmod(0o777)
    make_private(tmp_path / "shared" / "mine")
    assert mode(tmp_path / "shared" / "mine") == 0o700
    assert mode(tmp_path / "shared") == 0o755


def test_a_link_to_a_folder_is_refused(tmp_path: Path):
    """Nobody can lead a journal elsewhere, not even to a folder of the same user."""
    (tmp_path / "target").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(PermissionError, match=r"link is not a folder of this user"):
        make_private(tmp_path / "link")
    assert mode(tmp_path / "target") == 0o755


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path):
    """What is no folder cannot be made private."""
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_private(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make folders of somebody else")
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path):
    """A folder that another user has put there, however inviting, is not used."""
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 65534, 65534)
    with pytest.raises(PermissionError, match="theirs is not a folder of this user"):
        make_private(tmp_path / "theirs")
