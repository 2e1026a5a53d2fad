"""A report is one file that shows runs anywhere, and nothing in it can do harm."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from recorder import Recorder, S
from test_recordings import from_records, make_run, record, trained

from periflow_otel.cli import main
from periflow_otel.page.report import report_html
from periflow_otel.page.words import describe_run
from periflow_otel.view.words import duration_words

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&`${7*7}\u2028"


def hostile_recorder() -> Recorder:
    """Return what somebody records who wants scripts of his own in the page."""
    recorder = Recorder()
    for _ in range(3):
        with recorder.phase(HOSTILE), recorder.step(error=HOSTILE):
            recorder.work(S)
            recorder.metric({HOSTILE: 1.0, "text": HOSTILE, f"nan{HOSTILE}": float("nan")})
    recorder.finish()
    return recorder


class Tags(HTMLParser):
    """Collects what a browser without scripts would make of HTML."""

    def __init__(self, page: str) -> None:
        """Read a page."""
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag with its attributes."""
        self.tags.append((tag, dict(attrs)))


def view_of(recorder: Recorder, **fields: Any) -> dict[str, Any]:
    """Return the view of what a rank recorded."""
    return from_records(recorder, make_run(mode="local", **fields))


def test_everything_is_in_the_file():
    """No script, style, font or picture is asked for."""
    page = report_html([view_of(trained())])
    for tag, attributes in Tags(page).tags:
        assert "src" not in attributes
        assert tag != "link" or attributes["href"] == "data:,"
    assert "http" not in re.sub(r"https?://(github.com/leeoniya|www.w3.org)\S*", "", page.split("<body>")[1])


def test_what_users_call_things_is_text():
    """Run ids, keys, text, phases and errors become neither tags nor the end of the data."""
    page = report_html([view_of(hostile_recorder(), run_id=HOSTILE)])
    tags = Tags(page).tags
    assert [tag for tag, _ in tags if tag == "img"] == []
    plain = Tags(report_html([view_of(trained())])).tags
    assert [tag for tag, _ in tags].count("script") == [tag for tag, _ in plain].count("script")
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data
    assert json.loads(data[1])["runs"][0]["run"]["id"] == HOSTILE


def test_without_scripts_there_are_pictures_and_tables():
    """A viewer of attachments that runs nothing shows the curve, its range and the last values."""
    page = report_html([view_of(trained())])
    static = page[page.index('id="static"') : page.index("<footer>")]
    assert 'aria-label="loss by step"' in static
    assert static.count("L") > 4
    assert "<td>0.2</td>" in static
    assert "finished" in static


def test_a_gap_is_a_gap_in_a_picture():
    """Two parts of a curve are two paths."""
    recorder = Recorder()
    for value in (1.0, 2.0, float("nan"), 4.0, 5.0):
        with recorder.step():
            recorder.work(S)
            recorder.metric({"loss": value})
    page = report_html([view_of(recorder)])
    (curve,) = re.findall(r'class="curve" d="([^"]*)"', page)
    assert curve.count("M") == 2


@pytest.mark.parametrize("values", [[1.7e308, 1.7e308], [-1.7e308, 1.7e308], [5e-324, 0.0], [0.0, 0.0], [1.0]], ids=str)
def test_a_picture_of_any_values_has_places(values: list[float]):
    """Neither the largest numbers nor the smallest, nor one alone, make a path that no browser can draw."""
    recorder = Recorder()
    for value in values:
        with recorder.step():
            recorder.work(S)
            recorder.metric({"loss": value})
    (svg,) = re.findall(r"<svg.*?</svg>", report_html([view_of(recorder)]))
    places = [float(each) for d in re.findall(r' d="([^"]*)"', svg) for each in re.findall(r"[^MLHVZ ]+", d)]
    assert len(places) > 2 * len(values)
    assert all(0 <= each <= 600 for each in places)


def test_of_many_metrics_the_terminal_shows_some():
    """Losses first, and how many more there are."""
    recorder = Recorder()
    with recorder.step():
        recorder.metric({**{f"layer{i}": 0.5 for i in range(20)}, "train/loss": 2.0, "nan": math.nan})
    said = describe_run(view_of(recorder)).splitlines()
    assert said[1] == "  train/loss 2"
    assert said[13] == "  and 10 more metrics"


def test_the_command_writes_a_report_and_says_what_is_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """``periflow-otel report`` in the folder of a run is all there is to do."""
    record(tmp_path, trained())
    assert main(["report", "-o", "out.html"]) == 0
    assert "run: finished at step 5" in capsys.readouterr().out
    assert '"key":"loss"' in (tmp_path / "out.html").read_text("utf-8")


def test_a_run_is_found_by_its_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Among those whose files are here."""
    record(tmp_path, trained(), run_id="first")
    record(tmp_path, trained(), run_id="second")
    assert main(["report", "second"]) == 0
    said = capsys.readouterr().out
    assert "second: finished" in said
    assert "first" not in said
    assert main(["report", "third"]) == 2
    assert "third" in capsys.readouterr().err


def test_a_folder_without_a_run_makes_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """An empty page would say that all is well."""
    assert main(["report"]) == 2
    assert "nothing is recorded" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written_leaves_what_was_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """And names the file; nothing half stays behind."""
    record(tmp_path, trained())
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "there" / "x.html"
    assert main(["report", "-o", str(out)]) == 2
    assert f"{out}: No such file or directory" in capsys.readouterr().err
    assert main(["report", "-o", str(tmp_path)]) == 2
    assert sorted(tmp_path.iterdir()) == before


def test_without_a_browser_the_address_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Over ssh there is often none."""
    record(tmp_path, trained())
    monkeypatch.setattr("webbrowser._tryorder", [])
    assert main(["report", "--open"]) == 0
    assert f"the report is at {(tmp_path / 'report.html').as_uri()}" in capsys.readouterr().err


def test_words_cannot_steer_a_terminal():
    """A run may be called anything."""
    said = describe_run(view_of(hostile_recorder(), run_id="a\x1b[31m\nb"))
    assert "\x1b" not in said
    assert said.splitlines()[0].startswith("a?[31m?b: finished")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (2.5e-5, "25 µs"),
        (0.0123, "12.3 ms"),
        (59.4, "59.4 s"),
        (61, "1m 1s"),
        (7300, "2h 1m"),
        (2e5, "2d 7h"),
    ],
)
def test_durations_are_in_units_that_people_use(seconds: float, words: str):
    """The two largest units are enough."""
    assert duration_words(seconds) == words
