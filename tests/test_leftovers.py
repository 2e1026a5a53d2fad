"""What earlier runs have left: delivered from the start on, never while it may grow, bounded, kept for its owner."""

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from journals import read_all
from recorder import make_run

from periflow_otel.agent import leftovers as leftovers_module
from periflow_otel.agent.leftovers import KEPT_S, RESTED_S, is_going_on, leftovers, sweep
from periflow_otel.config.export import ExportSettings
from periflow_otel.journal.folders import LEDGER, LOCK_FILE, journal_folder, make_private, node_folder
from periflow_otel.journal.space import size_bytes
from periflow_otel.journal.writer import JournalWriter
from periflow_otel.logs import is_of_this_run, name_run
from periflow_otel.records import RunFinished, encode, encode_metric

LOCAL = ExportSettings.from_environ({"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"})
OTHER = "another-container"


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the file system here for one that several machines share: no such one can be had in a test."""
    monkeypatch.setattr(leftovers_module, "is_local", lambda _: False)


def leave(state: Path, run_id: str, *, is_closed: bool = True, records: int = 3, **fields: str) -> Path:
    """Leave the journal of a run on a machine of another name; return its folder."""
    folder = journal_folder(state / run_id / OTHER, 1, 0)
    make_private(folder)
    log = str(state / f"{run_id}.log")
    run = make_run(run_id=run_id, mode="local", consumers=("metric_log",), local_log=log, **fields)
    writer = JournalWriter(folder, run)
    for number in range(records):
        writer.append(encode_metric(1, 1, {"n": number}))
    if is_closed:
        writer.finish(encode(RunFinished(2)))
    del writer  # with its lock
    return folder


def sweep_once(state: Path, settings: ExportSettings = LOCAL) -> Path:
    """Do what the agent of a run does once; return the folder of that run."""
    own = node_folder(state / "own")
    make_private(own)
    (own / LOCK_FILE).touch()
    is_over = threading.Event()
    is_over.set()
    sweep([state], settings, own, is_over)
    return own


def logged(state: Path, run_id: str) -> list[int]:
    """Return the numbers in the metric log of a run."""
    log = state / f"{run_id}.log"
    return [json.loads(line)["n"] for line in log.read_text().splitlines()] if log.exists() else []


def age(folder: Path, seconds: float) -> None:
    """Let a journal, and all in it, have rested for so long."""
    then = time.time() - seconds
    for each in (*folder.iterdir(), folder):
        os.utime(each, (then, then))


def test_what_a_machine_of_another_name_left_is_delivered(tmp_path: Path):
    """As a container's is, whose name is another one each time; a line in the ledger stays of it."""
    journal = leave(tmp_path, "before")
    assert list(leftovers([tmp_path])) == [journal.parent]
    sweep_once(tmp_path)
    assert logged(tmp_path, "before") == [0, 1, 2]
    assert not journal.exists()
    assert (journal.parent / LEDGER / journal.name).exists()


def test_nobody_is_disturbed_by_what_another_run_cannot_deliver(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """It is said in the log, with the name of that run, and not on the terminal of whoever trains now."""
    leave(tmp_path, "before")
    (tmp_path / "before.log").mkdir()
    shown: list[bool] = []
    caplog.handler.addFilter(name_run)
    caplog.handler.addFilter(lambda record: shown.append(is_of_this_run(record)) or True)
    sweep_once(tmp_path, replace(LOCAL, linger_s=0.0))
    assert {record.__dict__["of_run"] for record in caplog.records} == {"before: "}
    assert set(shown) == {False}


def test_what_a_dead_writer_left_open_is_delivered(tmp_path: Path):
    """Its lock is free, and on a local file system that is evidence."""
    leave(tmp_path, "killed", is_closed=False)
    sweep_once(tmp_path)
    assert logged(tmp_path, "killed") == [0, 1, 2]


@pytest.mark.usefixtures("shared")
def test_a_free_lock_of_another_machine_is_no_evidence(tmp_path: Path):
    """It may be one that only the other machine sees; after a day without any movement nobody is there."""
    journal = leave(tmp_path, "elsewhere", is_closed=False)
    assert is_going_on(journal.parent)
    sweep_once(tmp_path)
    assert (logged(tmp_path, "elsewhere"), journal.exists()) == ([], True)
    age(journal, RESTED_S + 1)
    assert not is_going_on(journal.parent)


@pytest.mark.usefixtures("shared")
def test_a_clock_years_ahead_makes_nothing_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The disk, which another machine may keep, gives its own time to files."""
    going_on = leave(tmp_path, "elsewhere", is_closed=False)
    left = leave(tmp_path, "left", destination="another receiver")
    now_s = time.time
    monkeypatch.setattr("time.time", lambda: now_s() + 5 * 365 * 86_400)
    assert is_going_on(going_on.parent)
    sweep_once(tmp_path)
    assert left.exists()


@pytest.mark.usefixtures("shared")
def test_an_agent_that_lives_keeps_its_journals(tmp_path: Path):
    """A rank that does nothing for days has an agent that shows that it lives."""
    journal = leave(tmp_path, "idle", is_closed=False)
    age(journal, RESTED_S + 1)
    (journal.parent / LOCK_FILE).touch()
    assert is_going_on(journal.parent)


@pytest.mark.usefixtures("shared")
def test_what_was_closed_is_over_wherever_it_was_written(tmp_path: Path):
    """No record comes after the end."""
    leave(tmp_path, "closed")
    sweep_once(tmp_path)
    assert logged(tmp_path, "closed") == [0, 1, 2]


@pytest.mark.usefixtures("shared")
def test_machines_that_share_a_folder_take_turns(tmp_path: Path):
    """A thousand of them do not all list what the others have, each minute."""
    sweep_once(tmp_path)
    journal = leave(tmp_path, "closed")
    sweep_once(tmp_path)
    assert journal.exists()


def test_an_agent_shows_that_it_lives(tmp_path: Path):
    """To machines that share the folder with it."""
    own = sweep_once(tmp_path)
    os.utime(own / LOCK_FILE, (0, 0))
    sweep_once(tmp_path)
    assert time.time() - (own / LOCK_FILE).stat().st_mtime < 60


def test_what_is_for_another_receiver_waits(tmp_path: Path):
    """Or for the same one in the name of somebody else."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:1", "OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=a"}
    journal = leave(tmp_path, "theirs", destination=ExportSettings.from_environ(environ).destination())
    sweep_once(tmp_path)
    assert journal.exists()


def test_all_that_is_left_has_a_bound(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The oldest goes first, and stays countable; what is newer stays."""
    settings = ExportSettings.from_environ({"PERIFLOW_JOURNAL_MAX_BYTES": str(32 << 20)})
    assert settings.leftovers_max_bytes == 256 << 20
    journals = [leave(tmp_path, str(number), destination="elsewhere", records=1000) for number in range(3)]
    for number, journal in enumerate(journals):
        age(journal, 1000 - number)
    leftovers_module._keep_bound([each.parent for each in journals], 5 * size_bytes(journals[0]) // 2)
    first, *others = map(read_all, journals)
    assert (first.records, first.lost) == ([], 1001)
    assert [len(each.records) for each in others] == [1001, 1001]
    assert "PERIFLOW_JOURNAL_MAX_BYTES raises the bound" in caplog.text


def test_what_nobody_took_in_a_month_is_dropped_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """How far it came stays known."""
    old, young = leave(tmp_path, "old", destination="elsewhere"), leave(tmp_path, "young", destination="elsewhere")
    age(old, KEPT_S + 10)
    age(young, KEPT_S - 1000)
    sweep_once(tmp_path)
    assert (old.exists(), young.exists()) == (False, True)
    assert (old.parent / LEDGER / old.name).exists()
    assert f"{old} is dropped with 4 records" in caplog.text
