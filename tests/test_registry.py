"""Names hold against the rules that OpenTelemetry publishes for registries of names."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from recorder import Recorder, S, give, make_run

from periflow_otel import names
from periflow_otel.agent.reports import Reporter
from periflow_otel.records import Config
from periflow_otel.translate.points import PointTranslator

ROOT = Path(__file__).parents[1]
REGISTRY: dict[str, Any] = yaml.safe_load((ROOT / "docs/registry/periflow.yaml").read_text("utf-8"))
ATTRIBUTES = [each["key"] for each in REGISTRY["attributes"]]
METRICS = [each["name"] for each in REGISTRY["metrics"]]
GROUPS = {"attributes": "key", "metrics": "name", "spans": "type", "events": "name"}
NAME = re.compile(r"[a-z][a-z0-9]*([._][a-z0-9]+)*")
PAST = ("completed", "redone", "done", "ended", "exported", "dropped", "set_aside")
"""What became of things that are counted: as in ``otel.sdk.exporter.span.exported``."""


def namespaces(all_names: list[str]) -> set[str]:
    """Return every namespace in which there is a name."""
    parts = [name.split(".") for name in all_names]
    return {".".join(each[:end]) for each in parts for end in range(1, len(each))}


def test_the_registry_is_up_to_date():
    """``make docs`` would change nothing."""
    command = [sys.executable, ROOT / "scripts" / "telemetry_table", "registry"]
    written = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert written == (ROOT / "docs/registry/periflow.yaml").read_text("utf-8")


def test_the_registry_has_every_name():
    """And each once."""
    ours = [name.rstrip(".") for name in names.ATTRIBUTES if name.startswith("periflow.")]
    assert ours == ATTRIBUTES
    assert [each.name for each in names.INSTRUMENTS] == METRICS
    for group, key in GROUPS.items():
        assert Counter(each[key] for each in REGISTRY[group]).most_common(1)[0][1] == 1


@pytest.mark.parametrize("group", GROUPS)
def test_names_are_well_formed(group: str):
    """Lower case, with dots and single underscores between words, and in a namespace."""
    found = [each[GROUPS[group]] for each in REGISTRY[group]]
    assert all(NAME.fullmatch(name) and "." in name for name in found)


@pytest.mark.parametrize("group", ["attributes", "metrics"])
def test_no_name_is_the_namespace_of_another(group: str):
    """Else neither could be a field of one document."""
    found = [each[GROUPS[group]] for each in REGISTRY[group]]
    assert not namespaces(found) & set(found)


@pytest.mark.parametrize("group", GROUPS)
def test_no_two_names_become_one_constant(group: str):
    """Generated code has underscores for dots."""
    constants = [each[GROUPS[group]].replace(".", "_") for each in REGISTRY[group]]
    assert len(set(constants)) == len(constants)


def test_every_entry_says_what_it_is():
    """In sentences."""
    for group in GROUPS:
        assert all(each["brief"].endswith(".") and each["stability"] for each in REGISTRY[group])


@pytest.mark.parametrize("metric", REGISTRY["metrics"], ids=lambda each: each["name"])
def test_what_is_counted_is_plural(metric: dict[str, Any]):
    """A counter of things is named after them, or after what became of them; no other instrument is."""
    last = metric["name"].rpartition(".")[2]
    counts_things = metric["instrument"] == "counter" and metric["unit"].startswith("{")
    assert counts_things == ((last.endswith("s") and last != "since_success") or last in PAST)
    assert not last.endswith("total")


def test_an_attribute_of_many_is_plural():
    """Only arrays, counts and templates hold more than one thing."""
    arrays = [each["key"] for each in REGISTRY["attributes"] if each["type"].endswith("[]")]
    assert all(key.endswith("s") for key in arrays)


def test_metrics_refer_to_attributes_that_are_there():
    """None of them is of any type: those are for spans."""
    types = {each["key"]: each["type"] for each in REGISTRY["attributes"]}
    used = {each["ref"] for metric in REGISTRY["metrics"] for each in metric["attributes"]}
    assert all("any" not in types[each] for each in used)


def test_no_key_of_a_user_can_be_one_of_our_names():
    """Users' keys have namespaces in which nothing is ours."""
    prefixes = (names.METRIC_PREFIX, names.CONFIG_PREFIX)
    ours = {*names.ATTRIBUTES, *METRICS} - {*prefixes}
    assert not [name for name in ours if name.startswith(prefixes)]


def test_points_carry_what_the_registry_says(tmp_path: Path):
    """Of every instrument that a run and its agent show."""
    recorder = Recorder()
    with recorder.step():
        recorder.work(S)
    recorder.metric({"loss": float("nan")})
    recorder.checkpoint()
    recorder.finish()
    translator = PointTranslator(make_run(total_steps=9), shows_steps=True)
    give(translator, [Config({"lr": 0.1}), *recorder.inputs])
    translator.settle()
    points = [*translator.take(), *(point for _, point in Reporter(tmp_path).report(make_run(), [], []))]
    refs = {each["name"]: {ref["ref"] for ref in each["attributes"]} for each in REGISTRY["metrics"]}
    found = {point.instrument.name: {key for key, _ in point.attributes} for point in points}
    user = found.pop("periflow.metric.loss")
    assert user == {names.METRIC_KEY, names.RANK}
    assert len(found) > 12
    assert found == {name: refs[name] for name in found}
