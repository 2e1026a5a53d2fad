"""What the callbacks for frameworks have in common."""

import subprocess
import sys

import pytest

import periflow_otel as pf
from periflow_otel import testing
from periflow_otel.integrations import FrameworkRun, wrap_method

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
    code = "import sys, periflow_otel.integrations; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "periflow_otel.integrations" in loaded
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


def test_a_total_that_lies_behind_is_no_total(monkeypatch: pytest.MonkeyPatch):
    """Training that goes on with fewer steps in an epoch must not fail for it, even in cloud mode."""
    for name, value in CLOUD.items():
        monkeypatch.setenv(name, value)
    with testing.capture() as captured:
        FrameworkRun(None).begin(total_steps=60, done_steps=100)
    assert [(run.initial_step, run.total_steps) for run in captured.runs] == [(100, None)]


def test_a_run_that_the_script_has_ended():
    """It is not ended once more."""
    with testing.capture() as captured:
        run = FrameworkRun(None)
        run.begin(total_steps=2, done_steps=0)
        pf.shutdown()
        run.end()
    assert len(captured.runs) == 1


class Owner:
    """Something with a method."""

    def add(self, number: int) -> int:
        """Return the next number."""
        return number + 1


def test_a_wrapped_method():
    """The wrapper decides, for this object alone, and is gone afterwards."""
    owner = Owner()
    undo = wrap_method(owner, "add", lambda method, number: 10 * method(number))
    assert (owner.add(1), Owner().add(1)) == (20, 2)
    undo()
    assert owner.add(1) == 2
    assert not vars(owner)


def test_a_method_that_was_wrapped_once_more():
    """What came later stays, whatever is undone."""
    owner = Owner()
    undo = wrap_method(owner, "add", lambda method, number: 10 * method(number))
    undo_later = wrap_method(owner, "add", lambda method, number: 100 + method(number))
    undo()
    assert owner.add(1) == 120
    undo_later()
    assert owner.add(1) == 20
