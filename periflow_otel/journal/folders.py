"""Where things are: one folder per run and node, one folder in it per rank and attempt.

    <state dir>/<run id>/<host name>/agent.lock      held by the agent; a note on it
                                    /agent.next      held by the one that waits to take its place
                                    /agent.log       what it had to say
                                    /control         the emergency-save word
                                    /prometheus.json where to scrape
                                    /page.url        where to look
                                    /reports         what the agents have counted of journals that are gone
                                    /skew.cursor     how far all journals are read for how far apart ranks begin a step
                                    /emergency-save  put here by somebody who wants one
                                    /ledger/         one line per rank and attempt that is over
                                    /a001-r00000/    the journal of rank 0 in attempt 1: segments, cursors, and
                                                     the lock of its writer

    <state dir>/<run id>/@attempts/                 who took part in which attempt, on all nodes that see it

Nodes have folders of their own because home directories are often shared, and a journal is for one machine.
"""

import hashlib
import logging
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final
from urllib.parse import quote

from periflow_otel.journal.files import SCARCE, names_own

LOCK_FILE: Final = "agent.lock"
NEXT_LOCK_FILE: Final = "agent.next"
AGENT_LOG: Final = "agent.log"
DISCOVERY_FILE: Final = "prometheus.json"
PAGE_FILE: Final = "page.url"
SUMMARY_FILE: Final = "summary.json"
"""How a run was when its agent was done, and where its metric logs are."""
LEDGER: Final = "ledger"
ATTEMPTS: Final = "@attempts"
"""Beside the folders of nodes, and named as none of them can be."""
EMERGENCY_FILE: Final = "emergency-save"

_log = logging.getLogger("periflow_otel")
_MAX_NAME_CHARS: Final = 200
_JOURNAL: Final = re.compile(r"a(\d+)-r(\d+)")


def run_folder(state_dir: Path, run_id: str) -> Path:
    """Return the folder of a run; it need not exist. Different runs have different ones, whatever their ids."""
    name = quote(run_id, safe=" ", errors="surrogatepass")
    if len(name) > _MAX_NAME_CHARS:  # file systems take 255 bytes
        digest = hashlib.sha256(name.encode()).hexdigest()
        name = f"{name[: _MAX_NAME_CHARS - 33]}~{digest[:32]}"
    return state_dir / (name if name.strip(".") else f"%2E{name}")


def private_inside(folder: Path) -> Path:
    """Return the folder for what is this user's in one that others use too; it need not exist."""
    return folder / f"periflow-{os.geteuid()}"  # a user in a container may have no name


def node_folder(run_folder: Path) -> Path:
    """Return the folder of a run on this node; it need not exist."""
    return run_folder / (quote(socket.gethostname(), safe="") or "localhost")


def state_dir_of(node_folder: Path) -> Path:
    """Return the state folder that holds the folder of a run on a node."""
    return node_folder.parents[1]


def node_folders(state_dir: Path) -> list[Path]:
    """Return the folders of all runs on this node, the one that has been left alone longest first.

    Before these come those of this user that may be there, but cannot be looked at.
    """
    folders = map(node_folder, _entries(_own_target(state_dir)))
    found = [(changed_s, folder) for folder in folders if (changed_s := _changed_s(folder)) is not None]
    return [folder for _, folder in sorted(found)]


def other_node_folders(state_dir: Path) -> Iterator[Path]:
    """Yield the folders that runs have on other nodes, or had on this one by another name, as containers have."""
    for run in _entries(_own_target(state_dir)):
        own = node_folder(run).name
        yield from (each for each in _entries(run) if each.name not in (own, ATTEMPTS) and _changed_s(each))


def is_readable(folder: Path) -> bool:
    """Tell whether this process may look into a folder; not if there is none."""
    return os.access(folder, os.R_OK | os.X_OK)


def journal_folder(folder: Path, attempt: int, rank: int) -> Path:
    """Return the folder of one rank's journal within the folder of its run."""
    return folder / f"a{attempt:03d}-r{rank:05d}"


def journal_folders(folder: Path) -> Iterator[Path]:
    """Yield the journals of a run, the oldest attempt first."""
    yield from _journals_among(folder, tuple(_names(folder)))


@lru_cache(maxsize=8)
def _journals_among(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Return the journals among what is in a folder; remembered, as an agent looks at the same ones again and again."""
    found = [(numbers, folder / name) for name in names if (numbers := _numbers(name))]
    return [journal for _, journal in sorted(found)]


def rank_of(journal: Path) -> int | None:
    """Return the rank whose journal is in a folder; None if the folder is not called so."""
    numbers = _numbers(journal.name)
    return numbers[1] if numbers else None


def own_attempts(folder: Path, rank: int) -> list[int]:
    """Return the attempts of a rank that left something in the folder of its run on this node."""
    try:
        entries = map(_numbers, (*_names(folder), *_names(folder / LEDGER)))
    except OSError:  # too many files are open: nobody has two journals of one name, at any rate
        return []
    return sorted({numbers[0] for numbers in entries if numbers and numbers[1] == rank})


def last_lines(folder: Path) -> list[Path]:
    """Return the lines of the ledger of a run on this node that its last attempt has there, one for each rank."""
    entries = [(numbers, folder / LEDGER / name) for name in _names(folder / LEDGER) if (numbers := _numbers(name))]
    last = max((attempt for (attempt, _), _ in entries), default=0)
    return [path for (attempt, _), path in sorted(entries) if attempt == last]


def claim_journal(folder: Path, attempt: int, rank: int) -> Path:
    """Create a folder for a journal that no other process has, and return it.

    It has a later number than the attempt's where an earlier one left a journal, and nothing else, behind.

    Raises:
        OSError: It cannot be created.
    """
    while not _create(journal_folder(folder, attempt, rank)):
        attempt += 1
    return journal_folder(folder, attempt, rank)


def make_private(folder: Path) -> None:
    """Create a folder that only this user may enter, with all folders above it.

    Raises:
        OSError: It cannot be made, is a link, or belongs to somebody else.
    """
    if not folder.parent.exists():
        make_private(folder.parent)
    _create(folder)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        message = f"{folder} is not a folder of this user"
        raise PermissionError(message)
    if status.st_mode & 0o077:
        folder.chmod(0o700)


def _changed_s(folder: Path) -> float | None:
    """Return when something in a folder of a run came or went; 0 if nobody can tell, None if it is none of ours."""
    try:
        parent = folder.parent.lstat()
        status = folder.lstat() if _is_own_folder(parent) else None
    except PermissionError:
        return 0
    except OSError:
        return None
    return status.st_mtime if status and _is_own_folder(status) else None


def _is_own_folder(status: os.stat_result) -> bool:
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _own_target(state_dir: Path) -> Path:
    """Return where a state folder is that may be a link, as to a larger disk: one that this user or root has made."""
    try:
        is_trusted = state_dir.lstat().st_uid in (0, os.geteuid())
    except OSError:
        return state_dir
    return state_dir.resolve() if is_trusted and state_dir.is_symlink() else state_dir


def left_alone(state_dir: Path) -> Iterator[Path]:
    """Yield what is in a state folder where runs of this user would be, or in its place, and is not this user's own."""
    state_dir = _own_target(state_dir)
    runs = _entries(state_dir)
    for folder in (state_dir, *runs, *map(node_folder, runs)):
        with suppress(OSError):
            status = folder.lstat()
            if not _is_own_folder(status) and not stat.S_ISREG(status.st_mode):
                yield folder


def _create(folder: Path) -> bool:
    """Create a folder that is not there; return whether it was this process that did."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return False
    folder.chmod(0o700)  # whatever the umask is
    return True


def _numbers(name: str) -> tuple[int, ...]:
    """Return the attempt and the rank that an entry is about; nothing if it is about none."""
    match = _JOURNAL.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else ()


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder of this user, as :func:`_names` does."""
    return [folder / name for name in _names(folder)]


def _names(folder: Path) -> list[str]:
    """Return the names of what is in a folder of this user; nothing of anybody else's.

    Raises:
        OSError: This process has too many files open.
    """
    try:
        return names_own(folder)
    except OSError as error:
        if error.errno in SCARCE:
            raise
        if error.errno is None:  # not this user's own
            _log.warning("%s", error)
        return []
