"""Records what a ``transformers.Trainer`` does.

    from periflow_otel.integrations.huggingface import PeriFlowCallback

    trainer = Trainer(model, args, train_dataset=dataset, callbacks=[PeriFlowCallback()])

It tells how many steps there will be, so ``pf.init`` need not be called.
"""

import inspect
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import periflow_otel as pf
from periflow_otel.integrations.training import (
    CHECKPOINT_PHASE,
    PreemptedError,
    Training,
    announce_checkpoint,
    begin_training,
    callers,
    harmless,
    last_training,
    phase,
    record,
)
from periflow_otel.integrations.watching import watch

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    message = f"PeriFlowCallback needs transformers ({error}): pip install 'periflow_otel[huggingface]'"
    raise ImportError(message) from error

__all__ = ["PeriFlowCallback"]


class PeriFlowCallback(TrainerCallback):
    """Records every optimizer step as a step, what is logged, the phases between steps, and checkpoints on every rank.

    If the script has begun a run with ``pf.init``, that is used. Else training begins one, which stays open for what is
    evaluated afterwards: it ends when the next training begins, with ``pf.shutdown``, or with the script.
    """

    def __init__(
        self, local_log_name: str | os.PathLike[str] | None = None, *, saves_in_emergency: bool = False
    ) -> None:
        """Record nothing yet.

        Args:
            local_log_name: As in ``pf.init``, for a run that training begins.
            saves_in_emergency: Save a checkpoint when somebody asks for an emergency save.
        """
        self._local_log_name = local_log_name
        self._saves_in_emergency = saves_in_emergency
        self._training: Training | None = None
        self._is_preempted = False

    @harmless
    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Watch the trainer."""
        watch(_calling_trainer(), _watched_trainer)

    @harmless
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin a run, unless one is active. Only now the number of steps is known."""
        trainer = _calling_trainer()
        watch(trainer, _watched_trainer)  # a callback that was added later missed the event above
        training = begin_training(
            trainer,
            state,
            self._local_log_name,
            total_steps=state.max_steps,
            done_steps=state.global_step,
            config=args.to_dict(),
            name=state.trial_name or (None if args.run_name == args.output_dir else args.run_name),  # as before 5
        )
        if training is not None:
            self._training, self._is_preempted = training, False

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin a step, which may take several batches."""
        if training := self._training_of(state):
            training.start_step(state.global_step + 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End it, and have a checkpoint saved if somebody asks for one."""
        if training := self._training_of(state):
            training.end_step()
        if self._saves_in_emergency and pf.is_initialized() and pf.is_emergency_save():
            control.should_save = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Let go of batches that were too few for a step."""
        if training := self._training_of(state):
            training.abandon_step()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Record what is logged, also after training."""
        training = self._training_of(state)
        if logs and (training.has_run() if training else last_training() is None):
            record(logs)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Say that training is over."""
        if training := self._training_of(state):
            training.end(PreemptedError() if self._is_preempted else None)

    def _training_of(self, state: TrainerState) -> Training | None:
        """Return the training that an event belongs to, if it is recorded; a callback may be shared by trainers."""
        training = self._training
        return training if training is not None and training.session() is state else None

    @harmless
    def _saved(self, state: TrainerState, control: TrainerControl) -> None:
        """Announce a checkpoint, which is complete now; one that nobody has asked for is what SIGTERM asks for."""
        self._is_preempted |= control.should_training_stop and not control.should_save
        announce_checkpoint(state.global_step)

    @harmless
    def _failed(self, state: TrainerState, error: BaseException) -> None:
        """Say what has ended training."""
        if training := self._training_of(state):
            training.end(error)


def _watched_trainer(theirs: Any) -> type:
    """Make a trainer that says what events do not: how long phases take and how they end, and what ended training."""

    class Watched(theirs):
        def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super()._inner_training_loop(*args, **kwargs)
            except BaseException as error:
                if callback := _callback_of(self):
                    callback._failed(self.state, error)  # noqa: SLF001  # a friend
                raise

        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            with _phase(self, "evaluation"):
                return super().evaluate(*args, **kwargs)

        def predict(self, *args: Any, **kwargs: Any) -> Any:
            with _phase(self, "prediction"):
                output = super().predict(*args, **kwargs)
            if _callback_of(self):
                record(output.metrics or {})  # unlike those of an evaluation, nobody logs them
            return output

        def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            with _phase(self, CHECKPOINT_PHASE):
                super()._save_checkpoint(*args, **kwargs)
            if callback := _callback_of(self):
                callback._saved(self.state, self.control)  # noqa: SLF001  # a friend

    return Watched


def _callback_of(trainer: Trainer) -> PeriFlowCallback | None:
    callbacks = trainer.callback_handler.callbacks
    return next((each for each in callbacks if isinstance(each, PeriFlowCallback)), None)


def _phase(trainer: Trainer, name: str) -> AbstractContextManager[None]:
    return phase(name) if _callback_of(trainer) else nullcontext()


def _calling_trainer() -> Trainer:
    """Return the trainer whose event this is. It tells its callbacks everything but itself."""
    return next(caller for caller in callers(inspect.currentframe()) if isinstance(caller, Trainer))
