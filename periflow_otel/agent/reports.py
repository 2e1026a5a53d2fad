"""What the agent has to say of its own work: the ``periflow.telemetry.*`` instruments.

What has become of records is counted since the first of them, whatever agents have come and gone since.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from periflow_otel import names
from periflow_otel.agent.consumer import Consumer
from periflow_otel.agent.watch import RankJournal
from periflow_otel.exporters import Item
from periflow_otel.journal.files import read_own, replace_file
from periflow_otel.names import Instrument
from periflow_otel.records import RankRun
from periflow_otel.translate.telemetry import Point

FILE: Final = "reports"
_MS: Final = 1_000_000
_MAX_BYTES: Final = 1 << 20
_Attributes = tuple[tuple[str, str], ...]
_Counts = Counter[tuple[str, _Attributes]]


class Done(msgspec.Struct, array_like=True):
    """What was counted of journals that are gone."""

    started_unix_ns: int = 0
    """Since when there is something to count; 0: there was nothing yet."""
    counts: list[tuple[str, _Attributes, int]] = []
    """By instrument and attributes."""
    last: str = ""
    """The journal that went last: if it is still there, it was not gone yet, and ``last_counts`` do not count."""
    last_counts: list[tuple[str, _Attributes, int]] = []


class Reporter:
    """Adds up what became of the records of a run on this node, rank by rank, also of ranks that are done."""

    def __init__(self, folder: Path) -> None:
        """Go on from what the agents before have counted.

        Args:
            folder: Folder of the run; a small file in it is kept up to date.
        """
        self._path = folder / FILE
        self._began_unix_ns = time.time_ns() // _MS * _MS
        self._noted = _load(self._path)
        self._done = _counter(self._noted.counts)
        """Of journals that are gone."""
        if not (folder / self._noted.last).exists():
            self._done.update(_counter(self._noted.last_counts))

    def keep(self, journal: RankJournal, consumers: Iterable[Consumer]) -> None:
        """Remember the final counts of a journal that is about to go, before its consumers let go of it."""
        counts = _counts(journal, consumers)
        self._note(Done(self._noted.started_unix_ns, _plain(self._done), journal.folder.name, _plain(counts)))
        self._done.update(counts)

    def report(self, run: RankRun, journals: Sequence[RankJournal], consumers: Sequence[Consumer]) -> list[Item]:
        """Return the present points.

        Args:
            run: A rank of this node.
            journals: Those that are still there.
            consumers: Whoever reads them.
        """
        if not self._noted.started_unix_ns:
            started_unix_ns = min([run.started_unix_ns, *(each.run.started_unix_ns for each in journals)])
            self._note(msgspec.structs.replace(self._noted, started_unix_ns=started_unix_ns))
        node = ((names.NODE_RANK, run.node_rank),)
        time_unix_ns = time.time_ns() // _MS * _MS
        agent = run.of_agent()
        return [
            (agent, Point(instrument, attributes + node, time_unix_ns, value, start_unix_ns))
            for instrument, attributes, value, start_unix_ns in self._values(run, journals, consumers)
        ]

    def _values(
        self, run: RankRun, journals: Sequence[RankJournal], consumers: Sequence[Consumer]
    ) -> Iterator[tuple[Instrument, _Attributes, float, int]]:
        for consumer in consumers:
            who = ((names.CONSUMER, consumer.name),)
            backlog = sum(
                max(0, each.reader.head().sequence - consumer.cursor(each).position.sequence) for each in journals
            )
            yield names.TELEMETRY_BACKLOG, who, backlog, 0
            yield names.TELEMETRY_SINCE_SUCCESS, who, time.monotonic() - consumer.last_success_s, 0
        counts = self._done.copy()
        for journal in journals:
            counts.update(_counts(journal, consumers))
        for (name, attributes), count in counts.items():
            yield _COUNTED[name], attributes, count, self._noted.started_unix_ns
        yield names.TELEMETRY_JOURNAL_SIZE, (), sum(_size(each.folder) for each in journals), 0
        if not run.process.is_current():  # else this is a thread of training
            yield names.TELEMETRY_CPU_TIME, (), time.process_time(), self._began_unix_ns

    def _note(self, done: Done) -> None:
        self._noted = done
        with suppress(OSError):  # then an agent that comes after this one does not count them
            replace_file(self._path, msgspec.msgpack.encode(done))


def _load(path: Path) -> Done:
    try:
        return msgspec.msgpack.decode(read_own(path, _MAX_BYTES) or b"", type=Done)
    except (OSError, msgspec.DecodeError):
        return Done()


def _counter(counts: Iterable[tuple[str, _Attributes, int]]) -> _Counts:
    return Counter({(name, attributes): count for name, attributes, count in counts if name in _COUNTED})


def _plain(counts: _Counts) -> list[tuple[str, _Attributes, int]]:
    return [(*key, count) for key, count in counts.items()]


def _counts(journal: RankJournal, consumers: Iterable[Consumer]) -> _Counts:
    """Count what consumers have done with a journal."""
    counts: _Counts = Counter()
    for consumer in consumers:
        cursor = consumer.cursor(journal)
        who = ((names.CONSUMER, consumer.name),)
        counts[names.TELEMETRY_RECORDS.name, who] = cursor.position.sequence
        counts[names.TELEMETRY_EXPORTED.name, who] = cursor.delivered
        for reason, count in {"journal": 0, **cursor.dropped}.items():
            counts[names.TELEMETRY_DROPPED.name, (*who, (names.DROP_REASON, reason))] = count
        for reason, count in cursor.set_aside.items():
            counts[names.TELEMETRY_SET_ASIDE.name, (*who, (names.DROP_REASON, reason))] = count
    return counts


def _size(folder: Path) -> int:
    try:
        return sum(entry.stat().st_size for entry in folder.iterdir())
    except OSError:  # it is on its way out
        return 0


_COUNTED: Final = {
    each.name: each
    for each in (
        names.TELEMETRY_RECORDS, names.TELEMETRY_EXPORTED, names.TELEMETRY_DROPPED, names.TELEMETRY_SET_ASIDE,
    )
}  # fmt: skip
"""What is counted of a journal, by name."""
