"""Records to spans.

Checkpoints and metrics are often reported after ``end_step``, and OpenTelemetry ignores events on an ended span. So a
step is held until the next one begins.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from math import isfinite
from typing import Any, Final

import msgspec

from periflow_otel import ids, names
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
from periflow_otel.translate.facts import KILLED
from periflow_otel.translate.rank_spans import RankSpans, StepDraft
from periflow_otel.translate.sampling import SamplerState, StepSampler
from periflow_otel.translate.telemetry import AttributeValue, Observed, Span
from periflow_otel.translate.values import MAX_KEYS, TOO_MANY_KEYS, flatten, text, to_attribute

SAMPLED_OUT: Final = "sampled_out"
"""Why a step or a phase in it has no span: a ratio was asked for, and nothing is remarkable about the step."""


class SpanState(msgspec.Struct, array_like=True):
    """Everything that the translation of the next record depends on."""

    draft: StepDraft | None = None
    ended_step: int = 0
    steps: int = 0
    told: int = 0
    """How many metrics were told to be of another step."""
    last_checkpoint: int | None = None
    dropped: dict[str, int] = {}
    sampler: SamplerState = msgspec.field(default_factory=SamplerState)
    has_started: bool = True
    """Whether the span that tells of the start has left."""
    config: bytes = b""
    """Attributes that tell the run from others, encoded: they are written down each time, and rarely looked at."""
    raised: Raised | None = None
    """More of the exception that ends the run."""


class SpanTranslator:
    """Turns the records of one rank, in order, into spans."""

    def __init__(self, run: RankRun, state: bytes = b"", *, has_events: bool = True) -> None:
        """Begin, or go on from an encoded ``state``.

        Args:
            run: Whose records.
            state: What ``encode_state`` returned.
            has_events: Spans carry events; else somebody else does.
        """
        self._run = run
        self._has_events = has_events
        self._make = RankSpans(run)
        self._spans: list[Span] = []
        if state:
            self.state = msgspec.msgpack.decode(state, type=SpanState)
        else:
            self.state = SpanState(ended_step=run.initial_step, has_started=False)
        self._sampler = StepSampler(self.state.sampler)

    def encode_state(self) -> bytes:
        """Return what a translator needs to go on from here."""
        return msgspec.msgpack.encode(self.state)

    def take(self) -> list[Span]:
        """Return the spans that are complete, once."""
        spans, self._spans = self._spans, []
        if not self.state.has_started:  # not before: the first record may tell what goes with it
            self.state.has_started = True
            spans.insert(0, self._make.run_start(self._config))
        return spans if self._has_events else [msgspec.structs.replace(span, events=()) for span in spans]

    def step_began(self, step: int, started_unix_ns: int) -> None:
        """Let go of the step before: the records of all steps before ``step`` have been fed."""
        del started_unix_ns  # its span begins when it has ended
        draft = self.state.draft
        if draft and draft.ended and draft.step < step:
            self._release(draft)

    def observe(self, observed: Observed) -> None:
        """Do nothing: it makes no span."""

    def settle(self, now_unix_ns: int | None = None) -> None:
        """Do nothing: spans do not add up."""

    def dropped(self) -> dict[str, int]:
        """Return how many spans, and values on spans, were left out, by reason."""
        return dict(self.state.dropped)

    def feed(self, records: Iterable[Record]) -> None:
        """Translate some records."""
        for record in records:
            self._TRANSLATE[type(record)](self, record)

    def _pass_over(self, record: LogLine) -> None:
        """Do nothing: what was said makes no span."""

    def _set_config(self, record: Config) -> None:
        self.state.config = msgspec.msgpack.encode(_config_attributes(record))

    def _draft(self, step: int) -> StepDraft | None:
        """Return the draft of a step, or None if there is one of a later step."""
        draft = self.state.draft
        if draft and draft.step < step:
            self._release(draft)
            draft = None
        if draft is None:
            draft = self.state.draft = StepDraft(step)
        return draft if draft.step == step else None

    def _end_step(self, record: StepEnded) -> None:
        self._close(record)
        self.state.ended_step = record.step
        self.state.steps += 1

    def _close(self, record: StepEnded) -> None:
        if draft := self._draft(record.step):
            draft.ended = record

    def _add_values(self, record: Metric) -> None:
        if record.during is not None:
            self._add_told_values(record, record.during)
            return
        draft = self._draft(record.step)
        if draft is not None:
            self._put(record.values, draft)

    def _add_told_values(self, record: Metric, during: int) -> None:
        self._draft(during)
        self.state.told += 1
        if ids.is_sampled(self._make.step_trace_id(record.step), self._run.orders.sampling_ratio):
            draft = StepDraft(record.step)
            self._put(record.values, draft)
            self._spans.append(self._make.metrics(draft, record.time_unix_ns, self.state.told))
        else:
            self._drop(SAMPLED_OUT, 1)

    def _add_pause(self, record: Paused) -> None:
        if draft := self._draft(record.step):
            draft.pause_ns += sum(record.duration_ns.values())

    def _put(self, values: dict[str, Any], draft: StepDraft) -> None:
        """Put the user's values where the span of a step is drafted."""
        for key, value in values.items():
            if isinstance(value, float) and isfinite(value) and len(draft.values) < MAX_KEYS:  # as nearly all are
                draft.values[_attribute_name(key)] = value
            elif isinstance(value, dict):
                self._put(dict(flatten(key, value)), draft)
            elif value is not None and not isinstance(value, list):
                self._put_one(key, value, draft)

    def _put_one(self, key: str, value: float | str, draft: StepDraft) -> None:
        name = _attribute_name(key)
        if len(draft.values) >= MAX_KEYS and name not in draft.values:
            self._drop(TOO_MANY_KEYS, 1)
            draft.dropped += 1
            return
        draft.values[name] = to_attribute(value)
        if isinstance(value, float) and not isfinite(value):
            draft.nonfinite[key] = None

    def _add_checkpoint(self, record: Checkpoint) -> None:
        self.state.last_checkpoint = max(record.step, self.state.last_checkpoint or 0)
        draft = self._draft(record.step if record.during is None else record.during)
        if record.during is not None:
            self._spans.append(self._make.checkpoint(record))
            return
        if draft and draft.ended:
            self._release(draft, record)  # at once: the upload waits for this event
            return
        if draft:
            draft.has_checkpoint = True
        self._spans.append(self._make.checkpoint(record))

    def _add_phase(self, record: Phase) -> None:
        attributes = {key: to_attribute(value) for key, value in record.attributes.items() if value is not None}
        phase = msgspec.structs.replace(record, name=text(record.name), attributes=attributes)
        draft = None if record.step is None else self._draft(record.step)
        if draft and self._run.orders.sampling_ratio < 1:
            draft.phases.append(phase)
        elif self._is_sampled(record.step):
            self._spans.append(self._make.phase(phase))
        else:
            self._drop(SAMPLED_OUT, 1)

    def _release(self, draft: StepDraft, checkpoint: Checkpoint | None = None) -> None:
        """Emit a step with its phases, or neither."""
        self.state.draft = None
        trace_id = self._make.step_trace_id(draft.step)
        if self._is_kept(draft, trace_id, has_checkpoint=draft.has_checkpoint or checkpoint is not None):
            self._spans += map(self._make.phase, draft.phases)
            if draft.ended:
                self._spans.append(self._make.step(draft, draft.ended, trace_id, checkpoint))
        else:
            self._drop(SAMPLED_OUT, len(draft.phases) + (draft.ended is not None))
            if checkpoint:
                self._spans.append(self._make.checkpoint(checkpoint))

    def _is_sampled(self, step: int | None) -> bool:
        """Tell whether a step is in the share that is kept; what is outside of steps is, if anything is."""
        ratio = self._run.orders.sampling_ratio
        return ratio >= 0 if step is None else ids.is_sampled(self._make.step_trace_id(step), ratio)

    def _is_kept(self, draft: StepDraft, trace_id: ids.TraceId, *, has_checkpoint: bool) -> bool:
        ratio = self._run.orders.sampling_ratio
        if draft.ended is None:  # it has left already, or its end was lost; its phases are shown all the same
            return ids.is_sampled(trace_id, ratio)
        is_marked = bool(draft.ended.error or draft.nonfinite or has_checkpoint)
        return self._sampler.keep(trace_id, ratio, draft.ended.duration_ns / 1e9, is_marked=is_marked)

    def _drop(self, reason: str, count: int) -> None:
        if count:
            self.state.dropped[reason] = self.state.dropped.get(reason, 0) + count

    def _lose(self, record: RankLost) -> None:
        if record.last_started_step > self.state.ended_step:
            duration_ns = max(0, record.time_unix_ns - record.last_started_unix_ns)
            self._close(StepEnded(record.last_started_step, record.last_started_unix_ns, duration_ns, KILLED))
        self._finish(record)

    def _note_raised(self, record: Raised) -> None:
        self.state.raised = record

    def _finish(self, record: RunFinished | RankLost) -> None:
        if self.state.draft:
            self._release(self.state.draft)
        state = self.state
        done: dict[str, AttributeValue] = {names.RUN_STEPS: state.steps, names.LAST_STEP: state.ended_step}
        if state.last_checkpoint is not None:
            done[names.LAST_CHECKPOINT] = state.last_checkpoint
        self._spans.append(self._make.run(record, self._config | done, state.raised))

    @property
    def _config(self) -> dict[str, AttributeValue]:
        attributes: dict[str, AttributeValue] = msgspec.msgpack.decode(self.state.config) if self.state.config else {}
        return attributes

    _TRANSLATE: Final[Mapping[type[Record], Callable[[Any, Any], None]]] = {
        StepEnded: _end_step,
        Metric: _add_values,
        Checkpoint: _add_checkpoint,
        Config: _set_config,
        Phase: _add_phase,
        LogLine: _pass_over,
        Paused: _add_pause,
        Raised: _note_raised,
        RunFinished: _finish,
        RankLost: _lose,
    }


@lru_cache(maxsize=4096)
def _attribute_name(key: str) -> str:
    return names.METRIC_PREFIX + key


def _config_attributes(record: Config) -> dict[str, AttributeValue]:
    return {names.CONFIG_PREFIX + key: to_attribute(value) for key, value in record.values.items()}
