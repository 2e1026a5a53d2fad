"""Makes the current step or phase the parent of spans that the user's own tracers start in it.

Needs no SDK in the process. Ids are derived only when somebody asks for them, and where no other span is current a step
costs nothing here: one span stands in the context of the run for whatever step is open.
"""

from collections.abc import Callable
from typing import NamedTuple

from opentelemetry.context import attach, get_current
from opentelemetry.context.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    INVALID_SPAN_CONTEXT,
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    get_current_span,
    set_span_in_context,
)

from periflow_otel.identities import SpanIdentity

Identify = Callable[[int | None, int], SpanIdentity]
"""Derives the identity of a step, or of a phase in it, from their numbers; see ``OpenSpan``."""


class StandingSpan(NonRecordingSpan):
    """Whatever step is open, as the current span of the thread or task that began the run.

    It stands there only if no other span was current then: it would hide that between steps.
    """

    def __init__(self, identify_open_step: Callable[[], SpanIdentity | None]) -> None:
        """Make this the current span, until ``leave``.

        Args:
            identify_open_step: Derives the ids of the step that is open; None if there is none.
        """
        self._identify_open_step = identify_open_step
        self._outer = outer = get_current()
        self._inner: Context | None = None
        if get_current_span(outer) is INVALID_SPAN:
            self._inner = set_span_in_context(self, outer)
            attach(self._inner)

    def is_current(self) -> bool:
        """Tell whether spans that are started here and now become children of the step that is open."""
        return get_current() is self._inner

    def get_span_context(self) -> SpanContext:
        """Return the ids of the step that is open; invalid ones if there is none."""
        identity = self._identify_open_step()
        return INVALID_SPAN_CONTEXT if identity is None else _span_context(identity)

    def __repr__(self) -> str:
        """Show the ids."""
        return f"StandingSpan({self.get_span_context()!r})"

    def leave(self) -> None:
        """Make nothing current again, where this is."""
        if self.is_current():
            attach(self._outer)


class OpenSpan(NonRecordingSpan):
    """A step or a phase that is going on, and so the current span of this thread or task.

    It records nothing itself; the journal does.
    """

    def __init__(self, identify: Identify, step: int | None, phase: int = 0) -> None:
        """Make this the current span, until ``leave``.

        Args:
            identify: Derives the ids.
            step: Number of the step; None for a phase outside a step.
            phase: Number of the phase; 0 for the step itself.
        """
        self.phase = phase
        self.step = step
        self._identify = identify
        self._is_stale = False
        self._outer = outer = get_current()
        self._inner = inner = set_span_in_context(self, outer)
        attach(inner)

    def get_span_context(self) -> SpanContext:
        """Return the ids; invalid ones if the step ended where this context could not be taken back."""
        if self._is_stale:
            return INVALID_SPAN_CONTEXT
        return _span_context(self._identify(self.step, self.phase))

    def __repr__(self) -> str:
        """Show the ids."""
        return f"OpenSpan({self.get_span_context()!r})"

    def leave(self) -> None:
        """Make the span before current again, or, in another thread than it was begun in, parent nothing more."""
        if get_current() is self._inner:
            attach(self._outer)
        else:
            self._is_stale = True
        del self._outer, self._inner  # they refer back to this, and garbage is not collected at every step

    def belongs_to(self, identify: Identify) -> bool:
        """Tell whether ``identify`` derives the ids of this span, which is not over."""
        return self._identify == identify and not self._is_stale


def _span_context(identity: SpanIdentity) -> SpanContext:
    flags = TraceFlags.SAMPLED if identity.is_sampled else TraceFlags.DEFAULT
    return SpanContext(identity.trace_id, identity.span_id, is_remote=False, trace_flags=TraceFlags(flags))


def current_phase(identify: Identify) -> int:
    """Return the number of the phase that is the current span, if it is one of ``identify``, else 0."""
    span = get_current_span()
    return span.phase if isinstance(span, OpenSpan) and span.belongs_to(identify) else 0


class Whereabouts(NamedTuple):
    """In what something was said."""

    step: int | None
    phase: int
    """Number of the phase, or 0."""
    foreign: bytes = b""
    """Trace id, span id and flags of a span of somebody else's, where that is current."""


def whereabouts(identify: Identify, open_step: int | None) -> Whereabouts:
    """Tell in which step, phase or span of somebody else's this thread or task is.

    Args:
        identify: Derives the ids of the run.
        open_step: The step that is open; None if there is none. Where no span is current, as in threads, it is in that.
    """
    span = get_current_span()
    if span is INVALID_SPAN or isinstance(span, StandingSpan):
        return Whereabouts(open_step, 0)
    if isinstance(span, OpenSpan):
        return Whereabouts(span.step, span.phase) if span.belongs_to(identify) else Whereabouts(open_step, 0)
    found = span.get_span_context()
    return Whereabouts(open_step, 0, _as_bytes(found) if found.is_valid else b"")


def _as_bytes(found: SpanContext) -> bytes:
    return found.trace_id.to_bytes(16, "big") + found.span_id.to_bytes(8, "big") + bytes((found.trace_flags,))
