"""What records say, whatever is made of them: how a run has ended, what kind of save a checkpoint is."""

from typing import Final

from periflow_otel.records import Checkpoint, Paused, RankLost, RankRun, RunFinished

KILLED: Final = "killed"
"""How a run has ended that could not say so itself, and of what its last step has failed."""
_INTERRUPTIONS: Final = frozenset(
    {"KeyboardInterrupt", "PreemptedError", "SIGTERMException", "TrialPruned", "UnfinishedTrainingError"}
)
"""What ends a run though nothing has failed: Ctrl-C, SIGTERM where it is heeded, a pruned trial, an early exit."""


def outcome_of(record: RunFinished | RankLost) -> str:
    """Return how a run has ended."""
    if isinstance(record, RankLost):
        return KILLED
    if record.error is None:
        return "finished"
    return "interrupted" if record.error.rpartition(".")[2] in _INTERRUPTIONS else "failed"


def pauses_of(record: Paused) -> list[tuple[str, int]]:
    """Return the nanoseconds of garbage collections by their kind, which is their generation."""
    return [(f"gc.{generation}", duration_ns) for generation, duration_ns in sorted(record.duration_ns.items())]


def restart_gap_ns(run: RankRun) -> int:
    """Return the time from the last sign of the attempt before to the start of this one; 0 if there was none."""
    return max(0, run.started_unix_ns - run.earlier.last_seen_unix_ns) if run.earlier else 0


def save_type(record: Checkpoint) -> str:
    """Return what kind of save a checkpoint is, as PeriFlow spells it."""
    return "EMERGENCY" if record.is_emergency else "NORMAL"
