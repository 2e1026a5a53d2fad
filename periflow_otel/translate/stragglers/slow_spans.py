"""What was found of a rank that holds up a step, or all, as a span in the trace of the step. Pure."""

from typing import NamedTuple

from periflow_otel import ids, names
from periflow_otel.records import RankRun
from periflow_otel.translate.stragglers.activities import collective
from periflow_otel.translate.stragglers.slow import Culprit
from periflow_otel.translate.stragglers.stacks import Stack, ranges, traceback_text, user_frame
from periflow_otel.translate.stragglers.stuck import place_of
from periflow_otel.translate.telemetry import AttributeValue, Event, Span
from periflow_otel.translate.values import text


class Slowness(NamedTuple):
    """What is said of a rank that holds up others."""

    step: int
    start_unix_ns: int
    end_unix_ns: int
    excess_s: float
    """By how much it makes the step longer than usual, or each step longer than it could be."""
    culprit: Culprit
    is_lasting: bool = False
    """It holds up all steps, as looks at random moments between start and end show; else it was this one."""


def slow_span(run: RankRun, slow: Slowness) -> Span | None:
    """Return the span that says it; None where nothing at all is to be kept.

    Args:
        run: The rank that holds up others.
        slow: What was found.
    """
    if run.orders.sampling_ratio < 0:
        return None
    culprit = slow.culprit
    waiting: dict[Stack, list[int]] = {}
    for rank, stack in culprit.waiting.items():
        waiting.setdefault(stack, []).append(rank)
    attributes: dict[str, AttributeValue] = {
        names.STEP: slow.step,
        names.RANK: run.rank,
        names.LOCAL_RANK: run.local_rank,
        names.NODE_RANK: run.node_rank,
        names.STUCK_RANKS: ranges(culprit.ranks),
        names.STUCK_PLACE: culprit.place,
        names.STUCK_SUMMARY: text(_summary(slow)),
        names.SLOW_EXCESS: slow.excess_s,
        names.SLOW_DOING: culprit.doing.value,
        names.SLOW_LASTING: slow.is_lasting,
    }
    return Span(
        name=names.SLOW_SPAN,
        trace_id=ids.step_trace_id(run.seed, run.attempt, slow.step),
        span_id=ids.slow_span_id(run.seed, run.attempt, slow.step, run.node_rank, is_lasting=slow.is_lasting),
        parent_span_id=ids.step_span_id(run.seed, run.attempt, slow.step, run.rank),
        start_unix_ns=slow.start_unix_ns,
        end_unix_ns=slow.end_unix_ns,
        attributes=attributes,
        events=(
            _event("culprit", culprit.ranks, culprit.stack, slow.end_unix_ns),
            *(_event("waiting", tuple(ranks), stack, slow.end_unix_ns) for stack, ranks in waiting.items()),
        ),
    )


def _summary(slow: Slowness) -> str:
    ranks = slow.culprit.ranks
    who = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranges(ranks)}"
    when = "in each step" if slow.is_lasting else f"more than usual in step {slow.step}"
    return f"{slow.excess_s * 1000:.0f} ms {when}: {who} in {slow.culprit.place}"


def _event(role: str, ranks: tuple[int, ...], stack: Stack, time_unix_ns: int) -> Event:
    frame = (role == "waiting" and collective(stack)) or user_frame(stack)
    attributes: dict[str, AttributeValue] = {
        names.STUCK_RANKS: ranges(ranks),
        names.STUCK_ROLE: role,
        names.STUCK_SUMMARY: text(place_of(frame)),
        names.CODE_STACKTRACE: traceback_text(stack),
    }
    return Event(names.STUCK_STACK, time_unix_ns, attributes)
