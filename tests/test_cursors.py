"""Cursors: moved in one step, and none at all rather than a wrong one."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from periflow_otel.journal.cursors import SUFFIX, Cursor, CursorFile, is_delivered, load_cursor
from periflow_otel.journal.files import replace_file
from periflow_otel.journal.folders import LEDGER
from periflow_otel.journal.reader import Position

SOMEWHERE = Cursor(Position(3, 4096, 1 << 40), b"state", 12, {"journal": 3, "rejected": 1}, is_complete=True)


def at(sequence: int) -> Cursor:
    """Return a cursor behind so many records."""
    return Cursor(Position(1, 1, sequence))


@given(
    st.builds(
        Cursor,
        st.builds(Position, st.integers(0, 1 << 40), st.integers(0, 1 << 32), st.integers(0, 1 << 60)),
        st.binary(max_size=1000),
        st.integers(0, 1 << 60),
        st.dictionaries(st.text(max_size=20), st.integers(0, 1 << 60), max_size=5),
        st.booleans(),
    )
)
def test_a_cursor_comes_back_equal(tmp_path_factory: pytest.TempPathFactory, cursor: Cursor):
    """What was saved is loaded."""
    folder = tmp_path_factory.getbasetemp()
    CursorFile(folder, "otlp.traces").save(cursor)
    assert load_cursor(folder, "otlp.traces") == cursor


def test_each_consumer_has_its_own(tmp_path: Path):
    """Consumers are told apart by name, and one without a cursor is at the beginning."""
    CursorFile(tmp_path, "otlp.traces").save(at(1))
    CursorFile(tmp_path, "otlp.metrics").save(at(2))
    assert load_cursor(tmp_path, "otlp.traces") == at(1)
    assert load_cursor(tmp_path, "otlp.metrics") == at(2)
    assert load_cursor(tmp_path, "metric_log") == Cursor()


def test_a_journal_without_a_folder_has_no_cursor(tmp_path: Path):
    """Nothing there is no error."""
    assert load_cursor(tmp_path / "missing", "otlp.traces") == Cursor()


def test_a_damaged_cursor_is_none(tmp_path: Path):
    """A cursor with any byte wrong, or cut anywhere, would lead astray; the consumer begins again instead."""
    CursorFile(tmp_path, "a").save(SOMEWHERE)
    path = tmp_path / f"a{SUFFIX}"
    content = path.read_bytes()
    for offset in range(len(content.rstrip(b"\0"))):
        path.write_bytes(content[:offset])
        assert load_cursor(tmp_path, "a") == Cursor()
        for flip in (0x01, 0xFF):
            path.write_bytes(content[:offset] + bytes([content[offset] ^ flip]) + content[offset + 1 :])
            assert load_cursor(tmp_path, "a") == Cursor()


def test_a_cursor_that_is_half_written_leaves_the_one_before(tmp_path: Path):
    """At whatever byte the writing stops, one of the two counts; and what comes next is written over the torn one."""
    path, file = tmp_path / f"a{SUFFIX}", CursorFile(tmp_path, "a")
    file.save(at(1))
    for sequence in range(2, 5):
        before = path.read_bytes()
        file.save(at(sequence))
        after = path.read_bytes()
        changed = [offset for offset in range(len(after)) if after[offset] != before[offset]]
        for offset in range(changed[0], changed[-1] + 1):
            path.write_bytes(after[:offset] + before[offset:])
            assert load_cursor(tmp_path, "a") == at(sequence - 1)
            CursorFile(tmp_path, "a").save(at(9))
            assert load_cursor(tmp_path, "a") == at(9)
        path.write_bytes(after)
        assert load_cursor(tmp_path, "a") == at(sequence)


def test_a_cursor_moves_within_its_file(tmp_path: Path):
    """As long as there is room, also for a consumer that goes on; to make another file would take much longer."""
    path = tmp_path / f"a{SUFFIX}"
    CursorFile(tmp_path, "a").save(SOMEWHERE)
    first, again = path.stat().st_ino, CursorFile(tmp_path, "a")
    for sequence in range(5):
        again.save(at(sequence))
        assert load_cursor(tmp_path, "a") == at(sequence)
    assert path.stat().st_ino == first


@pytest.mark.parametrize("state_bytes", [2000, 2048, 5000, 1_000_000])
def test_a_cursor_may_grow_and_shrink(tmp_path: Path, state_bytes: int):
    """Whatever a translator has to remember, and wherever the one before was written."""
    for _ in range(3):
        for cursor in (at(1), Cursor(state=bytes(state_bytes)), at(2)):
            file = CursorFile(tmp_path, "a")
            file.save(cursor)
            assert load_cursor(tmp_path, "a") == file.cursor == cursor


def test_a_cursor_is_saved_though_its_file_was_deleted_or_cut(tmp_path: Path):
    """What somebody else has done to the file costs nothing."""
    path, file = tmp_path / f"a{SUFFIX}", CursorFile(tmp_path, "a")
    file.save(at(1))
    path.unlink()
    file.save(at(2))
    assert load_cursor(tmp_path, "a") == at(2)
    os.truncate(path, 0)
    file.save(at(3))
    assert load_cursor(tmp_path, "a") == at(3)


@given(st.binary(max_size=300))
def test_a_file_with_anything_in_it_is_no_error(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    """Whatever is in the file of a cursor, loading it raises nothing."""
    folder = tmp_path_factory.getbasetemp()
    (folder / f"b{SUFFIX}").write_bytes(content)
    assert load_cursor(folder, "b") == Cursor()


def test_a_cursor_belongs_to_its_owner_alone(tmp_path: Path):
    """Other users cannot read it, whatever the umask, and no draft stays behind."""
    umask = os.umask(0)
    try:
        CursorFile(tmp_path, "a").save(SOMEWHERE)
    finally:
        os.umask(umask)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{SUFFIX}"]
    assert stat.S_IMODE((tmp_path / f"a{SUFFIX}").stat().st_mode) == 0o600


def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path):
    """A failure leaves the old content and no draft."""
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "inside").write_text("old")
    with pytest.raises(OSError, match="directory"):
        replace_file(tmp_path / "target", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target" / "inside").read_text() == "old"


KILLED = """
import os, sys
from pathlib import Path
from periflow_otel.journal.cursors import Cursor, CursorFile
from periflow_otel.journal.folders import LEDGER
from periflow_otel.journal.reader import Position
file = CursorFile(Path(sys.argv[1]), "a")
for sequence in range(1_000_000):
    file.save(Cursor(Position(1, 1, sequence), bytes(10_000)))
    os.write(1, b"x")
"""


def test_a_cursor_survives_sigkill_whole(tmp_path: Path):
    """A process killed while it saves leaves the last cursor or the one before, never a part."""
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        saved = len(process.stdout.read(50))
        while saved < 500:
            assert load_cursor(tmp_path, "a").state == bytes(10_000)  # at any moment
            saved += len(process.stdout.read(50))
        process.kill()
        saved += len(process.stdout.read())
    cursor = load_cursor(tmp_path, "a")
    assert cursor.state == bytes(10_000)
    assert saved - 1 <= cursor.position.sequence <= saved


def test_delivered_is_what_every_consumer_has(tmp_path: Path):
    """The slowest consumer counts; one that has not begun has nothing."""
    CursorFile(tmp_path, "a").save(at(10))
    CursorFile(tmp_path, "b").save(at(7))
    assert is_delivered(tmp_path, ["a", "b"], 7)
    assert not is_delivered(tmp_path, ["a", "b"], 8)
    assert not is_delivered(tmp_path, ["a", "b", "c"], 1)


def test_everything_is_delivered_where_nobody_waits(tmp_path: Path):
    """Without consumers, or with the journal gone after its delivery, nothing is left."""
    assert is_delivered(tmp_path, [], 7)
    (tmp_path / LEDGER).mkdir()
    (tmp_path / LEDGER / "over").touch()
    assert is_delivered(tmp_path / "over", ["a"], 7)


def test_a_journal_that_somebody_deleted_is_not_delivered(tmp_path: Path):
    """Only one that is over goes with everything delivered."""
    assert not is_delivered(tmp_path / "gone", ["a"], 0)
