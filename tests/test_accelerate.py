"""The tracker for Accelerate records what a training loop logs."""

import logging
from typing import Any

import pytest

import periflow_otel as pf
from periflow_otel import names, testing

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from accelerate import Accelerator

from periflow_otel.integrations.accelerate import PeriFlowTracker

CONFIG = {"lr": 0.25, "api_key": "s3cret"}


def train(tracker: PeriFlowTracker, **log_options: Any) -> Accelerator:
    """Train a small model for four steps as the documents of Accelerate do, but for the marked steps."""
    accelerator = Accelerator(cpu=True, log_with=tracker)
    accelerator.init_trackers("project", config=CONFIG)
    layer = torch.nn.Linear(2, 1)
    layer, optimizer = accelerator.prepare(layer, torch.optim.SGD(layer.parameters(), lr=0.25))
    for step in range(1, 5):
        with pf.train_step():
            loss = layer(torch.ones(1, 2)).pow(2).mean()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        accelerator.log({"loss": loss.item(), "image": object()}, step=step, **log_options)
    return accelerator


def test_what_is_logged_is_recorded(captured: testing.Captured):
    """In a run that the tracker begins and ends; what is no value is left out."""
    train(PeriFlowTracker("baseline", total_train_steps=4)).end_training()
    assert not pf.is_initialized()
    [run] = captured.runs
    assert (run.total_steps, dict(run.resource)[names.RUN_NAME]) == (4, "baseline")
    assert [step.number for step in captured.steps] == [1, 2, 3, 4]
    assert all("loss" in step.metrics for step in captured.steps)
    [span] = [span for span in captured.spans if span.name == names.RUN_SPAN]
    assert {key: span.attributes[key] for key in span.attributes if "config" in key} == {
        "periflow.config.lr": 0.25,
        "periflow.config.api_key": "***",
    }


def test_a_rank_that_accelerate_tells_nothing_records_its_steps(captured: testing.Captured):
    """It tells the first one alone of ``init_trackers``."""
    PeriFlowTracker(total_train_steps=1)
    with pf.train_step():
        pass
    assert [step.number for step in captured.steps] == [1]


def test_a_run_of_the_script_is_used(captured: testing.Captured):
    """And goes on after training."""
    pf.init(total_train_steps=9)
    train(PeriFlowTracker()).end_training()
    assert pf.is_initialized()
    assert [run.total_steps for run in captured.runs] == [9]


def test_the_run_is_the_tracker(captured: testing.Captured):
    """For those who ask the accelerator for it."""
    accelerator = train(PeriFlowTracker())
    assert accelerator.get_tracker("periflow", unwrap=True) is pf.current_run()
    assert accelerator.get_tracker("periflow").name == "periflow"
    assert len(captured.runs) == 1


def test_a_version_without_a_start_begins_with_the_first_values(captured: testing.Captured):
    """As Accelerate before 1.7 does."""
    tracker = PeriFlowTracker()
    tracker.store_init_configuration(CONFIG)
    tracker.log({"loss": 1.0})
    tracker.finish()
    assert captured.metrics("loss") == [1.0]


def test_a_step_that_is_none_does_not_end_training(captured: testing.Captured, caplog: pytest.LogCaptureFixture):
    """What was wrong is said."""
    tracker = PeriFlowTracker()
    tracker.start()
    with caplog.at_level(logging.WARNING, "periflow_otel"):
        tracker.log({"loss": 1.0}, step=-1)
        tracker.log({"loss": 2.0}, step=0)
    assert captured.metrics("loss") == [2.0]
