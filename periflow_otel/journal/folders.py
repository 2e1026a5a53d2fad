"""Where things are: one folder per run and node, one folder in it per rank and attempt.

    <state dir>/<run id>/<host name>/agent.lock      held by the agent
                                    /agent.log       what it had to say
                                    /control         the emergency-save word
                                    /prometheus.json where to scrape
                                    /ledger/         one line per rank and attempt that is over
                                    /a001-r00000/    the journal of rank 0 in attempt 1: segments and cursors

Nodes have folders of their own because home directories are often shared, and a journal is for one machine.
"""

import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

LOCK_FILE: Final = "agent.lock"
AGENT_LOG: Final = "agent.log"
DISCOVERY_FILE: Final = "prometheus.json"
LEDGER: Final = "ledger"

_JOURNAL: Final = re.compile(r"a(\d+)-r(\d+)")


def run_folder(state_dir: Path, run_id: str) -> Path:
    """Return the folder of a run; it need not exist."""
    name = quote(run_id, safe=" ")
    return state_dir / (name if name.strip(".") else f"%2E{name}")


def node_folder(run_folder: Path) -> Path:
    """Return the folder of a run on this node; it need not exist."""
    return run_folder / (quote(socket.gethostname(), safe="") or "localhost")


def node_folders(state_dir: Path) -> list[Path]:
    """Return the folders of all runs on this node, the one that has been left alone longest first."""
    folders = [folder for run in _entries(state_dir) if (folder := node_folder(run)).is_dir()]
    return sorted(folders, key=lambda folder: folder.stat().st_mtime)


def journal_folder(folder: Path, attempt: int, rank: int) -> Path:
    """Return the folder of one rank's journal within the folder of its run."""
    return folder / f"a{attempt:03d}-r{rank:05d}"


def journal_folders(folder: Path) -> Iterator[Path]:
    """Yield the journals of a run, the oldest attempt first."""
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return
    yield from (folder / entry for entry in entries if _JOURNAL.fullmatch(entry))


def last_attempt(folder: Path, rank: int) -> int:
    """Return the number of the last attempt in which a rank took part on this node; 0 if there was none."""
    found = (_JOURNAL.match(entry.name) for place in (folder, folder / LEDGER) for entry in _entries(place))
    return max((int(match[1]) for match in found if match and int(match[2]) == rank), default=0)


def make_private(folder: Path) -> None:
    """Create a folder that only this user may enter, with all folders above it.

    Raises:
        OSError: It cannot be made, is a link, or belongs to somebody else.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        message = f"{folder} is not a folder of this user"
        raise PermissionError(message)
    if status.st_mode & 0o077:
        folder.chmod(0o700)


def _entries(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except OSError:
        return
