"""Points of the built-in instruments of one rank, as they are at one moment."""

from collections.abc import Iterable, Iterator
from typing import Final

from periflow_otel import ids, names
from periflow_otel.names import Instrument
from periflow_otel.records import RankRun
from periflow_otel.translate.point_state import MS, PointState
from periflow_otel.translate.telemetry import Exemplar, Observation, Point

CONFIG_INTERVAL_NS: Final = 240_000_000_000
"""How often it is shown what tells the run from others: Prometheus forgets after five minutes."""


class Snapshots:
    """Makes them. What it remembers of those before may be lost: then a value is shown again, or a growth is not."""

    def __init__(self, run: RankRun, *, is_delta: bool, observes_deltas: bool) -> None:
        """Begin with nothing shown; the arguments are those of a translator."""
        self._run = run
        self._is_delta = is_delta
        self._observes_deltas = observes_deltas
        self._rank = ((names.RANK, run.rank),)
        self._config_due_unix_ns = 0
        self._observed_before: dict[tuple[object, ...], tuple[float, int]] = {}

    def show_config(self) -> None:
        """Show what tells the run from others the next time, as it has changed."""
        self._config_due_unix_ns = 0

    def take(self, state: PointState, observed: Iterable[Observation]) -> list[Point]:
        """Return a point for each stream at the time of the snapshot.

        Args:
            state: What has added up; where deltas are wanted, it starts over.
            observed: What the agent has seen of the rank since the last time.
        """
        unix_ns = state.snapshot_ms * MS
        start_unix_ns = state.delta_start_unix_ns if self._is_delta else self._run.started_unix_ns
        points = [Point(instrument, self._rank, unix_ns, value) for instrument, value in self._gauges(state)]
        points += self._config(state, unix_ns)
        points += [
            Point(instrument, (*attributes, *self._rank), unix_ns, value, start_unix_ns, is_delta=self._is_delta)
            for instrument, value, attributes in self._sums(state)
            if value  # else nothing is new since the last snapshot
        ]
        points += self._histograms(state, unix_ns, start_unix_ns)
        points += self._observations(observed, unix_ns)
        if self._is_delta:
            state.start_over()
        return points

    def _gauges(self, state: PointState) -> Iterator[tuple[Instrument, float]]:
        run = self._run
        yield names.RUN_UP, 0 if state.ended else 1
        yield names.STEP_CURRENT, state.step
        yield names.STEP_LAST_ENDED, state.wall_time.ended_step
        if run.total_steps is not None:
            yield names.STEP_TARGET, run.total_steps
        if run.work and run.work.peak_flops is not None:
            yield names.WORK_PEAK, run.work.peak_flops
        if state.step_started_unix_ns:
            yield names.STEP_STARTED_AT, state.step_started_unix_ns / 1e9
        if state.last_checkpoint is not None:
            yield names.CHECKPOINT_LAST_STEP, state.last_checkpoint

    def _config(self, state: PointState, unix_ns: int) -> Iterator[Point]:
        """Yield what tells the run from others, now and then: it changes hardly ever."""
        if not state.config or unix_ns < self._config_due_unix_ns:
            return
        self._config_due_unix_ns = unix_ns + CONFIG_INTERVAL_NS
        for values, is_valid in ((state.replaced, 0), (state.config_values(), 1)):
            for key, value in values.items():
                attributes = (names.METRIC_KEY, key), (names.CONFIG_VALUE, value), *self._rank
                yield Point(names.RUN_CONFIG, attributes, unix_ns, is_valid)
        state.replaced.clear()

    def _sums(self, state: PointState) -> Iterator[tuple[Instrument, float, tuple[tuple[str, str], ...]]]:
        for attribute, instrument, sums in (
            (names.STEP_OUTCOME, names.STEP_COMPLETED, state.completed),
            (names.OUTCOME, names.RUN_ENDED, state.ended),
            (names.SAVE_TYPE, names.CHECKPOINT_UPLOADS, state.uploads),
            (names.METRIC_KEY, names.METRIC_NONFINITE, state.nonfinite),
        ):
            for key, count in sums.items():
                yield instrument, count, ((attribute, key),)
        for kind, spent_ns in state.wall_time.spent_ns.items():
            yield names.TIME, spent_ns / 1e9, ((names.TIME_KIND, kind),)
        for kind, paused_ns in state.paused_ns.items():
            yield names.STEP_PAUSE, paused_ns / 1e9, ((names.TIME_KIND, kind),)
        yield names.STEP_REDONE, state.redone, ()
        for kind, amount in self._run.work.kinds if self._run.work else ():
            yield names.WORK_DONE, amount * state.completed.get("ok", 0), ((names.WORK_KIND, kind),)

    def _histograms(self, state: PointState, unix_ns: int, start_unix_ns: int) -> Iterator[Point]:
        examples = tuple(exemplar(self._run, *example) for example in state.examples.values())
        for instrument, buckets, exemplars in (
            (names.STEP_DURATION, state.duration, examples),
            (names.STEP_GAP, state.gap, ()),
        ):
            if buckets.count:
                value = buckets.snapshot()
                yield Point(instrument, self._rank, unix_ns, value, start_unix_ns, exemplars, self._is_delta)

    def _observations(self, observed: Iterable[Observation], unix_ns: int) -> Iterator[Point]:
        for each in observed:
            attributes = (*each.attributes, *self._rank)
            if not self._observes_deltas or each.instrument.kind != "counter":
                yield Point(each.instrument, attributes, unix_ns, each.value, each.start_unix_ns)
            elif growth := self._growth(each, unix_ns):
                yield Point(each.instrument, attributes, unix_ns, *growth, is_delta=True)

    def _growth(self, seen: Observation, unix_ns: int) -> tuple[float, int] | None:
        """Return by how much a sum has grown since it was seen last, and when that was; None if it has not.

        What was before it was seen first, nobody knows who has it.
        """
        stream = seen.instrument.name, seen.attributes, seen.start_unix_ns
        before, self._observed_before[stream] = self._observed_before.get(stream), (seen.value, unix_ns)
        return (seen.value - before[0], before[1]) if before is not None and seen.value > before[0] else None


def exemplar(run: RankRun, step: int, time_unix_ns: int, value: float) -> Exemplar:
    """Return a value with the span of the step that it is of."""
    trace_id = ids.step_trace_id(run.seed, run.attempt, step)
    return Exemplar(time_unix_ns, value, trace_id, ids.step_span_id(run.seed, run.attempt, step, run.rank))
