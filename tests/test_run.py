"""A training run from its beginning to its end, however it ends; read back from its journal."""

import asyncio
import json
import logging
import os
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from journals import read_all
from opentelemetry.trace import get_current_span
from programs import wait_until
from recorded import (
    Ended,
    begin_script,
    journal_of,
    journals,
    metrics_of,
    recorded,
    records_of,
    run_script,
)
from training import CLOUD

import periflow_otel as pf
from periflow_otel.clock import Clock
from periflow_otel.journal.agent_lock import take_agent_lock
from periflow_otel.journal.control import ANY_STEP, CONTROL_FILE, Control
from periflow_otel.journal.folders import journal_folder, journal_folders
from periflow_otel.journal.reader import JournalReader
from periflow_otel.records import Checkpoint, Phase, RunFinished, StepEnded

Begin = Callable[..., pf.TrainingRun]


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Return what begins runs that record without an agent and end with the test."""
    monkeypatch.setenv("PERIFLOW_AGENT", "off")
    runs: list[pf.TrainingRun] = []

    def begin(*arguments: Any, **named: Any) -> pf.TrainingRun:
        runs.append(pf.TrainingRun(*arguments, **named))
        return runs[-1]

    yield begin
    for run in runs:
        run.shutdown()


@pytest.fixture(params=["local", "cloud"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test in both modes."""
    if request.param == "cloud":
        for name, value in CLOUD.items():
            monkeypatch.setenv(name, value)
    return str(request.param)


both_modes = pytest.mark.usefixtures("mode")


def set_cloud(monkeypatch: pytest.MonkeyPatch, **more: str) -> None:
    """Set the environment of cloud mode."""
    for name, value in (CLOUD | more).items():
        monkeypatch.setenv(name, value)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was said at level WARNING."""
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


# What init is given


@both_modes
@pytest.mark.parametrize("given", [-1, "5", 1.5, True, [], 1 << 70])
def test_an_initial_step_that_is_no_count_raises(begin: Begin, given: Any):
    """True is a mistake, although Python counts it among the integers."""
    message = f"initial_step is {given!r}; give the number of steps already done, 0 or more"
    with pytest.raises(pf.ConfigurationError, match=f"^{re.escape(message)}$"):
        begin(10, initial_step=given)


@both_modes
@pytest.mark.parametrize("given", [7, np.int32(7), np.array(7)])
def test_an_initial_step_may_be_any_integer(begin: Begin, given: Any):
    """NumPy's too, as they come out of a checkpoint; it wins over PROCESSED_ITERS."""
    run = begin(np.int64(10), initial_step=given)
    with run.train_step():
        pass
    assert (run.info.initial_step, run.info.total_steps) == (7, 10)
    assert [each.step for each in recorded(run, StepEnded)] == [8]


@both_modes
@pytest.mark.parametrize("given", ["a/b/../c", "..", ".", "x" * 256, "läuft ☃", "a b", "%2F", "-rf", "~root"])
def test_any_printable_run_id_names_a_folder_of_its_own(begin: Begin, tmp_path: Path, given: str):
    """It never leads out of the state folder."""
    run = begin(10, run_id=given)
    assert run.run_id == run.info.run_id == given
    assert run.folder.parent.parent == tmp_path
    assert read_all(journal_of(run)).lost == 0
    assert JournalReader(journal_of(run)).run() == run.info


@both_modes
@pytest.mark.parametrize(
    "given", ["x" * 1000, "x" * 257, "a\nb", "a\0b", "\udc80", "a\tb", 5, b"job"], ids=lambda each: repr(each)[:10]
)
def test_other_run_ids_raise(begin: Begin, given: Any):
    """The message shows the beginning of what was given."""
    shown = repr(given) if len(repr(given)) <= 100 else repr(given)[:100] + "…"
    message = f"the run id is {shown}; give text of at most 256 printable characters"
    with pytest.raises(pf.ConfigurationError, match=f"^{re.escape(message)}$"):
        begin(10, run_id=given)


@pytest.mark.parametrize("given", ["", None])
def test_an_empty_run_id_is_none(begin: Begin, monkeypatch: pytest.MonkeyPatch, given: str | None):
    """The variable decides then, and without it one is made up that tells the time."""
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", begin(10, run_id=given).run_id)
    monkeypatch.setenv("PERIFLOW_RUN_ID", "from-the-variable")
    assert begin(10, run_id=given).run_id == "from-the-variable"


def test_a_run_id_of_the_launcher_is_checked_too(begin: Begin, monkeypatch: pytest.MonkeyPatch):
    """In cloud mode a mistake shows before training."""
    set_cloud(monkeypatch, PERIFLOW_RUN_ID="x" * 1000)
    with pytest.raises(pf.ConfigurationError, match=r"^the run id is 'xxx"):
        begin(10)


def test_ranks_without_an_identity_in_common_are_told(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Else each would quietly be a run of its own."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    begin(10)
    (warning,) = warnings(caplog)
    assert warning == (
        "the ranks have no identity in common, so each is shown as a run of its own; set PERIFLOW_RUN_ID to the same "
        "text on all ranks"
    )
    caplog.clear()
    begin(10, run_id="job")
    assert warnings(caplog) == []


def test_a_given_log_name_is_used_as_it_is(begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On every rank, as in the original; its folder is made."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = begin(10, tmp_path / "logs" / "deep" / "train.txt", run_id="job")
    assert run.info.local_log == str(tmp_path / "logs" / "deep" / "train.txt")
    assert (tmp_path / "logs" / "deep").is_dir()


def test_a_log_name_may_begin_with_the_home_directory(begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What looks like the home of a user who does not exist is a name like any other."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert begin(10, "~/train.log").info.local_log == str(tmp_path / "home" / "train.log")
    assert begin(10, "~nobody-of-this-name.log").info.local_log == str(tmp_path / "~nobody-of-this-name.log")


def test_ranks_have_log_names_of_their_own(begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where none is given."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    log = begin(10, run_id="job").info.local_log
    assert log is not None
    assert re.fullmatch(re.escape(str(tmp_path)) + r"/periflow_trainer_\d{10}_1\.log", log)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("file/train.log", "Not a directory|File exists"), ("folder", "not writable"),
     ("a\0b", "a null character in its name"), ("x" * 300 + "/train.log", "File name too long")],
)  # fmt: skip
def test_a_log_that_cannot_be_written_raises_at_init(begin: Begin, tmp_path: Path, name: str, reason: str):
    """And not at the first metric."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        pf.ConfigurationError,
        match=rf"^the metric log '.*' cannot be written \(({reason})\); give init\(\) another local_log_name$",
    ):
        begin(10, name)
    assert list(tmp_path.glob("*/*/a*")) == []


def test_cloud_mode_has_no_metric_log(begin: Begin, monkeypatch: pytest.MonkeyPatch):
    """Its name is not even looked at."""
    for name, value in CLOUD.items():
        monkeypatch.setenv(name, value)
    assert begin(10, "/proc/nowhere/train.log").info.local_log is None


@pytest.mark.parametrize("endpoint", ["collector:4318", "http://", "ftp://collector", "http://collector:port"])
def test_cloud_mode_refuses_a_malformed_endpoint(begin: Begin, monkeypatch: pytest.MonkeyPatch, endpoint: str):
    """Although only the agent needs it."""
    set_cloud(monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    message = f"OTEL_EXPORTER_OTLP_ENDPOINT is {endpoint!r}; give one such as http://localhost:4318"
    with pytest.raises(pf.ConfigurationError, match=f"^{re.escape(message)}"):
        begin(10)


@both_modes
@pytest.mark.parametrize("token", ["s3cret\nmore", "s3cret%0Amore", "s3cret\rmore"])
def test_a_token_with_a_line_break_is_never_shown(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: str, token: str
):
    """A secret that was pasted badly is still a secret; cloud mode raises, local mode sends nothing."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer {token}")
    said = ""
    try:
        run = begin(10)
    except pf.ConfigurationError as error:
        said = f"{error}{error.__cause__!r}"
    else:
        assert not any(each.startswith("otlp.") for each in run.info.orders.consumers)
    assert ("the value of the header 'authorization' in " in said) == (mode == "cloud")
    assert "s3cret" not in said + caplog.text


# Local mode is inert

ODD: dict[str, dict[str, str]] = {
    "WORLD_SIZE of a script that starts its ranks itself": {"WORLD_SIZE": "4"},
    "RANK of an array job": {"RANK": "0"},
    "-1 as transformers has it": {"LOCAL_RANK": "-1"},
    "-1 twice": {"RANK": "-1", "WORLD_SIZE": "-1"},
    "a name of a node": {"NODE_RANK": "master-0", "WORLD_SIZE": "2"},
    "a rank beyond the world": {"RANK": "7", "WORLD_SIZE": "2"},
    "a part of an MPI": {"OMPI_COMM_WORLD_RANK": "1"},
    "an endpoint": {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"},
    "a certificate": {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://localhost:4318", "OTEL_EXPORTER_OTLP_CERTIFICATE": "/nowhere.pem"
    },
    "an exporter": {"OTEL_TRACES_EXPORTER": "nobody-has-this"},
    "a proxy": {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://localhost:4318", "HTTPS_PROXY": "no proxy at all"},
    "an agent": {"PERIFLOW_AGENT": "sometimes"},
    "a signal": {"PERIFLOW_EMERGENCY_SIGNALS": "SIGNAL"},
    "a run id": {"PERIFLOW_RUN_ID": "x" * 1000},
    "a number": {"PERIFLOW_EXIT_TIMEOUT": "soon"},
    "a home": {"PERIFLOW_STATE_DIR": "~nobody-of-this-name/state"},
    "no text at all": {"PERIFLOW_RUN_ID": "\udc80"},
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_local_mode_ignores_variables_that_cannot_be_used(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, name: str
):
    """The original reads none there. A warning names the variable, and training is recorded."""
    state = tmp_path / "home" / ".local" / "state"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable, value in ODD[name].items():
        monkeypatch.setenv(variable, value)
    if "PERIFLOW_AGENT" in ODD[name]:  # then it would be a process
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    run = begin(10)
    with run.train_step():
        pass
    assert (run.info.rank, run.info.world_size) == (0, 1)
    assert any(each in warning for each in ODD[name] for warning in warnings(caplog))
    assert all("is ignored" in warning for warning in warnings(caplog))
    if "PERIFLOW_STATE_DIR" in ODD[name]:
        assert run.folder.is_relative_to(state)


@pytest.mark.parametrize("name", [name for name in ODD if name.startswith(("a rank", "an endpoint", "a signal"))])
def test_cloud_mode_refuses_variables_that_cannot_be_used(begin: Begin, monkeypatch: pytest.MonkeyPatch, name: str):
    """There a mistake has to show before hours of training."""
    set_cloud(monkeypatch, **ODD[name])
    with pytest.raises(pf.PeriFlowError):
        begin(10)


def test_a_working_folder_that_cannot_be_written_only_moves_the_log(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    """Nobody named it. One warning says where it is."""
    monkeypatch.setenv("PERIFLOW_STATE_DIR", str(tmp_path / "state"))
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    log = begin(10).info.local_log
    assert log is not None
    assert Path(log).parent == tmp_path / "state"
    (warning,) = warnings(caplog)
    assert warning == (
        f"the working folder cannot be written (No such file or directory); the metric log is {log}. Give init() a "
        "local_log_name."
    )


def test_runs_of_one_second_have_logs_of_their_own(begin: Begin):
    """Also where nobody writes them yet."""
    assert len({begin(10).info.local_log for _ in range(5)}) == 5


def test_a_log_that_will_be_written_is_there_at_once(begin: Begin, monkeypatch: pytest.MonkeyPatch):
    """So that no run of another process takes its name."""
    monkeypatch.setenv("PERIFLOW_AGENT", "thread")
    log = begin(10).info.local_log
    assert log is not None
    assert Path(log).stat().st_mode & 0o777 == 0o600


def test_a_device_as_a_log_has_no_files_beside_it(begin: Begin):
    """/dev/null is the usual way to want no metric log."""
    info = begin(10, "/dev/null").info
    assert info.local_log == "/dev/null"
    assert info.orders.consumers == ("metric_log",)


# Values


@pytest.mark.parametrize(
    ("value", "recorded_as"),
    [(np.float32(0.5), 0.5), (np.float64(0.1), 0.1), (np.int64(-3), -3), (np.uint64(1 << 63), 1 << 63),
     (np.array([1]) > 0, True), (np.array(1.5), 1.5), (np.array([2]), 2), (np.float16(0.25), 0.25)],
    ids=repr,
)  # fmt: skip
@both_modes
def test_scalars_of_other_libraries_are_recorded_as_numbers(begin: Begin, value: Any, recorded_as: object):
    """Of the type that stands for them, also inside a list or a dict."""
    run = begin(10)
    run.metric({"value": value, "list": [value], "dict": {"inner": value}})
    (back,) = metrics_of(run)
    assert back == {"value": recorded_as, "list": [recorded_as], "dict": {"inner": recorded_as}}
    assert type(back["value"]) is type(recorded_as)


@pytest.mark.parametrize("value", [np.zeros((2, 2)), np.array(1j), np.datetime64("2026-01-01")])
def test_what_is_no_single_number_raises_with_the_key(begin: Begin, value: Any):
    """A whole array is no metric."""
    with pytest.raises(TypeError, match=r"^the value of 'loss', a (ndarray|datetime64), (is not a single|holds)"):
        begin(10).metric({"loss": value})


def test_metrics_from_many_threads_are_all_recorded(begin: Begin):
    """Those of each thread in their order."""
    run = begin(10)

    def record(thread: int) -> None:
        for number in range(500):
            run.metric({"thread": thread, "number": number})

    threads = [threading.Thread(target=record, args=(number,)) for number in range(8)]
    with run.train_step():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    values = metrics_of(run)
    assert len(values) == 4000
    for thread in range(8):
        assert [each["number"] for each in values if each["thread"] == thread] == list(range(500))


def test_a_running_event_loop_does_not_matter(begin: Begin):
    """In a notebook, the original raised a RuntimeError."""
    run = begin(10)

    async def main() -> None:
        with run.train_step():
            run.metric({"loss": 1.0})
        run.upload_checkpoint()

    asyncio.run(main())
    assert len(records_of(run)) == 3


# Time


def test_durations_come_from_the_monotonic_clock(begin: Begin):
    """The time of day may jump in the middle of a step."""
    now = {"unix": 1_000_000_000_000, "monotonic": 5}
    run = begin(10, clock=Clock(lambda: now["unix"], lambda: now["monotonic"]))
    run.start_step()
    now.update(unix=500_000_000_000, monotonic=1_000_000_005)
    run.metric({"n": 1})
    run.end_step()
    (step,) = recorded(run, StepEnded)
    assert (step.start_unix_ns, step.duration_ns) == (1_000_000_000_000, 1_000_000_000)


def test_the_journal_shows_the_step_that_is_going_on(begin: Begin):
    """So that the agent sees a stuck one."""
    run = begin(10, initial_step=4)
    run.start_step()
    head = JournalReader(journal_of(run)).head()
    assert head.step == 5
    assert head.step_started_unix_ns > 0


# Phases


def test_a_phase_says_where_it_belongs_and_how_it_ended(begin: Begin):
    """Step, parent, attributes and error."""
    run = begin(10)
    with run.train_step(), run.span("forward"), run.span("attention", layer=3, name_of="x"):
        pass
    with pytest.raises(KeyError), run.span("evaluation"):
        _ = {}["missing"]
    assert [
        (each.name, each.number, each.parent, each.step, each.error, each.attributes) for each in recorded(run, Phase)
    ] == [
        ("attention", 2, 1, 1, None, {"layer": 3, "name_of": "x"}),
        ("forward", 1, 0, 1, None, {}),
        ("evaluation", 3, 0, None, "KeyError", {}),
    ]


@pytest.mark.parametrize(
    ("name", "attributes", "error", "message"),
    [(5, {}, TypeError, "the name of a span is 5; give text"),
     ("x" * 257, {}, ValueError, "the name of a span has 257 characters; give at most 256"),
     ("save", {"path": Path("/x")}, TypeError, "the value of 'path' is an object of type PosixPath; give"),
     ("save", {"text": "x" * (5 << 20)}, ValueError, "52")],
)  # fmt: skip
def test_a_phase_that_cannot_be_recorded_raises_on_entry(
    begin: Begin, name: Any, attributes: dict[str, Any], error: type[Exception], message: str
):
    """Before its body has run, and so never in the place of an exception of the body."""
    run = begin(10)
    entered = []
    with pytest.raises(error, match=f"^{re.escape(message)}"), run.span(name, **attributes):
        entered.append(name)
    assert entered == []
    assert recorded(run, Phase) == []


def test_phases_of_many_threads_have_numbers_of_their_own(begin: Begin):
    """Their span ids are made of them."""
    run = begin(10)

    def record() -> None:
        for _ in range(200):
            with run.span("loading"):
                pass

    threads = [threading.Thread(target=record) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.number for each in recorded(run, Phase)) == list(range(1, 1601))


# Emergency saves


@both_modes
def test_a_request_for_any_step_is_true_until_its_checkpoint(begin: Begin):
    """Also over several steps."""
    run = begin(10)
    assert not run.is_emergency_save()
    Control(run.folder).request(ANY_STEP)
    assert run.is_emergency_save()
    with run.train_step():
        assert run.is_emergency_save()
    run.upload_checkpoint()
    assert not run.is_emergency_save()
    with run.train_step():
        assert not run.is_emergency_save()


@both_modes
def test_a_request_for_a_step_is_true_in_that_step_only(begin: Begin):
    """A checkpoint of another step does not answer it."""
    run = begin(10)
    Control(run.folder).request(2)
    with run.train_step():
        assert not run.is_emergency_save()
    run.upload_checkpoint()
    with run.train_step():
        assert run.is_emergency_save()
    assert run.is_emergency_save()
    with run.train_step():
        assert not run.is_emergency_save()
    run.upload_checkpoint()
    assert [each.is_emergency for each in recorded(run, Checkpoint)] == [False, False]


@both_modes
def test_a_second_request_works(begin: Begin):
    """Spot machines are reclaimed more than once."""
    run = begin(10)
    for _ in range(3):
        Control(run.folder).request(ANY_STEP)
        with run.train_step():
            assert run.is_emergency_save()
        run.upload_checkpoint()
        assert not run.is_emergency_save()
    assert [each.is_emergency for each in recorded(run, Checkpoint)] == [True, True, True]


@both_modes
def test_an_emergency_may_save_a_step_again(begin: Begin):
    """The machine is about to go just after a periodic checkpoint: that must not raise, once."""
    run = begin(10)
    with run.train_step():
        pass
    run.upload_checkpoint()
    Control(run.folder).request(ANY_STEP)
    assert run.is_emergency_save()
    run.upload_checkpoint()
    with suppress(pf.CheckpointAlreadyUploadedError):
        run.upload_checkpoint()
    assert [(each.step, each.is_emergency) for each in recorded(run, Checkpoint)] == [(1, False), (1, True)]


@both_modes
def test_a_request_of_an_earlier_attempt_does_not_count(begin: Begin):
    """The control word of the folder outlives the process."""
    earlier = begin(10, run_id="job")
    Control(earlier.folder).request(ANY_STEP)
    earlier.shutdown()
    run = begin(10, run_id="job")
    assert run.folder == earlier.folder
    assert not run.is_emergency_save()
    Control(run.folder).request(ANY_STEP)
    assert run.is_emergency_save()


def test_a_request_is_seen_although_the_file_of_the_word_was_deleted(begin: Begin):
    """Somebody tidies up; the first request in the new file has the number of one that was answered in the old."""
    run = begin(100)
    Control(run.folder).request(ANY_STEP)
    run.start_step()
    run.end_step()
    run.upload_checkpoint()
    (run.folder / CONTROL_FILE).unlink()
    Control(run.folder).request(ANY_STEP)

    def step() -> bool:
        with run.train_step():
            return run.is_emergency_save()

    wait_until(step, 5)


@both_modes
def test_the_delay_of_an_answer_is_recorded(begin: Begin):
    """From the request to the checkpoint; a checkpoint that answers none has none."""
    run = begin(10)
    run.upload_checkpoint()
    Control(run.folder).request(ANY_STEP)
    asked_unix_ns = Control(run.folder).last().unix_ns
    with run.train_step():
        pass
    run.upload_checkpoint()
    normal, emergency = recorded(run, Checkpoint)
    assert normal.request_delay_ns is None
    assert emergency.request_delay_ns == emergency.time_unix_ns - asked_unix_ns > 0


@both_modes
def test_all_ranks_of_a_node_see_a_request_and_answer_for_themselves(begin: Begin, monkeypatch: pytest.MonkeyPatch):
    """One answer does not hide it from the others."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    ranks = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        ranks.append(begin(10, run_id="job"))
    Control(ranks[0].folder).request(ANY_STEP)
    ranks[0].upload_checkpoint()
    assert [rank.is_emergency_save() for rank in ranks] == [False, True]


def test_a_checkpoint_from_before_a_request_does_not_answer_it(begin: Begin):
    """One that a thread finishes to write; that of the step in which training was told does."""
    run = begin(10)
    for _ in range(2):
        with run.train_step():
            pass
    Control(run.folder).request(ANY_STEP)
    run.upload_checkpoint(step=1)
    assert run.is_emergency_save()
    with run.train_step():
        pass
    run.upload_checkpoint(step=2)
    assert not run.is_emergency_save()
    assert [(each.step, each.is_emergency) for each in recorded(run, Checkpoint)] == [(1, False), (2, True)]


# Steps that are told


@pytest.mark.parametrize("step", [1, 3])
def test_a_step_that_goes_back_begins_another_attempt(begin: Begin, step: int):
    """So ids are never given twice, and it is known what was done again."""
    run = begin(10)
    for each in (2, 3):
        with run.train_step(each):
            pass
    run.upload_checkpoint()
    first = run.info
    with run.train_step(step):
        run.metric({"loss": 1.0})
    run.upload_checkpoint(step)
    assert (run.run_id, run.info.attempt, run.info.initial_step) == (first.run_id, 2, step - 1)
    assert run.info.earlier is not None
    assert (run.info.earlier.attempt, run.info.earlier.last_step, run.info.earlier.last_checkpoint) == (1, 3, 3)
    before = read_all(journal_folder(run.folder, 1, 0)).records
    assert [each.step for each in before if isinstance(each, StepEnded)] == [2, 3]
    assert isinstance(before[-1], RunFinished)
    assert before[-1].error is None
    assert [each.step for each in records_of(run)] == [step, step, step]  # type: ignore[union-attr]


def test_an_attempt_that_was_left_is_delivered_too(begin: Begin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Before ``shutdown`` says that everything is."""
    monkeypatch.setenv("PERIFLOW_AGENT", "thread")
    run = begin(10, tmp_path / "train.log")
    for attempt in range(3):
        with run.train_step(1):
            pass
        run.metric({"attempt": attempt})
    assert run.shutdown(30)
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert sorted(lines) == ['{"attempt": 0}', '{"attempt": 1}', '{"attempt": 2}']


# Where the journal is


def test_what_a_run_writes_is_for_its_user_alone(begin: Begin, tmp_path: Path):
    """Folders 0700, files 0600; the state folder, which was there before, keeps its mode."""
    tmp_path.chmod(0o755)
    run = begin(10)
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    for path in (run.folder.parent, *run.folder.parent.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_a_state_folder_that_is_not_there_is_made(begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """For this user alone."""
    monkeypatch.setenv("PERIFLOW_STATE_DIR", str(tmp_path / "deep" / "state"))
    run = begin(10)
    assert run.folder.parent.parent == tmp_path / "deep" / "state"
    assert (tmp_path / "deep" / "state").stat().st_mode & 0o777 == 0o700


def test_a_state_folder_may_be_a_link(begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """To a scratch disk, say; the user made it."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "scratch")
    monkeypatch.setenv("PERIFLOW_STATE_DIR", str(tmp_path / "link"))
    run = begin(10)
    assert run.folder.parent.parent == tmp_path / "link"


def _make_file(path: Path) -> Path:
    path.touch()
    return path


def _make_foreign(path: Path) -> Path:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to somebody else")
    path.mkdir()
    os.chown(path, 12345, 12345)
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [(_make_file, "File exists|Not a directory|.* is not a folder of this user"),
     (_make_foreign, ".* belongs to somebody else"),
     (lambda _: Path("/proc/periflow"), "No such file or directory")],
    ids=["a file", "of somebody else", "not writable"],
)  # fmt: skip
@both_modes
def test_a_state_folder_that_cannot_be_used_is_replaced(
    begin: Begin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    make: Callable[[Path], Path],
    reason: str,
):
    """By one in the temporary folder, with one warning, and training goes on."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    state = make(tmp_path / "state")
    monkeypatch.setenv("PERIFLOW_STATE_DIR", str(state))
    run = begin(10)
    with run.train_step():
        run.metric({"n": 1})
    assert metrics_of(run) == [{"n": 1}]
    assert run.folder.parent.parent == tmp_path / "tmp" / f"periflow-{os.getuid()}"
    (warning,) = warnings(caplog)
    assert re.fullmatch(
        rf"{re.escape(str(state))} cannot hold the journal \(({reason})\); set PERIFLOW_STATE_DIR", warning
    )


@both_modes
def test_training_goes_on_where_no_folder_can_be_used(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Nothing raises, and the end says honestly what became of the records."""
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    monkeypatch.setenv("PERIFLOW_STATE_DIR", "/proc/periflow")
    run = begin(10, tmp_path / "train.log")
    for _ in range(3):
        with run.train_step(), run.span("forward"):
            run.metric({"n": 1})
        run.upload_checkpoint()
        assert not run.is_emergency_save()
    assert not run.flush(0)
    assert not run.shutdown()
    first, second, journal, control, last = warnings(caplog)
    assert first.startswith("/proc/periflow cannot hold the journal")
    assert second.startswith(f"/proc/periflow-{os.getuid()} cannot hold the journal")
    assert re.match(r"the journal in .* cannot be written \(.*\); training goes on", journal)
    assert control.startswith("no emergency save can be asked for")
    assert re.match(r"13 records could not be written into ", last)


TORCHRUN = {
    "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "0",
    "TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_RESTART_COUNT": "2", "TORCHELASTIC_MAX_RESTARTS": "5",
}  # fmt: skip


def test_processes_that_are_the_same_rank_are_different_runs():
    """Trials side by side, to which their launcher told the same."""
    code = """
import os, time
from pathlib import Path
import periflow_otel as pf
pf.init(10)
pf.metric({"process": os.getpid()})
Path(f"alive-{os.getpid()}").touch()
while len(list(Path().glob("alive-*"))) < 3:
    time.sleep(0.01)
"""
    processes = [begin_script(code, **TORCHRUN) for _ in range(3)]
    assert [Ended(each).status for each in processes] == [0, 0, 0]
    assert sorted((each.run.run_id, each.run.attempt) for each in journals()) == [
        ("job", 3),
        ("job-2", 3),
        ("job-3", 3),
    ]
    assert sorted(each.values[0]["process"] for each in journals()) == sorted(each.pid for each in processes)


def test_runs_that_a_process_begins_in_turn_are_different_runs(begin: Begin, monkeypatch: pytest.MonkeyPatch):
    """The launcher has one identity for all of them: a search over parameters has no restarts."""
    for name, value in {**TORCHRUN, "TORCHELASTIC_RUN_ID": "search"}.items():
        monkeypatch.setenv(name, value)
    runs = [begin(10) for _ in range(3)]
    assert [run.run_id for run in runs] == ["search", "search-2", "search-3"]
    assert [run.info.earlier for run in runs] == [None, None, None]


def test_an_attempt_is_one_more_than_the_last_of_the_rank(begin: Begin):
    """Without a launcher that counts."""
    assert [begin(10, run_id="job").info.attempt for _ in range(3)] == [1, 2, 3]


def test_the_resource_holds_no_secret(begin: Begin, monkeypatch: pytest.MonkeyPatch):
    """Neither variables nor the command line."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer s3cret")
    monkeypatch.setenv("MY_PASSWORD", "s3cret")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "speech")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=nlp,service.name=other")
    run = begin(10)
    resource = dict(run.info.resource)
    assert resource["service.name"] == "speech"
    assert resource["team"] == "nlp"
    for path in run.folder.rglob("*"):
        assert path.is_dir() or b"s3cret" not in path.read_bytes()


# The end


@both_modes
def test_calls_after_shutdown_do_nothing(begin: Begin):
    """In any order: none raises, and nothing is recorded."""
    run = begin(10)
    with run.train_step():
        pass
    run.shutdown()
    before = records_of(run)
    for _ in range(2):
        run.start_step()
        run.start_step()
        assert not get_current_span().get_span_context().is_valid
        run.metric({"n": 1})
        run.upload_checkpoint()
        run.upload_checkpoint()
        with run.span("evaluation"):
            assert not get_current_span().get_span_context().is_valid
        run.end_step()
        run.end_step()
        with run.train_step():
            pass
        assert not run.is_emergency_save()
        run.shutdown()
        run.flush(0)
    assert records_of(run) == before
    assert isinstance(before[-1], RunFinished)


def test_a_step_that_is_open_at_shutdown_is_recorded_as_unfinished(begin: Begin):
    """It is not lost, and does not pass for a whole one."""
    run = begin(10)
    run.start_step()
    run.shutdown()
    run.end_step()
    ended, _ = records_of(run)
    assert isinstance(ended, StepEnded)
    assert ended.error == "unfinished"


def test_threads_may_record_while_the_run_ends(begin: Begin):
    """Each record is there or not, and no thread sees an error."""
    run = begin(10)
    errors: list[BaseException] = []
    recorded_before_the_end = threading.Barrier(5)

    def record() -> None:
        try:
            for number in range(3000):
                run.metric({"n": number})
                if number == 10:
                    recorded_before_the_end.wait(30)
        except BaseException as error:  # noqa: BLE001  # whatever it is
            errors.append(error)

    threads = [threading.Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    recorded_before_the_end.wait(30)
    run.shutdown()
    for thread in threads:
        thread.join()
    assert errors == []
    assert read_all(journal_of(run)).lost == 0
    assert recorded(run, RunFinished)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_flush_gives_up_in_time(begin: Begin, monkeypatch: pytest.MonkeyPatch, timeout_s: float):
    """Nobody delivers here: a folder that an agent seems to serve, and none does."""
    run = begin(10, run_id="job")
    monkeypatch.setenv("PERIFLOW_AGENT", "process")
    lock = take_agent_lock(run.folder)
    assert lock is not None
    waiting = begin(10, run_id="job")
    try:
        waiting.metric({"n": 1})
        assert waiting.flush(timeout_s) is False
        assert waiting.shutdown(timeout_s) is False
        assert waiting.shutdown(timeout_s) is False, "it is as little delivered as it was"
    finally:
        os.close(lock)


SCRIPT = """
import atexit, os, signal, sys, threading, time
import periflow_otel as pf
pf.init(100, "train.log")
with pf.train_step():
    pf.metric({"n": 1})
"""


def _one() -> Any:
    (journal,) = journals()
    assert journal.lost == 0
    return journal


def _finish(journal: Any) -> list[str | None]:
    return [each.error for each in journal.of(RunFinished)]


def test_a_script_that_ends_says_so():
    """With nothing on stderr or stdout."""
    ended = run_script(SCRIPT)
    assert (ended.status, ended.output, ended.errors) == (0, "", "")
    assert _finish(_one()) == [None]


@pytest.mark.parametrize(
    ("ending", "status", "step_error", "run_error"),
    [
        ("raise ZeroDivisionError", 1, "ZeroDivisionError", "ZeroDivisionError"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt", "KeyboardInterrupt"),
        ("sys.exit(3)", 3, "SystemExit", None),
        (
            "os.kill(os.getpid(), signal.SIGINT); time.sleep(30)",
            -signal.SIGINT,
            "KeyboardInterrupt",
            "KeyboardInterrupt",
        ),
    ],
)
def test_a_script_that_ends_in_a_step_says_how(ending: str, status: int, step_error: str, run_error: str | None):
    """The step and the run tell the type of the exception; an exit that the script asked for is none."""
    ended = run_script(f"{SCRIPT}\nwith pf.train_step():\n    {ending}\n")
    assert ended.status == status
    assert not re.search(r"^periflow_otel|Exception ignored", ended.errors, re.MULTILINE)
    journal = _one()
    assert [each.error for each in journal.of(StepEnded)] == [None, step_error]
    assert _finish(journal) == [run_error]


@pytest.mark.parametrize("ending", ["pf.shutdown(error=error)", "pf._default.shutdown(1, error=error); sys.exit(1)"])
def test_a_script_that_goes_on_can_say_that_its_run_has_failed(ending: str):
    """With the exception that it caught."""
    run_script(f"import sys\n{SCRIPT}\ntry:\n    raise ValueError\nexcept ValueError as error:\n    {ending}\n")
    assert _finish(_one()) == ["ValueError"]


def test_an_exception_that_was_caught_is_no_failure():
    """Only what ends the script counts."""
    ended = run_script(f"{SCRIPT}\ntry:\n    raise ValueError\nexcept ValueError:\n    pass\n")
    assert (ended.status, ended.errors) == (0, "")
    assert _finish(_one()) == [None]


def test_an_exception_from_before_the_run_is_no_failure():
    """As in a shell, where one statement failed and the next begins a run."""
    ended = run_script(f"import sys\nsys.last_value = ValueError()\n{SCRIPT}")
    assert (ended.status, ended.errors) == (0, "")
    assert _finish(_one()) == [None]


@pytest.mark.parametrize("death", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_process_that_dies_says_nothing_and_loses_nothing(death: str):
    """What it recorded is there; the agent finds out about the end."""
    run_script(f"{SCRIPT}\nwith pf.train_step():\n    pf.metric({{'n': 2}})\n    {death}\n")
    journal = _one()
    assert journal.values == [{"n": 1}, {"n": 2}]
    assert journal.steps == [1]
    assert _finish(journal) == []


def test_sigterm_ends_training_as_ever():
    """No handler is installed; all that was recorded is there."""
    with begin_script(f"{SCRIPT}\nprint('ready', flush=True)\ntime.sleep(60)\n") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        ended = Ended(process)
    assert ended.status == -signal.SIGTERM
    assert ended.errors == ""
    assert _one().values == [{"n": 1}]


def test_a_signal_handler_may_record():
    """Every millisecond, in the middle of whatever the training loop records; not one record is lost or torn."""
    ended = run_script(
        f"{SCRIPT}\n"
        "counts = {'signal': 0, 'loop': 0}\n"
        "def handle(number, frame):\n"
        "    counts['signal'] += 1\n"
        "    pf.metric({'signal': counts['signal']})\n"
        "signal.signal(signal.SIGALRM, handle)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)\n"
        "while counts['signal'] < 300:\n"
        "    with pf.train_step():\n"
        "        counts['loop'] += 1\n"
        "        pf.metric({'loop': counts['loop']})\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "print(counts['signal'], counts['loop'])\n"
    )
    assert (ended.status, ended.errors) == (0, "")
    signals, loops = map(int, ended.output.split())
    journal = _one()
    for kind, count in (("signal", signals), ("loop", loops)):
        assert sorted(each[kind] for each in journal.values if kind in each) == list(range(1, count + 1))
    assert journal.steps == list(range(1, loops + 2))


def test_handlers_at_exit_may_record():
    """One that was registered after init comes before the end; one from before comes too late, and that is said."""
    ended = run_script(
        "import atexit\n"
        "import periflow_otel as pf\n"
        "atexit.register(lambda: pf.metric({'registered': 'before'}))\n"
        "pf.init(100)\n"
        "atexit.register(lambda: pf.metric({'registered': 'after'}))\n"
    )
    assert (ended.status, ended.errors.count("is over: what is recorded from now on is dropped")) == (0, 1)
    assert _one().values == [{"registered": "after"}]


def test_destructors_at_the_very_end_may_call():
    """The interpreter is half gone then; nothing is said about it."""
    ended = run_script(
        f"{SCRIPT}\n"
        "class Logger:\n"
        "    def __init__(self):\n"
        "        self.calls = [pf.start_step, pf.end_step, pf.upload_checkpoint, lambda m=pf.metric: m({'late': 1})]\n"
        "    def __del__(self):\n"
        "        for call in self.calls:\n"
        "            call()\n"
        "        os.write(1, b'called')\n"
        "logger = Logger()\n"
        "logger.itself = logger\n"
    )
    assert (ended.status, ended.output, ended.errors) == (0, "called", "")
    assert _finish(_one()) == [None]


def test_threads_that_outlive_the_main_one_record_to_their_end():
    """The interpreter waits for them before the run ends; a daemon thread is cut off without a word."""
    ended = run_script(
        f"{SCRIPT}\n"
        "def record():\n"
        "    threading.main_thread().join()\n"
        "    for number in range(100):\n"
        "        pf.metric({'thread': number})\n"
        "def forever():\n"
        "    while True:\n"
        "        pf.metric({'daemon': 1})\n"
        "        time.sleep(0.0005)\n"
        "threading.Thread(target=forever, daemon=True).start()\n"
        "threading.Thread(target=record).start()\n"
    )
    assert (ended.status, ended.errors) == (0, "")
    journal = _one()
    assert [each["thread"] for each in journal.values if "thread" in each] == list(range(100))
    assert isinstance(journal.records[-1], RunFinished)


# Modes of the agent, and none at all


@pytest.mark.parametrize("agent", ["process", "thread"])
def test_a_healthy_run_is_delivered_without_a_word(agent: str):
    """When the script has ended, everything is in its files; stderr is empty."""
    ended = run_script(f"{SCRIPT}\npf.flush(30)\n", PERIFLOW_AGENT=agent, PERIFLOW_EXIT_TIMEOUT="30")
    assert (ended.status, ended.output, ended.errors) == (0, "", "")
    assert Path("train.log").read_text("utf-8") == '{"n": 1}\n'
    if agent == "process":  # a thread may end with the script before it has tidied up
        wait_until(lambda: not [*Path("state").glob("*/*/a*-r*")], 30, "the delivered journal is gone")


def test_without_an_agent_everything_stays_in_the_journal():
    """Until it is replayed; an exit with ``off`` says nothing of it, as it was asked for."""
    ended = run_script(f"{SCRIPT}\nprint(pf.flush())\n", PERIFLOW_AGENT="off")
    assert (ended.status, ended.output, ended.errors) == (0, "False\n", "")
    assert not Path("train.log").exists()
    assert _one().values == [{"n": 1}]


@pytest.mark.parametrize("agent", ["process", "thread", "off"])
def test_a_disabled_sdk_leaves_no_trace(agent: str):
    """No folder, no file, no process, no word; misuse is still misuse."""
    ended = run_script(
        f"{SCRIPT}\n"
        "with pf.span('x'): pass\n"
        "pf.start_step(1)\n"
        "pf.end_step()\n"
        "pf.upload_checkpoint()\n"
        "assert not pf.is_emergency_save() and pf.flush()\n"
        "try:\n"
        "    pf.end_step()\n"
        "except pf.StepNotStartedError:\n"
        "    print('raised')\n",
        PERIFLOW_AGENT=agent,
        OTEL_SDK_DISABLED="true",
    )
    assert (ended.status, ended.output, ended.errors) == (0, "raised\n", "")
    assert [path.name for path in Path().iterdir()] == ["script.py"]


_BE_WINDOWS = """\
import asyncio, ctypes, email.utils, faulthandler, importlib.metadata, json, logging.handlers, multiprocessing
import os, platform, random, secrets, select, shutil, signal, socket, subprocess, sys, tempfile, time, urllib.parse
import msgspec, opentelemetry.context, opentelemetry.trace
sys.platform = "win32"
sys.modules.update(dict.fromkeys(("fcntl", "grp", "pwd", "resource", "termios")))
for module, names in (
    (faulthandler, "register"), (select, "poll"), (signal, "SIGHUP SIGKILL SIGSTOP SIGURG SIGUSR1 SIGUSR2"),
    (os, "fchmod fork geteuid getuid pidfd_open posix_fallocate register_at_fork sched_setaffinity sysconf"),
    (os, "O_CLOEXEC O_DIRECTORY O_NOCTTY O_NOFOLLOW O_NONBLOCK"), (time, "CLOCK_BOOTTIME clock_gettime_ns"),
):
    for name in names.split():
        delattr(module, name)
"""
"""Takes from Python what it lacks there, once it has loaded what else of its own is needed."""


def test_another_platform_says_one_sentence_and_trains():
    """The package can be imported there, without what only POSIX has, and a script runs as before."""
    ended = run_script(
        f"{_BE_WINDOWS}{SCRIPT}\nwith pf.span('x'): pass\npf.start_step(1); pf.end_step(); pf.upload_checkpoint()\n"
        "assert not pf.is_emergency_save() and pf.flush()\n"
    )
    assert (ended.status, ended.output) == (0, "")
    assert ended.errors == (
        "periflow_otel needs Linux or macOS to record, not win32; nothing is recorded, training goes on\n"
    )
    assert [path.name for path in Path().iterdir()] == ["script.py"]


def test_what_could_not_be_delivered_is_said_once_and_kept():
    """In cloud mode with a dead collector: one line at the end, and the journal is there for later."""
    ended = run_script(
        SCRIPT,
        PERIFLOW_AGENT="process",
        PERIFLOW_EXIT_TIMEOUT="0.2",
        PERIFLOW_AGENT_LINGER="0",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        **CLOUD,
    )
    assert ended.status == 0
    lines = [line for line in ended.errors.splitlines() if line.startswith("periflow_otel: ")]
    (journal,) = journals()
    folder = next(iter(journal_folders(Path.cwd() / "state" / journal.run.run_id / os.uname().nodename))).parent
    (line,) = lines
    assert line == (
        f"periflow_otel: not everything could be delivered within 0.2 s. The rest is kept in {folder}, for the "
        "agent, the next run or 'periflow-otel replay' to deliver."
    )
    assert journal.values == [{"n": 1}]
    assert journal_folder(folder, 1, 0).is_dir()


# What callbacks of frameworks need


def test_a_step_that_is_abandoned_was_never_begun(begin: Begin):
    """Its number is used again, and its time is a part of the gap."""
    run = begin(10)
    with run.train_step():
        pass
    run.start_step(5)
    run.abandon_step()
    assert (run.step, run.open_step) == (1, None)
    run.abandon_step()  # there is none
    run.start_step()
    run.end_step()
    assert [each.step for each in recorded(run, StepEnded)] == [1, 2]
    head = JournalReader(journal_of(run)).head()
    assert head.step == 2


def test_an_error_that_was_noted_is_that_of_the_run(begin: Begin):
    """Unless it is taken back, or the end has one of its own."""
    for noted, given, expected in (
        ([ValueError()], None, "ValueError"),
        ([ValueError(), None], None, None),
        ([ValueError()], KeyError(), "KeyError"),
    ):
        run = begin(10)
        for each in noted:
            run.note_error(each)
        run.shutdown(error=given)
        assert [each.error for each in recorded(run, RunFinished)] == [expected]


def test_an_attempt_that_goes_back_has_the_error_that_was_noted(begin: Begin):
    """The one after it begins with none."""
    run = begin(10)
    with run.train_step(1):
        pass
    first = journal_of(run)
    run.note_error(ValueError())
    with run.train_step(1):
        pass
    run.shutdown()
    ends = [each for folder in (first, journal_of(run)) for each in read_all(folder).records]
    assert [each.error for each in ends if isinstance(each, RunFinished)] == ["ValueError", None]


def test_a_run_that_begins_while_no_descriptor_is_free_is_recorded():
    """That passes: what was recorded meanwhile is kept in memory, and everything is delivered in the end."""
    ended = run_script(
        "import os, resource, sys, time\n"
        "import periflow_otel as pf, periflow_otel.launcher\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))\n"
        "held = []\n"
        "try:\n"
        "    while True: held.append(os.open(os.devnull, os.O_RDONLY))\n"
        "except OSError: pass\n"
        "pf.init(100, 'train.log')\n"
        "pf.metric({'n': 1})\n"
        "for each in held: os.close(each)\n"
        "deadline = time.monotonic() + 20\n"
        "while not pf.flush(0.1) and time.monotonic() < deadline:\n"
        "    with pf.train_step(): time.sleep(0.1)\n"
        "pf.metric({'n': 2})\n"
        "print(pf.shutdown())\n",
        PERIFLOW_AGENT="process",
    )
    assert (ended.status, ended.output) == (0, "True\n"), ended.errors
    assert [json.loads(line)["n"] for line in Path("train.log").read_text().splitlines()] == [1, 2]
