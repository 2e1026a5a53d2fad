"""Records what a ``lightning`` trainer does.

    from periflow_otel.integrations.lightning import PeriFlowCallback

    trainer = Trainer(max_epochs=10, callbacks=[PeriFlowCallback()])

It tells how many steps there will be, so ``pf.init`` need not be called.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from periflow_otel.integrations import (
    CHECKPOINT_PHASE,
    FrameworkRun,
    UnfinishedStepError,
    announce_checkpoint,
    call_in_phase,
    phase,
    record,
    wrap_method,
)

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    message = f"PeriFlowCallback needs lightning ({error}): pip install 'periflow_otel[lightning]'"
    raise ImportError(message) from error

__all__ = ["PeriFlowCallback", "PeriFlowTrainer"]


class PeriFlowCallback(Callback):
    """Records every optimizer step as a step, what is logged, the phases between steps, and checkpoints on every rank.

    If the script has begun a run with ``pf.init``, that is used. Else ``fit`` begins one, and ends it.
    """

    def __init__(self, local_log_name: str | os.PathLike[str] | None = None) -> None:
        """Record nothing yet.

        Args:
            local_log_name: As in ``pf.init``, for a run that ``fit`` begins.
        """
        self._run = FrameworkRun(local_log_name)
        self._phases = ExitStack()
        self._undo = ExitStack()
        self._steps_done = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch the trainer: no event tells that a checkpoint is complete, or what is logged without a logger."""
        self._undo.close()  # after a failure there is no teardown
        if not isinstance(trainer, PeriFlowTrainer):
            self._undo.callback(wrap_method(trainer, "save_checkpoint", _save))
        connector = getattr(trainer, "_logger_connector", None)
        if connector is not None:
            self._undo.callback(wrap_method(connector, "log_metrics", _log))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch it no more, and end the run if ``fit`` began it."""
        self._undo.close()
        self._run.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the phases and the step that were going on, with the exception. The run ends with the script.

        But for Ctrl-C: then the trainer ends the script by ``sys.exit``, or lets it go on, as if nothing had failed.
        """
        self._phases.__exit__(type(exception), exception, exception.__traceback__)
        self._run.end_step(exception)
        if isinstance(exception, KeyboardInterrupt):
            self._run.end(exception)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a run, unless one is active. Only now the number of steps is known."""
        total_steps = trainer.estimated_stepping_batches  # -1 or infinite where nobody knows
        self._run.begin(int(total_steps) if 0 < total_steps < float("inf") else None, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a step that got no optimizer step, as with manual optimization."""
        self._run.end_step(UnfinishedStepError())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin a step, which may take several batches."""
        self._run.start_step()
        self._steps_done = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the step if this was its last batch."""
        if trainer.global_step != self._steps_done:
            self._run.end_step()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a phase, but not for the trial before training."""
        if not trainer.sanity_checking:
            self._phases.enter_context(phase("validation"))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End it."""
        self._phases.close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a phase."""
        self._phases.enter_context(phase("test"))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End it."""
        self._phases.close()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a phase."""
        self._phases.enter_context(phase("prediction"))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End it."""
        self._phases.close()


class PeriFlowTrainer(Trainer):
    """A trainer that announces its checkpoints: for a script that records its steps with a callback of its own."""

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save a checkpoint, as ``Trainer`` does, and announce it."""
        _save(super().save_checkpoint, *args, **kwargs)


def _save(save: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    call_in_phase(CHECKPOINT_PHASE, save, *args, **kwargs)
    announce_checkpoint()


def _log(log: Callable[..., None], metrics: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
    """Record what is due to be logged: every so many steps, so that a GPU need not be waited for at each."""
    record(metrics)
    log(metrics, *args, **kwargs)
