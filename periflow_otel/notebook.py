"""A run within a notebook: its live page while it lasts, its report afterwards."""

import builtins
import importlib
import time
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Final

from periflow_otel.errors import ConfigurationError
from periflow_otel.journal.pages import page_url
from periflow_otel.run import TrainingRun

_PAGE_TIMEOUT_S: Final = 5.0
"""How long a page is waited for that the agent has not served yet."""
_LOOK_INTERVAL_S: Final = 0.05


class Frame:
    """A page in a frame, as a notebook shows it."""

    def __init__(self, source: str, height: int, caption: str = "") -> None:
        """Frame a page.

        Args:
            source: The attribute of the frame that says what is in it.
            height: In pixels.
            caption: What stands below it, as HTML.
        """
        frame = f'<iframe {source} width="100%" height="{height}" style="border:0" title="periflow_otel"></iframe>'
        self._html = f"{frame}<small>{caption}</small>" if caption else frame

    def _repr_html_(self) -> str:
        return self._html


def show(run: TrainingRun, height: int, *, is_live: bool) -> None:
    """Show a run where this code runs: in the output of a notebook, else as an address or words on stdout."""
    from periflow_otel.page.words import describe_run  # noqa: PLC0415  # takes a while, and few notebooks show a run

    url = _wait_for_page(run) if is_live and run.is_active else None
    if url:
        link = f'<a href="{escape(url)}" target="_blank">{escape(url)}</a>'
        caption = f"{link}. Empty where your browser runs on another machine: <code>pf.show(live=False)</code>"
        _display(Frame(f'src="{escape(url)}"', height, caption), f"watch this run at {url}")
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
    from periflow_otel.recordings import read_views  # noqa: PLC0415  # as above

    if run.info.local_log is None:
        message = "there are no files of this run to show: only local mode writes them"
        raise ConfigurationError(message)
    if run.is_active:
        run.flush()
    views = read_views(_files_beside(Path(run.info.local_log)))
    if run.run_id not in views:
        message = f"no files beside {run.info.local_log} tell of this run yet: try again after its first steps"
        raise ConfigurationError(message)
    view = views[run.run_id].to_dict(digits=7)
    return report_html([view]), view


def _files_beside(log: Path) -> list[Path]:
    from periflow_otel.recordings import find_files  # noqa: PLC0415  # as above

    with suppress(ConfigurationError):
        return find_files([log])
    return []
