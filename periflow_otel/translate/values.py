"""The user's values as OpenTelemetry can hold them."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from periflow_otel.translate.telemetry import AttributeValue

MAX_KEYS: Final = 1000
"""Metric keys per run that become instruments, and per step that become attributes; other values are dropped."""
TOO_MANY_KEYS: Final = "too_many_keys"
"""Why a value was dropped: there are ``MAX_KEYS`` other keys already."""
MAX_TEXT_CHARS: Final = 4096
"""Longer text is cut: a value is for reading, and a request has a bound."""
_MIN_INT64: Final = -(1 << 63)
_MAX_INT64: Final = (1 << 63) - 1


def flatten(key: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what is in a mapping that was given under ``key``, and in mappings in it, by keys with dots between."""
    for inner, value in values.items():
        if isinstance(value, dict):
            yield from flatten(f"{key}.{inner}", value)
        else:
            yield f"{key}.{inner}", value


class _WholeText(str):
    __slots__ = ()


def whole(value: str) -> str:
    """Return text that :func:`text` does not cut: valid Unicode, which was bounded where it was recorded."""
    return _WholeText(value) if len(value) > MAX_TEXT_CHARS else value


def text(value: str) -> str:
    """Return text that every receiver takes: valid Unicode of bounded length."""
    if value.isascii() and len(value) <= MAX_TEXT_CHARS:
        return value
    if isinstance(value, _WholeText):
        return str(value)
    if len(value) > MAX_TEXT_CHARS:
        value = value[:MAX_TEXT_CHARS] + "…[truncated]"
    return value.encode("utf-8", "replace").decode()


def number(value: float) -> int | float:
    """Return an integer of 64 signed bits, or a float: the nearest one to an integer beyond that."""
    if isinstance(value, float):
        return value
    if _MIN_INT64 <= value <= _MAX_INT64:
        return int(value)
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def to_attribute(value: object) -> AttributeValue:
    """Return a recorded value as an attribute's: what is no scalar as JSON text, and NaN and infinities as their names.

    OTLP has both, but back ends that show spans as JSON fail over them: Jaeger answers no search that finds one.

    Raises:
        ValueError: An integer within a list or dict has thousands of digits.
    """
    match value:
        case float():
            return _named(value)
        case bool():
            return value
        case str():
            return text(value)
        case int():
            return _named(number(value))
        case _:
            return text(json.dumps(value))


def label(value: object) -> str:
    """Return a recorded value as the text of a metric attribute."""
    value = to_attribute(value)
    return value if isinstance(value, str) else json.dumps(value)


def _named(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
