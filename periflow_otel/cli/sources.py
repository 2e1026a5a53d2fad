"""What commands are pointed at: runs by their id, files, folders."""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from periflow_otel import names
from periflow_otel.cli.which import first_called
from periflow_otel.config.paths import find_state_dirs
from periflow_otel.errors import ConfigurationError
from periflow_otel.journal.files import read_own
from periflow_otel.journal.folders import SUMMARY_FILE, node_folders
from periflow_otel.journal.ledger import Entry, last_attempt
from periflow_otel.journal.reader import written_journals
from periflow_otel.recordings import find_files, read_views
from periflow_otel.view.records import RecordFeed, member_of
from periflow_otel.view.run_view import RunView

_MAX_BYTES = 1 << 20


class Source(NamedTuple):
    """Files, and which run of theirs is meant."""

    files: list[Path]
    run_id: str | None = None
    """None: all."""


def find_source(source: str) -> Source:
    """Return the files that a command is pointed at.

    Args:
        source: A folder, a metric log, an OTLP JSON file, or what a run on this machine is called, which may be so of
            several: the latest is meant; of one whose files are in the working folder, its id.

    Raises:
        ConfigurationError: There is no such thing, or it is a part of the ids of several runs.
    """
    try:
        return Source(find_files([Path(source)]))
    except ConfigurationError:
        if Path(source).exists():
            raise
    run = find_left(source)
    if run and run.logs:
        return Source(find_files(map(Path, run.logs)), run.run_id)
    files, run_id = find_files([Path()]), run.run_id if run else source
    if run_id not in read_views(files):
        message = f"{source}: no such run has files here, and there is no such file; 'periflow-otel runs' lists all"
        raise ConfigurationError(message)
    return Source(files, run_id)


class LeftRun(NamedTuple):
    """A run of this machine, by what it is called."""

    folder: Path
    run_id: str
    name: str
    logs: Sequence[str]


def find_left(wanted: str) -> LeftRun | None:
    """Return the run of this machine that is called so, with those of its metric logs that are there."""
    folders = [folder for state_dir in find_state_dirs(os.environ) for folder in reversed(node_folders(state_dir))]
    run = first_called([run for folder in folders if (run := _run_of(folder))], wanted)
    return run and run._replace(logs=[log for log in run.logs if Path(log).exists()])


def _run_of(folder: Path) -> LeftRun | None:
    """Return the run of a folder: from its journals while it goes on, afterwards from the word that is left."""
    if runs := [run for _, run in written_journals(folder)]:
        logs = sorted({run.local_log for run in runs if run.local_log})
        return LeftRun(folder, runs[0].run_id, str(dict(runs[0].resource).get(names.RUN_NAME, "")), logs)
    word = word_left(folder)
    return LeftRun(folder, word["id"], word.get("name") or "", word["logs"]) if word else None


def find_sources(sources: Sequence[str]) -> list[Source]:
    """Return what :func:`find_source` does for each; no source: the working folder."""
    return [find_source(source) for source in sources or ["."]]


def find_views(sources: Iterable[Source], make_view: Callable[[str], RunView] = RunView) -> list[RunView]:
    """Return the views of runs.

    Args:
        sources: Where they are recorded.
        make_view: Makes the view of a run that is meant from its id.

    Raises:
        ConfigurationError: Nothing is recorded there.
        OSError: A file cannot be read.
    """
    found: dict[str, RunView] = {}
    for source in sources:
        views = read_views(source.files, partial(_view, source.run_id, make_view))
        found |= {run_id: view for run_id, view in views.items() if source.run_id in (None, run_id)}
    if not found:
        message = "nothing is recorded there"
        raise ConfigurationError(message)
    return list(found.values())


def _view(wanted: str | None, make_view: Callable[[str], RunView], run_id: str) -> RunView:
    return make_view(run_id) if wanted in (None, run_id) else RunView(run_id)


def word_left(folder: Path) -> dict[str, Any] | None:
    """Return the word that agents of a run have left in its folder; None if there is none.

    Where the last of them showed no page, or was killed, less is known: how far the run came, and where its files are.
    """
    word, ended = _summary(folder), [entry for entry in last_attempt(folder) if entry.run]
    if word and word.get("attempt", 0) >= max((entry.attempt for entry in ended), default=0):
        return word
    return _summary_of(ended) if ended else word


def _summary(folder: Path) -> dict[str, Any] | None:
    with suppress(OSError, msgspec.DecodeError, msgspec.ValidationError):
        word = msgspec.json.decode(read_own(folder / SUMMARY_FILE, _MAX_BYTES) or b"", type=dict[str, Any])
        return word if "id" in word and isinstance(word.get("logs"), list) else None
    return None


def _summary_of(ended: Sequence[Entry]) -> dict[str, Any]:
    """Return what the ledger knows of a run."""
    runs = [entry.run for entry in ended if entry.run]
    view = RunView(runs[0].run_id)
    for entry, run in zip(ended, runs, strict=True):
        RecordFeed(view, run)
        view.rank(member_of(run)).begin_step(entry.last_step, entry.last_seen_unix_ns / 1e9)
    state = "killed" if any(entry.is_lost for entry in ended) else "unknown"
    step = min(entry.last_step for entry in ended)
    logs = sorted({run.local_log for run in runs if run.local_log})
    return {**view.summary(), "state": state, "step": step, "logs": logs}
