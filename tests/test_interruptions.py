"""Trainings of two frameworks in one process, one after the other, interrupted in every way and in any order.

None ends because of telemetry, every run has the outcome that its training had, and steps are numbered as the
frameworks number them.
"""

import inspect
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import periflow_otel as pf
from periflow_otel import testing
from periflow_otel.records import RunFinished
from periflow_otel.translate.facts import outcome_of

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("lightning", reason="lightning is not installed")

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments

from periflow_otel.integrations import huggingface, lightning

HEEDS_SIGTERM = "enable_jit_checkpoint" in inspect.signature(TrainingArguments).parameters
"""Whether transformers saves and stops; before version 5 it does not."""
ROUNDS = 30
STEPS = 6
EVERY = 2
"""Steps between two checkpoints."""
WAYS = ("none", "error", "interrupt", "sigterm", "shutdown", "init")
OUTCOMES = {"none": "finished", "error": "failed"}
"""How a training ends; any other way is "interrupted", also where the script ends the run first."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # Lightning is behind torch
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
]


class Plan(NamedTuple):
    """What one round does."""

    way: str
    step: int
    """In which it is interrupted."""
    has_new_trainer: bool
    has_new_callback: bool
    begins_run: bool
    """Whether the script begins a run itself."""


class Saved(NamedTuple):
    """A checkpoint, as seen when it has just been saved."""

    step: int
    """Of the framework."""
    recorded: int | None
    """Of the run; None if none is active."""


class Case:
    """Interrupts a training, and sees what it saves."""

    def __init__(self) -> None:
        """Interrupt nothing yet."""
        self.plan = Plan("none", 0, has_new_trainer=True, has_new_callback=True, begins_run=False)
        self.terminate: Callable[[], None] = lambda: None
        self.saved: list[Saved] = []

    def reach(self, step: int) -> None:
        """Do what is planned for a step, in the middle of it."""
        if step != self.plan.step:
            return
        match self.plan.way:
            case "error":
                raise FloatingPointError
            case "interrupt":
                raise KeyboardInterrupt
            case "sigterm":
                self.terminate()
            case "shutdown" if pf.is_initialized():
                pf.shutdown()
            case "init":
                pf.init()

    def see(self, step: int) -> None:
        """See a checkpoint."""
        run = pf.current_run()
        self.saved.append(Saved(step, None if run is None else run.step))


class HuggingFace:
    """Trains with ``transformers``."""

    def __init__(self, case: Case) -> None:
        """Make nothing yet."""
        self.case = case
        self.trainer: Any = None
        self.callback: Any = None
        self.was_terminated = False
        """Whether the trainer will heed the same SIGTERM again."""

    def prepare(self, plan: Plan) -> None:
        """Make what is to be new."""
        if self.callback is None or plan.has_new_callback:
            self.callback = huggingface.PeriFlowCallback()
            self.trainer = None
        if self.trainer is None or plan.has_new_trainer or self.was_terminated:
            self.trainer = self._make()
        manager = next(
            (each.jit_manager for each in self.trainer.callback_handler.callbacks if hasattr(each, "jit_manager")), None
        )
        self.case.terminate = lambda: manager and manager._enable_checkpoint()
        self.was_terminated = plan.way == "sigterm"

    def train(self) -> int:
        """Train to the end, wherever that is; return how many steps were done."""
        handler = signal.getsignal(signal.SIGTERM)
        try:
            self.trainer.train()
        finally:
            signal.signal(signal.SIGTERM, handler)
        return int(self.trainer.state.global_step)

    def _make(self) -> Trainer:
        case = self.case

        class Model(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(4, 2)

            def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
                case.reach(trainer.state.global_step + 1)
                logits = self.layer(x)
                return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

        class Seeing(Trainer):
            def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
                super()._save_checkpoint(*args, **kwargs)
                case.see(self.state.global_step)

        args = TrainingArguments(
            "hf", max_steps=STEPS, per_device_train_batch_size=2, save_steps=EVERY, report_to="none", use_cpu=True,
            disable_tqdm=True, **({"enable_jit_checkpoint": True} if HEEDS_SIGTERM else {}),
        )  # fmt: skip
        data = [{"x": torch.eye(4)[number % 4], "labels": torch.tensor(number % 2)} for number in range(16)]
        trainer = Seeing(Model(), args, train_dataset=data, callbacks=[self.callback])
        return trainer


class Lightning:
    """Trains with Lightning."""

    def __init__(self, case: Case) -> None:
        """Make nothing yet."""
        self.case = case
        self.trainer: Any = None
        self.callback: Any = None

    def prepare(self, plan: Plan) -> None:
        """Make what is to be new: always the trainer, as one that was interrupted goes on where it was."""
        if self.callback is None or plan.has_new_callback:
            self.callback = lightning.PeriFlowCallback()
        self.trainer = self._make()
        self.case.terminate = lambda: signal.raise_signal(signal.SIGTERM)

    def train(self) -> int:
        """Train to the end, wherever that is; return how many steps were done."""
        case, trainer = self.case, self.trainer

        class Model(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(4, 2)

            def training_step(self, batch: Any) -> torch.Tensor:
                case.reach(trainer.global_step + 1)
                return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        data = TensorDataset(torch.eye(4).repeat(4, 1), torch.arange(16) % 2)
        trainer.fit(Model(), DataLoader(data, batch_size=2))
        return int(trainer.global_step)

    def _make(self) -> pl.Trainer:
        case = self.case

        class Saving(ModelCheckpoint):
            def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
                super()._save_checkpoint(trainer, filepath)
                case.see(trainer.global_step)

        return pl.Trainer(
            max_steps=STEPS, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[self.callback, Saving("pl", every_n_train_steps=EVERY, save_top_k=-1)],
        )  # fmt: skip


class Expected:
    """What must have been recorded, journal by journal."""

    def __init__(self) -> None:
        """Expect nothing yet."""
        self.outcomes: list[str] = []
        self.checkpoints: list[int] = []

    def begin(self, plan: Plan, saved: list[Saved]) -> None:
        """Expect what a training has recorded."""
        self.outcomes.append(OUTCOMES.get(plan.way, "interrupted"))
        if plan.way == "init":
            self.outcomes.append("finished")
        self.checkpoints += dict.fromkeys(each.step for each in saved if each.recorded is not None)  # twice is once


def plan_round(choose: random.Random) -> Plan:
    """Return what one round does."""
    way, step = choose.choice(WAYS), choose.randint(1, STEPS - 1)
    return Plan(way, step, *(choose.random() < 0.5 for _ in range(3)))


def end(framework: HuggingFace | Lightning, plan: Plan) -> None:
    """Train, and check that nothing but what was planned has ended it."""
    steps, raised = STEPS, None
    try:
        steps = framework.train()
    except BaseException as error:  # noqa: BLE001  # Lightning makes an exit of Ctrl-C, and an exception of SIGTERM
        raised = error
    assert isinstance(raised, FloatingPointError) == (plan.way == "error"), raised
    if plan.way in ("none", "shutdown", "init"):
        assert (raised, steps) == (None, STEPS)
    elif plan.way == "sigterm":
        assert raised or steps < STEPS


def steps_of_run(plan: Plan, saved: Saved) -> set[int]:
    """Return the step that may have started last when a checkpoint was saved: almost always that of the checkpoint."""
    if plan.way == "init" and plan.step == saved.step:
        return {0}  # in a run that has just begun
    if plan.way == "sigterm" and plan.step == saved.step + 1:
        return {saved.step, plan.step}  # transformers saves once more, before the update that was going on
    return {saved.step}


@pytest.mark.parametrize("seed", [13])
def test_thirty_interruptions(captured: testing.Captured, seed: int):
    """Each training begins in what the one before has left behind."""
    choose = random.Random(seed)  # noqa: S311  # the same each time
    case, expected = Case(), Expected()
    frameworks = [HuggingFace(case), Lightning(case)]
    for _ in range(ROUNDS):
        framework, case.plan, case.saved = choose.choice(frameworks), plan_round(choose), []
        if case.plan.way == "sigterm" and framework is frameworks[0] and not HEEDS_SIGTERM:
            case.plan = case.plan._replace(way="none")
        if case.plan.begins_run:
            pf.init()
        framework.prepare(case.plan)
        end(framework, case.plan)
        for saved in case.saved:
            assert saved.recorded is None or saved.recorded in steps_of_run(case.plan, saved)
        expected.begin(case.plan, case.saved)
    if pf.is_initialized():
        pf.shutdown()
    ended = [outcome_of(each) for each in captured._records() if isinstance(each, RunFinished)]
    assert ended == expected.outcomes
    assert captured.checkpoints == expected.checkpoints
    assert list(Path("hf").glob("checkpoint-*"))
