"""The page and the report in a real browser: right points, working controls, no harm, for everybody."""

import math
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from browser import Tab, chromium, needs_browser, tab
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from recorder import STARTED_NS, Recorder, S, make_run
from test_live_page import items
from test_report import HOSTILE, hostile_recorder
from test_stuck import ALL_REDUCE, LOADER, at
from test_stuck_spans import LINE as STUCK_LINE
from test_stuck_spans import REPORT as STUCK
from test_stuck_spans import spans as stuck_spans
from test_view import logged

from periflow_otel.exporters.live_page import LivePage
from periflow_otel.journal.folders import node_folder
from periflow_otel.page.report import report_html
from periflow_otel.records import Config, Earlier, LogLine, Raised, RankRun, RunFinished
from periflow_otel.translate.stragglers.stacks import Frame
from periflow_otel.translate.stragglers.stuck import find_culprits
from periflow_otel.translate.telemetry import Span
from periflow_otel.view.records import RecordFeed, member_of
from periflow_otel.view.run_view import RunView
from periflow_otel.web.site import Site

pytestmark = needs_browser
STEPS = 40


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Return a browser for all tests of this file."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def opened(browser: Any) -> Iterator[Tab]:
    """Return a tab for a file."""
    with tab(browser, "file://") as opened:
        yield opened


def trained(rank: int = 0, slow_s: float = 0.0, nan_at: int = 0, first: int = 1) -> Recorder:
    """Return what a rank records in some steps of a tenth of a second."""
    recorder = Recorder(first - 1)
    for step in range(first, STEPS + 1):
        with recorder.step():
            recorder.work(int((0.1 + slow_s) * S))
            recorder.metric({"loss": math.nan if step == nan_at else 1 / step, "lr": 0.001, "rank": float(rank)})
        if step % 20 == 0:
            recorder.checkpoint()
    return recorder


def view_of(*ranks: tuple[RankRun, Recorder]) -> RunView:
    """Return the view of a run."""
    view = RunView(ranks[0][0].run_id)
    for run, recorder in ranks:
        feed = RecordFeed(view, run)
        feed.feed(each for each in recorder.inputs if not isinstance(each, tuple))
        feed.settle()
    return view


def saved(folder: Path, *views: RunView) -> str:
    """Write a report and return where it is."""
    path = folder / "report.html"
    path.write_text(report_html([view.to_dict(digits=7) for view in views]), "utf-8")
    return path.as_uri()


def report_of_one(folder: Path) -> str:
    """Write a report on a run of one rank."""
    return saved(folder, view_of((make_run(total_steps=STEPS, world_size=1), trained())))


def test_every_value_is_drawn_where_it_belongs(tmp_path: Path, opened: Tab):
    """In the data that is drawn, and in the picture itself."""
    opened.open(report_of_one(tmp_path))
    drawn = opened.chart("loss")
    assert drawn["x"] == list(range(1, STEPS + 1))
    assert drawn["ys"][0] == [pytest.approx(1 / step, rel=1e-6) for step in range(1, STEPS + 1)]
    assert opened.ink("loss", 10, 0.1) > 100
    assert opened.ink("loss", 30.5, 0.7) == 0


def test_charts_of_the_machine_wait_until_they_are_asked_for(tmp_path: Path, opened: Tab):
    """There are dozens of them."""
    view = view_of((make_run(total_steps=STEPS, world_size=1), trained()))
    for i in range(3):
        view.ranks[1, 0].add_of_machine("hw.power", (("hw.name", "GPU 0"),), STARTED_NS / 1e9 + i, 300.0, is_sum=False)
    opened.open(saved(tmp_path, view))
    chart = opened.page.locator("#machine article")
    assert not chart.is_visible()
    opened.page.get_by_role("button", name="Show 1 chart").click()
    chart.wait_for(state="visible")
    assert opened.page.locator("#machine h3").all_inner_texts() == ["hw.power hw.name=GPU 0"]


def test_what_was_logged_is_found_by_step(tmp_path: Path, opened: Tab):
    """Each line with its rank and step; of selected steps those that were said in them, and never as markup."""
    recorder = trained()
    for number in (3, 30):
        time_ns = STARTED_NS + number * S
        what = (30, "WARNING", f"<b>slow</b> {number}") if number == 3 else (40, "ERROR", f"broken {number}")
        line = LogLine(time_ns, time_ns, number, 0, b"", "data", *what, "/a.py", 1, "load", 1, "MainThread")
        recorder.inputs.append(line)
    opened.open(saved(tmp_path, view_of((make_run(world_size=2), recorder))))
    rows = opened.page.locator("#logs tbody tr")
    assert [row.split("\t")[1:] for row in rows.all_inner_texts()] == [
        ["ERROR", "0", "30", "data", "broken 30"],
        ["WARNING", "0", "3", "data", "<b>slow</b> 3"],
    ]
    assert "Errors: 1, warnings: 1." in opened.page.locator("#logs .said").inner_text()
    opened.page.evaluate("zoomTo([1, 10])")
    assert [row.split("\t")[3] for row in rows.all_inner_texts()] == ["3"]
    opened.page.get_by_role("button", name="Show all steps").click()
    assert rows.count() == 2


def test_a_report_needs_nothing_but_itself(tmp_path: Path, opened: Tab):
    """One file, one request: its own."""
    opened.open(report_of_one(tmp_path))
    assert [url for url in opened.asked if not url.startswith("data:")] == [(tmp_path / "report.html").as_uri()]


def test_smoothing_leaves_the_raw_curve_visible(tmp_path: Path, opened: Tab):
    """The raw values are a curve of their own; without smoothing they are the only one."""
    opened.open(report_of_one(tmp_path))
    raw, smooth = opened.chart("loss")["ys"]
    assert raw[0] == smooth[0] == 1.0
    assert smooth[1] > raw[1]
    opened.page.locator("#smoothing").fill("0")
    assert opened.chart("loss")["ys"] == [raw]


def test_x_is_steps_or_time(tmp_path: Path, opened: Tab):
    """By time each value is at the seconds since the start."""
    opened.open(report_of_one(tmp_path))
    opened.page.get_by_role("button", name="time", exact=True).click()
    assert opened.chart("loss")["x"] == [pytest.approx(step / 10, abs=0.01) for step in range(1, STEPS + 1)]


def test_y_is_linear_or_logarithmic(tmp_path: Path, opened: Tab):
    """A loss over several powers of ten is seen in both."""
    opened.open(report_of_one(tmp_path))
    assert not opened.chart("loss")["isLog"]
    opened.page.get_by_role("button", name="log", exact=True).click()
    assert opened.chart("loss")["isLog"]


def test_a_range_that_is_selected_is_shown_by_all(tmp_path: Path, opened: Tab):
    """Zoom is shared; one button, or a double click, shows everything again."""
    opened.open(report_of_one(tmp_path))
    opened.see("loss")
    box = opened.page.locator(".u-over").first.bounding_box()
    opened.page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 50)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 60, steps=4)
    opened.page.mouse.up()
    for title in ("loss", "lr"):
        drawn = opened.chart(title)
        assert (drawn["from"], drawn["to"]) == (pytest.approx(10.75, abs=0.5), pytest.approx(20.5, abs=0.5))
    opened.page.get_by_role("button", name="Show all steps").click()
    assert opened.chart("lr")["to"] == STEPS


def test_the_keyboard_reaches_and_moves_along_a_chart(tmp_path: Path, opened: Tab):
    """What the cursor is at is said; plus and zero zoom."""
    opened.open(report_of_one(tmp_path))
    opened.see("loss")
    for _ in range(40):
        opened.page.keyboard.press("Tab")
        if opened.page.evaluate("document.activeElement.className") == "plot":
            break
    opened.page.keyboard.press("Home")
    opened.page.keyboard.press("ArrowRight")
    assert opened.chart("loss")["said"] == "step 2 · 0.5"
    opened.page.keyboard.press("+")
    assert opened.chart("loss")["to"] < STEPS
    opened.page.keyboard.press("0")
    assert opened.chart("loss")["to"] == STEPS


def test_every_chart_has_a_table(tmp_path: Path, opened: Tab):
    """For who cannot see it, or wants the number."""
    opened.open(report_of_one(tmp_path))
    opened.see("loss")
    opened.page.get_by_role("button", name="Table of loss").click()
    rows = opened.page.get_by_role("region", name="loss: table").locator("tbody tr").all_inner_texts()
    assert len(rows) == STEPS
    assert rows[1].split("\t")[1:4] == ["2", "200 ms", "0.5"]


def test_metrics_are_found_by_their_name(tmp_path: Path, opened: Tab):
    """Among hundreds nobody scrolls."""
    opened.open(report_of_one(tmp_path))
    opened.page.locator("#filter").fill("LOS")
    titles = opened.page.locator("#metrics-0 h3").all_inner_texts()
    assert titles == ["loss"]


def test_a_slow_rank_a_nan_and_a_restart_are_said(tmp_path: Path, opened: Tab):
    """In words, before anybody looks for them."""
    ranks = [
        (make_run(rank=rank, world_size=3), trained(rank, slow_s, nan_at))
        for rank, slow_s, nan_at in ((0, 0, 0), (1, 0, 7), (2, 0.05, 0))
    ]
    for _, recorder in ranks:
        recorder.be_killed()
    earlier = Earlier(1, last_step=STEPS, last_checkpoint=20, last_seen_unix_ns=STARTED_NS + 10 * S)
    again = make_run(attempt=2, world_size=3, initial_step=20, earlier=earlier, started_unix_ns=STARTED_NS + 70 * S)
    opened.open(saved(tmp_path, view_of(*ranks)))
    said = opened.page.locator(".alert").all_inner_texts()
    assert said[:2] == ["loss was NaN at step 7 on rank 1.", "Ranks 0-2 were killed in step 40."]
    assert re.fullmatch(r"Rank 2 is slow: half of its steps take 1[45].* ms or more, .*", said[2])
    opened.open(saved(tmp_path, view_of(*ranks, (again, trained(first=21)))))
    said = opened.page.locator(".alert").all_inner_texts()
    ended = "loss was NaN at step 7 on rank 1. Ranks 0-2 were killed in step 40."
    assert f"{ended} Attempt 2 went on from step 20 after 1m 0s and did 20 steps again." in said


def test_of_a_resumed_run_the_present_is_shown(tmp_path: Path, opened: Tab):
    """Though the ranks of this node have other numbers now, and others of them had trouble in the attempt before."""
    before, now = make_run(world_size=2), make_run(rank=2, world_size=4, attempt=2, initial_step=20)
    ranks = [(replace(before, rank=rank), trained(rank, nan_at=7)) for rank in range(2)]
    ranks += [(replace(now, rank=rank), trained(rank, first=21)) for rank in (2, 3)]
    for run, recorder in ranks:
        recorder.metric({"note": f"of attempt {run.attempt}"})
    opened.open(saved(tmp_path, view_of(*ranks)))
    drawn = opened.chart("loss")
    assert drawn["labels"] == ["rank 0, attempt 1", "rank 2, attempt 2"]
    assert drawn["value"] == "0.025"
    assert opened.page.locator("#config tbody tr").all_inner_texts() == ["note\tof attempt 2"]
    assert opened.page.locator(".alert:not(.note)").count() == 0
    assert opened.page.locator("#ranks-section tr.worst").count() == 0


def test_the_value_of_a_chart_is_the_last_one(tmp_path: Path, opened: Tab):
    """Not the mean of the steps that share a point of the curve."""
    view = view_of((make_run(), trained()))
    steps, values = range(1, 4000), [float(step) for step in range(1, 4000)]
    view.ranks[1, 0].add_values("rising", steps, values, values)
    opened.open(saved(tmp_path, view))
    assert opened.chart("rising")["value"] == "3,999"


def test_any_value_can_be_looked_at_by_its_magnitude(tmp_path: Path, opened: Tab):
    """What is below zero, or beyond what an axis can tell, is a gap, and holds up nothing else."""
    recorder = Recorder()
    for step in range(1, 51):
        with recorder.step():
            recorder.work(S)
            values = {"wide": 10.0 ** (step - 30), "tiny": 1e-320 * step, "huge": 3e306 * step, "most": 1.7e308}
            values |= {"zero": 0.0, "below": -float(step), "same": 0.1, "near": 1e12 + step, "infinite": math.inf}
            recorder.metric(values)
    opened.open(saved(tmp_path, view_of((make_run(), recorder))))
    opened.page.get_by_role("button", name="log", exact=True).click()
    for title in ("tiny", "huge", "most", "zero", "below", "infinite"):
        assert opened.chart(title)["isLog"], title
    assert opened.ink("wide", 25, 1e-5) > 100
    assert opened.ink("wide", 50, 1e20) > 100
    assert opened.ink("same", 25, 0.1) > 100
    assert opened.ink("near", 25, 1e12) > 100


def test_no_name_makes_the_page_wider_than_a_phone(tmp_path: Path, browser: Any):
    """Of a run, a metric, a group or a setting."""
    recorder = trained()
    recorder.inputs.insert(0, Config({"c" * 200: "v" * 200}))
    recorder.metric({"k" * 200: 1.0, f"{'g' * 100}/{'m' * 100}": 1.0, "损失" * 40: 1.0, "text": "t" * 200})
    with tab(browser, "file://", viewport={"width": 390, "height": 800}) as opened:
        opened.open(saved(tmp_path, view_of((make_run(run_id="r" * 100), recorder))))
        assert opened.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_what_is_chosen_is_seen_in_high_contrast(tmp_path: Path, browser: Any):
    """Where the system picks the colors: on a ground of its own, with letters that can be told from it."""
    with tab(browser, "file://", forced_colors="active") as opened:
        opened.open(report_of_one(tmp_path))
        look = "(each) => { const { color, backgroundColor, forcedColorAdjust } = getComputedStyle(each);"
        look += " return [color, backgroundColor, forcedColorAdjust]; }"
        letters, ground, adjusted = opened.page.locator("#xs [aria-pressed=true]").evaluate(look)
        _, other, _ = opened.page.locator("#xs [aria-pressed=false]").evaluate(look)
        assert ground not in (letters, other)
        assert adjusted == "none"  # else the browser paints over it


def in_step(rank: int) -> Recorder:
    """Return what a rank records that waits for the others within each step: all of them take the same time."""
    recorder, data_s = Recorder(), 0.06 if rank == 2 else 0.01
    for _ in range(STEPS):
        with recorder.step():
            with recorder.phase("load"):
                recorder.work(int(data_s * S))
            with recorder.phase("all-reduce"):
                recorder.work(int((0.08 - data_s) * S))
            recorder.metric({"loss": 1.0})
    return recorder


def test_the_rank_that_others_wait_for_within_a_step_is_said(tmp_path: Path, opened: Tab):
    """By the phase in which it is slow, not by that in which the others wait for it."""
    opened.open(saved(tmp_path, view_of(*((make_run(rank=rank, world_size=4), in_step(rank)) for rank in range(4)))))
    assert opened.page.locator(".alert").all_inner_texts() == [
        'Rank 2 spends 58.5 ms of a step in "load"; usual are 9.75 ms.'
    ]
    (worst,) = opened.page.locator("#ranks-section tr.worst").all_inner_texts()
    assert worst.split("\t")[0] == "2"
    assert {"60 ms", "20 ms"} < set(worst.split("\t"))


def test_what_holds_up_a_run_is_said_with_its_stacks(tmp_path: Path, opened: Tab):
    """One line names the rank; what all are doing is a click away."""
    run = make_run(rank=3, world_size=4)
    recorder = Recorder()
    with recorder.step():
        recorder.work(S)
    view = view_of((run, recorder))
    [span] = stuck_spans(STUCK)
    view.add_span(run.attempt, span)
    opened.open(saved(tmp_path, view))
    assert f"S{STUCK_LINE[1:]}." in opened.page.locator(".alerts").inner_text()
    assert not opened.page.locator(".alerts pre").first.is_visible()
    opened.page.locator(".alerts summary").click()
    assert (
        'File "/home/me/dataset.py", line 88, in __getitem__' in opened.page.locator(".alerts pre").first.inner_text()
    )
    assert opened.violations() == []


def test_where_ranks_have_failed_is_a_click_away(tmp_path: Path, opened: Tab):
    """Once for those that have failed in one place."""
    ranks = []
    for rank in range(3):
        recorder = trained(rank)
        recorder.inputs += [
            Raised("", f"in <{'load' if rank < 2 else 'save'}>"),
            RunFinished(recorder.now_ns, "KeyError"),
        ]
        ranks.append((make_run(rank=rank, world_size=3), recorder))
    opened.open(saved(tmp_path, view_of(*ranks)))
    opened.page.locator(".alerts summary").click()
    assert opened.page.locator(".alerts details p").all_inner_texts() == ["Rank 0, 1", "Rank 2"]
    assert opened.page.locator(".alerts details pre").all_inner_texts() == ["in <load>", "in <save>"]


@pytest.mark.parametrize("width", [390, 1280])
def test_one_spike_among_a_million_steps_is_seen(tmp_path: Path, opened: Tab, width: int):
    """From bottom to top, as strongly as a curve, on a telephone too; beside it is nothing."""
    view = RunView("run", max_total_rows=30_000)
    rank = view.rank(member_of(make_run()))
    for first in range(1, 1_000_001, 50_000):
        steps = range(first, first + 50_000)
        rank.add_values("loss", steps, steps, [9.0 if step == 456_789 else 1.0 for step in steps])
    opened.page.set_viewport_size({"width": width, "height": 800})
    opened.open(saved(tmp_path, view))
    assert min(opened.ink("loss", 456_789, height) for height in (2, 4.5, 7, 8.9)) > 100
    assert opened.ink("loss", 620_000, 7) == 0


def test_runs_are_drawn_over_one_another(tmp_path: Path, opened: Tab):
    """With a line for each, and their configuration side by side."""
    views = []
    for name, rate in (("first", 0.1), ("second", 0.2)):
        recorder = trained()
        recorder.inputs.insert(0, Config({"lr": rate, "model.layers": 4}))
        views.append(view_of((make_run(run_id=name), recorder)))
    opened.open(saved(tmp_path, *views))
    assert opened.chart("loss")["labels"] == ["first", "second"]
    cells = opened.page.locator("#config tbody tr").all_inner_texts()
    assert [each.split("\t") for each in cells] == [["lr", "0.1", "0.2"], ["model.layers", "4", "4"]]
    assert opened.page.locator("#config td.differs").all_inner_texts() == ["0.1", "0.2"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_is_wrong_for_people_with_disabilities(tmp_path: Path, browser: Any, scheme: str):
    """In both themes, with all sections there are."""
    ranks = [(make_run(rank=rank, world_size=2, total_steps=90), trained(rank, 0.1 * rank, 7)) for rank in range(2)]
    ranks[0][1].inputs.insert(0, Config({"lr": 0.1}))
    with tab(browser, "file://", color_scheme=scheme) as opened:
        opened.open(saved(tmp_path, view_of(*ranks)))
        assert opened.page.evaluate("document.documentElement.dataset.theme") == scheme
        assert opened.violations() == []


def test_without_scripts_pictures_are_shown(tmp_path: Path, browser: Any):
    """As in a mail, or where a viewer of attachments runs nothing."""
    with tab(browser, "file://", java_script_enabled=False) as opened:
        opened.page.goto(report_of_one(tmp_path))
        assert opened.page.get_by_role("img", name="loss by step").is_visible()
        assert not opened.page.locator("#bar").is_visible()


def test_what_users_call_things_runs_nothing(tmp_path: Path, opened: Tab):
    """Ids, keys, text, phases and errors that would be scripts are shown as they are; a dialog would fail this."""
    recorder = hostile_recorder()
    recorder.inputs.insert(0, Config({HOSTILE: HOSTILE}))
    run = make_run(run_id=HOSTILE, resource=(("host.name", HOSTILE),), world_size=1)
    opened.open(saved(tmp_path, view_of((run, recorder))))
    opened.page.get_by_role("button", name="Table of").first.click()
    assert opened.page.locator("img, h1 *").count() == 0
    assert opened.page.locator("h1").inner_text().startswith("</script><script>alert(1)</script><img src=x")


INJECTIONS = (
    "<img src=x onerror=alert(1)>",
    "'><svg/onload=alert(1)>",
    '"><script>alert(1)</script>',
    "</title><script>alert(1)</script>",
    "</textarea><iframe srcdoc='<script>parent.alert(1)</script>'>",
    "javascript:alert(1)",
    "<!--<script>alert(1)//-->",
    "]]><script>alert(1)</script>",
    "<a href=javascript:alert(1) autofocus onfocus=alert(1)>",
    "${alert(1)}{{constructor.constructor('alert(1)')()}}",
    "__proto__",
    "constructor",
    "toString",
    "\u202e\u0000\x1b]0;x\x07",
    "<style>*{display:none}</style>",
    "a/b/<b>c</b>",
)


def hung_in(place: str) -> Span:
    """Return what is said of a rank that hangs in a file and a function of that name."""
    witnesses = (at(0, ALL_REDUCE), at(3, (Frame(place, 1, place), *LOADER), step=6, is_open=False))
    [span] = stuck_spans(STUCK._replace(finding=find_culprits(witnesses), witnesses=witnesses))
    return span


@given(st.lists(st.sampled_from(INJECTIONS) | st.text(max_size=12), min_size=3, max_size=6))
@settings(max_examples=8, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_name_is_code(tmp_path: Path, browser: Any, given_names: list[str]):
    """Whatever runs, keys, phases, errors, hosts, settings, files and messages are called, the page is drawn whole."""
    recorder = Recorder()
    for step in range(1, 4):
        with recorder.phase(given_names[0]), recorder.step(error=given_names[1]):
            recorder.work(S)
            recorder.metric(dict.fromkeys(given_names, 1 / step) | {f"{name} said": name for name in given_names})
            recorder.metric({given_names[2]: math.nan, "loss": 1 / step})
    recorder.inputs.insert(0, Config(dict.fromkeys(given_names, given_names[0])))
    recorder.inputs += [replace(logged(40, name), logger=name, level_name=name, error=name) for name in given_names]
    failed = Recorder()
    failed.inputs += [Raised(given_names[0], given_names[1]), RunFinished(recorder.now_ns, given_names[2])]
    resource = (("host.name", given_names[1]), ("periflow.run.name", given_names[2]))
    run, other = (make_run(rank=rank, run_id=given_names[0], resource=resource, world_size=2) for rank in range(2))
    view = view_of((run, recorder), (other, failed))
    view.add_span(run.attempt, hung_in(given_names[0]))
    with tab(browser, "file://") as opened:
        opened.open(saved(tmp_path, view))
        assert opened.chart("loss")["x"] == [1, 2, 3]
        assert opened.page.locator("#logs tbody tr").count() == len(given_names)
        assert opened.page.locator(".alerts pre").count() > 1
        said = opened.page.locator("#charts, #logs, .alerts")
        assert said.locator("img, svg, iframe, a, script, style").count() == 0
        titles = opened.page.locator("#charts h3").all_text_contents()
        assert set(given_names) <= set(titles)


def test_a_live_page_grows_without_being_asked(tmp_path: Path, browser: Any):
    """New values come by themselves; when the agent has ended, the page keeps what it knows and says so."""
    folder = node_folder(tmp_path / "job")
    folder.mkdir(parents=True)
    page = LivePage(Site("127.0.0.1", 0), folder)
    run = make_run(world_size=1, total_steps=100, mode="local")
    try:
        assert page.url
        with tab(browser, page.url) as opened:
            opened.page.goto(page.url)
            opened.page.get_by_text("Waiting for the first step").wait_for()
            page.export(items(trained(), run))
            opened.page.get_by_role("heading", name="loss").wait_for()
            assert opened.chart("loss")["x"] == list(range(1, STEPS + 1))
            more = Recorder(STEPS)
            more.now_ns += 10 * S
            with more.step():
                more.work(S)
                more.metric({"loss": 0.25, "late": 1.0})
            page.export(items(more, run))
            opened.page.get_by_role("heading", name="late").wait_for()
            drawn = opened.chart("loss")
            assert (drawn["x"][-1], drawn["ys"][0][-1]) == (STEPS + 1, 0.25)
            assert opened.page.title() == "41 % run"
            page.close()
            opened.page.get_by_text("the agent has ended").wait_for()
            assert opened.page.locator(".state").inner_text() == "not heard of"
            assert opened.page.get_by_text("Last heard of").is_visible()
            opened.faults = [fault for fault in opened.faults if "ERR_CONNECTION_REFUSED" not in fault]
    finally:
        page.close()


def test_phases_of_a_step_are_in_it(tmp_path: Path, opened: Tab):
    """Who names them has spent no less of the time in steps."""
    recorder = Recorder()
    for step in range(1, STEPS + 1):
        with recorder.step(), recorder.phase("forward"):
            recorder.work(S)
            recorder.metric({"loss": 1 / step})
        recorder.work(S)
    recorder.finish()
    opened.open(saved(tmp_path, view_of((make_run(world_size=1, mode="local"), recorder))))
    assert opened.page.locator(".tile", has_text="In steps").locator("dd").inner_text().split()[:2] == ["50", "%"]


def test_a_tab_that_stays_open_shows_the_next_run(tmp_path: Path, browser: Any):
    """Which has its page at the same address, and nothing of the run before."""
    with closing(shown_live(tmp_path / "first", Site("127.0.0.1", 0), "first")) as page:
        url = page.url
        assert url
        with tab(browser, url) as opened:
            opened.open(url)
            page.close()
            opened.page.get_by_text("the agent has ended").wait_for()
            port = int(urlsplit(url).port or 0)
            with closing(shown_live(tmp_path / "second", Site("127.0.0.1", port), "second", first=STEPS - 4)):
                opened.page.get_by_role("heading", name="second").wait_for()
                assert opened.chart("loss")["x"] == list(range(STEPS - 4, STEPS + 1))
            opened.faults = [fault for fault in opened.faults if "ERR_CONNECTION_REFUSED" not in fault]


def shown_live(folder: Path, site: Site, run_id: str, first: int = 1) -> LivePage:
    """Return the page of a run that goes on."""
    node_folder(folder).mkdir(parents=True)
    page = LivePage(site, node_folder(folder))
    page.export(items(trained(first=first), make_run(run_id=run_id, world_size=1, mode="local")))
    return page
