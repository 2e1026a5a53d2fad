"""Takes one exporter through all journals of a run, in a thread of its own."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextvars import copy_context
from typing import Any, Final

from periflow_otel.agent.delivery import Delivery, SetAside
from periflow_otel.agent.deltas import Deltas
from periflow_otel.agent.lanes import Lane
from periflow_otel.agent.pace import MAX_BACKOFF_S, Turns, until_beat_s
from periflow_otel.agent.tracks import Track
from periflow_otel.agent.watch import RankJournal
from periflow_otel.exporters import Exporter, IsWatched, Item, ShowsState
from periflow_otel.journal.cursors import Cursor
from periflow_otel.translate import MakeTranslator

MAX_NEWS: Final = 64
"""So many spans on what the agent has found out may wait for a receiver."""
REPORT_EVERY: Final = 10
"""After so many intervals a report is wanted, whether the state of the instruments is due or not: who waits for a
straggler's name does not want to wait long for it."""

REPORTS: Final = "reports"
"""What the items on the agent itself are called among those that it offers."""

_log = logging.getLogger("periflow_otel")


class Consumer:
    """Reads, delivers and commits, round by round. All but ``start`` and ``stop`` may be called from any thread."""

    def __init__(  # noqa: PLR0913  # most are given by name
        self,
        name: str,
        exporter: Exporter[Any],
        translator: MakeTranslator,
        set_aside: SetAside | None = None,
        *,
        interval_s: float,
        refresh_s: float = float("inf"),
        takes_reports: bool = False,
        takes_news: bool = False,
        is_per_rank: bool = False,
        adds_up: bool = False,
    ) -> None:
        """Prepare a consumer; ``start`` sets it going.

        Args:
            name: Names its cursors.
            exporter: Where items go.
            translator: Makes a translator for a rank.
            set_aside: Keeps what is not taken; None drops it.
            interval_s: How often it delivers what is there; where there are many ranks, of a part of them.
            refresh_s: How often it delivers the state of the instruments even if nothing is new.
            takes_reports: It wants items on the agent itself too, and on the machine.
            takes_news: It wants spans of what the agent has found out.
            is_per_rank: Ranks have destinations of their own, and one that fails does not hold up the others.
            adds_up: It wants of sums on the agent and the machine what has come since the last time.
        """
        self.name = name
        self.takes_reports = takes_reports
        self.takes_news = takes_news
        self.last_success_s = time.monotonic()
        """On the monotonic clock; when nothing is left to deliver, that is a success too."""
        self._exporter = exporter
        self._translator = translator
        self._set_aside = set_aside
        self._interval_s = interval_s
        self._refresh_s = refresh_s
        self._report_s = min(refresh_s, REPORT_EVERY * interval_s)
        self._is_per_rank = is_per_rank
        self._deltas = Deltas() if adds_up else None
        self._journals: list[RankJournal] = []
        self._tracks: dict[RankJournal, Track] = {}
        self._lanes: dict[RankJournal | None, Lane] = {}
        self._turns: Turns[Track] = Turns(interval_s)
        self._offered: dict[str, Sequence[Item]] = {}
        self._reported_at_s = time.monotonic()
        self._news: deque[Item] = deque(maxlen=MAX_NEWS)
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._gives_up = threading.Event()
        serve = copy_context().run  # what is logged there is about the run that is spoken of here
        self._thread = threading.Thread(target=serve, args=(self._serve,), name=f"periflow-{name}", daemon=True)

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End after the batch under way, as long as it is taken; what is not delivered stays in the journal."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout_s)

    def follow(self, journals: Iterable[RankJournal]) -> None:
        """Say which journals there are."""
        self._journals = list(journals)

    def hurry(self) -> None:
        """Deliver at once what is there."""
        self._wake.set()

    def is_declined(self) -> bool:
        """Tell whether its receiver takes nothing of the kind, up to now."""
        return any(lane.delivery.is_declined for lane in list(self._lanes.values()))

    def give_up(self) -> None:
        """Drop and count everything that is left, if its receiver takes nothing of the kind."""
        self._gives_up.set()
        self._wake.set()

    def is_report_due(self) -> bool:
        """Tell whether items on the agent itself are wanted."""
        return self.takes_reports and time.monotonic() - self._reported_at_s >= self._report_s

    def offer(self, items: Sequence[Item], of: str = REPORTS) -> None:
        """Give items that are of no journal, to be delivered in the next round, in the order of their offers.

        Args:
            items: On the agent itself, or on the machine.
            of: Names what they are: the next offer of it takes the place of one that is not delivered.
        """
        if of == REPORTS:
            self._reported_at_s = time.monotonic()
        self._offered.pop(of, None)  # the new one comes last
        self._offered[of] = items

    def tell(self, news: Sequence[Item]) -> None:
        """Give spans, to be delivered at once, or as soon as that can be; the oldest of very many are dropped."""
        self._news.extend(news)
        self._wake.set()

    def is_awaited(self) -> bool:
        """Tell whether somebody is looking who does not know all there is yet."""
        return isinstance(self._exporter, IsWatched) and self._exporter.is_awaited()

    def cursor(self, journal: RankJournal) -> Cursor:
        """Return what became of a journal so far."""
        track = self._tracks.get(journal)
        return track.cursor if track else Cursor()

    def _serve(self) -> None:
        is_hurried = False
        while not self._stopping.is_set():
            try:
                has_more = self._round(is_hurried=is_hurried)
            except Exception:  # noqa: BLE001  # whatever it is, the next round may succeed
                _log.exception("%s failed unexpectedly; trying again", self.name)
                self._tracks, self._lanes = {}, {}  # back to the committed state
                has_more = False
                self._stopping.wait(MAX_BACKOFF_S)
            is_hurried = self._wake.wait(0 if has_more else self._wait_s())
            self._wake.clear()
        if all(lane.delivery.is_done() for lane in self._lanes.values()):
            self._report()
        self._exporter.close()

    def _round(self, *, is_hurried: bool) -> bool:
        """Deliver some records, of those ranks whose turn it is, or of all; return whether there are more."""
        self._open_tracks()
        tracks = self._tracks.values()
        due = set(tracks if is_hurried else self._turns.take(tracks, time.monotonic()))
        if self._gives_up.is_set():
            self._give_up()
        has_more = [  # a list, as each has its turn
            lane.advance(tracks, [track for track in tracks if track in due])
            for lane, tracks in self._lanes_with_tracks()
        ]
        is_done = [lane.delivery.is_done() for lane in self._lanes.values()]
        if any(is_done) or not is_done:
            self.last_success_s = time.monotonic()
        if all(is_done):
            self._report()
        return any(has_more) and not self._stopping.is_set()

    def _give_up(self) -> None:
        self._gives_up.clear()
        for lane, tracks in self._lanes_with_tracks():
            if lane.delivery.is_declined:
                lane.give_up(tracks)

    def _wait_s(self) -> float:
        """Return how long to wait for the next round."""
        now_s = time.monotonic()
        due_s = [lane.delivery.due_s for lane in self._lanes.values() if not lane.delivery.is_done()]
        return max(0.0, min([until_beat_s(self._interval_s, now_s), *(each - now_s for each in due_s)]))

    def _open_tracks(self) -> None:
        tracks = {journal: self._track(journal) for journal in self._journals}
        gone = [journal.run for journal in self._tracks.keys() - tracks.keys()]
        self._tracks = tracks
        if isinstance(self._exporter, ShowsState):
            for run in gone:
                self._exporter.forget(run)

    def _track(self, journal: RankJournal) -> Track:
        """Return the track of a journal; a new one goes on where the cursor is."""
        return self._tracks.get(journal) or Track(journal, self.name, self._translator)

    def _lanes_with_tracks(self) -> list[tuple[Lane, list[Track]]]:
        wanted: dict[RankJournal | None, list[Track]] = {} if self._is_per_rank else {None: []}
        for journal, track in self._tracks.items():
            wanted.setdefault(journal if self._is_per_rank else None, []).append(track)
        self._lanes = {key: self._lanes.get(key) or self._open_lane(tracks) for key, tracks in wanted.items()}
        return [(self._lanes[key], tracks) for key, tracks in wanted.items()]

    def _open_lane(self, tracks: Sequence[Track]) -> Lane:
        name = f"{self.name} of rank {tracks[0].run.rank}" if self._is_per_rank else self.name
        return Lane(Delivery(name, self._exporter, self._set_aside), self._refresh_s)

    def _report(self) -> None:
        """Deliver what the agent has found out, and what there is to say of itself and of the machine."""
        if news := list(self._news):
            done = self._exporter.export(news).done
            while done and self._news and self._news[0] in news[:done]:
                self._news.popleft()
        reports = [item for of in list(self._offered) for item in self._offered.pop(of, ())]
        if self._deltas:
            reports = list(self._deltas.since_delivery(reports))
        if reports and self._exporter.export(reports).done and self._deltas:
            self._deltas.note_delivery()
