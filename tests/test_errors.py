"""What errors are called."""

import pytest

from periflow_otel.errors import PeriFlowError, full_type


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
