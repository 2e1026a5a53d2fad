"""The functions of the module keep the contract of ``periflow_sdk``, in both modes; see docs/compatibility.md."""

import inspect
import json
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from recorded import default_run, journal_of, metrics_of, recorded, records_of, run_script
from training import CLOUD

import periflow_otel as pf
from periflow_otel.journal.control import Control
from periflow_otel.records import Checkpoint, Metric, RunFinished, StepEnded


@pytest.fixture(autouse=True)
def _default_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Record without an agent, know of no run before, and end the default run when the test is over."""
    monkeypatch.setenv("PERIFLOW_AGENT", "off")
    monkeypatch.setattr(pf, "_latest", None)
    yield
    if pf._default is not None:
        pf.shutdown()


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Set the environment of cloud mode."""
    for name, value in CLOUD.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture(params=["local", "cloud"])
def mode(request: pytest.FixtureRequest) -> str:
    """Run the test in both modes."""
    if request.param == "cloud":
        request.getfixturevalue("cloud")
    return str(request.param)


both_modes = pytest.mark.usefixtures("mode")

# Before init

CALLS: dict[str, Callable[[], object]] = {
    "start_step": pf.start_step,
    "end_step": pf.end_step,
    "metric": lambda: pf.metric({"loss": 1.0}),
    "upload_checkpoint": pf.upload_checkpoint,
    "is_emergency_save": pf.is_emergency_save,
    "span": lambda: pf.span("evaluation"),
    "flush": pf.flush,
    "shutdown": pf.shutdown,
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("error", [AssertionError, pf.PeriFlowError, pf.NotInitializedError])
@both_modes
def test_a_call_before_init_raises_what_scripts_catch(name: str, error: type[Exception]):
    """The original raised an AssertionError; it is a PeriFlowError now too."""
    with pytest.raises(error, match=f"^{re.escape(f'{name} must be called after pf.init()!')}$"):
        CALLS[name]()


@both_modes
def test_entering_train_step_before_init_raises():
    """Making the context manager is fine, as a decorator needs it before init."""
    step = pf.train_step()
    with pytest.raises(AssertionError, match=r"^start_step must be called after pf.init\(\)!$"), step:
        pass


@both_modes
def test_a_call_after_shutdown_raises_as_before_init():
    """A run that was shut down is no default run any more."""
    pf.init(10)
    pf.shutdown()
    with pytest.raises(pf.NotInitializedError):
        pf.start_step()


@both_modes
def test_a_run_may_be_ended_twice():
    """An integration may have ended it before the script does."""
    pf.init(10)
    is_delivered = pf.shutdown()
    assert pf.shutdown() is is_delivered
    assert pf.flush() is is_delivered


# The names


def test_the_seven_functions_take_what_the_original_took():
    """Positional and keyword arguments of the original bind; what is new is by keyword only."""
    for function, arguments, by_name in [
        (pf.init, (10, "a.log"), {"total_train_steps": 10, "local_log_name": "a.log"}),
        (pf.start_step, (), {}),
        (pf.end_step, (), {}),
        (pf.train_step, (), {}),
        (pf.is_emergency_save, (), {}),
        (pf.metric, ({},), {"msg": {}}),
        (pf.upload_checkpoint, (), {}),
    ]:
        assert dict(inspect.signature(function).bind(*arguments).arguments) == by_name
    assert [each.kind for each in inspect.signature(pf.init).parameters.values()][2:] == [
        inspect.Parameter.KEYWORD_ONLY
    ] * 5


def test_everything_public_is_there_and_sorted():
    """``from periflow_otel import *`` gives what the table of contents says."""
    assert pf.__all__ == sorted(pf.__all__)
    assert all(hasattr(pf, name) for name in pf.__all__)


# init in cloud mode


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "NODE_RANK", "NUM_NODES", "PROCESSED_ITERS"])
def test_cloud_mode_names_the_variable_that_is_missing(cloud: pytest.MonkeyPatch, variable: str):
    """The original's class of error; the message has a remedy."""
    cloud.delenv(variable)
    message = f"{variable} is not set; cloud mode needs it. Unset PERIFLOW_ENABLED to train locally."
    with pytest.raises(pf.PeriFlowInternalError, match=f"^{re.escape(message)}$"):
        pf.init(10)


def test_cloud_mode_names_the_first_variable_that_is_missing(cloud: pytest.MonkeyPatch):
    """The original looked in this order."""
    for variable in ["WORLD_SIZE", "NODE_RANK", "NUM_NODES", "PROCESSED_ITERS"]:
        cloud.delenv(variable)
    with pytest.raises(pf.PeriFlowInternalError, match=r"^WORLD_SIZE is not set"):
        pf.init(10)


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "NODE_RANK", "NUM_NODES", "PROCESSED_ITERS"])
@pytest.mark.parametrize("value", ["eight", "", "-1", "1.5"])
def test_cloud_mode_names_the_variable_that_is_malformed(cloud: pytest.MonkeyPatch, variable: str, value: str):
    """A value that is no count is shown with the remedy."""
    cloud.setenv(variable, value)
    with pytest.raises(pf.PeriFlowInternalError, match=f"^{variable} is '{value}'; cloud mode needs an integer"):
        pf.init(10)


def test_cloud_mode_needs_as_many_ranks_on_every_node(cloud: pytest.MonkeyPatch):
    """The original raised an AssertionError here: a row of the compatibility page."""
    cloud.setenv("WORLD_SIZE", "3")
    cloud.setenv("NUM_NODES", "2")
    message = (
        "WORLD_SIZE is 3 and NUM_NODES is 2; cloud mode needs the same number of ranks on every node. "
        "Unset PERIFLOW_ENABLED to train locally."
    )
    with pytest.raises(pf.PeriFlowInternalError, match=f"^{re.escape(message)}$"):
        pf.init(10)


@pytest.mark.parametrize("value", ["true", "0", "yes", "", " 1"])
def test_only_1_means_cloud_mode(monkeypatch: pytest.MonkeyPatch, value: str):
    """``PERIFLOW_ENABLED=true`` was local mode in the original."""
    monkeypatch.setenv("PERIFLOW_ENABLED", value)
    pf.init(10)
    assert default_run().info.mode == "local"


@pytest.mark.parametrize("total", [5, 4, 0, -5])
def test_cloud_mode_refuses_a_total_that_is_reached_already(cloud: pytest.MonkeyPatch, total: int):
    """The message says what the number counts."""
    cloud.setenv("PROCESSED_ITERS", "5")
    message = (
        f"total_train_steps is {total}, but 5 steps are done already, as PROCESSED_ITERS or initial_step says; give "
        "the number of the last step, counted from the beginning of the run"
    )
    with pytest.raises(pf.PeriFlowError, match=f"^{re.escape(message)}$"):
        pf.init(total_train_steps=total)


@pytest.mark.parametrize("total", ["x", 1.5, True, [10], 1 << 70])
@pytest.mark.usefixtures("cloud")
def test_cloud_mode_refuses_a_total_that_is_no_integer(total: Any):
    """Also True, which Python counts among the integers."""
    message = f"total_train_steps is {total!r}; give the number of the last step, an integer"
    with pytest.raises(pf.PeriFlowError, match=f"^{re.escape(message)}$"):
        pf.init(total)


@pytest.mark.parametrize("total", [-5, 0, "x", 1.5, True, None, [10], 1 << 70])
def test_local_mode_accepts_any_total(total: Any):
    """As the original: what makes no sense is ignored."""
    pf.init(total)
    assert default_run().info.total_steps is None


@pytest.mark.parametrize("total", [None, 100])
@both_modes
def test_a_total_is_recorded_and_may_be_unknown(total: int | None):
    """None is allowed in both modes."""
    pf.init(total_train_steps=total)
    assert default_run().info.total_steps == total


# init again


@both_modes
def test_a_second_init_ends_the_first_run_and_begins_another():
    """The runs have journals of their own, and the first one says that it is over."""
    pf.init(10)
    first = default_run()
    with pf.train_step():
        pf.metric({"n": 1})
    pf.init(20)
    second = default_run()
    with pf.train_step():
        pf.metric({"n": 2})
    assert first.run_id != second.run_id
    assert [type(each) for each in records_of(first)] == [Metric, StepEnded, RunFinished]
    assert [each.step for each in recorded(second, StepEnded)] == [1]
    assert metrics_of(second) == [{"n": 2}]


@both_modes
def test_a_second_init_with_the_same_identity_is_another_attempt():
    """Also within a process, no two runs share a journal."""
    pf.init(10, run_id="job")
    first = default_run()
    pf.init(10, run_id="job")
    assert (first.info.attempt, default_run().info.attempt) == (1, 2)
    assert journal_of(first) != journal_of(default_run())


@both_modes
def test_a_second_init_that_fails_leaves_no_run():
    """The first one was ended for it."""
    pf.init(10)
    first = default_run()
    with pytest.raises(pf.ConfigurationError):
        pf.init(10, initial_step=-1)
    assert recorded(first, RunFinished)
    with pytest.raises(pf.NotInitializedError):
        pf.start_step()


# Steps


def test_steps_count_from_1_in_local_mode(monkeypatch: pytest.MonkeyPatch):
    """PROCESSED_ITERS is for cloud mode only."""
    monkeypatch.setenv("PROCESSED_ITERS", "100")
    pf.init(3)
    for _ in range(3):
        pf.start_step()
        pf.end_step()
    assert [each.step for each in recorded(default_run(), StepEnded)] == [1, 2, 3]


def test_steps_count_from_the_processed_ones_in_cloud_mode(cloud: pytest.MonkeyPatch):
    """A resumed job goes on where it was."""
    cloud.setenv("PROCESSED_ITERS", "100")
    pf.init(1000)
    for _ in range(2):
        with pf.train_step():
            pass
    assert [each.step for each in recorded(default_run(), StepEnded)] == [101, 102]


@both_modes
def test_more_steps_than_announced_are_fine():
    """The total is for progress only."""
    pf.init(1)
    for _ in range(3):
        with pf.train_step():
            pass
    assert [each.step for each in recorded(default_run(), StepEnded)] == [1, 2, 3]


@both_modes
def test_start_step_in_an_open_step_raises():
    """The step stays open and can be ended."""
    pf.init(10)
    pf.start_step()
    message = "start_step() was called in step 1, which has not ended; call end_step() first"
    with pytest.raises(pf.StepAlreadyStartedError, match=f"^{re.escape(message)}$"):
        pf.start_step()
    pf.end_step()
    assert [each.step for each in recorded(default_run(), StepEnded)] == [1]


@both_modes
def test_end_step_without_a_step_raises():
    """Before the first step, and after one has ended."""
    pf.init(10)
    for last in range(2):
        message = f"end_step() was called, but no step is open (the last was {last}); call start_step() first"
        with pytest.raises(pf.StepNotStartedError, match=f"^{re.escape(message)}$"):
            pf.end_step()
        pf.start_step()
        pf.end_step()


def test_the_errors_of_steps_are_periflow_errors():
    """Scripts catch this class."""
    assert issubclass(pf.StepAlreadyStartedError, pf.PeriFlowError)
    assert issubclass(pf.StepNotStartedError, pf.PeriFlowError)


@both_modes
def test_end_step_inside_train_step_raises_at_its_exit():
    """As in the original: the step was ended already."""
    pf.init(10)
    with pytest.raises(pf.StepNotStartedError), pf.train_step():
        pf.end_step()


@both_modes
def test_an_exception_in_train_step_ends_the_step_and_goes_on():
    """The step says which type of exception ended it; the next one is as usual."""
    pf.init(10)
    with pytest.raises(ZeroDivisionError), pf.train_step():
        _ = 1 / 0
    with pf.train_step():
        pass
    assert [(each.step, each.error) for each in recorded(default_run(), StepEnded)] == [
        (1, "ZeroDivisionError"),
        (2, None),
    ]


@both_modes
def test_train_step_decorates():
    """A context manager made by contextlib did; each call is a step, also where init comes later."""

    @pf.train_step()
    def train(loss: float) -> float:
        pf.metric({"loss": loss})
        return loss

    pf.init(10)
    assert [train(0.5), train(0.25)] == [0.5, 0.25]
    assert [each.step for each in recorded(default_run(), StepEnded)] == [1, 2]


@both_modes
def test_what_train_step_returns_may_be_entered_again():
    """The original's worked once: a row of the compatibility page."""
    pf.init(10)
    step = pf.train_step()
    for _ in range(2):
        with step:
            pass
    assert [each.step for each in recorded(default_run(), StepEnded)] == [1, 2]


@both_modes
def test_end_step_waits_for_nobody():
    """There is no agent here that could answer: the original would wait for ever in cloud mode."""
    pf.init(10)
    pf.start_step()
    pf.end_step()
    assert recorded(default_run(), StepEnded)


# Steps that are told


@both_modes
def test_a_step_has_the_number_that_it_is_told():
    """Later ones count on from it, and some may be left out; NumPy's integers do as well."""
    pf.init(100)
    for step in (3, np.int64(7), None):
        with pf.train_step(step):
            pass
    pf.start_step(20)
    pf.end_step()
    assert [each.step for each in recorded(default_run(), StepEnded)] == [3, 7, 8, 20]


TOLD: dict[str, Callable[[Any], object]] = {
    "start_step": pf.start_step,
    "train_step": lambda step: pf.train_step(step).__enter__(),
    "metric": lambda step: pf.metric({"loss": 1.0}, step=step),
    "upload_checkpoint": pf.upload_checkpoint,
}


@both_modes
@pytest.mark.parametrize("call", TOLD)
@pytest.mark.parametrize("given", [1.0, "3", True, [1]])
def test_a_told_step_that_is_not_an_integer_raises(call: str, given: Any):
    """And records nothing."""
    pf.init(10)
    with pytest.raises(TypeError, match=f"^{re.escape(f'the step is {given!r}, which is not an integer; give its')}"):
        TOLD[call](given)
    pf.start_step()
    assert records_of(default_run()) == []


@both_modes
@pytest.mark.parametrize(
    ("call", "least"), [("start_step", 1), ("train_step", 1), ("metric", 0), ("upload_checkpoint", 0)]
)
def test_a_told_step_that_is_too_small_raises(call: str, least: int):
    """Steps count from 1; 0 is what comes before the first."""
    pf.init(10)
    message = f"the step is {least - 1}; give its number, {least} or more: the first step is 1"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TOLD[call](least - 1)
    TOLD[call](least)


@both_modes
def test_a_metric_may_be_of_another_step():
    """Of one that is over, or is yet to come; the record tells when it was told so."""
    pf.init(10)
    for _ in range(3):
        with pf.train_step():
            pass
    for step in (1, 3, 9, None):
        pf.metric({"loss": 0.5}, step=step)
    assert [(each.step, each.during) for each in recorded(default_run(), Metric)] == [
        (1, 3),
        (3, None),
        (9, 3),
        (3, None),
    ]


@both_modes
def test_a_checkpoint_may_be_of_another_step():
    """One that a thread goes on to write while training goes on; each is announced once."""
    pf.init(10)
    for _ in range(5):
        with pf.train_step():
            pass
    for step in (4, 2):
        pf.upload_checkpoint(step)
        with suppress(pf.CheckpointAlreadyUploadedError):
            pf.upload_checkpoint(step=step)
    pf.upload_checkpoint()
    assert [(each.step, each.during) for each in recorded(default_run(), Checkpoint)] == [(4, 5), (2, 5), (5, None)]


# Metrics


@both_modes
def test_a_metric_belongs_to_the_step_that_started_last():
    """Before the first step, in a step, and after it."""
    pf.init(10)
    pf.metric({"when": "before"})
    with pf.train_step():
        pf.metric({"when": "in"})
    pf.metric({"when": "after"})
    assert [(each.step, each.values["when"]) for each in recorded(default_run(), Metric)] == [
        (0, "before"),
        (1, "in"),
        (1, "after"),
    ]


@both_modes
def test_the_users_own_step_and_rank_are_kept():
    """The original overwrote these keys in cloud mode: a row of the compatibility page."""
    pf.init(10)
    given = {"step": "mine", "rank": -1, "local_rank": None}
    pf.metric(given)
    assert metrics_of(default_run()) == [given]


@pytest.mark.parametrize(
    "value",
    [
        0.5,
        7,
        -1,
        1 << 63,
        -(1 << 80),
        True,
        "text",
        "naïve \U0001f600 \n",
        None,
        [1, [2.5, None]],
        {"a": {"b": 1}},
        [],
        {},
    ],
)
@both_modes
def test_every_json_value_comes_back_equal(value: Any):
    """With its type."""
    pf.init(10)
    pf.metric({"value": value})
    (back,) = metrics_of(default_run())
    assert back == {"value": value}
    assert type(back["value"]) is type(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@both_modes
def test_values_that_are_not_finite_are_kept(value: float):
    """A loss that went NaN must not look frozen."""
    pf.init(10)
    pf.metric({"loss": value})
    assert repr(metrics_of(default_run())) == repr([{"loss": value}])


@both_modes
@pytest.mark.parametrize(
    "given",
    [MappingProxyType({"a": 1}), OrderedDict(b=2, a=1), {1: 0.5, None: 1, 2.5: 2}, {"tuple": (1, 2)}, {"\udc80": 1}],
    ids=repr,
)
def test_what_json_writes_differently_comes_back_as_json_spells_it(given: Any):
    """Keys that are no text, tuples, and other mappings; a key that is no Unicode has a question mark."""
    pf.init(10)
    pf.metric(given)
    expected = json.loads(json.dumps(dict(given)).replace("\\udc80", "?"))
    (back,) = metrics_of(default_run())
    assert (back, list(back)) == (expected, list(expected))


@both_modes
def test_an_empty_metric_is_a_line_too():
    """The original wrote ``{}``."""
    pf.init(10)
    pf.metric({})
    assert metrics_of(default_run()) == [{}]


@both_modes
def test_what_happens_to_a_dict_later_does_not_matter():
    """It was encoded at the call."""
    pf.init(10)
    values: dict[str, Any] = {"loss": 1.0, "parts": [1, 2]}
    pf.metric(values)
    values["loss"] = 2.0
    values["parts"].append(3)
    assert metrics_of(default_run()) == [{"loss": 1.0, "parts": [1, 2]}]


@pytest.mark.parametrize(
    ("value", "shown"),
    [({1, 2}, "set"), (b"raw", "bytes"), (object(), "object"), (1j, "complex"), (len, "builtin_function_or_method")],
    ids=["set", "bytes", "object", "complex", "function"],
)
@both_modes
def test_other_values_raise_with_the_key(value: object, shown: str):
    """At the call, in both modes; nothing is recorded of it."""
    pf.init(10)
    with pytest.raises(
        TypeError, match=rf"^the value of 'loss' is .*\b{shown}.*; give a number, text, bool, None, list or dict$"
    ):
        pf.metric({"loss": value})  # type: ignore[dict-item]  # that is the point
    assert metrics_of(default_run()) == []


@pytest.mark.parametrize("given", [[1, 2], None, "loss", 0.5, [("loss", 1)]])
@both_modes
def test_a_metric_that_is_no_mapping_raises(given: Any):
    """There is no key to record it by."""
    pf.init(10)
    with pytest.raises(TypeError, match=r"^the metrics are "):
        pf.metric(given)


@both_modes
def test_a_tensor_that_cannot_be_fetched_raises_with_the_key_and_the_reason():
    """As a CUDA tensor does when the device has failed."""

    class Tensor:
        def item(self) -> float:
            message = "CUDA error: an illegal memory access was encountered"
            raise RuntimeError(message)

    pf.init(10)
    message = (
        "the value of 'loss', a Tensor, is not a single number: CUDA error: an illegal memory access was encountered"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        pf.metric({"loss": Tensor()})  # type: ignore[dict-item]  # that is the point


@both_modes
def test_a_key_of_10_000_characters_raises():
    """It would be the name of an instrument."""
    pf.init(10)
    message = f"the key {'k' * 40 + '…'!r} has 10000 characters; at most 256 make a name"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        pf.metric({"k" * 10_000: 1})


@both_modes
def test_keys_within_mappings_make_a_name_together():
    """So that what they become is no longer than others."""
    pf.init(10)
    pf.metric({"x" * 100: {"y" * 155: 1.0}})
    message = f"the key {'y' * 40 + '…'!r} below {'x' * 40 + '…'!r} makes a name of more than 256 characters"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        pf.metric({"x" * 100: {"y" * 156: 1.0}})
    assert len(metrics_of(default_run())) == 1


@both_modes
def test_a_text_of_1_mb_is_recorded_and_one_of_5_mb_is_refused():
    """The bound is what fits into a record."""
    pf.init(10)
    pf.metric({"text": "x" * (1 << 20)})
    with pytest.raises(ValueError, match=r"^\d+ bytes were given to one call; at most 4194304 can be recorded$"):
        pf.metric({"text": "x" * (5 << 20)})
    assert [len(str(each["text"])) for each in metrics_of(default_run())] == [1 << 20]


@both_modes
def test_100_000_different_keys_are_recorded():
    """The bound on instruments is not the training process's business."""
    pf.init(10)
    for start in range(0, 100_000, 1000):
        pf.metric({f"key-{number}": number for number in range(start, start + 1000)})
    assert len({key for each in metrics_of(default_run()) for key in each}) == 100_000


# Checkpoints


@both_modes
def test_a_checkpoint_belongs_to_the_last_step():
    """In a step, and after it as the examples of the original do."""
    pf.init(10)
    pf.upload_checkpoint()
    with pf.train_step():
        pf.upload_checkpoint()
    with pf.train_step():
        pass
    pf.upload_checkpoint()
    assert [(each.step, each.is_step_open) for each in recorded(default_run(), Checkpoint)] == [
        (0, False),
        (1, True),
        (2, False),
    ]


TWICE = "upload_checkpoint() was called twice in step 1; once per step is enough"


@pytest.mark.usefixtures("cloud")
def test_cloud_mode_refuses_a_second_checkpoint_of_a_step():
    """It could announce one that is not complete."""
    pf.init(10)
    with pf.train_step():
        pf.upload_checkpoint()
    with pytest.raises(pf.CheckpointAlreadyUploadedError, match=f"^{re.escape(TWICE)}$"):
        pf.upload_checkpoint()
    assert len(recorded(default_run(), Checkpoint)) == 1


def test_local_mode_counts_a_second_checkpoint_of_a_step_once(caplog: pytest.LogCaptureFixture):
    """The original did nothing there: an interval save and a final one are usual. One warning says so."""
    pf.init(10)
    for _ in range(2):
        with pf.train_step():
            pf.upload_checkpoint()
        pf.upload_checkpoint()
        pf.upload_checkpoint()
    assert [each.step for each in recorded(default_run(), Checkpoint)] == [1, 2]
    assert [each.getMessage() for each in caplog.records] == [TWICE]


def test_cloud_mode_without_a_checkpoint_folder_warns_once(cloud: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """There is nothing to upload; the variable is read at each call."""
    cloud.delenv("CKPT_DIR")
    pf.init(10)
    for _ in range(3):
        with pf.train_step():
            pass
        pf.upload_checkpoint()
        pf.upload_checkpoint()
    (message,) = [each.getMessage() for each in caplog.records]
    assert message == (
        "upload_checkpoint() has nothing to upload: CKPT_DIR is not set. Set output_checkpoint_dir in the job's "
        "configuration."
    )
    assert recorded(default_run(), Checkpoint) == []
    cloud.setenv("CKPT_DIR", "checkpoints")
    pf.upload_checkpoint()
    assert len(recorded(default_run(), Checkpoint)) == 1


def test_local_mode_needs_no_checkpoint_folder(caplog: pytest.LogCaptureFixture):
    """The event is recorded for dashboards, and nobody is warned."""
    pf.init(10)
    pf.upload_checkpoint()
    assert len(recorded(default_run(), Checkpoint)) == 1
    assert caplog.records == []


@both_modes
def test_an_emergency_save_is_asked_for_and_answered():
    """True at the step that was asked for, until its checkpoint."""
    pf.init(10)
    Control(default_run().folder).request(2)
    answers = []
    for _ in range(3):
        with pf.train_step():
            pass
        answers.append(pf.is_emergency_save())
        if answers[-1]:
            pf.upload_checkpoint()
            answers.append(pf.is_emergency_save())
    assert answers == [False, True, False, False]
    assert [(each.step, each.is_emergency) for each in recorded(default_run(), Checkpoint)] == [(2, True)]


# Scripts of the original, unmodified but for the import; each prints what it gives to pf.metric

VANILLA = """
import json
import time
import periflow_otel as pf

def train_step(inputs):
    return 1 / inputs, 0.1

def main():
    total_steps = 6
    pf.init(total_train_steps=total_steps, local_log_name="train.log")
    for step in range(1, total_steps + 1):
        start_time = time.time()
        with pf.train_step():
            loss, learning_rate = train_step(inputs=step)
            end_time = time.time()
        msg = {"iteration": step, "loss": loss, "learning_rate": learning_rate, "elapsed": end_time - start_time}
        print(json.dumps(msg))
        pf.metric(msg)
        if step % 3 == 0:
            pf.upload_checkpoint()

main()
"""

HUGGING_FACE = """
import json
import periflow_otel as pf

class TrainerCallback:
    def on_step_begin(self, args, state, control, **kwargs): pass
    def on_step_end(self, args, state, control, **kwargs): pass
    def on_log(self, args, state, control, logs=None, **kwargs): pass
    def on_save(self, args, state, control, **kwargs): pass

class PeriFlowCallback(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        pf.start_step()

    def on_step_end(self, args, state, control, **kwargs):
        pf.end_step()

    def on_log(self, args, state, control, logs=None, **kwargs):
        print(json.dumps(logs))
        pf.metric(logs)

    def on_save(self, args, state, control, **kwargs):
        pf.upload_checkpoint()

pf.init(total_train_steps=4, local_log_name="train.log")
callback = PeriFlowCallback()
for step in range(1, 5):
    callback.on_step_begin(None, None, None)
    callback.on_step_end(None, None, None)
    loss = float("nan") if step == 2 else 1 / step
    callback.on_log(None, None, None, logs={"loss": loss, "epoch": step / 4, "größe": "é"})
    if step % 2 == 0:
        callback.on_save(None, None, None)
"""

LIGHTNING = """
import json
import os
import periflow_otel as pf

class PeriFlowCallback:
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx, unused=0):
        pf.start_step()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, unused=0):
        loss = float(outputs["loss"])
        msg = {"iteration": batch_idx, "loss": loss}
        print(json.dumps(msg))
        pf.metric(msg)
        pf.end_step()

class Trainer:
    def save_checkpoint(self, filepath):
        open(filepath, "w").close()

class PeriFlowTrainer(Trainer):
    def save_checkpoint(self, filepath):
        super().save_checkpoint(filepath)
        pf.upload_checkpoint()

callback, trainer = PeriFlowCallback(), PeriFlowTrainer()
pf.init(4, "train.log")
for epoch in range(2):
    for batch in range(2):
        callback.on_train_batch_start(trainer, None, None, batch)
        callback.on_train_batch_end(trainer, None, {"loss": 1 / (batch + 1)}, None, batch)
    trainer.save_checkpoint(f"epoch-{epoch}.ckpt")
"""


@pytest.mark.parametrize(
    ("script", "checkpoints"),
    [(VANILLA, 2), (HUGGING_FACE, 2), (LIGHTNING, 2)],
    ids=["vanilla", "hugging face", "lightning"],
)
def test_a_script_of_the_original_writes_the_same_metric_log(script: str, checkpoints: int):
    """Line for line, with a real agent, and with nothing on stderr."""
    ended = run_script(script, PERIFLOW_AGENT="process")
    assert (ended.status, ended.errors) == (0, "")
    assert Path("train.log").read_text("utf-8") == ended.output
    assert ended.output.count("\n") >= 4
    events = [
        event
        for line in Path("train.traces.jsonl").read_text("utf-8").splitlines()
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
        for event in span.get("events", [])
    ]
    assert [event["name"] for event in events] == ["periflow.checkpoint.upload"] * checkpoints


def test_the_metric_log_has_its_name_from_the_time_and_is_appended_to():
    """As in the original: two runs in one file where they give the same name."""
    script = "import periflow_otel as pf\npf.init(1, {name})\npf.metric({{'n': {n}}})\n"
    for n in (1, 2):
        assert run_script(script.format(name="'twice.log'", n=n), PERIFLOW_AGENT="process").errors == ""
    assert Path("twice.log").read_text("utf-8") == '{"n": 1}\n{"n": 2}\n'
    assert run_script(script.format(name="None", n=3), PERIFLOW_AGENT="process").errors == ""
    (found,) = [path for path in Path().iterdir() if re.fullmatch(r"periflow_trainer_\d{10}\.log", path.name)]
    assert found.read_text("utf-8") == '{"n": 3}\n'
