"""What the callbacks for frameworks have in common."""

import copy
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

import periflow_otel as pf
from periflow_otel import names, testing
from periflow_otel.integrations.training import Training, begin_training, harmless
from periflow_otel.integrations.watching import watch

CLOUD = {"PERIFLOW_ENABLED": "1", "WORLD_SIZE": "1", "NODE_RANK": "0", "NUM_NODES": "1", "PROCESSED_ITERS": "0"}


def test_a_run_is_active_from_init_to_shutdown():
    """``is_initialized`` says so."""
    with testing.capture():
        assert not pf.is_initialized()
        pf.init()
        assert pf.is_initialized()
        pf.shutdown()
        assert not pf.is_initialized()


def test_no_framework_is_loaded_unless_its_callback_is():
    """Neither the package nor what the callbacks share imports one."""
    code = "import sys, periflow_otel.integrations.training; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "periflow_otel.integrations.training" in loaded
    assert not {"torch", "transformers", "lightning", "accelerate"} & set(loaded)


@pytest.mark.parametrize("framework", [("huggingface", "transformers"), ("lightning", "lightning")], ids=lambda f: f[0])
def test_a_framework_that_is_missing(framework: tuple[str, str]):
    """The error says how to install it."""
    module, package = framework
    code = f"import sys; sys.modules['{package}'] = None; import periflow_otel.integrations.{module}"
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert f"pip install 'periflow_otel[{module}]'" in failed.stderr.splitlines()[-1]
    assert failed.stderr.splitlines()[-1].startswith("ImportError: ")


class Trainer:
    """What a framework trains with."""

    def train(self, call: Callable[[], object]) -> None:
        """Call something in the middle of training."""
        call()


def begin(trainer: Trainer, total_steps: int | None = 2, done_steps: int = 0) -> Training | None:
    """Begin a training of a framework that makes nothing anew for it."""
    return begin_training(trainer, trainer, None, total_steps=total_steps, done_steps=done_steps)


def test_a_total_that_lies_behind_is_no_total(monkeypatch: pytest.MonkeyPatch):
    """Training that goes on with fewer steps in an epoch must not fail for it, even in cloud mode."""
    for name, value in CLOUD.items():
        monkeypatch.setenv(name, value)
    with testing.capture() as captured:
        begin(Trainer(), total_steps=60, done_steps=100)
    assert [(run.initial_step, run.total_steps) for run in captured.runs] == [(100, None)]


def test_a_run_that_the_script_has_ended():
    """It is not ended once more, and no step is told to it."""
    with testing.capture() as captured:
        training = begin(Trainer())
        training.start_step(1)
        pf.shutdown()
        training.end_step()
        training.start_step(2)
        training.end()
    assert len(captured.runs) == len(captured.steps) == 1


def test_a_run_that_begins_in_the_middle_is_taken():
    """What is left of the training is its own, and so is how it ends."""
    with testing.capture() as captured:
        training = begin(Trainer())
        assert training
        pf.init()
        training.start_step(5)
        training.end_step()
        training.end()
        pf.shutdown()
    assert [(step.number, step.error) for step in captured.steps] == [(5, None)]
    assert [span.attributes[names.OUTCOME] for span in captured.spans if span.name == names.RUN_SPAN][-1] == "finished"


def test_a_run_that_another_training_has_is_left_to_it():
    """Until that is over."""
    with testing.capture() as captured:
        outer = begin(Trainer())
        pf.init()
        inner = begin(Trainer())
        assert outer
        assert inner
        outer.start_step(1)
        inner.start_step(2)
        inner.end_step()
        inner.end()
        outer.start_step(3)
        outer.end_step()
    assert [step.number for step in captured.steps] == [2, 3]


def test_a_step_that_the_script_has_opened_is_left_alone():
    """Neither begun once more nor ended."""
    with testing.capture() as captured:
        pf.init()
        training = begin(Trainer())
        with pf.train_step():
            training.start_step(7)
            training.end_step()
            training.abandon_step()
    assert [(step.number, step.error) for step in captured.steps] == [(1, None)]


def test_a_training_in_another_thread_keeps_the_run_to_itself():
    """As long as it is at work; what nobody is at work on any more makes way."""
    trainer, other = Trainer(), Trainer()
    with testing.capture() as captured:
        began, release = threading.Event(), threading.Event()
        begin(trainer)
        thread = threading.Thread(target=trainer.train, args=(lambda: (began.set(), release.wait(30)),))
        thread.start()
        began.wait(30)
        assert begin(other) is None
        release.set()
        thread.join()
        assert begin(other) is not None
    assert len(captured.runs) == 2


def test_what_a_hook_raises_is_said_and_forgotten(caplog: pytest.LogCaptureFixture):
    """Ctrl-C is not its own, and goes on."""

    @harmless
    def hook(error: BaseException) -> None:
        raise error

    hook(ValueError("no"))
    assert [each.getMessage() for each in caplog.records] == ["hook() could not record: ValueError: no"]
    with pytest.raises(KeyboardInterrupt):
        hook(KeyboardInterrupt())


class Adding:
    """Something with a method and a value."""

    def __init__(self, value: int) -> None:
        """Keep a value."""
        self.value = value

    def add(self, number: int) -> int:
        """Return the sum."""
        return self.value + number


def tenfold(theirs: Any) -> type:
    """Make a class whose sums are larger."""

    class Tenfold(theirs):
        def add(self, number: int) -> int:
            return 10 * super().add(number)

    return Tenfold


def test_a_watched_object():
    """It is one of its class still, with a method of ours before its own; watched twice, it is watched once."""
    watched = Adding(1)
    watch(watched, tenfold)
    watch(watched, tenfold)
    assert (watched.add(1), Adding(1).add(1)) == (20, 2)
    assert isinstance(watched, Adding)
    assert type(watched).__name__ == "Adding"
    assert vars(watched) == {"value": 1}


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])  # noqa: S301  # our own
def test_a_copy_of_a_watched_object_is_watched(copied: Callable[[Adding], Adding]):
    """However it was copied."""
    watched = Adding(1)
    watch(watched, tenfold)
    assert copied(watched).add(2) == 30
