"""What a script may record under a key, and how that becomes plain data, which nobody changes later.

Every value that can be recorded comes back equal. What MessagePack has no word for travels in an extension: integers
beyond 64 bits, and text that is not valid Unicode.
"""

import numbers
from collections.abc import Mapping
from typing import Any, Final, Protocol

import msgspec


class Scalar(Protocol):
    """A number of another library: NumPy's, or a tensor of one element."""

    def item(self) -> Any:
        """Return it as Python's."""


Value = float | int | bool | str | list[Any] | tuple[Any, ...] | dict[str, Any] | Scalar | None
"""What can be recorded under a key: a JSON value, or a scalar."""


MAX_KEY_CHARS: Final = 256
"""Longest metric key: it becomes the name of an instrument."""
_BIG_INTEGER: Final = 1
_BROKEN_TEXT: Final = 2
_MAX_DEPTH: Final = 32


def plain_mapping(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with every scalar of another library converted, and nothing kept by reference.

    Raises:
        TypeError: A value is not a JSON value or a scalar, a key is not text, or ``values`` is not a mapping.
        ValueError: A key is longer than ``MAX_KEY_CHARS``, or a value nests deeper than 32.
    """
    if not isinstance(values, Mapping):
        message = f"the metrics are {_short(values)}; give a dict of values by name"
        raise TypeError(message)
    return {_plain_key(key): plain(value, str(key)) for key, value in values.items()}


def _plain_key(key: object) -> Any:
    if isinstance(key, str):
        if len(key) > MAX_KEY_CHARS:
            message = f"the key {_short(key)} has {len(key)} characters; at most {MAX_KEY_CHARS} make a name"
            raise ValueError(message)
        return key.encode("utf-8", "replace").decode()
    if key is None or isinstance(key, int | float):
        import json  # noqa: PLC0415  # such keys are rare

        return json.dumps(key)  # they come back as from a JSON file
    message = f"a key is {_short(key)}; give text"
    raise TypeError(message)


def plain(value: object, key: str, depth: int = 0) -> Any:  # noqa: PLR0911  # one for each kind of value
    """Return a value with nothing kept by reference.

    Args:
        value: What was given.
        key: Under which, for messages.
        depth: So many lists and dicts are around it.

    Raises:
        TypeError: It is not a JSON value or a scalar.
        ValueError: It nests deeper than 32.
    """
    if depth > _MAX_DEPTH:
        message = f"the value of {_short(key)} nests deeper than {_MAX_DEPTH}, or contains itself"
        raise ValueError(message)
    match value:
        case None | bool():
            return value
        case int():
            return _plain_integer(int(value))
        case float():
            return float(value)
        case str():
            return _plain_text(str.__str__(value))
        case list() | tuple():
            return [plain(each, key, depth + 1) for each in value]
        case dict():
            inner = {each: _plain_key(each) for each in value}
            return {inner[each]: plain(value[each], _dotted(key, inner[each]), depth + 1) for each in value}
        case _:
            return plain(_scalar(value, key), key, depth + 1)


def _dotted(key: str, inner: str) -> str:
    """Return the key that a value in a mapping has as a point."""
    if len(key) + len(inner) >= MAX_KEY_CHARS:
        message = f"the key {_short(inner)} below {_short(key)} makes a name of more than {MAX_KEY_CHARS} characters"
        raise ValueError(message)
    return f"{key}.{inner}"


def _scalar(value: object, key: str) -> object:
    """Turn a NumPy or tensor scalar into the Python number that it stands for."""
    item = getattr(value, "item", None)
    if not callable(item):
        message = f"the value of {_short(key)} is {_short(value)}; give a number, text, bool, None, list or dict"
        raise TypeError(message)
    try:
        number = item()
    except Exception as error:
        message = f"the value of {_short(key)}, a {type(value).__name__}, is not a single number: {error}"
        raise TypeError(message) from error
    if isinstance(number, int | float):
        return number
    if isinstance(number, numbers.Real):  # NumPy's long double has no Python number that is as exact
        return float(number)
    message = f"the value of {_short(key)}, a {type(value).__name__}, holds {_short(number)}, not a number"
    raise TypeError(message)


def _plain_integer(value: int) -> Any:
    if -(1 << 63) <= value < 1 << 64:
        return value
    return msgspec.msgpack.Ext(_BIG_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _plain_text(value: str) -> Any:
    try:
        value.encode()
    except UnicodeEncodeError:
        return msgspec.msgpack.Ext(_BROKEN_TEXT, value.encode("utf-8", "surrogatepass"))
    return value


def _short(value: object) -> str:
    """Show a value in an error message: its type, and its beginning where that is safe to ask for."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "…")
    if value is None or (isinstance(value, int | float) and abs(value) < 1 << 64):
        return f"{type(value).__name__} {value!r}"
    return f"an object of type {type(value).__name__}"


def decode_extension(code: int, data: memoryview) -> object:
    """Return what :func:`plain` has put into an extension."""
    if code == _BIG_INTEGER:
        return int.from_bytes(data, "big", signed=True)
    return bytes(data).decode("utf-8", "surrogatepass")
