"""Records what a ``transformers.Trainer`` does.

    from periflow_otel.integrations.huggingface import PeriFlowCallback

    trainer = Trainer(model, args, train_dataset=dataset, callbacks=[PeriFlowCallback()])

It tells how many steps there will be, so ``pf.init`` need not be called.
"""

import inspect
import os
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import periflow_otel as pf
from periflow_otel.integrations import (
    CHECKPOINT_PHASE,
    FrameworkRun,
    announce_checkpoint,
    call_in_phase,
    record,
    wrap_method,
)

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    message = f"PeriFlowCallback needs transformers ({error}): pip install 'periflow_otel[huggingface]'"
    raise ImportError(message) from error

__all__ = ["PeriFlowCallback"]

_PHASES: Final = {"evaluate": "evaluation", "predict": "prediction", "_save_checkpoint": CHECKPOINT_PHASE}
"""What the methods of a trainer are that take time between steps. Events tell of their ends, not of their beginnings
or failures."""


class PeriFlowCallback(TrainerCallback):
    """Records every optimizer step as a step, what is logged, the phases between steps, and checkpoints on every rank.

    If the script has begun a run with ``pf.init``, that is used. Else training begins one, and ends it.
    """

    def __init__(
        self, local_log_name: str | os.PathLike[str] | None = None, *, saves_in_emergency: bool = False
    ) -> None:
        """Record nothing yet.

        Args:
            local_log_name: As in ``pf.init``, for a run that training begins.
            saves_in_emergency: Save a checkpoint when somebody asks for an emergency save.
        """
        self._run = FrameworkRun(local_log_name)
        self._saves_in_emergency = saves_in_emergency
        self._watched: Trainer | None = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Watch the trainer."""
        self._watch(_calling_trainer())

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin a run, unless one is active. Only now the number of steps is known."""
        self._watch(_calling_trainer())  # a callback that was added later missed the event above
        self._run.begin(state.max_steps, state.global_step)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin a step, which may take several batches."""
        self._run.start_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End it, and have a checkpoint saved if somebody asks for one."""
        self._run.end_step()
        if self._saves_in_emergency and pf.is_emergency_save():
            control.should_save = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Record what is logged."""
        record(logs or {})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Announce a checkpoint, which is complete now."""
        announce_checkpoint()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End the run if training began it."""
        self._run.end()

    def _watch(self, trainer: Trainer | None) -> None:
        """Let the calls of a trainer be phases from now on."""
        if trainer is None or trainer is self._watched:
            return
        self._watched = trainer
        for method, phase in _PHASES.items():
            if hasattr(trainer, method):
                wrap_method(trainer, method, partial(call_in_phase, phase))


def _calling_trainer() -> Trainer | None:
    """Return the trainer whose event this is. It tells its callbacks everything but itself."""
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer):
            return caller
        frame = frame.f_back
    return None
