"""A step as a ``with`` block and as a decorator: how it ends, whatever the code in it is."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from recorded import recorded

import periflow_otel as pf
from periflow_otel.clock import Clock
from periflow_otel.records import StepEnded


class Time:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        """Begin."""
        self.now_ns = 1_700_000_000_000_000_000

    def __call__(self) -> int:
        """Return the time."""
        return self.now_ns


@pytest.fixture
def time() -> Time:
    """Return the clock of the run."""
    return Time()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, time: Time) -> Iterator[pf.TrainingRun]:
    """Return a run that records without an agent."""
    monkeypatch.setenv("PERIFLOW_AGENT", "off")
    run = pf.TrainingRun(clock=Clock(time, time))
    yield run
    run.shutdown()


def ended(run: pf.TrainingRun) -> list[tuple[int, str | None]]:
    """Return the steps that ended, with their errors."""
    return [(each.step, each.error) for each in recorded(run, StepEnded)]


def durations_s(run: pf.TrainingRun) -> list[float]:
    """Return how long the steps took."""
    return [each.duration_ns / 1e9 for each in recorded(run, StepEnded)]


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (ValueError(), "ValueError"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (asyncio.CancelledError(), "asyncio.exceptions.CancelledError"),
        (SystemExit(1), "SystemExit"),
        (SystemExit("no data"), "SystemExit"),
        (SystemExit(""), "SystemExit"),
        (SystemExit(0), None),
        (SystemExit(None), None),
        (SystemExit(), None),
        (SystemExit(False), None),  # noqa: FBT003  # it is 0
        (StopIteration(), None),
        (StopAsyncIteration(), None),
        (GeneratorExit(), None),
    ],
    ids=repr,
)
def test_only_a_failure_is_an_error(run: pf.TrainingRun, raised: BaseException, error: str | None):
    """The end of the data, a generator that is left and ``sys.exit(0)`` are how code is meant to be left."""
    with pytest.raises(type(raised)), run.train_step(), run.span("batch"):
        raise raised
    assert ended(run) == [(1, error)]


def test_a_generator_that_is_left_ends_its_step_without_an_error(run: pf.TrainingRun):
    """A loop over steps that is left by ``break``."""

    def steps() -> Iterator[None]:
        while True:
            with run.train_step():
                yield

    for number, _ in enumerate(steps(), 1):
        if number == 2:
            break
    assert ended(run) == [(1, None), (2, None)]


# Decorated


def test_a_coroutine_is_a_step_while_it_runs(run: pf.TrainingRun, time: Time):
    """And not only until it is called."""

    @run.train_step()
    async def step(loss: float) -> float:
        await asyncio.sleep(0)
        time.now_ns += 2 * 10**9
        return loss

    assert asyncio.iscoroutinefunction(step)
    assert asyncio.run(step(0.5)) == 0.5
    assert durations_s(run) == [2]


def test_a_generator_is_a_step_while_it_runs(run: pf.TrainingRun, time: Time):
    """From its first value to its end; what is sent to it arrives, and what it returns comes back."""

    @run.train_step()
    def batches() -> Any:
        time.now_ns += 10**9
        got = yield 1
        time.now_ns += 10**9
        return got

    generator = batches()
    assert ended(run) == []
    assert next(generator) == 1
    with pytest.raises(StopIteration) as caught:
        generator.send("sent")
    assert caught.value.value == "sent"
    assert durations_s(run) == [2]
    assert ended(run) == [(1, None)]


def test_an_asynchronous_generator_is_refused(run: pf.TrainingRun):
    """It cannot be wrapped without a loss; the error says what to do instead."""

    async def batches() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(TypeError, match=r"batches is an asynchronous generator; use 'with pf.train_step\(\):' inside"):
        run.train_step()(batches)


class Callable1:
    """An object that is called like a coroutine function."""

    async def __call__(self) -> int:
        """Return a number."""
        return 1


async def _number(value: int) -> int:
    await asyncio.sleep(0)
    return value


@pytest.mark.parametrize("function", [Callable1(), functools.partial(_number, 1)], ids=["object", "partial"])
def test_what_is_called_like_a_coroutine_function_is_one(run: pf.TrainingRun, function: Callable[[], Any]):
    """Whatever it is."""
    assert asyncio.run(run.train_step()(function)()) == 1
    assert ended(run) == [(1, None)]


def test_a_decorated_function_keeps_its_name(run: pf.TrainingRun):
    """And its documentation."""

    @run.train_step()
    def train() -> None:
        """Train."""

    assert (train.__name__, train.__doc__) == ("train", "Train.")


# Steps that are left open


def test_a_block_that_a_signal_handler_has_left_does_not_stop_the_next(run: pf.TrainingRun):
    """An exception out of a handler may come before ``__exit__`` has done anything; then nobody can end the step."""
    context = run.train_step()
    context.__enter__()
    del context
    with run.train_step():
        pass
    assert ended(run) == [(1, "unfinished"), (2, None)]


def test_a_block_that_goes_on_does_stop_the_next(run: pf.TrainingRun):
    """A step within a step is a mistake, as ever."""
    with run.train_step():
        with pytest.raises(pf.StepAlreadyStartedError, match=r"^start_step\(\) was called in step 1, which has not"):
            run.start_step()
        with pytest.raises(pf.StepAlreadyStartedError), run.train_step():
            pass
    run.start_step()
    with pytest.raises(pf.StepAlreadyStartedError), run.train_step():
        pass


def test_a_run_that_ends_in_a_step_lets_its_block_go_on(run: pf.TrainingRun):
    """Its end is recorded once."""
    with run.train_step():
        run.shutdown()
    assert ended(run) == [(1, "unfinished")]
