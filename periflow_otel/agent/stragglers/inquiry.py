"""What the ranks of a node are doing: each is asked for its stack some times, a look of the agent between."""

from collections.abc import Iterable, Sequence
from typing import Final

from periflow_otel.agent.stragglers.asking import Question, ask
from periflow_otel.agent.watch import RankJournal
from periflow_otel.processes import is_held
from periflow_otel.records import StepEnded
from periflow_otel.translate.stragglers.activities import HARMLESS, Activity
from periflow_otel.translate.stragglers.stacks import Stack
from periflow_otel.translate.stragglers.stuck import Finding, Witness, find_culprits

STACKS: Final = 8
"""So many of each rank tell work from waiting."""
_PATIENCE: Final = 10
"""After so many looks without an answer there is none."""


class Inquiry:
    """One of all ranks. It waits for nobody: ``look`` is to be called until it is over, some tens of ms apart."""

    def __init__(self, journals: Iterable[RankJournal], stacks: int = STACKS) -> None:
        """Begin; nobody has been asked yet.

        Args:
            journals: Of the ranks that are there.
            stacks: How many to ask each for.
        """
        self._witnesses = [_Asked(journal, stacks) for journal in journals]

    def look(self) -> bool:
        """Take the answers that have come, and ask again; return whether it is over."""
        is_over = [each.look() for each in self._witnesses]
        return all(is_over) or any(each.activity in HARMLESS for each in self._witnesses)

    def finding(self) -> Finding:
        """Return what the answers come to."""
        run = self._witnesses[0].journal.run
        gone = max(0, run.local_world_size - len(self._witnesses))
        return find_culprits(self.witnesses(), gone, max(0, run.world_size - run.local_world_size))

    def witnesses(self) -> Sequence[Witness]:
        """Return what each has said."""
        return [each.witness() for each in self._witnesses]


class _Asked:
    """One rank that is asked."""

    def __init__(self, journal: RankJournal, stacks: int) -> None:
        self.journal = journal
        self.activity = Activity.IS_STOPPED if is_held(journal.run.process.pid) else None
        self._left = stacks
        self._stacks: list[Stack] = []
        self._question: Question | None = None
        self._looks = 0

    def look(self) -> bool:
        if self._question and (stack := self._question.answer()) is not None:
            self._stacks.append(stack)
            self._question, self._looks, self._left = None, 0, self._left - 1
        self._looks += 1
        if self._left and self._question is None and self.activity is None:
            self._question = ask(self.journal.folder, self.journal.run.process)
            return self._question is None
        return self._left == 0 or self._looks > _PATIENCE or self.activity is not None

    def witness(self) -> Witness:
        head = self.journal.reader.head()
        is_open = bool(head.step_started_unix_ns) and not _has_ended(self.journal, head.step)
        return Witness(self.journal.run.rank, head.step, is_open, tuple(self._stacks), self.activity)


def _has_ended(journal: RankJournal, step: int) -> bool:
    """Tell whether a step has ended, as far as the last records say."""
    return any(isinstance(each, StepEnded) and each.step == step for each in journal.reader.last_records())
