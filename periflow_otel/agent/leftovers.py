"""Journals that earlier runs have left behind, because the agent or the machine ended before all was delivered.

They are delivered from the start of an agent on, whatever the machine was called: a container has another name each
time. A journal that may still be written to is left alone. A lock tells that, but on a file system that machines share
it may be one machine's own: there, a journal of another machine must have been closed, or have rested for long.
"""

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from periflow_otel.agent.agent import Agent
from periflow_otel.config.export import ExportSettings
from periflow_otel.journal.agent_lock import take_agent_lock
from periflow_otel.journal.folders import (
    ATTEMPTS,
    LOCK_FILE,
    is_readable,
    journal_folders,
    node_folders,
    other_node_folders,
    state_dir_of,
)
from periflow_otel.journal.ledger import note_end
from periflow_otel.journal.life import is_written
from periflow_otel.journal.mounts import is_local
from periflow_otel.journal.reader import JournalReader, unreadable_journals, written_journals
from periflow_otel.journal.space import drop_oldest, size_bytes
from periflow_otel.logs import speak_of
from periflow_otel.records import RankRun

KEPT_S: Final = 30 * 86_400.0
"""How long what a run has left is kept: journals that nobody takes, and then its folder, with its ledger and log."""
RESTED_S: Final = 86_400.0
"""How long nothing has moved of a run on a machine that is gone. An agent shows once a minute that it lives."""
SWEEP_INTERVAL_S: Final = 60.0
SHARED_INTERVAL_S: Final = 3600.0
"""How often one of the machines that share a state folder looks at what the others have left."""
_SWEPT: Final = "swept"

_log = logging.getLogger("periflow_otel")


def leftovers(state_dirs: Iterable[Path]) -> Iterator[Path]:
    """Yield the folders of runs on this node that hold journals, or may; some of the runs may be going on.

    After them come those on other nodes that are certainly over.
    """
    for state_dir in state_dirs:
        for folder in node_folders(state_dir):
            if any(journal_folders(folder)) or not is_readable(folder):
                yield folder
        for folder in other_node_folders(state_dir):
            if any(journal_folders(folder)) and not is_going_on(folder):
                yield folder


def is_going_on(folder: Path) -> bool:
    """Tell whether one of the journals of a run on a node may still be written to."""
    return any(_may_be_written(journal, run) for journal, run in _runs(folder))


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
    if is_going_on(folder):
        return None
    lock = take_agent_lock(folder)
    if lock is None:
        return None
    agent = Agent(folder, settings, lock, is_live=False)
    agent.linger_s = linger_s
    return agent.serve() and not unreadable_journals(folder)


def sweep(state_dirs: Iterable[Path], settings: ExportSettings, own: Path, is_over: threading.Event) -> None:
    """Look after what runs have left behind: at once, and again and again until ``is_over`` is set.

    Args:
        state_dirs: Where journals may be.
        settings: Where to deliver; what goes elsewhere, or there in the name of somebody else, waits.
        own: Folder of the run that this agent serves.
        is_over: Set when the agent has nothing else to do.
    """
    while True:
        with suppress(OSError):
            os.utime(own / LOCK_FILE)  # other machines that share the folder see that somebody lives here
        for state_dir in state_dirs:
            with suppress(OSError):  # too many files are open: the next time may succeed
                _sweep(state_dir, settings, own.resolve())
        if is_over.wait(SWEEP_INTERVAL_S):
            return


def _sweep(state_dir: Path, settings: ExportSettings, own: Path) -> None:
    others = list(other_node_folders(state_dir)) if is_local(state_dir) or _is_turn(state_dir) else []
    folders = [folder for folder in (*node_folders(state_dir), *others) if folder.resolve() != own]
    left = [folder for folder in folders if any(journal_folders(folder)) and not is_going_on(folder)]
    _keep_bound(left, settings.leftovers_max_bytes)
    for folder in left:
        with suppress(OSError):  # another agent was quicker
            _forget_old_journals(folder)
            if all(settings.sends_to(run.orders.destination) for _, run in _runs(folder)):
                with speak_of(folder.parent.name):
                    deliver_leftover(folder, settings, settings.linger_s)
    for folder in folders:
        _forget_old_run(folder)


def _is_turn(state_dir: Path) -> bool:
    """Tell whether nobody has looked at the folders of other machines for long, and let the others know."""
    stamp = state_dir / _SWEPT
    try:
        if time.time() - stamp.stat().st_mtime < SHARED_INTERVAL_S:
            return False
    except OSError:  # the first time
        pass
    with suppress(OSError):
        stamp.touch(0o600)
    return True


def _may_be_written(journal: Path, run: RankRun) -> bool:
    if JournalReader(journal).is_closed():
        return False
    if is_written(journal, run.process):
        return True
    is_evident = run.process.is_of_this_boot() or is_local(journal)
    return not is_evident and not _is_older(journal.parent, _moved_s(journal), RESTED_S)


def _moved_s(journal: Path) -> float:
    """Return when something moved last of a journal, its cursors or its agent."""
    changed_s = 0.0
    for entry in (*journal.iterdir(), journal.parent / LOCK_FILE):
        with suppress(OSError):  # on its way out
            changed_s = max(changed_s, entry.stat().st_mtime)
    return changed_s


def _is_older(run: Path, changed_s: float, age_s: float) -> bool:
    """Tell whether something in the folder of a run on a node changed so long ago, by both clocks that there may be."""
    return time.time() - changed_s > age_s and _now_s(state_dir_of(run)) - changed_s > age_s


def _now_s(state_dir: Path) -> float:
    """Return the time by the clock that files get theirs from: a file server has its own, and ours may be years off."""
    with suppress(OSError), tempfile.TemporaryFile(dir=state_dir) as file:
        file.write(b"\0")
        file.flush()
        return os.fstat(file.fileno()).st_mtime
    return time.time()


def _keep_bound(folders: Iterable[Path], max_bytes: int) -> None:
    """Drop the oldest segments of what runs have left where all together take too much."""
    journals = [journal for folder in folders for journal in journal_folders(folder)]
    excess = sum(map(size_bytes, journals)) - max_bytes
    if excess > 0:
        freed = drop_oldest(sorted(journals, key=_changed_s), excess)
        _log.warning(
            "what runs have left behind took more than %d MiB; the oldest %d MiB of it are dropped. "
            "PERIFLOW_JOURNAL_MAX_BYTES raises the bound.",
            max_bytes >> 20,
            freed >> 20,
        )


def _forget_old_journals(folder: Path) -> None:
    """Drop journals that nobody took in time; a line in the ledger of the run stays."""
    for journal in journal_folders(folder):
        if _is_older(folder, _changed_s(journal), KEPT_S):
            reader = JournalReader(journal)
            run, records = reader.run(), reader.head().sequence - reader.first_sequence()
            if run is not None:
                note_end(journal, run.attempt, int(_changed_s(journal) * 1e9))
            shutil.rmtree(journal, ignore_errors=True)
            _log.warning("%s is dropped with %d records, as nobody took them for 30 days", journal, records)


def _changed_s(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:  # on its way out
        return time.time()


def _runs(folder: Path) -> Iterator[tuple[Path, RankRun]]:
    for each in written_journals(folder):
        yield each.journal.folder, each.run


def _forget_old_run(folder: Path) -> None:
    with suppress(OSError):
        if _is_older(folder, _changed_s(folder), KEPT_S) and not any(journal_folders(folder)):
            shutil.rmtree(folder, ignore_errors=True)
            if {entry.name for entry in folder.parent.iterdir()} <= {ATTEMPTS}:  # no other node has a folder there
                shutil.rmtree(folder.parent, ignore_errors=True)
