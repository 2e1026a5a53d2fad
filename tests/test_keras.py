"""The callback for Keras records what ``model.fit`` does, on the torch backend."""

import os
from pathlib import Path
from typing import Any

import pytest

import periflow_otel as pf
from periflow_otel import names, testing
from periflow_otel.records import RunFinished
from periflow_otel.translate.facts import outcome_of
from periflow_otel.translate.telemetry import Span

pytest.importorskip("torch", reason="torch is not installed")
os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("KERAS_HOME", "/nonexistent")  # nothing is read from, or left in, a home
keras = pytest.importorskip("keras", reason="keras is not installed")

import numpy as np

from periflow_otel.integrations.keras import PeriFlowCallback

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras is behind NumPy

X = np.eye(4, dtype="float32").repeat(4, axis=0)
Y = (np.arange(16) % 2).astype("int64")
STEPS = 8
"""Of an epoch of batches of two."""


def make_model(**options: Any) -> Any:
    """Return a small model, ready to train."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    optimizer = options.pop("optimizer", None) or keras.optimizers.SGD(0.25)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], **options)
    return model


def fit(model: Any, *callbacks: Any, **options: Any) -> Any:
    """Train; one epoch of batches of two, unless options say otherwise."""
    return model.fit(X, Y, callbacks=list(callbacks), **({"batch_size": 2, "verbose": 0} | options))


def steps(captured: testing.Captured) -> list[int]:
    """Return the numbers of all steps."""
    return [step.number for step in captured.steps]


def outcomes(captured: testing.Captured) -> list[str]:
    """Return how the runs have ended that are over."""
    return [outcome_of(each) for each in captured._records() if isinstance(each, RunFinished)]


def spans_named(captured: testing.Captured, name: str) -> list[Span]:
    """Return the captured spans of one name."""
    return [span for span in captured.spans if span.name == name]


class Fail(keras.callbacks.Callback):
    """Fails in a batch."""

    def __init__(self, batch: int, error: type[BaseException]) -> None:
        """Fail later."""
        super().__init__()
        self.batch, self.error = batch, error

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002  # Keras gives it by name
        """Fail now, if it is time."""
        if batch == self.batch:
            raise self.error


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 2 * STEPS),
        ({"optimizer": keras.optimizers.SGD(0.25, gradient_accumulation_steps=4)}, 4),
    ],
)
def test_an_update_of_the_optimizer_is_a_step(captured: testing.Captured, options: dict[str, Any], count: int):
    """Its number is that of the optimizer, also where it takes several batches."""
    model = make_model(**options)
    fit(model, PeriFlowCallback(), epochs=2)
    assert len(steps(captured)) == count
    assert steps(captured)[-1] == int(model.optimizer.iterations)
    assert [run.total_steps for run in captured.runs] == [int(model.optimizer.iterations)]


@pytest.mark.parametrize(("total", "numbers"), [(STEPS, [3, 6, 8]), (None, [1, 4, 7])])
def test_several_updates_in_one_call_are_a_step(captured: testing.Captured, total: int | None, numbers: list[int]):
    """As other backends make them; its number is that of the last, where it is known how many there are."""
    model = make_model()
    model.steps_per_execution = 3
    calls = keras.callbacks.CallbackList([PeriFlowCallback()], model=model, epochs=1, steps=total)
    calls.on_train_begin()
    calls.on_epoch_begin(0)
    for first, last in ((0, 2), (3, 5), (6, 7)):
        calls.on_train_batch_begin(first)
        calls.on_train_batch_end(last)
    calls.on_epoch_end(0)
    calls.on_train_end()
    assert steps(captured) == numbers


def test_training_again_goes_on_counting(captured: testing.Captured):
    """As the optimizer does, in a run of its own; also from an epoch that is not the first."""
    model, callback = make_model(), PeriFlowCallback()
    fit(model, callback)
    fit(model, callback, epochs=3, initial_epoch=1)
    assert steps(captured) == list(range(1, 3 * STEPS + 1))
    assert [(run.initial_step, run.total_steps) for run in captured.runs] == [(0, STEPS), (STEPS, 3 * STEPS)]


def test_metrics_are_recorded_now_and_then_and_at_the_end_of_an_epoch(captured: testing.Captured):
    """With those of validation, which is a phase."""
    fit(make_model(), PeriFlowCallback(log_every_n_steps=3), validation_data=(X, Y))
    assert len(captured.metrics("accuracy")) == 2 + 1
    assert len(captured.metrics("val_loss")) == 1
    assert len(spans_named(captured, "evaluation")) == 1


def test_the_learning_rate_is_recorded(captured: testing.Captured):
    """Also one that follows a schedule, of which Keras tells nobody."""
    halving = keras.optimizers.schedules.ExponentialDecay(0.5, decay_steps=4, decay_rate=0.5)
    fit(make_model(optimizer=keras.optimizers.SGD(halving)), PeriFlowCallback(log_every_n_steps=4))
    assert captured.metrics("learning_rate") == [0.25, 0.125, 0.125]


def test_what_is_evaluated_after_training_is_recorded(captured: testing.Captured):
    """In the run of the training, as are predictions."""
    model, callback = make_model(), PeriFlowCallback()
    fit(model, callback)
    model.evaluate(X, Y, verbose=0, callbacks=[callback])
    model.predict(X, verbose=0, callbacks=[callback])
    assert len(captured.metrics("val_accuracy")) == 1
    assert [span.name for span in captured.spans if span.name in ("evaluation", "prediction")] == [
        "evaluation",
        "prediction",
    ]


def test_a_checkpoint_is_announced_when_it_is_saved(captured: testing.Captured, tmp_path: Path):
    """At the step of the optimizer, in whatever order the callbacks are; what is not saved is not announced."""
    model = make_model()
    save = keras.callbacks.ModelCheckpoint(str(tmp_path / "{batch}.keras"), save_freq=3)
    best = keras.callbacks.ModelCheckpoint(
        str(tmp_path / "best.keras"), save_best_only=True, monitor="loss", mode="min"
    )
    best.best = -1.0  # never again
    fit(model, save, best, PeriFlowCallback())
    assert captured.checkpoints == [3, 6]
    fit(model, PeriFlowCallback(), save)
    assert captured.checkpoints[2:] == [STEPS + 1, STEPS + 4, STEPS + 7]
    restored = keras.saving.load_model(tmp_path / "7.keras")
    assert int(restored.optimizer.iterations) == STEPS + 7


def test_the_optimizer_tells_a_run_from_others(captured: testing.Captured):
    """With the length of training."""
    fit(make_model(), PeriFlowCallback())
    pf.shutdown()
    [run] = spans_named(captured, names.RUN_SPAN)
    assert run.attributes["periflow.config.optimizer.learning_rate"] == 0.25
    assert run.attributes["periflow.config.epochs"] == 1


@pytest.mark.parametrize(("error", "outcome"), [(FloatingPointError, "failed"), (KeyboardInterrupt, "interrupted")])
def test_training_that_was_interrupted_is_told_by_what_a_notebook_has_shown(
    captured: testing.Captured, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], outcome: str
):
    """Keras has no event for it; the next training ends it, and begins a run of its own."""
    model, callback = make_model(), PeriFlowCallback()
    with pytest.raises(error) as raised:
        fit(model, callback, Fail(2, error))
    monkeypatch.setattr("sys.last_value", raised.value, raising=False)
    fit(model, callback)
    pf.shutdown()
    assert outcomes(captured) == [outcome, "finished"]


def test_training_that_failed_without_a_word_is_no_success(captured: testing.Captured):
    """A script that catches it and goes on has not finished it; nobody knows what ended it."""
    with pytest.raises(FloatingPointError):
        fit(make_model(), PeriFlowCallback(), Fail(2, FloatingPointError))
    pf.shutdown()
    assert outcomes(captured) == ["interrupted"]


def test_a_second_callback_on_a_model_is_not_recorded(captured: testing.Captured, caplog: pytest.LogCaptureFixture):
    """With a warning."""
    fit(make_model(), PeriFlowCallback(), PeriFlowCallback())
    assert steps(captured) == list(range(1, STEPS + 1))
    assert "another training is going on in this run" in caplog.text


def test_a_run_of_the_script_is_used(captured: testing.Captured):
    """And outlives the training."""
    pf.init(total_train_steps=100)
    fit(make_model(), PeriFlowCallback())
    assert pf.is_initialized()
    assert [run.total_steps for run in captured.runs] == [100]
    assert steps(captured) == list(range(1, STEPS + 1))
