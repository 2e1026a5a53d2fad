"""A training of a framework, seen from its callbacks: whose it is, which step is open, how it ended.

Nothing here ends a training: what goes wrong is said once, and the training goes on. And nothing here believes what
was true at the last event: a script may end the run, begin another one, or have its training interrupted at any time.
"""

import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import wraps
from types import FrameType
from typing import Any, Final, TypeVar, cast

import periflow_otel as pf

CHECKPOINT_PHASE: Final = "checkpoint"
"""The phase in which a checkpoint is saved: ``periflow.time`` counts it as saving without a callback, too."""

_log = logging.getLogger("periflow_otel")
_Hook = TypeVar("_Hook", bound=Callable[..., None])


class UnfinishedTrainingError(Exception):
    """Nothing said that the training was over, when its run ended or the next training began."""


class PreemptedError(Exception):
    """The training was asked to end before its time, such as by SIGTERM."""


_UNFINISHED: Final = UnfinishedTrainingError()


def harmless(hook: _Hook) -> _Hook:
    """Let a hook of a framework fail without an end of training: what was wrong is said instead."""

    @wraps(hook)
    def call(*args: Any, **kwargs: Any) -> None:
        try:
            hook(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  # whatever it is, training matters more
            _log.warning("%s() could not record: %s: %s", hook.__name__, type(error).__name__, error)

    return cast("_Hook", call)


class Training:
    """One training of one trainer, in the run that the script has begun, else in one that it begins itself.

    Such a run stays open after the training, for what is evaluated then. It ends when the next training begins, with
    ``pf.shutdown``, or with the script.
    """

    def __init__(self, trainer: object, session: object, *, has_begun_run: bool) -> None:
        """Take part in the current run; see :func:`begin_training`."""
        self._trainer = weakref.ref(trainer)
        self.session = weakref.ref(session)
        """What the framework makes anew for each training."""
        self._has_begun_run = has_begun_run
        self._run: Callable[[], pf.TrainingRun | None] = _no_run
        self._attempt: object = None
        """That of the run to which a step was told last."""
        self._step: int | None = None
        """The one that this training has opened."""
        self._is_over = False
        self._last_error = id(_last_error())

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        """Be nothing in a copy: a callback that was copied or sent elsewhere has begun no training."""
        return _no_run, ()

    def has_run(self) -> bool:
        """Tell whether the current run is for this training, and no other has it."""
        run = self._run()
        return run is not None and run is pf.current_run()

    @harmless
    def start_step(self, step: int) -> None:
        """Begin a step, unless one is open; one that the script has opened is left alone.

        A run that the script has begun meanwhile is used, unless another training has it for itself.

        Args:
            step: Its number, as the framework counts.
        """
        run = pf.current_run()
        if run is None or run.open_step is not None or not (run is self._run() or self._take(run)):
            return
        run.start_step(step)
        self._step = step
        if run.info is not self._attempt:
            self._attempt = run.info
            run.note_error(_UNFINISHED)  # until it says otherwise

    @harmless
    def end_step(self, error: BaseException | None = None) -> None:
        """End the step that is open, if this training has opened it."""
        step, self._step = self._step, None
        if step is not None and (run := self._run_of(step)) is not None:
            run.end_step(error)

    @harmless
    def abandon_step(self) -> None:
        """Take back the step that is open: its batches came to no update of the optimizer."""
        step, self._step = self._step, None
        if step is not None and (run := self._run_of(step)) is not None:
            run.abandon_step()

    @harmless
    def end(self, error: BaseException | None = None) -> None:
        """Say that the training is over.

        Args:
            error: What ended it before its time; an exit without a failure leaves it unfinished.
        """
        if isinstance(error, SystemExit) and not error.code:
            error = _UNFINISHED
        if error is None:
            self.abandon_step()
        else:
            self.end_step(error)
        self._is_over = True
        if (run := pf.current_run()) is not None and run is self._run():
            run.note_error(error)

    def make_way(self) -> None:
        """End what the training has left open, since another one begins; the run as well, if it began with it."""
        if not self._is_over:
            self.end(self._what_ended_it())
        if self._has_begun_run:
            pf.shutdown()

    def _what_ended_it(self) -> BaseException:
        """Return what a notebook has shown since the training began; frameworks may say nothing of it."""
        error = _last_error()
        return _UNFINISHED if error is None or id(error) == self._last_error else error

    def is_going_on(self, trainer: object, session: object) -> bool:
        """Tell whether the training goes on while one of ``trainer`` begins, and so has the run for itself."""
        own = self._trainer()
        if self._is_over or own is None:
            return False
        return self.session() is session if own is trainer else _is_at_work(own)

    def _take(self, run: pf.TrainingRun) -> bool:
        """Take a run for this training, and tell whether it could; one of a training that goes on is left to it."""
        other = _last.get(run)
        if other is not None:
            if not other._is_over:  # noqa: SLF001  # one of the same class
                return False
            other._run = _no_run  # noqa: SLF001
        _last[run], self._run, self._step = self, weakref.ref(run), None
        return True

    def _run_of(self, step: int) -> pf.TrainingRun | None:
        """Return the run in which a step of this training is open; None if it is over, or the step is."""
        run = pf.current_run()
        return run if run is not None and run is self._run() and run.open_step == step else None


def _no_run() -> None:
    """Return nothing, as a reference does to what is gone."""


_last: "weakref.WeakKeyDictionary[pf.TrainingRun, Training]" = weakref.WeakKeyDictionary()
"""The training that was the last to begin in a run."""
_lock = threading.Lock()


def begin_training(
    trainer: object,
    session: object,
    local_log_name: str | os.PathLike[str] | None,
    *,
    total_steps: int | None,
    done_steps: int,
    config: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Training | None:
    """Begin a training; return None if another one that goes on has the run for itself.

    Args:
        trainer: Whose training.
        session: What the framework makes anew for each training; the trainer, if nothing.
        local_log_name: As in ``pf.init``, for a run that begins here.
        total_steps: Number of the last step, where it is known.
        done_steps: Steps that were done when the checkpoint was saved that training goes on from.
        config: What the framework was told to do: added to what the script says.
        name: As in ``pf.init``, for a run that begins here.

    Raises:
        PeriFlowError: As ``pf.init``.
    """
    with _lock:
        if (earlier := last_training()) is not None:
            if earlier.is_going_on(trainer, session):
                _log.warning("another training is going on in this run, so this one is not recorded")
                return None
            earlier.make_way()
        has_begun_run = not pf.is_initialized()
        if has_begun_run:
            if total_steps is not None and total_steps <= done_steps:
                total_steps = None  # such as with other batches than before
            pf.init(total_steps, local_log_name, initial_step=done_steps or None, name=_usable_name(name))
        add_config(config or {})
        training = Training(trainer, session, has_begun_run=has_begun_run)
        if (run := pf.current_run()) is not None:
            training._take(run)  # noqa: SLF001  # the one before is over
        return training


def last_training() -> Training | None:
    """Return the training that was the last to begin in the current run; None if there was none."""
    run = pf.current_run()
    return None if run is None else _last.get(run)


def phase(name: str) -> AbstractContextManager[None]:
    """Return a context manager that records a phase, if a run is active."""
    return pf.span(name) if pf.is_initialized() else nullcontext()


@harmless
def record(values: Mapping[str, Any], step: int | None = None) -> None:
    """Record values that a framework logs, if a run is active. What is no metric, such as an image, is left out.

    Args:
        values: By name.
        step: Whose values they are. Default: the step that started last.
    """
    run = pf.current_run()
    if run is None or not values:
        return
    try:
        run.metric(values, step)
    except (TypeError, ValueError):
        for key, value in values.items():
            with suppress(TypeError, ValueError):
                run.metric({key: value}, step)


def add_config(values: Mapping[str, Any]) -> None:
    """Add to what tells the run from others, if one is active: what cannot be recorded is left out."""
    if not values or not pf.is_initialized():
        return
    try:
        pf.add_config(values)
    except pf.ConfigurationError:
        for key, value in values.items():
            with suppress(pf.ConfigurationError):
                pf.add_config({key: value})


def announce_checkpoint(step: int) -> None:
    """Announce a checkpoint, if a run is active. Frameworks may save several in one step, which count as one.

    Args:
        step: Whose checkpoint it is.
    """
    if pf.is_initialized():
        with suppress(pf.CheckpointAlreadyUploadedError):
            pf.upload_checkpoint(step=step)


def _last_error() -> BaseException | None:
    """Return the exception that the interpreter, or a notebook, has shown last."""
    return getattr(sys, "last_value", None)


def _usable_name(name: str | None) -> str | None:
    return name if name and name.isprintable() and len(name) <= 256 else None


def _is_at_work(trainer: object) -> bool:
    """Tell whether a method of a trainer is being called, in whichever thread."""
    return any(_is_called_by(trainer, frame) for frame in sys._current_frames().values())  # noqa: SLF001  # documented


def _is_called_by(trainer: object, frame: FrameType | None) -> bool:
    return any(caller is trainer for caller in callers(frame))


def callers(frame: FrameType | None) -> Iterator[object]:
    """Yield the objects whose methods are being called, the innermost first."""
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",):  # not all: what a frame of ours has would refer to itself
            yield frame.f_locals.get("self")
        frame = frame.f_back
