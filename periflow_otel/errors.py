"""Every error that this package raises on purpose.

    PeriFlowError                     the script uses the API wrongly; the message says how to fix it
    ├── NotInitializedError           a call before pf.init(); also an AssertionError
    ├── StepNotStartedError           end_step() without start_step()
    ├── StepAlreadyStartedError       start_step() twice
    ├── CheckpointAlreadyUploadedError  upload_checkpoint() twice in one step
    ├── ConfigurationError            an argument or a variable has a value that cannot be used
    └── PeriFlowInternalError         cloud mode lacks something that PeriFlow itself sets

A metric value that cannot be recorded raises the built-in ``TypeError`` or ``ValueError``, naming the key.
Faults of the world (a full disk, a dead collector) raise nothing: they are logged and counted.
"""

from typing import Final

MAX_SHOWN_CHARS: Final = 100
"""Of a value in a message."""


class PeriFlowError(Exception):
    """The script uses the API wrongly."""


class NotInitializedError(PeriFlowError, AssertionError):
    """A function was called before ``init``. Also an ``AssertionError``, as in ``periflow_sdk``."""


class StepNotStartedError(PeriFlowError):
    """``end_step`` was called while no step was open."""


class StepAlreadyStartedError(PeriFlowError):
    """``start_step`` was called while a step was open."""


class CheckpointAlreadyUploadedError(PeriFlowError):
    """``upload_checkpoint`` was called twice in one step."""


class ConfigurationError(PeriFlowError):
    """An argument or an environment variable has a value that cannot be used."""

    def __init__(self, message: str, variable: str | None = None) -> None:
        """Keep the message, and the variable that can be unset to do without what it sets."""
        super().__init__(message)
        self.variable = variable


class PeriFlowInternalError(PeriFlowError):
    """Cloud mode lacks something that PeriFlow itself should have set."""


def full_type(error: BaseException) -> str:
    """Return the type of an exception as the standard wants it: with its module, but for those of Python itself."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def shown(value: object) -> str:
    """Return a value as a message shows it: the beginning of what is long, the type of what cannot be shown."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # whatever the object does
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "…"
