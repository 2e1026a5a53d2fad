"""Who sits before a screen is told at the end what there is, and how to see it."""

import os
import select
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Begin
from recorded import journals, records_of, run_script

from periflow_otel import names
from periflow_otel.errors import ConfigurationError
from periflow_otel.otlp.json import traces_json
from periflow_otel.records import Raised, RunFinished
from periflow_otel.translate.spans import SpanTranslator
from periflow_otel.view.otlp import OtlpFeed
from periflow_otel.view.records import RecordFeed
from periflow_otel.view.run_view import RunView

SCRIPT = """
import os, sys
import periflow_otel as pf
pf.init(local_log_name=sys.argv[1])
for step in range(int(sys.argv[2])):
    with pf.train_step():
        pass
    pf.metric({"loss": 1 / (step + 1)})
"""


def train(folder: Path, log: str, steps: int, **environ: str) -> str:
    """Train before a screen; return what is on it when the script has ended."""
    screen, stderr = os.openpty()
    command = [sys.executable, "-c", SCRIPT, log, str(steps)]
    environ = {**os.environ, "PERIFLOW_STATE_DIR": str(folder / "state"), "TERM": "dumb", **environ}
    subprocess.run(command, cwd=folder, env=environ, stderr=stderr, check=True, timeout=60)
    shown = b""
    while select.select([screen], [], [], 0)[0]:
        shown += os.read(screen, 65536)
    os.close(stderr)
    os.close(screen)
    return shown.decode().replace("\r", "")


def test_the_end_names_a_command_that_shows_the_run(tmp_path: Path):
    """It works as it stands there, spaces and all."""
    shown = train(tmp_path, "my train.log", 3)
    words = "periflow_otel: 3 steps recorded beside my train.log; to see them: periflow-otel report 'my train.log'\n"
    assert shown == words
    command = [sys.executable, "-m", "periflow_otel", *shlex.split(shown.partition(": periflow-otel ")[2])]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert "loss" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("steps", "environ"),
    [
        (0, {}),
        (3, {"RANK": "1", "WORLD_SIZE": "2", "PERIFLOW_RUN_ID": "run"}),
        (3, {"PERIFLOW_AGENT": "off"}),
        (3, {"OTEL_SDK_DISABLED": "true"}),
        (3, {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}),
    ],
    ids=["no steps", "another rank", "no agent", "disabled", "no files"],
)
def test_where_there_is_nothing_to_see_nothing_is_said(tmp_path: Path, steps: int, environ: dict[str, str]):
    """One rank speaks for all, and only of files that are there."""
    assert train(tmp_path, "train.log", steps, **environ) == ""


def test_a_pipe_is_told_nothing(tmp_path: Path):
    """What reads a script's stderr is not a person."""
    command = [sys.executable, "-c", SCRIPT, "train.log", "3"]
    environ = {**os.environ, "PERIFLOW_STATE_DIR": str(tmp_path / "state")}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, check=True, timeout=60)
    assert done.stderr == b""


class TokenError(Exception):
    """What a library might raise."""


def caught() -> Exception:
    """Return an exception with a secret in its message, and one in a cause."""
    try:
        try:
            {}["inner-secret"]
        except KeyError as error:
            message = "token outer-secret at https://me:secret@host/"
            raise TokenError(message) from error
    except TokenError as error:
        return error


@pytest.mark.parametrize(
    ("telling", "is_there", "is_not"),
    [
        (None, "", "secret"),
        ("type", "", "secret"),
        ("stack", "in caught\ntest_endings.TokenError", "secret"),
        ("message", "KeyError: 'inner-secret'", "me:secret"),
    ],
)
def test_as_much_is_recorded_of_an_exception_as_is_asked_for(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, telling: str | None, is_there: str, is_not: str
):
    """On the span of the run, whose translation may stop and go on before its end; and in views of both."""
    if telling:
        monkeypatch.setenv("PERIFLOW_EXCEPTIONS", telling)
    run = begin(run_id="job")
    run.shutdown(error=caught())
    records = records_of(run)
    translator = SpanTranslator(run.info)
    translator.feed(records[:-1])
    spans = translator.take()
    translator = SpanTranslator(run.info, translator.encode_state())
    translator.feed(records[-1:])
    spans += translator.take()
    (event,) = spans[-1].events
    assert event.attributes[names.EXCEPTION_TYPE] == "test_endings.TokenError"
    stack = str(event.attributes.get(names.EXCEPTION_STACKTRACE, ""))
    assert is_there in stack
    assert (names.EXCEPTION_MESSAGE in event.attributes) == (telling == "message")
    assert is_not not in str(spans)
    from_files, from_records = OtlpFeed(), RunView("job")
    from_files.feed(traces_json([(run.info, span) for span in spans]))
    feed = RecordFeed(from_records, run.info)
    feed.feed(records)
    feed.settle()
    for view in (from_files.views["job"], from_records):
        assert view.to_dict()["ranks"][0]["stack"] == stack


def test_an_exception_of_which_nothing_is_known_is_no_other_ones(begin: Begin, monkeypatch: pytest.MonkeyPatch):
    """A run that ends well while some exception is handled has none."""
    monkeypatch.setenv("PERIFLOW_EXCEPTIONS", "message")
    run = begin(run_id="job")
    try:
        int("no number")
    except ValueError:
        run.shutdown()
    assert [type(each) for each in records_of(run)] == [RunFinished]


def test_what_ends_a_script_is_recorded():
    """Of any length and with any text; and with its full type, as everywhere."""
    script = "import periflow_otel as pf\npf.init()\nraise pf.PeriFlowError('é\\ud800' * 20_000)"
    ended = run_script(script, PERIFLOW_EXCEPTIONS="message")
    assert ended.status == 1
    (journal,) = journals()
    (raised,), (finished,) = journal.of(Raised), journal.of(RunFinished)
    assert finished.error == "periflow_otel.errors.PeriFlowError"
    assert raised.message.startswith("é?é?")
    assert len(raised.message) + len(raised.stack) < 40_000


def test_what_cannot_be_told_is_said_in_cloud_mode(begin: Begin, monkeypatch: pytest.MonkeyPatch):
    """A value that means nothing."""
    monkeypatch.setenv("PERIFLOW_EXCEPTIONS", "all")
    for name in ("PERIFLOW_ENABLED", "WORLD_SIZE", "NUM_NODES"):
        monkeypatch.setenv(name, "1")
    for name in ("NODE_RANK", "PROCESSED_ITERS"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ConfigurationError, match="PERIFLOW_EXCEPTIONS"):
        begin(run_id="job")
