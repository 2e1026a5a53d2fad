"""A run is seen in a browser while it lasts: what its page is given, and what it costs to serve it."""

import json
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import requests
from programs import wait_until
from recorder import STARTED_NS, Recorder, S, StepBegan, make_run
from test_recordings import record
from training import Training

from periflow_otel import names
from periflow_otel.cli.sources import word_left
from periflow_otel.exporters.live_page import LivePage, page_url
from periflow_otel.journal.folders import node_folder, run_folder
from periflow_otel.records import Earlier, Metric
from periflow_otel.translate import as_is
from periflow_otel.translate.telemetry import Histogram, Point
from periflow_otel.web.site import Site


def items(recorder: Recorder, run: Any) -> list[tuple[Any, Any]]:
    """Return what a consumer gives of what a rank has recorded."""
    return [(run, as_is.StepBegan(*each) if isinstance(each, StepBegan) else each) for each in recorder.inputs]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[LivePage]:
    """Return a page that is served, in the folder of a run."""
    folder = node_folder(tmp_path / "state" / "job")
    folder.mkdir(parents=True)
    page = LivePage(Site("127.0.0.1", 0), folder)
    yield page
    page.close()


def get(page: LivePage, path: str = "") -> requests.Response:
    """Return what a browser gets."""
    assert page.url
    return requests.get(page.url + path, timeout=30)


def get_new(page: LivePage, known: dict[str, Any]) -> Any:
    """Return what a browser gets that knows something already."""
    return get(page, f"/data.json?since={known['revision']}&page={known['page']}").json()


def trained(steps: int, start: int = 0) -> Recorder:
    """Return a recorder with some steps, a value in each."""
    recorder = Recorder(start)
    for _ in range(steps):
        with recorder.step():
            recorder.work(S)
            recorder.metric({"loss": 1 / recorder.step_number})
    return recorder


def loss(whole: dict[str, Any]) -> tuple[int, list[int]]:
    """Return from which row on the loss is given, and the steps there."""
    (found,) = [each for each in whole["series"] if each["key"] == "loss"]
    return found["from"], found["step"]


def test_a_page_is_given_what_is_new(page: LivePage):
    """The whole at first, then only rows that have changed."""
    run, recorder = make_run(), trained(3)
    assert get(page, "/data.json").json() is None
    page.export(items(recorder, run))
    first = get(page, "/data.json").json()
    assert loss(first) == (0, [1, 2, 3])
    more = trained(2, start=3)
    page.export(items(more, run))
    second = get_new(page, first)
    assert loss(second) == (3, [4, 5])
    assert get_new(page, second)["series"] == []
    assert loss(get_new(page, {**second, "revision": "nonsense"})) == (0, [1, 2, 3, 4, 5])


def test_who_has_seen_another_page_is_given_the_whole(page: LivePage):
    """The next run has its page at the same address: what was seen of the last is no part of it."""
    page.export(items(trained(3), make_run()))
    first = get(page, "/data.json").json()
    assert loss(get_new(page, {**first, "page": "another"})) == (0, [1, 2, 3])


def test_who_is_looking_is_awaited_until_told_all(page: LivePage):
    """Where nobody looks nobody is awaited."""
    run, recorder = make_run(), trained(1)
    page.export(items(recorder, run))
    assert not page.is_awaited()
    get(page, "/data.json")
    assert not page.is_awaited()
    more = Recorder(1)
    more.finish()
    page.export(items(more, run))
    assert page.is_awaited()
    assert get(page, "/data.json").json()["run"]["state"] == "finished"
    assert not page.is_awaited()


def test_everybody_who_is_looking_is_awaited(page: LivePage):
    """One who has been told is not all of them."""
    page.export(items(trained(1), make_run()))
    for viewer in ("one", "other"):
        get(page, f"/data.json?viewer={viewer}")
    page.export(items(trained(1, start=1), make_run()))
    get(page, "/data.json?viewer=one")
    assert page.is_awaited()
    get(page, "/data.json?viewer=other")
    assert not page.is_awaited()


def test_everything_that_a_page_asks_for_is_there(page: LivePage):
    """And nothing that it does not: no file of this machine."""
    text = get(page).text
    asked = [part.partition('"')[0] for kind in ('src="', 'href="/') for part in text.split(kind)[1:]]
    assert len(asked) == 7
    for path in asked:
        answer = requests.get(f"http://{page._site.address}/{path.lstrip('/')}", timeout=30)
        assert answer.ok, path
    for path in ("/static/page.html", "/static/../live.py", "/static/%2e%2e/assets.py", "/static/", "/run/other"):
        assert requests.get(f"http://{page._site.address}{path}", timeout=30).status_code == HTTPStatus.NOT_FOUND


def test_the_step_that_is_going_on_is_shown(page: LivePage):
    """A rank that is stuck has no record of it."""
    run = make_run()
    page.export([*items(trained(2), run), (run, as_is.StepBegan(3, STARTED_NS + 9 * S))])
    (rank,) = get(page, "/data.json").json()["ranks"]
    assert (rank["step"], rank["ended_step"], rank["step_started"]) == (3, 2, STARTED_NS / 1e9 + 9)


def test_what_the_agent_says_of_itself_is_shown(page: LivePage):
    """Backlog, drops, and who was last of the node."""
    run = make_run()
    late = Histogram(4, 2.0, 0.1, 1.0, (0.25, 0.5, 2.5), (1, 0, 3, 0))
    page.export(items(trained(1), run))
    page.export(
        [
            (run.of_agent(), Point(names.TELEMETRY_BACKLOG, ((names.CONSUMER, "otlp.traces"),), 1, 7)),
            (run.of_agent(), Point(names.STEP_SKEW, ((names.LAST_RANK, 0),), 1, late)),
        ]
    )
    whole = get(page, "/data.json").json()
    assert whole["telemetry"] == [
        {"name": "periflow.telemetry.backlog", "attributes": {names.CONSUMER: "otlp.traces"}, "value": 7}
    ]
    assert [rank["late"] for rank in whole["ranks"]] == [{"count": 4, "sum": 2.0, "usual": 0.5, "max": 1.0}]


def test_the_index_names_all_runs_of_the_node(page: LivePage, tmp_path: Path):
    """Also one with a name that a browser could take for something else."""
    other = node_folder(run_folder(tmp_path / "state", "<img src=x onerror=alert(1)>"))
    other.mkdir(parents=True)
    second = LivePage(Site("127.0.0.1", 0), other)
    try:
        url = second.url
        text = requests.get(f"http://{page._site.address}/", timeout=30).text
    finally:
        second.close()
    assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert f'href="{url}"' in text
    assert 'href="/run">job<' in text
    assert page_url(other) is None


def test_many_ranks_and_keys_are_fast(page: LivePage):
    """Eight ranks with a hundred metrics each: the first look takes seconds at most, the next far less."""
    for rank in range(8):
        run = make_run(rank=rank, world_size=8)
        values = {f"layer{i}/norm": 0.5 for i in range(100)}
        page.export([(run, Metric(step, STARTED_NS + step * S, values)) for step in range(1, 301)])
    started = time.process_time()
    whole = get(page, "/data.json").content
    assert time.process_time() - started < 10  # a second and a half on a slow machine that has nothing else to do
    assert len(whole) < 20_000_000
    assert len(json.dumps(get_new(page, json.loads(whole)))) < 100_000


def test_a_run_is_seen_from_its_start_to_its_end():
    """From the address that a script says to how it has ended, with nothing set up: who looks on is waited for."""
    script = """
import os, time, periflow_otel as pf
pf.init(total_train_steps=9, local_log_name="train.log")
for step in range(1, 6):
    with pf.train_step():
        pf.metric({"loss": 1 / step})
while not os.path.exists("seen"):
    time.sleep(0.05)
"""
    with Training(code=script, PERIFLOW_PAGE="1") as training:
        (folder,) = wait_for_folders(training.state)
        url = wait_for_url(folder)

        def is_seen(name: str, value: object) -> bool:
            whole = requests.get(f"{url}/data.json", timeout=30).json()
            return bool(whole) and whole["run"][name] == value

        wait_until(lambda: is_seen("last", {"loss": 0.2}), 60, "the loss is shown")
        Path("seen").touch()
        wait_until(lambda: is_seen("state", "finished"), 60, "the end is shown")
        training.wait()
        training.wait_for_agent()
        assert f"periflow_otel: watch this run at {url}\n" in training.errors
        assert page_url(folder) is None


def wait_for_folders(state: Path) -> list[Path]:
    """Return the folders of runs when there is one."""
    wait_until(lambda: any(state.glob("*/*/agent.lock")), 20, "a run has begun")
    return [each.parent for each in state.glob("*/*/agent.lock")]


def wait_for_url(folder: Path) -> str:
    """Return where a page is when it is there."""
    wait_until(lambda: page_url(folder) is not None, 20, "the page is served")
    url = page_url(folder)
    assert url
    return url


def test_what_earlier_attempts_have_left_is_read_when_somebody_looks(page: LivePage, tmp_path: Path):
    """The page of a run that was started again shows what it did before, and what it did again."""
    first = trained(5)
    first.be_killed()
    record(tmp_path, first)
    earlier = Earlier(1, last_step=5, last_checkpoint=2, last_seen_unix_ns=STARTED_NS + 5 * S)
    run = make_run(attempt=2, initial_step=2, earlier=earlier, local_log=str(tmp_path / "train.log"))
    page.export(items(trained(4, start=2), run))
    wait_until(lambda: len(get(page, "/data.json").json()["attempts"]) == 2, 10, "the first attempt is shown")
    whole = get(page, "/data.json").json()
    assert [each["ended_step"] for each in whole["attempts"]] == [5, 6]
    assert [each["redone_steps"] for each in whole["attempts"]] == [0, 3]
    assert len([each for each in whole["series"] if each["key"] == "loss"]) == 2


def test_at_the_end_word_is_left_of_how_the_run_was(page: LivePage, tmp_path: Path):
    """With its metric logs, so that a command finds its files by its id, wherever that is typed.

    As soon as it has ended: when the script has ended too, its folders may be deleted at any moment.
    """
    folder = node_folder(tmp_path / "state" / "job")
    assert word_left(folder) is None
    recorder, run = trained(3), make_run(run_id="job", local_log="/data/train.log")
    recorder.finish()
    page.export(items(recorder, run))
    word = word_left(folder)
    assert word is not None
    page.close()
    assert word_left(folder) == word
    shown = {name: word[name] for name in ("id", "state", "step", "logs")}
    assert shown == {"id": "job", "state": "finished", "step": 3, "logs": ["/data/train.log"]}
    assert word["last"]["loss"] == pytest.approx(1 / 3)
    assert (folder / "summary.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("left", [b"", b"{", b"[]", b'{"id": 1}', b'{"id": "a", "logs": 1}', b"x" * (2 << 20)])
def test_word_that_makes_no_sense_is_none(left: bytes, tmp_path: Path):
    """Whatever is there."""
    (tmp_path / "summary.json").write_bytes(left)
    assert word_left(tmp_path) is None
