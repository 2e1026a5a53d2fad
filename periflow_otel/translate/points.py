"""Records to metric points.

Every call of ``pf.metric`` becomes points of its own time, NaN included. The built-in instruments add up, and show
their state when a snapshot is taken. Times are whole milliseconds, and no two points of a stream share one: Prometheus
refuses those. What is taken later is not of an earlier time, and values of a step come after those of the step before:
so a time places a value on its step.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, Final

import msgspec

from periflow_otel import ids, names
from periflow_otel.names import Instrument
from periflow_otel.records import (
    Checkpoint,
    Config,
    LogLine,
    Metric,
    Paused,
    Phase,
    Raised,
    RankLost,
    RankRun,
    Record,
    RunFinished,
    StepEnded,
)
from periflow_otel.translate.facts import outcome_of, pauses_of, save_type
from periflow_otel.translate.point_state import MS, PointState, beginning
from periflow_otel.translate.sampling import StepSampler
from periflow_otel.translate.snapshots import Snapshots, exemplar
from periflow_otel.translate.telemetry import Observation, Observed, Point
from periflow_otel.translate.values import MAX_KEYS, TOO_MANY_KEYS, flatten, label, number


class PointTranslator:
    """Turns the records of one rank, in order, into metric points."""

    def __init__(
        self,
        run: RankRun,
        state: bytes = b"",
        *,
        is_delta: bool = False,
        observes_deltas: bool = False,
        is_exponential: bool = False,
        shows_steps: bool = False,
    ) -> None:
        """Begin, or go on from an encoded ``state``.

        Args:
            run: Whose records.
            state: What ``encode_state`` returned.
            is_delta: Counters and histograms count since the last snapshot, not since the run began.
            observes_deltas: So do sums that the agent has not counted but read.
            is_exponential: Histograms have exponential buckets.
            shows_steps: Whenever the step of the values is another one, a point says which.
        """
        self._run = run
        self._shows_steps = shows_steps
        self._rank = ((names.RANK, run.rank),)
        self._points: list[Point] = []
        self._streams: dict[str, tuple[Instrument, tuple[tuple[str, str | int], ...]]] = {}
        self.state = (
            msgspec.msgpack.decode(state, type=PointState) if state else beginning(run, is_exponential=is_exponential)
        )
        self._sampler = StepSampler(self.state.sampler)
        self._snapshots = Snapshots(run, is_delta=is_delta, observes_deltas=observes_deltas)
        self._observed: Sequence[Observation] = ()

    def encode_state(self) -> bytes:
        """Return what a translator needs to go on from here."""
        return msgspec.msgpack.encode(self.state)

    def take(self) -> list[Point]:
        """Return the points that were made since the last call."""
        points, self._points = self._points, []
        return points

    def step_began(self, step: int, started_unix_ns: int) -> None:
        """Note the step that is going on; it has no record yet. One without a start takes back a later one."""
        if step > self.state.step or (step < self.state.step and step and not started_unix_ns):
            self.state.step, self.state.step_started_unix_ns = step, started_unix_ns
            self.state.is_changed = True

    def observe(self, observed: Observed) -> None:
        """Show what the agent has seen of the rank in the next snapshot, whose time it gets: times of a rank rise."""
        self._observed = observed.values
        self._seen(observed.time_unix_ns)

    def settle(self, now_unix_ns: int | None = None) -> None:
        """Take a snapshot if something has changed since the last one, or if a time is given."""
        if self.state.is_changed or now_unix_ns is not None:
            self.snapshot(now_unix_ns)
        self.state.values_from_ms = max(self.state.values_from_ms, self.state.latest_ms)

    def dropped(self) -> dict[str, int]:
        """Return how many values had too many other keys beside them."""
        return {TOO_MANY_KEYS: self.state.dropped_values} if self.state.dropped_values else {}

    def feed(self, records: Iterable[Record]) -> None:
        """Translate some records."""
        for record in records:
            self._TRANSLATE[type(record)](self, record)

    def snapshot(self, now_unix_ns: int | None = None) -> None:
        """Make a point of every built-in instrument.

        Args:
            now_unix_ns: Time of the points. Default: that of the last record, so that a repetition is the same.
        """
        state = self.state
        state.is_changed = False
        time_ms = -(-(now_unix_ns or state.last_unix_ns) // MS)  # rounded up: what it shows has happened by then
        state.latest_ms = state.snapshot_ms = max(time_ms, state.snapshot_ms + 1, state.latest_ms)
        self._points += self._snapshots.take(state, self._observed)
        self._observed = ()

    def _pass_over(self, record: LogLine | Raised) -> None:
        """Do nothing: what was said makes no point."""

    def _add_values(self, record: Metric) -> None:
        state = self.state
        if record.step != state.values_step:
            self._begin_values(record.step, record.time_unix_ns // MS)
        time_ms = max(record.time_unix_ns // MS, state.values_from_ms)
        state.latest_ms = max(state.latest_ms, time_ms)
        told_step = None if record.during is None else record.step
        for key, value in record.values.items():
            if isinstance(value, float):
                self._add_value(key, value, time_ms, told_step)
            elif isinstance(value, dict):
                for inner, each in flatten(key, value):
                    self._add_number(inner, each, time_ms, told_step)
            else:
                self._add_number(key, value, time_ms, told_step)
        state.wall_time.note(record.time_unix_ns)
        state.last_unix_ns = max(state.last_unix_ns, record.time_unix_ns)

    def _begin_values(self, step: int, time_ms: int) -> None:
        """Go on with the values of another step, which come after all values before."""
        state = self.state
        state.values_step, state.values_from_ms = step, max(time_ms, state.latest_ms + 1)
        state.latest_ms = state.values_from_ms
        if self._shows_steps:
            self._points.append(Point(names.METRICS_STEP, self._rank, state.values_from_ms * MS, step))

    def _add_number(self, key: str, value: object, time_ms: int, told_step: int | None) -> None:
        if isinstance(value, float | int):
            self._add_value(key, number(value), time_ms, told_step)

    def _add_value(self, key: str, value: float, time_ms: int, told_step: int | None) -> None:
        last_ms = self.state.last_ms
        previous_ms = last_ms.get(key, 0)
        if previous_ms >= time_ms:
            time_ms = previous_ms + 1
            self.state.latest_ms = max(self.state.latest_ms, time_ms)
        elif not previous_ms and len(last_ms) >= MAX_KEYS:
            self.state.dropped_values += 1
            return
        last_ms[key] = time_ms
        if not isfinite(value):
            self._count_nonfinite(key)
        instrument, attributes = self._streams.get(key) or self._stream(key)
        # The time places a value on the step that was going on; where it is of another one, an exemplar leads there.
        exemplars = () if told_step is None else (exemplar(self._run, told_step, time_ms * MS, value),)
        self._points.append(Point(instrument, attributes, time_ms * MS, value, 0, exemplars))

    def _count_nonfinite(self, key: str) -> None:
        self.state.nonfinite[key] = self.state.nonfinite.get(key, 0) + 1
        self.state.is_changed = True

    def _stream(self, key: str) -> tuple[Instrument, tuple[tuple[str, str | int], ...]]:
        """Return what all points of a user's metric share, and keep it."""
        stream = self._streams[key] = (names.user_instrument(key), ((names.METRIC_KEY, key), *self._rank))
        return stream

    def _end_step(self, record: StepEnded) -> None:
        state = self.state
        end_unix_ns = record.start_unix_ns + record.duration_ns
        duration_s = record.duration_ns / 1e9
        outcome = "error" if record.error else "ok"
        state.completed[outcome] = state.completed.get(outcome, 0) + 1
        if self._run.earlier and record.step <= self._run.earlier.last_step:
            state.redone += 1
        bucket = state.duration.record(duration_s)
        if self._has_span(record, duration_s):
            state.examples[bucket] = (record.step, max(end_unix_ns, state.delta_start_unix_ns), duration_s)
        if record.gap_ns is not None:
            state.gap.record(record.gap_ns / 1e9)
        self.step_began(record.step, record.start_unix_ns)
        state.wall_time.end_step(record)
        self._seen(end_unix_ns)

    def _has_span(self, record: StepEnded, duration_s: float) -> bool:
        """Tell whether a step has a span, as far as can be told at its end."""
        run = self._run
        if run.orders.sampling_ratio >= 1:
            return True
        trace_id = ids.step_trace_id(run.seed, run.attempt, record.step)
        return self._sampler.keep(trace_id, run.orders.sampling_ratio, duration_s, is_marked=record.error is not None)

    def _add_pause(self, record: Paused) -> None:
        for kind, duration_ns in pauses_of(record):
            self.state.paused_ns[kind] = self.state.paused_ns.get(kind, 0) + duration_ns
        self._seen(record.time_unix_ns)

    def _add_checkpoint(self, record: Checkpoint) -> None:
        kind = save_type(record)
        self.state.uploads[kind] = self.state.uploads.get(kind, 0) + 1
        self.state.last_checkpoint = max(record.step, self.state.last_checkpoint or 0)
        self.state.wall_time.end_checkpoint(record)
        self._seen(record.time_unix_ns)

    def _set_config(self, record: Config) -> None:
        """Take what tells the run from others; that of rank 0, as others say the same."""
        config = {key: label(value) for key, value in record.values.items()}
        before = self.state.config_values()
        if self._run.rank == 0 and config != before:
            self.state.replaced.update((key, before[key]) for key in before if before[key] != config.get(key))
            self.state.config = msgspec.msgpack.encode(config)
            self._snapshots.show_config()
            self.state.is_changed = True

    def _add_phase(self, record: Phase) -> None:
        self.state.wall_time.end_phase(record)
        self._seen(record.start_unix_ns + record.duration_ns)

    def _finish(self, record: RunFinished) -> None:
        self.state.wall_time.close(record.time_unix_ns)
        self._end(record)

    def _lose(self, record: RankLost) -> None:
        if record.last_started_step > self.state.wall_time.ended_step:
            self.state.completed["error"] = self.state.completed.get("error", 0) + 1
        self.step_began(record.last_started_step, record.last_started_unix_ns)
        self.state.wall_time.lose(record)
        self._end(record)

    def _end(self, record: RunFinished | RankLost) -> None:
        self.state.ended[outcome_of(record)] = 1
        self._seen(record.time_unix_ns)

    def _seen(self, unix_ns: int) -> None:
        self.state.is_changed = True
        self.state.last_unix_ns = max(self.state.last_unix_ns, unix_ns)

    _TRANSLATE: Final[Mapping[type[Record], Callable[[Any, Any], None]]] = {
        Metric: _add_values,
        StepEnded: _end_step,
        Checkpoint: _add_checkpoint,
        Config: _set_config,
        Phase: _add_phase,
        LogLine: _pass_over,
        Raised: _pass_over,
        Paused: _add_pause,
        RunFinished: _finish,
        RankLost: _lose,
    }
