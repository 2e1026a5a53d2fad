"""The command ``periflow-otel``: what it does, what it says, and its exit status."""

import os
import re
import signal
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from commands import Begin, Said
from faulty_receiver import FaultyReceiver, ok, status
from privileges import UNPRIVILEGED
from recorder import make_run

import periflow_otel as pf
from periflow_otel.cli import _COMMANDS, main
from periflow_otel.cli.arguments import parser
from periflow_otel.exporters.otlp_file import OtlpSpanFile
from periflow_otel.journal.control import Control
from periflow_otel.journal.folders import journal_folders
from periflow_otel.journal.segment import segment_path
from periflow_otel.translate.telemetry import Span


def test_the_command_is_installed():
    """It lists what it can do."""
    command = Path(sys.executable).with_name("periflow-otel")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    assert {"replay", "emergency-save", "ranks"} <= set(re.findall(r"^    ([\w-]+)", done.stdout, re.MULTILINE))


@pytest.mark.parametrize("command", sorted(_COMMANDS))
def test_every_command_is_explained_with_examples(command: str, capsys: pytest.CaptureFixture[str]):
    """Each of which the command itself would take."""
    with pytest.raises(SystemExit, match=r"^0$"):
        main([command, "--help"])
    examples = re.findall(r"^  periflow-otel (.*?)(?:  |$| [|>&])", capsys.readouterr().out, re.MULTILINE)
    assert examples
    for example in examples:
        assert parser().parse_args(example.split()).command == command


@pytest.mark.parametrize("arguments", [[], ["save"], ["emergency-save", "--step", "soon"], ["replay", "--timeout"]])
def test_a_mistake_on_the_command_line_is_explained(capsys: pytest.CaptureFixture[str], arguments: list[str]):
    """With status 2, as shells expect it."""
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments)
    assert "usage: periflow-otel" in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]):
    """The command says it, and so does the module."""
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"periflow-otel {pf.__version__}\n"
    assert pf.__version__ == version("periflow_otel")


def test_python_runs_the_package_too():
    """Where the command is not on the path."""
    command = [sys.executable, "-m", "periflow_otel", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("periflow-otel ")


# periflow-otel replay


def test_what_holds_nothing_to_send_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """With a status that a script sees; a metric log stands for the files beside it."""
    to = ("--to", "http://127.0.0.1:9", "--timeout", "0")
    (tmp_path / "train.py").write_text("import torch\n")
    script, folder, unknown = (Said(capsys, "replay", name, *to) for name in (str(tmp_path / "train.py"), ".", "nix"))
    assert (script.status, script.errors) == (1, f"{tmp_path / 'train.py'}: no line of it is OTLP JSON\n")
    assert (folder.status, folder.errors.partition(";")[0]) == (1, ".: holds neither journals nor OTLP JSON files")
    assert (unknown.status, "nix: no such run" in unknown.errors) == (2, True)
    exporter = OtlpSpanFile()
    exporter.export([(make_run(local_log=str(tmp_path / "train.log")), Span("s", 1, 2, None, 3, 4, {}))])
    exporter.close()
    for source in (tmp_path, tmp_path / "train.log", tmp_path / "train.traces.jsonl"):
        assert "train.traces.jsonl: 0 lines sent" in Said(capsys, "replay", str(source), *to).output


def test_replay_with_nothing_to_do_says_so(capsys: pytest.CaptureFixture[str]):
    """It is no failure."""
    said = Said(capsys, "replay")
    assert (said.status, said.output) == (0, "nothing to deliver: no run has left anything here\n")


def test_replay_of_a_file_tells_how_far_it_came(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Until all is there; again there is nothing left to do."""
    file = tmp_path / "train.traces.jsonl"
    exporter = OtlpSpanFile()
    exporter.export([(make_run(local_log=str(tmp_path / "train.log")), Span("s", 1, 2, None, 3, 4, {}))])
    exporter.close()
    with FaultyReceiver(status(503)) as receiver:
        first = Said(capsys, "replay", str(file), "--to", receiver.endpoint, "--timeout", "0.2")
        size = file.stat().st_size
        waits = f"0 lines sent; 0 of {size} bytes are done with; the same command goes on there"
        assert (first.status, first.output) == (1, f"{file}: {waits}\n")
        receiver.behaviour = ok
        second, third = (Said(capsys, "replay", str(file), "--to", receiver.endpoint) for _ in range(2))
    assert (second.status, second.output) == (0, f"{file}: 1 line sent\n")
    again = "nothing new: all of it was sent before; --anew sends it again"
    assert (third.status, third.output) == (0, f"{file}: {again}\n")


def test_a_replay_shows_how_far_it_is_and_can_be_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """In one line of a terminal, which is gone afterwards."""
    exporter = OtlpSpanFile()
    exporter.export([(make_run(local_log=str(tmp_path / "train.log")), Span("s", 1, 2, None, 3, 4, {}))])
    exporter.close()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "46")
    with FaultyReceiver() as receiver:
        said = Said(capsys, "replay", "train.log", "--to", receiver.endpoint)
        assert said.errors == f"\r\x1b[K[{'#' * 30}] 100 %  train\r\x1b[K"
        receiver.behaviour = lambda _exchange: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        said = Said(capsys, "replay", "train.log", "--anew", "--to", receiver.endpoint)
    assert "train.traces.jsonl: interrupted; the same command goes on there" in said.errors
    assert said.status == 130


# periflow-otel emergency-save


def test_the_only_run_is_asked(begin: Begin, capsys: pytest.CaptureFixture[str]):
    """No id is needed."""
    run = begin(run_id="job")
    with run.train_step():
        said = Said(capsys, "emergency-save")
        assert (said.status, said.output, said.errors) == (0, "1 rank of run job will save at once\n", "")
        assert run.is_emergency_save()


def test_a_step_can_be_given(begin: Begin, capsys: pytest.CaptureFixture[str]):
    """The run saves then and not before."""
    run = begin(run_id="job")
    said = Said(capsys, "emergency-save", "--step", "2")
    assert (said.status, said.output) == (0, "1 rank of run job will save at step 2\n")
    asked = []
    for _ in range(3):
        with run.train_step():
            asked.append(run.is_emergency_save())
    assert asked == [False, True, False]


def test_a_step_that_has_been_is_refused(begin: Begin, capsys: pytest.CaptureFixture[str]):
    """The message says which would do."""
    run = begin(run_id="job")
    for _ in range(5):
        with run.train_step():
            pass
    said = Said(capsys, "emergency-save", "--step", "5")
    message = "periflow-otel: step 5 is too early, as a rank is in step 5 already; give 6 or more\n"
    assert (said.status, said.output, said.errors) == (1, "", message)
    assert not run.is_emergency_save()


def test_several_ranks_are_told_the_step_and_asked_once(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """An impatient person changes nothing."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        run = begin(run_id="job")
    assert Said(capsys, "emergency-save").output == "2 ranks of run job will save at step 2\n"
    said = Said(capsys, "emergency-save")
    assert (said.status, said.output) == (0, "2 ranks of run job will save at step 2, as asked before\n")
    assert Control(run.folder).number() == 1


def test_one_of_several_runs_is_asked_by_its_id(begin: Begin, capsys: pytest.CaptureFixture[str]):
    """Without one, nobody is, and the message lists them."""
    runs = [begin(run_id=name) for name in ("here", "there")]
    said = Said(capsys, "emergency-save")
    assert (said.status, said.output) == (1, "")
    assert re.fullmatch(
        r"periflow-otel: several runs are going on here; give one as --run-id: (here, there|there, here)\n", said.errors
    )
    assert [run.is_emergency_save() for run in runs] == [False, False]
    assert Said(capsys, "emergency-save", "--run-id", "there").output == "1 rank of run there will save at once\n"
    assert [run.is_emergency_save() for run in runs] == [False, True]


def test_where_no_run_is_going_on_nobody_is_asked(begin: Begin, capsys: pytest.CaptureFixture[str]):
    """Nor where there is none of that id."""
    said = Said(capsys, "emergency-save")
    assert (said.status, said.output, said.errors) == (1, "", "periflow-otel: no run is going on here\n")
    run = begin(run_id="job")
    said = Said(capsys, "emergency-save", "--run-id", "jop")
    assert (said.status, said.output, said.errors) == (1, "", "periflow-otel: no run jop is going on here\n")
    assert not run.is_emergency_save()


def test_a_run_in_another_process_is_asked(capsys: pytest.CaptureFixture[str]):
    """While it goes on."""
    code = """
import periflow_otel as pf
pf.init(10, run_id="job")
print("begun", flush=True)
input()
print(pf.is_emergency_save())
"""
    environ = {**os.environ, "PERIFLOW_AGENT": "off"}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        assert Said(capsys, "emergency-save").status == 0
        output, _ = process.communicate("\n", timeout=60)
    assert output == "True\n"
    assert Said(capsys, "emergency-save").errors == "periflow-otel: no run is going on here\n"


# periflow-otel replay


def test_a_folder_without_journals_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """It may be that of the run, one above the right one."""
    said = Said(capsys, "replay", str(tmp_path))
    message = "holds neither journals nor OTLP JSON files; give a folder such as STATE_DIR/RUN_ID/HOST_NAME"
    assert (said.status, said.output, said.errors) == (1, "", f"{tmp_path}: {message}\n")


@pytest.mark.parametrize("damage", ["segment", "folder"])
def test_a_journal_that_cannot_be_read_is_not_delivered(begin: Begin, damage: str):
    """It stays there, and the message names it."""
    run = begin(run_id="job")
    run.shutdown()
    journal = next(journal_folders(run.folder))
    if damage == "segment":
        segment_path(journal, 1).write_bytes(b"")
    else:
        journal.chmod(0)
    said = in_a_process("replay", str(run.folder))
    assert (said.returncode, said.stderr) == (1, "")
    expected = (
        f"{run.folder}: not everything could be delivered; the rest stays there; cannot be read: {journal.name}\n"
    )
    assert said.stdout == expected
    assert journal.exists()


def test_a_run_that_cannot_be_read_is_named(begin: Begin):
    """Also where no folder is given."""
    run = begin(run_id="job")
    run.shutdown()
    run.folder.parent.chmod(0)
    said = in_a_process("replay")
    assert (said.returncode, said.stdout, said.stderr) == (1, "", f"{run.folder}: Permission denied\n")


def in_a_process(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command where the modes of files count."""
    code = "import sys; from periflow_otel.cli import main; sys.exit(main())"
    command = [*UNPRIVILEGED, sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


# periflow-otel ranks


@pytest.mark.parametrize(
    ("environ", "lines"),
    [
        ({}, ["rank 0 of 1, from a single process without a launcher", "run id: made up by each run"]),
        (
            {"RANK": "3", "WORLD_SIZE": "8", "NUM_NODES": "2", "PERIFLOW_RUN_ID": "mine"},
            ["rank 3 of 8 (local rank 3 of 4 on node 0), from RANK and WORLD_SIZE", "run id: mine"],
        ),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "job-7", "GROUP_RANK": "0"},
            ["rank 1 of 2 (local rank 1 of 2 on node 0), from torchrun", "run id: job-7"],
        ),
    ],
)
def test_a_place_says_who_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], environ: dict[str, str], lines: list[str]
):
    """And what said so."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    said = Said(capsys, "ranks")
    assert (said.status, said.output.splitlines(), said.errors) == (0, lines, "")


def test_variables_that_contradict_each_other_are_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """With the message that ``init`` raises, and no traceback."""
    monkeypatch.setenv("RANK", "1")
    said = Said(capsys, "ranks")
    assert (said.status, said.output) == (2, "")
    assert said.errors == "periflow-otel: RANK is '1' but WORLD_SIZE is not set; set both, or unset RANK\n"


def command(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run the command as a program, with what even root may not do."""
    line = [*UNPRIVILEGED, sys.executable, "-m", "periflow_otel", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, **options)


@pytest.mark.parametrize(
    ("arguments", "place"), [(("export", "-o", "shut/x.csv"), "shut/x.csv"), (("report", "shut"), "shut")]
)
def test_a_place_that_is_shut_is_named(tmp_path: Path, arguments: tuple[str, ...], place: str):
    """In one line, whichever command it is."""
    (tmp_path / "shut").mkdir(mode=0)
    said = command(*arguments, cwd=tmp_path)
    assert (said.returncode, said.stderr) == (2, f"periflow-otel: {place}: Permission denied\n")


def test_where_nothing_can_be_written_it_is_said():
    """A disk that is full is no success."""
    with Path("/dev/full").open("w") as full:
        line = [sys.executable, "-m", "periflow_otel", "runs"]
        ended = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (2, "periflow-otel: No space left on device\n")


@pytest.mark.parametrize("arguments", [["runs"], ["export"], ["runs", "--json"]])
def test_nobody_need_listen(arguments: list[str]):
    """As under a scheduler that closes what it does not need."""
    ended = command(*arguments, preexec_fn=lambda: os.close(1))
    assert "Traceback" not in ended.stderr
    assert ended.returncode in (0, 2)


def test_a_terminal_with_few_letters_shows_what_it_can(begin: Begin):
    """Curves are left out, other letters are question marks."""
    run = begin(run_id="ünï")
    for value in (1.0, 2.0):
        with run.train_step():
            pass
        run.metric({"loss": value})
    said = command("status", env={**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "20"})
    assert said.stdout.startswith("?n?: running at step 2/10")
    assert said.stdout.endswith("\nloss  1 to 2\n")
