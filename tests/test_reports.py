"""What the agent says of its own work: counted since the first record, whatever becomes of agents."""

from pathlib import Path
from typing import NamedTuple, cast

import pytest
from recorder import STARTED_NS, make_run

from periflow_otel import names
from periflow_otel.agent.consumer import Consumer
from periflow_otel.agent.reports import FILE, Reporter
from periflow_otel.agent.watch import RankJournal
from periflow_otel.journal.cursors import Cursor
from periflow_otel.journal.reader import Position
from periflow_otel.journal.recent import Shelf
from periflow_otel.journal.writer import JournalWriter
from periflow_otel.translate.telemetry import Point


class Delivered(NamedTuple):
    """A consumer that has delivered so much of every journal."""

    items: int
    name: str = "otlp.metrics"
    last_success_s: float = 0.0

    def cursor(self, _: RankJournal) -> Cursor:
        """Return what became of a journal."""
        return Cursor(Position(), delivered=self.items, dropped={"rejected": 1})


def journal_of(folder: Path, rank: int = 0, started_unix_ns: int = STARTED_NS) -> RankJournal:
    """Return the journal of a rank that has begun."""
    run = make_run(rank=rank, started_unix_ns=started_unix_ns)
    path = folder / f"a001-r{rank:05d}"
    path.mkdir()
    JournalWriter(path, run).close()
    return RankJournal(path, run, Shelf())


def exported(reporter: Reporter, journals: list[RankJournal], items: int) -> Point:
    """Return what is said of the items that were delivered."""
    consumers = [cast("Consumer", Delivered(items))]
    found = [point for _, point in reporter.report(make_run(), journals, consumers)]
    return next(point for point in found if point.instrument is names.TELEMETRY_EXPORTED)


def test_counts_go_on_when_an_agent_comes_after_another(tmp_path: Path):
    """The sum is as it was, and began when it began: a restart of the agent is no reset."""
    journals = [journal_of(tmp_path, 0, STARTED_NS + 5), journal_of(tmp_path, 1, STARTED_NS + 3)]
    before = exported(Reporter(tmp_path), journals, 7)
    after = exported(Reporter(tmp_path), [*journals, journal_of(tmp_path, 2, STARTED_NS + 1)], 7)
    assert (before.value, before.start_unix_ns) == (14, STARTED_NS)
    assert (after.value, after.start_unix_ns) == (21, STARTED_NS)


def test_what_is_gone_stays_counted(tmp_path: Path):
    """Also by the next agent; a journal that was to go and is still there counts once."""
    first, second = journal_of(tmp_path, 0), journal_of(tmp_path, 1)
    reporter = Reporter(tmp_path)
    consumers = [cast("Consumer", Delivered(7))]
    reporter.keep(first, consumers)
    first.retire()
    assert exported(reporter, [second], 4).value == 11
    assert exported(Reporter(tmp_path), [second], 4).value == 11
    reporter.keep(second, consumers)  # and then it dies
    assert exported(Reporter(tmp_path), [second], 7).value == 14
    second.retire()
    assert exported(Reporter(tmp_path), [], 0).value == 14


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x91\x01"])
def test_a_damaged_file_is_no_obstacle(tmp_path: Path, content: bytes):
    """Then it counts what is there."""
    (tmp_path / FILE).write_bytes(content)
    assert exported(Reporter(tmp_path), [journal_of(tmp_path)], 3).value == 3


def test_reports_are_of_the_agent(tmp_path: Path):
    """They are of no rank, so that they are the same series whatever ranks are still there."""
    found = Reporter(tmp_path).report(make_run(rank=3), [], [])
    assert found
    assert all(run.is_of_agent() for run, _ in found)
