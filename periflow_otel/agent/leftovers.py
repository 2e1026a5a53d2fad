"""Journals that earlier runs have left behind, because the agent or the machine ended before all was delivered."""

import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from periflow_otel.agent.agent import Agent
from periflow_otel.config import ExportSettings
from periflow_otel.journal.agent_lock import take_agent_lock
from periflow_otel.journal.folders import journal_folders, node_folders

KEPT_S: Final = 30 * 86_400.0
"""How long the folder of a run, with its ledger and log, stays when there is nothing left in it to deliver."""
_LOOK_INTERVAL_S: Final = 0.5


def leftovers(state_dir: Path) -> Iterator[Path]:
    """Yield the folders of runs on this node that hold journals; an agent may be at work in them."""
    yield from (folder for folder in node_folders(state_dir) if any(journal_folders(folder)))


def deliver_leftover(folder: Path, settings: ExportSettings, linger_s: float) -> bool | None:
    """Deliver what a run has left behind.

    Args:
        folder: Folder of the run.
        settings: Where to deliver.
        linger_s: Seconds to try.

    Returns:
        Whether everything is delivered; None if an agent is at work there.
    """
    lock = take_agent_lock(folder)
    if lock is None:
        return None
    agent = Agent(folder, settings, lock, is_live=False)
    agent.linger_s = linger_s
    return agent.serve()


def deliver_leftovers(state_dir: Path, settings: ExportSettings, first: Agent) -> None:
    """Deliver what all runs have left behind, once ``first`` has delivered its own: fresh data goes first."""
    while not first.is_caught_up():
        time.sleep(_LOOK_INTERVAL_S)
    for folder in leftovers(state_dir):
        with suppress(OSError):  # another agent was quicker
            deliver_leftover(folder, settings, settings.linger_s)
    _forget_old_runs(state_dir)


def _forget_old_runs(state_dir: Path) -> None:
    for folder in node_folders(state_dir):
        with suppress(OSError):
            is_old = time.time() - folder.stat().st_mtime > KEPT_S
            if is_old and not any(journal_folders(folder)):
                shutil.rmtree(folder, ignore_errors=True)
