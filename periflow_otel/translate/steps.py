"""Records to spans.

Checkpoints and metrics are often reported after ``end_step``, and OpenTelemetry ignores events on an ended span. So a
step is held until the next one begins.
"""

import json
import math
from datetime import datetime, timezone
from typing import Any, Final

import msgspec

from periflow_otel import ids, names
from periflow_otel.records import Checkpoint, Metric, Phase, RankLost, Record, RunFinished, RunStarted, StepEnded
from periflow_otel.translate.sampling import SamplerState, StepSampler
from periflow_otel.translate.telemetry import AttributeValue, Event, Link, Span

SAMPLED_OUT: Final = "sampled_out"
"""Why a step has no span: a ratio was asked for, and nothing is remarkable about the step."""


class StepDraft(msgspec.Struct, array_like=True):
    """What is known of a step that is not exported yet."""

    step: int
    ended: StepEnded | None = None
    gap_ns: int | None = None
    values: dict[str, Any] = {}
    """Span attributes from the user's metrics."""
    nonfinite: list[str] = []
    checkpoints: list[Checkpoint] = []
    phases: list[Phase] = []


class SpanState(msgspec.Struct, array_like=True):
    """Everything that the translation of the next record depends on."""

    is_begun: bool = False
    draft: StepDraft | None = None
    last_end_unix_ns: int = 0
    last_step: int = 0
    steps: int = 0
    last_checkpoint: int = 0
    sampled_out: int = 0
    sampler: SamplerState = msgspec.field(default_factory=SamplerState)


class SpanTranslator:
    """Turns the records of one rank, in order, into spans."""

    def __init__(self, run: RunStarted, state: bytes = b"") -> None:
        """Begin, or go on from an encoded ``state``."""
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
        self._run_trace_id = launcher_trace_id or ids.run_trace_id(run.run_id, run.attempt)
        self._run_span_id = ids.run_span_id(run.run_id, run.attempt, run.rank)
        self.state = msgspec.msgpack.decode(state, type=SpanState) if state else SpanState(last_step=run.initial_step)
        self._sampler = StepSampler(self.state.sampler)
        self._spans: list[Span] = []
        if not self.state.is_begun:
            self.state.is_begun = True
            self._spans.append(self._run_start_span())

    def encode_state(self) -> bytes:
        """Return what a translator needs to go on from here."""
        return msgspec.msgpack.encode(self.state)

    def take(self) -> list[Span]:
        """Return the spans that are complete, once."""
        spans, self._spans = self._spans, []
        return spans

    def step_began(self, step: int, started_unix_ns: int) -> None:
        """Let go of the step before: the records of all steps before ``step`` have been fed."""
        del started_unix_ns  # its span begins when it has ended
        draft = self.state.draft
        if draft and draft.ended and draft.step < step:
            self._release(draft)

    def settle(self, now_unix_ns: int | None = None) -> None:
        """Do nothing: spans do not add up."""

    def dropped(self) -> dict[str, int]:
        """Return how many steps the sampler left out."""
        return {SAMPLED_OUT: self.state.sampled_out} if self.state.sampled_out else {}

    def feed(self, record: Record) -> None:
        """Translate one record."""
        match record:
            case StepEnded():
                self._end_step(record)
            case Metric():
                self._add_values(record)
            case Checkpoint():
                self._add_checkpoint(record)
            case Phase():
                self._add_phase(record)
            case RunFinished():
                self._finish("failed" if record.error else "finished", record.time_unix_ns, record.error)
            case RankLost():
                self._lose(record)

    def _draft(self, step: int) -> StepDraft | None:
        """Return the draft of a step, or None if its span has left already."""
        draft = self.state.draft
        if draft and draft.step < step:
            self._release(draft)
            draft = None
        if draft is None and step > self.state.last_step:
            draft = self.state.draft = StepDraft(step)
        return draft if draft and draft.step == step else None

    def _end_step(self, record: StepEnded) -> None:
        state = self.state
        if draft := self._draft(record.step):
            draft.ended = record
            if state.last_end_unix_ns:
                draft.gap_ns = max(0, record.start_unix_ns - state.last_end_unix_ns)
        state.last_end_unix_ns = record.start_unix_ns + record.duration_ns
        state.steps += 1

    def _add_values(self, record: Metric) -> None:
        draft = self._draft(record.step)
        if draft is None:
            return
        for key, value in record.values.items():
            if value is None or isinstance(value, list | dict):
                continue
            draft.values[names.METRIC_PREFIX + key] = attribute(value)
            if isinstance(value, float) and not math.isfinite(value) and key not in draft.nonfinite:
                draft.nonfinite.append(key)

    def _add_checkpoint(self, record: Checkpoint) -> None:
        self.state.last_checkpoint = record.step
        draft = self._draft(record.step)
        if draft:
            draft.checkpoints.append(record)
        if draft and draft.ended:
            self._release(draft)  # the upload waits for this event
        else:
            self._spans.append(self._checkpoint_span(record))

    def _add_phase(self, record: Phase) -> None:
        draft = self._draft(record.step) if record.step is not None else None
        if draft and not draft.ended:
            draft.phases.append(record)
        else:
            self._spans.append(self._phase_span(record))

    def _release(self, draft: StepDraft) -> None:
        """Emit a step with its phases, or neither."""
        self.state.draft = None
        self.state.last_step = draft.step
        if draft.ended is None:  # its end was lost
            return
        trace_id = ids.step_trace_id(self._run.run_id, self._run.attempt, draft.step)
        is_marked = bool(draft.ended.error or draft.nonfinite or draft.checkpoints)
        if self._sampler.keep(trace_id, self._run.sampling_ratio, draft.ended.duration_ns / 1e9, is_marked=is_marked):
            self._spans += [self._phase_span(phase) for phase in draft.phases]
            self._spans.append(self._step_span(draft, draft.ended, trace_id))
        else:
            self.state.sampled_out += 1

    def _lose(self, record: RankLost) -> None:
        draft = self._draft(record.last_started_step)
        if draft and not draft.ended:
            duration_ns = max(0, record.time_unix_ns - record.last_started_unix_ns)
            draft.ended = StepEnded(draft.step, record.last_started_unix_ns, duration_ns, "killed")
        self._finish("killed", record.time_unix_ns, "killed")

    def _finish(self, outcome: str, time_unix_ns: int, error: str | None) -> None:
        if self.state.draft:
            self._release(self.state.draft)
        self._spans.append(self._run_span(outcome, time_unix_ns, error))

    def _step_span(self, draft: StepDraft, ended: StepEnded, trace_id: ids.TraceId) -> Span:
        run = self._run
        attributes: dict[str, AttributeValue] = {names.STEP: draft.step, **self._who, **draft.values}
        if draft.gap_ns is not None:
            attributes[names.GAP] = draft.gap_ns / 1e9
        if draft.nonfinite:
            attributes[names.NONFINITE] = draft.nonfinite
        end_unix_ns = ended.start_unix_ns + ended.duration_ns
        events = [self._checkpoint_event(each) for each in draft.checkpoints if not each.is_step_open]
        if ended.error:
            events.insert(0, Event(names.EXCEPTION, end_unix_ns, {names.EXCEPTION_TYPE: ended.error}))
        return Span(
            name=names.STEP_SPAN,
            trace_id=trace_id,
            span_id=ids.step_span_id(run.run_id, run.attempt, draft.step, run.rank),
            parent_span_id=ids.step_span_id(run.run_id, run.attempt, draft.step, 0) if run.rank else None,
            start_unix_ns=ended.start_unix_ns,
            end_unix_ns=end_unix_ns,
            attributes=attributes,
            events=tuple(events),
            links=(Link(self._run_trace_id, self._run_span_id),),
            error=ended.error,
        )

    def _phase_span(self, record: Phase) -> Span:
        run = self._run
        attributes: dict[str, AttributeValue] = {**self._who}
        attributes |= {key: attribute(value) for key, value in record.attributes.items() if value is not None}
        if record.step is None:
            trace_id, parent = self._run_trace_id, self._run_span_id
        else:
            attributes[names.STEP] = record.step
            trace_id = ids.step_trace_id(run.run_id, run.attempt, record.step)
            parent = ids.step_span_id(run.run_id, run.attempt, record.step, run.rank)
        if record.parent:
            parent = ids.phase_span_id(run.run_id, run.attempt, run.rank, record.parent)
        end_unix_ns = record.start_unix_ns + record.duration_ns
        return Span(
            name=record.name,
            trace_id=trace_id,
            span_id=ids.phase_span_id(run.run_id, run.attempt, run.rank, record.number),
            parent_span_id=parent,
            start_unix_ns=record.start_unix_ns,
            end_unix_ns=end_unix_ns,
            attributes=attributes,
            events=(Event(names.EXCEPTION, end_unix_ns, {names.EXCEPTION_TYPE: record.error}),) if record.error else (),
            error=record.error,
        )

    def _checkpoint_span(self, record: Checkpoint) -> Span:
        """Carry the event of a checkpoint that was announced in an open step, which cannot be exported yet."""
        run = self._run
        if record.is_step_open:
            trace_id = ids.step_trace_id(run.run_id, run.attempt, record.step)
            parent = ids.step_span_id(run.run_id, run.attempt, record.step, run.rank)
        else:
            trace_id, parent = self._run_trace_id, self._run_span_id
        return Span(
            name=names.CHECKPOINT_SPAN,
            trace_id=trace_id,
            span_id=ids.checkpoint_span_id(run.run_id, run.attempt, run.rank, record.step),
            parent_span_id=parent,
            start_unix_ns=record.time_unix_ns,
            end_unix_ns=record.time_unix_ns,
            attributes={names.STEP: record.step, **self._who},
            events=(self._checkpoint_event(record),),
        )

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

    def _run_start_span(self) -> Span:
        run = self._run
        return Span(
            name=names.RUN_START_SPAN,
            trace_id=self._run_trace_id,
            span_id=ids.run_start_span_id(run.run_id, run.attempt, run.rank),
            parent_span_id=self._run_span_id,
            start_unix_ns=run.started_unix_ns,
            end_unix_ns=run.started_unix_ns,
            attributes=self._who | self._target,
        )

    def _run_span(self, outcome: str, time_unix_ns: int, error: str | None) -> Span:
        run, state = self._run, self.state
        parent = ids.run_span_id(run.run_id, run.attempt, 0) if run.rank else self._launcher_span_id
        attributes: dict[str, AttributeValue] = {
            **self._who,
            **self._target,
            names.OUTCOME: outcome,
            names.RUN_STEPS: state.steps,
            names.LAST_STEP: max(state.last_step, run.initial_step),
        }
        if state.last_checkpoint:
            attributes[names.LAST_CHECKPOINT] = state.last_checkpoint
        return Span(
            name=names.RUN_SPAN,
            trace_id=self._run_trace_id,
            span_id=self._run_span_id,
            parent_span_id=parent,
            start_unix_ns=run.started_unix_ns,
            end_unix_ns=max(time_unix_ns, run.started_unix_ns),
            attributes=attributes,
            error=error,
        )


def save_type(record: Checkpoint) -> str:
    """Return what kind of save a checkpoint is, as PeriFlow spells it."""
    return "EMERGENCY" if record.is_emergency else "NORMAL"


def attribute(value: object) -> AttributeValue:
    """Turn a recorded value into an attribute's: no integer beyond 64 bits, nothing nested."""
    match value:
        case bool() | float() | str():
            return value
        case int():
            return number(value)
        case _:
            return json.dumps(value)


def number(value: int) -> int | float:
    """Return an integer as it is where it fits 64 bits, else as the nearest float."""
    if -(1 << 63) <= value < 1 << 63:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)
