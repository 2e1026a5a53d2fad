"""Journals that earlier runs have left behind, because the agent or the machine ended before all was delivered."""

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from periflow_otel.agent.agent import Agent
from periflow_otel.config import ExportSettings
from periflow_otel.journal.agent_lock import take_agent_lock
from periflow_otel.journal.folders import is_readable, journal_folders, node_folders
from periflow_otel.journal.life import is_written
from periflow_otel.journal.reader import JournalReader, unreadable_journals
from periflow_otel.records import RankRun

KEPT_S: Final = 30 * 86_400.0
"""How long the folder of a run, with its ledger and log, stays when there is nothing left in it to deliver."""
_LOOK_INTERVAL_S: Final = 0.5


def leftovers(state_dirs: Iterable[Path]) -> Iterator[Path]:
    """Yield the folders of runs on this node that hold journals, or may; some of the runs may be going on."""
    for folder in (folder for state_dir in state_dirs for folder in node_folders(state_dir)):
        if any(journal_folders(folder)) or not is_readable(folder):
            yield folder


def deliver_leftover(folder: Path, settings: ExportSettings, linger_s: float) -> bool | None:
    """Deliver what a run has left behind.

    Args:
        folder: Folder of the run on this node.
        settings: Where to deliver.
        linger_s: Seconds to go on trying when nothing succeeds.

    Returns:
        Whether everything is delivered; None if the run is going on, or an agent is at work there.

    Raises:
        OSError: The folder cannot be used.
    """
    if any(is_written(journal, run.process) for journal, run in _runs(folder)):
        return None
    lock = take_agent_lock(folder)
    if lock is None:
        return None
    agent = Agent(folder, settings, lock, is_live=False)
    agent.linger_s = linger_s
    return agent.serve() and not unreadable_journals(folder)


def deliver_leftovers(state_dirs: Iterable[Path], settings: ExportSettings, first: Agent) -> None:
    """Deliver what runs have left behind that go to the same place, once ``first`` has delivered its own."""
    while not first.is_caught_up():
        time.sleep(_LOOK_INTERVAL_S)
    for folder in leftovers(state_dirs):
        with suppress(OSError):  # another agent was quicker
            if all(run.orders.destination in ("", settings.destination()) for _, run in _runs(folder)):
                deliver_leftover(folder, settings, settings.linger_s)
    for state_dir in state_dirs:
        _forget_old_runs(state_dir)


def _runs(folder: Path) -> Iterator[tuple[Path, RankRun]]:
    for journal in journal_folders(folder):
        if run := JournalReader(journal).run():
            yield journal, run


def _forget_old_runs(state_dir: Path) -> None:
    for folder in node_folders(state_dir):
        with suppress(OSError):
            is_old = time.time() - folder.stat().st_mtime > KEPT_S
            if is_old and not any(journal_folders(folder)):
                shutil.rmtree(folder, ignore_errors=True)
                folder.parent.rmdir()  # unless other nodes have folders there
