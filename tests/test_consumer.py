"""A consumer takes an exporter through real journals, round by round."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from exporters import Scripted, down, take
from journals import numbered
from programs import wait_until
from recorder import make_run

from periflow_otel.agent.consumer import Consumer
from periflow_otel.agent.watch import RankJournal, find_journals
from periflow_otel.exporters import Outcome, Verdict
from periflow_otel.journal.folders import journal_folder
from periflow_otel.journal.writer import JournalWriter
from periflow_otel.records import Metric
from periflow_otel.translate.as_is import RecordTranslator

METRICS = partial(RecordTranslator, Metric)


def journals_of(folder: Path, *counts: int) -> list[RankJournal]:
    """Write so many numbered records for each rank, and return the journals."""
    for rank, count in enumerate(counts):
        journal = journal_folder(folder, 1, rank)
        journal.mkdir()
        writer = JournalWriter(journal, make_run(rank=rank))
        for number in range(count):
            writer.append(numbered(number))
    return list(find_journals(folder, {}).values())


@contextmanager
def consuming(exporter: Scripted, journals: Sequence[RankJournal] = (), **arguments: Any) -> Iterator[Consumer]:
    """Return a consumer at work."""
    consumer = Consumer("test", exporter, METRICS, interval_s=0.01, **arguments)
    consumer.follow(journals)
    consumer.start()
    try:
        yield consumer
    finally:
        consumer.stop(10)


def delivered(consumer: Consumer, journals: Sequence[RankJournal]) -> list[int]:
    """Return how many items of each rank are delivered and committed."""
    return [consumer.cursor(journal).delivered for journal in journals]


def test_all_ranks_are_read_to_their_ends(tmp_path: Path):
    """However different their lengths are, each in order."""
    journals, exporter = journals_of(tmp_path, 3000, 10, 0), Scripted()
    with consuming(exporter, journals) as consumer:
        wait_until(lambda: delivered(consumer, journals) == [3000, 10, 0], 10, "all that was recorded")
    numbers = {
        run.rank: [item.values["n"] for each, item in exporter.taken if each is run] for run, _ in exporter.taken
    }
    assert numbers == {0: list(range(3000)), 1: list(range(10))}


def test_a_new_consumer_goes_on_where_the_last_one_was(tmp_path: Path):
    """Of what was committed nothing comes twice; the counts go on too."""
    journals = journals_of(tmp_path, 100)
    with consuming(Scripted(), journals) as consumer:
        wait_until(lambda: delivered(consumer, journals) == [100], 10, "what was recorded")
    exporter = Scripted()
    with consuming(exporter, journals) as consumer:
        wait_until(lambda: delivered(consumer, journals) == [100], 10, "the cursor")
    assert exporter.taken == []


def test_nothing_is_committed_before_it_is_delivered(tmp_path: Path):
    """Also when the consumer is told to stop meanwhile."""
    journals, exporter = (
        journals_of(tmp_path, 10),
        Scripted(lambda _: Outcome(Verdict.LATER, "down", retry_after_s=1000.0)),
    )
    with consuming(exporter, journals) as consumer:
        wait_until(lambda: exporter.calls, 10, "an attempt")
    assert delivered(consumer, journals) == [0]


def test_a_rank_that_cannot_be_written_does_not_hold_up_the_others(tmp_path: Path):
    """Where ranks have destinations of their own; it is tried again by itself."""
    journals = journals_of(tmp_path, 10, 10)

    class OneIsFull(Scripted):
        def export(self, items: Sequence[Any]) -> Outcome:
            return super().export(items) if items[0][0].rank else Outcome(Verdict.LATER, "full")

    with consuming(OneIsFull(), journals, is_per_rank=True) as consumer:
        wait_until(lambda: delivered(consumer, journals) == [0, 10], 10, "the other rank")


def test_reports_come_every_few_intervals():
    """Long before the state of the instruments is due again."""
    kept = Scripted()
    report = (make_run(), "report")
    with consuming(kept, refresh_s=3600, takes_reports=True) as consumer:
        for _ in range(3):
            wait_until(consumer.is_report_due, 10, "the time for a report")
            consumer.offer([report])
            assert not consumer.is_report_due()
        wait_until(lambda: len(kept.taken) == 3, 10, "three reports")
    assert set(kept.taken) == {report}


def test_a_report_waits_until_the_exporter_takes_something(tmp_path: Path):
    """And the latest one replaces those before."""
    journals, exporter = journals_of(tmp_path, 1), Scripted(down)
    with consuming(exporter, journals, takes_reports=True) as consumer:
        wait_until(lambda: exporter.calls, 10, "an attempt")
        consumer.offer([(make_run(), "old")])
        consumer.offer([(make_run(), "new")])
        exporter.answer = take
        wait_until(lambda: len(exporter.taken) == 2, 10, "the record and the report")
    assert exporter.taken[-1][1] == "new"
