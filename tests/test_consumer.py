"""A consumer takes an exporter through real journals, round by round."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

from exporters import Scripted, down, take
from journals import numbered
from programs import wait_until
from recorder import make_run

from periflow_otel import names
from periflow_otel.agent.consumer import Consumer
from periflow_otel.agent.tracks import RECORDS_PER_ROUND
from periflow_otel.agent.watch import RankJournal, find_journals
from periflow_otel.exporters import Outcome, Verdict
from periflow_otel.journal.folders import journal_folder
from periflow_otel.journal.writer import JournalWriter
from periflow_otel.records import Metric
from periflow_otel.translate.as_is import RecordTranslator
from periflow_otel.translate.telemetry import Point

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
    consumer = Consumer("test", exporter, METRICS, **{"interval_s": 0.01, **arguments})
    consumer.follow(journals)
    consumer.start()
    try:
        yield consumer
    finally:
        consumer.stop(10)


def delivered(consumer: Consumer, journals: Sequence[RankJournal]) -> list[int]:
    """Return how many items of each rank are delivered and committed."""
    return [consumer.cursor(journal).delivered for journal in journals]


def dropped(consumer: Consumer, journals: Sequence[RankJournal]) -> list[dict[str, int]]:
    """Return how many items of each rank are dropped, by reason."""
    return [dict(consumer.cursor(journal).dropped) for journal in journals]


def test_all_ranks_are_read_to_their_ends(tmp_path: Path):
    """However different their lengths are, each in order."""
    journals, exporter = journals_of(tmp_path, 3000, 10, 0), Scripted()
    with consuming(exporter, journals) as consumer:
        wait_until(lambda: delivered(consumer, journals) == [3000, 10, 0], 60, "all that was recorded")
    numbers = {
        run.rank: [item.values["n"] for each, item in exporter.taken if each is run] for run, _ in exporter.taken
    }
    assert numbers == {0: list(range(3000)), 1: list(range(10))}


def test_a_new_consumer_goes_on_where_the_last_one_was(tmp_path: Path):
    """Of what was committed nothing comes twice; the counts go on too."""
    journals = journals_of(tmp_path, 100)
    with consuming(Scripted(), journals) as consumer:
        wait_until(lambda: delivered(consumer, journals) == [100], 60, "what was recorded")
    exporter = Scripted()
    with consuming(exporter, journals) as consumer:
        wait_until(lambda: delivered(consumer, journals) == [100], 60, "the cursor")
    assert exporter.taken == []


def test_nothing_is_committed_before_it_is_delivered(tmp_path: Path):
    """Also when the consumer is told to stop meanwhile."""
    journals, exporter = (
        journals_of(tmp_path, 10),
        Scripted(lambda _: Outcome(Verdict.LATER, "down", retry_after_s=1000.0)),
    )
    with consuming(exporter, journals) as consumer:
        wait_until(lambda: exporter.calls, 60, "an attempt")
    assert [consumer.cursor(journal).position.sequence for journal in journals] == [0]


def test_who_has_recorded_much_does_not_keep_the_others_waiting(tmp_path: Path):
    """Each has its turn before anybody goes on."""
    journals, exporter = journals_of(tmp_path, 5 * RECORDS_PER_ROUND, 1), Scripted()
    with consuming(exporter, journals) as consumer:
        wait_until(lambda: delivered(consumer, journals) == [5 * RECORDS_PER_ROUND, 1], 20, "all that was recorded")
    place = next(place for place, (run, _) in enumerate(exporter.taken) if run.rank == 1)
    assert place <= RECORDS_PER_ROUND


def test_what_is_urgent_waits_for_no_turn(tmp_path: Path):
    """Though the ranks have just had theirs, and the next is far off."""
    folder = journal_folder(tmp_path, 1, 0)
    folder.mkdir()
    writer = JournalWriter(folder, make_run())
    writer.append(numbered(0))
    journals = list(find_journals(tmp_path, {}).values())
    with consuming(Scripted(), journals, interval_s=86_400.0) as consumer:
        wait_until(lambda: delivered(consumer, journals) == [1], 60, "the first turn")
        writer.append(numbered(1))
        journals[0].look()
        consumer.hurry()
        wait_until(lambda: delivered(consumer, journals) == [2], 60, "what was urgent")


def test_what_is_under_way_is_seen_through(tmp_path: Path):
    """Who is told to stop in the middle of a batch delivers and commits it: it would come twice in part."""
    journals, exporter = journals_of(tmp_path, 20), Scripted()
    with consuming(exporter) as consumer:

        def one_by_one(items: list[Any]) -> Outcome:
            Thread(target=consumer.stop, args=(0,)).start()
            return take(items) if len(items) == 1 else Outcome(Verdict.TOO_LARGE, "HTTP 413")

        exporter.answer = one_by_one
        consumer.follow(journals)
        wait_until(lambda: delivered(consumer, journals) == [20], 60, "the whole batch")


def test_a_receiver_is_asked_again_as_soon_as_it_wants(tmp_path: Path):
    """However rarely there is something new to deliver."""
    journals, exporter = journals_of(tmp_path, 1), Scripted(lambda _: Outcome(Verdict.LATER, "", retry_after_s=0.05))
    with consuming(exporter, journals, interval_s=86_400.0) as consumer:
        wait_until(lambda: exporter.calls, 60, "an attempt")
        exporter.answer = take
        wait_until(lambda: delivered(consumer, journals) == [1], 60, "another one")


def test_a_success_is_not_told_before_there_is_one(tmp_path: Path):
    """From it one sees for how long a receiver has taken nothing."""
    journals, exporter = journals_of(tmp_path, 1), Scripted(lambda _: Outcome(Verdict.LATER, "", retry_after_s=0.01))
    with consuming(exporter, journals) as consumer:
        began_s = consumer.last_success_s
        wait_until(lambda: len(exporter.calls) > 5, 60, "some attempts")
        assert consumer.last_success_s == began_s
        exporter.answer = take
        wait_until(lambda: consumer.last_success_s > began_s, 60, "a success")


def test_only_what_a_receiver_declines_is_given_up(tmp_path: Path):
    """Another that is away may come back."""
    journals = journals_of(tmp_path, 5, 5)

    class OneDeclines(Scripted):
        def export(self, items: Sequence[Any]) -> Outcome:
            self.calls.append(list(items))
            return Outcome(Verdict.LATER if items[0][0].rank else Verdict.DECLINED, "no", retry_after_s=1000.0)

    with consuming(OneDeclines(), journals, is_per_rank=True) as consumer:
        wait_until(consumer.is_declined, 60, "an answer")
        consumer.give_up()
        wait_until(lambda: dropped(consumer, journals) == [{"declined": 5}, {}], 60, "what is declined")


def test_a_rank_that_cannot_be_written_does_not_hold_up_the_others(tmp_path: Path):
    """Where ranks have destinations of their own; it is tried again by itself."""
    journals = journals_of(tmp_path, 10, 10)

    class OneIsFull(Scripted):
        def export(self, items: Sequence[Any]) -> Outcome:
            return super().export(items) if items[0][0].rank else Outcome(Verdict.LATER, "full")

    with consuming(OneIsFull(), journals, is_per_rank=True) as consumer:
        wait_until(lambda: delivered(consumer, journals) == [0, 10], 60, "the other rank")


def test_the_last_report_is_delivered_at_the_end(tmp_path: Path):
    """It says how it ended."""
    journals, exporter = journals_of(tmp_path, 1), Scripted()
    with consuming(exporter, journals, takes_reports=True, interval_s=86_400.0) as consumer:
        wait_until(lambda: delivered(consumer, journals) == [1], 60, "the only round")
        consumer.offer([(make_run(), "last")])
    assert exporter.taken[-1][1] == "last"


def test_what_is_offered_last_is_delivered_last(tmp_path: Path):
    """Also where it takes the place of something that was offered before."""
    journals, exporter = journals_of(tmp_path, 1), Scripted(lambda _: Outcome(Verdict.LATER, "", retry_after_s=0.01))
    with consuming(exporter, journals, takes_reports=True) as consumer:
        for of in ("agent", "machine", "agent"):
            consumer.offer([(make_run(), of)], of)
        exporter.answer = take
        wait_until(lambda: len(exporter.taken) == 3, 60, "the record and both offers")
    assert [item for _, item in exporter.taken[1:]] == ["machine", "agent"]


def test_reports_are_differences_for_a_receiver_that_adds_up():
    """Of what it has taken."""
    exporter, agent = Scripted(), make_run().of_agent()
    with consuming(exporter, takes_reports=True, adds_up=True) as consumer:
        for number, value in enumerate((5, 7), 1):
            consumer.offer([(agent, Point(names.TELEMETRY_EXPORTED, (), number, value, 0))])
            wait_until(lambda number=number: len(exporter.taken) == number, 60, "a report")
    assert [item.value for _, item in exporter.taken] == [5, 2]


def test_news_that_are_not_taken_stay():
    """A receiver may take some of them; the rest is told again."""
    news = [(make_run(), each) for each in ("first", "second", "third")]
    exporter = Scripted(lambda _: Outcome(Verdict.LATER, "full", done=1))
    with consuming(exporter, takes_news=True) as consumer:
        consumer.tell(news)
        wait_until(lambda: len(exporter.taken) == 3, 60, "all of them")
    assert exporter.taken == news


def test_reports_come_every_few_intervals():
    """Long before the state of the instruments is due again."""
    kept = Scripted()
    report = (make_run(), "report")
    with consuming(kept, refresh_s=3600, takes_reports=True) as consumer:
        for _ in range(3):
            wait_until(consumer.is_report_due, 60, "the time for a report")
            consumer.offer([report])
            assert not consumer.is_report_due()
        wait_until(lambda: len(kept.taken) == 3, 60, "three reports")
    assert set(kept.taken) == {report}


def test_a_report_waits_until_the_exporter_takes_something(tmp_path: Path):
    """And the latest one replaces those before."""
    journals, exporter = journals_of(tmp_path, 1), Scripted(down)
    with consuming(exporter, journals, takes_reports=True) as consumer:
        wait_until(lambda: exporter.calls, 60, "an attempt")
        consumer.offer([(make_run(), "old")])
        consumer.offer([(make_run(), "new")])
        exporter.answer = take
        wait_until(lambda: len(exporter.taken) == 2, 60, "the record and the report")
    assert exporter.taken[-1][1] == "new"
