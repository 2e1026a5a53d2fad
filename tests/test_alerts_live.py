"""Every alert about runs, end to end: trainings in which it has to fire, beside one in which none may."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
from programs import wait_until
from rules import Rules
from training import agents, end, isolate

FASTER = 10
"""By this all times in the rules are divided: a minute is six seconds."""
BEGIN = """
import itertools, os, pathlib, time
import periflow_otel as pf
rank = int(os.environ["RANK"])
pf.init(total_train_steps=10**6)
ready = [pathlib.Path(f"ready-{each}") for each in range(int(os.environ["WORLD_SIZE"]))]
ready[rank].touch()
while not all(each.exists() for each in ready):
    time.sleep(0.01)
began = max(each.stat().st_mtime for each in ready)
numbers = itertools.count(1)

def steps(count, late_s=0, every=10, busy_s=0.02):
    # As if ranks waited for one another; who is late changes from step to step, but for the one that always is.
    for number in itertools.islice(numbers, count):
        turn_s = 0.03 * ((number + rank) % 2)
        time.sleep(max(0, began + 0.1 * number + (late_s or turn_s) - time.time()))
        with pf.train_step():
            time.sleep(busy_s)
        pf.metric({"loss": 1.0})
        if every and number % every == 0:
            pf.upload_checkpoint()

"""
FOREVER = 10**9


class Scenario(NamedTuple):
    """A training that goes wrong."""

    code: str
    ranks: int = 1
    environ: Mapping[str, str] = MappingProxyType({})


SCENARIOS = {
    "PeriFlowRunStuck": Scenario("steps(20)\nwith pf.train_step(): time.sleep(1e6)"),
    "PeriFlowRankBehind": Scenario(f"steps(20 if rank else {FOREVER})\ntime.sleep(1e6)", ranks=2),
    "PeriFlowRankLagging": Scenario(f"steps({FOREVER}, late_s=0.06 * rank)", ranks=2),
    "PeriFlowValueNotFinite": Scenario(f"steps(20)\npf.metric({{'loss': float('nan')}})\nsteps({FOREVER})"),
    "PeriFlowCheckpointOverdue": Scenario(f"steps(30)\nsteps({FOREVER}, every=0)"),
    "PeriFlowTelemetryLost": Scenario(f"pf.metric({{f'k{{n}}': 1.0 for n in range(1100)}})\nsteps({FOREVER})"),
    "PeriFlowTelemetryDelayed": Scenario(
        f"steps({FOREVER})",
        environ={"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"},
    ),
    "PeriFlowRunFailed": Scenario("steps(20)\nos.kill(os.getpid(), 9)"),
    # Between two steps, as almost always: within one it would be stuck for a while.
    "PeriFlowRunSilent": Scenario(f"steps({FOREVER}, busy_s=0)"),
}
WELL = "well"


@pytest.fixture(scope="module")
def fired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[set[tuple[str, str]]]:
    """Run all trainings at once; return alert and run of all that has fired in the meantime."""
    folder = tmp_path_factory.mktemp("alerts")
    trainings = {**SCENARIOS, WELL: Scenario(f"steps({FOREVER})", ranks=2)}
    processes: dict[str, list[subprocess.Popen[bytes]]] = {}
    with pytest.MonkeyPatch.context() as patch, Rules(folder, faster=FASTER) as rules:
        isolate(patch, folder)
        try:
            processes.update((name, start(name, each, folder, rules)) for name, each in trainings.items())
            silence(rules, processes["PeriFlowRunSilent"], folder / "PeriFlowRunSilent")
            yield wait_for_alerts(rules)
        finally:
            for process in (each for ranks in processes.values() for each in ranks):
                process.kill()
                process.wait()
            for pid in (pid for name in trainings for pid in agents(folder / name)):
                end(pid)


def silence(rules: Rules, processes: list["subprocess.Popen[bytes]"], state: Path) -> None:
    """End ranks and agent of a run that is known at one stroke, as when a node loses its power."""
    known = f'periflow_step_last_ended{{periflow_run_id="{state.name}"}} > 10'
    wait_until(lambda: rules.query(known), 60, "the run is known")
    for pid in (*agents(state), *(process.pid for process in processes)):
        os.kill(pid, signal.SIGKILL)


def start(name: str, scenario: Scenario, folder: Path, rules: Rules) -> list["subprocess.Popen[bytes]"]:
    """Start a training with a state folder of its own."""
    (folder / name).mkdir()
    environ = {
        **os.environ,
        "PERIFLOW_STATE_DIR": str(folder / name),
        "PERIFLOW_RUN_ID": name,
        "WORLD_SIZE": str(scenario.ranks),
        "OTEL_EXPORTER_PROMETHEUS_PORT": "0",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{rules.otlp}/v1/metrics",
        "OTEL_METRIC_EXPORT_INTERVAL": "500",
        **scenario.environ,
    }
    command = [sys.executable, "-c", BEGIN + scenario.code]
    return [
        subprocess.Popen(
            command,
            env={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=folder / name,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for rank in range(scenario.ranks)
    ]


def wait_for_alerts(rules: Rules) -> set[tuple[str, str]]:
    """Wait until every alert has fired."""
    seen: set[tuple[str, str]] = set()

    def all_have_fired() -> bool:
        seen.update((alert, run) for alert, _, run in rules.firing())
        return {(name, name) for name in SCENARIOS} <= seen

    wait_until(all_have_fired, 120, "all alerts have fired")
    return seen


@pytest.mark.parametrize("alert", SCENARIOS)
def test_an_alert_fires(fired: set[tuple[str, str]], alert: str):
    """In the training that gives cause for it."""
    assert (alert, alert) in fired


@pytest.mark.parametrize("alert", SCENARIOS)
def test_an_alert_is_silent(fired: set[tuple[str, str]], alert: str):
    """In all other trainings, and above all in the one that is well."""
    assert {run for name, run in fired if name == alert} == {alert}
    assert all(run != WELL for _, run in fired)
