"""Training scripts that the tests run, and what must have arrived of them."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
from programs import Collector, ReceivedPoint, ReceivedSpan, wait_until
from typing_extensions import Self

TRAINER = Path(__file__).with_name("trainer.py")
CLOUD = {
    "PERIFLOW_ENABLED": "1", "WORLD_SIZE": "1", "NODE_RANK": "0", "NUM_NODES": "1", "PROCESSED_ITERS": "0",
    "CKPT_DIR": "checkpoints",  # nothing is written there
}  # fmt: skip


_FOREIGN = re.compile(
    r"(OTEL|PERIFLOW|XDG|TORCHELASTIC|SLURM|OMPI|PMI|PMIX|MASTER)_.*|.*_proxy"
    r"|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|NODE_RANK|NUM_NODES|PROCESSED_ITERS|CKPT_DIR|TRACEPARENT",
    re.IGNORECASE,
)


def isolate(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Go to an empty folder, with journals there too, and with no variable that could change the result of a test."""
    for name in os.environ:
        if _FOREIGN.fullmatch(name) and name != "PERIFLOW_TEST_BIN":
            monkeypatch.delenv(name)
    monkeypatch.setenv("PERIFLOW_STATE_DIR", str(folder))
    monkeypatch.setenv("PERIFLOW_PAGE", "0")  # what it says at the start is for a person
    monkeypatch.setenv("PERIFLOW_MACHINE_INTERVAL", "0")  # what it shows is never the same
    monkeypatch.setenv("TMPDIR", str(folder))  # what the test starts looks for journals there too
    monkeypatch.setattr(tempfile, "tempdir", None)  # and so does the test
    monkeypatch.chdir(folder)


class Recorded(NamedTuple):
    """Steps, by what was recorded of them."""

    steps: list[int]
    metrics: list[int]
    checkpoints: list[int]


class Training:
    """A script that runs in the current folder, with its journals there too."""

    def __init__(self, *arguments: object, code: str = "", **environ: str) -> None:
        """Start the trainer, or else ``code``, with arguments and further environment variables."""
        self.state = Path(environ.get("PERIFLOW_STATE_DIR", Path.cwd() / "state"))
        self.process = subprocess.Popen(
            [sys.executable, *(("-c", code) if code else (str(TRAINER),)), *map(str, arguments)],
            env={
                **os.environ,
                "OTEL_EXPORTER_PROMETHEUS_PORT": "0",
                **environ,
                "PERIFLOW_STATE_DIR": str(self.state),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pipesize=1 << 20,  # a script must not wait for the test to read what it prints
            text=True,
        )
        self.output = self.errors = ""

    def __enter__(self) -> Self:
        """Return the running script."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the script and its agents, if they still run."""
        self.process.kill()
        self.process.communicate()
        for pid in agents(self.state):
            end(pid)

    def read_line(self) -> str:
        """Wait for the next line on stdout; the rest is left for ``wait``."""
        assert self.process.stdout
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self.process.stdout.fileno(), 1)
            assert byte, "the script has ended"
            line += byte
        return line.decode()

    def wait(self, timeout_s: float = 60) -> Self:
        """Wait until the script has ended, and whoever shares its output."""
        self.output, self.errors = self.process.communicate(timeout=timeout_s)
        return self

    def kill(self, number: signal.Signals = signal.SIGKILL) -> Self:
        """Send a signal to the script and wait for its end."""
        self.process.send_signal(number)
        return self.wait()

    def wait_for_agent(self, timeout_s: float = 30) -> None:
        """Wait until no agent is at work any more."""
        wait_until(lambda: not agents(self.state), timeout_s, "the agent has ended")

    def acknowledged(self) -> Recorded:
        """Return what the script has said of calls that had returned."""
        lines = [line.split() for line in self.output.splitlines() if line.count(" ") == 1]
        return Recorded(*([int(number) for kind, number in lines if kind == each] for each in _KINDS))


_KINDS = ("step", "metric", "checkpoint")


def cloud(endpoint: str, **more: str) -> dict[str, str]:
    """Return the environment of cloud mode with a receiver."""
    return {**CLOUD, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **more}


def agents(state: Path) -> list[int]:
    """Return the process ids of the agents at work in a state folder, without the processes that only start them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes().decode().split("\0")
                session = (entry / "stat").read_text().rpartition(")")[2].split()[3]
            except OSError:
                continue
            is_starter = session == entry.name  # it leads the session that the agent is in
            is_agent = "periflow_otel.agent" in command and any(part.startswith(f"{state}/") for part in command)
            if is_agent and not is_starter:
                found.append(int(entry.name))
    return found


def end(pid: int) -> None:
    """End a process with SIGKILL, if it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def received(spans: Iterable[ReceivedSpan], points: Iterable[ReceivedPoint]) -> Recorded:
    """Return what has arrived, each thing as often as it has come."""
    spans = list(spans)
    return Recorded(
        [
            span.attributes["periflow.step.number"]
            for span in spans
            if span.name == "periflow.step" and not span.is_error
        ],
        [point.value for point in points if point.name == "periflow.metric.n"],
        [
            attributes["periflow.step.number"]
            for span in spans
            for name, _, attributes in span.events
            if name == "periflow.checkpoint.upload"
        ],
    )


def arrived(collector: Collector, run_id: str | None = None) -> Recorded:
    """Return what has arrived at a collector, of one run or of all."""
    return received(_of_run(collector.spans(), run_id), _of_run(collector.points(), run_id))


def everything(steps: int) -> Recorded:
    """Return what the trainer records in this many steps."""
    numbers = list(range(1, steps + 1))
    return Recorded(numbers, numbers, [number for number in numbers if number % 10 == 0])


def in_order(recorded: Recorded) -> Recorded:
    """Return the same without regard to the order of arrival."""
    return Recorded(*map(sorted, recorded))


def outcomes(collector: Collector, run_id: str | None = None) -> list[str]:
    """Return how the runs ended that a collector has heard of, or the one."""
    spans = _of_run(collector.spans(), run_id)
    return [span.attributes["periflow.run.outcome"] for span in spans if span.name == "periflow.run"]


def by_id(spans: Iterable[ReceivedSpan]) -> Mapping[int, list[ReceivedSpan]]:
    """Group spans by their id."""
    groups: dict[int, list[ReceivedSpan]] = {}
    for span in spans:
        groups.setdefault(span.span_id, []).append(span)
    return groups


_Item = TypeVar("_Item", ReceivedSpan, ReceivedPoint)


def _of_run(items: list[_Item], run_id: str | None) -> list[_Item]:
    return [item for item in items if run_id in (None, item.resource["periflow.run.id"])]
