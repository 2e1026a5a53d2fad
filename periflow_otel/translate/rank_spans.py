"""The spans of one rank: what they are called, what they carry and where they belong."""

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import msgspec

from periflow_otel import ids, names
from periflow_otel.records import Checkpoint, Phase, Raised, RankLost, RankRun, RunFinished, StepEnded
from periflow_otel.run_config import without_user_info
from periflow_otel.translate.facts import KILLED, outcome_of, restart_gap_ns, save_type
from periflow_otel.translate.telemetry import AttributeValue, Event, Link, Span
from periflow_otel.translate.values import text, whole


class StepDraft(msgspec.Struct, array_like=True):
    """What is known of a step that is not exported yet."""

    step: int
    ended: StepEnded | None = None
    values: dict[str, Any] = {}
    """Span attributes from the user's metrics."""
    nonfinite: dict[str, None] = {}
    """Keys, in the order in which they were so for the first time."""
    dropped: int = 0
    """How many attributes were too many."""
    pause_ns: int = 0
    """Time of garbage collections."""
    has_checkpoint: bool = False
    phases: list[Phase] = []
    """Those that must not leave before it is known whether the sampler keeps the step."""


class RankSpans:
    """Makes the spans of one rank in one attempt, each as soon as all of it is known."""

    def __init__(self, run: RankRun) -> None:
        """Note what all of them have in common."""
        self._run = run
        self._who: dict[str, AttributeValue] = {
            names.RANK: run.rank,
            names.LOCAL_RANK: run.local_rank,
            names.NODE_RANK: run.node_rank,
        }
        self._target: dict[str, AttributeValue] = {}
        if run.total_steps is not None:
            self._target[names.TARGET_STEP] = run.total_steps
        launcher_trace_id, self._launcher_span_id = ids.parse_traceparent(run.traceparent)
        self._trace_state = run.tracestate if launcher_trace_id else ""
        self._run_trace_id = launcher_trace_id or ids.run_trace_id(run.seed, run.attempt)
        self._run_span_id = ids.run_span_id(run.seed, run.attempt, run.rank)
        self._links = (Link(self._run_trace_id, self._run_span_id),)

    def step_trace_id(self, step: int) -> ids.TraceId:
        """Return the trace of a step, which all ranks share."""
        return ids.step_trace_id(self._run.seed, self._run.attempt, step)

    def step(self, draft: StepDraft, ended: StepEnded, trace_id: ids.TraceId, checkpoint: Checkpoint | None) -> Span:
        """Return the span of a step, with the event of a checkpoint that was announced after its end."""
        run = self._run
        attributes = self._attributes_of(draft)
        if ended.gap_ns is not None:
            attributes[names.GAP] = ended.gap_ns / 1e9
        if ended.error is not None:
            attributes[names.ERROR_TYPE] = ended.error
        end_unix_ns = ended.start_unix_ns + ended.duration_ns
        return Span(
            name=names.STEP_SPAN,
            trace_id=trace_id,
            span_id=ids.step_span_id(run.seed, run.attempt, draft.step, run.rank),
            parent_span_id=ids.step_parent_id(run.seed, run.attempt, draft.step) if run.rank else None,
            start_unix_ns=ended.start_unix_ns,
            end_unix_ns=end_unix_ns,
            attributes=attributes,
            events=_exceptions(ended.error, end_unix_ns)
            + ((self._checkpoint_event(checkpoint),) if checkpoint else ()),
            links=self._links,
            error=ended.error,
            is_parent_remote=run.rank != 0,
            dropped_attributes=draft.dropped,
        )

    def _attributes_of(self, draft: StepDraft) -> dict[str, AttributeValue]:
        attributes: dict[str, AttributeValue] = {**draft.values, names.STEP: draft.step, **self._who}
        if draft.pause_ns:
            attributes[names.PAUSE] = draft.pause_ns / 1e9
        if draft.nonfinite:
            attributes[names.NONFINITE] = list(draft.nonfinite)
        return attributes

    def metrics(self, draft: StepDraft, time_unix_ns: int, number: int) -> Span:
        """Return what carries values of a step whose own span may have left, or is yet to come.

        Args:
            draft: The values.
            time_unix_ns: When they were given.
            number: Counts such spans of the rank.
        """
        run = self._run
        trace_id, parent = self._owner(draft.step if draft.step > run.initial_step else None)
        return Span(
            name=names.METRICS_SPAN,
            trace_id=trace_id,
            span_id=ids.metrics_span_id(run.seed, run.attempt, run.rank, number),
            parent_span_id=parent,
            start_unix_ns=time_unix_ns,
            end_unix_ns=time_unix_ns,
            attributes=self._attributes_of(draft),
            dropped_attributes=draft.dropped,
        )

    def phase(self, record: Phase) -> Span:
        """Return the span of a phase."""
        run = self._run
        attributes: dict[str, AttributeValue] = {**record.attributes, **self._who}
        if record.step is not None:
            attributes[names.STEP] = record.step
        if record.error is not None:
            attributes[names.ERROR_TYPE] = record.error
        trace_id, parent = self._owner(record.step)
        if record.parent:
            parent = ids.phase_span_id(run.seed, run.attempt, run.rank, record.parent)
        end_unix_ns = record.start_unix_ns + record.duration_ns
        return Span(
            name=record.name,
            trace_id=trace_id,
            span_id=ids.phase_span_id(run.seed, run.attempt, run.rank, record.number),
            parent_span_id=parent,
            start_unix_ns=record.start_unix_ns,
            end_unix_ns=end_unix_ns,
            attributes=attributes,
            events=_exceptions(record.error, end_unix_ns),
            error=record.error,
            trace_state="" if record.step else self._trace_state,
        )

    def checkpoint(self, record: Checkpoint) -> Span:
        """Return what carries the event of a checkpoint that was announced in an open step, or for another."""
        run = self._run
        trace_id, parent = self._owner(record.step if record.step > run.initial_step else None)
        return Span(
            name=names.CHECKPOINT_SPAN,
            trace_id=trace_id,
            span_id=ids.checkpoint_span_id(run.seed, run.attempt, run.rank, record.step, save_type(record)),
            parent_span_id=parent,
            start_unix_ns=record.time_unix_ns,
            end_unix_ns=record.time_unix_ns,
            attributes={names.STEP: record.step, **self._who},
            events=(self._checkpoint_event(record),),
            trace_state=self._trace_state if trace_id == self._run_trace_id else "",
        )

    def run_start(self, config: Mapping[str, AttributeValue]) -> Span:
        """Return the span that tells of the start, with what tells the run from others."""
        run = self._run
        return Span(
            name=names.RUN_START_SPAN,
            trace_id=self._run_trace_id,
            span_id=ids.run_start_span_id(run.seed, run.attempt, run.rank),
            parent_span_id=self._run_span_id,
            start_unix_ns=run.started_unix_ns,
            end_unix_ns=run.started_unix_ns,
            attributes={**config, **self._who, **self._target},
            events=self._restarts(),
            trace_state=self._trace_state,
        )

    def run(self, end: RunFinished | RankLost, attributes: Mapping[str, AttributeValue], raised: Raised | None) -> Span:
        """Return the span of the whole run.

        Args:
            end: How it has ended.
            attributes: What tells it from others, and what it has done.
            raised: More of the exception that has ended it.
        """
        run = self._run
        error = KILLED if isinstance(end, RankLost) else end.error
        parent = ids.run_span_id(run.seed, run.attempt, 0) if run.rank else self._launcher_span_id
        end_unix_ns = max(end.time_unix_ns, run.started_unix_ns)
        attributes = {**attributes, **self._who, **self._target, names.OUTCOME: outcome_of(end)}
        if error is not None:
            attributes[names.ERROR_TYPE] = error
        return Span(
            name=names.RUN_SPAN,
            trace_id=self._run_trace_id,
            span_id=self._run_span_id,
            parent_span_id=parent,
            start_unix_ns=run.started_unix_ns,
            end_unix_ns=end_unix_ns,
            attributes=attributes,
            events=_end_of(end, raised),
            error=error,
            is_parent_remote=parent is not None,
            trace_state=self._trace_state,
        )

    def _restarts(self) -> tuple[Event, ...]:
        """Tell of the attempt before this one, if it is known."""
        run, earlier = self._run, self._run.earlier
        if earlier is None:
            return ()
        attributes: dict[str, AttributeValue] = {
            names.ATTEMPT: earlier.attempt,
            names.LAST_STEP: earlier.last_step,
            names.LAST_CHECKPOINT: earlier.last_checkpoint,
            names.RESTART_GAP: restart_gap_ns(run) / 1e9,
            names.REDONE_STEPS: max(0, earlier.last_step - run.initial_step),
            **self._who,
        }
        return (Event(names.RUN_RESTART, run.started_unix_ns, attributes),)

    def _checkpoint_event(self, record: Checkpoint) -> Event:
        run = self._run
        attributes: dict[str, AttributeValue] = {
            names.STEP: record.step,
            names.SAVE_TYPE: save_type(record),
            names.TRIGGER_TIME: datetime.fromtimestamp(record.time_unix_ns / 1e9, timezone.utc).isoformat(),
            names.CHECKPOINT_ID: f"{run.run_id}/{run.attempt}/{record.step}/{run.rank}",
            **self._who,
        }
        if run.mode == "local":
            attributes[names.MODE] = run.mode
        if record.request_delay_ns is not None:
            attributes[names.REQUEST_DELAY] = record.request_delay_ns / 1e9
        return Event(names.CHECKPOINT_UPLOAD, record.time_unix_ns, attributes)

    def _owner(self, step: int | None) -> tuple[ids.TraceId, ids.SpanId]:
        """Return trace and span id of a step, or of the run."""
        if step is None:
            return self._run_trace_id, self._run_span_id
        run = self._run
        return self.step_trace_id(step), ids.step_span_id(run.seed, run.attempt, step, run.rank)


def _end_of(record: RunFinished | RankLost, raised: Raised | None) -> tuple[Event, ...]:
    """Return the event that tells of what ended a run: of an exception, or the last words of a fatal signal."""
    if isinstance(record, RunFinished):
        told = {names.EXCEPTION_MESSAGE: raised.message, names.EXCEPTION_STACKTRACE: raised.stack} if raised else {}
        return _exceptions(record.error, record.time_unix_ns, **told)
    if record.fatal is None:
        return ()
    attributes = {names.FATAL: text(record.fatal), **({names.CODE_STACKTRACE: record.stack} if record.stack else {})}
    return (Event(names.RUN_FATAL, record.time_unix_ns, attributes),)


def _exceptions(error: str | None, time_unix_ns: int, **told: str) -> tuple[Event, ...]:
    """Return the event that tells of an exception. To be killed is an error, but none."""
    if error is None or error == KILLED:
        return ()
    more = {name: whole(without_user_info(said)) for name, said in told.items() if said}
    return (Event(names.EXCEPTION, time_unix_ns, {names.EXCEPTION_TYPE: error, **more}),)
