"""Signals that ask for an emergency save, beside whatever else handles them."""

import re
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
from recorded import run_script
from training import CLOUD

import periflow_otel as pf
from periflow_otel.training.preemption import SignalWatch

Handler = Any


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Put the handlers back that were there before the test."""
    signals = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
    before = [signal.getsignal(number) for number in signals]
    yield
    for number, handler in zip(signals, before, strict=True):
        signal.signal(number, handler)


class Calls(list[str]):
    """Remembers who was called, in order."""

    def ask(self) -> None:
        """Be asked for a save."""
        self.append("ask")

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal as a script does."""
        assert frame is not None
        self.append(signal.Signals(number).name)


def test_a_signal_asks_for_a_save_then_calls_who_was_there_before():
    """A script that has its own handler for the signal keeps it."""
    calls = Calls()
    signal.signal(signal.SIGUSR1, calls.handle)
    watch = SignalWatch([signal.SIGUSR1, signal.SIGUSR2], calls.ask)
    signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR2)
    assert calls == ["ask", "SIGUSR1", "ask"]
    watch.close()


def test_a_signal_that_is_named_twice_asks_once():
    """And calls nobody without end."""
    calls = Calls()
    watch = SignalWatch([signal.SIGUSR1, signal.SIGUSR1], calls.ask)
    signal.raise_signal(signal.SIGUSR1)
    assert calls == ["ask"]
    watch.close()


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN, Calls().handle])
def test_the_handler_from_before_is_put_back(before: Handler):
    """When the run is over, everything is as it was."""
    signal.signal(signal.SIGUSR1, before)
    watch = SignalWatch([signal.SIGUSR1], Calls().ask)
    assert signal.getsignal(signal.SIGUSR1) != before
    watch.close()
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_handler_that_came_later_stays():
    """It may call ours, which then calls the one from before as ever."""
    calls = Calls()
    signal.signal(signal.SIGUSR1, calls.handle)
    watch = SignalWatch([signal.SIGUSR1], calls.ask)
    ours: Handler = signal.getsignal(signal.SIGUSR1)

    def later(number: int, frame: FrameType | None) -> None:
        calls.append("later")
        ours(number, frame)

    signal.signal(signal.SIGUSR1, later)
    watch.close()
    assert signal.getsignal(signal.SIGUSR1) is later
    signal.raise_signal(signal.SIGUSR1)
    assert calls == ["later", "ask", "SIGUSR1"]


def test_another_thread_cannot_watch(caplog: pytest.LogCaptureFixture):
    """Python lets only the main one; a warning says what to do."""
    watches = []
    thread = threading.Thread(target=lambda: watches.append(SignalWatch([signal.SIGUSR1], Calls().ask)))
    thread.start()
    thread.join()
    assert caplog.messages == ["signals can ask for an emergency save only if init() is called in the main thread"]
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    watches[0].close()


def test_a_run_that_ends_in_another_thread_leaves_the_handler():
    """It does nothing any more, and that thread could not take it away."""
    calls = Calls()
    watch = SignalWatch([signal.SIGUSR1], calls.ask)
    thread = threading.Thread(target=watch.close)
    thread.start()
    thread.join()
    signal.raise_signal(signal.SIGUSR1)
    assert calls == ["ask"]


# In a training script

SIGNALS = """
import os, signal, sys, time
import periflow_otel as pf
{before}
pf.init(10)
{middle}
for step in range(1, 4):
    with pf.train_step():
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
    print(step, pf.is_emergency_save())
    if pf.is_emergency_save():
        pf.upload_checkpoint()
{after}
"""


def test_a_signal_that_would_end_training_asks_for_a_save_instead():
    """SIGTERM in a step: that very step is saved, as there is but one rank."""
    ended = run_script(SIGNALS.format(before="", middle="", after=""), PERIFLOW_EMERGENCY_SIGNALS="SIGTERM")
    assert (ended.status, ended.output, ended.errors) == (0, "1 False\n2 True\n3 False\n", "")


def test_without_the_variable_signals_do_what_they_always_did():
    """Nothing is watched that was not asked for."""
    ended = run_script(SIGNALS.format(before="", middle="", after=""), PYTHONUNBUFFERED="1")
    assert (ended.status, ended.output) == (-signal.SIGTERM, "1 False\n")


def test_the_handler_of_a_script_is_called_too():
    """It ends training in its own way."""
    before = "signal.signal(signal.SIGTERM, lambda *_: print('stopping'))"
    ended = run_script(SIGNALS.format(before=before, middle="", after=""), PERIFLOW_EMERGENCY_SIGNALS="term")
    assert ended.output == "1 False\nstopping\n2 True\n3 False\n"


def test_after_the_run_a_signal_ends_the_script_again():
    """As if nothing had ever been watched."""
    after = "pf.shutdown(); print('over', flush=True); os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)"
    ended = run_script(SIGNALS.format(before="", middle="", after=after), PERIFLOW_EMERGENCY_SIGNALS="SIGTERM")
    assert (ended.status, ended.output.splitlines()[-1]) == (-signal.SIGTERM, "over")


def test_a_signal_ends_a_forked_child_as_ever():
    """A worker of a DataLoader inherits the handler, and must go when it is told to."""
    middle = """
import multiprocessing
fork = multiprocessing.get_context("fork")
is_up = fork.Event()
def work():
    is_up.set()
    time.sleep(60)
worker = fork.Process(target=work)
worker.start()
is_up.wait()
worker.terminate()
worker.join()
print("worker", worker.exitcode)
"""
    ended = run_script(SIGNALS.format(before="", middle=middle, after=""), PERIFLOW_EMERGENCY_SIGNALS="SIGTERM")
    assert ended.output == "worker -15\n1 False\n2 True\n3 False\n"


def test_a_storm_of_signals_holds_nothing_up():
    """A signal that interrupts the handling of another does not wait for it, and adds no further layer."""
    code = """
import os, signal, sys, threading, time
import periflow_otel as pf
def storm():
    for _ in range(1000):
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), number)
            time.sleep(1e-5)  # lets go of the interpreter: signals that come at once are one
sys.setswitchinterval(1e-6)
pf.init(10)
thread = threading.Thread(target=storm)
thread.start()
while thread.is_alive():
    with pf.train_step():
        pass
thread.join()
print(pf.is_emergency_save())
"""
    ended = run_script(code, PERIFLOW_EMERGENCY_SIGNALS="SIGUSR1,SIGUSR2")
    assert (ended.status, ended.output, ended.errors) == (0, "True\n", "")


@pytest.mark.parametrize("name", ["SIGUSR3", "10", "SIGKILL", "SIG_IGN", "SIGUSR1 SIGTERM", "SIG"])
def test_a_name_that_is_no_signal_to_be_caught_raises(monkeypatch: pytest.MonkeyPatch, name: str):
    """At init in cloud mode, with the remedy."""
    for variable, value in (CLOUD | {"PERIFLOW_EMERGENCY_SIGNALS": f"SIGUSR1,{name}"}).items():
        monkeypatch.setenv(variable, value)
    message = f"PERIFLOW_EMERGENCY_SIGNALS is {name!r}; name signals such as SIGUSR1,SIGTERM, or unset it"
    with pytest.raises(pf.ConfigurationError, match=f"^{re.escape(message)}$"):
        pf.TrainingRun(10)
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
