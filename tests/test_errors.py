"""What errors are called."""

import pytest

from periflow_otel.errors import MAX_SHOWN_CHARS, PeriFlowError, full_type, shown


class Outer:
    """Holds an exception."""

    class InnerError(Exception):
        """Is held by a class."""


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError("secret"), "ValueError"),
        (PeriFlowError("secret"), "periflow_otel.errors.PeriFlowError"),
        (Outer.InnerError("secret"), f"{__name__}.Outer.InnerError"),
    ],
)
def test_a_type_is_told_with_where_it_is_from(error: BaseException, name: str):
    """As OpenTelemetry's SDK names it; what the exception says stays out."""
    assert full_type(error) == name


class Shy:
    """Cannot be shown."""

    def __repr__(self) -> str:
        """Fail."""
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "text"),
    [("eight", "'eight'"), ("9" * 5000, f"'{'9' * (MAX_SHOWN_CHARS - 1)}…"), (Shy(), "an object of type Shy")],
)
def test_a_message_shows_any_value_in_a_few_words(value: object, text: str):
    """Also one that is long, or that fails when it is asked what it is."""
    assert shown(value) == text
