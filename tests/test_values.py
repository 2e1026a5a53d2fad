"""The user's values as OpenTelemetry can hold them."""

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from periflow_otel.translate.values import MAX_TEXT_CHARS, number, text, to_attribute

ANY_TEXT = st.text(st.characters(exclude_categories=()))
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(1 << 70), 1 << 70) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=5,
)


@given(ANY_TEXT)
def test_text_becomes_valid_and_stays_as_it_is(value: str):
    """Only what is not Unicode changes, and nothing the second time."""
    mended = text(value)
    assert mended == value.encode("utf-8", "replace").decode()
    assert text(mended) == mended


@pytest.mark.parametrize("character", ["x", "ü", "\ud800"])
def test_long_text_is_cut_once(character: str):
    """It says so at its end, and is not cut again."""
    cut = text(character * (MAX_TEXT_CHARS + 1))
    assert cut.endswith("…[truncated]")
    assert text(cut) == cut
    assert len(text(character * MAX_TEXT_CHARS)) == MAX_TEXT_CHARS


@pytest.mark.parametrize(
    ("value", "held"),
    [
        ((1 << 63) - 1, (1 << 63) - 1),
        (1 << 63, 2.0**63),
        (-(1 << 63), -(1 << 63)),
        (-(1 << 64), -(2.0**64)),
        (10**400, math.inf),
        (-(10**400), -math.inf),
        (True, 1),
        (1.5, 1.5),
    ],
)
def test_a_number_is_held_exactly_or_nearly(value: float, held: float):
    """64 signed bits are held as an integer, what is beyond them as a float."""
    assert (number(value), type(number(value))) == (held, type(held))


@given(JSON)
def test_any_recorded_value_makes_an_attribute(value: Any):
    """A scalar of its own type, or text; MessagePack has a word for each of them."""
    attribute = to_attribute(value)
    assert isinstance(attribute, str | bool | int | float)
    assert repr(msgspec.msgpack.decode(msgspec.msgpack.encode(attribute))) == repr(attribute)
    assert isinstance(attribute, bool) == isinstance(value, bool)


def test_what_is_no_scalar_is_json():
    """A list or dict reads as it was written."""
    value = {"layers": [1, 2.5, None, True, "ü"]}
    assert json.loads(str(to_attribute(value))) == value


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (10**400, "Infinity"),
        (-(10**400), "-Infinity"),
    ],
)
def test_an_attribute_that_is_no_finite_number_is_a_name(value: float, name: str):
    """Back ends that show spans as JSON have no number for it."""
    assert to_attribute(value) == name
