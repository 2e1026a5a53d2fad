"""Where journals can be: a folder that takes locks, room, mappings and new names, and no other."""

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import file_size_limit, small_disk

from periflow_otel.journal.places import judge, make_usable, own_place
from periflow_otel.journal.segment import SEGMENT_BYTES


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return a state folder that is not there yet."""
    return tmp_path / "of" / "user" / "state"


def test_a_usable_folder_is_made_and_holds_nothing(state: Path):
    """The trial leaves no file behind."""
    make_usable(state, state / "run" / "node")
    assert list((state / "run" / "node").iterdir()) == []


def test_a_disk_without_room_is_left_as_it_was(tmp_path: Path, state: Path):
    """A quota, or a full disk, is noticed before anything is recorded, and no empty folder tells of the trial."""
    with file_size_limit(SEGMENT_BYTES - 1), pytest.raises(OSError, match="File too large"):
        make_usable(state, state / "run" / "node")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_there_stay(state: Path):
    """What others have made is not removed, though it is empty."""
    (state / "run").mkdir(parents=True, mode=0o700)
    with file_size_limit(SEGMENT_BYTES - 1), pytest.raises(OSError, match="File too large"):
        make_usable(state, state / "run" / "node")
    assert [each.name for each in state.iterdir()] == ["run"]


def test_a_file_system_without_locks_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: Path):
    """Lustre without ``flock`` and NFS without its daemon answer so; the kernel here always has locks."""

    def refuse(_file: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No locks available"):
        make_usable(state, state / "run" / "node")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Return the root of a file system of 1 MiB."""
    with small_disk(tmp_path / "disk", "1m") as root:
        yield root


def test_a_full_file_system_is_none(tiny_disk: Path):
    """There is room for a file, and not for a segment."""
    with pytest.raises(OSError, match="No space left on device"):
        judge(tiny_disk)
    assert list(tiny_disk.iterdir()) == []


def test_a_file_system_that_takes_few_more_files_is_none(tmp_path: Path):
    """There is room for a segment, and not for the files of a run."""
    with small_disk(tmp_path / "disk", "64m,nr_inodes=30") as disk:
        with pytest.raises(OSError, match="No space left on device"):
            judge(disk)
        assert list(disk.iterdir()) == []


def test_a_judged_place_is_as_it_was(state: Path, tmp_path: Path):
    """Nothing is made by asking, neither there nor above."""
    judge(state)
    assert list(tmp_path.iterdir()) == []
    state.mkdir(parents=True)
    judge(state)
    assert list(state.iterdir()) == []


@pytest.mark.parametrize("place", ["/dev/null/state", "/proc/periflow"])
def test_where_no_folder_can_be_is_no_place(place: str):
    """As with ``/dev/null`` for a home."""
    with pytest.raises(OSError, match=r"Not a directory|No such file"):
        judge(Path(place))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as somebody else")
def test_a_volume_of_root_gets_a_private_folder_inside():
    """Kubernetes mounts volumes for a group: root owns what the pod may write to."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # every user can get there
        volume = Path(name)
        volume.chmod(0o777)
        assert own_place(volume) == volume
        os.seteuid(1000)
        try:
            place = own_place(volume)
            make_usable(place, place / "run" / "node")
        finally:
            os.seteuid(0)
        assert place == volume / "periflow-1000"
        assert (place.stat().st_uid, place.stat().st_mode & 0o777) == (1000, 0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make folders of somebody else")
def test_a_folder_of_another_user_is_no_volume(tmp_path: Path):
    """Who owns a folder may rename what is in it."""
    os.chown(tmp_path, 1234, 1234)
    assert own_place(tmp_path) == tmp_path
    with pytest.raises(PermissionError, match="belongs to somebody else"):
        judge(tmp_path)
