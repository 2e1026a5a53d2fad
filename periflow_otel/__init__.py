"""Training telemetry: the API of ``periflow_sdk``, rebuilt on OpenTelemetry.

    import periflow_otel as pf

    pf.init(total_train_steps=1000)
    for batch in batches:
        with pf.train_step():
            loss = train(batch)
        pf.metric({"loss": loss})

The functions below act on a default run, which ``init`` begins. ``TrainingRun`` is the same thing as an object.
"""

import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any
from weakref import ref

from periflow_otel import names
from periflow_otel.errors import (
    CheckpointAlreadyUploadedError,
    ConfigurationError,
    NotInitializedError,
    PeriFlowError,
    PeriFlowInternalError,
    StepAlreadyStartedError,
    StepNotStartedError,
)
from periflow_otel.run import TrainingRun
from periflow_otel.training.stepping import EndStep, StepContext
from periflow_otel.values import Value

__all__ = [
    "CheckpointAlreadyUploadedError",
    "ConfigurationError",
    "NotInitializedError",
    "PeriFlowError",
    "PeriFlowInternalError",
    "StepAlreadyStartedError",
    "StepNotStartedError",
    "TrainingRun",
    "__version__",
    "add_config",
    "current_run",
    "end_step",
    "flush",
    "init",
    "is_emergency_save",
    "is_initialized",
    "metric",
    "periflow",
    "show",
    "shutdown",
    "span",
    "start_step",
    "train_step",
    "upload_checkpoint",
]

__version__ = names.VERSION

periflow = sys.modules[__name__]
"""This module, under the name that ``periflow_sdk`` gives to the object behind its functions."""

_default: TrainingRun | None = None
_latest: TrainingRun | None = None
"""The last default run, also when it is over."""


def init(
    total_train_steps: int | None = None,
    local_log_name: str | os.PathLike[str] | None = None,
    *,
    run_id: str | None = None,
    initial_step: int | None = None,
    config: Mapping[str, Any] | None = None,
    name: str | None = None,
    work: Mapping[str, float] | None = None,
) -> None:
    """Begin the run that the other functions act on. A second call ends the first run and begins another.

    Args:
        total_train_steps: Number of the last step, where it is known: for progress and the time left.
        local_log_name: Local mode: file that metrics are appended to, one JSON object per line. Default:
            ``./periflow_trainer_{unix seconds}.log``, with ``_{rank}`` before ``.log`` if there are several ranks, and
            ``-2`` and so on if another run has that.
        run_id: Identity of the run, the same on all ranks: at most 256 printable characters. Default:
            ``PERIFLOW_RUN_ID``, else what the launcher says, else made up.
        initial_step: Steps that earlier attempts did; the first step of this one is the next. Default:
            ``PROCESSED_ITERS`` in cloud mode, else 0.
        config: What tells this run from others, such as learning rate and model: JSON values, scalars or paths by
            name, recorded once. Mappings in it are flattened by dots, and secrets are masked by their names. At most
            1000 values of 32 KiB; text is cut at 1024 characters.
        name: What people call the run: at most 256 printable characters. Unlike ``run_id`` it need not be unique.
        work: What this rank does in each step, by kind, such as ``{"tokens": 8192, "flops": 2.4e14}``: at most 16
            positive numbers, shown per second. With ``flops``, floating-point operations, and ``peak_flops``, those
            that the device can do in a second, the share that is made use of is shown. Page and ``status`` know the
            peak of NVIDIA's usual GPUs, for dense bfloat16.

    Raises:
        ConfigurationError: An argument, or in cloud mode a variable, has a value that cannot be used.
        PeriFlowInternalError: Cloud mode lacks a variable that PeriFlow sets.
        PeriFlowError: Cloud mode, and ``total_train_steps`` is not an integer or not beyond the steps already done.
    """
    global _default, _latest  # noqa: PLW0603  # the one default run, as in periflow_sdk
    if _default is not None:
        _default._give_way()  # noqa: SLF001  # only the default run gives way to another
        _default = None
    _default = _latest = TrainingRun(
        total_train_steps,
        local_log_name,
        run_id=run_id,
        initial_step=initial_step,
        config=config,
        name=name,
        work=work,
    )


def add_config(config: Mapping[str, Any]) -> None:
    """Add to what tells this run from others, such as what only a framework knows.

    Args:
        config: As for ``init``. A value under a key that was given before takes its place.

    Raises:
        NotInitializedError: ``init`` was not called.
        ConfigurationError: It is no mapping of such values, or more than can be recorded; nothing is added.
    """
    (_default or _uninitialized("add_config")).add_config(config)


def start_step(step: int | None = None) -> None:
    """Begin a step.

    Args:
        step: Its number, from 1, where the loop has numbers of its own; some may be left out. One that is not beyond
            the last step begins another attempt of the run: training went back. Default: one more than the last.

    Raises:
        NotInitializedError: ``init`` was not called.
        StepAlreadyStartedError: A step is open.
        TypeError: ``step`` is not an integer.
        ValueError: ``step`` is below 1.
    """
    (_default or _uninitialized("start_step")).start_step(step)


def end_step() -> None:
    """End the current step and record its duration. Waits for nobody.

    Raises:
        NotInitializedError: ``init`` was not called.
        StepNotStartedError: No step is open.
    """
    (_default or _uninitialized("end_step")).end_step()


def train_step(step: int | None = None) -> StepContext:
    """Return a context manager that starts a step and ends it, also when the body raises; or a decorator.

    Args:
        step: Its number, as in ``start_step``.

    Raises:
        NotInitializedError: On entry, if ``init`` was not called.
        StepAlreadyStartedError: On entry, if a step is open.
        TypeError: On entry: ``step`` is not an integer.
        ValueError: On entry: ``step`` is below 1.
    """
    return StepContext(_begin_step, step)


def metric(msg: Mapping[str, Value], step: int | None = None) -> None:
    """Record values of a step; see ``TrainingRun.metric``.

    Args:
        msg: JSON values, or NumPy or tensor scalars, by name.
        step: Number of the step that they belong to, 0 or more; it may be over for long. Default: the one that started
            last.

    Raises:
        NotInitializedError: ``init`` was not called.
        TypeError: A value is none of these, and the message names its key; or ``step`` is not an integer.
        ValueError: A key is longer than 256 characters, the whole larger than 4 MiB, or ``step`` below 0.
    """
    (_default or _uninitialized("metric")).metric(msg, step)


def upload_checkpoint(step: int | None = None) -> None:
    """Announce that the checkpoint of a step is complete. To be called on every rank.

    Args:
        step: Number of the step that was saved, 0 or more: where a thread goes on to save while training goes on, it
            is not the last. Default: the one that started last.

    Raises:
        NotInitializedError: ``init`` was not called.
        CheckpointAlreadyUploadedError: Cloud mode, and it was announced before. In local mode this warns, once.
        TypeError: ``step`` is not an integer.
        ValueError: ``step`` is below 0.
    """
    (_default or _uninitialized("upload_checkpoint")).upload_checkpoint(step)


def is_emergency_save() -> bool:
    """Tell whether a checkpoint should be saved now, because somebody asked for it at this step or at once.

    Raises:
        NotInitializedError: ``init`` was not called.
    """
    return (_default or _uninitialized("is_emergency_save")).is_emergency_save()


def is_initialized() -> bool:
    """Tell whether a run is active: ``init`` was called in this process, and ``shutdown`` was not since."""
    return _default is not None and _default.is_active


def current_run() -> TrainingRun | None:
    """Return the run that the functions of this module act on; None if none is active."""
    return _default


def span(name: str, /, **attributes: Value) -> AbstractContextManager[None]:
    """Return a context manager that records a phase, such as ``"evaluation"``; see ``TrainingRun.span``.

    Args:
        name: Name of the span, at most 256 characters.
        attributes: What else to say of it.

    Raises:
        NotInitializedError: ``init`` was not called.
        TypeError: On entry: the name is no text, or an attribute is no JSON value; the message names it.
        ValueError: On entry: the name is longer than 256 characters, or the whole larger than 4 MiB.
    """
    return (_default or _uninitialized("span")).span(name, **attributes)


def flush(timeout_s: float | None = None) -> bool:
    """Wait until everything recorded so far is delivered, and tell whether it is; after ``shutdown`` too.

    Args:
        timeout_s: Longest wait in seconds. Default: ``PERIFLOW_EXIT_TIMEOUT``.

    Raises:
        NotInitializedError: ``init`` was not called.
    """
    return (_default or _latest or _uninitialized("flush")).flush(timeout_s)


def shutdown(timeout_s: float | None = None, *, error: BaseException | None = None) -> bool:
    """End the run, wait until it is delivered, and tell whether it is. Happens by itself when the script ends.

    Where the run has ended already, as an integration may have ended it, this waits again for what is left.

    Args:
        timeout_s: Longest wait in seconds. Default: ``PERIFLOW_EXIT_TIMEOUT``.
        error: What ended the run, if it failed and the script goes on, or ends by ``sys.exit``.

    Raises:
        NotInitializedError: ``init`` was not called.
    """
    global _default  # the one default run
    run, _default = _default or _latest or _uninitialized("shutdown"), None
    return run.shutdown(timeout_s, error=error)


def show(height: int = 720, *, live: bool = True) -> None:
    """Show the run in a notebook: its live page while it lasts, its report afterwards.

    Outside of a notebook the address of the page, or the report in a few words, is printed.

    Args:
        height: Of the frame, in pixels.
        live: False shows the report in any case, up to what is recorded now: for a notebook whose browser is on another
            machine and does not reach the page of this one.

    Raises:
        NotInitializedError: ``init`` was not called.
        ConfigurationError: There is no page, and no files from which a report could be made.
    """
    from periflow_otel.notebook import show as show_run  # noqa: PLC0415  # few scripts need it

    show_run(_latest or _uninitialized("show"), height, is_live=live)


def _begin_step(step: int | None, context: "ref[StepContext]") -> EndStep:
    return (_default or _uninitialized("start_step"))._begin_step(step, context)  # noqa: SLF001  # as train_step() of a run


def _uninitialized(call: str) -> TrainingRun:
    message = f"{call} must be called after pf.init()!"
    raise NotInitializedError(message)
