"""Measure what the callback for transformers costs, beside those of experiment trackers, on a real trainer.

``python benchmarks/bench_frameworks.py [--quick]`` needs transformers; what else is not installed is left out. The
variants take turns within every round; shown is what all steps of all rounds tell, but the least of what a script takes
as a whole. Takes about four minutes on two idle cores, and prints the section of ``docs/frameworks.md``. Nothing is
asserted.
"""

import ctypes
import functools
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any, NamedTuple

PR_SET_CHILD_SUBREAPER = 36
NOTHING = "nothing"
PERIFLOW = "periflow_otel"
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
"""By the name of its package, what a tracker is called in ``report_to``."""
OFFLINE = {
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "OTEL_EXPORTER_PROMETHEUS_PORT": "0",
    "TRACKIO_DIR": "trackio",
    "HF_HUB_OFFLINE": "1",
}


class Result(NamedTuple):
    """What one run measured; seconds."""

    spent: list[float]
    """In the callback, by step."""
    wall: float
    """Of the whole script, from its start to its end."""
    cpu: float
    """Of all processes."""


def train(subject: str, steps: int) -> None:
    """Train with one callback, and print how long each step spent in it."""
    import torch  # noqa: PLC0415  # only the processes that are measured train
    from transformers import PrinterCallback, Trainer, TrainingArguments  # noqa: PLC0415

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 2))

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": torch.nn.functional.cross_entropy(self.layers(x), labels)}

    torch.set_num_threads(1)
    args = TrainingArguments(
        "out",
        max_steps=steps,
        logging_steps=1,
        save_strategy="no",
        report_to=TRACKERS.get(subject, "none"),
        disable_tqdm=True,
        use_cpu=True,
    )
    data = [{"x": torch.randn(64), "labels": torch.tensor(number % 2)} for number in range(512)]
    trainer = Trainer(Model(), args, train_dataset=data)
    trainer.remove_callback(PrinterCallback)
    if subject == PERIFLOW:
        from periflow_otel.integrations.huggingface import PeriFlowCallback  # noqa: PLC0415  # the others run without

        trainer.add_callback(PeriFlowCallback("train.log"))
    spent = [0.0]
    if subject != NOTHING:
        _time_events(trainer.callback_handler.callbacks[-1], spent)
    trainer.train()
    print(json.dumps(spent[1 : steps + 1]))


def _time_events(callback: Any, spent: list[float]) -> None:
    """Add up how long a callback takes for its events: an entry for each step, one before them and one after."""

    def timed(event: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return event(*args, **kwargs)
        finally:
            spent[-1] += time.perf_counter() - started

    def begin_entry(event: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        spent.append(0.0)
        return timed(event, *args, **kwargs)

    for name in dir(callback):
        if name.startswith("on_"):
            wrapper = begin_entry if name in ("on_step_begin", "on_train_end") else timed
            setattr(callback, name, functools.partial(wrapper, getattr(callback, name)))


def run(subject: str, steps: int) -> Result:
    """Train once, in a process of its own, and wait for everything that it leaves behind."""
    with tempfile.TemporaryDirectory() as folder:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PERIFLOW_"))}
        environ |= {**OFFLINE, "PERIFLOW_STATE_DIR": folder}
        command = [sys.executable, str(Path(__file__).resolve()), subject, str(steps)]
        started = time.perf_counter()
        with subprocess.Popen(
            command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            shown = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - started
        if process.returncode:
            sys.exit(f"{' '.join(command)} failed with {process.returncode}")
        usages = [usage]
        while children := Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            usages.append(os.wait4(int(children[0]), 0)[2])
    spent = json.loads(shown.splitlines()[-1])
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return Result(spent, wall, cpu)


def compare(subjects: list[str], steps: int, rounds: int) -> None:
    """Print one table, as ``docs/frameworks.md`` shows it."""
    load = os.getloadavg()[0]
    results: dict[str, list[Result]] = {subject: [] for subject in subjects}
    for number in range(rounds):
        for subject in subjects if number % 2 else reversed(subjects):
            results[subject].append(run(subject, steps))
    pooled = {subject: _pool(each) for subject, each in results.items()}
    base = pooled.pop(NOTHING)
    print(
        f"{rounds} × {steps:,} steps on {os.cpu_count()} cores (load {load:.1f} before): Python "
        f"{platform.python_version()}, {_version('transformers')}, {_version('torch')}; {base.wall:.1f} s without a "
        "callback.\n"
    )
    print("| | per step: median | mean | p99.9 | script takes longer by | CPU, all processes |")
    print("|---|---|---|---|---|---|")
    for subject, result in pooled.items():
        spent = sorted(result.spent)
        median, mean, p999 = statistics.median(spent), statistics.mean(spent), spent[int(len(spent) * 0.999)]
        cells = [
            f"{median * 1e6:,.0f} µs", f"{mean * 1e6:,.0f} µs", f"{p999 * 1e3:.1f} ms",
            f"{result.wall - base.wall:.1f} s", f"{result.cpu - base.cpu:+.1f} s",
        ]  # fmt: skip
        print(f"| {_version(subject)} | {' | '.join(cells)} |", flush=True)


def _version(package: str) -> str:
    """Return a package with its version, whatever it is distributed as."""
    return f"{package} {version(packages_distributions().get(package, [package])[0])}"


def _pool(results: list[Result]) -> Result:
    """Return the steps of all rounds, but the least of what other processes on the machine only add to."""
    spent = [seconds for result in results for seconds in result.spent]
    return Result(spent, min(result.wall for result in results), min(result.cpu for result in results))


def main() -> None:
    """Compare everything that is installed."""
    if len(sys.argv) == 3:
        train(sys.argv[1], int(sys.argv[2]))
        return
    steps, rounds = (200, 1) if "--quick" in sys.argv else (1000, 3)
    # Become the parent of orphans: an agent that outlives its script is waited for, and its CPU time counted.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    missing = [package for package in TRACKERS if importlib.util.find_spec(package) is None]
    subjects = [NOTHING, PERIFLOW, *(package for package in TRACKERS if package not in missing)]
    if missing:
        print(f"not measured, since it is not installed: {', '.join(missing)}; pip install {' '.join(missing)}")
    compare(subjects, steps, rounds)


if __name__ == "__main__":
    main()
