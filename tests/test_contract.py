"""The same calls under ``periflow_sdk`` 0.1.2 and here: a difference that docs/compatibility.md does not list fails.

Each row of a table of that page has a key; a difference that is found is explained by the key of a row, or not at all.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

DRIVER = Path(__file__).with_name("contract_driver.py")
PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
KEYS = re.findall(r"^\| `([a-z-]+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)
"""What the page lists."""

CLOUD = {
    "PERIFLOW_ENABLED": "1", "WORLD_SIZE": "5000000", "NODE_RANK": "0", "NUM_NODES": "1", "PROCESSED_ITERS": "5",
    "RANK": "{RANK}", "PERIFLOW_RUN_ID": "contract", "CKPT_DIR": "checkpoints",
}  # fmt: skip
NEEDED = ("WORLD_SIZE", "NODE_RANK", "NUM_NODES", "PROCESSED_ITERS")


class Subject:
    """A driver that plays one sequence after the other."""

    def __init__(self, package: str, folder: Path) -> None:
        """Start it."""
        folder.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, DRIVER, package, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def play(self, sequence: dict[str, Any]) -> dict[str, Any]:
        """Return what comes of a sequence."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(sequence) + "\n")
        self._process.stdin.flush()
        outcome: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert "broken" not in outcome, outcome["broken"]
        return outcome

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=30)


Both = tuple[Subject, Subject]


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Both]:
    """Return what plays sequences under the original, and what does so under ours."""
    monkeypatch.setenv("PERIFLOW_AGENT", "off")
    subjects = Subject("periflow_sdk", tmp_path / "original"), Subject("periflow_otel", tmp_path / "ours")
    yield subjects
    for each in subjects:
        each.close()


# What sequences are made of

KEY = st.sampled_from(["loss", "step", "rank", "a b", "läuft ☃", ""]) | st.text(max_size=5)
LEAF = st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=5)
VALUE = st.recursive(
    LEAF | st.sampled_from([["!", "set"], ["!", "object"], ["!", "bytes"]]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=3),
    max_leaves=6,
)
ODD_KEY = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1e300, "1", "null"])
MESSAGE = (
    st.dictionaries(KEY, VALUE, max_size=4)
    | st.lists(st.tuples(ODD_KEY, LEAF), max_size=3).map(lambda pairs: {"!keys": pairs})
    | st.sampled_from([None, [], [1, 2], "text", 3])
)
CALL = st.one_of(
    st.tuples(st.just("metric"), MESSAGE),
    st.sampled_from(
        [["start_step"], ["end_step"], ["upload_checkpoint"], ["is_emergency_save"], ["call_decorated", 7],
         ["request_save", -1], ["request_save", 2], ["request_save", 7]]
    ),
)  # fmt: skip
STEP = st.tuples(st.just("with"), st.lists(CALL, max_size=3), st.booleans())
CALLS = st.lists(CALL | STEP, max_size=10)
TOTAL = st.sampled_from([None, 1, 5, 6, 100, 0, -3, True, 5.5, 6.5, "x", [10]])
INIT = st.tuples(st.just("init"), TOTAL, st.sampled_from(["a.log", "b.log", "deep/a.log"]))
MALFORMED = st.dictionaries(
    st.sampled_from(NEEDED), st.sampled_from(["", "eight", "-1", "0", "3", " 7 ", "1.5"]), max_size=1
)
MISSING = st.lists(st.sampled_from([*NEEDED, "CKPT_DIR"]), max_size=1)
CLOUD_ENVIRON = st.builds(
    lambda odd, missing: {name: value for name, value in (CLOUD | odd).items() if name not in missing},
    MALFORMED | st.just({}) | st.just({"CKPT_DIR": ""}),
    MISSING | st.just([]),
)
ENVIRON = st.just({}) | st.sampled_from([{"CKPT_DIR": "c"}, {"PERIFLOW_ENABLED": "true"}]) | CLOUD_ENVIRON
SEQUENCE = st.builds(
    lambda environ, before, init, after: {"environ": environ, "calls": [*before, init, *after]},
    ENVIRON,
    st.lists(CALL, max_size=1),
    INIT,
    CALLS,
)


Call = dict[str, Any]
CLOUD_KEYS = ("step", "rank", "local_rank")
"""What the original overwrites in cloud mode."""


def _is_internal(new: Call) -> bool:
    return "PeriFlowInternalError" in new.get("raised", [])


def _was_uploaded(old: Call, new: Call) -> bool:
    return "already uploaded" in old.get("message", "") and "raised" not in new


ERRORS: dict[str, Callable[[Call, Call], bool]] = {
    "uneven-nodes": lambda _, new: _is_internal(new) and "same number of ranks" in new["message"],
    "malformed-variable": lambda old, new: old["call"] == "init" and _is_internal(new),
    "total-type": lambda old, new: old["call"] == "init" and "give the number of the last step, an" in new["message"],
    "not-a-mapping": lambda old, new: old["call"] == "metric" and "give a dict" in new.get("message", ""),
    "cloud-keys": lambda old, new: (
        "raised" not in old and any(f"of {key!r} is" in new["message"] for key in CLOUD_KEYS)
    ),
    "log-folder": lambda old, _: "FileNotFoundError" in old.get("raised", []),
}
"""What explains that a call raises another exception, or that only one of the two raises."""


class Comparison:
    """Explains every difference between two outcomes of one sequence by a key of the page."""

    def __init__(self, sequence: dict[str, Any], original: dict[str, Any], ours: dict[str, Any]) -> None:
        """Compare call by call, up to an ``init`` of which only one succeeds, and then what was recorded."""
        self.found: set[str] = set()
        self._environ: dict[str, str] = sequence["environ"]
        self._is_cloud = self._environ.get("PERIFLOW_ENABLED") == "1"
        self._requests = 0
        self._is_begun = False
        for old, new in zip(original["outcomes"], ours["outcomes"], strict=True):
            self._compare(old, new)
            if old["call"] == "init" and ("raised" in old) != ("raised" in new):
                return
        if self._is_cloud and self._is_begun:
            self._compare_records(original["recorded"], ours["recorded"])
            self._compare_metrics(original, ours)
        self._compare_logs(original, ours)

    def _explain(self, key: str | None, *what: object) -> None:
        assert key in KEYS, f"{key} is not listed: {what}"
        self.found.add(key)

    def _compare(self, old: Call, new: Call) -> None:
        assert (old["call"], old["arguments"]) == (new["call"], new["arguments"])
        self._requests += old["call"] == "request_save" and old["step"] != 0
        if not _is_kind(new.get("raised"), old.get("raised")):
            self._explain(self._of_error(old, new), old, new)
        if old.get("returned") != new.get("returned"):
            assert old["call"] == "is_emergency_save" or "raised" in old or "raised" in new, (old, new)
            if old["call"] == "is_emergency_save":
                self._explain(self._of_emergency(), old, new)
        self._is_begun |= old["call"] == "init" and "raised" not in old
        assert not self._is_begun or "raised" in new or old["step"] == new["step"], (old, new)
        if len(old["notices"]) != len(new["notices"]):
            self._explain(self._of_notices(), old, new)

    def _of_error(self, old: Call, new: Call) -> str | None:
        rules = ERRORS | ({"emergency-again": _was_uploaded} if self._requests else {})
        if self._environ.get("CKPT_DIR") == "":
            rules["empty-folder"] = _was_uploaded
        return next((key for key, applies in rules.items() if applies(old, new)), None)

    def _of_emergency(self) -> str:
        if not self._is_cloud:
            return "local-emergency"
        return "second-request" if self._requests > 1 else "answered-request"

    def _of_notices(self) -> str:
        if not self._is_cloud:
            return "local-twice"
        return "empty-folder" if self._environ.get("CKPT_DIR") == "" else "folder-warning"

    def _compare_records(self, old: Call, new: Call) -> None:
        assert old["ended"] == new["ended"]
        if old["checkpoints"] != new["checkpoints"]:
            if self._environ.get("CKPT_DIR") == "":
                self._explain("empty-folder", old, new)
            else:
                assert self._requests, (old, new)
                self._explain("answered-request", old, new)

    def _compare_metrics(self, original: dict[str, Any], ours: dict[str, Any]) -> None:
        sent, recorded = iter(original["recorded"]["metrics"]), iter(ours["recorded"]["metrics"])
        for old, new in zip(original["outcomes"], ours["outcomes"], strict=True):
            theirs = next(sent) if _is_recorded(old) else None
            own = next(recorded) if _is_recorded(new) else None
            if theirs and own:
                assert json.dumps(_others(theirs)) == json.dumps(_others(own))
                if json.dumps(theirs) != json.dumps(own):
                    self._explain("cloud-keys", theirs, own)
        assert (next(sent, None), next(recorded, None)) == (None, None)

    def _compare_logs(self, original: dict[str, Any], ours: dict[str, Any]) -> None:
        refused = [
            each for each in ours["outcomes"] if each["call"] == "metric" and "give a dict" in each.get("message", "")
        ]
        if any(each.get("raised") for each in original["outcomes"] if each["call"] == "metric"):
            original["logs"] = {name: text for name, text in original["logs"].items() if text}
        for name in original["logs"].keys() | ours["logs"].keys():
            old, new = original["logs"].get(name, ""), ours["logs"].get(name, "")
            if old == new:
                continue
            lines = [line for line in old.splitlines() if line.startswith("{")]
            if refused and lines == new.splitlines():
                self._explain("not-a-mapping", old, new)
            elif [_merged(line) for line in lines] == new.splitlines():
                self._explain("equal-keys", old, new)
            else:
                self._explain(None, name, old, new)


def _is_recorded(call: Call) -> bool:
    return call["call"] == "metric" and "raised" not in call


def _others(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in CLOUD_KEYS}


def _is_kind(raised: list[str] | None, expected: list[str] | None) -> bool:
    """Tell whether an exception, by the names of its classes, is caught by who catches the expected one."""
    return raised is None if expected is None else raised is not None and expected[0] in raised


def _merged(line: str) -> str:
    return json.dumps(json.loads(line))


def compare(both: Both, sequence: dict[str, Any]) -> set[str]:
    """Play a sequence under both, and return the keys of the differences."""
    original, ours = (subject.play(sequence) for subject in both)
    return Comparison(sequence, original, ours).found


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(sequence=SEQUENCE)
def test_every_difference_is_on_the_compatibility_page(both: Both, sequence: dict[str, Any]):
    """In exceptions, step numbers, notices, what is recorded, and every byte of the metric log."""
    compare(both, sequence)


def cloud(**odd: str) -> dict[str, str]:
    """Return the environment of cloud mode, with some variables different."""
    return CLOUD | odd


START, END, SAVE, ASK = ["start_step"], ["end_step"], ["upload_checkpoint"], ["is_emergency_save"]
INITIAL = ["init", 100, "a.log"]
DIFFERENT: dict[str, tuple[dict[str, str], list[Any]]] = {
    "malformed-variable": (cloud(WORLD_SIZE="eight"), [INITIAL]),
    "uneven-nodes": (cloud(NUM_NODES="3"), [INITIAL]),
    "total-type": (cloud(), [["init", "x", None]]),
    "log-folder": ({}, [["init", 1, "deep/a.log"], ["metric", {"a": 1}]]),
    "cloud-keys": (cloud(), [INITIAL, ["metric", {"step": 1, "rank": 2}]]),
    "not-a-mapping": ({}, [INITIAL, ["metric", [1, 2]]]),
    "equal-keys": ({}, [INITIAL, ["metric", {"!keys": [[1, "a"], ["1", "b"]]}]]),
    "local-twice": ({}, [INITIAL, START, SAVE, SAVE]),
    "emergency-again": (cloud(), [INITIAL, START, SAVE, ["request_save", -1], SAVE]),
    "answered-request": (cloud(), [INITIAL, START, ["request_save", -1], SAVE, END, START, ASK]),
    "second-request": (cloud(), [INITIAL, START, ["request_save", 6], SAVE, END, START, ["request_save", 7], ASK]),
    "local-emergency": ({}, [INITIAL, START, ["request_save", 1], ASK]),
    "folder-warning": ({k: v for k, v in CLOUD.items() if k != "CKPT_DIR"}, [INITIAL, SAVE, SAVE]),
    "empty-folder": (cloud(CKPT_DIR=""), [INITIAL, SAVE]),
}
"""For each row that calls can show, some that do."""


@pytest.mark.parametrize("key", DIFFERENT)
def test_a_row_of_the_page_is_a_difference(both: Both, key: str):
    """A row that says more than there is would be as wrong as one that is missing."""
    environ, calls = DIFFERENT[key]
    assert key in compare(both, {"environ": environ, "calls": calls})


def test_every_row_has_a_key_of_its_own():
    """So that it can be referred to."""
    assert len(set(KEYS)) == len(KEYS) > 20
