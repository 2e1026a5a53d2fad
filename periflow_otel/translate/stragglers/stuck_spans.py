"""What was found of stuck ranks, as a span. Pure.

It is in the trace of the step that does not end or begin, which all ranks of all nodes share.
"""

from typing import Final, NamedTuple

from periflow_otel import ids, names
from periflow_otel.records import RankRun
from periflow_otel.translate.stragglers.stacks import ranges, traceback_text
from periflow_otel.translate.stragglers.stuck import Finding, Group, Witness
from periflow_otel.translate.telemetry import AttributeValue, Event, Span
from periflow_otel.translate.values import text

STUCK: Final = "stuck"


class StuckReport(NamedTuple):
    """What is said at one time of ranks that do not go on."""

    finding: Finding
    witnesses: tuple[Witness, ...]
    time_unix_ns: int
    waited_s: float
    number: int = 1
    """Counts what is said of the same, from 1."""
    is_over: bool = False
    """They have gone on."""

    @property
    def rank(self) -> int:
        """The rank that it is about, the first of those to blame."""
        return self.finding.groups[0].ranks[0]

    @property
    def step(self) -> int:
        """The step that does not end, or does not begin: the same on all nodes."""
        return max(each.step + (not each.is_step_open) for each in self.witnesses)

    @property
    def phase(self) -> str:
        """Whether the rank to blame is in a step, or in the gap between two."""
        witness = next(each for each in self.witnesses if each.rank == self.rank)
        return "step" if witness.is_step_open else "gap"


def describe(report: StuckReport) -> str:
    """Say it in one line."""
    where = f"in step {report.step}" if report.phase == "step" else f"before step {report.step}"
    if report.is_over:
        return f"went on after {report.waited_s:.0f} s {where}: {report.finding.describe()}"
    return f"stuck for {report.waited_s:.0f} s {where}: {report.finding.describe()}"


def stuck_span(run: RankRun, report: StuckReport) -> Span | None:
    """Return the span of a report; None where nothing at all is to be kept.

    Args:
        run: The rank that the report is about.
        report: What was found.
    """
    if run.orders.sampling_ratio < 0:
        return None
    finding = report.finding
    number = 0 if report.is_over else report.number
    attributes: dict[str, AttributeValue] = {
        names.STEP: report.step,
        names.RANK: run.rank,
        names.LOCAL_RANK: run.local_rank,
        names.NODE_RANK: run.node_rank,
        names.STUCK_PHASE: report.phase,
        names.STUCK_SECONDS: report.waited_s,
        names.STUCK_RANKS: finding.who(),
        names.STUCK_PLACE: finding.place(),
        names.STUCK_SUMMARY: text(describe(report)),
        names.STUCK_OVER: report.is_over,
        **({} if report.is_over else {names.ERROR_TYPE: STUCK}),
    }
    return Span(
        name=names.STUCK_SPAN,
        trace_id=ids.step_trace_id(run.seed, run.attempt, report.step),
        span_id=ids.stuck_span_id(run.seed, run.attempt, report.step, run.node_rank, number),
        parent_span_id=ids.step_span_id(run.seed, run.attempt, report.step, run.rank),
        start_unix_ns=report.time_unix_ns - int(report.waited_s * 1e9),
        end_unix_ns=report.time_unix_ns,
        attributes=attributes,
        events=() if report.is_over else tuple(_event(group, report.time_unix_ns) for group in finding.groups),
        error=None if report.is_over else STUCK,
    )


def _event(group: Group, time_unix_ns: int) -> Event:
    attributes: dict[str, AttributeValue] = {
        names.STUCK_RANKS: ranges(group.ranks),
        names.STUCK_ROLE: "culprit" if group.is_culprit else "waiting",
        names.STUCK_SUMMARY: text(group.describe()),
        names.CODE_STACKTRACE: traceback_text(group.stack),
    }
    return Event(names.STUCK_STACK, time_unix_ns, attributes)
