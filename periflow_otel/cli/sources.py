"""What commands are pointed at: runs by their id, files, folders."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from periflow_otel.errors import ConfigurationError
from periflow_otel.journal.files import read_own
from periflow_otel.journal.folders import SUMMARY_FILE, node_folders
from periflow_otel.journal.ledger import Entry, last_attempt
from periflow_otel.recordings import find_files, read_views
from periflow_otel.settings.paths import find_state_dirs
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
        source: A folder, a metric log, an OTLP JSON file, or the id of a run on this machine or in the working folder;
            of one on this machine its name too, which may be that of several: the latest is meant.

    Raises:
        ConfigurationError: There is no such thing.
    """
    try:
        return Source(find_files([Path(source)]))
    except ConfigurationError:
        run_id, logs = _word_of(source)
        files = find_files(logs or [Path()])
        if not logs and run_id not in read_views(files):
            raise
        return Source(files, run_id)


def _word_of(wanted: str) -> tuple[str, list[Path]]:
    """Return the id of a run that is called so, by that or by its name, and those of its metric logs that are there."""
    folders = (folder for state_dir in find_state_dirs(os.environ) for folder in reversed(node_folders(state_dir)))
    words = [word for folder in folders if (word := word_left(folder))]
    named = [word for word in words if word["id"] == wanted] or [word for word in words if word.get("name") == wanted]
    run_id = named[0]["id"] if named else wanted
    return run_id, [Path(log) for word in named if word["id"] == run_id for log in word["logs"] if Path(log).exists()]


def find_views(sources: Sequence[str], make_view: Callable[[str], RunView] = RunView) -> list[RunView]:
    """Return the views of runs; no source: all of the working folder.

    Args:
        sources: As for ``find_source``.
        make_view: Makes the view of a run that is meant from its id.

    Raises:
        ConfigurationError: A source is neither a file nor a run.
    """
    found: dict[str, RunView] = {}
    for source in map(find_source, sources or ["."]):
        views = read_views(source.files, partial(_view, source.run_id, make_view))
        found |= {run_id: view for run_id, view in views.items() if source.run_id in (None, run_id)}
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
