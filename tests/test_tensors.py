"""Tensors as values and as counts of steps: read at the call, and not kept."""

import gc
import math
import weakref
from typing import Any

import pytest

from periflow_otel import testing
from periflow_otel.records import Metric, decode, encode_metric

torch = pytest.importorskip("torch", reason="torch is not installed")


def recorded(value: Any) -> Any:
    """Return what comes back of a value, which is the same inside a list and a dict."""
    record = decode(encode_metric(1, 1, {"value": value, "list": [value], "dict": {"inner": value}}))
    assert isinstance(record, Metric)
    back = record.values["value"]
    assert repr(record.values) == repr({"value": back, "list": [back], "dict": {"inner": back}})
    return back


@pytest.mark.parametrize(
    ("tensor", "number"),
    [
        (torch.tensor(0.5), 0.5),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.tensor(3), 3),
        (torch.tensor([4]), 4),
        (torch.tensor(data=True), True),
        (torch.tensor(1) > 0, True),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (torch.tensor(1.5).square().detach(), 2.25),
    ],
    ids=repr,
)
def test_a_tensor_of_one_element_becomes_a_number(tensor: Any, number: object):
    """Of the type that stands for it."""
    back = recorded(tensor)
    assert (back, type(back)) == (number, type(number))


def test_a_tensor_that_is_not_a_number_stays_one():
    """NaN survives the conversion."""
    assert math.isnan(recorded(torch.tensor(math.nan)))


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.ones(2), "is not a single number: "),
        (torch.tensor(1j), "holds an object of type complex, not a number"),
    ],
    ids=["several", "complex"],
)
def test_other_tensors_are_refused(tensor: Any, reason: str):
    """The error names the key."""
    with pytest.raises(TypeError, match=f"^the value of 'loss', a Tensor, {reason}"):
        encode_metric(1, 1, {"loss": tensor})


def test_a_tensor_is_read_at_the_call_and_not_kept():
    """What is done to it later does not matter, and its memory is free."""
    loss = torch.tensor(1.0)
    seen = weakref.ref(loss)
    payload = encode_metric(1, 1, {"loss": [loss]})
    loss.fill_(2.0)
    del loss
    gc.collect()
    assert seen() is None
    record = decode(payload)
    assert isinstance(record, Metric)
    assert record.values == {"loss": [1.0]}


def test_a_run_may_begin_with_tensors(captured: testing.Captured):
    """Counts of steps as they come out of a checkpoint, and a loss as it comes out of a step."""
    import periflow_otel as pf  # noqa: PLC0415

    pf.init(torch.tensor(10), initial_step=torch.tensor(7))
    with pf.train_step():
        pf.metric({"loss": torch.tensor(0.5, requires_grad=True)})
    pf.shutdown()
    (run,) = captured.runs
    assert (run.initial_step, run.total_steps) == (7, 10)
    assert [step.metrics for step in captured.steps] == [{"loss": 0.5}]
