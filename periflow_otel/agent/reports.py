"""What the agent has to say of its own work: the ``periflow.telemetry.*`` instruments."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from periflow_otel import names
from periflow_otel.agent.consumer import Consumer
from periflow_otel.agent.watch import RankJournal
from periflow_otel.exporters import Item
from periflow_otel.names import Instrument
from periflow_otel.records import RankRun
from periflow_otel.translate.telemetry import Point

_MS: Final = 1_000_000
_Counts = Counter[tuple[Instrument, tuple[tuple[str, str], ...]]]


class Reporter:
    """Adds up what became of the records of a run on this node, rank by rank, also of ranks that are done."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._done: dict[Path, _Counts] = {}
        """By journal, of those that are gone or about to go."""
        self._started_unix_ns = time.time_ns() // _MS * _MS

    def keep(self, journal: RankJournal, consumers: Iterable[Consumer]) -> None:
        """Remember the final counts of a journal that is about to go, before its consumers let go of it."""
        self._done[journal.folder] = _counts(journal, consumers)

    def report(self, run: RankRun, journals: Sequence[RankJournal], consumers: Sequence[Consumer]) -> list[Item]:
        """Return the present points, as if they came from ``run``.

        Args:
            run: A rank of this node.
            journals: Those that are still there.
            consumers: Whoever reads them.
        """
        node = ((names.NODE_RANK, run.node_rank),)
        time_unix_ns = time.time_ns() // _MS * _MS
        return [
            (run, Point(instrument, attributes + node, time_unix_ns, value, start_unix_ns))
            for instrument, attributes, value, start_unix_ns in self._values(run, journals, consumers)
        ]

    def _values(
        self, run: RankRun, journals: Sequence[RankJournal], consumers: Sequence[Consumer]
    ) -> Iterator[tuple[Instrument, tuple[tuple[str, str], ...], float, int]]:
        for consumer in consumers:
            who = ((names.CONSUMER, consumer.name),)
            backlog = sum(
                max(0, each.reader.head().sequence - consumer.cursor(each).position.sequence) for each in journals
            )
            yield names.TELEMETRY_BACKLOG, who, backlog, 0
            yield names.TELEMETRY_SINCE_SUCCESS, who, time.monotonic() - consumer.last_success_s, 0
        counts: _Counts = Counter()
        for each in (*self._done.values(), *(_counts(journal, consumers) for journal in journals)):
            counts.update(each)
        for (instrument, attributes), count in counts.items():
            yield instrument, attributes, count, self._started_unix_ns
        yield names.TELEMETRY_JOURNAL_SIZE, (), sum(_size(each.folder) for each in journals), 0
        if not run.process.is_current():  # else this is a thread of training
            yield names.TELEMETRY_CPU_TIME, (), time.process_time(), self._started_unix_ns


def _counts(journal: RankJournal, consumers: Iterable[Consumer]) -> _Counts:
    """Count what consumers have done with a journal."""
    counts: _Counts = Counter()
    for consumer in consumers:
        cursor = consumer.cursor(journal)
        who = ((names.CONSUMER, consumer.name),)
        counts[names.TELEMETRY_RECORDS, who] = cursor.position.sequence
        counts[names.TELEMETRY_EXPORTED, who] = cursor.delivered
        for reason, count in {"journal": 0, **cursor.dropped}.items():
            counts[names.TELEMETRY_DROPPED, (*who, (names.DROP_REASON, reason))] = count
        for reason, count in cursor.set_aside.items():
            counts[names.TELEMETRY_SET_ASIDE, (*who, (names.DROP_REASON, reason))] = count
    return counts


def _size(folder: Path) -> int:
    try:
        return sum(entry.stat().st_size for entry in folder.iterdir())
    except OSError:  # it is on its way out
        return 0
