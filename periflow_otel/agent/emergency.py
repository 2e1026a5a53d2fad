"""Asking the ranks of this node for an emergency save, from outside of training."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from periflow_otel.agent.watch import RankJournal, find_journals
from periflow_otel.journal.control import ANY_STEP, Control
from periflow_otel.journal.folders import EMERGENCY_FILE, node_folders
from periflow_otel.journal.processes import is_process_alive


class LiveRun(NamedTuple):
    """A run that is going on."""

    run_id: str
    folder: Path
    """Its folder on this node."""


def live_runs(state_dir: Path) -> Iterator[LiveRun]:
    """Yield the runs of this node with a rank that lives."""
    for folder in node_folders(state_dir):
        if journals := _live_journals(folder):
            yield LiveRun(journals[0].run.run_id, folder)


def request_save(folder: Path, step: int | None = None) -> int:
    """Ask all ranks of a run on this node to save.

    Args:
        folder: Folder of the run on this node.
        step: When. Default: at the next step, the same for all ranks.

    Returns:
        The number of ranks that were asked; 0: the run is over, and nobody was.

    Raises:
        OSError: The control file cannot be written.
    """
    journals = _live_journals(folder)
    if journals:
        next_step = max(journal.reader.head().step for journal in journals) + 1
        Control(folder).request(ANY_STEP if step is None else step, not_before=next_step)
    return len(journals)


def take_request_file(folder: Path) -> None:
    """Do what the file says that somebody may have put into the folder of a run: a step, or nothing, to save now."""
    file = folder / EMERGENCY_FILE
    with suppress(OSError, ValueError):
        text = file.read_text(encoding="ascii").strip()
        file.unlink()
        request_save(folder, int(text) if text else None)


def _live_journals(folder: Path) -> list[RankJournal]:
    return [
        journal
        for journal in find_journals(folder, {}).values()
        if is_process_alive(journal.run.pid, journal.run.process_start, journal.run.boot_id)
    ]
