"""The logger of this package says the same thing once a minute, however often it happens."""

import logging
import time
from typing import Final

LOGGER: Final = "periflow_otel"
INTERVAL_S: Final = 60.0


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
        cause = getattr(record, "cause", cause)
        now_s = time.monotonic()
        if now_s - self._said_at_s.get(cause, -INTERVAL_S) < INTERVAL_S:
            return False
        self._said_at_s = {each: said for each, said in self._said_at_s.items() if now_s - said < INTERVAL_S}
        self._said_at_s[cause] = now_s
        return True


def limit_repeats() -> None:
    """See to it that the logger of this package repeats itself only once a minute."""
    logger = logging.getLogger(LOGGER)
    if not any(isinstance(each, OncePerInterval) for each in logger.filters):
        logger.addFilter(OncePerInterval())
