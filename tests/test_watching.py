"""What is watched is drawn over itself, on a screen of its own."""

import os
import sys
from collections.abc import Callable

import pytest

from periflow_otel.cli.watching import watched

TEXT = "\n".join(["first line, which is long", *"abcdefgh"])


def drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch, describe: Callable[[int | None], str], term: str) -> str:
    """Return what a terminal of 10 columns and 4 lines is told."""
    seen_by_terminal, side = os.openpty()
    for variable, value in (("TERM", term), ("COLUMNS", "10"), ("LINES", "4")):
        monkeypatch.setenv(variable, value)
    with os.fdopen(side, "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with watched() as show:
            show(describe)
        said = os.read(seen_by_terminal, 4096).decode()
    os.close(seen_by_terminal)
    return said


def test_a_screen_shows_what_it_has_room_for(monkeypatch: pytest.MonkeyPatch):
    """Nothing scrolls or wraps, whoever wrote more; and the screen of the shell comes back."""
    heights: list[int | None] = []
    said = drawn_on_a_terminal(monkeypatch, lambda height: heights.append(height) or TEXT, "xterm")  # type: ignore[func-returns-value]
    assert heights == [4]
    assert said.startswith("\x1b[?1049h")
    assert said.endswith("\n\x1b[?25h\x1b[?1049l")
    assert "\x1b[Hfirst line\x1b[K" in said
    assert "c\x1b[K\x1b[J" in said
    assert "d\x1b" not in said
    assert said.count("\n") == 4


def test_where_there_is_no_screen_one_stands_below_the_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A file and a terminal that can do nothing are told nothing but text."""
    with watched() as show:
        show(lambda height: f"{height}")
    assert capsys.readouterr().out == "None\n\n"
    assert "\x1b" not in drawn_on_a_terminal(monkeypatch, lambda _height: TEXT, "dumb")
