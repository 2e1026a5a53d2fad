"""How journals give back space: what they do not need, and what goes beyond the bound.

A segment is reserved whole, and cut to what it holds when its writer has left it. What is dropped is dropped by whole
segments, the oldest first, and counted: a reader sees from the next segment how many records came before it. The last
segment of a journal keeps its header instead, which says the same.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from periflow_otel.journal.folders import journal_folders, rank_of
from periflow_otel.journal.life import is_written
from periflow_otel.journal.reader import JournalReader
from periflow_otel.journal.segment import COMMIT, Segment, cut, segment_indices, segment_path, split_commit


def size_bytes(journal: Path) -> int:
    """Return what the segments of a journal take."""
    return sum(map(_size, _segments(journal)))


def is_over(journal: Path) -> bool:
    """Tell whether a journal is certainly written no more: closed by its writer, or its writer is gone."""
    reader = JournalReader(journal)
    run = reader.run()
    return run is not None and (reader.is_closed() or not is_written(journal, run.process))


def trim(journal: Path) -> None:
    """Cut the segments of a journal that is over to what they hold."""
    for path in _segments(journal):
        with suppress(OSError, ValueError, msgspec.DecodeError):
            cut(path, split_commit(Segment(path).words()[COMMIT])[1])


def drop_oldest(journals: Iterable[Path], excess_bytes: int) -> int:
    """Drop segments of journals that are over, in order, until so much is freed; return how much is."""
    freed = 0
    for journal in journals:
        segments = _segments(journal)
        for path in segments:
            if freed >= excess_bytes:
                return freed
            freed += _cut_to_header(path) if path == segments[-1] else _unlink(path)
    return freed


def make_room(journal: Path, room_bytes: int, max_bytes: int) -> bool:
    """Keep the bound of a rank over all its attempts when one of its journals grows; tell whether records went.

    Args:
        journal: The one that grows. The segment that it grows from stays.
        room_bytes: By how much.
        max_bytes: The bound of all journals of the rank together.
    """
    others = [each for each in _of_same_rank(journal) if each != journal]
    excess = sum(map(size_bytes, (*others, journal))) + room_bytes - max_bytes
    if excess <= 0:
        return False
    freed = drop_oldest(filter(is_over, others), excess)
    for path in _segments(journal)[:-1]:
        if freed < excess:
            freed += _unlink(path)
    return freed > 0


def _of_same_rank(journal: Path) -> list[Path]:
    rank = rank_of(journal)
    if rank is None:  # a folder of another name stands alone
        return []
    return [each for each in journal_folders(journal.parent) if rank_of(each) == rank]


def _segments(journal: Path) -> list[Path]:
    return [segment_path(journal, index) for index in segment_indices(journal)]


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _unlink(path: Path) -> int:
    size = _size(path)
    path.unlink(missing_ok=True)
    return size


def _cut_to_header(path: Path) -> int:
    """Drop all records of a segment, and leave what tells how many they were."""
    try:
        return cut(path, Segment(path).data_offset)
    except (ValueError, msgspec.DecodeError):  # damaged: it tells nothing
        return _unlink(path)
    except OSError:
        return 0
