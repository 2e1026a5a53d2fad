"""Trainings and agents are killed and stopped at random, and their receiver fails at random: nothing may be lost.

``python tests/chaos.py --seconds 60 --rounds 3`` tries longer than the test does. ``--seed`` draws the same numbers
again; what they meet depends on the machine.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from faulty_receiver import Behaviour, Exchange, FaultyReceiver, accept_then, ok, partial, reset, status
from training import Recorded, Training, agents, cloud, end, received

RUNS = ("one", "two")
TRAINING = """
import os, sys, time
import periflow_otel as pf
said = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
run = pf.TrainingRun(1_000_000)
os.write(said, b"%d\\n" % run.info.attempt)
for step in range(1, 1_000_000):
    with run.train_step():
        time.sleep(float(sys.argv[1]))
    os.write(said, b"step %d\\n" % step)
    run.metric({"n": step})
    os.write(said, b"metric %d\\n" % step)
    if step % 10 == 0:
        run.upload_checkpoint()
        os.write(said, b"checkpoint %d\\n" % step)
"""
_FAILURES: tuple[Behaviour, ...] = (
    status(503),
    status(503, {"retry-after": "1"}),
    status(429, {"retry-after": "1"}),
    partial(0, "some were old"),
    reset,
    accept_then(reset),
    accept_then(status(503)),
)


class Found(NamedTuple):
    """What a round has shown."""

    attempts: int
    kills: int
    stops: int
    failures: int
    """Requests that were not answered as they should be."""
    recorded: int
    """Steps, values and checkpoints whose calls had returned."""
    missing: int
    """How many of them have not arrived."""
    ambiguous: int
    """Ids of spans that stand for more than one thing, and things with more than one id."""


class Chaos:
    """One round in the current folder."""

    def __init__(self, receiver: FaultyReceiver, chance: random.Random) -> None:
        """Prepare."""
        self._receiver = receiver
        self._chance = chance
        self._state = Path.cwd() / "state"
        self._trainings: dict[str, Training] = {}
        self._acknowledged: dict[tuple[str, int], Recorded] = {}
        self._kills = self._stops = self._failures = 0

    def run(self, duration_s: float, least: int = 0) -> Found:
        """Let it rage, also until there were so many kills and failures; let all be delivered, and compare."""
        self._receiver.behaviour = self._misbehave
        until_s = time.monotonic() + duration_s
        try:
            while time.monotonic() < until_s or min(self._kills, self._failures) < least:
                self._start()
                time.sleep(self._chance.uniform(0, 0.5))
                self._chance.choice([self._kill_training, self._stop_training, self._kill_agent, self._stop_agent])()
        finally:
            for run_id in list(self._trainings):
                self._kill(run_id)
            self._receiver.behaviour = ok
        self._deliver()
        return self._compare()

    def _misbehave(self, exchange: Exchange) -> None:
        if self._chance.random() < 0.5:
            ok(exchange)
        else:
            self._failures += 1
            self._chance.choice(_FAILURES)(exchange)

    def _start(self) -> None:
        for run_id in RUNS:
            if run_id not in self._trainings:
                period_s = self._chance.choice([0.0003, 0.003, 0.03])
                arguments = (period_s, self._said(run_id))
                self._trainings[run_id] = Training(*arguments, code=TRAINING, **self._environ(), PERIFLOW_RUN_ID=run_id)

    def _environ(self) -> dict[str, str]:
        return cloud(self._receiver.endpoint, OTEL_METRIC_EXPORT_INTERVAL="1000", PERIFLOW_AGENT_LINGER="2")

    def _kill_training(self) -> None:
        self._kills += 1
        self._kill(self._chance.choice(RUNS))

    def _kill(self, run_id: str) -> None:
        training = self._trainings.pop(run_id).kill()
        assert training.process.returncode == -signal.SIGKILL, training.errors
        said = self._said(run_id)
        attempt, _, training.output = (said.read_text() if said.exists() else "").partition("\n")
        said.unlink(missing_ok=True)
        if attempt:  # else it was killed before it had begun
            assert (run_id, int(attempt)) not in self._acknowledged, "two attempts have one number"
            self._acknowledged[run_id, int(attempt)] = training.acknowledged()

    def _said(self, run_id: str) -> Path:
        """Return the file in which a training says which attempt it is and what calls have returned."""
        return Path(f"{run_id}.txt")

    def _stop_training(self) -> None:
        with self._stopped(self._trainings[self._chance.choice(RUNS)].process.pid):
            time.sleep(self._chance.uniform(0, 0.5))

    def _kill_agent(self) -> None:
        for pid in self._one_agent():
            self._kills += 1
            end(pid)

    def _stop_agent(self) -> None:
        for pid in self._one_agent():
            with self._stopped(pid):
                time.sleep(self._chance.uniform(0, 0.5))

    def _one_agent(self) -> list[int]:
        found = agents(self._state)
        return [self._chance.choice(found)] if found else []

    @contextmanager
    def _stopped(self, pid: int) -> Iterator[None]:
        self._stops += 1
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        yield
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def _deliver(self) -> None:
        """Deliver what is left, when the agents have ended that are still at it."""
        while agents(self._state):
            time.sleep(0.05)
        replay = [sys.executable, "-c", "from periflow_otel.cli import main; main()", "replay"]
        environ = {**os.environ, **self._environ(), "PERIFLOW_STATE_DIR": str(self._state)}
        subprocess.run(replay, env=environ, check=True, stdout=subprocess.DEVNULL, timeout=120)

    def _compare(self) -> Found:
        spans, points = self._receiver.spans(), self._receiver.points("periflow.metric.n")
        missing = 0
        for (run_id, attempt), acknowledged in self._acknowledged.items():
            of_it = {"periflow.run.id": run_id, "periflow.run.attempt": attempt}.items()
            arrived = received(
                [span for span in spans if of_it <= span.resource.items()],
                [point for point in points if of_it <= point.resource.items()],
            )
            missing += sum(len(set(said) - set(got)) for said, got in zip(acknowledged, arrived, strict=True))
        return Found(
            attempts=len(self._acknowledged),
            kills=self._kills,
            stops=self._stops,
            failures=self._failures,
            recorded=sum(len(numbers) for each in self._acknowledged.values() for numbers in each),
            missing=missing,
            ambiguous=_count_ambiguous(
                {
                    (
                        (span.trace_id, span.span_id),
                        (
                            span.resource["periflow.run.id"],
                            span.resource["periflow.run.attempt"],
                            span.name,
                            span.attributes.get("periflow.step.number"),
                        ),
                    )
                    for span in spans
                }
            ),
        )


def _count_ambiguous(pairs: set[tuple[object, object]]) -> int:
    ids, things = zip(*pairs, strict=True)
    return sum(count > 1 for found in (ids, things) for count in Counter(found).values())


def main() -> int:
    """Try several rounds; return 0 if none lost anything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    arguments = parser.parse_args()
    is_right = True
    for number in range(arguments.rounds):
        seed = arguments.seed + number
        with tempfile.TemporaryDirectory() as folder, FaultyReceiver() as receiver:
            os.chdir(folder)
            found = Chaos(receiver, random.Random(seed)).run(arguments.seconds)  # noqa: S311  # no secret
            os.chdir("/")
        print(f"seed {seed}:", *(f"{name} {value}" for name, value in found._asdict().items()), flush=True)  # noqa: T201
        is_right &= found.missing == found.ambiguous == 0
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
