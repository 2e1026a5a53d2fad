"""Asking the ranks of this node for an emergency save: all of them at the same step, and once."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from periflow_otel.journal.control import ANY_STEP, Control, Request
from periflow_otel.journal.files import read_own
from periflow_otel.journal.folders import EMERGENCY_FILE, node_folders
from periflow_otel.journal.reader import written_journals
from periflow_otel.records import RankRun

SETTLING_S: Final = 0.1
"""How long an empty request file is left alone: a number may be about to be written into it."""
_MAX_BYTES: Final = 100

_log = logging.getLogger("periflow_otel")


class LiveRank(NamedTuple):
    """A rank whose process lives."""

    run: RankRun
    step: int
    """The last step that it began, in this attempt or before."""


class LiveRun(NamedTuple):
    """A run that is going on."""

    run_id: str
    folder: Path
    """Its folder on this node."""


class Asked(NamedTuple):
    """What became of a request."""

    ranks: int
    """How many ranks see it; 0: the run is over."""
    request: Request
    """The one that counts now."""
    is_new: bool
    """False: the ranks were about to save already, and the request before counts."""


def live_ranks(folder: Path) -> list[LiveRank]:
    """Return the ranks of a run on this node that live."""
    ranks = {}
    for each in written_journals(folder):
        if each.is_alive:  # a later attempt in the same process takes the place of the one before
            ranks[each.run.rank] = LiveRank(each.run, max(each.journal.head().step, each.run.initial_step))
    return list(ranks.values())


def live_runs(state_dir: Path) -> Iterator[LiveRun]:
    """Yield the runs of this node with a rank that lives."""
    for folder in node_folders(state_dir):
        if ranks := live_ranks(folder):
            yield LiveRun(ranks[0].run.run_id, folder)


def request_save(folder: Path, step: int | None = None, *, is_signal: bool = False) -> Asked:
    """Ask all ranks of a run on this node to save, unless they are about to.

    Args:
        folder: Folder of the run on this node.
        step: When. Default: as soon as all ranks can at the same step.
        is_signal: As in :meth:`Control.request`.

    Raises:
        ValueError: A rank may have passed ``step`` already.
        OSError: The control file cannot be written.
    """
    ranks = live_ranks(folder)
    steps = [rank.step for rank in ranks]
    earliest = max(steps, default=0) + min(len(steps), 2)
    if step is not None and step < earliest:
        message = f"step {step} is too early, as a rank is in step {max(steps)} already; give {earliest} or more"
        raise ValueError(message)
    control = Control(folder)
    since_unix_ns = max((rank.run.started_unix_ns for rank in ranks), default=0)
    is_new = control.request(
        ANY_STEP if step is None else step, steps=steps, since_unix_ns=since_unix_ns, is_signal=is_signal
    )
    return Asked(len(ranks), control.last(), is_new)


def take_request_file(folder: Path) -> None:
    """Do what the file says that somebody may have put into the folder of a run: a step, or nothing, to save now."""
    file = folder / EMERGENCY_FILE
    try:
        changed_s = file.lstat().st_mtime
        text = read_own(file, _MAX_BYTES)
        if text is None:
            _log.warning("%s asks for no emergency save: it is not a file of this user with a step in it", file)
            return
        if not text.strip() and abs(time.time() - changed_s) < SETTLING_S:
            return
        file.unlink()
        request_save(folder, int(text) if text.strip() else None)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        _log.warning("%s asks for no emergency save: %s", file, error)
