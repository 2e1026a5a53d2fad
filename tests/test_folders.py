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
    claim_journal,
    journal_folder,
    journal_folders,
    make_private,
    node_folder,
    node_folders,
    own_attempts,
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
    assert own_attempts(tmp_path / "missing", 0) == []
    assert node_folders(tmp_path / "missing") == []


def test_attempts_are_those_that_the_rank_left_something_of(tmp_path: Path):
    """Attempts of other ranks do not count; those that are over, and only in the ledger, do."""
    journal_folder(tmp_path, 2, 0).mkdir(parents=True)
    journal_folder(tmp_path, 5, 1).mkdir()
    journal_folder(tmp_path / LEDGER, 3, 0).mkdir(parents=True)
    assert [own_attempts(tmp_path, rank) for rank in (0, 1, 2)] == [[2, 3], [5], []]


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """Return the folder of a run on this node."""
    (tmp_path / "run" / "node").mkdir(parents=True)
    return tmp_path / "run" / "node"


def test_a_journal_is_in_the_folder_of_its_attempt_and_rank(node: Path):
    """One that only its owner may enter."""
    with umask(0):
        assert claim_journal(node, 3, 7) == node / "a003-r00007"
    assert mode(node / "a003-r00007") == 0o700


def test_a_folder_that_is_there_is_passed_over(node: Path):
    """Whatever it holds is not touched."""
    journal_folder(node, 1, 0).mkdir()
    journal_folder(node, 2, 0).touch()
    journal_folder(node, 3, 1).mkdir()
    assert claim_journal(node, 1, 0) == node / "a003-r00000"


def test_a_claim_where_nothing_can_be_made_is_refused(node: Path):
    """Without the folder of the run there is no journal."""
    with pytest.raises(FileNotFoundError):
        claim_journal(node / "missing", 1, 0)
    (node / "file").touch()
    with pytest.raises(NotADirectoryError):
        claim_journal(node / "file", 1, 0)


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
    with pytest.raises(PermissionError, match="not a folder of this user"):
        make_private(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make folders of somebody else")
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path):
    """A folder that another user has put there, however inviting, is not used."""
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 65534, 65534)
    with pytest.raises(PermissionError, match="theirs is not a folder of this user"):
        make_private(tmp_path / "theirs")
