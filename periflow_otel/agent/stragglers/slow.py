"""Finds out which rank holds up the others, in a step that takes longer than usual, or in all.

One rank is watched for all, as ranks that meet within a step are slow together. Between looks nothing is read: it is
known when the present step will be late.
"""

import time
from collections.abc import Iterable
from typing import Final, NamedTuple

from periflow_otel.agent.stragglers.allowance import Allowance
from periflow_otel.agent.stragglers.random_looks import RandomLooks
from periflow_otel.agent.stragglers.rhythm import Rhythm, is_slow
from periflow_otel.agent.stragglers.sampling import Sampling
from periflow_otel.agent.stragglers.stuck import Tell
from periflow_otel.agent.watch import RankJournal
from periflow_otel.journal.reader import Head
from periflow_otel.translate.stragglers.slow import find_culprit
from periflow_otel.translate.stragglers.slow_spans import Slowness, slow_span

IDLE_S: Final = 1.0
"""How long nothing is looked at where there is nothing to see."""
MAX_RANKS: Final = 64
"""Of a node with more nobody is asked: each has files open for as long as a step lasts."""
_LEAST_PAUSE_S: Final = 0.001


class SlowWatch:
    """Looks after the ranks of a run on this node. It waits for nothing."""

    def __init__(self, longest_s: float, tell: Tell) -> None:
        """Begin without ranks.

        Args:
            longest_s: A step that takes longer is stuck, which somebody else says.
            tell: Is given spans.
        """
        self._longest_s = longest_s
        self._tell = tell
        self._for_steps, self._for_random_looks = Allowance(), Allowance()
        """Apart, so that steps which are looked at in vain leave something for looks at random moments."""
        self._follow([])

    def follow(self, journals: Iterable[RankJournal]) -> None:
        """Look after these from now on, if all of them are there."""
        alive = [journal for journal in journals if journal.is_alive]
        alive = alive if 1 < len(alive) <= MAX_RANKS and len(alive) == alive[0].run.local_world_size else []
        if alive != self._journals:
            self._follow(alive)

    def _follow(self, journals: list[RankJournal]) -> None:
        self._journals = journals
        self._rhythm = Rhythm()
        self._step: _Step | None = None
        self._random_looks = RandomLooks(journals, time.monotonic())

    def look(self) -> float:
        """Look at what it is time for; return after how many seconds to look again."""
        if not self._journals:
            return IDLE_S
        head, now_unix_ns = self._journals[0].reader.head(), time.time_ns()
        has_moved = self._rhythm.look(head) is not None
        if self._step is not None and (has_moved or self._step.seconds(now_unix_ns) > self._longest_s):
            step, self._step = self._step, None
            self._conclude(step, head)
        if self._step is not None:
            return self._step.look()
        left_s = self._rhythm.left_s(now_unix_ns)
        if left_s is None:
            return IDLE_S
        if left_s > 0 or not self._for_steps.allows(time.monotonic()):
            return max(_LEAST_PAUSE_S, min(left_s if left_s > 0 else IDLE_S, self._look_at_random(head)))
        self._random_looks.give_up()
        self._step = _Step(head, self._rhythm.usual_s or 0.0, Sampling(self._journals))
        return self._step.look()

    def _look_at_random(self, head: Head) -> float:
        """Look at the ranks if it is time for that; return after how many seconds to do so again."""
        now_s = time.monotonic()
        left_s = self._random_looks.left_s(now_s)
        if not self._random_looks.is_looking() and (left_s > 0 or not self._for_random_looks.allows(now_s)):
            return left_s if left_s > 0 else IDLE_S
        if pause_s := self._random_looks.look(now_s):
            return pause_s
        self._for_random_looks.pay(self._random_looks.cost_s)
        usual_s, culprit = self._rhythm.usual_s, self._random_looks.culprit()
        if culprit and usual_s:
            since_unix_ns, excess_s = self._random_looks.since_unix_ns, culprit.share * usual_s
            self._say(Slowness(head.step, since_unix_ns, time.time_ns(), excess_s, culprit, is_lasting=True))
        return self._random_looks.left_s(now_s)

    def _conclude(self, step: "_Step", head: Head) -> None:
        """Say who held up a step, now that it is over."""
        excess_s = step.excess_s(head)
        culprit = find_culprit(step.sampling.looks) if is_slow(excess_s + step.usual_s, step.usual_s) else None
        if culprit is not None:
            start_unix_ns = step.head.step_started_unix_ns
            end_unix_ns = start_unix_ns + int((step.usual_s + excess_s) * 1e9)
            self._say(Slowness(step.head.step, start_unix_ns, end_unix_ns, excess_s, culprit))
        self._for_steps.pay(step.sampling.cost_s, was_worth_it=culprit is not None)

    def _say(self, slow: Slowness) -> None:
        run = next(each.run for each in self._journals if each.run.rank == slow.culprit.ranks[0])
        if span := slow_span(run, slow):
            self._tell([(run, span)])


class _Step(NamedTuple):
    """A step that takes longer than usual."""

    head: Head
    usual_s: float
    sampling: Sampling

    def seconds(self, now_unix_ns: int) -> float:
        """Return how long it has taken so far."""
        return (now_unix_ns - self.head.step_started_unix_ns) / 1e9

    def excess_s(self, head: Head) -> float:
        """Return how much longer it has taken than usual; steps after it that have ended meanwhile took the usual."""
        steps = head.step - self.head.step
        return (head.step_started_unix_ns - self.head.step_started_unix_ns) / 1e9 - steps * self.usual_s

    def look(self) -> float:
        """Look at the ranks; return after how many seconds to look again."""
        self.sampling.look()
        return self.sampling.pause_s
