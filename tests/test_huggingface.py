"""The callback for ``transformers`` records what a real trainer does."""

import copy
import gc
import inspect
import pickle
import runpy
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import periflow_otel as pf
from periflow_otel import names, testing
from periflow_otel.translate.telemetry import AttributeValue, Span

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from periflow_otel.integrations.huggingface import PeriFlowCallback

SCRIPT = Path(__file__).parent / "scripts" / "callback_huggingface.py"
STEP_S, EVALUATION_S, SAVING_S = 1.0, 100.0, 1000.0
DATA = [{"x": torch.eye(4)[number % 4], "labels": torch.tensor(number % 2)} for number in range(16)]

MakeTrainer = Callable[..., "SlowTrainer"]


class Model(torch.nn.Module):
    """A model that takes as long as it is told, on a clock that stands still otherwise."""

    def __init__(self, clock: testing.FakeClock) -> None:
        """Make it small."""
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        self.clock = clock
        self.fails = False

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss and the answers."""
        self.clock.advance(STEP_S if self.training else EVALUATION_S)
        if self.fails:
            raise FloatingPointError
        logits = self.layer(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class SlowTrainer(Trainer):
    """A trainer that takes long to save, and may fail in it."""

    fails = False

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Save the weights, and no more if this is to fail."""
        super().save_model(*args, **kwargs)
        self.model.clock.advance(SAVING_S)
        if self.fails:
            raise BlockingIOError


@pytest.fixture
def make_trainer(clock: testing.FakeClock) -> MakeTrainer:
    """Return what makes a trainer that does eight steps in an epoch, unless arguments say otherwise."""

    def make(*callbacks: TrainerCallback, train_dataset: Any = DATA, **arguments: Any) -> SlowTrainer:
        defaults = {
            "output_dir": "out", "num_train_epochs": 1, "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 8, "save_strategy": "no", "logging_strategy": "no", "report_to": "none",
            "disable_tqdm": True, "use_cpu": True,
        }  # fmt: skip
        args = TrainingArguments(**(defaults | arguments))
        return SlowTrainer(
            Model(clock), args, train_dataset=train_dataset, eval_dataset=DATA, callbacks=list(callbacks)
        )

    return make


def spans_named(captured: testing.Captured, name: str) -> list[Span]:
    """Return the captured spans of one name."""
    return [span for span in captured.spans if span.name == name]


def seconds(spans: list[Span]) -> list[float]:
    """Return how long each of them took."""
    return [(span.end_unix_ns - span.start_unix_ns) / 1e9 for span in spans]


def step_numbers(captured: testing.Captured) -> list[int]:
    """Return the numbers of all steps."""
    return [step.number for step in captured.steps]


def saved() -> list[int]:
    """Return the steps of the checkpoints on disk."""
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in Path("out").glob("checkpoint-*"))


# Steps


@pytest.mark.parametrize(("accumulation", "steps"), [(1, 8), (4, 2)])
def test_an_optimizer_step_is_a_step(
    captured: testing.Captured, make_trainer: MakeTrainer, accumulation: int, steps: int
):
    """However many batches it takes, and for all of its time."""
    trainer = make_trainer(PeriFlowCallback(), gradient_accumulation_steps=accumulation)
    trainer.train()
    assert trainer.state.global_step == steps
    assert step_numbers(captured) == list(range(1, steps + 1))
    assert [step.duration_s for step in captured.steps] == [accumulation * STEP_S] * steps


@pytest.mark.parametrize(("arguments", "total"), [({"num_train_epochs": 3}, 24), ({"max_steps": 5}, 5)])
def test_the_number_of_steps_is_known(
    captured: testing.Captured, make_trainer: MakeTrainer, arguments: dict[str, int], total: int
):
    """Also where only the number of epochs is given."""
    make_trainer(PeriFlowCallback(), **arguments).train()
    assert [run.total_steps for run in captured.runs] == [total]
    assert len(captured.steps) == total


def test_a_resumed_run_goes_on_counting(captured: testing.Captured, make_trainer: MakeTrainer):
    """The first step after a checkpoint has the next number."""
    make_trainer(PeriFlowCallback(), max_steps=4, save_strategy="steps", save_steps=4).train()
    make_trainer(PeriFlowCallback(), max_steps=8).train(resume_from_checkpoint="out/checkpoint-4")
    assert [run.initial_step for run in captured.runs] == [0, 4]
    assert step_numbers(captured) == list(range(1, 9))


def test_a_step_that_fails_is_marked(captured: testing.Captured, make_trainer: MakeTrainer):
    """And is over when the script tries again in the same run, from the first step: that is another attempt."""
    pf.init()
    trainer = make_trainer(PeriFlowCallback(), max_steps=2)
    trainer.model.fails = True
    with pytest.raises(FloatingPointError):
        trainer.train()
    trainer.model.fails = False
    trainer.train()
    assert [(step.number, step.error) for step in captured.steps] == [(1, "FloatingPointError"), (1, None), (2, None)]
    assert [run.attempt for run in captured.runs] == [1, 2]


# Runs


def outcomes(captured: testing.Captured) -> list[AttributeValue]:
    """Return how the runs that are over have ended."""
    return [span.attributes[names.OUTCOME] for span in spans_named(captured, names.RUN_SPAN)]


def test_training_begins_a_run(captured: testing.Captured, make_trainer: MakeTrainer):
    """Where the script has begun none. It stays open for what is evaluated after training."""
    trainer = make_trainer(PeriFlowCallback(local_log_name="trained.log"))
    assert not captured.runs
    trainer.train()
    trainer.evaluate()
    pf.shutdown()
    assert outcomes(captured) == ["finished"]
    assert [Path(run.local_log or "").name for run in captured.runs] == ["trained.log"]
    assert len(captured.metrics("eval_loss")) == 1


@pytest.mark.parametrize("again", ["same trainer", "same callback", "another callback"])
def test_a_training_after_one_that_failed(captured: testing.Captured, make_trainer: MakeTrainer, again: str):
    """Whoever comes next ends what was left behind, as failed."""
    trainer = make_trainer(callback := PeriFlowCallback(), max_steps=2)
    trainer.model.fails = True
    with pytest.raises(FloatingPointError):
        trainer.train()
    if again != "same trainer":
        trainer = make_trainer(callback if again == "same callback" else PeriFlowCallback(), max_steps=2)
    trainer.model.fails = False
    trainer.train()
    pf.shutdown()
    assert outcomes(captured) == ["failed", "finished"]
    assert [(step.number, step.error) for step in captured.steps] == [(1, "FloatingPointError"), (1, None), (2, None)]


@pytest.mark.parametrize("between", [pf.shutdown, pf.init, None])
def test_what_a_script_does_after_a_failure(
    captured: testing.Captured, make_trainer: MakeTrainer, between: Callable[[], object] | None
):
    """It may end the run, or begin another: the run that failed says so, and training goes on in the new one."""
    trainer = make_trainer(PeriFlowCallback(), max_steps=2)
    trainer.model.fails = True
    with pytest.raises(FloatingPointError):
        trainer.train()
    if between:
        between()
    trainer.model.fails = False
    trainer.train()
    pf.shutdown()
    assert outcomes(captured) == ["failed", "finished"]


class Interrupting(TrainerCallback):
    """Calls something in the middle of the second step."""

    def __init__(self, call: Callable[[], object]) -> None:
        """Keep what to call."""
        self._call = call

    def on_pre_optimizer_step(self, _args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Call it."""
        if state.global_step == 1:
            self._call()


def interrupt() -> None:
    """Do what Ctrl-C does."""
    raise KeyboardInterrupt


def test_a_run_that_ctrl_c_ends_is_interrupted(captured: testing.Captured, make_trainer: MakeTrainer):
    """That somebody wanted it to end is no failure."""
    with pytest.raises(KeyboardInterrupt):
        make_trainer(PeriFlowCallback(), Interrupting(interrupt), max_steps=3).train()
    pf.shutdown()
    assert outcomes(captured) == ["interrupted"]


@pytest.mark.parametrize(("status", "outcome"), [(0, "interrupted"), (None, "interrupted"), (3, "failed")])
def test_a_script_that_leaves_in_the_middle(
    captured: testing.Captured, make_trainer: MakeTrainer, status: int | None, outcome: str
):
    """It has not finished training, though an exit without a status is no failure."""
    with pytest.raises(SystemExit):
        make_trainer(PeriFlowCallback(), Interrupting(lambda: sys.exit(status)), max_steps=3).train()
    pf.shutdown()
    assert outcomes(captured) == [outcome]


@pytest.mark.parametrize("end_run", [pf.shutdown, pf.init])
def test_a_run_that_the_script_ends_in_the_middle_is_interrupted(
    captured: testing.Captured, make_trainer: MakeTrainer, end_run: Callable[[], object]
):
    """Nothing has failed, and training was not over."""
    make_trainer(PeriFlowCallback(), Interrupting(end_run), max_steps=3).train()
    assert outcomes(captured)[0] == "interrupted"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])  # noqa: S301  # our own
def test_a_copy_of_a_callback_that_has_trained(
    captured: testing.Captured, make_trainer: MakeTrainer, copied: Callable[[PeriFlowCallback], PeriFlowCallback]
):
    """It records a training of its own, such as in another process."""
    callback = PeriFlowCallback()
    make_trainer(callback, max_steps=2).train()
    make_trainer(copied(callback), max_steps=3).train()
    assert step_numbers(captured) == [1, 2, 1, 2, 3]


@pytest.mark.parametrize("call", [pf.shutdown, pf.init, lambda: (pf.shutdown(), pf.init())])
def test_a_script_that_changes_runs_in_the_middle(
    captured: testing.Captured, make_trainer: MakeTrainer, call: Callable[[], object]
):
    """Training goes on, and every step that is recorded has its number."""
    trainer = make_trainer(PeriFlowCallback(), Interrupting(call), max_steps=4)
    trainer.train()
    assert trainer.state.global_step == 4
    assert step_numbers(captured) == ([1, 2] if call is pf.shutdown else [1, 2, 3, 4])


def test_a_second_callback_records_nothing(captured: testing.Captured, make_trainer: MakeTrainer):
    """And neither does a training inside another: a run has room for one at a time."""

    class Inner(TrainerCallback):
        def on_evaluate(self, *_: Any, **__: Any) -> None:
            make_trainer(shared, max_steps=2).train()

    shared = PeriFlowCallback()
    make_trainer(shared, PeriFlowCallback(), Inner(), max_steps=3, eval_strategy="steps", eval_steps=1).train()
    assert step_numbers(captured) == [1, 2, 3]
    assert len(captured.metrics("train_loss")) == 1


def test_telemetry_that_cannot_work_ends_no_training(
    captured: testing.Captured,
    make_trainer: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """What is wrong is said once."""
    monkeypatch.setenv("PERIFLOW_ENABLED", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    make_trainer(PeriFlowCallback(), max_steps=2).train()
    assert not captured.steps
    assert len([each for each in caplog.records if "WORLD_SIZE is not set" in each.getMessage()]) == 1


def test_batches_that_come_to_no_step(captured: testing.Captured, make_trainer: MakeTrainer):
    """A stream that ends in the middle of a step leaves none open: neither evaluations nor checkpoints are in it."""

    class Stream(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            return iter(DATA[:10])

    trainer = make_trainer(
        PeriFlowCallback(), train_dataset=Stream(), gradient_accumulation_steps=4, max_steps=3, eval_strategy="epoch",
        save_strategy="epoch",
    )  # fmt: skip
    trainer.train()
    assert captured.checkpoints == [1, 2, 3]
    assert [(step.number, step.error) for step in captured.steps] == [(1, None), (2, None), (3, None)]
    assert not any(names.STEP in span.attributes for span in spans_named(captured, "evaluation"))


def test_steps_have_the_numbers_of_the_trainer(captured: testing.Captured, make_trainer: MakeTrainer):
    """Also where it begins anew, with a smaller batch."""
    trainer = make_trainer(PeriFlowCallback(), auto_find_batch_size=True, per_device_train_batch_size=8)
    failures = [RuntimeError("CUDA out of memory.")]

    def fail_once(*_: object) -> None:
        if failures:
            raise failures.pop()

    trainer.model.register_forward_pre_hook(fail_once)
    trainer.train()
    assert step_numbers(captured) == [1, *range(1, trainer.state.global_step + 1)]


def test_what_predict_returns_is_recorded(captured: testing.Captured, make_trainer: MakeTrainer):
    """Unlike those of an evaluation, nobody logs its metrics."""
    trainer = make_trainer(PeriFlowCallback(), max_steps=1)
    trainer.train()
    trainer.predict(DATA)
    assert len(captured.metrics("test_loss")) == 1


@pytest.mark.skipif(
    "enable_jit_checkpoint" not in inspect.signature(TrainingArguments).parameters, reason="transformers is too old"
)
def test_a_checkpoint_that_sigterm_asks_for(captured: testing.Captured, make_trainer: MakeTrainer):
    """It is announced, and the run is not finished."""
    before = signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(PeriFlowCallback(), enable_jit_checkpoint=True)
    manager = next(each.jit_manager for each in trainer.callback_handler.callbacks if hasattr(each, "jit_manager"))
    trainer.model.register_forward_pre_hook(lambda *_: manager._enable_checkpoint() if not saved() else None)
    trainer.train()
    signal.signal(signal.SIGTERM, before)
    pf.shutdown()
    assert captured.checkpoints == saved()
    assert outcomes(captured) == ["interrupted"]


def test_a_trainer_is_freed_as_ever(captured: testing.Captured, make_trainer: MakeTrainer):
    """Nothing keeps it, neither the callback nor a cycle; and a copy of it is recorded like itself."""
    trainer = make_trainer(callback := PeriFlowCallback(), max_steps=1)
    copy.copy(trainer).train()
    assert step_numbers(captured) == [1]
    gone = weakref.ref(trainer)
    gc.disable()
    try:
        del trainer
        assert gone() is None
    finally:
        gc.enable()
    assert callback


def test_the_run_of_the_script_is_used(captured: testing.Captured, make_trainer: MakeTrainer):
    """It is not ended either: the script may have more to record."""
    pf.init(total_train_steps=80, run_id="mine")
    trainer = make_trainer(PeriFlowCallback())
    trainer.train()
    trainer.train()
    assert pf.is_initialized()
    assert [(run.run_id, run.attempt, run.total_steps) for run in captured.runs] == [("mine", 1, 80), ("mine", 2, 80)]
    assert step_numbers(captured) == [*range(1, 9), *range(1, 9)]


def test_each_training_has_a_run_of_its_own(captured: testing.Captured, make_trainer: MakeTrainer):
    """Also one that follows a failure."""
    trainer = make_trainer(PeriFlowCallback(), max_steps=2)
    trainer.train()
    trainer.model.fails = True
    with pytest.raises(FloatingPointError):
        trainer.train()
    trainer.model.fails = False
    trainer.train()
    assert len(captured.runs) == 3
    assert step_numbers(captured) == [1, 2, 1, 1, 2]


# Values


@pytest.mark.parametrize("accumulation", [1, 4])
def test_what_is_logged_becomes_metrics(captured: testing.Captured, make_trainer: MakeTrainer, accumulation: int):
    """Each value at its step: of training, of evaluation and at the end."""
    trainer = make_trainer(
        PeriFlowCallback(),
        num_train_epochs=2,
        gradient_accumulation_steps=accumulation,
        logging_strategy="steps",
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=4,
    )
    trainer.train()
    logged = [(entry.pop("step"), entry) for entry in trainer.state.log_history]
    expected: dict[int, dict[str, float]] = {}
    for step, values in logged:
        expected.setdefault(step, {}).update(values)
    assert {step.number: step.metrics for step in captured.steps if step.metrics} == expected
    assert {"loss", "grad_norm", "learning_rate", "eval_loss", "train_loss"} <= set().union(*expected.values())


def test_what_is_no_metric_is_left_out(captured: testing.Captured, make_trainer: MakeTrainer):
    """A script may log what only another callback can make use of."""

    class Logging(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            trainer.log({"image": object(), "weights": torch.ones(2), "norm": torch.tensor(0.5)})

    trainer = make_trainer(PeriFlowCallback(), Logging(), max_steps=1)
    trainer.train()
    assert captured.metrics("norm") == [0.5]
    assert not captured.metrics("image") + captured.metrics("weights")


# Phases


def test_evaluation_and_saving_are_phases(captured: testing.Captured, make_trainer: MakeTrainer):
    """Their time is theirs, and in no step."""
    arguments = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 4}
    make_trainer(PeriFlowCallback(), **arguments).train()
    assert seconds(spans_named(captured, "evaluation")) == [2 * EVALUATION_S] * 2
    assert seconds(spans_named(captured, "checkpoint")) == [SAVING_S] * 2
    assert [step.duration_s for step in captured.steps] == [STEP_S] * 8


def test_phases_of_a_callback_that_was_added_later(captured: testing.Captured, make_trainer: MakeTrainer):
    """It records the same."""
    trainer = make_trainer(eval_strategy="epoch")
    trainer.add_callback(PeriFlowCallback)
    trainer.train()
    assert seconds(spans_named(captured, "evaluation")) == [2 * EVALUATION_S]


def test_phases_outside_training(captured: testing.Captured, make_trainer: MakeTrainer):
    """A run of the script has them too; without one, nothing happens."""
    trainer = make_trainer(PeriFlowCallback())
    trainer.evaluate()
    assert not captured.runs
    pf.init()
    trainer.evaluate()
    trainer.predict(DATA)
    assert seconds(spans_named(captured, "evaluation")) == [2 * EVALUATION_S]
    assert seconds(spans_named(captured, "prediction")) == [2 * EVALUATION_S]
    assert len(captured.metrics("eval_loss")) == 1


def test_an_evaluation_that_fails_is_over(captured: testing.Captured, make_trainer: MakeTrainer):
    """Its span has the error, and nothing that follows is a part of it."""
    pf.init()
    trainer = make_trainer(PeriFlowCallback(), max_steps=2, eval_strategy="epoch")
    trainer.model.register_forward_pre_hook(lambda model, _: setattr(model, "fails", not model.training))
    with pytest.raises(FloatingPointError):
        trainer.train()
    check_that_no_phase_is_open(captured)
    assert [span.error for span in spans_named(captured, "evaluation")] == ["FloatingPointError"]


def check_that_no_phase_is_open(captured: testing.Captured) -> None:
    """Check that a phase that begins now is a child of the run."""
    with pf.span("next"):
        pass
    (phase,), (start,) = spans_named(captured, "next"), spans_named(captured, names.RUN_START_SPAN)
    assert phase.parent_span_id == start.parent_span_id


# Checkpoints


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_checkpoints_are_announced_once_they_are_complete(
    captured: testing.Captured, make_trainer: MakeTrainer, accumulation: int, strategy: str
):
    """One event for each on disk, at its step, when saving is over."""
    trainer = make_trainer(
        PeriFlowCallback(),
        num_train_epochs=2,
        gradient_accumulation_steps=accumulation,
        save_strategy=strategy,
        save_steps=2,
    )
    trainer.train()
    assert captured.checkpoints == saved()
    assert [event.attributes[names.STEP] for event in captured.events] == saved()
    saving = spans_named(captured, "checkpoint")
    assert [event.time_unix_ns for event in captured.events] == [span.end_unix_ns for span in saving]


def test_a_checkpoint_that_cannot_be_saved_is_not_announced(captured: testing.Captured, make_trainer: MakeTrainer):
    """The exception goes on, its phase is over, and there is no event."""
    pf.init()
    trainer = make_trainer(PeriFlowCallback(), save_strategy="steps", save_steps=2)
    trainer.fails = True
    with pytest.raises(BlockingIOError):
        trainer.train()
    check_that_no_phase_is_open(captured)
    assert [span.error for span in spans_named(captured, "checkpoint")] == ["BlockingIOError"]
    assert not captured.checkpoints
    assert step_numbers(captured) == [1, 2]


class Asking(TrainerCallback):
    """Asks for an emergency save when a step has begun."""

    def __init__(self, captured: testing.Captured, step: int) -> None:
        """Ask in a step."""
        self.captured = captured
        self.step = step

    def on_step_begin(self, _args: object, state: Any, _control: object, **_: object) -> None:
        """Ask."""
        if state.global_step + 1 == self.step:
            self.captured.request_emergency_save()


@pytest.mark.parametrize(("is_on", "expected"), [(True, [3]), (False, [])])
def test_an_emergency_save(captured: testing.Captured, make_trainer: MakeTrainer, is_on: bool, expected: list[int]):  # noqa: FBT001  # a parameter of pytest
    """The trainer saves when it is asked to, if the script wants that."""
    make_trainer(PeriFlowCallback(saves_in_emergency=is_on), Asking(captured, 3)).train()
    assert saved() == expected
    assert [(event.attributes[names.STEP], event.attributes[names.SAVE_TYPE]) for event in captured.events] == [
        (step, "EMERGENCY") for step in expected
    ]


def test_saving_twice_in_a_step_counts_once(captured: testing.Captured, make_trainer: MakeTrainer):
    """Such as after the last step and after the epoch that ends with it."""
    callback = PeriFlowCallback(saves_in_emergency=True)
    make_trainer(callback, Asking(captured, 8), save_strategy="epoch").train()
    assert len(spans_named(captured, "checkpoint")) == 2
    assert captured.checkpoints == [8]


# What people wrote for the original


@pytest.mark.parametrize(("max_steps", "total"), [(6, 6), (-1, None)])
def test_a_callback_written_for_periflow_sdk(
    captured: testing.Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_steps: int, total: int | None
):
    """It records what it always did, with nothing but its import changed. It cannot know the steps of an epoch."""
    code = SCRIPT.read_text("utf-8")
    assert code.count("import periflow_sdk as pf\n") == 1
    changed = tmp_path / "script.py"
    changed.write_text(code.replace("import periflow_sdk as pf\n", "import periflow_otel as pf\n"), "utf-8")
    monkeypatch.setattr(sys, "argv", [str(changed), str(max_steps)])
    runpy.run_path(str(changed), run_name="__main__")
    assert [run.total_steps for run in captured.runs] == [total]
    assert step_numbers(captured) == list(range(1, (total or 8) + 1))
    assert captured.checkpoints == saved()
    assert saved()


# What tells a run from others


def config_of(captured: testing.Captured, span: str) -> dict[str, AttributeValue]:
    """Return what the last span of a name has of the configuration."""
    attributes = spans_named(captured, span)[-1].attributes
    prefix = names.CONFIG_PREFIX
    return {key.removeprefix(prefix): attributes[key] for key in attributes if key.startswith(prefix)}


def test_the_arguments_of_a_trainer_tell_its_run_from_others(captured: testing.Captured, make_trainer: MakeTrainer):
    """With the name of the run; a token never leaves the process."""
    make_trainer(
        PeriFlowCallback(), max_steps=1, learning_rate=0.25, lr_scheduler_type="polynomial",
        lr_scheduler_kwargs={"power": 2}, run_name="the first",
        hub_token="hf_secret", seed=7,  # noqa: S106  # it is none
    ).train()  # fmt: skip
    pf.shutdown()
    config = config_of(captured, names.RUN_START_SPAN)
    assert {"learning_rate": 0.25, "lr_scheduler_kwargs.power": 2, "seed": 7}.items() <= config.items()
    assert dict(captured.runs[0].resource)[names.RUN_NAME] == "the first"
    assert "hf_secret" not in map(str, config.values())


def test_a_run_of_a_search_has_the_name_of_its_trial(captured: testing.Captured, make_trainer: MakeTrainer):
    """The arguments have the same name in all of them."""

    class Search(TrainerCallback):
        def on_train_begin(self, _args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
            state.trial_name = "trial 3"

    make_trainer(Search(), PeriFlowCallback(), max_steps=1, run_name="search").train()
    assert dict(captured.runs[0].resource)[names.RUN_NAME] == "trial 3"


def test_arguments_come_to_what_a_script_says(captured: testing.Captured, make_trainer: MakeTrainer):
    """In a run that it has begun itself, and named."""
    pf.init(config={"data": "made up", "seed": 1}, name="mine")
    make_trainer(PeriFlowCallback(), max_steps=1, seed=7, run_name="the first").train()
    pf.shutdown()
    assert {"data": "made up", "seed": 7}.items() <= config_of(captured, names.RUN_SPAN).items()
    assert dict(captured.runs[0].resource)[names.RUN_NAME] == "mine"
