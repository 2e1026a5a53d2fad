"""The logger of this package says the same thing once a minute, however often it happens."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

LOGGER: Final = "periflow_otel"
INTERVAL_S: Final = 60.0
OWN_THREADS: Final = "periflow-"
"""How the names of all threads of this package begin."""
_OTHER_RUN: ContextVar[str] = ContextVar("other run", default="")
"""Of which run is spoken, where it is not the one that this process serves."""


class OncePerInterval(logging.Filter):
    """Lets a message through if none like it, but for numbers in it, came in the last ``INTERVAL_S`` seconds.

    A message that holds foreign words names its cause, ``extra={"cause": …}``: those words may differ every time.
    """

    def __init__(self) -> None:
        """Begin with nothing said."""
        super().__init__()
        self._said_at_s: dict[tuple[object, ...], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether to log a record."""
        arguments = record.args if isinstance(record.args, tuple) else ()
        cause = (record.msg, *(str(each) for each in arguments if not isinstance(each, int | float)))
        cause = (_OTHER_RUN.get(), *getattr(record, "cause", cause))
        now_s = time.monotonic()
        if now_s - self._said_at_s.get(cause, -INTERVAL_S) < INTERVAL_S:
            return False
        self._said_at_s = {each: said for each, said in self._said_at_s.items() if now_s - said < INTERVAL_S}
        self._said_at_s[cause] = now_s
        return True


def is_own(record: logging.LogRecord) -> bool:
    """Tell whether this package has said something, or what it uses in a thread of its own."""
    return record.name.partition(".")[0] == LOGGER or (record.threadName or "").startswith(OWN_THREADS)


def limit_repeats() -> None:
    """See to it that the logger of this package repeats itself only once a minute."""
    logger = logging.getLogger(LOGGER)
    if not any(isinstance(each, OncePerInterval) for each in logger.filters):
        logger.addFilter(OncePerInterval())


@contextmanager
def speak_of(run: str) -> Iterator[None]:
    """What is logged in this context is about another run: its name goes with it, and nobody is disturbed."""
    token = _OTHER_RUN.set(run)
    try:
        yield
    finally:
        _OTHER_RUN.reset(token)


def is_of_this_run(_: logging.LogRecord) -> bool:
    """Tell whether the run that this process serves is spoken of; a filter for what somebody looks at."""
    return not _OTHER_RUN.get()


def name_run(record: logging.LogRecord) -> bool:
    """Say as ``of_run`` whose run is spoken of, where it is another's; a filter that lets everything through."""
    record.of_run = f"{_OTHER_RUN.get()}: " if _OTHER_RUN.get() else ""
    return True
