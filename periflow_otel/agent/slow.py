"""Notices that a step takes longer than usual while it lasts, and has a look at what the ranks of the node do in it.

One rank is watched for all, as ranks that meet within a step are slow together. Between looks nothing is read: it is
known when the present step will be late.
"""

import time
from collections.abc import Iterable
from typing import Final

from periflow_otel.agent.allowance import Allowance
from periflow_otel.agent.rhythm import Rhythm, is_slow
from periflow_otel.agent.sampling import Sampling
from periflow_otel.agent.stuck import Tell
from periflow_otel.agent.watch import RankJournal
from periflow_otel.journal.reader import Head
from periflow_otel.translate.slow import find_culprit
from periflow_otel.translate.slow_spans import SlowStep, slow_span

IDLE_S: Final = 1.0
"""How long nothing is looked at where there is nothing to see."""
_LEAST_PAUSE_S: Final = 0.001


class SlowWatch:
    """Looks after the ranks of a run on this node. It waits for nothing."""

    def __init__(self, longest_s: float, tell: Tell) -> None:
        """Begin without ranks.

        Args:
            longest_s: A step that takes longer is stuck, which somebody else says.
            tell: Is given spans of slow steps.
        """
        self._longest_s = longest_s
        self._tell = tell
        self._journals: list[RankJournal] = []
        self._rhythm = Rhythm()
        self._allowance = Allowance()
        self._step: _Step | None = None

    def follow(self, journals: Iterable[RankJournal]) -> None:
        """Look after these from now on, if all of them are there."""
        alive = [journal for journal in journals if journal.is_alive]
        alive = alive if alive and len(alive) == alive[0].run.local_world_size else []
        if alive != self._journals:
            self._journals, self._rhythm, self._step = alive, Rhythm(), None

    def look(self) -> float:
        """Look at what it is time for; return after how many seconds to look again."""
        if len(self._journals) < 2:
            return IDLE_S
        head, now_unix_ns = self._journals[0].reader.head(), time.time_ns()
        has_moved = self._rhythm.look(head) is not None
        if self._step is not None and (has_moved or self._step.seconds(now_unix_ns) > self._longest_s):
            step, self._step = self._step, None
            self._conclude(step, head)
        if self._step is not None:
            return self._step.look()
        left_s = self._rhythm.left_s(now_unix_ns)
        if left_s is None or left_s > 0:
            return IDLE_S if left_s is None else max(left_s, _LEAST_PAUSE_S)
        if not self._allowance.allows(time.monotonic()):
            return IDLE_S
        self._step = _Step(head, self._rhythm.usual_s or 0.0, Sampling(self._journals))
        return self._step.look()

    def _conclude(self, step: "_Step", head: Head) -> None:
        """Say who held up a step, now that it is over."""
        began_ns = time.thread_time_ns()
        excess_s = step.excess_s(head)
        culprit = find_culprit(step.sampling.looks) if is_slow(excess_s + step.usual_s, step.usual_s) else None
        if culprit is not None:
            run = next(each.run for each in self._journals if each.run.rank == culprit.ranks[0])
            slow = SlowStep(step.head.step, step.head.step_started_unix_ns, excess_s, step.usual_s, culprit)
            if span := slow_span(run, slow):
                self._tell([(run, span)])
        cost_ns = step.cost_ns + time.thread_time_ns() - began_ns
        self._allowance.pay(cost_ns / 1e9, was_worth_it=culprit is not None)


class _Step:
    """A step that takes longer than usual."""

    def __init__(self, head: Head, usual_s: float, sampling: Sampling) -> None:
        self.head = head
        self.usual_s = usual_s
        self.sampling = sampling
        self.cost_ns = 0

    def seconds(self, now_unix_ns: int) -> float:
        """Return how long it has taken so far."""
        return (now_unix_ns - self.head.step_started_unix_ns) / 1e9

    def excess_s(self, head: Head) -> float:
        """Return how much longer it has taken than usual; steps after it that have ended meanwhile took the usual."""
        steps = head.step - self.head.step
        return (head.step_started_unix_ns - self.head.step_started_unix_ns) / 1e9 - steps * self.usual_s

    def look(self) -> float:
        """Look at the ranks; return after how many seconds to look again."""
        began_ns = time.thread_time_ns()
        self.sampling.look()
        self.cost_ns += time.thread_time_ns() - began_ns
        return self.sampling.pause_s
