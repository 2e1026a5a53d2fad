"""A run within a notebook: its live page while it lasts, its report afterwards."""

import builtins
import importlib
import time
from html import escape
from pathlib import Path
from typing import Final

from periflow_otel.errors import ConfigurationError
from periflow_otel.journal.pages import page_url
from periflow_otel.training.run import TrainingRun

_PAGE_TIMEOUT_S: Final = 5.0
"""How long a page is waited for that the agent has not served yet."""
_LOOK_INTERVAL_S: Final = 0.05


class Frame:
    """A page in a frame, as a notebook shows it."""

    def __init__(self, source: str, height: int) -> None:
        """Frame a page.

        Args:
            source: The attribute of the frame that says what is in it.
            height: In pixels.
        """
        self._html = f'<iframe {source} width="100%" height="{height}" style="border:0" title="periflow_otel"></iframe>'

    def _repr_html_(self) -> str:
        return self._html


def show(run: TrainingRun, height: int, *, is_live: bool) -> None:
    """Show a run where this code runs: in the output of a notebook, else as an address or words on stdout."""
    from periflow_otel.page.words import describe_run  # noqa: PLC0415  # takes a while, and few notebooks show a run

    url = _wait_for_page(run) if is_live and run.is_active else None
    if url:
        _display(Frame(f'src="{escape(url)}"', height), f"watch this run at {url}")
        return
    html, view = _report(run)
    _display(Frame(f'sandbox="allow-scripts" srcdoc="{escape(html)}"', height), describe_run(view))


def _display(frame: Frame, words: str) -> None:
    if hasattr(builtins, "__IPYTHON__"):
        importlib.import_module("IPython.display").display(frame)
    else:
        print(words)  # noqa: T201  # there is nobody else to show it


def _wait_for_page(run: TrainingRun) -> str | None:
    deadline_s = time.monotonic() + _PAGE_TIMEOUT_S
    while (url := page_url(run.folder)) is None and time.monotonic() < deadline_s:
        time.sleep(_LOOK_INTERVAL_S)
    return url


def _report(run: TrainingRun) -> tuple[str, dict[str, object]]:
    from periflow_otel.page.report import report_html  # noqa: PLC0415  # as above
    from periflow_otel.recordings import find_files, read_views  # noqa: PLC0415  # as above

    if run.info.local_log is None:
        message = "there are no files of this run to show: only local mode writes them"
        raise ConfigurationError(message)
    if run.is_active:
        run.flush()
    view = read_views(find_files([Path(run.info.local_log)]))[run.run_id].to_dict(digits=7)
    return report_html([view]), view
