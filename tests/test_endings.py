"""Who sits before a screen is told at the end what there is, and how to see it."""

import os
import select
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

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
