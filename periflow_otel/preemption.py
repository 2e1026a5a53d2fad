"""Signals that ask for an emergency save, such as those of a job manager that is about to take the machine away."""

import logging
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

_log = logging.getLogger("periflow_otel")


class SignalWatch:
    """Calls a function when one of some signals comes, before the handler that was there already."""

    def __init__(self, signals: Iterable[signal.Signals], ask: Callable[[], None]) -> None:
        """Watch signals. One whose default is to end the process ends it no more.

        Args:
            signals: Which.
            ask: Called in the main thread, between any two instructions.
        """
        self._ask = ask
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            _log.warning("signals can ask for an emergency save only if init() is called in the main thread")
            return
        for number in signals:
            self._before[number] = signal.getsignal(number)
            signal.signal(number, self._handle)

    def close(self) -> None:
        """Put the handlers back that were there before, unless somebody has put in others."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                if signal.getsignal(number) == self._handle and handler is not None:
                    signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._ask()
        before = self._before.get(number)
        if callable(before):
            before(number, frame)
