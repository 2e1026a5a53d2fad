"""What the script says through ``logging``, whatever becomes of its handlers.

A handler at the root logger would come in the script's way: ``logging.basicConfig`` does nothing where there is one,
``dictConfig`` removes it, and loggers that do not propagate never reach it. So a run listens where a logger hands a
record to handlers, after its level and its filters have let it pass.
"""

import logging
import threading
from collections.abc import Callable

from periflow_otel.logs import is_own

Take = Callable[[logging.LogRecord], None]

_MAX_DEPTH = 4
"""What is said while something is taken is taken too, but no deeper: text of an object may say something each time."""
_taking = threading.local()


class ScriptLogs:
    """Gives one run what all loggers of this process are told, until ``close``."""

    def __init__(self, level: int | None, take: Take) -> None:
        """Begin to listen.

        Args:
            level: From this level on; None: to nothing.
            take: Called in the thread that says something, before the script's own handlers.
        """
        self._level = level or logging.NOTSET
        self._take = take
        if level is not None:
            _Listeners.add(self)

    def close(self) -> None:
        """Listen no more."""
        _Listeners.remove(self)

    def hear(self, record: logging.LogRecord) -> None:
        """Take a record that is the script's own, and say nothing of what goes wrong: it would be heard too."""
        depth = getattr(_taking, "depth", 0)
        try:
            if record.levelno >= self._level and depth < _MAX_DEPTH and not is_own(record):
                _taking.depth = depth + 1
                self._take(record)
        except Exception:  # noqa: BLE001, S110  # nobody is left to tell
            pass
        finally:
            _taking.depth = depth


class _Listeners:
    """Whoever listens. Nothing of ``logging`` is touched while there is nobody."""

    all: tuple[ScriptLogs, ...] = ()
    """Replaced, never changed: other threads go through it."""
    is_hooked_in = False
    call_handlers: Callable[[logging.Logger, logging.LogRecord], None]
    """What handed records to handlers before."""

    @classmethod
    def add(cls, listener: ScriptLogs) -> None:
        cls.all = (*cls.all, listener)
        if not cls.is_hooked_in:
            cls.is_hooked_in, cls.call_handlers = True, logging.Logger.callHandlers
            logging.Logger.callHandlers = _call_handlers  # type: ignore[assignment, method-assign]  # see above

    @classmethod
    def remove(cls, listener: ScriptLogs) -> None:
        cls.all = tuple(each for each in cls.all if each is not listener)
        if not cls.all and logging.Logger.callHandlers is _call_handlers:  # else somebody calls it who came later
            cls.is_hooked_in = False
            logging.Logger.callHandlers = cls.call_handlers  # type: ignore[assignment, method-assign]  # as it was


def _call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
    """Stand for ``logging.Logger.callHandlers``."""
    for listener in _Listeners.all:
        listener.hear(record)
    _Listeners.call_handlers(logger, record)
