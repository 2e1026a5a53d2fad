"""Looks at all ranks of a node at once, time and again: where each is, and whether it runs or waits."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, NamedTuple

from periflow_otel.agent.stragglers.asking import Question, respondent
from periflow_otel.agent.watch import RankJournal
from periflow_otel.processes import is_held
from periflow_otel.translate.stragglers.slow import Doing, Look, Sample
from periflow_otel.translate.stragglers.stacks import Stack

MAX_LOOKS: Final = 20
"""So many tell what ranks do in a step, however long it takes."""
FIRST_PAUSE_S: Final = 0.01
"""Between the first looks; later ones are farther apart,"""
_GROWTH: Final = 1.25
LONGEST_PAUSE_S: Final = 0.2
"""up to this."""
ANSWER_S: Final = 3e-4
"""What an answer takes of a rank: ``faulthandler`` writes a stack of 30 calls in 300 small pieces."""


class Sampling:
    """It waits for nobody: ``look`` is to be called after ``pause_s`` each time."""

    def __init__(self, journals: Iterable[RankJournal], max_looks: int = MAX_LOOKS) -> None:
        """Begin; nobody has been asked yet.

        Args:
            journals: Of the ranks.
            max_looks: After so many nobody is asked any more.
        """
        self._max_looks = max_looks
        began_s = time.thread_time()
        self._asked = [_Asked(journal) for journal in journals]
        self.is_excused = any(is_held(each.journal.run.process.pid) for each in self._asked)
        """Somebody debugs a rank, or has stopped it."""
        self.looks: list[Look] = []
        self._spent_s = time.thread_time() - began_s

    @property
    def cost_s(self) -> float:
        """Processor time that it has taken so far, of this process or of each rank, whichever is more."""
        return max(self._spent_s, len(self.looks) * ANSWER_S)

    @property
    def pause_s(self) -> float:
        """How long the next look can wait."""
        return min(FIRST_PAUSE_S * _GROWTH ** len(self.looks), LONGEST_PAUSE_S)

    def look(self) -> None:
        """Take the answers that have come, and ask again unless that was often enough."""
        began_s = time.thread_time()
        answers = {each.journal.run.rank: sample for each in self._asked if (sample := each.answer())}
        if answers:
            self.looks.append(answers)
        if len(self.looks) < self._max_looks and not self.is_excused:
            for each in self._asked:
                each.ask()
        self._spent_s += time.thread_time() - began_s


class _Asked:
    """One rank."""

    def __init__(self, journal: RankJournal) -> None:
        self.journal = journal
        process = journal.run.process
        self._respondent = respondent(journal.folder, process)
        self._scheduler = _Scheduler(process.pid)
        self._before = _UNSEEN
        self._question: Question | None = None

    def ask(self) -> None:
        if self._question is None and self._respondent is not None:
            self._before = self._scheduler.look()
            with suppress(OSError):  # it has ended meanwhile
                self._question = self._respondent.ask()

    def answer(self) -> Sample | None:
        stack: Stack | None = self._question.answer() if self._question else None
        if stack is None:
            return None
        self._question = None
        return Sample(stack, _doing(self._before, self._scheduler.look()))


class _Scheduled(NamedTuple):
    """What the scheduler says of a main thread at one time."""

    time_ns: int
    ran_ns: int
    queued_ns: int
    """It could have run, but no processor was free, or it had had its share."""
    state: bytes


_UNSEEN: Final = _Scheduled(0, 0, 0, b"S")


class _Scheduler:
    """What the kernel shows of a process; where that is nothing, it seems to wait."""

    def __init__(self, pid: int) -> None:
        self._descriptors: list[int] = []
        with suppress(OSError):  # not Linux, or it has ended, or too many files are open
            for name in ("schedstat", "stat"):
                self._descriptors.append(os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC))

    def look(self) -> _Scheduled:
        try:
            counters, status = (os.pread(descriptor, 1024, 0) for descriptor in self._descriptors)
            ran_ns, queued_ns, _ = map(int, counters.split())
            state = status.rpartition(b")")[2][1:2]
        except (OSError, ValueError):
            return _UNSEEN
        return _Scheduled(time.monotonic_ns(), ran_ns, queued_ns, state)

    def __del__(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)


def _doing(before: _Scheduled, after: _Scheduled) -> Doing:
    ran_ns, queued_ns = after.ran_ns - before.ran_ns, after.queued_ns - before.queued_ns
    if 2 * (ran_ns + queued_ns) > after.time_ns - before.time_ns > 0:
        return Doing.QUEUES if queued_ns > ran_ns else Doing.COMPUTES
    return Doing.READS if after.state == b"D" else Doing.SLEEPS
