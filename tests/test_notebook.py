"""``pf.show()``: the run in the output of a cell."""

import pytest
from recorded import run_script

import periflow_otel as pf

CELLS = """
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

import periflow_otel as pf

shell = InteractiveShell.instance()

def run(cell):
    with capture_output() as captured:
        shell.run_cell(cell).raise_error()
    return [output.data.get("text/html", "") for output in captured.outputs]

run("import periflow_otel as pf; pf.init(local_log_name='train.log')")
run("for _ in range(3):\\n    with pf.train_step(): pf.metric({'loss': 0.125})")
(html,) = run("pf.show(height=300)")
print(html)
(html,) = run("pf.show(live=False)")
print('srcdoc=' in html, 'loss' in html, '0.125' in html, html.count('<iframe'))
run("pf.shutdown()")
(html,) = run("pf.show()")
print('srcdoc=' in html, 'finished' in html, '<script' in html)
"""
WORDS = """
import periflow_otel as pf
pf.init(local_log_name="train.log", run_id="job")
with pf.train_step():
    pf.metric({"loss": 0.125})
pf.show()
pf.shutdown()
pf.show()
"""


def test_a_notebook_shows_the_page_and_then_the_report():
    """A frame with the live page, a report of what is recorded so far, and one of everything."""
    pytest.importorskip("IPython", reason="IPython is not installed")
    ended = run_script(CELLS, PERIFLOW_AGENT="process", PERIFLOW_PAGE="1", OTEL_EXPORTER_PROMETHEUS_PORT="0")
    assert ended.status == 0, ended.errors
    page, *reports = ended.output.splitlines()
    assert page.startswith('<iframe src="http://127.0.0.1:')
    assert 'height="300"' in page
    assert reports == ["True True True 1", "True True False"]


def test_elsewhere_it_is_said_in_words():
    """In a script or a Python prompt there is no place for a frame."""
    ended = run_script(WORDS, PERIFLOW_AGENT="process", PERIFLOW_PAGE="1", OTEL_EXPORTER_PROMETHEUS_PORT="0")
    assert ended.status == 0, ended.errors
    page, *report = ended.output.splitlines()
    assert page.startswith("watch this run at http://127.0.0.1:")
    assert report[:2] == [report[0], "  loss 0.125"]
    assert report[0].startswith("job: finished at step 1")


def test_there_is_nothing_to_show_before_init(monkeypatch: pytest.MonkeyPatch):
    """As for every other call."""
    monkeypatch.setattr(pf, "_latest", None)
    with pytest.raises(pf.NotInitializedError, match="show"):
        pf.show()
