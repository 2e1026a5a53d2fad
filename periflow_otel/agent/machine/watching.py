"""Gives on what is read of the machine: of a rank to its journal, where it joins what the rank records, else as items.

The node, its GPUs and the agent are the agent's to tell of, once however many ranks there are.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from periflow_otel import names
from periflow_otel.agent.consumer import Consumer
from periflow_otel.agent.machine.gpus import make_read_gpus
from periflow_otel.agent.machine.reading import Rank, Reader, Reading, make_read_system
from periflow_otel.agent.watch import RankJournal
from periflow_otel.exporters import Item
from periflow_otel.records import RankRun
from periflow_otel.translate.telemetry import Point

_MS: Final = 1_000_000


class MachineWatch:
    """Has the machine read, and tells all consumers of an agent. For the thread of the agent."""

    def __init__(self, folder: Path, interval_s: float) -> None:
        """Begin to read.

        Args:
            folder: Of the run.
            interval_s: How often.
        """
        self._readers = {
            "machine": Reader("machine", partial(make_read_system, folder), interval_s),
            "GPUs": Reader("GPUs", make_read_gpus, interval_s),
        }
        self._told: dict[str, Reading] = {name: reader.latest for name, reader in self._readers.items()}
        for reader in self._readers.values():
            reader.start()

    def stop(self) -> None:
        """Read no more."""
        for reader in self._readers.values():
            reader.stop()

    def look(self, journals: Iterable[RankJournal], consumers: Iterable[Consumer]) -> None:
        """Say which ranks there are, and give on what was read since the last look."""
        living = [journal for journal in journals if journal.is_alive]
        for name, reader in self._readers.items():
            reader.ranks = [Rank(journal.folder, journal.run) for journal in living]
            reading = reader.latest
            if reading is not self._told[name] and living:
                self._told[name] = reading
                _tell(name, reading, living, consumers)


def _tell(name: str, reading: Reading, journals: Sequence[RankJournal], consumers: Iterable[Consumer]) -> None:
    for journal in journals:
        if observed := reading.of_ranks.get(journal.folder):
            journal.observed = observed
    items = list(_items(reading, journals[0].run))
    for consumer in consumers:
        if consumer.takes_reports:
            consumer.offer(items, name)


def _items(reading: Reading, run: RankRun) -> Iterator[Item]:
    """Yield points that are of the agent's resource, now: its points leave in the order of their times."""
    agent, node = run.of_agent(), (names.NODE_RANK, run.node_rank)
    time_unix_ns = time.time_ns() // _MS * _MS
    for instrument, value, attributes, start_unix_ns in reading.of_node:
        yield agent, Point(instrument, (*attributes, node), time_unix_ns, value, start_unix_ns)
