"""The callback for ``lightning`` records what a real trainer does."""

import argparse
import copy
import inspect
import pickle
import runpy
from pathlib import Path
from typing import Any

import pytest
from recorded import journals, run_script

import periflow_otel as pf
from periflow_otel import names, testing
from periflow_otel.records import RunFinished, StepEnded
from periflow_otel.translate.facts import outcome_of
from periflow_otel.translate.telemetry import Span

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("lightning", reason="lightning is not installed")

import lightning.pytorch as pl
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader, TensorDataset

from periflow_otel.integrations.lightning import PeriFlowCallback, PeriFlowLogger, PeriFlowTrainer

SCRIPT = Path(__file__).parent / "scripts" / "callback_lightning.py"
STEP_S, VALIDATION_S, SAVING_S = 1.0, 100.0, 1000.0
DATA = TensorDataset(torch.eye(4).repeat(4, 1), torch.arange(16) % 2)

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        ".*LeafSpec",  # Lightning is behind torch
        ".*does not have many workers",  # the batches are in memory
        ".*exists and is not empty",  # a test goes on from there
        ".*with manual optimization and every_n_train_steps",  # what a checkpoint holds does not matter here
    )
]


class Model(pl.LightningModule):
    """A model that takes as long as it is told, on a clock that stands still otherwise."""

    def __init__(self, clock: testing.FakeClock) -> None:
        """Make it small."""
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        self.clock = clock
        self.failing: str | None = None
        """What is to fail after two steps: training, validation or saving."""
        self.losses: list[float] = []

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """Return the loss."""
        self.clock.advance(STEP_S)
        self._fail("training")
        loss = self._loss(batch)
        self.losses.append(loss.item())
        self.log("loss", loss)
        self.log("mean_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        """Log the loss."""
        self.clock.advance(VALIDATION_S)
        self._fail("validation")
        self.log("val_loss", self._loss(batch))

    test_step = validation_step

    def predict_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """Return the answers."""
        self.clock.advance(VALIDATION_S)
        return self.layer(batch[0])

    def on_save_checkpoint(self, _checkpoint: dict[str, Any]) -> None:
        """Take long to save."""
        self.clock.advance(SAVING_S)
        self._fail("saving")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return a simple one."""
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader:
        """Return eight batches."""
        return DataLoader(DATA, batch_size=2)

    def val_dataloader(self) -> DataLoader:
        """Return two batches."""
        return DataLoader(DATA, batch_size=8)

    test_dataloader = predict_dataloader = val_dataloader

    def _loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        x, labels = batch
        return torch.nn.functional.cross_entropy(self.layer(x), labels)

    def _fail(self, what: str) -> None:
        if self.failing == what and len(self.losses) >= 2:
            raise FloatingPointError


@pytest.fixture
def model(clock: testing.FakeClock) -> Model:
    """Return the model to train."""
    return Model(clock)


def make_trainer(*callbacks: pl.Callback, kind: type[pl.Trainer] = pl.Trainer, **arguments: Any) -> pl.Trainer:
    """Make a trainer that does eight steps in an epoch, unless arguments say otherwise."""
    defaults = {
        "max_epochs": 1, "accelerator": "cpu", "limit_val_batches": 0, "logger": False, "log_every_n_steps": 1,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return kind(callbacks=list(callbacks), **(defaults | arguments))


def saving(every: int = 2, **arguments: Any) -> ModelCheckpoint:
    """Return a callback that saves a checkpoint every so many steps."""
    return ModelCheckpoint("out", filename="{step}", every_n_train_steps=every, save_top_k=-1, **arguments)


def saved() -> list[int]:
    """Return the steps of the checkpoints on disk."""
    return sorted(int(path.stem.removeprefix("step=")) for path in Path("out").glob("step=*.ckpt"))


def spans_named(captured: testing.Captured, name: str) -> list[Span]:
    """Return the captured spans of one name."""
    return [span for span in captured.spans if span.name == name]


def seconds(spans: list[Span]) -> list[float]:
    """Return how long each of them took."""
    return [(span.end_unix_ns - span.start_unix_ns) / 1e9 for span in spans]


def step_numbers(captured: testing.Captured) -> list[int]:
    """Return the numbers of all steps."""
    return [step.number for step in captured.steps]


def check_that_no_phase_is_open(captured: testing.Captured) -> None:
    """Check that a phase that begins now is a child of the run."""
    with pf.span("next"):
        pass
    (phase,), (start,) = spans_named(captured, "next"), spans_named(captured, names.RUN_START_SPAN)
    assert phase.parent_span_id == start.parent_span_id


# Steps


@pytest.mark.parametrize(("accumulation", "steps"), [(1, 8), (4, 2), (3, 3)])
def test_an_optimizer_step_is_a_step(captured: testing.Captured, model: Model, accumulation: int, steps: int):
    """However many batches it takes, and for all of its time."""
    trainer = make_trainer(PeriFlowCallback(), accumulate_grad_batches=accumulation)
    trainer.fit(model)
    assert trainer.global_step == steps
    assert step_numbers(captured) == list(range(1, steps + 1))
    assert sum(step.duration_s for step in captured.steps) == 8 * STEP_S
    assert captured.steps[0].duration_s == accumulation * STEP_S


@pytest.mark.parametrize(
    ("arguments", "total"),
    [
        ({"max_epochs": 3}, 24),
        ({"max_steps": 5}, 5),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, 6),
        ({"max_epochs": -1, "max_time": {"milliseconds": 1}}, None),
    ],
)
def test_the_number_of_steps_is_known(
    captured: testing.Captured, model: Model, arguments: dict[str, Any], total: int | None
):
    """It counts optimizer steps; training without end has none."""
    make_trainer(PeriFlowCallback(), **arguments).fit(model)
    assert [run.total_steps for run in captured.runs] == [total]


def test_a_resumed_run_goes_on_counting(captured: testing.Captured, model: Model):
    """The first step after a checkpoint has the next number."""
    make_trainer(PeriFlowCallback(), saving(8)).fit(model)
    trainer = make_trainer(PeriFlowCallback(), saving(8), max_epochs=2)
    trainer.fit(model, ckpt_path="out/step=8.ckpt")
    assert [run.initial_step for run in captured.runs] == [0, 8]
    assert step_numbers(captured) == list(range(1, trainer.global_step + 1))


def test_a_step_that_fails_is_marked(captured: testing.Captured, model: Model):
    """It has the error, is over, and the exception goes on."""
    pf.init()
    trainer = make_trainer(PeriFlowCallback())
    model.failing = "training"
    with pytest.raises(FloatingPointError):
        trainer.fit(model)
    model.failing = None
    make_trainer(PeriFlowCallback(), max_steps=1).fit(model)
    errors = [step.error for step in captured.steps]
    assert errors == [None, None, "FloatingPointError", None]


class ManualModel(Model):
    """A model that steps every third batch itself."""

    def __init__(self, clock: testing.FakeClock) -> None:
        """Say so."""
        super().__init__(clock)
        self.automatic_optimization = False

    def training_step(self, batch: list[torch.Tensor]) -> None:
        """Step now and then."""
        self.manual_backward(super().training_step(batch))
        if len(self.losses) % 3 == 0:
            self.optimizers().step()


def test_steps_of_manual_optimization(captured: testing.Captured, clock: testing.FakeClock):
    """They end where the model steps; batches at the end that it does not use are no step."""
    pf.init()
    make_trainer(PeriFlowCallback()).fit(ManualModel(clock))
    assert [(step.duration_s, step.error) for step in captured.steps] == [
        (3 * STEP_S, None), (3 * STEP_S, None),
    ]  # fmt: skip


class TwoOptimizers(ManualModel):
    """A model that steps twice in each batch."""

    def training_step(self, batch: list[torch.Tensor]) -> None:
        """Step with both."""
        self.manual_backward(Model.training_step(self, batch))
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return both."""
        return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]


def test_steps_have_the_numbers_of_the_trainer(captured: testing.Captured, clock: testing.FakeClock):
    """Which counts the updates of all optimizers; a checkpoint is of the step that it names."""
    make_trainer(PeriFlowCallback(), saving(4)).fit(TwoOptimizers(clock))
    assert step_numbers(captured) == [2, 4, 6, 8, 10, 12, 14, 16]
    assert captured.checkpoints == [4, 8, 12, 16]


class SkippingModel(Model):
    """A model that ends an epoch in its second batch."""

    def on_train_batch_start(self, _batch: Any, batch_idx: int) -> int:
        """Return what Lightning wants for that."""
        return -1 if batch_idx == 1 else 0


def test_an_epoch_that_a_hook_ends(captured: testing.Captured, clock: testing.FakeClock):
    """It leaves no step open."""
    make_trainer(PeriFlowCallback(), max_epochs=2).fit(SkippingModel(clock))
    assert [(step.number, step.error) for step in captured.steps] == [(1, None), (2, None)]


# Runs


INTERRUPTED = """
import os, signal, torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from periflow_otel.integrations.lightning import PeriFlowCallback

class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, number):
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
Trainer(accelerator="cpu", callbacks=[PeriFlowCallback()], **quiet).fit(Model(), DataLoader(torch.eye(4)))
"""


def test_a_run_that_ctrl_c_ends_is_interrupted():
    """Lightning makes an exit of it, which would look like a good end."""
    run_script(INTERRUPTED)
    (journal,) = journals()
    assert [each.error for each in journal.of(StepEnded)] == [None, None, "KeyboardInterrupt"]
    assert [outcome_of(each) for each in journal.of(RunFinished)] == ["interrupted"]


def test_fit_begins_a_run(captured: testing.Captured, model: Model):
    """Where the script has begun none. It stays open for what is tested afterwards."""
    trainer = make_trainer(PeriFlowCallback(local_log_name="trained.log"))
    trainer.validate(model)
    assert not captured.runs
    trainer.fit(model)
    trainer.test(model)
    pf.shutdown()
    assert len(spans_named(captured, "test")) == 1
    assert [span.attributes[names.OUTCOME] for span in spans_named(captured, names.RUN_SPAN)] == ["finished"]
    assert [Path(run.local_log or "").name for run in captured.runs] == ["trained.log"]


def test_the_run_of_the_script_is_used(captured: testing.Captured, model: Model):
    """It is not ended either: the script may have more to record."""
    pf.init(total_train_steps=80, run_id="mine")
    for _ in range(2):
        make_trainer(PeriFlowCallback()).fit(model)
    assert pf.is_initialized()
    assert [(run.run_id, run.attempt, run.total_steps) for run in captured.runs] == [("mine", 1, 80), ("mine", 2, 80)]
    assert step_numbers(captured) == [*range(1, 9), *range(1, 9)]


# Values


@pytest.mark.parametrize("interval", [1, 4])
def test_what_is_logged_becomes_metrics(captured: testing.Captured, model: Model, interval: int):
    """No more often than Lightning logs, so that a GPU is not waited for at each step; each value at its step."""
    make_trainer(PeriFlowCallback(), max_epochs=2, limit_val_batches=2, log_every_n_steps=interval).fit(model)
    due = range(interval, 17, interval)
    assert [step.number for step in captured.steps if "loss" in step.metrics] == list(due)
    assert captured.metrics("loss") == [pytest.approx(model.losses[step - 1]) for step in due]
    assert [step.number for step in captured.steps if "mean_loss" in step.metrics] == [8, 16]
    assert [step.number for step in captured.steps if "val_loss" in step.metrics] == [8, 16]
    means = [sum(model.losses[:8]) / 8, sum(model.losses[8:]) / 8]
    assert captured.metrics("mean_loss") == [pytest.approx(mean) for mean in means]


def test_values_of_an_optimizer_step_of_several_batches(captured: testing.Captured, model: Model):
    """They are those of its last batch."""
    make_trainer(PeriFlowCallback(), accumulate_grad_batches=4).fit(model)
    assert captured.metrics("loss") == [pytest.approx(model.losses[3]), pytest.approx(model.losses[7])]


# Phases


def test_validation_and_saving_are_phases(captured: testing.Captured, model: Model):
    """Their time is theirs, and in no step; the trial before training is no validation."""
    pf.init()
    arguments = {"limit_val_batches": 2, "val_check_interval": 4, "num_sanity_val_steps": 2}
    make_trainer(PeriFlowCallback(), saving(4), **arguments).fit(model)
    assert seconds(spans_named(captured, "validation")) == [2 * VALIDATION_S] * 2
    assert seconds(spans_named(captured, "checkpoint")) == [SAVING_S] * 2
    assert [step.duration_s for step in captured.steps] == [STEP_S] * 8


def test_phases_outside_training(captured: testing.Captured, model: Model):
    """A run of the script has those too."""
    pf.init()
    trainer = make_trainer(PeriFlowCallback(), limit_val_batches=1)
    trainer.validate(model, verbose=False)
    trainer.test(model, verbose=False)
    trainer.predict(model)
    assert seconds(spans_named(captured, "validation")) == [VALIDATION_S]
    assert seconds(spans_named(captured, "test")) == [2 * VALIDATION_S]
    assert seconds(spans_named(captured, "prediction")) == [2 * VALIDATION_S]
    assert len(captured.metrics("val_loss")) == 2


def test_a_validation_that_fails_is_over(captured: testing.Captured, model: Model):
    """Its span has the error, and nothing that follows is a part of it."""
    pf.init()
    model.failing = "validation"
    with pytest.raises(FloatingPointError):
        make_trainer(PeriFlowCallback(), limit_val_batches=1, num_sanity_val_steps=0).fit(model)
    check_that_no_phase_is_open(captured)
    assert [span.error for span in spans_named(captured, "validation")] == ["FloatingPointError"]
    assert len(captured.steps) == 8


# Checkpoints


@pytest.mark.parametrize("accumulation", [1, 4])
def test_checkpoints_are_announced_once_they_are_complete(captured: testing.Captured, model: Model, accumulation: int):
    """One event for each on disk, at its step, when saving is over."""
    make_trainer(PeriFlowCallback(), saving(), max_epochs=2, accumulate_grad_batches=accumulation).fit(model)
    assert captured.checkpoints == saved() == list(range(2, 16 // accumulation + 1, 2))
    saving_spans = spans_named(captured, "checkpoint")
    assert [event.time_unix_ns for event in captured.events] == [span.end_unix_ns for span in saving_spans]


def test_a_checkpoint_that_cannot_be_saved_is_not_announced(captured: testing.Captured, model: Model):
    """The exception goes on, its phase is over, and there is no event."""
    pf.init()
    model.failing = "saving"
    with pytest.raises(FloatingPointError):
        make_trainer(PeriFlowCallback(), saving()).fit(model)
    check_that_no_phase_is_open(captured)
    assert [span.error for span in spans_named(captured, "checkpoint")] == ["FloatingPointError"]
    assert not captured.checkpoints
    assert step_numbers(captured) == [1, 2]


@pytest.mark.skipif(
    "save_on_exception" not in inspect.signature(ModelCheckpoint).parameters, reason="lightning is too old"
)
def test_a_checkpoint_after_a_failure(captured: testing.Captured, model: Model):
    """Which a script may ask Lightning for is announced as well, as that of the last step that was complete."""
    pf.init()
    model.failing = "training"
    with pytest.raises(FloatingPointError):
        make_trainer(PeriFlowCallback(), saving(5, save_on_exception=True)).fit(model)
    assert captured.checkpoints == [2]


def test_a_checkpoint_at_the_end_of_training(captured: testing.Captured, model: Model):
    """It still belongs to the run."""
    make_trainer(PeriFlowCallback(), saving(100, save_last=True)).fit(model)
    assert captured.checkpoints == [8]


def test_saving_twice_in_a_step_counts_once(captured: testing.Captured, model: Model):
    """Such as under another name, for the last one."""
    make_trainer(PeriFlowCallback(), saving(4, save_last=True)).fit(model)
    assert len(spans_named(captured, "checkpoint")) == 4
    assert captured.checkpoints == [4, 8]


def test_nothing_is_kept_in_the_trainer(captured: testing.Captured, model: Model):
    """What a script puts there itself stays, and comes first."""
    trainer = make_trainer(PeriFlowCallback(), saving())
    before = set(vars(trainer))
    trainer.fit(model)
    assert set(vars(trainer)) - before <= {"val_check_batch"}  # Lightning's own, of which some versions have it later
    called = []
    trainer.save_checkpoint = lambda path: called.append(path) or type(trainer).save_checkpoint(trainer, path)
    trainer.save_checkpoint("last.ckpt")
    assert called == ["last.ckpt"]
    assert captured.checkpoints == saved()


def test_what_a_tuner_tries_is_not_recorded(captured: testing.Captured, model: Model):
    """Its checkpoint is thrown away, and its losses are none of the run."""
    pf.init()
    Tuner(make_trainer(PeriFlowCallback())).lr_find(model, num_training=3, update_attr=False)
    assert not captured.checkpoints
    assert not captured.steps
    assert not captured.metrics("loss")


@pytest.mark.parametrize("own", [True, False])
def test_what_a_logger_is_told_is_recorded(captured: testing.Captured, model: Model, tmp_path: Path, own: bool):  # noqa: FBT001  # a parameter of pytest
    """By whoever: Lightning, another callback, or the model itself; and once, however many loggers there are."""
    loggers = [CSVLogger(tmp_path / str(number)) for number in range(2)]
    trainer = make_trainer(PeriFlowCallback(), LearningRateMonitor("step"), logger=loggers, max_steps=2)
    trainer.fit(model)
    if own:
        loggers[0].log_metrics({"direct": 1.0})
    assert len(captured.metrics("lr-SGD")) == 2
    assert captured.metrics("direct") == ([1.0] if own else [])


@pytest.mark.parametrize("callbacks", [[], [PeriFlowCallback]])
def test_a_trainer_that_announces_its_checkpoints(captured: testing.Captured, model: Model, callbacks: list[type]):
    """With the callback and without it."""
    pf.init()
    make_trainer(*(make() for make in callbacks), saving(), kind=PeriFlowTrainer).fit(model)
    assert captured.checkpoints == [2, 4, 6, 8]
    assert len(spans_named(captured, "checkpoint")) == 4


# What people wrote for the original


def test_a_callback_and_a_trainer_written_for_periflow_sdk(captured: testing.Captured, tmp_path: Path):
    """They record what they always did, with nothing but the import changed."""
    code = SCRIPT.read_text("utf-8")
    assert code.count("import periflow_sdk as pf\n") == 1
    changed = tmp_path / "script.py"
    changed.write_text(code.replace("import periflow_sdk as pf\n", "import periflow_otel as pf\n"), "utf-8")
    runpy.run_path(str(changed), run_name="__main__")
    assert step_numbers(captured) == captured.metrics("iteration") == list(range(1, 17))
    assert captured.checkpoints == saved() == list(range(2, 17, 2))


# What tells a run from others


def test_saved_hyper_parameters_tell_a_run_from_others(captured: testing.Captured, model: Model):
    """Those of the module; what is no value, such as a function, is left out."""
    model.save_hyperparameters({"width": 4, "head": {"bias": True}, "activation": torch.relu, "api_key": "s3cret"})
    make_trainer(PeriFlowCallback(), max_steps=1).fit(model)
    pf.shutdown()
    [span] = spans_named(captured, names.RUN_SPAN)
    config = {key: span.attributes[key] for key in span.attributes if key.startswith(names.CONFIG_PREFIX)}
    prefix = names.CONFIG_PREFIX
    assert config == {f"{prefix}width": 4, f"{prefix}head.bias": True, f"{prefix}api_key": "***"}


# The logger


def test_a_logger_records_all_that_a_callback_does(captured: testing.Captured, model: Model):
    """With nothing else: steps, what is logged, checkpoints, and how training ended."""
    logger = PeriFlowLogger("baseline")
    make_trainer(saving(4), logger=logger).fit(model)
    pf.shutdown()
    assert step_numbers(captured) == list(range(1, 9))
    assert len(captured.metrics("loss")) == 8
    assert captured.checkpoints == saved() == [4, 8]
    assert dict(captured.runs[0].resource)[names.RUN_NAME] == "baseline"
    [span] = spans_named(captured, names.RUN_SPAN)
    assert span.attributes[names.OUTCOME] == "finished"


@pytest.mark.parametrize("order", [1, -1])
def test_a_logger_beside_the_callback_and_others_records_once(
    captured: testing.Captured, model: Model, tmp_path: Path, order: int
):
    """Wherever it stands among them."""
    loggers = [CSVLogger(tmp_path), PeriFlowLogger()][::order]
    trainer = make_trainer(PeriFlowCallback(), LearningRateMonitor("step"), logger=loggers)
    trainer.fit(model)
    assert step_numbers(captured) == list(range(1, 9))
    assert [len(captured.metrics(key)) for key in ("loss", "lr-SGD")] == [8, 8]


def test_what_a_script_tells_the_logger_is_recorded(captured: testing.Captured, model: Model):
    """Values of a step, and hyper-parameters before training and in it; with values, as TensorBoard takes them."""

    class Telling(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
            trainer.logger.log_metrics({"told": trainer.global_step}, step=trainer.global_step)
            trainer.logger.log_hyperparams({"late": trainer.global_step}, {"hp_metric": 0.5})
            trainer.logger.log_hyperparams(None)
            assert trainer.logger.experiment is pf.current_run()

    logger = PeriFlowLogger()
    logger.log_hyperparams(argparse.Namespace(early=1))
    model.save_hyperparameters({"width": 4})
    make_trainer(Telling(), logger=logger, max_steps=2).fit(model)
    pf.shutdown()
    assert captured.metrics("told") == [1, 2]
    assert captured.metrics("hp_metric") == [0.5, 0.5]
    [span] = spans_named(captured, names.RUN_SPAN)
    config = {key: span.attributes[key] for key in span.attributes if key.startswith(names.CONFIG_PREFIX)}
    assert config == {"periflow.config.width": 4, "periflow.config.early": 1, "periflow.config.late": 2}


def test_a_logger_is_used_again(captured: testing.Captured, clock: testing.FakeClock):
    """By another trainer, whose run is its own; it can be copied and pickled as others."""
    logger = PeriFlowLogger()
    for _ in range(2):
        make_trainer(logger=logger, max_steps=2).fit(Model(clock))
    assert [len(captured.runs), step_numbers(captured)] == [2, [1, 2, 1, 2]]
    assert pickle.loads(pickle.dumps(copy.deepcopy(logger))).name == "periflow"  # noqa: S301  # our own


def test_a_watched_logger_can_be_pickled(captured: testing.Captured, model: Model, tmp_path: Path):
    """As before it was watched: spawned ranks get a copy."""
    logger = CSVLogger(tmp_path)
    make_trainer(PeriFlowCallback(), logger=logger, max_steps=1).fit(model)
    assert captured.metrics("loss")
    assert pickle.loads(pickle.dumps(logger)).name == logger.name  # noqa: S301  # our own
