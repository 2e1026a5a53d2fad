"""The files that make up the page, wherever the package is: also in a zip."""

from functools import cache
from importlib.resources import files
from typing import Final

STYLES: Final = ("uplot/uPlot.min.css", "page.css")
SCRIPTS: Final = ("uplot/uPlot.iife.min.js", "model.js", "draw.js", "page.js")
"""In the order in which they run; ``report.js``, ``live.js`` or ``index.js`` comes last."""


@cache
def asset(name: str) -> str:
    """Return the text of a file, such as ``page.css``."""
    return files("periflow_otel.page").joinpath("static", *name.split("/")).read_text("utf-8")
