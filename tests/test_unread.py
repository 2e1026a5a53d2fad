"""Who sets a standard variable that is not obeyed is told so."""

import re
from pathlib import Path

import pytest

import periflow_otel as pf
from periflow_otel.config.unread import UNREAD, unread

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"


def test_variables_that_are_set_are_named():
    """In the order of the alphabet, whatever else is there."""
    environ = {"OTEL_SPAN_EVENT_COUNT_LIMIT": "7", "OTEL_CONFIG_FILE": "/otel.yaml", "OTEL_SERVICE_NAME": "a"}
    assert unread(environ) == ["OTEL_CONFIG_FILE", "OTEL_SPAN_EVENT_COUNT_LIMIT"]


@pytest.mark.parametrize("value", ["", " ", "tracecontext", "tracecontext, baggage", "Baggage,"])
def test_what_happens_anyway_is_not_named(value: str):
    """Nor is an empty value, which is an unset one."""
    assert unread({"OTEL_PROPAGATORS": value}) == []


@pytest.mark.parametrize(
    ("name", "default", "other"),
    [
        ("OTEL_METRICS_EXEMPLAR_FILTER", "trace_based", "always_off"),
        ("OTEL_PYTHON_ID_GENERATOR", "random", "xray"),
        ("OTEL_LOG_LEVEL", "INFO", "debug"),
    ],
)
def test_a_default_is_not_named(name: str, default: str, other: str):
    """Who sets what holds anyway loses nothing."""
    assert [unread({name: value}) for value in (default, other)] == [[], [name]]


def test_another_propagator_is_named():
    """A launcher that speaks B3 is not understood."""
    assert unread({"OTEL_PROPAGATORS": "tracecontext,b3"}) == ["OTEL_PROPAGATORS"]


def test_table_of_the_documentation_is_this_one():
    """Each with what holds instead."""
    table = PAGE.read_text("utf-8").partition("These standard variables are not read")[2].partition("\n\n")[2]
    rows = re.findall(r"^\| `(\S+)` \| (.*) \|$", table.partition("\n\n")[0], re.MULTILINE)
    assert dict(rows) == UNREAD


@pytest.mark.parametrize(("local_rank", "is_said"), [("0", True), ("1", False)])
def test_one_rank_of_a_node_says_it(
    local_rank: str, is_said: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Once at the start, in one line."""
    launcher = {"RANK": local_rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**launcher, "OTEL_CONFIG_FILE": "/otel.yaml", "PERIFLOW_AGENT": "off"}.items():
        monkeypatch.setenv(name, value)
    pf.TrainingRun(3).shutdown()
    said = [message for message in caplog.messages if "OTEL_CONFIG_FILE" in message]
    assert len(said) == bool(is_said)
