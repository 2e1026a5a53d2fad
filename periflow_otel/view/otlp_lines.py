"""Lines of OTLP JSON, decoded as far as a view needs them."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

import msgspec

Number = int | float | None
"""OTLP JSON has integers of 64 bits, NaN and infinities as text, which the decoder reads."""
Attributes = tuple[tuple[str, Any], ...]
_NO_ATTRIBUTES: Final = msgspec.Raw(b"[]")


class Value(msgspec.Struct, frozen=True, gc=False):
    """The value of an attribute, or the body of a log record."""

    stringValue: str | None = None  # noqa: N815  # as OTLP spells it, here and below
    intValue: Number = None  # noqa: N815
    doubleValue: Number = None  # noqa: N815
    boolValue: bool | None = None  # noqa: N815


class Attribute(msgspec.Struct, frozen=True, gc=False):
    """A key with its value."""

    key: str
    value: Value = Value()


class Event(msgspec.Struct, frozen=True):
    """An event of a span."""

    name: str = ""
    timeUnixNano: Number = 0  # noqa: N815
    attributes: list[Attribute] = []


class LogRecord(msgspec.Struct, frozen=True):
    """A log record, or an event of its own."""

    eventName: str = ""  # noqa: N815
    timeUnixNano: Number = 0  # noqa: N815
    severityNumber: int = 0  # noqa: N815
    severityText: str = ""  # noqa: N815
    body: Value = Value()
    attributes: list[Attribute] = []


class Status(msgspec.Struct, frozen=True, gc=False):
    """How a span has ended."""

    code: Any = 0
    message: str = ""


class Span(msgspec.Struct, frozen=True):
    """A span; its attributes are decoded where they are of interest."""

    name: str
    startTimeUnixNano: Number = 0  # noqa: N815
    endTimeUnixNano: Number = 0  # noqa: N815
    attributes: msgspec.Raw = _NO_ATTRIBUTES
    events: list[Event] = []
    status: Status = Status()


class Point(msgspec.Struct, frozen=True, gc=False):
    """A data point of any kind; its attributes are decoded once for all that have the same."""

    attributes: msgspec.Raw = _NO_ATTRIBUTES
    timeUnixNano: Number = 0  # noqa: N815
    asDouble: Number = None  # noqa: N815
    asInt: Number = None  # noqa: N815
    count: Number = None
    sum: Number = None
    max: Number = None


class Data(msgspec.Struct, frozen=True):
    """The points of a metric, and what they mean."""

    dataPoints: list[Point] = []  # noqa: N815
    aggregationTemporality: int = 0  # noqa: N815
    isMonotonic: bool = False  # noqa: N815


class Metric(msgspec.Struct, frozen=True):
    """A metric, of which one kind of data is there."""

    name: str
    gauge: Data = Data()
    sum: Data = Data()
    histogram: Data = Data()


class Name(msgspec.Struct, frozen=True):
    """What a scope is called."""

    name: str = ""


class Scope(msgspec.Struct, frozen=True):
    """What one scope has told."""

    scope: Name = Name()
    spans: list[Span] = []
    metrics: list[Metric] = []
    logRecords: list[LogRecord] = []  # noqa: N815


class Resource(msgspec.Struct, frozen=True):
    """Who tells it."""

    attributes: list[Attribute] = []


class Group(msgspec.Struct, frozen=True):
    """What is told of one resource."""

    resource: Resource = Resource()
    scopeSpans: list[Scope] = []  # noqa: N815
    scopeMetrics: list[Scope] = []  # noqa: N815
    scopeLogs: list[Scope] = []  # noqa: N815


class Line(msgspec.Struct, frozen=True):
    """A line of a file."""

    resourceSpans: list[Group] = []  # noqa: N815
    resourceMetrics: list[Group] = []  # noqa: N815
    resourceLogs: list[Group] = []  # noqa: N815


decode = msgspec.json.Decoder(Line, strict=False).decode
"""Decode a line. Raises ``msgspec.DecodeError`` for what is no OTLP JSON."""
decode_attributes = msgspec.json.Decoder(list[Attribute], strict=False).decode
"""Decode attributes that were left as they are."""
NOTHING: Final = Value()
_NAN: Final = float("nan")


def scalars(attributes: Iterable[Attribute]) -> dict[str, Any]:
    """Return the scalars among attributes by their key."""
    return {each.key: scalar(each.value) for each in attributes}


def scalar(value: Value) -> Any:
    """Return the scalar that a value holds; None if it is none."""
    if value.stringValue is not None:
        return value.stringValue
    if value.intValue is not None:
        return int(value.intValue)
    return value.boolValue if value.doubleValue is None else to_float(value.doubleValue)


@lru_cache(maxsize=16384)
def point_attributes(raw: bytes) -> Attributes:
    """Return the attributes of points, sorted by key."""
    return tuple(sorted(scalars(decode_attributes(raw)).items()))


def times_of(points: Sequence[Point]) -> list[float]:
    """Return when points were made, in Unix seconds."""
    return [(point.timeUnixNano or 0) / 1e9 for point in points]


def numbers_of(points: Sequence[Point]) -> list[float]:
    """Return the numbers of points; NaN where there is none."""
    values = [point.asInt if point.asDouble is None else point.asDouble for point in points]
    return [_NAN if value is None else float(value) for value in values]


def number_of(point: Point) -> float:
    """Return the number of a point; NaN if there is none."""
    return to_float(point.asInt if point.asDouble is None else point.asDouble)


def to_float(value: Any) -> float:
    """Return a number; NaN if it is none."""
    with suppress(ValueError, TypeError):
        return float(value)
    return _NAN


def integer_of(value: Value, default: int) -> int:
    """Return an integer that an attribute holds, or the default."""
    return default if value.intValue is None else int(value.intValue)


def to_integer(value: Any, default: int) -> int:
    """Return an integer, or the default if it is none."""
    return value if isinstance(value, int) else default


def elapsed_s(span: Span) -> float:
    """Return how long a span took, in seconds."""
    return ((span.endTimeUnixNano or 0) - (span.startTimeUnixNano or 0)) / 1e9


def seconds(unix_ns: Number) -> float:
    """Return a time in Unix seconds; 0 if there is none."""
    return (unix_ns or 0) / 1e9
