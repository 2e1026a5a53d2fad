"""How far apart the ranks of a node begin a step, and which of them is the last.

Their ends would tell less: a step mostly ends with a collective, and that holds all ranks up for the slowest. What a
rank is late with shows when it begins: loading of data, evaluation, saving, and what it did after the last collective.
"""

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from periflow_otel import names
from periflow_otel.agent.pace import Turns
from periflow_otel.agent.watch import RankJournal
from periflow_otel.exporters import Item
from periflow_otel.journal.cursors import Cursor, CursorFile
from periflow_otel.records import RankRun, RunFinished, StepEnded
from periflow_otel.translate.histograms import ExplicitBuckets
from periflow_otel.translate.telemetry import Point

MAX_OPEN_STEPS: Final = 1000
"""Steps that some rank has not taken yet; the oldest is given up when there are more, as its rank may be gone."""
INTERVAL_S: Final = 1.0
"""How often steps are taken: nobody sees the result more often."""
READ_S: Final = 0.05
"""About how long one reading may take, so that the agent does not lose sight of the ranks over an old backlog."""
_MS: Final = 1_000_000


class StepSkew:
    """Compares the ranks of this node step by step.

    It counts from the start of the agent. Steps that only a part of the ranks takes are left out.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._started_unix_ns = time.time_ns() // _MS * _MS
        self._starts: dict[tuple[int, int], dict[int, int]] = {}
        """By attempt and step: when each rank began it, Unix ns."""
        self._skews: dict[int, ExplicitBuckets] = {}
        """By the rank that was last."""

    def add(self, run: RankRun, steps: Iterable[StepEnded]) -> None:
        """Take steps of one rank."""
        for ended in steps:
            self._add(run, ended)

    def report(self, run: RankRun) -> list[Item]:
        """Return a point for each rank that was ever the last one."""
        time_unix_ns = time.time_ns() // _MS * _MS
        node = (names.NODE_RANK, run.node_rank)
        return [
            (run.of_agent(), Point(names.STEP_SKEW, ((names.LAST_RANK, rank), node), time_unix_ns, skew.snapshot(),
                        self._started_unix_ns))
            for rank, skew in self._skews.items()
        ]  # fmt: skip

    def _add(self, run: RankRun, ended: StepEnded) -> None:
        starts = self._starts.setdefault((run.attempt, ended.step), {})
        starts[run.rank] = ended.start_unix_ns
        if len(starts) == run.local_world_size:
            del self._starts[run.attempt, ended.step]
            last = max(starts, key=starts.__getitem__)
            skew_s = (starts[last] - min(starts.values())) / 1e9
            self._skews.setdefault(last, ExplicitBuckets()).record(skew_s)
        elif len(self._starts) > MAX_OPEN_STEPS:
            del self._starts[next(iter(self._starts))]


class SkewReader:
    """Reads the steps of all ranks. How far it is in each journal stands in one file of the run's folder."""

    def __init__(self, folder: Path, skew: StepSkew) -> None:
        """Go on where the agent before this one was.

        Args:
            folder: Of the run.
            skew: Is given the steps.
        """
        self._skew = skew
        self._file = CursorFile(folder, "skew")
        self._found = _decode_places(self._file.cursor.state)
        self._cursors: dict[RankJournal, Cursor] = {}
        self._turns: Turns[RankJournal] = Turns(INTERVAL_S)
        self._behind: list[RankJournal] = []
        """Those of which a part is read."""

    def read(self, journals: Iterable[RankJournal], *, is_urgent: bool) -> None:
        """Take the steps that were not taken yet, when it is time or urgent; of very many only a part."""
        now_s = time.monotonic()
        before = self._cursors
        self._cursors = {each: before.get(each) or self._find(each) for each in journals}
        due = self._cursors if is_urgent else (*self._behind, *self._turns.take(self._cursors, now_s))
        wanted = [each for each in dict.fromkeys(due) if each in self._cursors]
        self._behind = [each for each in wanted if self._read_until(now_s + READ_S, each)]
        if self._cursors != before:
            self._save()

    def cursor(self, journal: RankJournal) -> Cursor:
        """Return how far it has got in a journal."""
        return self._cursors.get(journal, _NOWHERE)

    def _read_until(self, deadline_s: float, journal: RankJournal) -> bool:
        """Take steps until a time at most, or a few; return whether there are more."""
        cursor = self._cursors[journal]
        has_more = not cursor.is_complete and self._read(journal)
        while has_more and time.monotonic() < deadline_s:
            has_more = self._read(journal)
        return has_more

    def _read(self, journal: RankJournal) -> bool:
        """Take some steps of a rank that is not done; return whether there are more."""
        before = self._cursors[journal].position
        chunk = journal.recent.read(before, journal.head.sequence)
        self._skew.add(journal.run, [each for each in chunk.records if isinstance(each, StepEnded)])
        is_at_end = chunk.position.sequence >= journal.head.sequence
        is_over = (is_at_end and journal.lost is not None) or RunFinished in map(type, chunk.records)
        if is_over or chunk.position != before:
            self._cursors[journal] = Cursor(chunk.position, is_complete=is_over)
        return not is_at_end and not is_over and chunk.position != before

    def _find(self, journal: RankJournal) -> Cursor:
        """Return where the agent before was in a journal. A later one of the same name is another."""
        return self._found.pop((journal.folder.name, journal.run.started_unix_ns), _NOWHERE)

    def _save(self) -> None:
        places = [(each.folder.name, each.run.started_unix_ns, cursor) for each, cursor in self._cursors.items()]
        with suppress(OSError):  # then the next agent takes some steps again
            self._file.save(Cursor(state=msgspec.msgpack.encode(places)))


def _decode_places(state: bytes) -> dict[tuple[str, int], Cursor]:
    """Return where somebody was, by the name of a journal and when its run began."""
    try:
        places = msgspec.msgpack.decode(state, type=list[tuple[str, int, Cursor]]) if state else []
    except msgspec.DecodeError:  # of another version
        places = []
    return {(name, started_unix_ns): cursor for name, started_unix_ns, cursor in places}


_NOWHERE: Final = Cursor()
