"""The documentation tells the truth: its code runs, its tables are complete, its links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from periflow_otel import names
from periflow_otel.config.run import RunSettings
from periflow_otel.config.unread import UNREAD

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def _code_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


CODE_BLOCKS = _code_blocks(README)


def _run(*command: str | Path, folder: Path = ROOT) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PERIFLOW_"))}
    environ |= {"PERIFLOW_STATE_DIR": str(folder / "state"), "OTEL_EXPORTER_PROMETHEUS_PORT": "0"}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_readme_has_code():
    """The pattern above finds the blocks that the next test runs."""
    assert CODE_BLOCKS


@pytest.mark.parametrize("number", range(len(CODE_BLOCKS)))
def test_the_code_of_the_readme_runs(number: int, tmp_path: Path):
    """Every Python block of the README is a script that ends well."""
    _run(sys.executable, "-c", CODE_BLOCKS[number], folder=tmp_path)


def test_the_code_of_the_testing_page_passes(tmp_path: Path):
    """Its blocks, put together, are a test file in which every test passes."""
    blocks = _code_blocks((ROOT / "docs" / "testing.md").read_text("utf-8"))
    (tmp_path / "test_page.py").write_text("\n\n".join(blocks), "utf-8")
    shown = _run(sys.executable, "-m", "pytest", "test_page.py", folder=tmp_path)
    assert f" {len(blocks)} passed" in shown


def test_the_table_of_telemetry_is_up_to_date():
    """``make docs`` would change nothing."""
    assert _run(sys.executable, ROOT / "scripts" / "telemetry_table") == (ROOT / "docs/telemetry.md").read_text("utf-8")


class Watched(dict[str, str]):
    """An environment that notes what is looked up."""

    def __init__(self, **variables: str) -> None:
        """Note nothing yet."""
        super().__init__(variables)
        self.read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """Look a variable up."""
        self.read.add(name)
        return super().get(name, default)


def test_the_standard_variables_that_are_read_are_documented_and_no_others():
    """The configuration page names each, also in the form per signal; what is not read stands in a table of its own."""
    text = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    table = text[text.index("## OpenTelemetry") :].partition("\n## ")[0].partition("not read")[0]
    documented = set(re.findall(r"`((?:OTEL|TRACE)[A-Z_]+[A-Z])`", table))
    read: set[str] = set()
    for more in ({"PERIFLOW_ENABLED": "1"}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://x"}):
        watched = Watched(**more)
        RunSettings.from_environ(watched)
        read |= {name for name in watched.read if name.startswith(("OTEL_", "TRACE"))}
    general = {re.sub("OTLP_(TRACES|METRICS|LOGS)_(?!TEMPORALITY|DEFAULT)", "OTLP_", name) for name in read}
    assert general == documented - UNREAD.keys()


def test_every_variable_of_ours_is_documented():
    """On the same page."""
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    assert not {name for name in names.VARIABLES if f"`{name}`" not in page}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    """Every relative link names a file that is there."""
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8"))
    assert not [target for target in targets if not (page.parent / target).exists()]
