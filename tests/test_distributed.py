"""Many ranks, really started: torchrun with a model that trains on all of them, a restart, two nodes, a crowd."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest
from programs import Collector, ReceivedPoint, ReceivedSpan, free_ports, needs, wait_until
from training import Training, agents, arrived, cloud, everything, isolate, outcomes

pytestmark = needs("torch")

TORCHRUN = "from torch.distributed.run import main; main()"
DDP = """
import os, signal, sys, time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import periflow_otel as pf

STEPS, LATE, KILLED = map(int, sys.argv[1:])
dist.init_process_group("gloo")
rank, is_first = dist.get_rank(), os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
saved = Path("saved")
done = int(saved.read_text()) if saved.exists() else 0
model = DistributedDataParallel(torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
pf.init(STEPS, initial_step=done)
for step in range(done + 1, STEPS + 1):
    time.sleep(0.05 if rank == LATE else 0)  # its data is late
    with pf.train_step():
        loss = model(torch.ones(4, 8)).square().mean()
        if is_first and (rank, step) == (KILLED, 17):
            time.sleep(0.1)  # the others get to step 17 too
            os.kill(os.getpid(), signal.SIGKILL)
        loss.backward()
        optimizer.step()
    pf.metric({"n": step, "loss": loss})
    if step % 10 == 0:
        with pf.span("evaluation"):
            time.sleep(0.02)
        if rank == 0:
            saved.write_text(str(step))
        dist.barrier()
        pf.upload_checkpoint()
dist.destroy_process_group()
"""
RANKS, STEPS, LATE, KILLED = range(4), 24, 1, 2


class Delivered(NamedTuple):
    """What a receiver got of some trainings."""

    spans: list[ReceivedSpan]
    points: list[ReceivedPoint]
    agents: list[set[int]]
    """For each training, the most agents that were there at once."""

    def of(self, name: str, attempt: int) -> list[ReceivedSpan]:
        """Return the spans of a name in an attempt."""
        return [span for span in self.spans if span.name == name and span.resource["periflow.run.attempt"] == attempt]

    def steps(self, attempt: int) -> dict[int, list[ReceivedSpan]]:
        """Return the spans of all ranks in an attempt for each step, in the order of the ranks."""
        steps = defaultdict(list)
        for span in sorted(self.of("periflow.step", attempt), key=rank_of):
            steps[span.attributes["periflow.step.number"]].append(span)
        return steps

    def last(self, name: str, attempt: int) -> list[ReceivedPoint]:
        """Return the last point of each series of an instrument in an attempt."""
        points = [
            point for point in self.points
            if point.name == name and point.resource["periflow.run.attempt"] == attempt
        ]  # fmt: skip
        return list({repr(sorted(point.attributes.items())): point for point in points}.values())


def rank_of(item: ReceivedSpan | ReceivedPoint) -> int:
    """Return the rank that a span or a point is of."""
    rank: int = item.attributes["periflow.rank"]
    return rank


def deliver(folder: Path, killed: int, *trainings: tuple[tuple[str, ...], dict[str, str]]) -> Delivered:
    """Run torchruns with the script above side by side, each with options and variables, to their ends."""
    with pytest.MonkeyPatch.context() as patch, Collector(folder / "otelcol") as collector:
        isolate(patch, folder)
        script = Path("ddp.py")
        script.write_text(DDP)
        common = cloud(collector.http_endpoint, OMP_NUM_THREADS="1")
        started = [
            Training(
                "--monitor-interval=0.1", *options, script, STEPS, LATE, killed, code=TORCHRUN, **common, **environ
            )
            for options, environ in trainings
        ]
        most: list[set[int]] = [set() for _ in started]
        try:
            wait_until(lambda: _look(started, most), 120, "all trainings have ended")
            for training in started:
                training.wait()
                assert training.process.returncode == 0, training.errors
                training.wait_for_agent()
        finally:
            for training in started:
                training.__exit__()
        return Delivered(collector.spans(), collector.points(), most)


def _look(started: list[Training], most: list[set[int]]) -> bool:
    for number, training in enumerate(started):
        most[number] = max(most[number], set(agents(training.state)), key=len)
    return all(training.process.poll() is not None for training in started)


# One node: four ranks of which one is late, and another is killed once


@pytest.fixture(scope="module")
def restarted(tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    """Return what came of four ranks that were all started again after one of them was killed in step 17."""
    options = ("--standalone", "--nproc-per-node=4", "--max-restarts=1")
    # Else the ranks of the second attempt find the addresses of the first, and torch fails or hangs.
    return deliver(tmp_path_factory.mktemp("one"), KILLED, (options, {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}))


def test_four_ranks_have_one_agent(restarted: Delivered):
    """It serves all of them."""
    assert [len(each) for each in restarted.agents] == [1]


def test_every_step_of_every_rank_arrives_once(restarted: Delivered):
    """The first attempt up to the step in which a rank was killed; the second from the last checkpoint to the end."""
    first, second = restarted.steps(1), restarted.steps(2)
    complete = {step: [rank_of(span) for span in spans] for step, spans in first.items() if step != 17}
    assert complete == {step: list(RANKS) for step in range(1, 17)}
    assert Counter(map(rank_of, first[17]))[KILLED] == 1
    assert {step: list(map(rank_of, spans)) for step, spans in second.items()} == {
        step: list(RANKS) for step in range(11, STEPS + 1)
    }
    assert max(Counter(span.span_id for span in restarted.spans).values()) == 1


def test_every_value_of_every_rank_arrives_once(restarted: Delivered):
    """Also those that were recorded just before the end."""
    for attempt, steps in ((1, range(1, 17)), (2, range(11, STEPS + 1))):
        for rank in RANKS:
            values = [
                point.value for point in restarted.points
                if point.name == "periflow.metric.n" and rank_of(point) == rank
                and point.resource["periflow.run.attempt"] == attempt
            ]  # fmt: skip
            assert values == list(steps)


def test_every_checkpoint_of_every_rank_arrives_once(restarted: Delivered):
    """With the step that it is of."""
    checkpoints = [
        (span.resource["periflow.run.attempt"], attributes["periflow.step.number"], rank_of(span))
        for span in restarted.spans
        for name, _, attributes in span.events
        if name == "periflow.checkpoint.upload"
    ]
    assert sorted(checkpoints) == [(1, 10, rank) for rank in RANKS] + [(2, 20, rank) for rank in RANKS]


def test_all_ranks_of_a_step_are_in_one_trace(restarted: Delivered):
    """Rank 0 is the root, the others are its children; another attempt at the same step is another trace."""
    traces = set()
    for attempt in (1, 2):
        for root, *children in (spans for spans in restarted.steps(attempt).values() if len(spans) == len(RANKS)):
            assert (rank_of(root), root.parent_span_id) == (0, 0)
            assert [span.parent_span_id for span in children] == [root.span_id] * 3
            assert {span.trace_id for span in children} == {root.trace_id}
            traces.add(root.trace_id)
    assert len(traces) >= 16 + 14


def test_every_rank_says_how_it_ended(restarted: Delivered):
    """Killed; by the error that the killed one made; by torchrun, which says nothing; and in the end as planned."""
    ends = {
        attempt: {
            rank_of(span): span.attributes["periflow.run.outcome"] for span in restarted.of("periflow.run", attempt)
        }
        for attempt in (1, 2)
    }  # fmt: skip
    assert ends[1].pop(KILLED) == "killed"
    assert set(ends[1]) == set(RANKS) - {KILLED}
    assert set(ends[1].values()) <= {"failed", "killed"}
    assert ends[2] == dict.fromkeys(RANKS, "finished")
    assert len([span for span in restarted.spans if span.name == "periflow.run"]) == 8
    (step,) = [span for span in restarted.steps(1)[17] if rank_of(span) == KILLED]
    assert (step.is_error, step.attributes["error.type"], step.status_message) == (True, "killed", "")


def test_a_restart_says_what_it_costs(restarted: Delivered):
    """The time from the end of the first attempt, and the steps since the checkpoint."""
    assert [span.events for span in restarted.of("periflow.run.start", 1)] == [[]] * 4
    ended = {rank_of(span): span.end_unix_ns for span in restarted.of("periflow.run", 1)}
    starts = restarted.of("periflow.run.start", 2)
    assert sorted(map(rank_of, starts)) == list(RANKS)
    for span in starts:
        ((name, _, attributes),) = span.events
        assert name == "periflow.run.restart"
        assert attributes["periflow.run.attempt"] == 1
        assert (attributes["periflow.run.last_step"], attributes["periflow.run.last_checkpoint"]) in (
            (17, 10),
            (16, 10),
        )
        assert attributes["periflow.restart.redone_steps"] == attributes["periflow.run.last_step"] - 10
        gap_s = (span.start_unix_ns - ended[rank_of(span)]) / 1e9
        assert attributes["periflow.restart.gap"] == pytest.approx(gap_s, abs=0.5)
    assert {point.value for point in restarted.last("periflow.step.redone", 2)} <= {6, 7}
    assert restarted.last("periflow.step.redone", 1) == []


def test_the_kinds_of_time_add_up_to_the_wall_time(restarted: Delivered):
    """For each rank and attempt: the run, and what was between the attempts; with a part for each kind."""
    gaps = {rank_of(span): span.events[0][2]["periflow.restart.gap"] for span in restarted.of("periflow.run.start", 2)}
    for attempt in (1, 2):
        for run in restarted.of("periflow.run", attempt):
            spent = {
                point.attributes["periflow.kind"]: point.value
                for point in restarted.last("periflow.time", attempt)
                if rank_of(point) == rank_of(run)
            }
            duration_s = (run.end_unix_ns - run.start_unix_ns) / 1e9
            wall_s = duration_s + (gaps[rank_of(run)] if attempt == 2 else 0)
            assert sum(spent.values()) == pytest.approx(wall_s, rel=0.01)
            assert set(spent) - {"restart"} == {"startup", "step", "gap", "evaluation", "checkpoint"}
            assert spent["evaluation"] == pytest.approx(0.02, abs=0.05)


def test_a_rank_that_is_late_is_the_last(restarted: Delivered):
    """The skew names it, and by how much: since the start of each agent, which may serve both attempts."""
    skews = {
        (point.start_unix_ns, point.attributes["periflow.last_rank"]): point.value
        for point in restarted.points
        if point.name == "periflow.step.skew"
    }
    late = [skew for (_, rank), skew in skews.items() if rank == LATE]
    assert sum(skew.count for skew in skews.values()) >= 16 + 14
    assert sum(skew.count for skew in late) > (16 + 14) * 2 / 3
    assert sum(skew.sum for skew in late) / sum(skew.count for skew in late) > 0.04


# Two nodes: two ranks on each, with no identity in common but the process group


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    """Return what came of two torchruns that were given no id; each has a state folder of its own."""
    folder, (port,) = tmp_path_factory.mktemp("two"), free_ports(1)
    common = ("--nnodes=2", "--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={port}")
    return deliver(
        folder,
        -1,
        *(
            (
                (*common, f"--node-rank={node}"),
                {
                    "PERIFLOW_STATE_DIR": str(folder / f"node-{node}"),
                    "OTEL_RESOURCE_ATTRIBUTES": f"host.name=node-{node}",
                },
            )
            for node in (0, 1)
        ),
    )


def test_nodes_without_an_id_agree_on_one(two_nodes: Delivered):
    """Rank 0 says it, through the store of the process group: it is the one of its torchrun."""
    (run_id,) = {span.resource["periflow.run.id"] for span in two_nodes.spans}
    assert run_id.startswith("torchrun-")
    assert {span.resource["periflow.run.attempt"] for span in two_nodes.spans} == {1}


def test_each_node_has_an_agent(two_nodes: Delivered):
    """Which delivers for its ranks."""
    assert [len(each) for each in two_nodes.agents] == [1, 1]


def test_a_step_on_two_nodes_is_one_trace(two_nodes: Delivered):
    """All ranks, each on its node, below rank 0."""
    steps = two_nodes.steps(1)
    assert sorted(steps) == list(range(1, STEPS + 1))
    for root, *children in steps.values():
        places = [(span.resource["host.name"], span.attributes["periflow.node_rank"]) for span in (root, *children)]
        assert places == [("node-0", 0), ("node-0", 0), ("node-1", 1), ("node-1", 1)]
        assert [rank_of(span) for span in children] == [1, 2, 3]
        assert {(span.trace_id, span.parent_span_id) for span in children} == {(root.trace_id, root.span_id)}


# A crowd

CROWD = """
import multiprocessing, os, sys
import periflow_otel as pf

def train(rank, barrier):
    os.environ["RANK"] = str(rank)
    barrier.wait()
    pf.init(20)
    for step in range(1, 21):
        with pf.train_step():
            pf.metric({"n": step})
        if step % 10 == 0:
            pf.upload_checkpoint()
    barrier.wait()

fork = multiprocessing.get_context("fork")
barrier = fork.Barrier(8)
ranks = [fork.Process(target=train, args=(rank, barrier)) for rank in range(8)]
for rank in ranks:
    rank.start()
for rank in ranks:
    rank.join()
sys.exit(any(rank.exitcode for rank in ranks))
"""


def test_ranks_that_start_at_once_never_get_in_each_others_way(collector: Collector):
    """Eight times eight: one agent each time, which has the port to itself; nothing is lost and nobody complains."""
    (port,) = free_ports(1)
    environ = cloud(
        collector.http_endpoint, WORLD_SIZE="8", OTEL_METRICS_EXPORTER="otlp,prometheus",
        OTEL_EXPORTER_PROMETHEUS_PORT=str(port),
    )  # fmt: skip
    seen = set()
    for number in range(8):
        with Training(code=CROWD, PERIFLOW_RUN_ID=f"run-{number}", **environ) as training:
            wait_until(lambda: seen.update(agents(training.state)) or training.process.poll() is not None, 60)
            training.wait()
            training.wait_for_agent()
            assert (training.process.returncode, training.errors) == (0, "")
    assert len(seen) == 8
    for number in range(8):
        recorded = arrived(collector, f"run-{number}")
        assert [sorted(each) for each in recorded] == [sorted(each * 8) for each in everything(20)]
        assert outcomes(collector, f"run-{number}") == ["finished"] * 8
