"""``periflow-otel report``: runs as one HTML file, and in a few words here."""

import gc
import sys
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from periflow_otel.cli.output import whole_file
from periflow_otel.cli.sources import find_sources, find_views
from periflow_otel.page.report import report_html
from periflow_otel.page.words import describe_run
from periflow_otel.view.run_view import RunView

_MAX_ROWS: Final = 30_000
"""Of all series of a run together: somewhat below 2 MB."""
_DIGITS: Final = 7
"""Of the values in a report: far more than a curve can show."""


def write_report(sources: Sequence[str], out: Path, *, opens: bool) -> int:
    """Write a report, and say what is in it.

    Args:
        sources: Folders, files, or ids of runs whose files are in the working folder.
        out: Where to write it.
        opens: Show it in a browser.

    Returns:
        0.

    Raises:
        ConfigurationError: A source is neither a file nor a run, or nothing is recorded there.
        OSError: It cannot be written, or a file cannot be read.
    """
    with _no_collection():
        views = find_views(find_sources(sources), partial(RunView, max_total_rows=_MAX_ROWS))
    html = report_html([view.to_dict(digits=_DIGITS) for view in views])
    with whole_file(out) as place:
        place.write_text(html, "utf-8")
    for view in views:
        print(describe_run(view.to_dict()))
    print(f"{out} ({len(html) >> 10} KiB)")
    if opens:
        _open(out.absolute().as_uri())
    return 0


def _open(uri: str) -> None:
    if not webbrowser.open(uri):
        print(f"periflow-otel: no browser can be opened here; the report is at {uri}", file=sys.stderr)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Look for no cycles meanwhile: millions of objects come and go, and none is in one."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
