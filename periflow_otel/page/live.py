"""The page of a run that goes on, and the list of all such pages of a node."""

from collections.abc import Iterable
from functools import cache
from html import escape
from string import Template
from urllib.parse import unquote

from periflow_otel.page.assets import SCRIPTS, STYLES, text_of


@cache
def live_html() -> str:
    """Return the page, which asks for everything else."""
    return Template(text_of("page.html")).substitute(
        head="\n".join(["<title>periflow_otel</title>", *_styles()]),
        static="<p>This page needs scripts; periflow-otel report makes one that does not.</p>",
        scripts="\n".join(f'<script src="/static/{name}" defer></script>' for name in (*SCRIPTS, "live.js")),
    )


def index_html(pages: Iterable[tuple[str, str, bool]]) -> str:
    """Return a list of pages.

    Args:
        pages: Of each run the name of its folder, the address of its page, and whether it is served from here.
    """
    rows = "".join(
        f'<li class="card"><a href="{escape("/run" if is_here else url)}">{escape(unquote(name))}</a></li>'
        for name, url, is_here in pages
    )
    return Template(text_of("index.html")).substitute(
        head="\n".join(_styles()), rows=rows or '<li class="card">No run has a page now.</li>'
    )


def _styles() -> list[str]:
    return [f'<link rel="stylesheet" href="/static/{name}">' for name in STYLES]
