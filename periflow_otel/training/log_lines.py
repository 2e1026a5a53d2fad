"""Records of ``logging`` as records of the journal: text alone, bounded, and made where they were said.

Objects that are logged are asked for their text once. What goes wrong with that becomes a part of the message.
"""

import logging
import traceback
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

import msgspec

from periflow_otel.errors import full_type
from periflow_otel.records import LogLine, Raised, Telling, encode
from periflow_otel.run_config import MASKED, is_secret
from periflow_otel.training.context import Whereabouts
from periflow_otel.values import MAX_KEY_CHARS, plain_mapping

MAX_MESSAGE_CHARS: Final = 16_384
"""Longer messages are cut at their end, and longer stacks at their beginning."""
MAX_EXTRAS: Final = 64
"""More values of ``extra`` are left out."""
CUT: Final = "…[truncated]"
"""Stands where something was cut."""
_MAX_NAME_CHARS: Final = 1024
_USUAL: Final = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})
"""What a record has by itself."""
_USUAL_COUNT: Final = len(vars(logging.makeLogRecord({})))


def encode_line(record: logging.LogRecord, where: Whereabouts, now_unix_ns: int) -> bytes:
    """Encode what a logger was told. Whatever is wrong with it, something is recorded.

    Args:
        record: What was said.
        where: The step, phase or span in which it was said.
        now_unix_ns: When that is recorded.
    """
    error, error_message, stack = _exception(record)
    extra, dropped = _extra(record)
    line = LogLine(  # by position, which takes a fifth of the time
        round(record.created * 1e9),
        now_unix_ns,
        *where,
        _text(record.name),
        int(record.levelno),
        _text(record.levelname),
        _message(record),
        _text(record.pathname),
        int(record.lineno),
        _text(record.funcName),
        record.thread or 0,
        _text(record.threadName),
        error,
        error_message,
        stack,
        extra,
        dropped,
    )
    try:
        return encode(line)
    except UnicodeEncodeError:
        return encode(LogLine(*map(_valid, msgspec.structs.astuple(line))))


def _message(record: logging.LogRecord) -> str:
    try:
        message = record.getMessage()
    except Exception as error:  # noqa: BLE001  # whatever the text of an object comes to
        template = record.msg if isinstance(record.msg, str) else f"an object of type {type(record.msg).__name__}"
        message = f"{template} [cannot be formatted: {type(error).__name__}]"
    return _text(message, MAX_MESSAGE_CHARS)


def _text(value: object, most: int = _MAX_NAME_CHARS) -> str:
    """Return text itself, cut where it is too long; records that were made by hand may have something else there."""
    text = value if type(value) is str else "" if value is None else str.__str__(str(value))
    return text if len(text) <= most else text[:most] + CUT


def _valid(value: Any) -> Any:
    """Return text as valid Unicode, and anything else as it is."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _exception(record: logging.LogRecord) -> tuple[str | None, str, str]:
    """Return type, message and stack of the exception that was logged; or the stack alone, where that was asked for."""
    kind, error, trace = record.exc_info or (None, None, None)
    if kind is None or error is None:
        return None, "", _end(record.stack_info or "")
    return full_type(error), *_told(error, trace)


def raised(error: BaseException, how: Telling) -> Raised | None:
    """Return what is to be recorded of an exception beside its type: valid text, and bounded."""
    if how == "type":
        return None
    message, stack = _told(error, error.__traceback__) if how == "message" else ("", _places(error))
    return Raised(_valid(message), _valid(stack))


def _places(error: BaseException) -> str:
    """Return where an exception came from, and nothing that could tell of a value."""
    frames = traceback.walk_tb(error.__traceback__)
    places = (f'  File "{each.f_code.co_filename}", line {line}, in {each.f_code.co_name}\n' for each, line in frames)
    return _end("".join(("Traceback (most recent call last):\n", *places, full_type(error))))


def _told(error: BaseException, trace: TracebackType | None) -> tuple[str, str]:
    """Return message and stack of an exception, as Python prints them."""
    try:
        shown = traceback.TracebackException(type(error), error, trace)
        return _text(str(shown), MAX_MESSAGE_CHARS), _end("".join(shown.format()))
    except Exception:  # noqa: BLE001  # a chain of them may be too long, say
        return "", ""


def _end(stack: str) -> str:
    """Return the end of a stack, where it says what has happened."""
    return stack if len(stack) <= MAX_MESSAGE_CHARS else CUT + stack[-MAX_MESSAGE_CHARS:]


def _extra(record: logging.LogRecord) -> tuple[dict[str, Any], int]:
    """Return the values of ``extra``, without secrets, and how many were left out: more than scalars, or too many."""
    if len(given := vars(record)) <= _USUAL_COUNT:
        return {}, 0
    found = {key: value for key, value in given.items() if key not in _USUAL}
    kept: dict[str, Any] = {}
    for key, value in found.items():
        with suppress(TypeError, ValueError):
            plain = MASKED if is_secret(str(key)) else _scalar(key, value)
            if len(kept) < MAX_EXTRAS:
                kept[_valid(_text(key, MAX_KEY_CHARS))] = plain
    return kept, len(found) - len(kept)


def _scalar(key: str, value: object) -> Any:
    """Return a value that can be recorded.

    Raises:
        TypeError: It is no scalar.
    """
    if isinstance(value, str):
        return _valid(_text(value))
    if value is None or isinstance(value, list | tuple | dict):
        raise TypeError
    return plain_mapping({key: value})[key]
