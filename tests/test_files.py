"""Files are read only where this user alone can have written them, and nothing that is there can block or flood."""

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import no_descriptors
from journals import SMALL, numbered, read_all
from recorder import make_run

from periflow_otel.journal.cursors import Cursor, CursorFile, load_cursor
from periflow_otel.journal.files import list_own, make_own, open_own, read_end, read_own
from periflow_otel.journal.folders import (
    journal_folder,
    journal_folders,
    left_alone,
    make_private,
    node_folder,
    node_folders,
    run_folder,
)
from periflow_otel.journal.reader import JournalReader, Position
from periflow_otel.journal.writer import JournalWriter

NOBODY = 65534

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to somebody else")


def link(path: Path) -> None:
    """Put a link to a file of this user."""
    path.with_name("target").write_bytes(b"content")
    path.symlink_to("target")


def listen(path: Path) -> None:
    """Put a socket."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def give_away(path: Path) -> None:
    """Put a file of somebody else that everybody may read."""
    path.write_bytes(b"content")
    os.chown(path, NOBODY, NOBODY)


def fill(path: Path) -> None:
    """Put a file that is too long, and takes no space."""
    path.touch()
    os.truncate(path, 1 << 40)


ODDITIES = [
    link,
    listen,
    os.mkfifo,
    Path.mkdir,
    fill,
    pytest.param(give_away, marks=only_root),
]


@pytest.mark.parametrize("put", ODDITIES)
def test_what_is_no_file_of_this_user_is_not_read(tmp_path: Path, put: Callable[[Path], object]):
    """Nor waited for, nor written to."""
    put(tmp_path / "file")
    assert read_own(tmp_path / "file", 100) is None
    if put is not fill:
        assert read_end(tmp_path / "file", 100) == b""
        with pytest.raises(OSError, match=r"own|symbolic|No such device|directory"):
            open_own(tmp_path / "file", os.O_RDWR)


@pytest.mark.parametrize("put", ODDITIES)
def test_what_is_no_file_of_this_user_makes_room(tmp_path: Path, put: Callable[[Path], object]):
    """It is moved aside as it is, for a file that must be there; a file of this user stays."""
    path = tmp_path / "file"
    put(path)
    before = path.lstat()
    os.close(make_own(path, os.O_RDWR))
    inodes = [each.lstat().st_ino for each in tmp_path.iterdir()]
    assert before.st_ino in inodes
    assert (path.lstat().st_ino == before.st_ino) is (put is fill)
    assert read_own(path, 100) == (None if put is fill else b"")


@pytest.mark.parametrize("mask", [0o777, 0o277, 0o000])
def test_what_is_made_can_be_used_whatever_the_umask_is(tmp_path: Path, mask: int):
    """By this user, and by nobody else."""
    before = os.umask(mask)
    try:
        leave(tmp_path / "state")
        os.close(make_own(tmp_path / "lock", os.O_RDWR))
    finally:
        os.umask(before)
    for path in (tmp_path / "state", tmp_path / "lock"):
        modes = {each: stat.S_IMODE(each.stat().st_mode) for each in (path, *path.rglob("*"))}
        assert modes == {each: 0o700 if each.is_dir() else 0o600 for each in modes}


def test_a_file_of_this_user_is_read(tmp_path: Path):
    """Up to the length that is given, and to the end."""
    (tmp_path / "file").write_bytes(b"content")
    assert read_own(tmp_path / "file", 7) == b"content"
    assert read_own(tmp_path / "file", 6) is None
    assert read_end(tmp_path / "file", 3) == b"ent"
    assert read_own(tmp_path / "missing", 7) is None


def test_a_file_that_cannot_be_opened_now_is_not_missing(tmp_path: Path):
    """Too many files are open: whoever asks must ask again."""
    CursorFile(tmp_path, "otlp").save(Cursor(Position(1, 2, 3)))
    with no_descriptors():
        for ask in (lambda: load_cursor(tmp_path, "otlp"), lambda: list(journal_folders(tmp_path))):
            with pytest.raises(OSError, match="Too many open files"):
                ask()
    assert load_cursor(tmp_path, "otlp").position.sequence == 3


def test_a_consumer_may_have_any_name(tmp_path: Path):
    """It comes from a setting, and is no path."""
    (tmp_path / "journal").mkdir()
    CursorFile(tmp_path / "journal", "../sdk./x.traces").save(Cursor(Position(1, 2, 3)))
    assert load_cursor(tmp_path / "journal", "../sdk./x.traces").position == Position(1, 2, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]


# Folders


def leave(state: Path, name: str = "run") -> Path:
    """Leave a journal of one record; return the folder of its run on this node."""
    folder = node_folder(run_folder(state, name))
    journal = journal_folder(folder, 1, 0)
    make_private(journal)
    JournalWriter(journal, make_run(), segment_bytes=SMALL).append(numbered(1))
    return folder


@only_root
@pytest.mark.parametrize("level", range(4))
def test_a_journal_below_anything_of_somebody_else_is_left_alone(
    tmp_path: Path, level: int, caplog: pytest.LogCaptureFixture
):
    """At whatever level: the journal, the node, the run or the state folder; where it stands, it is said."""
    state = tmp_path / "state"
    folder = leave(state)
    journal = journal_folder(folder, 1, 0)
    foreign = (journal, folder, folder.parent, state)[level]
    os.chown(foreign, NOBODY, NOBODY)
    found = [each for node in node_folders(state) for each in journal_folders(node) if JournalReader(each).run()]
    assert found == []
    if level:
        assert list(left_alone(state)) == [foreign]
    if level == 3:
        assert set(caplog.messages) == {f"{state} is not this user's own, and is left alone"}


@only_root
def test_a_segment_of_somebody_else_is_not_read(tmp_path: Path):
    """Even in a folder of this user."""
    journal = journal_folder(leave(tmp_path), 1, 0)
    for path in journal.glob("*.segment"):
        os.chown(path, NOBODY, NOBODY)
    assert read_all(journal).records == []
    assert JournalReader(journal).run() is None


@pytest.mark.parametrize("level", range(3))
def test_links_below_the_state_folder_are_not_followed(tmp_path: Path, level: int):
    """They would lead to folders of this user that are no journals, to be tidied up."""
    folder = leave(tmp_path / "elsewhere")
    there = (journal_folder(folder, 1, 0), folder, folder.parent)[level]
    here = tmp_path / "state" / there.relative_to(tmp_path / "elsewhere")
    make_private(here.parent)
    here.symlink_to(there)
    state = tmp_path / "state"
    found = [each for node in node_folders(state) for each in journal_folders(node) if JournalReader(each).run()]
    assert found == []
    if level:
        assert list(left_alone(state)) == [here]


def test_the_state_folder_may_be_a_link_of_this_user(tmp_path: Path):
    """Home directories are small."""
    folder = leave(tmp_path / "scratch")
    (tmp_path / "state").symlink_to("scratch")
    assert node_folders(tmp_path / "state") == [folder]


@only_root
def test_the_state_folder_is_no_link_of_somebody_else(tmp_path: Path):
    """Everybody can make one in the temporary folder."""
    leave(tmp_path / "scratch")
    (tmp_path / "state").symlink_to("scratch")
    os.lchown(tmp_path / "state", NOBODY, NOBODY)
    assert node_folders(tmp_path / "state") == []
    assert list(left_alone(tmp_path / "state")) == [tmp_path / "state"]


def test_a_folder_is_listed(tmp_path: Path):
    """By the paths of what is in it."""
    (tmp_path / "file").touch()
    assert list_own(tmp_path) == [tmp_path / "file"]
