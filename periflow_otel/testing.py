"""What a test of a training script needs: everything that the script records, with no agent, network or file left.

    from periflow_otel import testing

    def test_my_training_loop():
        with testing.capture() as captured:
            train(steps=3)
        assert [step.number for step in captured.steps] == [1, 2, 3]

The script records as in production, into a journal of its own in a temporary folder.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import periflow_otel as pf
from periflow_otel import names
from periflow_otel.agent.watch import RankJournal, find_journals
from periflow_otel.clock import SYSTEM, Clock, replaced_clock
from periflow_otel.errors import PeriFlowError, full_type
from periflow_otel.journal.control import ANY_STEP, Control
from periflow_otel.journal.folders import node_folders
from periflow_otel.journal.reader import Head, Position
from periflow_otel.journal.segment import CREATED_MONOTONIC_NS, Segment, segment_indices, segment_path
from periflow_otel.records import Checkpoint, Metric, RankRun, Record, RunFinished, StepEnded
from periflow_otel.translate.points import PointTranslator
from periflow_otel.translate.spans import SpanTranslator
from periflow_otel.translate.telemetry import Event, Point, Span

__all__ = ["Captured", "FakeClock", "Step", "capture"]

_is_capturing: Final = threading.Lock()


class FakeClock:
    """A clock that stands still until it is told to move."""

    def __init__(self, start_unix_s: float = 1_700_000_000) -> None:
        """Set the time of day.

        Args:
            start_unix_s: Seconds since 1970.
        """
        self._start_unix_ns = round(start_unix_s * 1e9)
        self._elapsed_ns = 0

    def advance(self, seconds: float) -> None:
        """Let time pass, to the nanosecond.

        Raises:
            ValueError: ``seconds`` is negative.
        """
        if seconds < 0:
            message = f"advance({seconds!r}) would turn the clock back; give 0 or more seconds"
            raise ValueError(message)
        self._elapsed_ns += round(seconds * 1e9)

    def time_ns(self) -> int:
        """Return the time of day: nanoseconds since 1970."""
        return self._start_unix_ns + self._elapsed_ns

    def monotonic_ns(self) -> int:
        """Return how far it was advanced, in nanoseconds."""
        return self._elapsed_ns


class Step(NamedTuple):
    """A step that is over."""

    number: int
    rank: int
    duration_s: float
    error: str | None
    """Type of the exception that ended it."""
    metrics: dict[str, Any]
    """What ``pf.metric`` was told from its start to the start of the next step; of a repeated key, the last value."""


class Captured:
    """What was recorded inside :func:`capture`: up to now, or, after the block, all of it.

    Where there are several runs or ranks, those that began first come first.
    """

    def __init__(self, state_dir: Path) -> None:
        """Show the journals of all runs in ``state_dir``."""
        self._state_dir = state_dir
        self._kept: list[_Journal] | None = None

    @property
    def runs(self) -> list[RankRun]:
        """Every run that has begun, one for each rank."""
        return [journal.run for journal in self._journals()]

    @property
    def steps(self) -> list[Step]:
        """Every step that has ended, whatever is sampled."""
        return [step for journal in self._journals() for step in journal.steps()]

    def metrics(self, key: str) -> list[Any]:
        """Return every value that ``pf.metric`` was told under ``key``, in order, those outside steps too."""
        records = [record for record in self._records() if isinstance(record, Metric)]
        return [record.values[key] for record in records if key in record.values]

    @property
    def checkpoints(self) -> list[int]:
        """Step of every ``pf.upload_checkpoint``."""
        return [record.step for record in self._records() if isinstance(record, Checkpoint)]

    @property
    def spans(self) -> list[Span]:
        """Every finished span: steps, phases, and the runs themselves once they are over."""
        return [span for journal in self._journals() for span in journal.spans()]

    @property
    def points(self) -> list[Point]:
        """Every value as a metric point, and the state of the built-in instruments."""
        return [point for journal in self._journals() for point in journal.points()]

    @property
    def events(self) -> list[Event]:
        """The event of every checkpoint that has left with its span."""
        return [event for span in self.spans for event in span.events if event.name == names.CHECKPOINT_UPLOAD]

    def request_emergency_save(self, step: int = ANY_STEP) -> None:
        """Ask the runs that have begun for a checkpoint, as PeriFlow does: ``pf.is_emergency_save()`` becomes true.

        Args:
            step: At which step; by default at once.

        Raises:
            PeriFlowError: No run has begun, or the block is over.
        """
        folders = node_folders(self._state_dir)
        if not folders:
            message = (
                "request_emergency_save() found no run; call it after pf.init() and inside the block of capture(), "
                "for example from the batches that the script trains on"
            )
            raise PeriFlowError(message)
        for folder in folders:
            Control(folder).request(step)

    def _keep(self) -> None:
        """Read everything now: the journals are about to go."""
        self._kept = self._journals()

    def _journals(self) -> "list[_Journal]":
        return _read_journals(self._state_dir) if self._kept is None else self._kept

    def _records(self) -> list[Record]:
        return [record for journal in self._journals() for record in journal.records]


@contextmanager
def capture(clock: FakeClock | None = None) -> Iterator[Captured]:
    """Capture what every run that begins inside the block records, also in processes that are started inside.

    At its end the default run ends if one was begun inside, and everything is as it was: the environment and the
    default run from before. An exception of the script goes on to the caller.

    Args:
        clock: What tells the time to those runs. Default: the system.

    Raises:
        PeriFlowError: Another ``capture()`` is active in this process.
    """
    if not _is_capturing.acquire(blocking=False):
        message = "capture() is active already in this process; leave its block, or use what it captures"
        raise PeriFlowError(message)
    try:
        with TemporaryDirectory(prefix="periflow-captured-") as folder:
            captured = Captured(Path(folder))
            try:
                with _variables(folder), replaced_clock(_as_clock(clock)), _default_run():
                    yield captured
            finally:
                captured._keep()  # noqa: SLF001  # no user has a reason to call it
    finally:
        _is_capturing.release()


def _as_clock(clock: FakeClock | None) -> Clock:
    return Clock(clock.time_ns, clock.monotonic_ns) if clock else SYSTEM


@contextmanager
def _variables(state_dir: str) -> Iterator[None]:
    """Let runs record into ``state_dir``, with no agent, even where telemetry is off for tests."""
    ours = {names.STATE_DIR: state_dir, names.AGENT: "off", "OTEL_SDK_DISABLED": "false"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _default_run() -> Iterator[None]:
    """Put the default run aside; at the end, finish the one that was begun meanwhile."""
    outer = pf._default, pf._latest  # noqa: SLF001  # no user has a reason to replace them
    pf._default = pf._latest = None  # noqa: SLF001
    error = None
    try:
        yield
    except Exception as raised:
        error = full_type(raised)
        raise
    finally:
        inner, (pf._default, pf._latest) = pf._default, outer  # noqa: SLF001
        if inner is not None:
            inner._shutdown(error, None)  # noqa: SLF001  # as at exit: the run has failed if the script has


class _Journal(NamedTuple):
    """What one rank has recorded."""

    run: RankRun
    head: Head
    records: list[Record]

    def steps(self) -> Iterator[Step]:
        metrics: dict[int, dict[str, Any]] = {}
        for record in self.records:
            if isinstance(record, Metric):
                metrics.setdefault(record.step, {}).update(record.values)
        for record in self.records:
            if isinstance(record, StepEnded):
                duration_s = record.duration_ns / 1e9
                yield Step(record.step, self.run.rank, duration_s, record.error, metrics.get(record.step, {}))

    def spans(self) -> list[Span]:
        translator = SpanTranslator(self.run)
        translator.feed(self.records)
        # An exporter gets the last step only when the next one begins: it might still see a checkpoint. Here it is
        # shown as it is, and another look begins anew.
        translator.step_began(self.head.step + 1, self.head.step_started_unix_ns)
        return translator.take()

    def points(self) -> list[Point]:
        translator = PointTranslator(self.run)
        translator.feed(self.records)
        translator.step_began(self.head.step, self.head.step_started_unix_ns)
        translator.settle()
        return translator.take()


def _read_journals(state_dir: Path) -> list[_Journal]:
    found = [journal for folder in node_folders(state_dir) for journal in find_journals(folder, {}).values()]
    return [_read(journal) for journal in sorted(found, key=_created_ns)]


def _read(journal: RankJournal) -> _Journal:
    journal.look()  # at the rank, which may be a process that was killed
    head = journal.reader.head()
    records = journal.reader.read(Position(), head.sequence).records
    if journal.lost and not (records and isinstance(records[-1], RunFinished)):
        records.append(journal.lost)
    return _Journal(journal.run, head, records)


def _created_ns(journal: RankJournal) -> int:
    """Return when a journal was begun, on a clock that no test moves."""
    first = segment_path(journal.folder, segment_indices(journal.folder)[0])
    return Segment(first).words()[CREATED_MONOTONIC_NS]
