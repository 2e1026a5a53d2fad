"""Runs that record without an agent, read back from their journals; and scripts that make such runs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TypeVar

from journals import read_all

import periflow_otel as pf
from periflow_otel.journal.folders import journal_folder, journal_folders, node_folders
from periflow_otel.journal.reader import JournalReader
from periflow_otel.records import Metric, RankRun, Record, StepEnded

R = TypeVar("R")


def journal_of(run: pf.TrainingRun) -> Path:
    """Return the folder of a run's journal."""
    return journal_folder(run.folder, run.info.attempt, run.info.rank)


def records_of(run: pf.TrainingRun) -> list[Record]:
    """Return everything that a run has recorded so far; none of it may be damaged."""
    everything = read_all(journal_of(run))
    assert everything.lost == 0
    return everything.records


def recorded(run: pf.TrainingRun, kind: type[R]) -> list[R]:
    """Return what a run has recorded of one kind."""
    return [record for record in records_of(run) if isinstance(record, kind)]


def metrics_of(run: pf.TrainingRun) -> list[dict[str, object]]:
    """Return what every ``metric`` of a run was told."""
    return [record.values for record in recorded(run, Metric)]


def default_run() -> pf.TrainingRun:
    """Return the run that the module functions act on."""
    assert pf._default is not None
    return pf._default


class Journal:
    """A journal that a script has left behind."""

    def __init__(self, folder: Path) -> None:
        """Read it."""
        run = JournalReader(folder).run()
        assert run is not None
        self.run: RankRun = run
        everything = read_all(folder)
        self.records, self.lost = everything.records, everything.lost

    def of(self, kind: type[R]) -> list[R]:
        """Return the records of one kind."""
        return [record for record in self.records if isinstance(record, kind)]

    @property
    def steps(self) -> list[int]:
        """The steps that ended."""
        return [record.step for record in self.of(StepEnded)]

    @property
    def values(self) -> list[dict[str, object]]:
        """What every ``metric`` was told."""
        return [record.values for record in self.of(Metric)]


def folders_left(state: Path | None = None) -> list[Path]:
    """Return the folders of all journals in a state folder, of which an agent may be removing one."""
    return [each for folder in node_folders(state or Path.cwd() / "state") for each in journal_folders(folder)]


def journals(state: Path | None = None) -> list[Journal]:
    """Return all journals in a state folder, the oldest run first."""
    return sorted(map(Journal, folders_left(state)), key=lambda journal: journal.run.started_unix_ns)


def begin_script(code: str, **environ: str) -> subprocess.Popen[str]:
    """Start a script in the current folder that only writes journals, unless ``environ`` says otherwise."""
    ours = {
        "PERIFLOW_STATE_DIR": str(Path.cwd() / "state"),
        "PERIFLOW_AGENT": "off",
        "OTEL_EXPORTER_PROMETHEUS_PORT": "0",
    }
    script = Path("script.py")
    script.write_text(code, "utf-8")
    return subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, **ours, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Ended:
    """How a script has ended."""

    def __init__(self, process: subprocess.Popen[str], timeout_s: float = 180) -> None:
        """Wait for its end."""
        with process:
            try:
                self.output, self.errors = process.communicate(timeout=timeout_s)
            except BaseException:
                process.kill()
                raise
        self.status = process.returncode


def run_script(code: str, **environ: str) -> Ended:
    """Run a script to its end; see ``begin_script``."""
    return Ended(begin_script(code, **environ))
