"""Measure what recording costs, beside the OpenTelemetry SDK used directly: ``make bench``, about six minutes.

Subjects take turns within every round, and the median over the rounds is shown, so that a noisy machine disturbs all
alike. Nothing is asserted. ``--quick`` gives a rough answer in one minute; ``--only cpu`` gives one table.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from resource import struct_rusage
from typing import NamedTuple

from subjects import spin

HERE = Path(__file__).parent
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, eq=False)
class Variant:
    """A subject with the environment that it runs in."""

    label: str
    subject: str
    environ: Mapping[str, str] = field(default_factory=dict)


CLOUD = {"PERIFLOW_ENABLED": "1", "WORLD_SIZE": "1", "NODE_RANK": "0", "NUM_NODES": "1", "PROCESSED_ITERS": "0"}
NOTHING = Variant("nothing", "nothing")
JOURNAL = Variant("periflow_otel, journal only", "periflow_otel", {"PERIFLOW_AGENT": "off"})
LOCAL = Variant("periflow_otel, local mode", "periflow_otel", {"OTEL_EXPORTER_PROMETHEUS_PORT": "0"})
OTLP = Variant("periflow_otel, cloud mode (OTLP)", "periflow_otel", CLOUD)
RAW = Variant("raw SDK (OTLP)", "raw SDK")
ROOMY = Variant("raw SDK (OTLP), queue of 200 000", "raw SDK", {"OTEL_BSP_MAX_QUEUE_SIZE": "200000"})


class Result(NamedTuple):
    """What one process measured, and what it and everything that it started used."""

    values: dict[str, float]
    cpu_s: float
    peak_agent_mib: float


class Sink:
    """The receiver that every network exporter sends to, in a process of its own."""

    def __init__(self) -> None:
        """Start it."""
        self._process = subprocess.Popen([sys.executable, HERE / "sink.py"], stdout=subprocess.PIPE, text=True)
        self.address = self._process.stdout.readline().strip()
        self.pid = self._process.pid

    def counts(self) -> tuple[int, int]:
        """Return how many distinct step spans and how many points of the user's metrics have come."""
        with urllib.request.urlopen(self.address) as answer:  # noqa: S310  # loopback
            counts = json.load(answer)
        return counts["spans"], sum(n for name, n in counts["points"].items() if name.startswith("periflow.metric."))

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.communicate()


class Bench:
    """Runs subjects one after another and waits for everything that they leave behind."""

    def __init__(self, sink: Sink, rounds: int) -> None:
        """Find out how much work makes a step."""
        self._sink = sink
        self._rounds = rounds
        self.work = _calibrate()

    def rounds(self, loop: str, steps: int, variants: Sequence[Variant]) -> dict[Variant, dict[str, float]]:
        """Return the median over all rounds of everything that the variants measure in a loop."""
        results: dict[Variant, list[dict[str, float]]] = {variant: [] for variant in variants}
        for number in range(self._rounds):
            for variant in variants if number % 2 else reversed(variants):
                results[variant].append(self.run(variant, loop, steps).values)
        return {variant: _medians(measured) for variant, measured in results.items()}

    def run(self, variant: Variant, loop: str, steps: int) -> Result:
        """Run a variant once, in a process of its own."""
        command = [sys.executable, str(HERE / "subjects.py"), variant.subject, loop, str(steps), str(self.work)]
        with tempfile.TemporaryDirectory() as folder:
            environ = {
                **_clean_environ(),
                "OTEL_EXPORTER_OTLP_ENDPOINT": "" if variant is LOCAL else self._sink.address,
                "PERIFLOW_STATE_DIR": folder,
                "TMPDIR": folder,  # where runs without a state folder leave things, which are no concern of this one
                **variant.environ,
            }
            with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
                values = json.loads(process.stdout.read())
                usages = dict(self._wait())
                process.returncode = 0
            agents = [usage.ru_maxrss / 1024 for pid, usage in usages.items() if pid != process.pid]
            cpu_s = sum(usage.ru_utime + usage.ru_stime for usage in usages.values())
            return Result(values, cpu_s, max(agents, default=0))

    def _wait(self) -> Iterator[tuple[int, struct_rusage]]:
        """Wait for every child but the sink, adopted ones too."""
        while children := _children() - {self._sink.pid}:
            pid, _, usage = os.wait4(min(children), 0)
            yield pid, usage


def _children() -> set[int]:
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


def _clean_environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PERIFLOW_"))}


def _medians(results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in results) for name in results[0]}


def _calibrate() -> int:
    """Find how much work takes 2 ms."""
    best = min(_timed(lambda: spin(20_000)) for _ in range(50))
    return round(20_000 * 0.002 / best)


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def show(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print(f"\n### {title}\n", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", sep="\n")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def show_step_cost(bench: Bench, scale: float) -> None:
    """Time on the training thread."""
    variants = [JOURNAL, LOCAL, OTLP, RAW]
    burst = bench.rounds("burst", round(20_000 * scale), variants)
    paced = bench.rounds("paced", round(3_000 * scale), variants)
    head = ["", "burst: median", "p99.9", "raw SDK is", "paced: median", "p99.9", "raw SDK is"]
    show("One step with three metrics on the training thread, in µs", head, (
        [variant.label, *_cost(burst, variant), *_cost(paced, variant)] for variant in variants
    ))  # fmt: skip


def _cost(results: Mapping[Variant, Mapping[str, float]], variant: Variant) -> list[str]:
    median, raw = results[variant]["median"], results[RAW]["median"]
    ratio = "" if variant is RAW else f"{raw / median:.1f} ×"
    return [f"{median:.1f}", f"{results[variant]['p99.9']:.0f}", ratio]


def show_slow_down(bench: Bench, scale: float) -> None:
    """Share of a busy loop that goes into calls, and into waiting for a core or the interpreter."""
    variants = [NOTHING, LOCAL, OTLP, RAW]
    results = bench.rounds("busy", round(5_000 * scale), variants)
    show("Slow-down of a loop of 2 ms steps in pure Python", ["", "calls", "waiting"], (
        [variant.label, f"{results[variant]['calls']:.2%}", f"{results[variant]['waiting']:.2%}"]
        for variant in variants
    ))  # fmt: skip


def show_cpu(bench: Bench, sink: Sink, scale: float) -> None:
    """CPU of all processes, less that of the same program with few steps, and what arrived."""
    steps = round(100_000 * scale)
    rows = []
    for variant in (JOURNAL, LOCAL, OTLP, RAW, ROOMY):
        few = bench.run(variant, "burst", 100)
        before = sink.counts()
        many = bench.run(variant, "burst", steps)
        spans, points = (after - earlier for after, earlier in zip(sink.counts(), before, strict=True))
        arrived = [f"{spans:,}", f"{points:,}"] if variant in (OTLP, RAW, ROOMY) else ["", ""]
        memory = f"{many.peak_agent_mib:.0f} MiB" if many.peak_agent_mib else ""
        rows.append([variant.label, f"{(many.cpu_s - few.cpu_s) / (steps - 100) * 1e6:.1f} µs", *arrived, memory])
    head = ["", "CPU per step", "spans received", "metric points received", "agent's peak memory"]
    show(f"All processes together, burst of {steps:,} steps with three metrics", head, rows)


def show_start(rounds: int) -> None:
    """Time to import and to begin a run."""
    sdk = "import opentelemetry.sdk.trace, opentelemetry.sdk.metrics, opentelemetry.exporter.otlp.proto.http"
    times = {code: [] for code in ("pass", "import periflow_otel", sdk)}
    for _ in range(3 * rounds):
        for code, measured in times.items():
            measured.append(_timed(lambda code=code: subprocess.run([sys.executable, "-c", code], check=True)))
    bare, own, raw = (min(measured) * 1e3 for measured in times.values())
    inits = [_init_ms() for _ in range(rounds)]
    show("Start, in ms", ["", "periflow_otel", "raw SDK"], [
        ["import, beyond bare Python, least of several", f"{own - bare:.0f}", f"{raw - bare:.0f}"],
        ["`pf.init()`, agent started, median", f"{statistics.median(inits):.1f}", ""],
    ])  # fmt: skip


def _init_ms() -> float:
    code = (
        "import time, os, periflow_otel as pf; started = time.perf_counter(); "
        "pf.init(local_log_name=os.environ['PERIFLOW_STATE_DIR'] + '/log'); "
        "print((time.perf_counter() - started) * 1e3)"
    )
    others = _children()
    with tempfile.TemporaryDirectory() as folder:
        own = {"PERIFLOW_STATE_DIR": folder, "TMPDIR": folder, "OTEL_EXPORTER_PROMETHEUS_PORT": "0"}
        environ = {**_clean_environ(), **own}
        shown = subprocess.run([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, check=True).stdout
        while children := _children() - others:
            os.wait4(min(children), 0)
    return float(shown)


def main() -> None:
    """Measure everything, or what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rough answer")
    parser.add_argument("--only", choices=("start", "step", "slow-down", "cpu"), help="one of the tables")
    options = parser.parse_args()
    scale, rounds = (0.1, 3) if options.quick else (1, 5)
    packages = ", ".join(f"{name} {version(name)}" for name in ("periflow_otel", "opentelemetry-sdk"))
    # Become the parent of orphans: an agent that outlives its script is waited for, and its CPU time counted.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {packages}; medians of {rounds} rounds")
    sink = Sink()
    try:
        bench = Bench(sink, rounds)
        tables = {
            "start": lambda: show_start(rounds),
            "step": lambda: show_step_cost(bench, scale),
            "slow-down": lambda: show_slow_down(bench, scale),
            "cpu": lambda: show_cpu(bench, sink, scale),
        }
        for show_table in [tables[options.only]] if options.only else tables.values():
            show_table()
    finally:
        sink.close()


if __name__ == "__main__":
    main()
