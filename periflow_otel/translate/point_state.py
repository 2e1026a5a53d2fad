"""What the points of one rank depend on: what has added up, and which times are taken."""

from typing import Final

import msgspec

from periflow_otel.records import RankRun
from periflow_otel.translate.facts import restart_gap_ns
from periflow_otel.translate.histograms import ExplicitBuckets, ExponentialBuckets
from periflow_otel.translate.sampling import SamplerState
from periflow_otel.translate.walltime import RESTART, WallTime

MS: Final = 1_000_000


class PointState(msgspec.Struct, array_like=True):
    """Everything that the translation of the next record depends on."""

    last_ms: dict[str, int] = {}
    """Time of the last point of each user metric."""
    latest_ms: int = 0
    """Time of the last point of all."""
    values_step: int | None = None
    """The step of the last values."""
    values_from_ms: int = 0
    """Before this no value has its time any more."""
    dropped_values: int = 0
    is_changed: bool = True
    """The built-in instruments have not been shown as they are."""
    snapshot_ms: int = 0
    delta_start_unix_ns: int = 0
    last_unix_ns: int = 0
    """Time of the last record."""
    step: int = 0
    step_started_unix_ns: int = 0
    completed: dict[str, int] = {}
    redone: int = 0
    paused_ns: dict[str, int] = {}
    """Time of garbage collections in steps, by kind."""
    uploads: dict[str, int] = {}
    ended: dict[str, int] = {}
    """By outcome; empty while the run goes on."""
    last_checkpoint: int | None = None
    nonfinite: dict[str, int] = {}
    duration: ExplicitBuckets | ExponentialBuckets = msgspec.field(default_factory=ExplicitBuckets)
    gap: ExplicitBuckets | ExponentialBuckets = msgspec.field(default_factory=ExplicitBuckets)
    examples: dict[int, tuple[int, int, float]] = {}
    """For each bucket of the step duration: step, end time and duration of the last one in it that has a span."""
    sampler: SamplerState = msgspec.field(default_factory=SamplerState)
    wall_time: WallTime = msgspec.field(default_factory=WallTime)
    config: bytes = b""
    """What tells the run from others, as text by key, encoded: it is written down each time, and rarely looked at."""
    replaced: dict[str, str] = {}
    """What was in it before, until that is shown."""

    def config_values(self) -> dict[str, str]:
        """Return what tells the run from others, as text by key."""
        return msgspec.msgpack.decode(self.config, type=dict[str, str]) if self.config else {}

    def start_over(self) -> None:
        """Count from the last snapshot on."""
        self.delta_start_unix_ns = self.snapshot_ms * MS
        counts = self.completed, self.ended, self.uploads, self.nonfinite
        times = self.wall_time.spent_ns, self.paused_ns
        for sums in (*counts, *times):
            sums.update(dict.fromkeys(sums, 0))
        self.redone = 0
        self.examples.clear()
        self.duration.reset()
        self.gap.reset()


def beginning(run: RankRun, *, is_exponential: bool) -> PointState:
    """Return the state before the first record of a rank."""
    started = run.started_unix_ns
    state = PointState(
        step=run.initial_step,
        snapshot_ms=started // MS,
        delta_start_unix_ns=started,
        last_unix_ns=started,
        wall_time=WallTime(accounted_unix_ns=started, ended_step=run.initial_step),
    )
    if run.earlier:
        state.wall_time.spent_ns[RESTART] = restart_gap_ns(run)
    if is_exponential:
        state.duration, state.gap = ExponentialBuckets(), ExponentialBuckets()
    return state
