"""The agent of one run on one node: it sees the journals of all local ranks through to their end."""

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from periflow_otel.agent.consumer import Consumer
from periflow_otel.agent.destinations import durable_consumer, live_consumers
from periflow_otel.agent.machine.watching import MachineWatch
from periflow_otel.agent.pace import interval_for, until_beat_s
from periflow_otel.agent.reports import Reporter
from periflow_otel.agent.skew import SkewReader, StepSkew
from periflow_otel.agent.stragglers.slow import IDLE_S, SlowWatch
from periflow_otel.agent.stragglers.stuck import StuckWatch
from periflow_otel.agent.tenure import Tenure
from periflow_otel.agent.watch import RankJournal, find_journals
from periflow_otel.config.export import ExportSettings
from periflow_otel.exporters import Item
from periflow_otel.journal.agent_note import NO_NOTE, AgentNote
from periflow_otel.journal.cursors import Cursor, load_cursor
from periflow_otel.journal.emergency import take_request_file
from periflow_otel.journal.recent import Shelf
from periflow_otel.records import RankRun

LOOK_INTERVAL_S: Final = 0.1
"""How often the journals and the ranks are looked at, where there are not very many."""
LEAST_LINGER_S: Final = 2.0
"""How long the agent goes on at least after the last rank and the last success: as long as a first attempt may take."""
_STOP_TIMEOUT_S: Final = 2.0
_HAND_OVER_TIMEOUT_S: Final = 15.0
"""How long a request under way is waited for, so that the next agent does not send it again."""
_FINISH_TIMEOUT_S: Final = 0.3
_FAREWELL_S: Final = 10.0
"""How long who is looking at the page is waited for, so that it shows how the run has ended;"""
_BRIEF_FAREWELL_S: Final = 1.5
"""where a script waits for that, this."""

_log = logging.getLogger("periflow_otel")


class Agent:
    """Delivers what the ranks of a run record, until all of them are gone and everything is delivered."""

    def __init__(
        self,
        folder: Path,
        settings: ExportSettings,
        lock: int,
        next_lock: int | None = None,
        note: AgentNote = NO_NOTE,
        *,
        is_live: bool = True,
    ) -> None:
        """Prepare; ``serve`` does the work.

        Args:
            folder: Folder of the run.
            settings: Where to deliver.
            lock: Descriptor that holds the lock of the run; closed in the end.
            next_lock: Descriptor that holds the lock of the next agent, if another one still has that of the run.
            note: What the lock file says of this agent.
            is_live: Show the run while it lasts too: console and Prometheus endpoint.
        """
        self.folder = folder
        self.linger_s = settings.linger_s
        """Seconds to go on trying when all ranks are gone and nothing succeeds; a first attempt is always made."""
        self._settings = settings
        self._stopping = threading.Event()
        self._tenure = Tenure(folder, lock, next_lock, note, self._stopping)
        self.at_work = threading.Event()
        """Set when everything has been started that the journals ask for, or nothing will be."""
        self._is_live = is_live
        self._shelf = Shelf()
        self._journals = find_journals(folder, {}, self._shelf)
        self._durable: dict[str, Consumer | None] = {}
        self._live: list[Consumer] = []
        self._last_run: RankRun | None = None
        """A rank whose journal is gone: what there is to report belongs to its run."""
        self._reporter = Reporter(folder)
        self._skew = StepSkew()
        self._skew_reader: SkewReader | None = None
        self._machine: MachineWatch | None = None
        self._stuck = StuckWatch(settings.stuck_after_s, self._tell) if is_live and settings.stuck_after_s else None
        self._slow = SlowWatch(settings.stuck_after_s, self._tell) if self._stuck else None
        self._has_heir = False

    def stop(self) -> None:
        """Let ``serve`` return soon; what is not delivered stays in the journal."""
        self._stopping.set()

    def serve(self) -> bool:
        """Deliver until all is done, or all ranks are gone and time is up; return whether all is delivered."""
        try:
            if self._tenure.begin():
                self._serve()
                # A rank that began just now may have found this agent alive, and so has started none.
                while self._is_needed_again():
                    self._serve()
        except BaseException:
            self._tenure.note_failure()
            raise
        finally:
            self.at_work.set()
            self._tenure.close()
        return not self._journals

    def _serve(self) -> None:
        self._durable, self._live, self._skew_reader, self._machine = {}, [], None, None
        self._look()
        if self._is_live:
            self._live = list(live_consumers(self._settings, self.folder))
            if any(journal.run.local_world_size > 1 for journal in self._journals.values()):
                self._skew_reader = SkewReader(self.folder, self._skew)
            if self._settings.machine_interval_s:
                self._machine = MachineWatch(self.folder, self._settings.machine_interval_s)
        for consumer in self._live:
            consumer.start()
        self._tenure.note_work()
        self.at_work.set()
        try:
            self._watch()
        finally:
            if self._machine:
                self._machine.stop()
            consumers = self._consumers()
            self._offer_reports([consumer for consumer in consumers if consumer.takes_reports])
            for consumer in consumers:
                consumer.stop(0)
            for consumer in consumers:
                consumer.stop(_HAND_OVER_TIMEOUT_S if self._has_heir else _STOP_TIMEOUT_S)

    def _watch(self) -> None:
        idle_since_s = time.monotonic()
        progress = -1
        while not self._stopping.is_set():
            if self._tenure.has_ended():
                self._has_heir = True
                return
            self._look()
            is_alive = any(journal.is_alive for journal in self._journals.values())
            if is_alive or progress != (progress := self._progress()):
                idle_since_s = time.monotonic()
            idle_s = time.monotonic() - idle_since_s
            if not is_alive and not self._has_work():
                self._look()  # what was delivered since the last look is over
                if idle_s > _FAREWELL_S or not self._is_awaited():
                    return
            if idle_s > max(self.linger_s, LEAST_LINGER_S):
                return
            interval_s = interval_for(len(self._journals), LOOK_INTERVAL_S)
            self._pause(until_beat_s(interval_s, time.monotonic()))
        self._finish()

    def _pause(self, seconds: float) -> None:
        """Wait for the next beat; a step may be late before."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0 and not self._stopping.is_set():
            self._stopping.wait(min(left_s, self._look_for_slow_steps()))

    def _look_for_slow_steps(self) -> float:
        """Return after how many seconds to do so again."""
        try:
            return self._slow.look() if self._slow else IDLE_S
        except OSError:  # too many files are open: the next look may succeed
            return IDLE_S

    def _finish(self) -> None:
        """See a run to its end that was over when somebody said stop, if that takes no time."""
        deadline_s = time.monotonic() + _FINISH_TIMEOUT_S
        self._look()
        while self._has_work() and time.monotonic() < deadline_s:
            time.sleep(LOOK_INTERVAL_S / 10)
            self._look()
        deadline_s += _BRIEF_FAREWELL_S
        while self._is_awaited() and time.monotonic() < deadline_s:
            time.sleep(LOOK_INTERVAL_S / 10)

    def _is_awaited(self) -> bool:
        """Tell whether somebody is looking who does not know how it has ended."""
        return any(consumer.is_awaited() for consumer in self._live)

    def _progress(self) -> int:
        """Return a number that changes when something is delivered."""
        return sum(
            consumer.cursor(journal).position.sequence
            for journal in self._journals.values()
            for consumer in self._consumers()
        )

    def _has_work(self) -> bool:
        """Tell whether there is something to deliver that may yet succeed."""
        return any(
            reader is not None and not reader.cursor(journal).is_complete
            for journal in self._journals.values()
            for reader in self._readers(journal)
        )

    def _look(self) -> None:
        try:
            self._look_at_journals()
        except OSError as error:  # too many files are open: the next look may succeed
            _log.warning("the agent cannot look at the journals in %s: %s", self.folder, error.strerror or error)

    def _look_at_journals(self) -> None:
        take_request_file(self.folder)
        self._journals = find_journals(self.folder, self._journals, self._shelf)
        is_urgent = [journal.look() for journal in self._journals.values()]
        for journal in list(self._journals.values()):
            self._tidy(journal)
        self._start_consumers()
        for consumer in self._consumers():
            consumer.follow(self._journals.values())
            if any(is_urgent):
                consumer.hurry()
        self._give_up_declined()
        if self._skew_reader:
            self._skew_reader.read(self._journals.values(), is_urgent=any(is_urgent))
        if self._machine:
            self._machine.look(self._journals.values(), self._consumers())
        if self._stuck:
            self._stuck.look(self._journals.values())
        if self._slow:
            self._slow.follow(self._journals.values())
        self._offer_reports([consumer for consumer in self._consumers() if consumer.is_report_due()])

    def _tell(self, news: list[Item]) -> None:
        for consumer in self._consumers():
            if consumer.takes_news:
                consumer.tell(news)

    def _give_up_declined(self) -> None:
        """Have what a receiver does not take at all dropped, once everything else is done: it would fill the disk."""
        declined = [consumer for consumer in self._consumers() if consumer.is_declined()]
        if declined and all(self._waits_for_these(journal, declined) for journal in self._journals.values()):
            for consumer in declined:
                consumer.give_up()

    def _waits_for_these(self, journal: RankJournal, consumers: Sequence[Consumer]) -> bool:
        """Tell whether a run is over and all others have everything of it."""
        is_complete = [
            reader is not None and reader.cursor(journal).is_complete
            for reader in self._readers(journal)
            if reader not in consumers
        ]
        return all(is_complete) and (bool(is_complete) or not journal.is_alive)

    def _tidy(self, journal: RankJournal) -> None:
        """Give back the space of what every consumer has."""
        cursors = [self._cursor(journal, name) for name in journal.run.orders.consumers]
        cursors += [reader.cursor(journal) for reader in self._live_readers()]
        is_over = not journal.is_alive or bool(cursors)  # a run may also end long before its process
        if is_over and all(cursor.is_complete for cursor in cursors):
            self._reporter.keep(journal, self._consumers())
            self._last_run = journal.run
            journal.retire()
            del self._journals[journal.folder]
        else:
            journal.forget(min([cursor.position.segment for cursor in cursors], default=0))

    def _cursor(self, journal: RankJournal, name: str) -> Cursor:
        """Return how far a consumer is; one that could not be made is where an agent before has left it."""
        consumer = self._durable.get(name)
        return consumer.cursor(journal) if consumer else load_cursor(journal.folder, name)

    def _start_consumers(self) -> None:
        """Start what the journals ask for and is not there yet."""
        wanted = dict.fromkeys(name for journal in self._journals.values() for name in journal.run.orders.consumers)
        for name in wanted:
            if name not in self._durable:
                self._durable[name] = consumer = durable_consumer(name, self._settings, self.folder)
                if consumer is not None:
                    consumer.follow(self._journals.values())
                    consumer.start()

    def _readers(self, journal: RankJournal) -> list[Consumer | SkewReader | None]:
        """Return all that read a journal; None for one that could not be made."""
        return [*map(self._durable.get, journal.run.orders.consumers), *self._live_readers()]

    def _live_readers(self) -> list[Consumer | SkewReader]:
        return [*self._live, *([self._skew_reader] if self._skew_reader else [])]

    def _consumers(self) -> list[Consumer]:
        return [consumer for consumer in (*self._durable.values(), *self._live) if consumer is not None]

    def _offer_reports(self, consumers: Sequence[Consumer]) -> None:
        """Give what there is to say of this node and of the agent itself to those who want it."""
        journals = list(self._journals.values())
        run = journals[0].run if journals else self._last_run
        if run is not None and consumers:
            reports = self._reporter.report(run, journals, self._consumers()) + self._skew.report(run)
            reports += self._stuck.report(run) if self._stuck else []
            for consumer in consumers:
                consumer.offer(reports)

    def _is_needed_again(self) -> bool:
        """Let go of the lock, and take it back if there is a rank that nobody serves."""
        self._tenure.let_go()
        if self._stopping.is_set() or self._has_heir:
            return False
        self._journals = find_journals(self.folder, self._journals, self._shelf)
        for journal in self._journals.values():
            journal.look()
        return any(journal.is_alive for journal in self._journals.values()) and self._tenure.resume()
