"""What a rank hands over: its journals to an agent, which it starts, and for which it waits at the end."""

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from periflow_otel.config.run import RunSettings
from periflow_otel.journal.cursors import is_delivered
from periflow_otel.journal.no_journal import NoJournal
from periflow_otel.journal.stacks import speaker
from periflow_otel.journal.writer import JournalWriter
from periflow_otel.records import RankRun
from periflow_otel.startup import Beginning

if TYPE_CHECKING:
    from periflow_otel.launcher import AgentLauncher

_LEAST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.1
_DELETION_TIMEOUT_S: Final = 1.0
_STOP_TIMEOUT_S: Final = 1.0
_log = logging.getLogger("periflow_otel")


class Handover:
    """The journals of one rank, one for each attempt that it made, and the agent that delivers them."""

    def __init__(self, beginning: Beginning) -> None:
        """Begin with no journal; nothing is started yet."""
        self._settings: RunSettings = beginning.settings
        self._journal_folder = beginning.place.journal
        self._ended: list[tuple[Path, int]] = []
        self._has_journal = False
        self._beginning = beginning if beginning.is_recording else None
        self._launcher: AgentLauncher | None = None
        self._prepare()

    @property
    def may_be_late(self) -> bool:
        """Whether an agent is to deliver, so that what it has not delivered in time is worth a word."""
        return self._has_journal and self._settings.agent != "off"

    def open_journal(self, run: RankRun, opening: bytes) -> JournalWriter | NoJournal:
        """Return where a run is recorded: in a journal, if there can be one; ``opening`` begins its segments."""
        if self._beginning is None:
            return NoJournal()
        journal = JournalWriter(self._journal_folder, run, max_bytes=self._settings.journal_max_bytes, opening=opening)
        self._has_journal = _is_there(self._journal_folder)
        if self._has_journal and self._settings.can_be_asked:
            speaker.speak(self._journal_folder)
        return journal

    def next_journal(self, folder: Path, records: int) -> None:
        """Go on in another folder: the journal before is over, with so many records."""
        self._ended.append((self._journal_folder, records))
        self._journal_folder = folder

    def ensure_agent(self) -> bool:
        """See to it that there is an agent, and tell whether there is one."""
        self._prepare()
        speaker.look(self._journal_folder)
        return self._launcher is not None and self._launcher.ensure()

    def wait(self, records: int, timeout_s: float | None) -> bool:
        """Wait until so many records of the present journal are delivered, and all of those before; or a time is over.

        Returns:
            Whether they are. True where nothing is recorded.
        """
        if self._beginning is None:
            return True
        if not self.may_be_late or not (self._is_delivered(records) or self.ensure_agent()):
            return False
        began_s = time.monotonic()
        deadline_s = began_s + (self._settings.exit_timeout_s if timeout_s is None else timeout_s)
        while not self._is_delivered(records):
            if not time.monotonic() < deadline_s:
                return False
            time.sleep(_pause_s(began_s))
        return True

    def wait_for_the_end(self, records: int, timeout_s: float | None) -> bool:
        """Wait as ``wait`` does, and then for a moment until the journals are deleted, which may take up much space.

        The end of this process may be the end of its container, and so of the agent.
        """
        deadline_s = time.monotonic() + (self._settings.exit_timeout_s if timeout_s is None else timeout_s)
        is_delivered = self.wait(records, timeout_s)
        began_s = time.monotonic()
        deadline_s = min(deadline_s, began_s + _DELETION_TIMEOUT_S)
        while is_delivered and self.may_be_late and _is_there(self._journal_folder) and time.monotonic() < deadline_s:
            time.sleep(_pause_s(began_s))
        return is_delivered

    def stop_agent(self) -> None:
        """End an agent that is a thread of this process."""
        if self._launcher is not None:
            self._launcher.stop(_STOP_TIMEOUT_S)

    def _is_delivered(self, records: int) -> bool:
        journals = (*self._ended, (self._journal_folder, records))
        return all(is_delivered(folder, self._settings.awaited, count) for folder, count in journals)

    def _prepare(self) -> None:
        """Have what starts an agent, unless nothing can be loaded now: too many files are open, say."""
        if self._launcher is None and self._beginning is not None:
            try:
                self._launcher = _launcher(self._beginning)
            except (OSError, ImportError) as error:
                _log.warning("no agent can be started now (%s); it is tried again", getattr(error, "strerror", error))


def _pause_s(began_s: float) -> float:
    """Return how long to wait before the next look: a tenth of the wait so far, which is late by little."""
    return min(max(_LEAST_PAUSE_S, (time.monotonic() - began_s) / 10), _LONGEST_PAUSE_S)


def _is_there(folder: Path) -> bool:
    return os.path.isdir(folder)  # noqa: PTH112  # Path raises where it may not look


def _launcher(beginning: Beginning) -> "AgentLauncher":
    from periflow_otel.launcher import AgentLauncher  # noqa: PLC0415  # needs fcntl, which Windows has not

    return AgentLauncher(beginning.place.folder, beginning.settings, beginning.environ)
