"""Emergency saves, as a training process sees them: what is asked for, and what answers it."""

import logging
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from periflow_otel.journal.control import ANY_STEP, Control, Request
from periflow_otel.journal.emergency import request_save
from periflow_otel.training.preemption import SignalWatch

_log = logging.getLogger("periflow_otel")


class EmergencySaves:
    """The requests for an emergency save that reach one rank."""

    def __init__(self, folder: Path | None, signals: Sequence[signal.Signals]) -> None:
        """Begin to see requests; one that an earlier attempt got is none of ours.

        Args:
            folder: Of the run on this node; None where nothing can be asked for.
            signals: Those that ask for a save on all ranks of this node.
        """
        self._folder = folder
        self._control: Control | None = None
        self._answered = 0
        self.look()
        self._due_step: int | None = None
        self._signals = SignalWatch(signals, self._ask) if signals else None

    def look(self) -> None:
        """Open the control word, unless it is open and where others find it: somebody may have deleted its file."""
        before = self._control
        if self._folder is None or (before is not None and before.is_in_place()):
            return
        try:
            self._control = Control(self._folder)
        except OSError as error:
            _log.warning("no emergency save can be asked for: %s (%s)", self._folder, error.strerror or error)
        else:
            self._answered = self._control.number() if before is None else 0

    def is_due(self, step: int) -> bool:
        """Tell whether a checkpoint of the current step should be saved now."""
        if self.request_for(step, step) is None:
            return False
        self._due_step = self._due_step or step
        return True

    def request_for(self, step: int, current_step: int) -> Request | None:
        """Return the request that a checkpoint of ``step`` would answer, if there is one and none has."""
        if self._control is None or self._control.number() == self._answered:
            return None
        request = self._control.last()
        if request.step == ANY_STEP and step < (self._due_step or current_step):  # saved before it was asked for
            return None
        return request if request.is_for(step) else None

    def answer(self, request: Request) -> None:
        """Ask for no more saves because of a request."""
        self._answered, self._due_step = request.number, None

    def close(self) -> None:
        """See no more requests, and let the signals do what they did before."""
        self._control = self._folder = None
        if self._signals is not None:
            self._signals.close()

    def _ask(self) -> None:
        """Ask for an emergency save on all ranks of this node."""
        if self._control is not None and self._folder is not None:
            with suppress(OSError):  # the folder is gone, or another rank is asking right now
                request_save(self._folder, is_signal=True)
