"""The files that make up the page, wherever the package is: also in a zip."""

from functools import cache
from importlib.resources import files
from typing import Final

STYLES: Final = ("uplot/uPlot.min.css", "page.css")
SCRIPTS: Final = ("uplot/uPlot.iife.min.js", "model.js", "draw.js", "page.js")
"""In the order in which they run; ``report.js``, ``live.js`` or ``index.js`` comes last."""


_TYPES: Final = {"css": "text/css", "js": "text/javascript"}


@cache
def text_of(name: str) -> str:
    """Return the text of a file, such as ``page.css``."""
    return files("periflow_otel.page").joinpath("static", *name.split("/")).read_text("utf-8")


def asset(name: str) -> tuple[str, str] | None:
    """Return the text of a style or script of the page and its type; None if there is none of the name."""
    if name not in (*STYLES, *SCRIPTS, "live.js", "clock.js"):
        return None
    return text_of(name), f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
