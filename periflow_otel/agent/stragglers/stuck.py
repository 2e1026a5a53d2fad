"""Notices that the ranks of a node do not go on, asks what they are doing, and says which of them holds up the rest."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from periflow_otel import names
from periflow_otel.agent.stragglers.inquiry import Inquiry
from periflow_otel.agent.stragglers.progress import LONG_FACTOR, Progress
from periflow_otel.agent.watch import RankJournal
from periflow_otel.exporters import Item
from periflow_otel.records import RankRun, StepEnded
from periflow_otel.translate.stragglers.activities import HARMLESS
from periflow_otel.translate.stragglers.stuck import Finding, Witness
from periflow_otel.translate.stragglers.stuck_spans import StuckReport, describe, stuck_span
from periflow_otel.translate.telemetry import Point

_PAUSE_FACTOR: Final = 2
"""What is still so is said again after so many times as long."""
_MAX_PLACES: Final = 16
"""Of so many places a node's metric tells; what came before them is forgotten."""
_MS: Final = 1_000_000
_log = logging.getLogger("periflow_otel")

Tell = Callable[[list[Item]], None]


class StuckWatch:
    """Looks after the ranks of a run on this node. It waits for nothing."""

    def __init__(self, least_s: float, tell: Tell) -> None:
        """Begin without ranks.

        Args:
            least_s: Nothing is said of what has lasted for less.
            tell: Is given spans as soon as there is something to say.
        """
        self._least_s = least_s
        self._tell = tell
        self._progress: dict[RankJournal, Progress] = {}
        self._inquiry: Inquiry | None = None
        self._patience = 1.0
        self._report: StuckReport | None = None
        """What was said last, while it is so."""
        self._places: dict[tuple[str, str], float] = {}
        """For how long ranks have been stuck in a place, by both; 0: they are no more."""

    def look(self, journals: Iterable[RankJournal], now_s: float | None = None) -> None:
        """Look at all ranks; to be called every tenth of a second or so."""
        alive = [journal for journal in journals if journal.is_alive]
        self._progress = {each: self._progress.get(each) or _begin(each) for each in alive}
        now_s = time.monotonic() if now_s is None else now_s
        has_moved = [progress.look(each.head, now_s) for each, progress in self._progress.items()]
        if any(has_moved) or not alive:
            self._go_on(alive)
        elif self._inquiry is None and self._is_late():
            self._ask(alive)
        if self._inquiry is not None and self._inquiry.look():
            inquiry, self._inquiry = self._inquiry, None
            self._conclude(alive, inquiry)

    def report(self, run: RankRun) -> list[Item]:
        """Return a point for each place in which ranks are, or were, stuck."""
        if self._report is not None:
            self._note_place(self._report.finding, max(each.waited_s for each in self._progress.values()))
        time_unix_ns = time.time_ns() // _MS * _MS
        node = (names.NODE_RANK, run.node_rank)
        return [
            (run.of_agent(), Point(names.STUCK_TIME, ((names.STUCK_PLACE, place), (names.STUCK_RANKS, ranks), node),
                                   time_unix_ns, seconds))
            for (ranks, place), seconds in self._places.items()
        ]  # fmt: skip

    def _is_late(self) -> bool:
        return any(
            each.waited_s > self._patience * each.limit_s(self._least_s)
            for each in self._progress.values()
            if each.waited_s > self._least_s  # no limit is lower, and nearly all have waited for less
        )

    def _ask(self, alive: list[RankJournal]) -> None:
        going_on = [journal for journal in alive if not _is_over(journal)]
        self._patience *= _PAUSE_FACTOR
        if len(going_on) == len(alive):  # else a run comes to its end
            self._inquiry = Inquiry(going_on)

    def _conclude(self, journals: list[RankJournal], inquiry: Inquiry) -> None:
        finding, witnesses = inquiry.finding(), inquiry.witnesses()
        excuse = finding.excuse()
        if excuse in HARMLESS:
            for each in self._progress.values():
                each.forgive()
        elif excuse is None or self._is_too_long():
            self._say(journals, finding, witnesses)

    def _is_too_long(self) -> bool:
        """Tell whether even what takes long by nature should be over."""
        return any(each.waited_s > LONG_FACTOR * each.limit_s(self._least_s) for each in self._progress.values())

    def _say(self, journals: list[RankJournal], finding: Finding, witnesses: Iterable[Witness]) -> None:
        waited_s = max(each.waited_s for each in self._progress.values())
        number = self._report.number + 1 if self._report else 1
        self._report = StuckReport(finding, tuple(witnesses), time.time_ns(), waited_s, number)
        self._note_place(finding, waited_s)
        for each in self._progress.values():
            each.is_reported = True
        _log.warning("%s", describe(self._report))
        self._emit(journals, self._report)

    def _emit(self, journals: list[RankJournal], report: StuckReport) -> None:
        run = next((each.run for each in journals if each.run.rank == report.rank), None)
        if run is not None and (span := stuck_span(run, report)):
            self._tell([(run, span)])

    def _go_on(self, journals: list[RankJournal]) -> None:
        """Take note that some rank does."""
        self._inquiry, self._patience = None, 1.0
        report, self._report = self._report, None
        if report is not None:
            self._places = dict.fromkeys(self._places, 0.0)
            elapsed_s = report.waited_s + (time.time_ns() - report.time_unix_ns) / 1e9
            over = report._replace(waited_s=elapsed_s, time_unix_ns=time.time_ns(), is_over=True)
            _log.warning("%s", describe(over))
            self._emit(journals, over)

    def _note_place(self, finding: Finding, waited_s: float) -> None:
        self._places[finding.who(), finding.place()] = waited_s
        while len(self._places) > _MAX_PLACES:
            del self._places[next(iter(self._places))]


def _begin(journal: RankJournal) -> Progress:
    """Begin to look after a rank, which may have been at work for long."""
    return Progress([each for each in journal.reader.last_records() if isinstance(each, StepEnded)])


def _is_over(journal: RankJournal) -> bool:
    """Tell whether a rank has done what it was to do."""
    target = journal.run.total_steps
    return journal.reader.is_closed() or (target is not None and journal.head.step >= target)
