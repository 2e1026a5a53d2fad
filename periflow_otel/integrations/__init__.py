"""Callbacks for training frameworks, made of the functions that a training script has, too."""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import wraps
from typing import Any, Final

import periflow_otel as pf

CHECKPOINT_PHASE: Final = "checkpoint"
"""The phase in which a checkpoint is saved: ``periflow.time`` counts it as saving without a callback, too."""


class FrameworkRun:
    """The run that a callback records: the one that the script has begun, else one that begins and ends here."""

    def __init__(self, local_log_name: str | os.PathLike[str] | None) -> None:
        """Begin nothing yet.

        Args:
            local_log_name: As in ``pf.init``, for a run that begins here.
        """
        self._local_log_name = local_log_name
        self._is_own = False
        self._step = pf.train_step()
        self._is_step_open = False

    def begin(self, total_steps: int | None, done_steps: int) -> None:
        """Begin a run, unless the script has begun one.

        Args:
            total_steps: Number of the last step, where it is known.
            done_steps: Steps that were done when the checkpoint was saved that training goes on from.

        Raises:
            PeriFlowError: As ``pf.init``.
        """
        self.end_step(UnfinishedStepError())  # an open one is left of a training that was interrupted
        if self._is_own or not pf.is_initialized():
            if total_steps is not None and total_steps <= done_steps:
                total_steps = None  # such as with other batches than before
            pf.init(total_steps, self._local_log_name, initial_step=done_steps or None)
            self._is_own = True

    def end(self, error: BaseException | None = None) -> None:
        """End the run if it began here, and wait until it is delivered.

        Args:
            error: What ended it, if it failed.
        """
        if self._is_own and pf.is_initialized():
            pf.shutdown(error=error)
        self._is_own = False

    def start_step(self) -> None:
        """Begin a step, unless one is open."""
        if not self._is_step_open:
            self._step.__enter__()
            self._is_step_open = True

    def end_step(self, error: BaseException | None = None) -> None:
        """End the step that is open, if there is one.

        Args:
            error: What ended it.
        """
        if self._is_step_open:
            self._is_step_open = False
            self._step.__exit__(type(error) if error else None, error, None)


class UnfinishedStepError(Exception):
    """Training ended, or began anew, in the middle of a step."""


def phase(name: str) -> AbstractContextManager[None]:
    """Return a context manager that records a phase, if a run is active."""
    return pf.span(name) if pf.is_initialized() else nullcontext()


def call_in_phase(name: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a method, which is a phase if a run is active, and return what it returns."""
    with phase(name):
        return method(*args, **kwargs)


def record(values: Mapping[str, Any]) -> None:
    """Record values that a framework logs, if a run is active. What is no metric, such as an image, is left out."""
    if not values or not pf.is_initialized():
        return
    try:
        pf.metric(values)
    except (TypeError, ValueError):
        for key, value in values.items():
            with suppress(TypeError, ValueError):
                pf.metric({key: value})


def announce_checkpoint() -> None:
    """Announce a checkpoint, if a run is active. Frameworks may save several in one step, which count as one."""
    if pf.is_initialized():
        with suppress(pf.CheckpointAlreadyUploadedError):
            pf.upload_checkpoint()


def wrap_method(owner: Any, name: str, wrapper: Callable[..., Any]) -> Callable[[], None]:
    """Let ``wrapper`` be called instead of a method of one object, with the method before the arguments.

    Returns:
        A function that undoes it, unless the method was replaced once more meanwhile.
    """
    method = getattr(owner, name)
    before = vars(owner).get(name)

    @wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(method, *args, **kwargs)

    def undo() -> None:
        if vars(owner).get(name) is not wrapped:
            return
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

    setattr(owner, name, wrapped)
    return undo
