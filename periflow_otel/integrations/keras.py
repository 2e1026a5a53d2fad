"""Records what ``model.fit`` of Keras does, on any of its backends.

    from periflow_otel.integrations.keras import PeriFlowCallback

    model.fit(x, y, epochs=10, callbacks=[PeriFlowCallback()])

It tells how many steps there will be, so ``pf.init`` need not be called.
"""

import inspect
import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from periflow_otel.integrations.training import (
    CHECKPOINT_PHASE,
    Training,
    announce_checkpoint,
    begin_training,
    callers,
    harmless,
    phase,
    record,
)
from periflow_otel.integrations.watching import watch

try:
    from keras.callbacks import Callback, CallbackList, ModelCheckpoint
except ImportError as error:
    message = f"PeriFlowCallback needs keras ({error}): pip install 'periflow_otel[keras]'"
    raise ImportError(message) from error

__all__ = ["PeriFlowCallback"]


class PeriFlowCallback(Callback):
    """Records every optimizer step as a step, metrics, evaluation and prediction, and what ``ModelCheckpoint`` saves.

    If the script has begun a run with ``pf.init``, that is used. Else training begins one, which stays open for what is
    evaluated afterwards: it ends when the next training begins, with ``pf.shutdown``, or with the script.
    """

    def __init__(self, local_log_name: str | os.PathLike[str] | None = None, *, log_every_n_steps: int = 10) -> None:
        """Record nothing yet.

        Args:
            local_log_name: As in ``pf.init``, for a run that training begins.
            log_every_n_steps: How often metrics are recorded, besides at the end of each epoch. Each time, a GPU is
                waited for.
        """
        super().__init__()
        self._local_log_name = local_log_name
        self._log_every_n_steps = max(1, log_every_n_steps)
        self._training: Training | None = None
        self._phases = ExitStack()
        self._batches_before = 0
        """Batches that the optimizer had seen when the epoch began."""
        self._batches = 0
        self._step = 0

    @harmless
    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Watch the callbacks that save; the run begins with the first epoch, when it is known which one that is."""
        self._training = None
        self._phases.close()
        for callback in _siblings(self):
            if isinstance(callback, ModelCheckpoint):
                watch(callback, _watched_checkpoint)

    @harmless
    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Begin a run with the first epoch, unless one is active."""
        if self._training is None:
            self._begin(epoch)
        self._batches_before = self._batches

    @harmless
    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Begin a step, which may take several batches. Its number is that of the last update it is going to make."""
        if self._training is None:
            return
        last = batch + self.model.steps_per_execution
        if steps := self.params["steps"]:
            last = min(last, steps)
        elif self.model.steps_per_execution > 1:
            last = batch + 1  # nobody knows whether there will be more
        self._step = -(-(self._batches_before + last) // self._batches_per_step)
        self._training.start_step(self._step)

    @harmless
    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """End the step if this was its last batch."""
        self._batches = self._batches_before + batch + 1
        if self._training is None or self._batches // self._batches_per_step < self._step:
            return
        self._training.end_step()
        if self._step % self._log_every_n_steps == 0:
            record(self._values(logs))

    @harmless
    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Record the metrics of the epoch, and those of its validation."""
        if self._training is not None:
            record(self._values(logs))

    @harmless
    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Say that training is over."""
        if self._training is not None:
            self._training.end()
            self._training = None

    @harmless
    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Begin a phase."""
        self._phases.enter_context(phase("evaluation"))

    @harmless
    def on_test_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """End it, and record what it has found; in training, the end of the epoch tells."""
        self._phases.close()
        if self._training is None or self._training.session() is not _list_of(self):
            record({f"val_{key}": value for key, value in (logs or {}).items()})

    @harmless
    def on_predict_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Begin a phase."""
        self._phases.enter_context(phase("prediction"))

    @harmless
    def on_predict_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """End it."""
        self._phases.close()

    def saved(self) -> None:
        """Announce a checkpoint, which is complete now."""
        announce_checkpoint(self._updates())

    def _updates(self) -> int:
        """Return how many updates the optimizer has made. It is asked rarely: that waits for a GPU."""
        return int(self.model.optimizer.iterations) if self.model.optimizer is not None else 0

    def _values(self, logs: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return what Keras tells of, and the learning rate, which it tells of only where a callback changes it."""
        optimizer = self.model.optimizer
        rate = {} if optimizer is None else {"learning_rate": float(optimizer.learning_rate)}
        return {**rate, **(logs or {})}

    @property
    def _batches_per_step(self) -> int:
        return getattr(self.model.optimizer, "gradient_accumulation_steps", None) or 1

    def _begin(self, epoch: int) -> None:
        optimizer, steps, done = self.model.optimizer, self.params["steps"], self._updates()
        self._batches = done * self._batches_per_step
        ahead = steps * (self.params["epochs"] - epoch) if steps else None
        self._training = begin_training(
            self.model,
            _list_of(self) or self.model,
            self._local_log_name,
            total_steps=None if ahead is None else (self._batches + ahead) // self._batches_per_step,
            done_steps=done,
            config={**self.params, "optimizer": optimizer.get_config() if optimizer is not None else {}},
        )


def _list_of(callback: Callback) -> CallbackList | None:
    """Return what calls a callback: made anew for each training. Keras tells its callbacks nothing of one another."""
    lists = (each for each in callers(inspect.currentframe()) if isinstance(each, CallbackList))
    return next((each for each in lists if callback in each.callbacks), None)


def _siblings(callback: Callback) -> list[Callback]:
    called = _list_of(callback)
    return [] if called is None else called.callbacks


def _watched_checkpoint(theirs: Any) -> type:
    """Make a callback that announces what it has saved."""

    class Watched(theirs):
        def _should_save_model(self, *args: Any, **kwargs: Any) -> bool:
            self.periflow_saves = bool(super()._should_save_model(*args, **kwargs))
            return self.periflow_saves

        def _save_model(self, *args: Any, **kwargs: Any) -> None:
            self.periflow_saves = False
            with phase(CHECKPOINT_PHASE):
                super()._save_model(*args, **kwargs)
            if self.periflow_saves:
                _announce(self)

    return Watched


@harmless
def _announce(saving: Callback) -> None:
    for callback in _siblings(saving):
        if isinstance(callback, PeriFlowCallback):
            callback.saved()
