"""How far apart the ranks of a node begin a step, and which of them is the last.

Their ends would tell less: a step mostly ends with a collective, and that holds all ranks up for the slowest. What a
rank is late with shows when it begins: loading of data, evaluation, saving, and what it did after the last collective.
"""

import time
from collections.abc import Iterable
from functools import partial
from typing import Final

from periflow_otel import names
from periflow_otel.agent.pace import until_beat_s
from periflow_otel.agent.tracks import Budget, Track
from periflow_otel.agent.watch import RankJournal
from periflow_otel.exporters import Item
from periflow_otel.journal.cursors import Cursor
from periflow_otel.records import RankRun, StepEnded
from periflow_otel.translate.as_is import RecordTranslator
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
    """Reads the steps of all ranks, with a cursor of its own as a consumer has one."""

    def __init__(self, skew: StepSkew) -> None:
        """Begin without journals.

        Args:
            skew: Is given the steps.
        """
        self._skew = skew
        self._tracks: dict[RankJournal, Track] = {}
        self._due_s = 0.0

    def read(self, journals: Iterable[RankJournal], *, is_urgent: bool) -> None:
        """Take the steps that were not taken yet, when it is time or urgent; of very many only a part."""
        now_s = time.monotonic()
        if is_urgent or now_s >= self._due_s:
            self._tracks = {each: self._tracks.get(each) or _track(each) for each in journals}
            is_behind = [self._read_until(now_s + READ_S, track) for track in self._tracks.values()]
            self._due_s = now_s if any(is_behind) else now_s + until_beat_s(INTERVAL_S, now_s)

    def cursor(self, journal: RankJournal) -> Cursor:
        """Return how far it has got in a journal."""
        track = self._tracks.get(journal)
        return track.cursor if track else Cursor()

    def _read_until(self, deadline_s: float, track: Track) -> bool:
        """Take steps until a time at most; return whether there are more."""
        while has_more := self._read(track):
            if time.monotonic() >= deadline_s:
                break
        return has_more

    def _read(self, track: Track) -> bool:
        """Take some steps; return whether there are more."""
        budget = Budget(1)
        self._skew.add(track.run, track.read(budget, float("inf")))
        if track.has_moved():
            track.commit()
        return budget.is_spent()


def _track(journal: RankJournal) -> Track:
    return Track(journal, "skew", partial(RecordTranslator, StepEnded))
