"""The logger says the same thing once a minute, and knows what is the same."""

import logging
from typing import Any

import pytest

from periflow_otel.logs import OncePerInterval


@pytest.mark.parametrize(
    ("first", "second", "is_said"),
    [
        (("%d of %s", 1, "a"), ("%d of %s", 2, "a"), False),
        (("%d of %s", 1, "a"), ("%d of %s", 1, "b"), True),
        (("%s", "a"), ("%s!", "a"), True),
    ],
)
def test_only_numbers_make_no_difference(first: tuple[Any, ...], second: tuple[Any, ...], is_said: object):
    """Everything else does."""
    said = OncePerInterval()
    assert said.filter(_record(*first))
    assert said.filter(_record(*second)) is is_said


def test_foreign_words_make_no_difference_where_the_cause_is_given():
    """A receiver may put the time into its answer."""
    said = OncePerInterval()
    first, second, third = (_record("kept: %s", f"request {number}") for number in range(3))
    first.cause = second.cause = ("kept", "HTTP 503")
    third.cause = ("kept", "HTTP 401")
    assert [said.filter(each) for each in (first, second, third)] == [True, False, True]


def _record(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("periflow_otel", logging.WARNING, "", 0, message, arguments, None)
