"""Whatever is logged, something is recorded, and it comes back."""

import logging
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from periflow_otel.records import LogLine, decode
from periflow_otel.training.context import Whereabouts
from periflow_otel.training.log_lines import CUT, MAX_EXTRAS, MAX_MESSAGE_CHARS, encode_line

NOWHERE = Whereabouts(None, 0)
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)


def recorded(record: logging.LogRecord, where: Whereabouts = NOWHERE) -> LogLine:
    """Return what comes back of what was logged."""
    line = decode(encode_line(record, where, 7))
    assert isinstance(line, LogLine)
    return line


def logged(message: object = "message", *arguments: object, **fields: Any) -> LogLine:
    """Return what comes back of a record."""
    record = logging.LogRecord("script", logging.WARNING, "/src/train.py", 12, message, arguments, None, "main")
    vars(record).update(fields)
    return recorded(record)


class Silent:
    """An object that will not say what it is."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.asked = 0

    def __str__(self) -> str:
        """Refuse."""
        self.asked += 1
        raise ValueError("no")  # noqa: EM101  # it matters to nobody


def test_a_line_says_what_was_said_and_where():
    """All of it, with the times in nanoseconds."""
    record = logging.LogRecord("script.loop", logging.INFO, "/src/train.py", 12, "loss %.2f", (0.125,), None, "main")
    record.created, record.thread, record.threadName = 1_700_000_000.5, 9, "loader"
    line = recorded(record, Whereabouts(3, 2, b"x" * 25))
    assert line == LogLine(
        1_700_000_000_500_000_000, 7, 3, 2, b"x" * 25, "script.loop", 20, "INFO", "loss 0.12", "/src/train.py", 12,
        "main", 9, "loader",
    )  # fmt: skip


def test_what_has_no_text_is_asked_once():
    """And does not keep the rest from being recorded."""
    silent = Silent()
    assert logged("value %s", silent).message == "value %s [cannot be formatted: ValueError]"
    assert silent.asked == 1
    assert logged(Silent()).message == "an object of type Silent [cannot be formatted: ValueError]"
    assert logged("one %d", "no number").message == "one %d [cannot be formatted: TypeError]"


def test_what_is_too_long_is_cut():
    """A message at its end, and a stack at its beginning."""
    assert logged("x" * (10 << 20)).message == "x" * MAX_MESSAGE_CHARS + CUT
    assert logged("x" * MAX_MESSAGE_CHARS).message == "x" * MAX_MESSAGE_CHARS
    stack = logged(stack_info=f"{'x' * MAX_MESSAGE_CHARS} here").stack
    assert stack == f"{CUT}{'x' * (MAX_MESSAGE_CHARS - 5)} here"


def test_an_exception_is_recorded_with_type_message_and_stack():
    """Type with its module, and the stack as Python prints it."""
    try:
        np.zeros(2).reshape(3)
    except ValueError:
        line = logged(exc_info=sys.exc_info())
    assert (line.error, line.error_message) == ("ValueError", "cannot reshape array of size 2 into shape (3,)")
    assert line.stack.startswith("Traceback (most recent call last):\n")
    assert line.stack.endswith("ValueError: cannot reshape array of size 2 into shape (3,)\n")


@pytest.mark.parametrize("given_info", [None, (None, None, None)])
def test_without_an_exception_there_is_none(given_info: object):
    """As with ``exc_info=True`` where nothing was raised."""
    line = logged(exc_info=given_info)
    assert (line.error, line.error_message, line.stack) == (None, "", "")


def test_an_exception_without_text_is_recorded():
    """Its type at least."""

    class Mute(Exception):  # noqa: N818  # it is no error of anybody's
        def __str__(self) -> str:
            raise RuntimeError

    error = Mute()
    assert logged(exc_info=(Mute, error, None)).error == f"{__name__}.{Mute.__qualname__}"


def test_extra_is_recorded_without_secrets():
    """Scalars, also those of NumPy; more than those is left out and counted."""
    line = logged(lr=0.1, epoch=np.int64(3), note="warm", hub_token="hf_1", model=object(), sizes=[1, 2])  # noqa: S106  # it is none
    assert line.extra == {"lr": 0.1, "epoch": 3, "note": "warm", "hub_token": "***"}
    assert line.dropped == 2


def test_extra_is_bounded():
    """In number and in length."""
    line = logged(**{f"key{number}": number for number in range(MAX_EXTRAS + 3)}, text="x" * 10_000)
    assert len(line.extra) == MAX_EXTRAS
    assert line.dropped == 4
    assert logged(text="x" * 10_000).extra["text"].endswith(CUT)


def test_records_that_were_made_by_hand_are_recorded():
    """They may lack what others have, or have something else there."""
    record = logging.makeLogRecord({"msg": "from another process", "levelno": 30})
    assert recorded(record).message == "from another process"
    assert recorded(record).function == ""


def test_text_that_is_not_unicode_is_recorded():
    """As much of it as is, in a message, in a path and in ``extra``."""
    line = logged("a\ud800b", pathname="/src/\udcff.py", note="c\ud800")
    assert (line.message, line.path, line.extra) == ("a?b", "/src/?.py", {"note": "c?"})


@given(st.dictionaries(st.sampled_from(["name", "levelname", "pathname", "funcName", "threadName", "msg"]), ANY_TEXT))
def test_any_text_is_recorded(fields: dict[str, str]):
    """Also what is no valid Unicode, such as a path that is no text."""
    line = logged(**fields, extra_text=fields.get("msg", ""))
    assert line.message == fields.get("msg", "message").encode("utf-8", "replace").decode()
    assert line.path == fields.get("pathname", "/src/train.py").encode("utf-8", "replace").decode()
