"""Signals that ask for an emergency save, such as those of a job manager that is about to take the machine away."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

_log = logging.getLogger("periflow_otel")


class SignalWatch:
    """Calls a function when one of some signals comes, before the handler that was there already."""

    def __init__(self, signals: Iterable[signal.Signals], ask: Callable[[], None]) -> None:
        """Watch signals. One whose default is to end the process ends it no more; a forked child it ends as ever.

        Args:
            signals: Which.
            ask: Called in the main thread, between any two instructions.
        """
        self._ask = ask
        self._is_asking = False
        self._pid = os.getpid()
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            _log.warning("signals can ask for an emergency save only if init() is called in the main thread")
            return
        for number in set(signals):
            self._before[number] = signal.getsignal(number)
            signal.signal(number, self._handle)

    def close(self) -> None:
        """Put the handlers back that were there before, unless somebody has put in others."""
        if threading.current_thread() is threading.main_thread():
            for number in self._before:
                self._restore(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_own_process = os.getpid() == self._pid
        if is_own_process and not self._is_asking:  # a signal may interrupt the handling of another
            self._is_asking = True
            try:
                self._ask()
            finally:
                self._is_asking = False
        before = self._before[number]
        if callable(before):
            before(number, frame)
        elif not is_own_process and self._restore(number):
            signal.raise_signal(number)

    def _restore(self, number: int) -> bool:
        """Put a handler back, and return whether it is there now."""
        before = self._before[number]
        if signal.getsignal(number) != self._handle or before is None:  # None: one that is not of Python
            return False
        signal.signal(number, before)
        return True
