"""One segment: its space is there before it is used, it belongs to its owner alone, and its header is checked."""

import errno
import os
import resource
import stat
from pathlib import Path

import pytest
from journals import SMALL
from recorder import make_run

from periflow_otel.journal.segment import (
    COMMIT,
    HEADER_BYTES,
    PAUSE,
    STEP,
    STEP_STARTED_UNIX_NS,
    URGENT_SEQUENCE,
    Segment,
    create_segment,
    frame,
    segment_indices,
    segment_path,
    unframe,
    write_zeros,
)


def test_space_is_reserved_before_it_is_used(tmp_path: Path):
    """All blocks of a segment are allocated, so that no later store can fail."""
    path = tmp_path / "a.segment"
    create_segment(path, make_run(), 0, 1 << 20)
    assert path.stat().st_size == 1 << 20
    assert path.stat().st_blocks * 512 >= 1 << 20


def test_zeros_reserve_space_where_the_system_has_no_call_for_it(tmp_path: Path):
    """Written zeros take up blocks as reserved ones do."""
    path = tmp_path / "a.segment"
    with path.open("wb") as file:
        write_zeros(file.fileno(), (1 << 20) + 1)
    assert path.stat().st_size == (1 << 20) + 1
    assert path.stat().st_blocks * 512 >= 1 << 20


def test_zeros_that_find_no_room_are_an_error(tmp_path: Path):
    """Where the room ends, after a write that was cut short, the error says so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with (tmp_path / "a").open("wb") as file, pytest.raises(OSError, match="File too large") as caught:
            write_zeros(file.fileno(), 1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert (tmp_path / "a").stat().st_size == 100_000


def test_a_segment_belongs_to_its_owner_alone(tmp_path: Path):
    """Other users can neither read nor write a segment, whatever the umask."""
    umask = os.umask(0)
    try:
        create_segment(tmp_path / "a.segment", make_run(), 0, SMALL)
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.segment").stat().st_mode) == 0o600


def test_a_segment_that_cannot_be_made_leaves_nothing(tmp_path: Path):
    """A failure takes its draft away again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL - 1, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            create_segment(tmp_path / "a.segment", make_run(), 0, SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_place_of_a_segment_is_not_followed(tmp_path: Path):
    """Neither the writer nor the reader can be led to another file."""
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (tmp_path / "a.new").symlink_to(target)
    (tmp_path / "b.segment").symlink_to(target)
    create_segment(tmp_path / "a.segment", make_run(), 0, SMALL)
    with pytest.raises(OSError, match="symbolic links"):
        Segment(tmp_path / "b.segment")
    assert target.read_bytes() == b"precious"


def test_the_header_says_who_writes_and_where_it_begins(tmp_path: Path):
    """A reader finds the run, the number of records before, and the progress that was given."""
    create_segment(tmp_path / "a.segment", make_run(rank=3), 77, SMALL, (5, 6, 4, 7, 9))
    segment = Segment(tmp_path / "a.segment")
    words = segment.words()
    assert segment.run == make_run(rank=3)
    assert segment.first_sequence == 77
    assert words[PAUSE:COMMIT] == [5, 6, 4, 7, 9]
    assert words[COMMIT] == segment.data_offset


def test_a_reader_sees_the_step_before_the_commit():
    """Words are copied in order, and so a new step is never seen without the records before it."""
    assert STEP < STEP_STARTED_UNIX_NS < URGENT_SEQUENCE < COMMIT


def test_a_segment_of_another_version_is_refused(tmp_path: Path):
    """The magic number, which holds the version, is checked."""
    mapping = create_segment(tmp_path / "a.segment", make_run(), 0, SMALL)
    mapping[7] = 2
    with pytest.raises(ValueError, match=r"the header of .*a\.segment is damaged"):
        Segment(tmp_path / "a.segment")


def test_what_a_failing_device_does_not_give_is_missing(tmp_path: Path):
    """A segment that can be opened, but not read any more, reads as empty."""
    create_segment(tmp_path / "a.segment", make_run(), 0, SMALL)
    segment = Segment(tmp_path / "a.segment")
    folder = os.open(tmp_path, os.O_RDONLY)
    os.dup2(folder, segment._descriptor)  # reading a folder fails as reading a bad device does
    os.close(folder)
    assert segment.words() == [0] * (HEADER_BYTES // 8)
    assert segment.read(0, 10) == b""


def test_a_segment_closes_its_file(tmp_path: Path):
    """Letting go of a segment gives its file back."""
    create_segment(tmp_path / "a.segment", make_run(), 0, SMALL)
    segment = Segment(tmp_path / "a.segment")
    descriptor = segment._descriptor
    del segment
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_indices_are_those_of_segments_alone(tmp_path: Path):
    """Cursors, drafts and strange names are no segments; the order is that of numbers."""
    for index in (100_000_000, 2, 10):
        segment_path(tmp_path, index).touch()
    for name in ("a.cursor", "00000003.new", "x.segment", "-1.segment", ".segment"):
        (tmp_path / name).touch()
    assert segment_indices(tmp_path) == [2, 10, 100_000_000]


def test_a_folder_that_is_not_there_has_no_segments(tmp_path: Path):
    """Neither a missing folder nor a file in its place is an error."""
    (tmp_path / "file").touch()
    assert segment_indices(tmp_path / "missing") == []
    assert segment_indices(tmp_path / "file") == []


def test_frames_come_back_one_after_the_other():
    """A frame is found at its offset, and the next one behind it."""
    data = frame(b"one") + frame(b"two")
    assert unframe(data) == b"one"
    assert unframe(data, len(frame(b"one"))) == b"two"


@pytest.mark.parametrize("data", [b"", bytes(7), bytes(100), frame(b"one")[:-1], frame(b"")])
def test_what_is_no_whole_frame_is_none(data: bytes):
    """Nothing, zeros, and half a frame are no frame."""
    assert unframe(data) is None
