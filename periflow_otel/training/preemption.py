"""Signals that ask for an emergency save, such as those of a job manager that is about to take the machine away."""

import logging
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

_log = logging.getLogger("periflow_otel")
_watches: "weakref.WeakSet[SignalWatch]" = weakref.WeakSet()


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
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            _log.warning("signals can ask for an emergency save only if init() is called in the main thread")
            return
        _watches.add(self)
        for number in set(signals):
            self._before[number] = signal.getsignal(number)
            signal.signal(number, self._handle)

    def close(self) -> None:
        """Put the handlers back that were there before, unless somebody has put in others."""
        if threading.current_thread() is threading.main_thread():
            for number, before in self._before.items():
                # None: one that is not of Python, and cannot be put back.
                if signal.getsignal(number) == self._handle and before is not None:
                    signal.signal(number, before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._is_asking:  # a signal may interrupt the handling of another
            self._is_asking = True
            try:
                self._ask()
            finally:
                self._is_asking = False
        before = self._before[number]
        if callable(before):
            before(number, frame)


def _close_in_child() -> None:
    """Signals end a worker as ever: who tells it to go may wait for that."""
    for watch in list(_watches):
        watch.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
