"""Fixtures of all tests: every test has a folder and an environment of its own."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from commands import Begin
from programs import Collector
from training import isolate

import periflow_otel as pf
from periflow_otel import testing

# A job in the background of a script ignores Ctrl-C, and would have the scripts of tests ignore it too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The machine may be busy, and a run of CI is to be repeatable.
hypothesis.settings.register_profile("patient", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)
    logging.getLogger("periflow_otel").filters.clear()  # what another test said may be said again


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    """Return a running OpenTelemetry Collector."""
    with Collector(tmp_path / "otelcol") as collector:
        yield collector


@pytest.fixture
def clock() -> testing.FakeClock:
    """Return the clock of everything that is recorded."""
    return testing.FakeClock()


@pytest.fixture
def captured(clock: testing.FakeClock) -> Iterator[testing.Captured]:
    """Capture what the test records."""
    with testing.capture(clock) as captured:
        yield captured


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Return what begins runs that record without an agent and end with the test."""
    monkeypatch.setenv("PERIFLOW_AGENT", "off")
    runs: list[pf.TrainingRun] = []

    def begin(**named: str) -> pf.TrainingRun:
        runs.append(pf.TrainingRun(10, **named))  # type: ignore[arg-type]  # only texts are given
        return runs[-1]

    yield begin
    for run in runs:
        run.shutdown()
