"""The alerts fire when they should, and only then, and ask for what is really emitted."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from programs import program
from stack import CONFIG, ROOT

from periflow_otel import conventions, names
from periflow_otel.exporters.prometheus import family_name

FOLDER = CONFIG / "prometheus"
FILES = {"alerts": "periflow_run_id", "collectors": "instance"}
"""Alerts, and the label that says what they are about."""
CASES = [
    case
    for name in FILES
    for test in yaml.safe_load((FOLDER / f"{name}_test.yml").read_text())["tests"]
    for case in test["alert_rule_test"]
]


def rules(name: str) -> list[dict[str, Any]]:
    """Return the rules of a file."""
    return [rule for group in yaml.safe_load((FOLDER / name).read_text())["groups"] for rule in group["rules"]]


ALERTS = {name: [rule for rule in rules(f"{name}.yml") if "alert" in rule] for name in FILES}
NAMES = [alert["alert"] for name in FILES for alert in ALERTS[name]]


def promtool(*arguments: str | Path) -> None:
    """Run promtool, which must be content."""
    ended = subprocess.run([program("promtool"), *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_prometheus_accepts_the_configuration():
    """Configuration, recording rules and alerts are free of mistakes and of what a linter finds suspicious."""
    promtool("check", "config", "--lint-fatal", "prometheus.yml")
    promtool("check", "rules", "--lint-fatal", "rules.yml", "alerts.yml", "collectors.yml")


@pytest.mark.parametrize("name", FILES)
def test_alerts_do_what_their_cases_say(name: str):
    """Each case fires, or stays silent, at the time it says."""
    promtool("test", "rules", f"{name}_test.yml")


@pytest.mark.parametrize("alert", NAMES)
def test_an_alert_has_a_case_that_fires_and_one_that_does_not(alert: str):
    """Both kinds of case are there."""
    cases = [case for case in CASES if case["alertname"] == alert]
    assert any("exp_alerts" in case for case in cases)
    assert any("exp_alerts" not in case for case in cases)


@pytest.mark.parametrize(
    ("label", "alert"),
    [("periflow_run_id", alert) for alert in ALERTS["alerts"]]
    + [("instance", alert) for alert in ALERTS["collectors"]],
    ids=NAMES,
)
def test_an_alert_says_what_to_do(label: str, alert: dict[str, Any]):
    """It tells what is wrong, with which run or Collector, how bad that is and what to do."""
    assert f"{{{{ $labels.{label} }}}}" in alert["annotations"]["summary"]
    assert alert["annotations"]["runbook"].endswith(".")
    assert alert["labels"]["severity"] in ("warning", "critical")


@pytest.mark.parametrize("alert", NAMES)
def test_an_alert_has_a_runbook(alert: str):
    """The page has a section for each."""
    assert f"\n## {alert}\n" in (ROOT / "docs" / "runbooks.md").read_text()


@pytest.mark.parametrize(
    "rule", rules("rules.yml") + rules("alerts.yml"), ids=lambda rule: rule.get("alert") or rule["record"]
)
def test_a_rule_asks_for_what_is_emitted(rule: dict[str, Any]):
    """Every series in it is that of an instrument, or of another rule."""
    known = {rule["record"] for rule in rules("rules.yml")}
    for instrument in (*names.INSTRUMENTS, *conventions.INSTRUMENTS):
        name, _ = family_name(instrument)
        suffixes = {
            "counter": ("_total",), "gauge": ("",), "updowncounter": ("",), "histogram": ("_bucket", "_sum", "_count"),
        }  # fmt: skip
        known |= {name + suffix for suffix in suffixes[instrument.kind]}
    labels = {"periflow_tenant", *(each.replace(".", "_") for each in (*names.ATTRIBUTES, *conventions.ATTRIBUTES))}
    asked = set(re.findall(r"\b(?:periflow|system_|process_|hw_)[\w:]+", rule["expr"])) - labels
    assert asked <= known
    assert asked
