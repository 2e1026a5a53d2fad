"""Makes the current step or phase the parent of spans that the user's own tracers start in it.

Needs no SDK in the process. Ids are derived only when somebody asks for them, so a step costs about 1 µs here.
"""

from collections.abc import Callable

from opentelemetry.context import attach, get_current
from opentelemetry.context.context import Context
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    get_current_span,
    set_span_in_context,
)

from periflow_otel import ids

Identify = Callable[[int], tuple[ids.TraceId, ids.SpanId]]


class OpenSpan(NonRecordingSpan):
    """A step or a phase that is going on: what others may hang their spans below.

    It records nothing itself; the journal does.
    """

    def __init__(self, identify: Identify, number: int, sampling_ratio: float) -> None:
        """Prepare a span.

        Args:
            identify: Derives trace and span id from ``number``.
            number: Which step or phase.
            sampling_ratio: Share of traces to keep, 0 to 1.
        """
        self.number = number
        self._identify = identify
        self._sampling_ratio = sampling_ratio
        self._is_stale = False
        self._outer: Context | None = None
        self._inner: Context | None = None

    def get_span_context(self) -> SpanContext:
        """Return the ids; invalid ones if the step ended where this context could not be taken back."""
        if self._is_stale:
            return INVALID_SPAN_CONTEXT
        trace_id, span_id = self._identify(self.number)
        sampled = TraceFlags.SAMPLED if ids.is_sampled(trace_id, self._sampling_ratio) else TraceFlags.DEFAULT
        return SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(sampled))

    def belongs_to(self, identify: Identify) -> bool:
        """Tell whether this is a span of the steps, or of the phases, that ``identify`` derives ids for."""
        return self._identify == identify

    def enter(self) -> None:
        """Make this the current span."""
        self._outer = get_current()
        self._inner = set_span_in_context(self, self._outer)
        attach(self._inner)

    def leave(self) -> None:
        """Make the span before current again, or, in another thread than it was entered in, parent nothing more."""
        if get_current() is self._inner and self._outer is not None:
            attach(self._outer)
        else:
            self._is_stale = True
        self._outer = self._inner = None


def current_number(identify: Identify) -> int:
    """Return the number of the current span if it is one of ``identify``, else 0."""
    span = get_current_span()
    return span.number if isinstance(span, OpenSpan) and span.belongs_to(identify) else 0
