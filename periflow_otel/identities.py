"""What spans of a run are called, derived alike by the rank that is in them and by the agent that exports them."""

from typing import NamedTuple

from periflow_otel import ids
from periflow_otel.records import RankRun


class SpanIdentity(NamedTuple):
    """What a span is called when it is exported."""

    trace_id: ids.TraceId
    span_id: ids.SpanId
    is_sampled: bool


def identify(run: RankRun, step: int | None, phase: int = 0) -> SpanIdentity:
    """Derive the ids that the span of a step, of a phase, or of the run has.

    Args:
        run: Whose span it is.
        step: The step; None outside of steps.
        phase: Number of the phase; 0 for the step or the run itself.
    """
    ratio = run.orders.sampling_ratio
    if step is None:
        launcher_trace_id, _ = ids.parse_traceparent(run.traceparent)
        trace_id = launcher_trace_id or ids.run_trace_id(run.seed, run.attempt)
        is_sampled = ratio >= 0
    else:
        trace_id = ids.step_trace_id(run.seed, run.attempt, step)
        is_sampled = ids.is_sampled(trace_id, ratio)
    return SpanIdentity(trace_id, _span_id(run, step, phase), is_sampled)


def _span_id(run: RankRun, step: int | None, phase: int) -> ids.SpanId:
    if phase:
        return ids.phase_span_id(run.seed, run.attempt, run.rank, phase)
    if step is None:
        return ids.run_span_id(run.seed, run.attempt, run.rank)
    return ids.step_span_id(run.seed, run.attempt, step, run.rank)
