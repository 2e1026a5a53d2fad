"""``pf.show()``: the run where the code is, while it lasts and afterwards."""

import builtins
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import periflow_otel as pf


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what a notebook is given to display."""
    shown: list[Any] = []
    monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=shown.append))
    return shown


def test_a_run_is_framed_in_a_notebook(displayed: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its page while it lasts, with what helps where no browser reaches that; its report afterwards, all in it."""
    monkeypatch.setenv("PERIFLOW_PAGE", "1")
    pf.init(2, tmp_path / "train.log", name="<b>try</b>")
    for loss in (2.0, 1.0):
        with pf.train_step():
            pass
        pf.metric({"loss": loss})
    pf.show(height=500)
    pf.shutdown()
    pf.show()
    live, report = (each._repr_html_() for each in displayed)
    assert live.startswith('<iframe src="http://127.0.0.1:')
    assert 'height="500"' in live
    assert "pf.show(live=False)" in live
    assert report.startswith('<iframe sandbox="allow-scripts" srcdoc="')
    assert report.count("<") == 2
    assert "&quot;key&quot;:&quot;loss&quot;" in report


def test_elsewhere_words_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """In a script or a plain prompt."""
    pf.init(2, tmp_path / "train.log", run_id="job")
    pf.shutdown()
    pf.show()
    assert capsys.readouterr().out.startswith("job: finished at step 0/2")


def test_where_nothing_is_in_files_yet_it_is_said(monkeypatch: pytest.MonkeyPatch):
    """An error that says what to do, not one about files that nobody has named."""
    monkeypatch.setenv("PERIFLOW_AGENT", "off")
    pf.init(2, "train.log")
    with pytest.raises(pf.ConfigurationError, match=r"train\.log tell of this run yet"):
        pf.show(live=False)
    pf.shutdown()
