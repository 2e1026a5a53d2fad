"""What translation produces: plain data, ready for any exporter."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from periflow_otel.ids import SpanId, TraceId
from periflow_otel.names import Instrument

AttributeValue = str | bool | int | float | Sequence[str]
"""Integers fit 64 signed bits; text is valid Unicode of bounded length; floats may be NaN or infinite."""
Attributes = Mapping[str, AttributeValue]


class Event(msgspec.Struct, frozen=True, gc=False):
    """Something that happened at one moment of a span."""

    name: str
    time_unix_ns: int
    attributes: Attributes


class Link(msgspec.Struct, frozen=True, gc=False):
    """Another span that a span belongs to without being its child."""

    trace_id: TraceId
    span_id: SpanId


class Span(msgspec.Struct, frozen=True, gc=False):
    """A span that is over."""

    name: str
    trace_id: TraceId
    span_id: SpanId
    parent_span_id: SpanId | None
    start_unix_ns: int
    end_unix_ns: int
    attributes: Attributes
    events: tuple[Event, ...] = ()
    links: tuple[Link, ...] = ()
    error: str | None = None
    """Type of the exception, or another reason, when the status is ERROR. It is an attribute too."""
    is_parent_remote: bool = False
    """The parent is of another process."""
    trace_state: str = ""
    """W3C ``tracestate`` of the trace, where it began elsewhere."""
    dropped_attributes: int = 0
    """How many attributes were left out."""


class LogRecord(msgspec.Struct, frozen=True, gc=False):
    """What was said, or has happened, at one moment."""

    scope: str
    """The logger, or what tells of the event."""
    time_unix_ns: int
    observed_unix_ns: int
    """When it was recorded."""
    severity: int
    """As OpenTelemetry counts it; 0: unknown."""
    severity_text: str
    """What the source calls it."""
    body: str | None
    attributes: Attributes
    trace_id: TraceId
    span_id: SpanId
    flags: int
    """Those of the W3C trace context: 1: sampled."""
    source: tuple[tuple[str, str | int], ...] = ()
    """More attributes: what all share that the same line of code has said."""
    event_name: str = ""
    """Of an event."""
    dropped_attributes: int = 0
    """How many attributes were left out."""


class Exemplar(msgspec.Struct, frozen=True, gc=False):
    """One measurement behind a histogram, with the span in which it was taken."""

    time_unix_ns: int
    value: float
    trace_id: TraceId
    span_id: SpanId


class Histogram(msgspec.Struct, frozen=True, gc=False):
    """A histogram with explicit bounds.

    ``bucket_counts`` has one more entry than ``bounds``; bucket ``i`` holds values <= ``bounds[i]``.
    ``min`` and ``max`` are None where nobody knows them.
    """

    count: int
    sum: float
    min: float | None
    max: float | None
    bounds: tuple[float, ...]
    bucket_counts: tuple[int, ...]


class ExponentialHistogram(msgspec.Struct, frozen=True, gc=False):
    """A base-2 exponential histogram of values >= 0; bucket ``i`` of ``bucket_counts`` has index ``offset + i``."""

    count: int
    sum: float
    min: float
    max: float
    scale: int
    zero_count: int
    offset: int
    bucket_counts: tuple[int, ...]


class Point(msgspec.Struct, frozen=True, gc=False):
    """One data point of one stream.

    A gauge's value is a number and it has no start time. A counter's value is a number since ``start_unix_ns``.
    A histogram's value is a histogram since then. With delta temporality, ``start_unix_ns`` is the time of the
    stream's point before.
    """

    instrument: Instrument
    attributes: tuple[tuple[str, str | int], ...]
    time_unix_ns: int
    value: int | float | Histogram | ExponentialHistogram
    start_unix_ns: int = 0
    exemplars: tuple[Exemplar, ...] = ()
    is_delta: bool = False


class Observation(NamedTuple):
    """What the agent has seen of the machine: a value that has no time yet."""

    instrument: Instrument
    value: int | float
    attributes: tuple[tuple[str, str | int], ...] = ()
    start_unix_ns: int = 0
    """Since when a sum counts."""


class Observed(NamedTuple):
    """What the agent has seen of one rank at one time."""

    time_unix_ns: int
    values: tuple[Observation, ...]


class Resource(NamedTuple):
    """Who emits: the attributes of a resource, sorted by key, so that equal resources compare equal."""

    attributes: tuple[tuple[str, AttributeValue], ...]
