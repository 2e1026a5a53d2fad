"""What is looked at of ranks, ten times a second, and what that costs."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from journals import numbered
from recorder import make_run

from periflow_otel.agent.watch import find_journals
from periflow_otel.journal.folders import journal_folder
from periflow_otel.journal.writer import JournalWriter
from periflow_otel.processes import Process


class Opened:
    """Notes what this thread opens, by Python's audit event; there is no way to take such a hook away again."""

    def __init__(self) -> None:
        """Begin without noting."""
        self.paths: list[str] = []
        self._thread = 0
        sys.addaudithook(self._note)

    @contextmanager
    def noting(self) -> Iterator[list[str]]:
        """Note what is opened meanwhile."""
        self.paths, self._thread = [], threading.get_ident()
        try:
            yield self.paths
        finally:
            self._thread = 0

    def _note(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and threading.get_ident() == self._thread:
            self.paths.append(str(arguments[0]))


@pytest.fixture(scope="module")
def opened() -> Opened:
    """Return what notes the files that are opened."""
    return Opened()


def test_a_look_at_ranks_that_write_nothing_opens_nothing_but_the_folder(tmp_path: Path, opened: Opened):
    """Steps may take minutes, there may be hundreds of ranks, and the processors are theirs."""
    for rank in range(3):
        journal = journal_folder(tmp_path, 1, rank)
        journal.mkdir()
        JournalWriter(journal, make_run(rank=rank, process=Process.current())).append(numbered(rank))
    journals = find_journals(tmp_path, {})
    for journal in journals.values():
        journal.look()
    with opened.noting() as paths:
        journals = find_journals(tmp_path, journals)
        assert [journal.look() for journal in journals.values()] == [False] * 3
    assert paths == [str(tmp_path)]


def test_a_journal_that_appears_is_found_by_the_next_look(tmp_path: Path):
    """And one that has gone is not; the others are the same objects as before."""
    folders = [journal_folder(tmp_path, 1, rank) for rank in range(3)]
    for folder in folders[:2]:
        folder.mkdir()
        JournalWriter(folder, make_run())
    before = find_journals(tmp_path, {})
    assert list(before) == folders[:2]
    folders[2].mkdir()
    assert list(find_journals(tmp_path, before)) == folders[:2]  # nothing tells yet whose it is
    JournalWriter(folders[2], make_run())
    folders[0].rename(tmp_path / "aside")
    after = find_journals(tmp_path, before)
    assert list(after) == folders[1:]
    assert after[folders[1]] is before[folders[1]]
