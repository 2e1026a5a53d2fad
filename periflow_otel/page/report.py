"""Runs as one HTML file with everything in it: opens from a disk, asks nobody for anything.

Where scripts are not allowed it still shows pictures and tables, which the scripts put away.
"""

import hashlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

import msgspec

from periflow_otel.page.assets import SCRIPTS, STYLES, text_of
from periflow_otel.page.pictures import pictures

View = Mapping[str, Any]
"""What ``RunView.to_dict`` returns."""


def report_html(views: Sequence[View]) -> str:
    """Return a report of runs, one over the other where they are several."""
    styles = [text_of(name) for name in STYLES]
    scripts = [text_of(name) for name in (*SCRIPTS, "report.js")]
    title = escape(", ".join(str(view["run"]["name"] or view["run"]["id"]) for view in views))
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_policy(styles, scripts)}">'
    return Template(text_of("page.html")).substitute(
        head="\n".join([policy, f"<title>{title}</title>", *(f"<style>{style}</style>" for style in styles)]),
        static=pictures(views),
        scripts="\n".join(
            [
                f'<script type="application/json" id="data">{_data(views)}</script>',
                *(f"<script>{script}</script>" for script in scripts),
            ]
        ),
    )


def _policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    """Allow exactly these texts, and no request."""
    allowed = {"script-src": scripts, "style-src": styles}
    sources = (f"{kind} {' '.join(map(_hash, texts))}" for kind, texts in allowed.items())
    return "; ".join(("default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'", *sources))


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data(views: Sequence[View]) -> str:
    """Return JSON that no text in it can end: what begins a tag is written as a number."""
    return msgspec.json.encode({"runs": views}).decode().replace("<", "\\u003c")
