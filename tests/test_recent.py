"""Several consumers read a journal, and it is decoded once."""

import random
import threading
from pathlib import Path

import pytest
from journals import SMALL, numbered, read_all
from recorder import make_run

from periflow_otel.journal.reader import Chunk, JournalReader, Position
from periflow_otel.journal.recent import CHUNK_RECORDS, MAX_RECORDS, RecentChunks, Shelf
from periflow_otel.journal.writer import TAIL_BYTES, JournalWriter
from periflow_otel.records import Metric


@pytest.fixture
def writer(tmp_path: Path) -> JournalWriter:
    """Return the writer of a journal that is empty."""
    return JournalWriter(tmp_path, make_run(), segment_bytes=SMALL + TAIL_BYTES, max_bytes=40 * SMALL)


@pytest.fixture
def recent(writer: JournalWriter, tmp_path: Path) -> RecentChunks:
    """Return what several consumers read the journal with."""
    del writer
    return RecentChunks(JournalReader(tmp_path), Shelf())


def write(writer: JournalWriter, first: int, count: int) -> None:
    """Write numbered records."""
    for number in range(first, first + count):
        writer.append(numbered(number))


def numbers_of(chunk: Chunk) -> list[int]:
    """Return the numbers that records carry."""
    return [each.values["n"] for each in chunk.records if isinstance(each, Metric)]


def test_who_reads_second_gets_what_the_first_has_read(writer: JournalWriter, recent: RecentChunks):
    """The very same records; and both go on from there with what has come since."""
    write(writer, 0, 10)
    first = recent.read(Position(), 1000)
    write(writer, 10, 5)
    assert recent.read(Position(), 1000) is first
    assert numbers_of(first) == list(range(10))
    assert numbers_of(recent.read(first.position, 1000)) == list(range(10, 15))


def test_who_has_stopped_elsewhere_gets_the_rest_of_it(writer: JournalWriter, recent: RecentChunks, tmp_path: Path):
    """The very same records from there on, and all else as if the journal were read there."""
    alone = JournalReader(tmp_path)
    write(writer, 0, 20)
    first, stopped = recent.read(Position(), 10), alone.read(Position(), 15).position
    second = recent.read(first.position, 20)
    rest = recent.read(stopped, 20)
    assert rest == alone.read(stopped, 1000)
    assert [id(each) for each in rest.records] == [id(each) for each in second.records[5:]]


def test_that_there_was_nothing_is_not_remembered(writer: JournalWriter, recent: RecentChunks):
    """Who reads at the end of the journal gets what comes later."""
    assert recent.read(Position(), 1000).records == []
    write(writer, 0, 3)
    chunk = recent.read(Position(), 1000)
    assert recent.read(chunk.position, 1000).records == []
    write(writer, 3, 3)
    assert numbers_of(recent.read(chunk.position, 1000)) == [3, 4, 5]


def test_nobody_reads_further_than_asked_for(writer: JournalWriter, recent: RecentChunks):
    """Nor very much at once."""
    write(writer, 0, 10)
    chunk = recent.read(Position(), 4)
    assert numbers_of(chunk) == [0, 1, 2, 3]
    assert numbers_of(recent.read(chunk.position, 6)) == [4, 5]
    write(writer, 10, 2 * CHUNK_RECORDS)
    assert len(recent.read(chunk.position, 10).records) == 2
    assert len(recent.read(recent.read(chunk.position, 10).position, 10_000).records) == CHUNK_RECORDS


def test_few_records_are_kept_however_many_ranks_there_are(tmp_path: Path):
    """The oldest are let go of, whosever they are, and read again for whoever comes late."""
    shelf, places = Shelf(), MAX_RECORDS // CHUNK_RECORDS
    ranks = [written(tmp_path / str(rank), CHUNK_RECORDS) for rank in range(places + 1)]
    recent = [RecentChunks(rank, shelf) for rank in ranks]
    chunks = [each.read(Position(), CHUNK_RECORDS) for each in recent]
    assert [numbers_of(chunk) for chunk in chunks] == [list(range(CHUNK_RECORDS))] * len(ranks)
    again = [each.read(Position(), CHUNK_RECORDS) for each in reversed(recent)]
    is_same = [one is other for one, other in zip(again, reversed(chunks), strict=True)]
    assert is_same == [True] * places + [False]
    assert again[-1] == chunks[0]


def written(folder: Path, count: int) -> JournalReader:
    """Return what reads a journal with so many numbered records."""
    folder.mkdir()
    write(JournalWriter(folder, make_run()), 0, count)
    return JournalReader(folder)


@pytest.mark.parametrize("seed", range(20))
def test_each_consumer_gets_each_record_once(seed: int, writer: JournalWriter, recent: RecentChunks, tmp_path: Path):
    """Whatever the others read meanwhile, and what is dropped of the journal is counted for each."""
    chance = random.Random(seed)  # noqa: S311  # any will do
    positions, seen, lost = [Position()] * 3, [0] * 3, [0] * 3
    written = 0
    while written < 6000 or any(position.sequence < written for position in positions):
        if written < 6000 and chance.random() < 0.3:
            count = chance.choice([1, 20, 300])
            write(writer, written, count)
            written += count
        who = chance.randrange(3)
        chunk = recent.read(positions[who], positions[who].sequence + chance.choice([3, 100, 1000]))
        numbers = numbers_of(chunk)
        assert numbers == sorted(numbers)
        seen[who] += len(numbers)
        lost[who] += chunk.lost
        positions[who] = chunk.position
    assert [each + missed for each, missed in zip(seen, lost, strict=True)] == [written] * 3
    assert read_all(tmp_path).position == positions[0]


def test_consumers_in_threads_get_each_record_once(writer: JournalWriter, recent: RecentChunks):
    """All of them, in order, while the journal grows."""
    got: list[list[int]] = [[] for _ in range(4)]

    def consume(numbers: list[int]) -> None:
        position = Position()
        while len(numbers) < 1000:
            chunk = recent.read(position, position.sequence + 50)
            numbers += numbers_of(chunk)
            position = chunk.position

    threads = [threading.Thread(target=consume, args=(numbers,), daemon=True) for numbers in got]
    for thread in threads:
        thread.start()
    write(writer, 0, 1000)
    for thread in threads:
        thread.join(60)
    assert got == [list(range(1000))] * 4
