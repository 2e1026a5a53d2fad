"""A real browser that looks at pages, and tells what it met."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


class Tab:
    """A page in a browser; ``page`` is what Playwright calls so."""

    def __init__(self, page: Any) -> None:
        """Listen to what goes wrong, and to what is asked for."""
        self.page = page
        self.faults: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("dialog", lambda dialog: (self.faults.append("a dialog was opened"), dialog.dismiss()))
        page.on("request", lambda request: self.asked.append(request.url))

    def open(self, url: str) -> None:
        """Open a page, and wait until its first curve is drawn."""
        self.page.goto(url)
        self.page.wait_for_function("() => window.periflow && [...periflow.charts].some((each) => each.curve)")

    def chart(self, title: str) -> Any:
        """Return what a chart draws: ``x`` and ``ys``, the range of its axes, and what is said of its cursor."""
        self.see(title)
        return self.page.evaluate(
            """(title) => {
                const chart = [...periflow.charts].find((each) => each.title === title), curve = chart.curve;
                return { x: [...curve.data[0]], ys: curve.data.slice(1).map((each) => [...each]),
                         from: curve.scales.x.min, to: curve.scales.x.max, isLog: curve.scales.y.distr === 3,
                         labels: chart.shown.map((line) => line.label),
                         value: chart.value.textContent, said: chart.said.textContent };
            }""",
            title,
        )

    def see(self, title: str) -> None:
        """Scroll to a chart, and wait until it is drawn as it is to be."""
        self.page.locator(
            "article", has=self.page.get_by_role("heading", name=title, exact=True)
        ).first.scroll_into_view_if_needed()
        self.page.wait_for_function(
            "(title) => { const chart = [...periflow.charts].find((each) => each.title === title);"
            " return chart && chart.curve && !chart.isDirty; }",
            arg=title,
        )

    def ink(self, title: str, x: float, y: float) -> int:
        """Return how strongly a chart is painted around a point of its axes: 0 is not at all."""
        self.see(title)
        return int(
            self.page.evaluate(
                """([title, x, y]) => {
                    const curve = [...periflow.charts].find((each) => each.title === title).curve;
                    const at = (value, scale) => Math.round(curve.valToPos(value, scale, true)) - 2;
                    const near = curve.ctx.getImageData(at(x, "x"), at(y, "y"), 5, 5).data;
                    return Math.max(...near.filter((_, i) => i % 4 === 3));
                }""",
                [title, x, y],
            )
        )

    def violations(self) -> list[str]:
        """Return what axe-core finds serious or worse."""
        source = files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
        self.page.evaluate(source)
        found = self.page.evaluate("() => axe.run()")["violations"]
        return [
            f"{each['id']}: {node['html']} {node['failureSummary']}"
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]


@contextmanager
def chromium() -> Iterator[Any]:
    """Start a browser."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  # only where there is a browser

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def tab(browser: Any, own: str, **options: Any) -> Iterator[Tab]:
    """Open a tab; in the end nothing may have gone wrong, and nobody but ``own`` may have been asked for anything."""
    context = browser.new_context(**options)
    opened = Tab(context.new_page())
    yield opened
    context.close()
    assert opened.faults == []
    assert {urlsplit(each)[:2] for each in opened.asked if not each.startswith("data:")} == {urlsplit(own)[:2]}
