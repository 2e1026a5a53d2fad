"""What is logged during a run is recorded with where it was said, by that run alone, and for as long as it goes on."""

import asyncio
import logging
import os
import threading
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from recorded import journals, recorded, run_script

import periflow_otel as pf
from periflow_otel.records import LogLine

CALL_HANDLERS = logging.Logger.callHandlers
log = logging.getLogger("script")


@pytest.fixture(autouse=True)
def _lets_all_through() -> Iterator[None]:
    log.setLevel(logging.DEBUG)
    yield
    assert logging.Logger.callHandlers is CALL_HANDLERS


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[pf.TrainingRun]:
    """Return a run that records what is logged."""
    monkeypatch.setenv("PERIFLOW_LOGS", "info")
    monkeypatch.setenv("PERIFLOW_AGENT", "off")
    run = pf.TrainingRun()
    yield run
    run.shutdown()


def places(run: pf.TrainingRun) -> list[tuple[str, int | None, int]]:
    """Return each message, and the step and the phase in which it was said."""
    return [(line.message, line.step, line.phase) for line in recorded(run, LogLine)]


def test_a_line_is_of_the_step_and_phase_in_which_it_was_said(run: pf.TrainingRun):
    """Or of neither."""
    log.info("before")
    with run.train_step():
        log.info("in a step")
        with run.span("load"):
            log.info("in its phase")
    log.info("between")
    with run.span("evaluate"):
        log.info("in a phase")
    assert places(run) == [
        ("before", None, 0), ("in a step", 1, 0), ("in its phase", 1, 1), ("between", None, 0), ("in a phase", None, 2),
    ]  # fmt: skip


def test_a_line_of_another_thread_or_task_is_of_the_open_step(run: pf.TrainingRun):
    """Where no span is current there."""

    async def talk() -> None:
        log.info("task")

    with run.train_step():
        thread = threading.Thread(target=log.info, args=("thread",))
        thread.start()
        thread.join()
        asyncio.run(talk())
    assert places(run) == [("thread", 1, 0), ("task", 1, 0)]


def test_a_line_in_a_span_of_the_scripts_own_is_of_that(run: pf.TrainingRun):
    """With its ids, and still of the step."""
    with run.train_step(), TracerProvider().get_tracer("script").start_as_current_span("forward") as span:
        log.info("in forward")
    (line,) = recorded(run, LogLine)
    context = span.get_span_context()
    assert line.span == context.trace_id.to_bytes(16, "big") + context.span_id.to_bytes(8, "big") + b"\1"
    assert line.step == 1


def test_nothing_is_recorded_unless_asked_for(monkeypatch: pytest.MonkeyPatch):
    """Nor is anything touched."""
    monkeypatch.setenv("PERIFLOW_AGENT", "off")
    run = pf.TrainingRun()
    assert logging.Logger.callHandlers is CALL_HANDLERS
    log.error("unheard")
    assert recorded(run, LogLine) == []
    run.shutdown()


def test_lines_go_on_in_the_next_attempt(run: pf.TrainingRun):
    """Training went back: what is said then is in the journal of that."""
    run.start_step(5)
    run.end_step()
    log.info("first")
    run.start_step(3)
    log.info("second")
    assert places(run) == [("second", 3, 0)]


def test_what_is_said_after_the_end_is_not_recorded(run: pf.TrainingRun, caplog: pytest.LogCaptureFixture):
    """And does not count as a record that came too late."""
    run.shutdown()
    log.info("too late")
    assert places(run) == []
    assert "dropped" not in caplog.text


def test_what_we_say_ourselves_is_not_recorded(run: pf.TrainingRun):
    """Such as that a checkpoint was announced twice."""
    run.start_step()
    for _ in range(2):
        run.upload_checkpoint()
    assert places(run) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_forked_child_records_nothing():
    """What it says is not its parent's, who goes on."""
    ended = run_script(
        """
import logging, os
import periflow_otel as pf
pf.init()
log = logging.getLogger("script")
log.error("before")
pid = os.fork()
if pid == 0:
    log.error("child")
    os._exit(logging.Logger.callHandlers.__module__ != "logging")
assert os.waitpid(pid, 0)[1] == 0
log.error("after")
""",
        PERIFLOW_LOGS="error",
    )
    assert ended.status == 0, ended.errors
    (journal,) = journals()
    assert [line.message for line in journal.of(LogLine)] == ["before", "after"]
    assert ended.errors.count("child") == 1
