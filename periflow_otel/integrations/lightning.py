"""Records what a ``lightning`` trainer does.

    from periflow_otel.integrations.lightning import PeriFlowCallback

    trainer = Trainer(max_epochs=10, callbacks=[PeriFlowCallback()])

It tells how many steps there will be, so ``pf.init`` need not be called.
"""

import os
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from periflow_otel.integrations.training import (
    CHECKPOINT_PHASE,
    Training,
    announce_checkpoint,
    begin_training,
    harmless,
    phase,
    record,
)
from periflow_otel.integrations.watching import watch

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    message = f"PeriFlowCallback needs lightning ({error}): pip install 'periflow_otel[lightning]'"
    raise ImportError(message) from error

__all__ = ["PeriFlowCallback", "PeriFlowTrainer"]


class PeriFlowCallback(Callback):
    """Records every optimizer step as a step, what is logged, the phases between steps, and checkpoints on every rank.

    If the script has begun a run with ``pf.init``, that is used. Else ``fit`` begins one, which stays open for what is
    tested afterwards: it ends when the next ``fit`` begins, with ``pf.shutdown``, or with the script.
    """

    def __init__(self, local_log_name: str | os.PathLike[str] | None = None) -> None:
        """Record nothing yet.

        Args:
            local_log_name: As in ``pf.init``, for a run that ``fit`` begins.
        """
        self._local_log_name = local_log_name
        self._training: Training | None = None
        self._phases = ExitStack()
        self._steps_done = 0
        self._steps_per_batch = 1

    @harmless
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch the trainer: no event tells that a checkpoint is complete, or what is logged."""
        watch(trainer, _watched_trainer)
        watch(trainer._logger_connector, _watched_connector)  # noqa: SLF001  # where values go without a logger
        for logger in trainer.loggers[:1]:  # each of them gets the same
            watch(logger, _watched_logger)
            logger.periflow_trainer = weakref.ref(trainer)

    @harmless
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the phases and the step that were going on, with the exception."""
        self._phases.__exit__(type(exception), exception, exception.__traceback__)
        if training := self._training_of(trainer):
            training.end(exception)

    @harmless
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a run, unless one is active. Only now the number of steps is known."""
        total_steps = trainer.estimated_stepping_batches  # -1 or infinite where nobody knows
        training = begin_training(
            trainer,
            trainer,
            self._local_log_name,
            total_steps=int(total_steps) if 0 < total_steps < float("inf") else None,
            done_steps=trainer.global_step,
            config={**_hparams(getattr(trainer, "datamodule", None)), **_hparams(pl_module)},
        )
        if training is not None:
            self._training = training
            self._steps_per_batch = 1 if pl_module.automatic_optimization else max(1, len(trainer.optimizers))

    @harmless
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that training is over."""
        if training := self._training_of(trainer):
            training.end()

    @harmless
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin a step, which may take several batches. Its number is that of the last update it is going to make."""
        if training := self._training_of(trainer):
            training.start_step(trainer.global_step + self._steps_per_batch)
            self._steps_done = trainer.global_step

    @harmless
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the step if this was its last batch."""
        if trainer.global_step == self._steps_done:
            return
        if training := self._training_of(trainer):
            training.end_step()
            self._steps_per_batch = trainer.global_step - self._steps_done

    @harmless
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of batches that came to no step, such as those that a hook has skipped."""
        if training := self._training_of(trainer):
            training.abandon_step()

    @harmless
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a phase, but not for the trial before training."""
        if not trainer.sanity_checking:
            self._phases.enter_context(phase("validation"))

    @harmless
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End it."""
        self._phases.close()

    @harmless
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a phase."""
        self._phases.enter_context(phase("test"))

    @harmless
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End it."""
        self._phases.close()

    @harmless
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a phase."""
        self._phases.enter_context(phase("prediction"))

    @harmless
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End it."""
        self._phases.close()

    def is_recording(self, trainer: Trainer) -> bool:
        """Tell whether this is about what training does, or what comes after it; a trial before it is not."""
        return not trainer.training or self._training_of(trainer) is not None

    def _training_of(self, trainer: Trainer) -> Training | None:
        """Return the training that an event belongs to, if it is recorded."""
        return self._training if self._training is not None and self._training.is_of(trainer) else None


class PeriFlowTrainer(Trainer):
    """A trainer that announces its checkpoints: for a script that records its steps with a callback of its own."""

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save a checkpoint, as ``Trainer`` does, and announce it."""
        with phase(CHECKPOINT_PHASE):
            super().save_checkpoint(*args, **kwargs)
        announce_checkpoint(self.global_step)


def _watched_trainer(theirs: Any) -> type:
    """Make a trainer that announces its checkpoints."""

    class Watched(theirs):
        def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            if isinstance(self, PeriFlowTrainer) or not _is_recorded(self):
                super().save_checkpoint(*args, **kwargs)
                return
            with phase(CHECKPOINT_PHASE):
                super().save_checkpoint(*args, **kwargs)
            announce_checkpoint(self.global_step)

    return Watched


def _watched_connector(theirs: Any) -> type:
    """Make a connector that records what is due to be logged where there is no logger.

    It is due every so many steps only, so that a GPU need not be waited for at each.
    """

    class Watched(theirs):
        def log_metrics(self, metrics: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
            if not self.trainer.loggers and _is_recorded(self.trainer):
                record(metrics)
            super().log_metrics(metrics, *args, **kwargs)

    return Watched


def _watched_logger(theirs: Any) -> type:
    """Make a logger that records what it is told, on every rank."""

    class Watched(theirs):
        def log_metrics(self, metrics: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
            trainer = self.periflow_trainer()
            if trainer is not None and _is_recorded(trainer):
                record(metrics)
            super().log_metrics(metrics, *args, **kwargs)

    return Watched


def _hparams(module: Any) -> Mapping[str, Any]:
    """Return the hyper-parameters that a module has saved."""
    return dict(module.hparams_initial) if module is not None else {}


def _is_recorded(trainer: Trainer) -> bool:
    """Tell whether what a trainer does is recorded.

    Not what a tuner does before training: it puts the callbacks aside, and what it saves is thrown away.
    """
    callback = next((each for each in trainer.callbacks if isinstance(each, PeriFlowCallback)), None)
    return callback is not None and callback.is_recording(trainer)
