"""What is known of the agent of a run: in the lock file, written by whoever holds the lock.

It tells the next one how often agents have ended before they were at work, and ranks with other settings whether the
agent that is at work does what they want.
"""

import os
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from periflow_otel.journal.files import read_end
from periflow_otel.journal.folders import AGENT_LOG, LOCK_FILE

FIRST_PAUSE_S: Final = 5.0
LONGEST_PAUSE_S: Final = 300.0
"""How long to wait after an agent that was never at work before another one is started: twice as long each time."""
_MAX_BYTES: Final = 4096


class AgentNote(msgspec.Struct, frozen=True):
    """Who has the lock of a run, or had it last. Times are of the monotonic clock, the same for all processes."""

    settings: str = ""
    """A name for what it delivers, and where to."""
    wanted_ns: int = 0
    """When a rank began that wants that: of two, the later one is right."""
    born_ns: int = 0
    failures: int = 0
    """How many agents in a row have failed, if this one does too; 0: it is at work."""
    log_bytes: int = 0
    """Length of the log at its birth: an agent that fails says why, one that is killed does not."""

    def is_due(self) -> bool:
        """Tell whether it is time for another agent, if this one has failed."""
        pause_s = min(FIRST_PAUSE_S * 2 ** (self.failures - 1), LONGEST_PAUSE_S)
        return not 0 <= time.monotonic_ns() - self.born_ns < pause_s * 1e9  # below 0: the machine was started again

    def encode(self) -> str:
        """Return the note as text."""
        return msgspec.json.encode(self).decode()

    def gives_way_to(self, other: "AgentNote") -> bool:
        """Tell whether somebody began later and wants something else."""
        return self.settings != other.settings and self.wanted_ns < other.wanted_ns


NO_NOTE: Final = AgentNote()
"""Of an agent that delivers what is left over: it gives way to any that a rank wants."""
UNKNOWN: Final = AgentNote(wanted_ns=sys.maxsize)
"""Of one that is being born, and has the lock but has not said yet what it does: it gives way to none."""


def read_note(folder: Path) -> AgentNote:
    """Return the note on the agent of a run; ``UNKNOWN`` if there is none yet, or it is being written."""
    return decode_note(read_end(folder / LOCK_FILE, _MAX_BYTES))


def decode_note(text: str | bytes) -> AgentNote:
    """Return a note from what ``encode`` makes of it; ``UNKNOWN`` if it is none."""
    try:
        return msgspec.json.decode(text, type=AgentNote)
    except msgspec.MsgspecError:
        return UNKNOWN


def write_note(lock: int, note: AgentNote) -> None:
    """Write the note through the descriptor that holds the lock.

    Raises:
        OSError: It cannot be written.
    """
    text = note.encode().encode()
    os.pwrite(lock, text, 0)
    os.ftruncate(lock, len(text))


def clear_note(lock: int) -> None:
    """Take the note back: nobody is to think that the next agent does what this one did.

    Raises:
        OSError: It cannot be written.
    """
    os.ftruncate(lock, 0)


def why_failed(folder: Path) -> str:
    """Return why the last agent of a run has failed before it was at work; nothing if it has not, or was killed."""
    note = read_note(folder)
    if not note.failures or log_bytes(folder) <= note.log_bytes:
        return ""
    lines = read_end(folder / AGENT_LOG, _MAX_BYTES).decode("utf-8", "replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def log_bytes(folder: Path) -> int:
    """Return the length of the agent's log; 0 if there is none."""
    try:
        return (folder / AGENT_LOG).lstat().st_size
    except OSError:
        return 0
