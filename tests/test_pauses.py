"""Garbage collections that hold up a step are recorded with it, and nothing else of them."""

import gc
import os
import threading
from collections.abc import Iterator

import pytest
from recorded import recorded
from recorder import MS, STARTED_NS, S, give, make_run

import periflow_otel as pf
from periflow_otel import names
from periflow_otel.records import Paused, StepEnded
from periflow_otel.training.pauses import LEAST_NS, Pauses
from periflow_otel.translate.points import PointTranslator
from periflow_otel.translate.spans import SpanTranslator
from periflow_otel.view.records import RecordFeed
from periflow_otel.view.run_view import RunView

LIVING = [[number] for number in range(400_000)]
"""So many objects that to look at all of them takes more than a millisecond."""


@pytest.fixture(autouse=True)
def _no_others() -> Iterator[None]:
    """Collect nothing by chance, and leave no callback behind."""
    before = list(gc.callbacks)
    gc.disable()
    yield
    gc.enable()
    assert gc.callbacks == before


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[pf.TrainingRun]:
    """Return a run."""
    monkeypatch.setenv("PERIFLOW_AGENT", "off")
    run = pf.TrainingRun()
    yield run
    run.shutdown()


class Clock:
    """A clock that a collection moves on by a given time."""

    def __init__(self, took_ns: int) -> None:
        """Begin at some time."""
        self._now_ns, self._took_ns = 5, took_ns

    def monotonic_ns(self) -> int:
        """Return the time; the next call is later."""
        self._now_ns += self._took_ns
        return self._now_ns


@pytest.mark.parametrize(("took_ns", "expected"), [(LEAST_NS, {}), (LEAST_NS + 1, {1: LEAST_NS + 1})])
def test_only_long_collections_count(took_ns: int, expected: dict[int, int]):
    """A millisecond is not yet one."""
    pauses = Pauses(Clock(took_ns).monotonic_ns, lambda: True)
    gc.collect(1)
    assert pauses.take() == expected
    pauses.close()


def test_collections_add_up_by_generation():
    """Until they are taken."""
    pauses = Pauses(Clock(3 * MS).monotonic_ns, lambda: True)
    for generation in (0, 2, 2):
        gc.collect(generation)
    assert pauses.take() == {0: 3 * MS, 2: 6 * MS}
    assert pauses.take() == {}
    pauses.close()


def test_whoever_clears_the_callbacks_ends_it():
    """And nothing fails."""
    pauses, kept = Pauses(Clock(S).monotonic_ns, lambda: True), gc.callbacks[:-1]
    gc.callbacks.clear()
    gc.collect()
    pauses.close()
    gc.callbacks.extend(kept)
    assert pauses.take() == {}


def test_a_real_collection_is_recorded_with_its_step(run: pf.TrainingRun):
    """By the thread that trains or another; not what is between steps."""
    assert LIVING
    gc.collect()
    with run.train_step():
        gc.collect()
    gc.collect()
    with run.train_step():
        pass
    with run.train_step():
        thread = threading.Thread(target=gc.collect)
        thread.start()
        thread.join()
    found = recorded(run, Paused)
    assert [(each.step, list(each.duration_ns)) for each in found] == [(1, [2]), (3, [2])]
    assert all(each.duration_ns[2] > LEAST_NS for each in found)


def test_nobody_listens_after_the_end(monkeypatch: pytest.MonkeyPatch):
    """Nor in a forked child, nor where nothing is recorded."""
    monkeypatch.setenv("PERIFLOW_AGENT", "off")
    before = list(gc.callbacks)
    run = pf.TrainingRun()
    assert len(gc.callbacks) == len(before) + 1
    if (child := os.fork()) == 0:
        os._exit(0 if gc.callbacks == before else 1)
    assert os.waitpid(child, 0)[1] == 0
    run.shutdown()
    assert gc.callbacks == before
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    silent = pf.TrainingRun()
    assert gc.callbacks == before
    silent.shutdown()


RECORDS = [
    Paused(1, STARTED_NS + S, {0: 2 * MS, 2: 40 * MS}),
    StepEnded(1, STARTED_NS, S),
    StepEnded(2, STARTED_NS + S, S, None, 0),
    Paused(3, STARTED_NS + 3 * S, {2: 8 * MS}),
    StepEnded(3, STARTED_NS + 2 * S, S, None, 0),
]


def test_a_step_says_how_long_it_was_held_up():
    """On its span; one that was not says nothing."""
    translator = SpanTranslator(make_run(), b"")
    give(translator, RECORDS)
    translator.step_began(4, STARTED_NS + 3 * S)
    spans = [span for span in translator.take() if span.name == names.STEP_SPAN]
    assert [span.attributes.get(names.PAUSE) for span in spans] == [0.042, None, 0.008]


def test_pauses_are_counted_by_generation():
    """As seconds."""
    translator = PointTranslator(make_run())
    give(translator, RECORDS)
    translator.settle()
    found = {point.attributes[0]: point.value for point in translator.take() if point.instrument is names.STEP_PAUSE}
    assert found == {(names.TIME_KIND, "gc.0"): 0.002, (names.TIME_KIND, "gc.2"): 0.048}


def test_the_view_has_them_by_step():
    """For the curve beside the times of steps."""
    view = RunView("run")
    feed = RecordFeed(view, make_run())
    give(feed, RECORDS)
    feed.settle()
    whole = view.to_dict()
    (series,) = [each for each in whole["series"] if each["kind"] == "pause"]
    assert series["step"] == [1, 3]
    assert whole["ranks"][0]["pauses"] == {"gc.0": 0.002, "gc.2": 0.048}
