"""The runs that this machine knows of: those that go on, and those whose agents have left word of them."""

import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from periflow_otel.cli.sources import word_left
from periflow_otel.cli.which import first_called
from periflow_otel.config.paths import find_state_dirs
from periflow_otel.errors import ConfigurationError
from periflow_otel.journal.folders import node_folders
from periflow_otel.journal.pages import page_url
from periflow_otel.journal.reader import JournalReader, Position, written_journals
from periflow_otel.recordings import find_files, open_recording, read_views
from periflow_otel.records import RankRun
from periflow_otel.view.records import RecordFeed
from periflow_otel.view.run_view import RunView

_log = logging.getLogger("periflow_otel")

View = dict[str, Any]
"""What ``RunView.to_dict`` returns."""
_TIMEOUT_S: Final = 5.0
_NO_SERIES: Final = 10**14
"""A revision after which nothing has changed yet."""
_CHUNK: Final = 1000
_FIRST_LINE_BYTES: Final = 2 << 20


class KnownRun(NamedTuple):
    """A run of this node, or of the working folder."""

    folder: Path
    """On this node; where there is none, that of its files."""
    summary: Mapping[str, Any]
    """As of ``RunView.summary``."""
    is_live: bool
    logs: list[str]
    """Metric logs, or the files themselves."""

    @property
    def run_id(self) -> str:
        """Its id."""
        return str(self.summary["id"])

    @property
    def name(self) -> str:
        """What people call it."""
        return self.summary.get("name") or ""


def known_runs(state_dirs: Iterable[Path], here: Path) -> list[KnownRun]:
    """Return the runs of this node of which something is known, and those whose files are here; the latest first."""
    folders = [folder for state_dir in state_dirs for folder in node_folders(state_dir)]
    runs = [run for folder in folders if (run := _known_run(folder))]
    runs += _runs_of_files(here, {run.run_id for run in runs})
    return sorted(runs, key=lambda run: (run.is_live, run.summary["seen"] or 0.0), reverse=True)


def find_run(wanted: str | None) -> KnownRun | None:
    """Return the run of this machine or of files that is called so; None for the latest that goes on, else the latest.

    Raises:
        ConfigurationError: It is a part of the ids of several.
    """
    here = Path(wanted) if wanted is not None and Path(wanted).exists() else Path()
    runs = known_runs(find_state_dirs(os.environ), here)
    return next(iter(runs), None) if wanted is None else first_called(runs, wanted)


def ranks_at_work(folder: Path) -> list[RankRun]:
    """Return the ranks of a run on this node whose process lives and has not ended the run."""
    return [each.run for each in written_journals(folder) if each.is_alive and not each.journal.is_closed()]


def view_of(run: KnownRun) -> View:
    """Return all that can be learnt of a run: from its page, from its files, or from its journals."""
    page = _page(run.folder) if run.is_live else None
    if page is None:
        page = _from_files(run)
    return _from_journals(run) if page is None else page


def _known_run(folder: Path) -> KnownRun | None:
    ranks = ranks_at_work(folder)
    word = word_left(folder)
    if ranks:
        logs = sorted({run.local_log for run in ranks if run.local_log})
        page = _page(folder, _NO_SERIES) or _view_of_journals(folder, ranks[0].run_id).to_dict(_NO_SERIES)
        return KnownRun(folder, page["run"], is_live=True, logs=logs)
    return None if word is None else KnownRun(folder, word, is_live=False, logs=word["logs"])


def _runs_of_files(here: Path, known: Collection[str]) -> Iterator[KnownRun]:
    """Yield the runs of files that no agent of this node has left: from elsewhere, or of long ago."""
    try:
        files = [file for file in find_files([here]) if not _is_of(file, known)]
        views = read_views(files)
    except ConfigurationError:  # what was asked for is no file of a run
        return
    except OSError as error:
        _log.warning("this folder cannot be read: %s", error.strerror or error)
        return
    for run_id, view in views.items():
        if run_id not in known:
            yield KnownRun(here, view.summary(), is_live=False, logs=list(map(str, files)))


def _is_of(file: Path, known: Collection[str]) -> bool:
    """Tell whether a file begins with a run that is known: it may be too large to be read for nothing."""
    with suppress(OSError), open_recording(file) as lines:
        first = lines.readline(_FIRST_LINE_BYTES)
        return any(msgspec.json.encode(run_id) in first for run_id in known)
    return True


def _page(folder: Path, since: int = 0) -> View | None:
    """Ask the agent of a run; None if it shows no page."""
    url = page_url(folder)
    if url is None:
        return None
    from http.client import HTTPConnection, HTTPException  # noqa: PLC0415  # takes a while, and most runs are over

    place = urlsplit(url)
    connection = HTTPConnection(place.netloc, timeout=_TIMEOUT_S)
    with suppress(OSError, HTTPException, msgspec.DecodeError, msgspec.ValidationError):
        connection.request("GET", f"{place.path}/data.json?since={since}")
        response = connection.getresponse()
        if response.status == 200:
            return msgspec.json.decode(response.read(), type=View)
    return None


def _from_files(run: KnownRun) -> View | None:
    with suppress(OSError, ConfigurationError):
        views = read_views(find_files([Path(log) for log in run.logs]))
        return views[run.run_id].to_dict() if run.run_id in views else None
    return None


def _from_journals(run: KnownRun) -> View:
    view = _view_of_journals(run.folder, run.run_id)
    whole = view.to_dict(now_s=time.time() if run.is_live else None)
    return whole if view.ranks else whole | {"run": {**run.summary, "config": {}}}


def _view_of_journals(folder: Path, run_id: str) -> RunView:
    """Make a view of what is not delivered everywhere yet: the state is right, and of the curves the end is there."""
    view = RunView(run_id)
    for journal, run in written_journals(folder):
        _feed(view, journal, run)
    return view


def _feed(view: RunView, journal: JournalReader, run: RankRun) -> None:
    feed, position = RecordFeed(view, run), Position()
    while (chunk := journal.read(position, _CHUNK)).position != position:
        position = chunk.position
        feed.feed(chunk.records)
    head = journal.head()
    if head.step_started_unix_ns:
        feed.step_began(head.step, head.step_started_unix_ns)
    feed.settle()
