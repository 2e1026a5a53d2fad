"""Records what a ``lightning`` trainer does.

    from periflow_otel.integrations.lightning import PeriFlowLogger

    trainer = Trainer(max_epochs=10, logger=PeriFlowLogger())

It tells how many steps there will be, so ``pf.init`` need not be called. ``callbacks=[PeriFlowCallback()]`` does the
same, beside another logger or none.
"""

import os
import weakref
from argparse import Namespace
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import periflow_otel as pf
from periflow_otel.integrations.training import (
    CHECKPOINT_PHASE,
    Training,
    add_config,
    announce_checkpoint,
    begin_training,
    harmless,
    phase,
    record,
)
from periflow_otel.integrations.watching import watch

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.loggers import Logger
except ImportError as error:
    message = f"PeriFlowCallback needs lightning ({error}): pip install 'periflow_otel[lightning]'"
    raise ImportError(message) from error

__all__ = ["PeriFlowCallback", "PeriFlowLogger", "PeriFlowTrainer"]

_trainers: "weakref.WeakKeyDictionary[Logger, weakref.ref[Trainer]]" = weakref.WeakKeyDictionary()
"""Whose values a logger is told."""


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
        if not _loggers(trainer):
            for logger in trainer.loggers[:1]:  # each of them gets the same
                watch(logger, _watched_logger)
                _trainers[logger] = weakref.ref(trainer)

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
            config=_config(trainer, pl_module),
            name=next((logger.run_name for logger in _loggers(trainer)), None),
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
            self._steps_done = done = trainer.global_step
            training.start_step(done + self._steps_per_batch)

    @harmless
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the step if this was its last batch."""
        if training := self._training_of(trainer):
            steps = trainer.global_step - self._steps_done
            if steps:
                training.end_step()
                self._steps_per_batch = steps

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
        training = self._training
        return training if training is not None and training.session() is trainer else None


class PeriFlowLogger(Logger):
    """Records what a trainer logs, and what others tell its logger; with a callback of its own, all that it does.

    ``LearningRateMonitor`` and ``self.logger`` work with it, and hyper-parameters are the configuration of the run. On
    every rank, as each has a rank's own telemetry.
    """

    def __init__(self, name: str | None = None, local_log_name: str | os.PathLike[str] | None = None) -> None:
        """Record nothing yet.

        Args:
            name: What people call the run, as in ``pf.init``, for a run that ``fit`` begins.
            local_log_name: As in ``pf.init``, for such a run.
        """
        super().__init__()
        self.run_name = name
        """What people call the run."""
        self.hparams: dict[str, Any] = {}
        """The hyper-parameters that were logged so far."""
        self._local_log_name = local_log_name

    @property
    def name(self) -> str:
        """What people call the run: the folder in which checkpoints are saved, unless they are told where."""
        return self.run_name or "periflow"

    @property
    def version(self) -> str:
        """Nothing: checkpoints of the same name get a version of their own."""
        return ""

    @property
    def experiment(self) -> pf.TrainingRun | None:
        """The run, if one is active."""
        return pf.current_run()

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record values of the step that started last, whatever Lightning counts; nothing before training."""
        trainer = _trainer_of(self)
        if trainer is None or _is_recorded(trainer):
            record(metrics)

    @harmless
    def log_hyperparams(
        self,
        params: Mapping[str, Any] | Namespace,
        metrics: Mapping[str, Any] | None = None,
        step: int | None = None,
    ) -> None:
        """Add to the configuration of the run, or of the one that is about to begin, and record values."""
        values = vars(params) if isinstance(params, Namespace) else dict(params)
        self.hparams.update(values)
        trainer = _trainer_of(self)
        if trainer is not None and trainer.training and _is_recorded(trainer):
            add_config(values)
        self.log_metrics(metrics or {})

    def log_graph(self, model: LightningModule, *_: Any) -> None:
        """Give the trainer a callback, if it has none: this is the last that a logger hears before training begins."""
        self._join(model.trainer)

    @harmless
    def _join(self, trainer: Trainer) -> None:
        _trainers[self] = weakref.ref(trainer)
        if _callback_of(trainer) is None:
            callback = PeriFlowCallback(self._local_log_name)
            trainer.callbacks.insert(0, callback)
            callback.setup(trainer, trainer.lightning_module, trainer.state.fn)


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
            trainer = _trainer_of(self)
            if trainer is not None and _is_recorded(trainer):
                record(metrics)
            super().log_metrics(metrics, *args, **kwargs)

    return Watched


def _config(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Return the hyper-parameters that were saved or logged."""
    config: dict[str, Any] = {}
    for each in (getattr(trainer, "datamodule", None), module):
        config.update({} if each is None else each.hparams_initial)
    for logger in _loggers(trainer):
        config.update(logger.hparams)
    return config


def _loggers(trainer: Trainer) -> list[PeriFlowLogger]:
    return [each for each in trainer.loggers if isinstance(each, PeriFlowLogger)]


def _trainer_of(logger: Logger) -> Trainer | None:
    trainer = _trainers.get(logger)
    return None if trainer is None else trainer()


def _callback_of(trainer: Trainer) -> PeriFlowCallback | None:
    return next((each for each in trainer.callbacks if isinstance(each, PeriFlowCallback)), None)


def _is_recorded(trainer: Trainer) -> bool:
    """Tell whether what a trainer does is recorded.

    Not what a tuner does before training: it puts the callbacks aside, and what it saves is thrown away.
    """
    callback = _callback_of(trainer)
    return callback is not None and callback.is_recording(trainer)
