"""Shows a run in a browser while it lasts: ``/run`` is its page, and ``/`` names all runs of the node.

Nobody may be looking, so what comes in is put away in bounded space, many records at once, and made into a page only
when somebody asks. What earlier attempts have left in files is read at the first such time, in a thread of its own.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import msgspec

from periflow_otel import names
from periflow_otel.errors import ConfigurationError
from periflow_otel.exporters import Outcome, taken
from periflow_otel.journal.files import replace_file
from periflow_otel.journal.folders import SUMMARY_FILE, node_folders, state_dir_of
from periflow_otel.journal.pages import announce_page, forget_page, page_url
from periflow_otel.page.assets import asset
from periflow_otel.page.live import index_html, live_html
from periflow_otel.records import RankLost, RankRun, RunFinished
from periflow_otel.view.records import RecordFeed
from periflow_otel.view.run_view import RunView
from periflow_otel.web.http import Request, Response, refusal
from periflow_otel.web.site import Site

PATH: Final = "/run"
_MAX_WAITING: Final = 4096
"""Records of all ranks that may wait to be put away: some megabytes, and a fraction of the work of few at a time."""
_IS_WATCHED_S: Final = 10.0
"""A page in a browser asks once a second, one that is hidden every five."""
_MAX_VIEWERS: Final = 64
_HTML: Final = "text/html; charset=utf-8"
_ENDINGS: Final = frozenset({RunFinished, RankLost})

_log = logging.getLogger("periflow_otel")


class LivePage:
    """Takes the records of all ranks of a run on this node, and shows them under the address of the agent."""

    def __init__(self, site: Site, folder: Path) -> None:
        """Begin to show.

        Args:
            site: Where the page is; closed in the end.
            folder: Folder of the run. A file in it says where the page is as long as this lives.
        """
        self._site = site
        self._folder = folder
        self._lock = threading.Lock()
        self._view: RunView | None = None
        self._feeds: dict[RankRun, RecordFeed] = {}
        self._waiting = 0
        """Records that were fed since all was put away."""
        self._changed_s = float("-inf")
        """When there was something new,"""
        self._asked_s: OrderedDict[str, float] = OrderedDict()
        """and when each page in a browser has asked for it last."""
        self._has_read_files = False
        self._has_left_word = False
        self._name = str(time.time_ns())
        """A browser that has seen another page at this address must not take this one for more of it."""
        site.add("/", self._index)
        site.add(PATH, lambda _: Response(live_html().encode(), _HTML))
        site.add(f"{PATH}/data.json", self._data)
        site.add("/static/*", _static)
        if url := self.url:
            announce_page(folder, url)

    @property
    def url(self) -> str | None:
        """Where the page is; None if it is not served."""
        return self._site.url(PATH)

    def export(self, items: Sequence[tuple[RankRun, Any]]) -> Outcome:
        """Take records, steps that began, spans of stuck ranks and slow steps, and what agents say otherwise."""
        with self._lock:
            self._changed_s = time.monotonic()
            for run, group in groupby(items, itemgetter(0)):
                self._feed(run, [item for _, item in group])
            # Before the journal goes, which a script waits for that ends: afterwards its folder may be deleted.
            if not _ENDINGS.isdisjoint(type(item) for _, item in items):
                self._leave_word()
        return taken(len(items))

    def is_awaited(self) -> bool:
        """Tell whether somebody is looking who does not know all there is yet."""
        with self._lock:
            since_s = time.monotonic() - _IS_WATCHED_S
            return any(since_s < asked_s < self._changed_s for asked_s in self._asked_s.values())

    def close(self) -> None:
        """Stop serving, and leave word of how the run was."""
        if self._site.is_served:
            self._site.close()
        forget_page(self._folder)
        self._leave_word()

    def _leave_word(self) -> None:
        if self._view is None or self._has_left_word:
            return
        self._settle()
        logs = sorted({run.local_log for run in self._feeds if run.local_log})
        with suppress(OSError):  # the disk is full
            replace_file(self._folder / SUMMARY_FILE, msgspec.json.encode({**self._view.summary(), "logs": logs}))
            self._has_left_word = True

    def _feed(self, run: RankRun, items: list[Any]) -> None:
        if self._view is None:
            self._view = RunView(run.run_id)
        if run.is_of_agent():
            if any(item.instrument not in names.OF_AGENT for item in items):
                self._settle()  # what is seen of the machine is of the step that goes on
            self._view.add_reports(items)
            return
        feed = self._feeds.get(run)
        if feed is None:
            feed = self._feeds[run] = RecordFeed(self._view, run)
        feed.feed(items)
        self._has_left_word = False
        self._waiting += len(items)
        if self._waiting >= _MAX_WAITING:
            self._settle()

    def _settle(self) -> None:
        """Put away what was fed."""
        self._waiting = 0
        for feed in self._feeds.values():
            feed.settle()

    def _data(self, request: Request) -> Response:
        self._read_files()
        with self._lock:
            self._settle()
            whole = self._whole(request, self._view) if self._view else None  # nothing may be recorded yet
            self._note_asked(request.query.get("viewer", ""))
        return Response(msgspec.json.encode(whole), "application/json")

    def _note_asked(self, viewer: str) -> None:
        self._asked_s[viewer] = time.monotonic()
        self._asked_s.move_to_end(viewer)
        if len(self._asked_s) > _MAX_VIEWERS:
            self._asked_s.popitem(last=False)

    def _whole(self, request: Request, view: RunView) -> dict[str, Any]:
        since = _revision(request) if request.query.get("page") == self._name else 0
        return {**view.to_dict(since, now_s=time.time()), "page": self._name}

    def _index(self, _: Request) -> Response:
        state_dir = state_dir_of(self._folder)
        pages = [(folder.parent.name, page_url(folder)) for folder in reversed(node_folders(state_dir))]
        own = self._folder.parent.name
        return Response(index_html([(name, url, name == own) for name, url in pages if url]).encode(), _HTML)

    def _read_files(self) -> None:
        """Have read what earlier attempts have left, once and without waiting for it."""
        with self._lock:
            runs = list(self._feeds)
            if self._has_read_files or not runs:
                return
            self._has_read_files = True
        if any(run.earlier for run in runs):
            threading.Thread(target=self._take_files, args=(runs,), name="periflow-files", daemon=True).start()

    def _take_files(self, runs: Sequence[RankRun]) -> None:
        from periflow_otel.recordings import find_files, read_views  # noqa: PLC0415  # few agents need it

        try:
            logs = [Path(run.local_log) for run in runs if run.local_log]
            earlier = read_views(find_files(logs)).get(runs[0].run_id)
        except (OSError, ConfigurationError) as error:
            _log.warning("what earlier attempts have left cannot be shown: %s", error)
            return
        with self._lock:
            if earlier and self._view:
                self._view.add_earlier(earlier)


def _revision(request: Request) -> int:
    since = request.query.get("since", "")
    return int(since) if since.isdecimal() and len(since) < 16 else 0


def _static(request: Request) -> Response:
    found = asset(request.path.removeprefix("/static/"))
    return Response(found[0].encode(), found[1]) if found else refusal(HTTPStatus.NOT_FOUND)
