"""The reader: exactly the whole records before any damage, an exact count of the others, and never an exception."""

import contextlib
import errno
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journals import SMALL, Everything, numbered, read_all
from programs import wait_until
from recorder import ELSEWHERE, make_run

from periflow_otel.journal.folders import journal_folder, make_private
from periflow_otel.journal.reader import (
    OPEN_SEGMENTS,
    READ_BYTES,
    JournalReader,
    Position,
    unreadable_journals,
    written_journals,
)
from periflow_otel.journal.segment import (
    CLOSED,
    COMMIT,
    FIRST_SEQUENCE,
    HEADER_BYTES,
    WORD_BYTES,
    Segment,
    frame,
    segment_indices,
    segment_path,
    split_commit,
)
from periflow_otel.journal.writer import TAIL_BYTES, JournalWriter
from periflow_otel.records import Metric, StepEnded, encode, encode_metric, encode_run

COUNT = 8
"""Records in the segment that is damaged."""
DATA_OFFSET = HEADER_BYTES + len(encode_run(make_run()))
FRAME_BYTES = len(frame(numbered(0)))
END = DATA_OFFSET + COUNT * FRAME_BYTES
COMMIT_OFFSET = COMMIT * WORD_BYTES


def filled(folder: Path, count: int, segment_bytes: int = SMALL) -> JournalWriter:
    """Return a writer that has written numbered records."""
    folder.mkdir(exist_ok=True)
    writer = JournalWriter(folder, make_run(), segment_bytes=segment_bytes + TAIL_BYTES)
    for number in range(count):
        writer.append(numbered(number))
    return writer


def two_segments(folder: Path) -> bytes:
    """Fill a segment with ``COUNT`` records and begin another; return the content of the first."""
    filled(folder, COUNT + 2, END)
    assert segment_indices(folder) == [1, 2]
    return segment_path(folder, 1).read_bytes()


def whole_before(offset: int) -> int:
    """Return how many records are whole if the byte at an offset, and what is behind it, is not as it was."""
    return max(0, (offset - DATA_OFFSET) // FRAME_BYTES)


def expect(everything: Everything, first: list[int]) -> None:
    """Check that a segment gave some records, and that the one behind it and the counts are as they should be."""
    assert everything.numbers == [*first, COUNT, COUNT + 1]
    assert everything.lost == COUNT - len(first)
    assert everything.position.sequence == COUNT + 2


def test_a_segment_cut_at_any_byte_gives_what_is_before(tmp_path: Path):
    """Wherever a segment ends, the whole records before that are read and the others counted."""
    content = two_segments(tmp_path)
    for length in range(len(content)):
        segment_path(tmp_path, 1).write_bytes(content[:length])
        expect(read_all(tmp_path), list(range(whole_before(length))))


def test_a_last_segment_cut_at_any_byte_gives_what_is_before(tmp_path: Path):
    """Where no other segment follows, the header says how many records there were, if it is whole."""
    filled(tmp_path, COUNT, END).close()
    content = segment_path(tmp_path, 1).read_bytes()
    for length in range(len(content)):
        segment_path(tmp_path, 1).write_bytes(content[:length])
        everything = read_all(tmp_path)
        assert everything.numbers == list(range(whole_before(length)))
        assert everything.lost == (COUNT - len(everything.numbers) if length >= DATA_OFFSET else 0)
        assert everything.position.sequence == len(everything.numbers) + everything.lost


def is_checked_header(offset: int) -> bool:
    """Say whether the checksum of the header covers a byte, or is in it."""
    return offset < 6 * WORD_BYTES or HEADER_BYTES <= offset < DATA_OFFSET


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_any_byte_flipped_costs_what_is_behind_it_and_no_more(tmp_path: Path, flip: int):
    """Whichever byte is wrong, in the header too, nothing wrong is read and the counts are exact."""
    content = two_segments(tmp_path)
    for offset in range(END):
        damaged = bytearray(content)
        damaged[offset] ^= flip
        segment_path(tmp_path, 1).write_bytes(damaged)
        intact = COUNT
        if is_checked_header(offset):
            intact = 0
        elif COMMIT_OFFSET <= offset < COMMIT_OFFSET + 4:
            intact = min(COUNT, whole_before(split_commit(Segment(segment_path(tmp_path, 1)).words()[COMMIT])[1]))
        elif offset >= DATA_OFFSET:
            intact = whole_before(offset)
        expect(read_all(tmp_path), list(range(intact)))


@given(st.data())
def test_any_damage_to_several_segments_gives_a_true_part(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    """Whatever happens to the bytes, what is read was written, in that order, once; nothing raises."""
    folder = tmp_path_factory.mktemp("journal")
    writer = filled(folder, 100, END)
    indices = segment_indices(folder)
    damage = st.tuples(st.sampled_from(indices), st.integers(0, END - 1), st.binary(min_size=1, max_size=40))
    touched = set()
    for index, offset, content in data.draw(st.lists(damage, min_size=1, max_size=10)):
        with segment_path(folder, index).open("r+b") as file:
            file.seek(offset)
            file.write(content)
        touched.add((index, offset, len(content)))
    for index in data.draw(st.sets(st.sampled_from(indices), max_size=3)):
        segment_path(folder, index).unlink()
    everything = read_all(folder)
    assert everything.numbers == sorted(set(everything.numbers))
    assert set(everything.numbers) <= set(range(100))
    is_commit_whole = all(
        offset + size <= COMMIT_OFFSET or offset >= COMMIT_OFFSET + WORD_BYTES for _, offset, size in touched
    )
    if is_commit_whole:
        assert everything.position.sequence == len(everything.numbers) + everything.lost <= writer.sequence


def test_damage_in_the_middle_of_three_segments(tmp_path: Path):
    """The segments before and behind are whole, and of the one between the beginning is."""
    filled(tmp_path, 3 * COUNT, END)
    with segment_path(tmp_path, 2).open("r+b") as file:
        file.seek(DATA_OFFSET + 3 * FRAME_BYTES + 5)
        file.write(b"\xff")
    everything = read_all(tmp_path)
    assert everything.numbers == [*range(COUNT + 3), *range(2 * COUNT, 3 * COUNT)]
    assert (everything.lost, everything.position.sequence) == (COUNT - 3, 3 * COUNT)


@pytest.mark.parametrize("missing", [[1], [2], [1, 2]])
def test_segments_that_are_gone_are_counted(tmp_path: Path, missing: list[int]):
    """Of three segments any may be deleted."""
    filled(tmp_path, 3 * COUNT, END)
    for index in missing:
        segment_path(tmp_path, index).unlink()
    everything = read_all(tmp_path)
    assert len(everything.numbers) == (3 - len(missing)) * COUNT
    assert (everything.lost, everything.position.sequence) == (len(missing) * COUNT, 3 * COUNT)


def test_strange_things_in_the_place_of_segments_are_passed_over(tmp_path: Path):
    """A folder, a link and an empty file are no segments; what follows is read."""
    filled(tmp_path, COUNT, END)
    segment_path(tmp_path, 1).rename(segment_path(tmp_path, 5))
    segment_path(tmp_path, 1).mkdir()
    segment_path(tmp_path, 2).symlink_to(segment_path(tmp_path, 5))
    segment_path(tmp_path, 3).touch()
    assert read_all(tmp_path).numbers == list(range(COUNT))
    assert JournalReader(tmp_path).run() == make_run()


def test_a_whole_frame_that_is_no_record_costs_itself_alone(tmp_path: Path):
    """A record of another version, say, is counted as lost; the ones behind it are read."""
    writer = filled(tmp_path, 5, 1 << 20)
    metric = b"\x94\x02\x01\x01\x81\xa1a"  # up to the value of its only key
    for payload in (
        b"\xc1",
        b"\x92\x63\x01",
        encode(StepEnded("one", 1, 1)),  # type: ignore[arg-type]
        metric + b"\xd4\x02\xff",  # text in no encoding
        metric + b"\x91" * 100_000 + b"\xc0",  # a list in a list in a list
    ):
        writer.append(payload)
    writer.append(numbered(5))
    everything = read_all(tmp_path)
    assert everything.numbers == list(range(6))
    assert (everything.lost, everything.position.sequence) == (5, 11)


def test_nothing_is_behind_the_last_record(tmp_path: Path):
    """At the end there is nothing, and later what was appended since."""
    writer = filled(tmp_path, 3)
    reader = JournalReader(tmp_path)
    everything = read_all(reader)
    assert reader.read(everything.position, 10)[:3] == ([], everything.position, 0)
    writer.append(numbered(3))
    assert read_all(reader, everything.position).numbers == [3]


def test_a_journal_that_is_not_there_is_empty(tmp_path: Path):
    """Neither a missing folder nor an empty one is an error."""
    for folder in (tmp_path, tmp_path / "missing"):
        reader = JournalReader(folder)
        assert reader.run() is None
        assert reader.head()[:4] == (0, 0, 0, 0)
        assert reader.read(Position(), 10)[:3] == ([], Position(), 0)
        reader.forget(3)


@settings(max_examples=20)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=40))
def test_pieces_of_any_size_are_the_whole(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]):
    """However many records are asked for at a time, and by however many readers, each comes once."""
    folder = tmp_path_factory.mktemp("journal")
    filled(folder, 3 * COUNT + 1, END)
    position, numbers = Position(), []
    for size in sizes:
        chunk = JournalReader(folder).read(position, size)
        assert len(chunk.records) == min(size, 3 * COUNT + 1 - len(numbers))
        numbers += [each.values["n"] for each in chunk.records if isinstance(each, Metric)]
        position = chunk.position
        assert position.sequence == len(numbers)
    assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize("size", [READ_BYTES - 40, READ_BYTES, READ_BYTES + 1, 3_000_000])
def test_a_record_may_be_larger_than_a_read(tmp_path: Path, size: int):
    """Records about and beyond the size of a read come whole, among small ones."""
    writer = JournalWriter(tmp_path, make_run())
    for text in ("a", "b" * size, "c", "d" * size):
        writer.append(encode_metric(1, 1, {"text": text}))
    texts = [each.values["text"] for each in read_all(tmp_path).records if isinstance(each, Metric)]
    assert texts == ["a", "b" * size, "c", "d" * size]


def test_an_end_beyond_the_file_reads_no_more_than_there_is(tmp_path: Path):
    """A wrong end of four gigabytes takes neither that much memory nor a record that is there."""
    filled(tmp_path, COUNT)
    path = segment_path(tmp_path, 1)
    content = bytearray(path.read_bytes())
    content[COMMIT_OFFSET : COMMIT_OFFSET + 4] = b"\xff" * 4
    path.write_bytes(content)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), hard))
    try:
        assert read_all(tmp_path).numbers == list(range(COUNT))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_the_run_is_told_by_any_segment(tmp_path: Path):
    """If the header of the first segment is damaged, the next one says who wrote."""
    filled(tmp_path, 3 * COUNT, END)
    with segment_path(tmp_path, 1).open("r+b") as file:
        file.seek(FIRST_SEQUENCE * WORD_BYTES)
        file.write(b"\xff")
    assert JournalReader(tmp_path).run() == make_run()


def test_the_head_is_told_by_the_last_whole_segment(tmp_path: Path):
    """The newest header that can be read says how far the rank has got."""
    writer = filled(tmp_path, 2 * COUNT, END)
    writer.begin_step(4, 5)
    assert JournalReader(tmp_path).head()[:4] == (2 * COUNT, 0, 4, 5)
    segment_path(tmp_path, 2).write_bytes(b"")
    assert JournalReader(tmp_path).head()[:4] == (COUNT, 0, 0, 0)


def test_a_segment_is_seen_though_the_one_before_was_not_left(tmp_path: Path):
    """A writer that is ended, or interrupted, as it goes on in the next one leaves it so: at once where it is gone."""
    writer, readers = filled(tmp_path, COUNT, END), [JournalReader(tmp_path), JournalReader(tmp_path)]
    ends = [read_all(reader).position for reader in readers]
    writer.append(numbered(COUNT))
    with segment_path(tmp_path, 1).open("r+b") as segment:
        segment.seek(CLOSED * WORD_BYTES)
        segment.write(bytes(WORD_BYTES))
    assert readers[0].head(is_last=True).sequence == COUNT + 1
    assert read_all(readers[0], ends[0]).numbers == [COUNT]
    wait_until(lambda: readers[1].head().sequence == COUNT + 1)
    assert read_all(readers[1], ends[1]).numbers == [COUNT]


def test_what_is_forgotten_is_gone(tmp_path: Path):
    """Segments before an index are deleted, and a reader that comes later begins behind them."""
    filled(tmp_path, 4 * COUNT, END)
    reader = JournalReader(tmp_path)
    everything = read_all(reader)
    reader.forget(3)
    assert segment_indices(tmp_path) == [3, 4]
    assert read_all(reader, everything.position) == ([], everything.position, 0)
    assert read_all(tmp_path).numbers == list(range(2 * COUNT, 4 * COUNT))
    assert read_all(tmp_path).lost == 2 * COUNT


def open_files(folder: Path) -> list[str]:
    """Return the files in a folder that this process has open; those deleted meanwhile are marked so."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(descriptor.readlink()))
    return [link for link in links if link.startswith(f"{folder}/")]


def test_few_segments_are_kept_open(tmp_path: Path):
    """However long the journal, a reader needs but a few open files."""
    filled(tmp_path, 50 * COUNT, END)
    reader = JournalReader(tmp_path)
    assert len(read_all(reader).numbers) == 50 * COUNT
    assert 0 < len(open_files(tmp_path)) <= OPEN_SEGMENTS


def test_a_deleted_segment_is_not_kept_open(tmp_path: Path):
    """The space of a segment that the writer has dropped is free as soon as the reader looks again."""
    writer = JournalWriter(tmp_path, make_run(), max_bytes=3 * (END + TAIL_BYTES), segment_bytes=END + TAIL_BYTES)
    reader = JournalReader(tmp_path)
    for number in range(10 * COUNT):
        writer.append(numbered(number))
        read_all(reader)
    assert [link for link in open_files(tmp_path) if link.endswith(" (deleted)")] == []


def test_too_many_open_files_lose_nothing(tmp_path: Path):
    """When no file can be opened, the reader says so instead of passing over what it cannot see."""
    filled(tmp_path, 3 * COUNT, END)
    reader = JournalReader(tmp_path)
    chunk = reader.read(Position(), COUNT)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        for ask in (reader.head, reader.run, lambda: reader.read(chunk.position, 100), lambda: reader._segment(3)):
            with pytest.raises(OSError, match="Too many open files") as caught:
                ask()
            assert caught.value.errno == errno.EMFILE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert read_all(reader, chunk.position).numbers == list(range(COUNT, 3 * COUNT))


def test_one_reader_serves_several_threads(tmp_path: Path):
    """Consumers in threads of their own, while the journal grows, each get every record once."""
    writer = filled(tmp_path, 0, END)
    reader = JournalReader(tmp_path)
    got: list[list[int]] = [[] for _ in range(4)]

    def consume(numbers: list[int]) -> None:
        position = Position()
        while len(numbers) < 2000:
            chunk = reader.read(position, 7)
            numbers += [each.values["n"] for each in chunk.records if isinstance(each, Metric)]
            position = chunk.position
            assert chunk.lost == 0

    threads = [threading.Thread(target=consume, args=(numbers,), daemon=True) for numbers in got]
    for thread in threads:
        thread.start()
    for number in range(2000):
        writer.append(numbered(number))
    for thread in threads:
        thread.join(60)
    assert got == [list(range(2000))] * 4


FAST = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from journals import numbered
from recorder import make_run
from periflow_otel.journal.writer import TAIL_BYTES, JournalWriter
writer = JournalWriter(Path(sys.argv[1]), make_run(), segment_bytes=1024)
for number in range(6000):
    writer.append(numbered(number))
"""


def test_a_reader_beside_a_fast_writer_misses_nothing(tmp_path: Path):
    """A reader that looks at every moment, while segments come and go, gets each record once."""
    reader = JournalReader(tmp_path)
    position, numbers = Position(), []
    command = [sys.executable, "-c", FAST, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            chunk = reader.read(position, 5)
            numbers += [each.values["n"] for each in chunk.records if isinstance(each, Metric)]
            position = chunk.position
            assert chunk.lost == 0
            reader.forget(position.segment)
    numbers += read_all(reader, position).numbers
    assert numbers == list(range(6000))


def test_a_step_is_never_seen_before_the_records_of_the_one_before(tmp_path: Path):
    """Whenever the head shows a step, its sequence counts all records of the steps before."""
    writer = filled(tmp_path, 0, SMALL)
    reader = JournalReader(tmp_path)
    is_over = threading.Event()

    def train() -> None:
        for step in range(1, 3000):
            writer.begin_step(step, step)
            writer.append(numbered(step))
        is_over.set()

    thread = threading.Thread(target=train)
    thread.start()
    while not is_over.is_set():
        head = reader.head()
        assert head.sequence >= head.step - 1
    thread.join()


def test_what_was_dropped_comes_before_the_first_sequence(tmp_path: Path):
    """It counts from the first segment that is there and can be read."""
    assert JournalReader(tmp_path).first_sequence() == 0
    filled(tmp_path, 3 * COUNT, END)
    assert JournalReader(tmp_path).first_sequence() == 0
    segment_path(tmp_path, 1).unlink()
    assert JournalReader(tmp_path).first_sequence() == COUNT
    segment_path(tmp_path, 2).write_bytes(b"")
    assert JournalReader(tmp_path).first_sequence() == 2 * COUNT


def test_a_journal_is_unreadable_when_no_segment_tells_whose_it_is(tmp_path: Path):
    """One whole header is enough, and where there is no segment, nothing is missing."""
    journals = [journal_folder(tmp_path, 1, rank) for rank in range(3)]
    journals[0].mkdir()
    for journal in journals[1:]:
        filled(journal, COUNT + 2, END)
        segment_path(journal, 1).write_bytes(b"")
    assert unreadable_journals(tmp_path) == []
    segment_path(journals[2], 2).write_bytes(b"")
    assert unreadable_journals(tmp_path) == [journals[2]]


def test_the_journals_of_a_run_are_those_that_somebody_wrote(tmp_path: Path):
    """In the order of attempts, with whether each may still be written to; what tells nothing is left out."""
    for attempt in (1, 2, 3):
        make_private(journal_folder(tmp_path, attempt, 0))
    writers = [JournalWriter(journal_folder(tmp_path, n, 0), make_run(attempt=n, process=ELSEWHERE)) for n in (2, 1)]
    del writers[1]
    found = list(written_journals(tmp_path))
    assert [(each.run.attempt, each.is_alive) for each in found] == [(1, False), (2, True)]
