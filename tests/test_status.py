"""Runs are found, shown and followed in a terminal, while they last and afterwards."""

import json
import logging
import os
import re
import shutil
import threading
from itertools import islice
from pathlib import Path

import pytest
from commands import Begin, Said
from programs import wait_until
from recorder import STARTED_NS, make_run
from training import Training

import periflow_otel as pf
from periflow_otel.cli.known_runs import known_runs, view_of
from periflow_otel.cli.status import describe
from periflow_otel.cli.tail import follow
from periflow_otel.config.paths import find_state_dirs
from periflow_otel.journal.folders import journal_folder, journal_folders
from periflow_otel.journal.writer import JournalWriter
from periflow_otel.records import Metric, encode

SCRIPT = """
import os, sys, time
import periflow_otel as pf
pf.init(total_train_steps=40, local_log_name="train.log", run_id=sys.argv[1], name="try")
for step in range(1, 41):
    with pf.train_step():
        time.sleep(0.001)
    pf.metric({"acc": step, "eval_loss": 1 / step})
if sys.argv[2] == "fails":
    raise ValueError
if sys.argv[2] == "dies" and os.environ["PERIFLOW_AGENT"] == "off":
    os._exit(1)
"""


def step(run: pf.TrainingRun, loss: float) -> None:
    """Take a step."""
    with run.train_step():
        pass
    run.metric({"loss": loss})


def test_without_runs_it_is_said(capsys: pytest.CaptureFixture[str]):
    """The list of nothing is no failure; the status of nothing is one."""
    listed, shown, followed = (Said(capsys, command) for command in ("runs", "status", "tail"))
    assert (listed.status, listed.output.count("no run is known")) == (0, 1)
    assert (shown.status, shown.errors) == (1, "periflow-otel: no run is known here\n")
    assert followed.status == 1
    assert Said(capsys, "runs", "--json").output == "[]\n"


def test_a_run_that_goes_on_is_shown_from_its_journal(begin: Begin, capsys: pytest.CaptureFixture[str]):
    """No agent is asked, and none is needed."""
    run = begin(run_id="job", name="try")
    for loss in (3.0, 2.0, 1.0):
        step(run, loss)
    run.metric({"\x1b[2J": 0})
    listed, shown = Said(capsys, "runs"), Said(capsys, "status")
    assert listed.output.splitlines()[1].split()[:6] == ["job", "(try)", "running", "3/10", "loss", "1"]
    assert shown.status == 0
    assert "running at step 3/10" in shown.output
    assert "loss  1 to 3" in shown.output
    assert "\x1b" not in listed.output + shown.output
    assert json.loads(Said(capsys, "status", "job", "--json").output)["run"]["last"] == {"loss": 1.0, "\x1b[2J": 0.0}


def test_work_is_shown_by_the_second(begin: Begin, capsys: pytest.CaptureFixture[str]):
    """With the share of what the device can do."""
    run = begin(run_id="job", work={"tokens": 8192, "flops": 1e9, "peak_flops": 1e18})
    step(run, 1.0)
    step(run, 1.0)
    assert re.search(
        r"^  \S+ tokens/s, \S+ flops/s \(0\.0% of the peak\)$", Said(capsys, "status").output, re.MULTILINE
    )


def test_ranks_stand_side_by_side(begin: Begin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Each with its own step."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        run = begin(run_id="job")
        for _ in range(2 + int(rank)):
            step(run, 1.0)
    rows = Said(capsys, "status").output.partition("RANK")[2].splitlines()[1:3]
    assert [row.split()[3] for row in rows] == ["2", "3"]


def test_curves_are_of_what_changes_and_losses_come_first(begin: Begin, capsys: pytest.CaptureFixture[str]):
    """The value of anything else is all there is to say of it; where there is little room, curves are left out."""
    run = begin(run_id="job")
    for value in (1.0, 2.0, 3.0):
        with run.train_step():
            pass
        run.metric({"lr": 0.5, "b": value, "c": value, "d": value, "e": value, "loss": value})
    shown = Said(capsys, "status").output
    assert "  lr 0.5\n" in shown
    assert re.findall(r"^(\w+)  1 to 3$", shown, re.MULTILINE) == ["loss", "b", "c", "d"]
    assert "and 1 more metrics that change" in shown
    (known,) = known_runs(find_state_dirs(os.environ), Path())
    assert re.findall(r"^(\w+)  1 to 3$", describe(view_of(known), known, 15), re.MULTILINE) == ["loss"]


def test_a_run_is_called_by_a_part_of_its_id_or_by_its_log(begin: Begin, capsys: pytest.CaptureFixture[str]):
    """Whoever shows or follows it; what may be several runs is none."""
    for run_id in ("one-a", "one-b"):
        step(begin(run_id=run_id, local_log_name=f"{run_id}.log"), 1.0)
        Path(f"{run_id}.log").touch()
    for wanted in ("ne-a", "one-a.log"):
        assert json.loads(Said(capsys, "status", wanted, "--json").output)["run"]["id"] == "one-a"
    said = Said(capsys, "status", "one")
    assert (said.status, said.output) == (2, "")
    assert "one-b, one-a" in said.errors
    assert Said(capsys, "tail", "two").status == 1


def test_the_latest_run_that_goes_on_is_meant(begin: Begin, capsys: pytest.CaptureFixture[str]):
    """Another one by its id; one that is not there is an error."""
    for name in ("first", "second"):
        step(begin(run_id=name), 1.0)
    assert "second" in Said(capsys, "status").output.splitlines()[0]
    assert "first" in Said(capsys, "status", "first").output.splitlines()[0]
    missing = Said(capsys, "status", "third")
    hint = "'periflow-otel runs' lists those that are"
    assert (missing.status, missing.errors) == (1, f"periflow-otel: no run third is known here; {hint}\n")


@pytest.mark.parametrize("outcome", ["finished", "failed"])
def test_a_run_that_is_over_is_known_by_the_word_of_its_agent(
    outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Wherever it is asked from, and with the curves of its files."""
    ending = "fails" if outcome == "failed" else "ends"
    with Training("job", ending, code=SCRIPT, PERIFLOW_STATE_DIR=str(tmp_path), PERIFLOW_PAGE="1") as training:
        training.process.wait(60)
        word = tmp_path / "job"
        wait_until(lambda: list(word.glob("*/summary.json")), 30, "the agent has left word")
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    listed, shown = Said(capsys, "runs"), Said(capsys, "status", "job")
    assert listed.output.splitlines()[1].split()[:6] == ["job", "(try)", outcome, "40/40", "eval_loss", "0.025"]
    assert shown.status == (outcome == "failed")
    assert f"try: {outcome} at step 40/40" in shown.output
    assert "acc  1 to 40" in shown.output
    assert "live at" not in shown.output
    assert Said(capsys, "status", "try").output == shown.output
    assert Said(capsys, "export", "try").output.count("eval_loss") == 40


@pytest.mark.parametrize(("agent", "state"), [("process", "ended"), ("off", "killed")])
def test_a_run_that_no_page_has_seen_is_known_too(
    agent: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """By the ledger and by what journals are left: how far it came, and where its files are."""
    with Training("job", "dies", code=SCRIPT, PERIFLOW_STATE_DIR=str(tmp_path), PERIFLOW_AGENT=agent) as training:
        training.wait()
        wait_until(lambda: list(tmp_path.glob("job/*/ledger/*")) or agent == "off", 60, "the agent is done")
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    assert Said(capsys, "runs").output.splitlines()[1].split()[:4] == ["job", "(try)", state, "40/40"]
    assert "acc  1 to 40" in Said(capsys, "status", "job").output


def test_files_in_this_folder_are_runs_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Which another machine has left, perhaps."""
    with Training("job", "ends", code=SCRIPT, PERIFLOW_STATE_DIR=str(tmp_path / "there")) as training:
        training.wait()
    monkeypatch.setenv("PERIFLOW_STATE_DIR", str(tmp_path / "here"))
    (row,) = json.loads(Said(capsys, "runs", "--json").output)
    assert (row["id"], row["state"], row["step"]) == ("job", "finished", 40)
    assert "acc  1 to 40" in Said(capsys, "status", "job").output


def test_a_status_that_is_watched_ends_with_the_run(begin: Begin, capsys: pytest.CaptureFixture[str]):
    """And shows it at once; where it is over it is shown once."""
    run = begin(run_id="job")
    step(run, 1.0)
    threading.Timer(0.5, run.shutdown).start()
    shown = Said(capsys, "status", "--watch", "--json")
    assert shown.output.count('"version":1') >= 1


def test_what_a_run_gives_is_followed_to_its_end(begin: Begin):
    """From what is there to the last value before the end."""
    run = begin(run_id="job")
    step(run, 1.0)
    lines = follow(run.folder)
    assert next(lines).as_text() == "step 1  loss=1"
    run.metric({"text": "a\x1bb", "nested": {"x": 1}})
    shown = json.loads(next(lines).as_json())
    assert (shown["run"], shown["rank"], shown["step"]) == ("job", 0, 1)
    assert shown["values"] == {"text": "a\x1bb", "nested": {"x": 1}}
    run.metric({"text": "a\x1bb"})
    assert next(lines).as_text() == "step 1  text=a?b"
    step(run, 2.0)
    run.shutdown()
    assert [line.as_text() for line in lines] == ["step 2  loss=2"]


def test_what_is_logged_is_followed_and_the_last_error_shown(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """In ``tail`` each line with its level, in ``status`` the error that came last, and neither steers a terminal."""
    monkeypatch.setenv("PERIFLOW_LOGS", "INFO")
    run = begin(run_id="job")
    logger = logging.getLogger("script.data")
    lines = follow(run.folder)
    logger.error("out of luck \x1b[2J")
    step(run, 1.0)
    with run.train_step():
        logger.error("no shard at %s", "https://me:secret@host/7")
        logger.warning("going on")
    assert next(lines).as_text() == "ERROR script.data: out of luck ?[2J"
    assert next(lines).as_text() == "step 1  loss=1"
    shown = next(lines)
    assert shown.as_text().startswith("step 2  ERROR script.data: no shard at https://")
    assert json.loads(shown.as_json())["level"] == "ERROR"
    assert "secret" not in shown.as_text() + shown.as_json()
    output = Said(capsys, "status", "job").output
    assert "  last error: script.data: no shard at https://" in output
    assert "(step 2)" in output
    assert "secret" not in output


def test_tail_prints_lines(begin: Begin, capsys: pytest.CaptureFixture[str]):
    """Until the run is over."""
    run = begin(run_id="job")
    step(run, 1.0)
    threading.Timer(0.5, run.shutdown).start()
    said = Said(capsys, "tail", "job")
    assert (said.status, said.output) == (0, "step 1  loss=1\n")


def test_tail_begins_with_the_last_lines(begin: Begin, capsys: pytest.CaptureFixture[str]):
    """As many as are asked for: a run may have given thousands. What comes afterwards comes in full."""
    run = begin(run_id="job")
    for loss in range(30):
        step(run, float(loss))
    lines = follow(run.folder, 2)
    assert [next(lines).as_text() for _ in range(2)] == ["step 29  loss=28", "step 30  loss=29"]
    for loss in range(30, 35):
        step(run, float(loss))
    threading.Timer(0.5, run.shutdown).start()
    assert len(Said(capsys, "tail", "-n", "3").output.splitlines()) == 3
    assert [line.as_text() for line in lines] == [f"step {i + 1}  loss={i}" for i in range(30, 35)]


def test_the_last_lines_are_those_of_all_ranks(tmp_path: Path):
    """By time: ten lines are ten, however many ranks there are."""
    runs = [make_run(rank=rank, world_size=2) for rank in (0, 1)]
    writers = [JournalWriter(journal_folder(tmp_path, 1, run.rank), run) for run in runs]
    for i in range(4):
        writers[i % 2].append(encode(Metric(i, STARTED_NS + i, {"loss": i})))
    shown = [line.record.time_unix_ns - STARTED_NS for line in islice(follow(tmp_path, 3), 3)]
    for writer in writers:
        writer.close()
    assert shown == [1, 2, 3]


def test_the_last_values_come_though_the_journal_is_gone(begin: Begin):
    """An agent deletes it as soon as all is delivered, and nobody knows when a reader has looked last."""
    run = begin(run_id="job")
    step(run, 1.0)
    lines = follow(run.folder)
    assert next(lines).record.step == 1
    step(run, 2.0)
    run.shutdown()
    for journal in journal_folders(run.folder):
        shutil.rmtree(journal)
    assert [line.as_text() for line in lines] == ["step 2  loss=2"]
