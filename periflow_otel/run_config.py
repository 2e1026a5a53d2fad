"""The configuration of a run as its script gives it: flattened by dots, without secrets, and bounded.

What is recorded is read by whoever may see the telemetry, so a value whose name says that it is a secret never leaves
the process.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from periflow_otel.errors import ConfigurationError
from periflow_otel.records import Config, encode
from periflow_otel.values import plain_mapping

MAX_VALUES: Final = 1000
MAX_BYTES: Final = 32 << 10
"""What all of it takes, encoded: it stands in every segment of the journal."""
MAX_TEXT_CHARS: Final = 1024
"""Longer text is cut."""
MASKED: Final = "***"

_MAX_DEPTH: Final = 16
_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_VOCABULARY: Final = ("bos", "cls", "eos", "image", "mask", "pad", "sep", "unk")
"""What comes before ``token`` where that is a word of a tokenizer."""
_SECRET: Final = re.compile(
    r"passw(or)?d|passphrase|secret|credential|bearer|cookie"
    r"|(api|access|account|auth|encryption|private|signing|ssh)_?keys?(_|$)"
    r"|(^|_)(auth|authorization|dsn|pwd)(_|$)"
    rf"|{''.join(f'(?<!{word}_)' for word in _VOCABULARY)}token$"
)
"""Matches the lower-case words of a name, joined by ``_``."""
_USER_INFO: Final = re.compile(r"(?<=://)[^/\s@]+(?=@)")


class RunConfig:
    """What tells a run from others, by dotted keys. Nothing in it is changed."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        """Hold values that were checked."""
        self.values: Mapping[str, Any] = values or {}

    def encoded(self) -> bytes:
        """Return the record of it; nothing if it is empty."""
        return encode(Config(dict(self.values))) if self.values else b""

    def with_values(self, given: object) -> "RunConfig":
        """Return it with more values; of two under one key the later one counts.

        Raises:
            ConfigurationError: ``given`` is no mapping of values that can be recorded, or all are too much together.
        """
        return RunConfig(_bounded({**self.values, **_plain(given)}))


def _plain(given: object) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        message = f"config is an object of type {type(given).__name__}; give a dict of values by name, as vars() does"
        raise ConfigurationError(message)
    try:
        return plain_mapping(dict(_flat("", given, is_hidden=False, depth=0)))
    except (TypeError, ValueError) as error:
        message = f"config: {error}"
        raise ConfigurationError(message) from None


def _flat(key: str, value: object, *, is_hidden: bool, depth: int) -> Iterator[tuple[str, object]]:
    """Yield the values in ``value`` by their dotted keys."""
    if depth > _MAX_DEPTH:
        message = f"{key[:40]!r} nests deeper than {_MAX_DEPTH}, or contains itself"
        raise ValueError(message)
    if inner := _inside(value):
        for name, each in inner.items():
            inner_key = f"{key}.{_name(name)}" if depth else _name(name)
            yield from _flat(inner_key, each, is_hidden=is_hidden or is_secret(_name(name)), depth=depth + 1)
    elif value is not None and not isinstance(value, Mapping):
        yield key, MASKED if is_hidden and not isinstance(value, bool) else _short(value)


def _inside(value: object) -> Mapping[Any, Any]:
    """Return what is to be flattened: mappings, and lists of something that is more than a value."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple) and any(isinstance(each, Mapping | list | tuple) for each in value):
        return dict(enumerate(value))
    return {}


def _name(key: object) -> str:
    if isinstance(key, str | int | float):
        return str(key)
    message = f"a key is an object of type {type(key).__name__}; give text"
    raise TypeError(message)


def is_secret(name: str) -> bool:
    """Tell whether a name is that of a secret, however it is spelled: ``hub_token``, ``apiKey``, ``DB_PASSWORD``."""
    return _SECRET.search("_".join(_WORD.findall(name)).lower()) is not None


def without_user_info(text: str) -> str:
    """Return text in which no URL holds a user name or a password."""
    return _USER_INFO.sub(MASKED, text) if "://" in text else text


def _short(value: object) -> object:
    """Return a value as it is recorded: paths as text, long text cut, addresses without a password."""
    if isinstance(value, list | tuple):
        return [_short(each) for each in value]
    if isinstance(value, os.PathLike):
        value = os.fsdecode(value)
    if not isinstance(value, str):
        return value
    value = without_user_info(value)
    return value if len(value) <= MAX_TEXT_CHARS else f"{value[:MAX_TEXT_CHARS]}…[truncated]"


def _bounded(values: dict[str, Any]) -> dict[str, Any]:
    size = len(encode(Config(values)))
    if len(values) > MAX_VALUES or size > MAX_BYTES:
        message = (
            f"config has {len(values)} values of {size} bytes; at most {MAX_VALUES} of {MAX_BYTES} bytes can be "
            "recorded. Give what tells this run from others"
        )
        raise ConfigurationError(message)
    return values
