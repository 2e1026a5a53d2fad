"""Measure the agent of a node that has many ranks: ``python benchmarks/many_ranks.py --ranks 200 --rate 10``.

The ranks exist in name only: a few processes write their journals, for each rank so many steps a second with three
metrics each, all ranks at the same moment as a collective makes them. One real agent delivers them over OTLP to a
receiver on this machine. A backlog that does not grow means that the agent keeps up.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

from bench_step import Sink

from periflow_otel.journal.agent_lock import take_agent_lock
from periflow_otel.journal.cursors import load_cursor
from periflow_otel.journal.folders import journal_folder, journal_folders, make_private, node_folder, run_folder
from periflow_otel.journal.reader import JournalReader
from periflow_otel.journal.writer import JournalWriter
from periflow_otel.processes import Process
from periflow_otel.records import Orders, RankRun, RunFinished, StepEnded, encode, encode_end, encode_metric

CONSUMERS = ("otlp.traces", "otlp.metrics")
LOOK_INTERVAL_S = 5.0
SEGMENT_BYTES = 2 << 20
"""Less than a rank takes: 200 times 8 MiB are reserved for nothing here."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Load(NamedTuple):
    """What is simulated."""

    ranks: int
    rate: float
    """Steps a second, of each rank."""
    seconds: float
    processes: int

    @property
    def steps(self) -> int:
        """Steps of one rank."""
        return int(self.rate * self.seconds)


def write_ranks(folder: Path, load: Load, first: int, barrier: Barrier) -> None:
    """Write the journals of every n-th rank, from ``first`` on."""
    writers = [begin_rank(folder, load, rank) for rank in range(first, load.ranks, load.processes)]
    barrier.wait()
    started_s = time.monotonic()
    for step in range(1, load.steps + 1):
        time.sleep(max(0, started_s + step / load.rate - time.monotonic()))
        for writer in writers:
            take_step(writer, step, load.rate)
    for writer in writers:
        writer.append(encode(RunFinished(time.time_ns())))
        writer.ask_for_delivery()
    barrier.wait()  # as long as this process lives, so do the ranks


def begin_rank(folder: Path, load: Load, rank: int) -> JournalWriter:
    """Begin the journal of a rank of this process."""
    run = RankRun(
        run_id="many", attempt=1, seed="many", rank=rank, local_rank=rank, node_rank=0, world_size=load.ranks,
        local_world_size=load.ranks, mode="cloud", process=Process.current(), started_unix_ns=time.time_ns(),
        initial_step=0, total_steps=load.steps, resource=(("service.name", "periflow-training"),),
        orders=Orders(CONSUMERS),
    )  # fmt: skip
    journal = journal_folder(folder, 1, rank)
    make_private(journal)
    return JournalWriter(journal, run, segment_bytes=SEGMENT_BYTES)


def take_step(writer: JournalWriter, step: int, rate: float) -> None:
    """Record what a training script records of a step."""
    now = time.time_ns()
    duration_ns = int(0.9e9 / rate)
    writer.begin_step(step, now - duration_ns)
    values = {"loss": 1 / step, "learning_rate": 0.001, "gradient_norm": 1.5}
    writer.append(encode_end(StepEnded(step, now - duration_ns, duration_ns)))
    writer.append(encode_metric(step, now, values))


class Agent:
    """The process that is measured."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        """Start it."""
        self._folder = folder
        lock = take_agent_lock(folder) or 0  # there is no other agent
        environ = {**os.environ, "PERIFLOW_ENABLED": "1", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        environ["PERIFLOW_STATE_DIR"] = str(folder.parents[1])
        code = (
            f"from periflow_otel.agent.__main__ import main; main({str(folder)!r}, {os.getpid()}, {lock}, -1, -1, -1)"
        )
        command = [sys.executable, "-c", code]  # a child of this process, which asks for its CPU time
        self._process = subprocess.Popen(command, env=environ, pass_fds=[lock])
        os.close(lock)
        self.pid = self._process.pid

    def cpu_s(self) -> float:
        """Return the CPU time that it has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    def memory_mib(self) -> float:
        """Return the memory that it has in use."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

    def backlog(self) -> list[int]:
        """Return how many records each consumer has yet to deliver."""
        heads = {each: JournalReader(each).head().sequence for each in journal_folders(self._folder)}
        return [
            sum(max(0, head - load_cursor(each, name).position.sequence) for each, head in heads.items())
            for name in CONSUMERS
        ]

    def wait(self) -> tuple[float, float]:
        """Wait for its end; return all the CPU time that it used, and its peak memory in MiB."""
        _, status, usage = os.wait4(self.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def measure(load: Load) -> None:
    """Run one simulation and print what it shows."""
    sink = Sink()
    with tempfile.TemporaryDirectory() as state:
        folder = node_folder(run_folder(Path(state), "many"))
        make_private(folder)
        fork = get_context("fork")
        barrier = fork.Barrier(load.processes + 1)
        for first in range(load.processes):
            fork.Process(target=write_ranks, args=(folder, load, first, barrier), daemon=True).start()
        barrier.wait()
        agent = Agent(folder, sink.address)
        print(f"{load.ranks} ranks, {load.rate:g} steps a second each, {load.seconds:g} s")
        for line in watch(agent, load):
            print(line, flush=True)
        ended_s = time.monotonic()
        barrier.wait()
        cpu_s, peak_mib = agent.wait()
        steps = load.ranks * load.steps
        print(f"drained {time.monotonic() - ended_s:.1f} s after the last step; peak memory {peak_mib:.0f} MiB")
        print(f"CPU of the agent per step and rank, over all: {cpu_s / steps * 1e6:.1f} µs")
        print(f"spans and points at the receiver: {sink.counts()}, of {(steps, 3 * steps)}")
    sink.close()


def watch(agent: Agent, load: Load) -> Iterator[str]:
    """Yield a line every few seconds until the last step is taken."""
    yield "     s   agent CPU   µs/step   memory MiB   backlog of traces, metrics"
    started_s, before_s = time.monotonic(), agent.cpu_s()
    for look in range(1, int(load.seconds / LOOK_INTERVAL_S) + 1):
        time.sleep(max(0, started_s + look * LOOK_INTERVAL_S - time.monotonic()))
        cpu_s = agent.cpu_s()
        share = (cpu_s - before_s) / LOOK_INTERVAL_S
        before_s = cpu_s
        traces, metrics = agent.backlog()
        yield (
            f"{look * LOOK_INTERVAL_S:6.0f} {share:10.0%} {share / (load.ranks * load.rate) * 1e6:9.1f} "
            f"{agent.memory_mib():12.0f} {traces:12d}, {metrics:d}"
        )


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=200)
    parser.add_argument("--rate", type=float, default=10.0, help="steps a second of each rank")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--processes", type=int, default=4, help="processes that write the journals")
    options = parser.parse_args()
    measure(Load(options.ranks, options.rate, options.seconds, options.processes))


if __name__ == "__main__":
    main()
