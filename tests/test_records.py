"""What is recorded comes back equal, whatever it is; what cannot be recorded is refused with the remedy."""

import contextlib
import copy
import gc
import json
import math
import weakref
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorder import make_run

from periflow_otel.records import (
    MAX_RECORD_BYTES,
    Checkpoint,
    Metric,
    Phase,
    RankLost,
    Record,
    RunFinished,
    StepEnded,
    decode,
    decode_run,
    encode,
    encode_metric,
    encode_run,
)
from periflow_otel.values import plain_mapping

any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
keys = st.text(max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.integers(min_value=-(1 << 70), max_value=1 << 70)
    | st.integers(min_value=-(1 << 2000), max_value=1 << 2000)
    | any_text
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=20
)


def recorded(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a mapping as it comes out of the journal."""
    record = decode(encode_metric(7, 123, values))
    assert isinstance(record, Metric)
    assert (record.step, record.time_unix_ns) == (7, 123)
    return record.values


def is_same(one: Any, other: Any) -> bool:
    """Say whether two JSON values are equal in type and value, NaN to NaN included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or (one == other and math.copysign(1, one * other or 1) >= 0)
    return bool(one == other)


@given(st.dictionaries(keys, json_values, max_size=5))
def test_any_json_value_comes_back_equal(values: dict[str, Any]):
    """NaN, integers of any size, broken Unicode, nested lists and dicts: equal, and of the same type."""
    assert is_same(recorded(copy.deepcopy(values)), values)


@given(st.dictionaries(keys, scalars, max_size=40))
def test_both_ways_of_encoding_agree(values: dict[str, Any]):
    """A plain dict of scalars, which takes the short way, is recorded as the thorough way would."""
    assert encode_metric(7, 123, values) == encode(Metric(7, 123, plain_mapping(values)))


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1])
def test_integers_have_no_largest(number: int):
    """At the bounds of 64 bits and beyond them an integer is what it was."""
    assert recorded({"a": number}) == {"a": number}


def test_an_integer_too_long_to_print_is_recorded():
    """Python refuses to print so many digits; nothing here asks it to."""
    assert recorded({"a": 10**5000}) == {"a": 10**5000}
    with pytest.raises(TypeError, match="the metrics are an object of type int"):
        plain_mapping(10**5000)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "record",
    [
        StepEnded(3, 1 << 60, 5, "ValueError"),
        StepEnded(3, 1, 5),
        Checkpoint(3, 1, is_step_open=True, is_emergency=True, request_delay_ns=9),
        Checkpoint(3, 1, is_step_open=False, is_emergency=False),
        Phase("evaluation", 2, 1, None, 1, 5, None, {"split": "test"}),
        RunFinished(1, "KeyboardInterrupt"),
        RankLost(1, 2, 3),
    ],
)
def test_every_kind_of_record_comes_back_equal(record: Record):
    """Records are values: what is decoded equals what was encoded."""
    assert decode(encode(record)) == record


def test_a_run_comes_back_equal():
    """The run in the header of a segment is the one that was written."""
    run = make_run(consumers=("metric_log", "otlp.traces"), resource=(("a", 1), ("b", "c")), total_steps=10)
    assert decode_run(encode_run(run)) == run


def test_a_path_that_is_not_valid_text_comes_back_equal():
    """A folder whose name is in another encoding does not stop a run, and its log stays where it is."""
    run = make_run(local_log="/data/\udcff/a.log")
    assert decode_run(encode_run(run)) == run


@pytest.mark.parametrize("blob", [b"", b"\xc1", b"\x91\x01", b"\xa1a"])
def test_bytes_that_are_no_run_are_refused(blob: bytes):
    """Whatever the bytes are, the error is the one that a reader expects."""
    with pytest.raises(msgspec.DecodeError):
        decode_run(blob)


class Named(str, Enum):
    """Text that is more than text."""

    LOSS = "loss"


class Lazy(dict[str, Any]):
    """A dict that shows something else than it holds, as some frameworks have."""

    def values(self) -> Any:
        """Show numbers where there are others."""
        return [1.0]


@dataclass
class View(Mapping[str, Any]):
    """A mapping that is not a dict, and has a field."""

    data: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        """Look a key up."""
        return self.data[key]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys."""
        return iter(self.data)

    def __len__(self) -> int:
        """Count the keys."""
        return len(self.data)


@pytest.mark.parametrize(
    "values",
    [
        MappingProxyType({"a": 1, "b": [2]}),
        UserDict({"a": 1, "b": [2]}),
        View({"a": 1, "b": [2]}),
        OrderedDict(a=1, b=[2]),
        defaultdict(int, a=1, b=[2]),
    ],
)
def test_a_mapping_need_not_be_a_dict(values: Mapping[str, Any]):
    """Every kind of mapping is recorded as the dict that it stands for."""
    assert recorded(values) == {"a": 1, "b": [2]}


@pytest.mark.parametrize("values", [MappingProxyType({"a": 1}), UserDict({"a": 1}), View({"a": 1})])
def test_a_mapping_of_scalars_need_not_be_a_dict(values: Mapping[str, Any]):
    """The short way is taken by dicts alone: the encoder would see the fields of an object instead."""
    assert recorded(values) == {"a": 1}


def test_text_that_is_more_than_text_is_recorded_as_text():
    """Members of an enumeration that are text, as key and as value, become that text."""
    values = recorded({Named.LOSS: Named.LOSS, "a": 1})
    assert values == {"loss": "loss", "a": 1}
    assert all(type(key) is str for key in values)


def test_a_dict_that_hides_its_values_is_checked_all_the_same():
    """What is checked is what is encoded."""
    with pytest.raises(TypeError, match="the value of 'a' is an object of type set"):
        encode_metric(1, 1, Lazy(a={1}))


def test_keys_are_spelled_as_in_a_json_file():
    """Keys that JSON has no words for become the text that ``json`` makes of them."""
    values = dict.fromkeys([2, 1.5, True, None, math.nan, math.inf, 1e100, 1 << 80], 0)
    assert recorded(values) == json.loads(json.dumps(values))


def test_a_key_that_is_not_valid_text_is_made_valid():
    """A key becomes a name that goes to other programs; its broken characters do not."""
    assert recorded({"a\ud800": 1}) == {"a?": 1}


@pytest.mark.parametrize(
    ("scalar", "number"),
    [
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.int64(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.uint8(255), 255),
        (np.bool_(True), True),  # noqa: FBT003  # a NumPy scalar is made by position
        (np.array(2.5), 2.5),
        (np.array([7]), 7),
        (np.str_("text"), "text"),
    ],
    ids=lambda each: f"{type(each).__name__}",
)
def test_scalars_of_other_libraries_become_python_numbers(scalar: Any, number: Any):
    """NumPy scalars are converted at the call, also inside lists and dicts."""
    assert is_same(recorded({"a": scalar, "b": [scalar, {"c": scalar}]}), {"a": number, "b": [number, {"c": number}]})


@pytest.mark.parametrize("scalar", [np.float64("nan"), np.float32("nan")])
def test_a_scalar_that_is_not_a_number_stays_one(scalar: Any):
    """NaN survives the conversion."""
    assert math.isnan(recorded({"a": scalar})["a"])


class Opaque:
    """A value that is no number."""


class Failing:
    """A scalar that cannot say what it is."""

    def item(self) -> float:
        """Fail."""
        message = "the device is gone"
        raise RuntimeError(message)


def containing_itself() -> list[Any]:
    """Return a list that contains itself."""
    loop: list[Any] = []
    loop += [1, loop]
    return loop


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"a": {1}}, TypeError, "the value of 'a' is an object of type set; give a number, text, bool, None, list or"),
        ({"a": b"x"}, TypeError, "the value of 'a' is an object of type bytes; give a number"),
        ({"a": Opaque()}, TypeError, "the value of 'a' is an object of type Opaque; give a number"),
        ({"a": [{"b": Opaque()}]}, TypeError, "the value of 'a.b' is an object of type Opaque"),
        ({"a": 1j}, TypeError, "the value of 'a' is an object of type complex"),
        ({"a": Failing()}, TypeError, "the value of 'a', a Failing, is not a single number: the device is gone"),
        ({"a": np.arange(3)}, TypeError, "the value of 'a', a ndarray, is not a single number: "),
        ({"a": np.bytes_(b"x")}, TypeError, "the value of 'a', a bytes_, holds an object of type bytes, not a number"),
        ({(1, 2): 1}, TypeError, "a key is an object of type tuple; give text"),
        ({b"a": 1}, TypeError, "a key is an object of type bytes; give text"),
        ({np.int64(3): 1}, TypeError, "a key is an object of type int64; give text"),
        ({"a": {b"b": 1}}, TypeError, "a key is an object of type bytes; give text"),
        ({"k" * 10_000: 1}, ValueError, f"the key '{'k' * 40}…' has 10000 characters; at most 256 make a name"),
        ({"a": {"k" * 257: 1}}, ValueError, "has 257 characters; at most 256 make a name"),
        ({"a": "x" * 5_000_000}, ValueError, r"50000\d\d bytes were given to one call; at most 4194304 can be rec"),
        ({"a": containing_itself()}, ValueError, "the value of 'a' nests deeper than 32, or contains itself"),
        ([("a", 1)], TypeError, "the metrics are an object of type list"),
        (None, TypeError, "the metrics are NoneType None"),
        ("a", TypeError, "the metrics are 'a'"),
        (0.5, TypeError, "the metrics are float 0.5"),
    ],
)
def test_misuse_is_refused_in_plain_words(values: Any, kind: type[Exception], message: str):
    """The error names the key, what was given, and what is wanted; its length has a bound."""
    with pytest.raises(kind, match=message) as caught:
        encode_metric(1, 1, values)
    assert len(str(caught.value)) < 300


def test_names_may_be_many():
    """The bound is on each name, not on all together."""
    values = {f"layer.{i}.weight.norm": float(i) for i in range(1000)}
    assert recorded(values) == values


def test_the_longest_name_is_recorded():
    """A name of just the greatest length comes back."""
    assert recorded({"k" * 256: 1}) == {"k" * 256: 1}


def test_the_largest_record_is_recorded():
    """A record of exactly the greatest size is taken, and one of a byte more is not."""
    overhead = len(encode_metric(1, 1, {"a": "x" * 100_000})) - 100_000
    assert len(encode_metric(1, 1, {"a": "x" * (MAX_RECORD_BYTES - overhead)})) == MAX_RECORD_BYTES
    with pytest.raises(ValueError, match=f"{MAX_RECORD_BYTES + 1} bytes were given"):
        encode_metric(1, 1, {"a": "x" * (MAX_RECORD_BYTES - overhead + 1)})


def test_later_changes_do_not_matter():
    """The mapping is encoded at the call: what the caller does to it, or to a list in it, is not recorded."""
    inner = [1, {"b": 2}]
    values: dict[str, Any] = {"a": inner, "c": 3}
    payload = encode_metric(1, 1, values)
    inner.append(4)
    values["c"] = 5
    record = decode(payload)
    assert isinstance(record, Metric)
    assert record.values == {"a": [1, {"b": 2}], "c": 3}


def test_no_reference_to_a_value_is_kept():
    """An array that was recorded can be freed at once."""
    values = {"a": [np.array(0.5)]}
    seen = weakref.ref(values["a"][0])
    encode_metric(1, 1, values)
    del values
    gc.collect()
    assert seen() is None


@given(st.binary(max_size=200))
def test_bytes_that_are_no_record_raise_nothing_else(data: bytes):
    """Whatever the bytes are, decoding gives a record or one of the errors that a reader expects."""
    with contextlib.suppress(msgspec.DecodeError, ValueError):
        decode(data)
