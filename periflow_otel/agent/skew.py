"""How far apart the ranks of a node begin a step, and which of them is the last.

Their ends would tell less: a step mostly ends with a collective, and that holds all ranks up for the slowest. What a
rank is late with shows when it begins: loading of data, evaluation, saving, and what it did after the last collective.
"""

import time
from collections.abc import Sequence
from threading import Lock
from typing import Final

from periflow_otel import names
from periflow_otel.agent.consumer import Item
from periflow_otel.exporters import Outcome
from periflow_otel.records import RankRun, StepEnded
from periflow_otel.translate.histograms import ExplicitBuckets
from periflow_otel.translate.telemetry import Point

MAX_OPEN_STEPS: Final = 1000
"""Steps that some rank has not taken yet; the oldest is given up when there are more, as its rank may be gone."""
_MS: Final = 1_000_000


class StepSkew:
    """An exporter that compares the ranks of this node step by step, and keeps the result for reports.

    It counts from the start of the agent. Steps that only a part of the ranks takes are left out.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._started_unix_ns = time.time_ns() // _MS * _MS
        self._starts: dict[tuple[int, int], dict[int, int]] = {}
        """By attempt and step: when each rank began it, Unix ns."""
        self._skews: dict[int, ExplicitBuckets] = {}
        """By the rank that was last."""
        self._lock = Lock()

    def export(self, items: Sequence[tuple[RankRun, StepEnded]]) -> Outcome:
        """Take steps of any ranks."""
        with self._lock:
            for run, ended in items:
                self._add(run, ended)
        return Outcome(len(items))

    def close(self) -> None:
        """Do nothing."""

    def report(self, run: RankRun) -> list[Item]:
        """Return a point for each rank that was ever the last one."""
        time_unix_ns = time.time_ns() // _MS * _MS
        node = (names.NODE_RANK, run.node_rank)
        with self._lock:
            return [
                (run, Point(names.STEP_SKEW, ((names.LAST_RANK, rank), node), time_unix_ns, skew.snapshot(),
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
