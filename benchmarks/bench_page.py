"""Measure what the page and the report cost: ``python benchmarks/bench_page.py``, some five minutes, 2 GB of files.

``agent``: CPU time that a step costs the agent for the page while nobody looks. Its thread is measured alone, from what
another consumer has read of a real journal to what is put away, cursors included. ``report``: seconds, peak memory and
size of the report of a long run, whose files the exporters of local mode have written.
"""

import argparse
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from periflow_otel.agent.delivery import Delivery
from periflow_otel.agent.lanes import Lane
from periflow_otel.agent.tracks import Track
from periflow_otel.agent.watch import RankJournal
from periflow_otel.exporters import Outcome, taken
from periflow_otel.exporters.live_page import LivePage
from periflow_otel.exporters.otlp_file import OtlpPointFile, OtlpSpanFile
from periflow_otel.journal.folders import journal_folder, make_private, node_folder, run_folder
from periflow_otel.journal.recent import Shelf
from periflow_otel.journal.writer import JournalWriter
from periflow_otel.processes import Process
from periflow_otel.records import Metric, Orders, RankRun, StepEnded, encode_end, encode_metric
from periflow_otel.translate.as_is import EveryRecord
from periflow_otel.translate.points import PointTranslator
from periflow_otel.translate.spans import SpanTranslator
from periflow_otel.web.site import Site

STEP_NS = 50_000_000
STEPS_AT_ONCE = 900


class Taker:
    """An exporter that takes everything: the one that reads the journal before the page does."""

    def export(self, items: Sequence[object]) -> Outcome:
        """Take items."""
        return taken(len(items))

    def close(self) -> None:
        """Do nothing."""


def make_run(local_log: Path) -> RankRun:
    """Return the only rank of a run."""
    return RankRun(
        run_id="long", attempt=1, seed="long", rank=0, local_rank=0, node_rank=0, world_size=1, mode="local",
        process=Process.current(), started_unix_ns=time.time_ns(), initial_step=0, local_log=str(local_log),
        resource=(("service.name", "periflow-training"),), orders=Orders(("reader", "page")),
    )  # fmt: skip


def steps(run: RankRun, first: int, last: int, metrics: int) -> Iterator[tuple[StepEnded, Metric]]:
    """Yield what a script records of steps: losses fall, learning rates too, the rest is noise."""
    chance = random.Random(first)  # noqa: S311  # nothing is secret here
    for step in range(first, last + 1):
        start_ns = run.started_unix_ns + step * STEP_NS
        duration_ns = int(STEP_NS * (0.8 + 0.15 * chance.random()))
        values = {"loss": 3 / math.sqrt(step) + chance.random() / 10, "learning_rate": 1e-3 / step}
        values |= {f"metric_{number}": chance.random() for number in range(2, metrics)}
        yield (
            StepEnded(step, start_ns, duration_ns, gap_ns=None if step == 1 else STEP_NS - duration_ns),
            Metric(step, start_ns + duration_ns + 1000, values),
        )


def agent_us(count: int, at_once: int, metrics: int) -> float:
    """Return the microseconds of CPU that a step costs the thread of the page, where so many come in a round."""
    with tempfile.TemporaryDirectory() as state:
        folder = node_folder(run_folder(Path(state), "long"))
        run, journal = make_run(Path(state) / "train.log"), journal_folder(folder, 1, 0)
        make_private(journal)
        writer, watched = JournalWriter(journal, run), RankJournal(journal, run, Shelf())
        page = LivePage(Site("127.0.0.1", 0, ()), folder)
        reader = [Track(watched, "reader", EveryRecord)], Lane(Delivery("reader", Taker()), float("inf"))
        tracks, lane = [Track(watched, "page", EveryRecord)], Lane(Delivery("page", page), float("inf"))
        spent_s = 0.0
        for first in range(1, count + 1, at_once):
            for ended, metric in steps(run, first, first + at_once - 1, metrics):
                writer.begin_step(ended.step, ended.start_unix_ns)
                writer.append(encode_end(ended))
                writer.append(encode_metric(metric.step, metric.time_unix_ns, metric.values))
            reader[1].advance(reader[0], reader[0])
            started_s = time.thread_time()
            lane.advance(tracks, tracks)
            spent_s += time.thread_time() - started_s
        page.close()
        return spent_s / count * 1e6


def write_files(folder: Path, count: int, metrics: int) -> int:
    """Write the files of a run as local mode does; return their bytes."""
    run = make_run(folder / "train.log")
    (folder / "train.log").touch()
    sides: tuple[tuple[Any, Any], ...] = (
        (SpanTranslator(run, b""), OtlpSpanFile()),
        (PointTranslator(run, b"", shows_steps=True), OtlpPointFile()),
    )
    for first in range(1, count + 1, STEPS_AT_ONCE):
        last = min(first + STEPS_AT_ONCE - 1, count)
        records = [each for ended, metric in steps(run, first, last, metrics) for each in (metric, ended)]
        for translator, exporter in sides:
            translator.feed(iter(records))
            translator.settle(run.started_unix_ns + (last + 1) * STEP_NS)
            exporter.export([(run, item) for item in translator.take()])
    return sum(each.stat().st_size for each in folder.glob("*.jsonl"))


def report(folder: Path) -> tuple[float, float, float, int]:
    """Make a report of files; return its seconds, those of CPU, peak memory in MiB and bytes."""
    out, started_s = folder / "report.html", time.perf_counter()
    command = [sys.executable, "-m", "periflow_otel", "report", str(folder), "-o", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"the report failed: {process.returncode}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return time.perf_counter() - started_s, cpu_s, usage.ru_maxrss / 1024, out.stat().st_size


def show_agent(count: int) -> None:
    """Print what a step costs the agent for the page: of what has piled up, and second by second."""
    for at_once, metrics in ((1000, 3), (1000, 5), (100, 3), (10, 3)):
        spent_us = min(agent_us(count if at_once > 10 else count // 10, at_once, metrics) for _ in range(3))
        print(f"agent, {at_once:5} steps a round, {metrics} metrics: {spent_us:6.2f} µs of CPU a step")


def show_report(folder: Path, count: int, metrics: int) -> None:
    """Print what a report costs; files that are there already are taken as they are."""
    if not any(folder.glob("*.jsonl")):
        print(f"files of {count} steps and {metrics} metrics: {write_files(folder, count, metrics) / 1e9:.2f} GB")
    spent_s, cpu_s, peak_mib, size = report(folder)
    print(f"report: {spent_s:.1f} s, {cpu_s:.1f} s of CPU, {peak_mib:.0f} MiB at most, {size / 1e6:.2f} MB")


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("agent", "report"))
    parser.add_argument("--steps", type=int, default=1_000_000, help="of the run that is reported")
    parser.add_argument("--metrics", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="folder for the files of that run, which stay there")
    options = parser.parse_args()
    if options.only != "report":
        show_agent(20_000)
    if options.only == "agent":
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
        show_report(options.keep or Path(folder), options.steps, options.metrics)


if __name__ == "__main__":
    main()
