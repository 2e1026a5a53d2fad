"""The recipes of CONTRIBUTING make what they say: each is followed here to the letter."""

import re
import runpy
import sys
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any, Final

import pytest
from journals import numbered
from programs import wait_until
from recorder import make_run

from periflow_otel import names, testing
from periflow_otel.agent import destinations
from periflow_otel.agent.watch import find_journals
from periflow_otel.config import export
from periflow_otel.journal.folders import journal_folder
from periflow_otel.journal.writer import JournalWriter

ROOT = Path(__file__).parents[1]


def blocks(title: str) -> list[str]:
    """Return the code of a section."""
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    section = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return [dedent(each) for each in re.findall(r"^ *```python\n(.*?)^ *```$", section, re.DOTALL | re.MULTILINE)]


def test_the_recipe_for_an_exporter_makes_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A module, a row and a name: the variable that asks for it, and points in the file."""
    code, row = blocks("To add an exporter")
    module = ModuleType("periflow_otel.exporters.csv")
    exec(code, vars(module))  # noqa: S102  # our own page
    monkeypatch.setitem(sys.modules, module.__name__, module)
    rows = eval("{" + row + "}", vars(destinations))  # noqa: S307  # as above
    monkeypatch.setattr(destinations, "DESTINATIONS", {**destinations.DESTINATIONS, **rows})
    monkeypatch.setitem(export.OWN_EXPORTERS, "metrics", export.OWN_EXPORTERS["metrics"] | {"csv"})
    monkeypatch.chdir(tmp_path)

    settings = export.ExportSettings.from_environ({"OTEL_METRICS_EXPORTER": "csv"})
    assert "csv.metrics" in settings.consumers()
    consumer = destinations.durable_consumer("csv.metrics", settings, tmp_path)
    assert consumer is not None
    (journal := journal_folder(tmp_path, 1, 0)).mkdir()
    JournalWriter(journal, make_run()).append(numbered(7))
    consumer.follow(find_journals(tmp_path, {}).values())
    consumer.start()
    file = tmp_path / "points.csv"
    wait_until(lambda: file.exists() and ",periflow.metric.n,7\n" in file.read_text(), 20, "the point is in the file")
    consumer.stop(10)


def test_the_recipe_for_an_instrument_documents_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Its line is what ``make docs`` needs."""
    (code,) = blocks("To add an instrument")
    space: dict[str, Any] = {"Final": Final, "Instrument": names.Instrument}
    exec(code, space)  # noqa: S102  # our own page
    monkeypatch.setattr(names, "INSTRUMENTS", (*names.INSTRUMENTS, space["STEP_TOKENS"]))
    runpy.run_path(str(ROOT / "scripts" / "telemetry_table"), run_name="__main__")
    row = (
        "| `periflow.step.tokens` | counter | `{token}` | `periflow_step_tokens_total` | Tokens that steps have seen. |"
    )
    assert row in capsys.readouterr().out


def test_the_recipe_for_an_integration_records_steps():
    """With the public functions alone."""
    (code,) = blocks("To add an integration")
    space: dict[str, Any] = {}
    exec(code, space)  # noqa: S102  # our own page
    hook = space["PeriFlowHook"]()
    with testing.capture() as captured:
        hook.on_train_begin(2)
        for step in (1, 2):
            hook.on_step_begin()
            hook.on_step_end({"loss": 1 / step})
        hook.on_train_end()
    assert [step.number for step in captured.steps] == [1, 2]
    assert captured.metrics("loss") == [1.0, 0.5]
