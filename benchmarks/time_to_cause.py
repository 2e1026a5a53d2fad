"""Measure how long it takes until the cause of a fault is named, and whether healthy trainings are accused.

``python benchmarks/time_to_cause.py [faults | healthy | NAME ...]``: real ranks on this machine, which are well for a
while, and then for a minute are not. What the live page says is read every second, and what ``periflow-otel status
--json`` says once that names the cause, or every ten seconds. Needs torch, and for the limits in ``hardships.py`` root
on Linux with control groups of version 1.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.request import ProxyHandler, build_opener

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import hardships
from programs import free_ports
from training import agents

WITHIN_S = 60.0
"""A cause is to be named within so many seconds."""
HEALTHY_S = 20.0
"""Healthy trainings are watched for so much longer than those that fall ill are well."""
STATUS_S = 10.0
Findings = list[dict[str, Any]]
_open = build_opener(ProxyHandler({})).open


class Case(NamedTuple):
    """A training that is watched."""

    training: str
    """A class of ``ill_training.py``."""
    ranks: int = 3
    who: Sequence[int] | None = None
    """Ranks that are to be named; None: it is no rank's fault."""
    words: str = ""
    """How the reason is known in a sentence, as a regular expression. Healthy trainings have none."""
    around: Callable[[Any], AbstractContextManager[None]] | None = None
    """What is done to it from outside."""
    attempts: int = 1


class Said(NamedTuple):
    """A sentence, and when it was said first, in seconds after the onset."""

    after_s: float
    text: str


class Starter:
    """Starts ranks: a process that has imported torch, and becomes one again and again."""

    def __init__(self) -> None:
        """Start it."""
        script = Path(__file__).with_name("ill_training.py")
        self._process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._lock = threading.Lock()

    def start(self, *arguments: Any) -> int:
        """Start a rank, and return its pid."""
        with self._lock:
            print(json.dumps(arguments), file=self._process.stdin, flush=True)
            return int(self._process.stdout.readline())  # type: ignore[union-attr]  # it is a pipe

    def close(self) -> None:
        """End it; ranks go on."""
        self._process.kill()
        self._process.wait()


class Watched:
    """One training, while it runs."""

    def __init__(self, name: str, case: Case, folder: Path, before_s: float) -> None:
        """Prepare; what goes wrong does so after ``before_s``."""
        self.name, self.case, self.folder, self.before_s = name, case, folder, before_s
        self.state = folder / "state"
        self.environ = {
            "WORLD_SIZE": str(case.ranks), "PERIFLOW_RUN_ID": "study", "PERIFLOW_STATE_DIR": str(self.state),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0]), "OTEL_EXPORTER_PROMETHEUS_PORT": "0",
            "OMP_NUM_THREADS": "1", "TMPDIR": str(folder), "PERIFLOW_EXIT_TIMEOUT": "2", "PERIFLOW_AGENT_LINGER": "2",
        }  # fmt: skip
        self.attempt = 0
        self.page: Findings = []
        """What the page said last."""
        self.ranks: list[int] = []

    def begin(self, starter: Starter) -> None:
        """Begin an attempt, if there is to be another one."""
        if self.attempt < self.case.attempts:
            self.attempt += 1
            environ = self.environ | {"PERIFLOW_ATTEMPT": str(self.attempt)}
            start = partial(starter.start, self.case.training)
            self.ranks = [start(rank, str(self.folder), self.before_s, environ) for rank in range(self.case.ranks)]

    @property
    def is_alive(self) -> bool:
        """Whether a rank is there."""
        return any(Path(f"/proc/{pid}").exists() for pid in self.ranks)

    def pids(self) -> list[int]:
        """Return the processes that there are now: ranks and agents."""
        return [*self.ranks, *agents(self.state)]

    def onset_s(self) -> float | None:
        """Return when it has fallen ill; None while it is well."""
        with suppress(OSError, ValueError):
            return float((self.folder / "onset").read_text())
        return None

    def fall_ill(self) -> None:
        """Note that it does now."""
        (self.folder / "onset").write_text(str(time.time()))

    def look(self) -> Findings:
        """Return what the page says; what it said last, where there is none any more."""
        for url in self.state.glob("*/*/page.url"):
            with suppress(OSError, ValueError):
                whole = json.load(_open(f"{url.read_text().strip()}/data.json?since={10**14}", timeout=5))
                self.page = whole["findings"] if whole else []
        return self.page

    def status(self) -> Findings:
        """Return what the command says."""
        command = [sys.executable, "-m", "periflow_otel", "status", "--json", "study"]
        environ = {**os.environ, "PERIFLOW_STATE_DIR": str(self.state)}
        done = subprocess.run(command, cwd=self.folder, env=environ, capture_output=True, text=True, check=False)
        with suppress(ValueError):
            return list(json.loads(done.stdout)["findings"])
        return []

    def cause(self, findings: Findings) -> str | None:
        """Return the sentence that names rank and reason."""
        who = None if self.case.who is None else list(self.case.who)
        fits = (each["text"] for each in findings if who in (None, each["ranks"]))
        return next((text for text in fits if re.search(self.case.words, text)), None)

    def end(self) -> None:
        """Kill what is left of it."""
        for pid in self.pids():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def watch(starter: Starter, before_s: float, named: tuple[str, Case]) -> dict[str, Any]:
    """Run a training; return what was said of it, and when."""
    name, case = named
    folder = Path(tempfile.mkdtemp(prefix=f"{case.training}-"))
    watched = Watched(name, case, folder, before_s)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        if case.around:
            stack.enter_context(case.around(watched))
        stack.callback(watched.end)
        watched.begin(starter)
        return {"name": name, **(time_cause(watched, starter) if case.words else accuse(watched, starter))}


def time_cause(watched: Watched, starter: Starter) -> dict[str, Any]:
    """Return when page and status named the cause first, and all sentences that the page said at last."""
    named: dict[str, Said] = {}
    asked_s, until_s = 0.0, time.time() + watched.before_s + 3 * WITHIN_S
    while len(named) < 2 and time.time() < until_s:
        time.sleep(1)
        findings, now_s, onset_s = watched.look(), time.time(), watched.onset_s()
        if onset_s:
            until_s = min(until_s, onset_s + WITHIN_S)
            if text := watched.cause(findings):
                named.setdefault("page", Said(now_s - onset_s, text))
            if "status" not in named and ("page" in named or now_s > asked_s + STATUS_S):
                asked_s = now_s
                if text := watched.cause(watched.status()):
                    named["status"] = Said(time.time() - onset_s, text)
        if not watched.is_alive:
            watched.begin(starter)
    return {**named, "said": [each["text"] for each in watched.page]}


def accuse(watched: Watched, starter: Starter) -> dict[str, Any]:
    """Return all sentences that page and status ever said, with those whom they name."""
    said: dict[str, dict[str, Any]] = {}
    until_s, is_over = time.time() + watched.before_s + HEALTHY_S, False
    while time.time() < until_s and not is_over:
        time.sleep(1)
        said |= {each["kind"]: each for each in watched.look()}
        if not watched.is_alive:
            is_over = watched.attempt == watched.case.attempts
            watched.begin(starter)
    said |= {each["kind"]: each for each in watched.status()}
    return {
        "said": [each["text"] for each in said.values()],
        "accused": [each["text"] for each in said.values() if each["is_fault"] or _is_some(each["ranks"], watched)],
    }


def _is_some(ranks: Sequence[int], watched: Watched) -> bool:
    """Tell whether some ranks are singled out."""
    return 0 < len(ranks) < watched.case.ranks


FAULTS: Mapping[str, Case] = MappingProxyType({
    "slow loader": Case("SlowLoader", 3, [1], "begin|between steps"),
    "slow rank outside the step": Case("SlowOutside", 2, [0], "begin|between steps"),
    "slow rank inside the step": Case("SlowInside", 3, [1], "augment"),
    "hang in a lock": Case("HangInLock", 3, [1], "enter_cache"),
    "hang in a collective": Case("HangInCollective", 3, [1], "recv"),
    "hang in C": Case("HangInC", 3, [2], "forward"),
    "a rank that died": Case("Died", 3, [1], "killed"),
    "restart loop": Case("RestartLoop", 1, None, "restarts lead nowhere", attempts=6),
    "NaN": Case("NotFinite", 3, [1], "loss was NaN"),
    "pauses of garbage collection": Case("Pauses", 3, [1], "[Gg]arbage"),
    "slow checkpoint": Case("SlowCheckpoint", 2, [0], "checkpoint"),
    "slow disk": Case("SlowDisk", 3, [1], "between steps|disk", hardships.slow_disk),
    "memory leak": Case("Leak", 3, [1], "memory|grow"),
    "swapping": Case("Swapping", 2, None, "swap", hardships.little_memory),
    "throttled processor": Case("Throttled", 3, None, "processor limit", hardships.throttled),
    "full disk": Case("FullDisk", 2, None, "disk .*full", hardships.small_disk),
    "clock jump": Case("ClockJump", 2, [1], "clock"),
    "lost telemetry": Case("LostTelemetry", 1, None, "lost", hardships.nobody_who_listens),
    "receiver down": Case("Training", 2, None, "taken nothing", hardships.receiver_that_goes_away),
    "uneven data": Case("UnevenData", 3, [2], "behind|slow"),
    "one slow node": Case("SlowNode", 4, [2, 3], "[Nn]ode"),
    "one slow node that others wait for": Case("SlowNodeInStep", 4, [2, 3], "[Nn]ode|spin"),
})  # fmt: skip
HEALTHY: Mapping[str, Case] = MappingProxyType({
    "three ranks": Case("Training"),
    "one rank": Case("Training", 1),
    "eight ranks": Case("Training", 8),
    "evaluation": Case("Evaluating"),
    "evaluation by rank 0 alone": Case("EvaluatingAlone"),
    "saving often": Case("SavingOften"),
    "compilation": Case("Compiling", 2),
    "a schedule": Case("Scheduled", 2),
    "variable sequence length": Case("Variable"),
    "of another length on each rank": Case("VariableByRank"),
    "short steps": Case("ShortSteps", 2),
    "long steps": Case("LongSteps"),
    "accumulation of gradients": Case("Accumulating"),
    "epochs": Case("Epochs"),
    "ranks that do not wait": Case("Alone"),
    "rank 0 logs more": Case("Logging"),
    "held for a while": Case("Training", around=hardships.held_for_a_while),
    "ended and begun again": Case("Asked", 2, attempts=2),
    "done": Case("Ending", 2),
    "a cache that fills": Case("Growing", 2),
    "explicit collections of garbage": Case("Collecting", 2),
    "longer and longer sequences": Case("Curriculum", 2),
})  # fmt: skip


def show(result: Mapping[str, Any]) -> None:
    """Print some lines on one training."""
    print(f"{result['name']}:")
    for where in ("page", "status"):
        if where in result:
            print(f"  {where} after {result[where].after_s:.0f} s: {result[where].text}")
    for text in result["said"]:
        print(f"  {'ACCUSED' if text in result.get('accused', ()) else 'said'}: {text}")
    sys.stdout.flush()


def main() -> None:
    """Print what was said, and how many were right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["faults", "healthy"])
    parser.add_argument("--at-once", type=int, default=5, help="trainings; default: 5")
    parser.add_argument("--before", type=float, default=45.0, help="seconds that each is well; default: 45")
    given = parser.parse_args()
    groups = {"faults": FAULTS, "healthy": HEALTHY}
    cases = [each for group, named in groups.items() for each in named.items() if {group, each[0]} & {*given.names}]
    starter, named, quiet = Starter(), 0, 0
    with ThreadPoolExecutor(given.at_once) as pool:
        for result in pool.map(partial(watch, starter, given.before), cases):
            show(result)
            named += {"page", "status"} <= result.keys()
            quiet += result.get("accused") == []
    starter.close()
    faults = sum(bool(case.words) for _, case in cases)
    print(f"{named} of {faults} causes were named; of {len(cases) - faults} healthy trainings {quiet} were not accused")


if __name__ == "__main__":
    main()
