"""The agent delivers everything that was recorded, whatever happens to training, to the receiver or to itself."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest
from faulty_receiver import Exchange, FaultyReceiver, blackhole, ok, partial, refuse, status
from journals import numbered
from programs import Collector, free_ports, wait_until
from recorded import folders_left
from recorder import ELSEWHERE, make_run
from training import (
    TRAINER,
    Recorded,
    Training,
    agents,
    arrived,
    by_id,
    cloud,
    end,
    everything,
    in_order,
    outcomes,
)

from periflow_otel.agent.agent import Agent
from periflow_otel.cli.runs import examine_runs
from periflow_otel.config.export import ExportSettings
from periflow_otel.journal.agent_lock import lock_folder, take_agent_lock
from periflow_otel.journal.folders import LOCK_FILE, journal_folder, make_private, node_folder, run_folder
from periflow_otel.journal.writer import JournalWriter

ROUND = 2048


class Served(NamedTuple):
    """A run whose agent is a thread of the test."""

    folder: Path
    thread: threading.Thread


def test_a_run_is_delivered_when_its_script_has_ended(collector: Collector):
    """A script that ends waits for delivery; everything has come once, and nothing was said about it."""
    with Training(500, **cloud(collector.http_endpoint)) as training:
        training.wait()
        assert in_order(arrived(collector)) == everything(500)
        assert outcomes(collector) == ["finished"]
        assert (training.process.returncode, training.errors) == (0, "")
        training.wait_for_agent()
    assert in_order(arrived(collector)) == everything(500)


def test_a_killed_script_loses_nothing(collector: Collector):
    """SIGKILL at 20 random moments: every call that had returned is delivered, and the run is known to be killed."""
    moments = random.Random()  # noqa: S311  # any will do
    for number in range(20):
        run_id = f"run-{number}"
        with Training(100_000, 0.001, **cloud(collector.http_endpoint, PERIFLOW_RUN_ID=run_id)) as training:
            training.read_line()
            time.sleep(moments.uniform(0, 0.6))  # the moment is what is tested
            acknowledged = training.kill().acknowledged()
            training.wait_for_agent()
        received = in_order(arrived(collector, run_id))
        assert outcomes(collector, run_id) == ["killed"]
        for known, came in zip(acknowledged, received, strict=True):
            assert came[: len(known)] == known
            assert len(came) <= len(known) + 1  # a call that had done its work and not yet returned


def test_a_killed_agent_loses_nothing(collector: Collector):
    """SIGKILL of the agent at random moments: all is delivered, at most one round of it twice and then the same."""
    moments = random.Random()  # noqa: S311  # any will do
    kills = 0
    with Training(3000, 0.004, **cloud(collector.http_endpoint)) as training:
        while kills < 20 and training.process.poll() is None:
            time.sleep(moments.uniform(0.05, 0.6))  # the moment is what is tested
            for pid in agents(training.state):
                end(pid)
                kills += 1
        training.wait()
        training.wait_for_agent()
    assert kills
    assert [sorted(set(each)) for each in arrived(collector)] == list(everything(3000))
    for copies in by_id(collector.spans()).values():
        assert all(copy == copies[0] for copy in copies)
    assert sum(len(copies) - 1 for copies in by_id(collector.spans()).values()) <= kills * ROUND
    points = collector.points("periflow.metric.n")
    assert len({(point.time_unix_ns, point.value) for point in points}) == 3000


def test_a_receiver_that_was_down_gets_everything(collector: Collector):
    """Down for 30 s in the middle: over HTTP and gRPC nothing is lost, and fresh steps come soon after."""
    over_http = cloud(collector.http_endpoint, PERIFLOW_RUN_ID="http")
    over_grpc = cloud(collector.grpc_endpoint, PERIFLOW_RUN_ID="grpc", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    with Training(3600, 0.009, **over_http) as training, Training(3600, 0.009, **over_grpc) as other:
        wait_until(lambda: all(len(arrived(collector, each).steps) > 50 for each in ("http", "grpc")), 30)
        collector.kill()
        before_s = time.monotonic()
        wait_until(lambda: time.monotonic() - before_s > 30, 40, "30 s have passed")
        collector.start()
        counts = {each: len(arrived(collector, each).steps) for each in ("http", "grpc")}
        wait_until(lambda: all(len(arrived(collector, each).steps) > counts[each] for each in counts), 20, "more spans")
        training.wait()
        other.wait()
        training.wait_for_agent()
    for each in counts:
        assert [sorted(set(numbers)) for numbers in arrived(collector, each)] == list(everything(3600))


def test_what_no_receiver_took_is_delivered_by_the_next_run(tmp_path: Path):
    """Down from start to end and up later: the script ends in time, says what is left, and the next run delivers it."""
    http_port, grpc_port = free_ports(2)
    environ = cloud(f"http://127.0.0.1:{http_port}", PERIFLOW_EXIT_TIMEOUT="0.5", PERIFLOW_AGENT_LINGER="0")
    with Training(100, **environ) as training:
        training.wait()
        assert training.process.returncode == 0
        assert "not everything could be delivered within 0.5 s" in training.errors
        training.wait_for_agent()
    with Collector(tmp_path / "late", ports=(grpc_port, http_port)) as collector, Training(10, **environ) as training:
        training.wait()
        training.wait_for_agent()
        assert in_order(arrived(collector)) == in_order(_both(everything(100), everything(10)))
        assert outcomes(collector) == ["finished", "finished"]
    assert not _journals(training.state)


def test_replay_delivers_what_is_left(collector: Collector):
    """With the agent off only the journal is written; the command delivers it, once."""
    with Training(100, **cloud(collector.http_endpoint, PERIFLOW_AGENT="off")) as training:
        training.wait()
        assert not agents(training.state)
        for _ in range(2):
            _replay(training.state, cloud(collector.http_endpoint))
        assert in_order(arrived(collector)) == everything(100)
        assert not _journals(training.state)


@pytest.mark.parametrize("fault", ["refused", "black hole"])
def test_the_exit_of_a_script_is_bounded(fault: str):
    """With nobody at the other end a script waits its time-out and no longer, and its records stay."""
    with FaultyReceiver(blackhole) as receiver:
        endpoint = receiver.endpoint if fault == "black hole" else f"http://127.0.0.1:{free_ports(1)[0]}"
        with Training(20, **cloud(endpoint, PERIFLOW_EXIT_TIMEOUT="1", PERIFLOW_AGENT_LINGER="0")) as training:
            training.read_line()
            started_s = time.monotonic()
            training.wait()
            assert time.monotonic() - started_s < 1 + 4
            training.wait_for_agent()
            assert _journals(training.state)


def test_the_exit_of_several_runs_is_bounded_as_that_of_one():
    """They share the time."""
    code = (
        "import time, periflow_otel as pf\n"
        "runs = [pf.TrainingRun(run_id=str(n), local_log_name=f'{n}.log') for n in range(3)]\n"
        "print(time.monotonic(), flush=True)"
    )
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_ports(1)[0]}", "PERIFLOW_AGENT_LINGER": "0"}
    with Training(code=code, **environ, PERIFLOW_EXIT_TIMEOUT="3") as training:
        ended_s = float(training.read_line())
        training.process.wait(30)
        assert time.monotonic() - ended_s < 2 * 3
        training.wait()
    assert training.errors.count("not everything could be delivered within 3 s") == 3


def test_checkpoints_are_announced_within_a_second(collector: Collector):
    """Of 50 uploads in a running training, most are at the receiver within a second, and all of them soon."""
    delays_s = []
    with Training(code=_CHECKPOINTS, **cloud(collector.http_endpoint)) as training:
        for number in range(1, 51):
            uploaded_s = float(training.read_line())
            wait_until(lambda count=number: len(arrived(collector).checkpoints) >= count, 10)
            delays_s.append(time.time() - uploaded_s)
            training.process.send_signal(signal.SIGUSR1)
        training.wait()
        training.wait_for_agent()
    assert median(delays_s) < 1


def test_a_burst_is_delivered_whole(collector: Collector):
    """20 000 steps as fast as they can be recorded: 20 000 spans and 60 000 points of metrics."""
    with Training(code=_BURST, **cloud(collector.http_endpoint, PERIFLOW_EXIT_TIMEOUT="120")) as training:
        training.wait(180)
        training.wait_for_agent()
    spans = [span for span in collector.spans() if span.name == "periflow.step"]
    assert len({span.span_id for span in spans}) == len(spans) == 20_000
    for key in ("loss", "learning_rate", "gradient_norm"):
        points = collector.points(f"periflow.metric.{key}")
        assert len(points) == 20_000
        assert all(earlier.time_unix_ns < later.time_unix_ns for earlier, later in pairwise(points))


def test_a_pipe_is_not_held_open_by_the_agent():
    """Whoever reads what a killed script prints gets to the end soon, although the agent still tries to deliver."""
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    with Training(100_000, 0.01, **cloud(endpoint, PERIFLOW_AGENT_LINGER="60")) as training:
        training.read_line()
        wait_until(lambda: agents(training.state), 10)
        started_s = time.monotonic()
        training.kill()
        assert time.monotonic() - started_s < 20
        assert agents(training.state)


def test_the_agent_outlives_the_end_of_the_job(collector: Collector):
    """SIGTERM and SIGINT for the whole job do not keep the agent from delivering the rest."""
    with Training(100_000, 0.002, **cloud(collector.http_endpoint)) as training:
        wait_until(lambda: len(collector.spans()) > 1, 30)
        for pid in agents(training.state):
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        acknowledged = training.kill(signal.SIGTERM).acknowledged()
        training.wait_for_agent()
    assert in_order(arrived(collector)).metrics[: len(acknowledged.metrics)] == acknowledged.metrics
    assert outcomes(collector) == ["killed"]


def test_an_agent_with_old_settings_gives_way(collector: Collector):
    """Another attempt brings another endpoint: what the first one could not deliver goes there too, and once."""
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    again = {"PERIFLOW_RUN_ID": "again", "PERIFLOW_EXIT_TIMEOUT": "0.1"}
    with Training(100, **cloud(nowhere, **again)) as first:
        first.wait()
        (old,) = agents(first.state)
        with Training(100, 0.01, **cloud(collector.http_endpoint, **again)) as second:
            wait_until(lambda: old not in agents(first.state), 10, "the old agent is gone")
            second.wait()
            second.wait_for_agent()
    assert in_order(arrived(collector)) == in_order(_both(everything(100), everything(100)))


def test_an_agent_that_gives_way_waits_for_the_answer_to_its_request():
    """So the next one does not send the same again, as long as the answer comes in time."""
    headers = "OTEL_EXPORTER_OTLP_HEADERS"
    again = {"PERIFLOW_RUN_ID": "again", "PERIFLOW_EXIT_TIMEOUT": "0.1", "OTEL_EXPORTER_OTLP_TIMEOUT": "120000"}
    arrived_at, go_on = threading.Event(), threading.Event()

    def answer_late(exchange: Exchange) -> None:
        if exchange.received.headers["token"] == "old":  # noqa: S105
            arrived_at.set()
            go_on.wait(100)
        ok(exchange)

    with (
        FaultyReceiver(answer_late) as receiver,
        Training(50, **cloud(receiver.endpoint, **again, **{headers: "token=old"})) as first,
    ):
        assert arrived_at.wait(60)
        first.wait()
        with Training(50, 0.01, **cloud(receiver.endpoint, **again, **{headers: "token=new"})) as second:
            wait_until(lambda: len(agents(first.state)) == 2, 60, "the next agent waits")
            go_on.set()
            second.wait()
            second.wait_for_agent(60)
        spans = [span for span in receiver.spans() if span.name == "periflow.step"]
    assert len({span.span_id for span in spans}) == len(spans) == 100
    assert {request.headers["token"] for request in receiver.accepted} == {"old", "new"}


def test_an_agent_with_the_same_settings_stays(collector: Collector):
    """Another attempt of the run is served by the agent that is there."""
    again = cloud(collector.http_endpoint, PERIFLOW_RUN_ID="again")
    with Training(100_000, 0.01, **again) as first:
        first.read_line()
        (agent,) = agents(first.state)
        with Training(100, **again) as second:
            second.wait()
            assert agents(first.state) == [agent]
        first.kill()


def test_ranks_that_start_together_share_one_agent(collector: Collector):
    """Eight ranks of one node: one agent, everything of every rank."""
    environ = {**cloud(collector.http_endpoint), "PERIFLOW_RUN_ID": "shared", "NPROC_PER_NODE": "8"}
    ranks = [Training(200, 0.01, **{**environ, "WORLD_SIZE": "8", "RANK": str(rank)}) for rank in range(8)]
    try:
        wait_until(lambda: agents(ranks[0].state), 20)
        seen = set()
        while any(rank.process.poll() is None for rank in ranks):
            seen |= set(agents(ranks[0].state))
        for rank in ranks:
            rank.wait()
        ranks[0].wait_for_agent()
    finally:
        for rank in ranks:
            rank.__exit__()
    assert len(seen) == 1
    assert sorted(arrived(collector).steps) == sorted(everything(200).steps * 8)
    traces = {span.trace_id for span in collector.spans() if span.name == "periflow.step"}
    assert len(traces) == 200


def test_the_agent_in_a_thread_delivers_the_same(collector: Collector):
    """Where no process can be started, a thread does the work."""
    with Training(500, **cloud(collector.http_endpoint, PERIFLOW_AGENT="thread")) as training:
        training.wait()
        assert not agents(training.state)
    assert in_order(arrived(collector)) == everything(500)
    assert (training.process.returncode, training.errors) == (0, "")


def test_counts_add_up(collector: Collector):
    """What the records make = what was exported, which has arrived, + what was dropped, by reason; nothing is left."""
    sampled = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}
    with Training(100, 0.001, **cloud(collector.http_endpoint, **sampled)) as training:
        training.wait()
        training.wait_for_agent()
    counts = {
        (
            point.name.rpartition(".")[2],
            point.attributes["periflow.consumer"],
            point.attributes.get("periflow.reason"),
        ): point.value
        for point in collector.points()
        if point.name.startswith("periflow.telemetry.") and "periflow.consumer" in point.attributes
    }
    spans = [span for span in collector.spans() if span.name == "periflow.step"]
    others = len(collector.spans()) - len(spans)
    points = [point for point in collector.points() if not point.name.startswith("periflow.telemetry.")]
    for consumer in ("otlp.traces", "otlp.metrics"):
        assert counts["records", consumer, None] == 100 + 100 + 10 + 1
        assert counts["backlog", consumer, None] == 0
        assert counts["dropped", consumer, "journal"] == 0
    assert counts["exported", "otlp.metrics", None] == len(points)
    assert counts["exported", "otlp.traces", None] == len(spans) + others
    assert counts["dropped", "otlp.traces", "sampled_out"] == 100 - len(spans)


@pytest.mark.parametrize("mode", ["process", "thread"])
def test_the_agent_says_how_much_cpu_time_it_has_used(collector: Collector, mode: str):
    """Where it is a process of its own, and so has a time of its own."""
    with Training(50, 0.001, **cloud(collector.http_endpoint, PERIFLOW_AGENT=mode)) as training:
        training.wait()
        training.wait_for_agent()
    used = [point.value for point in collector.points("periflow.telemetry.cpu.time")]
    assert used == sorted(used)
    assert all(0.01 < each < 60 for each in used)
    assert bool(used) is (mode == "process")


def test_what_is_refused_is_counted():
    """A receiver that takes a part says how much it did not take."""
    with FaultyReceiver(partial(3)) as receiver, Training(20, 0.001, **cloud(receiver.endpoint)) as training:
        training.wait()
        training.wait_for_agent()
        dropped = [
            point.value
            for request in receiver.accepted
            for point in request.points()
            if point.name == "periflow.telemetry.dropped"
            and (point.attributes["periflow.consumer"], point.attributes["periflow.reason"])
            == ("otlp.traces", "rejected")
        ]
        requests = [request for request in receiver.accepted if request.spans()]
    assert dropped[-1] == 3 * len(requests)


def test_a_receiver_of_traces_alone_holds_nothing_up():
    """Its exit does not wait for metrics, which are dropped and named; no journal is left."""
    with FaultyReceiver(lambda exchange: (ok if "traces" in exchange.path else status(404))(exchange)) as receiver:
        began_s = time.monotonic()
        environ = cloud(receiver.endpoint, PERIFLOW_EXIT_TIMEOUT="20", PERIFLOW_AGENT_LINGER="600")
        with Training(20, **environ) as training:
            training.wait()
            assert time.monotonic() - began_s < 15
            training.wait_for_agent()
        assert (
            len({span.attributes["periflow.step.number"] for span in receiver.spans() if span.name == "periflow.step"})
            == 20
        )
        log = next(training.state.rglob("agent.log")).read_text()
    assert folders_left(training.state) == []
    assert log.count("set OTEL_METRICS_EXPORTER=none") == 1


def test_a_flush_does_not_wait_for_what_is_declined():
    """All that can be delivered is, and that is what it says."""
    code = "import periflow_otel as pf; pf.init()\nwith pf.train_step(): pass\npf.metric({'a': 1}); print(pf.flush(20))"
    with FaultyReceiver(lambda exchange: (ok if "traces" in exchange.path else status(404))(exchange)) as receiver:
        began_s = time.monotonic()
        with Training(code=code, **cloud(receiver.endpoint)) as training:
            assert training.read_line() == "True\n"
            assert time.monotonic() - began_s < 15
            training.wait()


def test_what_is_not_taken_is_set_aside_and_sent_again():
    """The doctor tells how much it is, and where; when it is sent, all is well."""
    with FaultyReceiver(refuse("periflow.metric.n")) as receiver:
        environ = cloud(receiver.endpoint)
        with Training(20, **environ) as training:
            training.wait()
            training.wait_for_agent()
        assert folders_left(training.state) == []
        settings = ExportSettings.from_environ(environ)
        (finding,) = examine_runs([training.state], settings)
        assert "20 items of otlp.metrics are set aside (refused)" in finding.text
        assert finding.is_fault
        receiver.behaviour = ok
        _replay(training.state, environ)
        assert sorted(point.value for point in receiver.points("periflow.metric.n")) == list(range(1, 21))
    assert list(examine_runs([training.state], settings)) == []


def test_local_mode_needs_nothing():
    """Without any setting: the metric log, a file for spans and one for points, and nothing else is left behind."""
    with Training(50) as training:
        training.wait()
        training.wait_for_agent()
        assert (training.process.returncode, training.errors) == (0, "")
        assert {path.name for path in Path().iterdir()} == {
            "state", "train.log", "train.traces.jsonl", "train.metrics.jsonl",
        }  # fmt: skip
        lines = [json.loads(line) for line in Path("train.log").read_text().splitlines()]
        assert lines == [{"n": n, "loss": 1 / n, "text": "ok"} for n in range(1, 51)]
        assert not _journals(training.state)


_CHECKPOINTS = """
import os, signal, time
import periflow_otel as pf

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
pf.init()
for step in range(50):
    deadline_s = time.monotonic() + 10
    with pf.train_step():
        pass
    pf.upload_checkpoint()
    os.write(1, b"%f\\n" % time.time())
    while time.monotonic() < deadline_s and not signal.sigtimedwait([signal.SIGUSR1], 0.01):
        pf.metric({"waiting": step})
"""
_BURST = """
import periflow_otel as pf

pf.init(total_train_steps=20_000)
for step in range(20_000):
    with pf.train_step():
        pf.metric({"loss": 1 / (step + 1), "learning_rate": 0.001, "gradient_norm": 1.5})
"""


def _both(one: Recorded, other: Recorded) -> Recorded:
    return Recorded(*map(list.__add__, one, other))


def _logged(log: Path) -> list[int]:
    return [json.loads(line)["n"] for line in log.read_text().splitlines()]


def _journals(state: Path) -> list[Path]:
    return [path for path in state.glob("*/*/a*-r*") if path.is_dir()]


def _replay(state: Path, environ: dict[str, str]) -> None:
    command = [Path(sys.executable).with_name("periflow-otel"), "replay"]
    subprocess.run(command, env={**os.environ, **environ, "PERIFLOW_STATE_DIR": str(state)}, check=True)


def test_a_rank_that_cannot_write_does_not_hold_up_the_others():
    """Ranks have files of their own; and what one could not write comes when it can."""
    environ = {"PERIFLOW_RUN_ID": "shared", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "PERIFLOW_EXIT_TIMEOUT": "1"}
    for rank in (0, 1):
        Path(f"of-{rank}").mkdir()
    code = TRAINER.read_text().replace('"train.log"', "f\"of-{os.environ['RANK']}/train.log\"")
    ranks = [Training(100, 0.02, code=code, **environ, RANK=rank) for rank in ("0", "1")]
    with ranks[0] as one, ranks[1] as two:
        wait_until(lambda: all(Path(f"of-{rank}/train.log").exists() for rank in (0, 1)), 20)
        Path("of-0").rename("away")
        one.wait()
        two.wait()
        assert _logged(Path("of-1/train.log")) == everything(100).metrics
        Path("away").rename("of-0")
        one.wait_for_agent()
        assert _logged(Path("of-0/train.log")) == everything(100).metrics


def test_closed_streams_do_not_matter(collector: Collector):
    """A script without stdin, stdout and stderr has one agent, and everything is delivered once."""
    Path("quiet.py").write_text(TRAINER.read_text().replace("os.write(1, ", "bytes("))
    command = f"exec {sys.executable} quiet.py 100 0.02 <&- >&- 2>&-"
    environ = {**os.environ, **cloud(collector.http_endpoint), "PERIFLOW_STATE_DIR": str(Path.cwd() / "state")}
    subprocess.run(["/bin/sh", "-c", command], env=environ, timeout=60, check=True)
    wait_until(lambda: not agents(Path.cwd() / "state"), 20)
    assert in_order(arrived(collector)) == everything(100)


def test_the_live_view_has_what_the_files_have(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The journal forgets nothing that the Prometheus endpoint, which is slower than the metric log, has not seen."""
    folder = node_folder(run_folder(tmp_path, "job"))
    make_private(folder)
    journal = journal_folder(folder, 1, 0)
    make_private(journal)
    writer = JournalWriter(journal, make_run(consumers=("metric_log",)), segment_bytes=64 << 10)
    for number in range(50_000):
        writer.append(numbered(number))
    del writer  # its process has ended
    lock = take_agent_lock(folder)
    assert lock is not None
    settings = ExportSettings.from_environ({"OTEL_EXPORTER_PROMETHEUS_PORT": "0"})
    assert Agent(folder, settings, lock).serve()
    assert caplog.messages == []


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Served]:
    """Have an agent at work for a rank that lives."""
    folder = node_folder(run_folder(tmp_path, "job"))
    journal = journal_folder(folder, 1, 0)
    make_private(journal)
    writer = JournalWriter(journal, make_run(process=ELSEWHERE), segment_bytes=64 << 10)
    lock = take_agent_lock(folder)
    assert lock is not None
    agent = Agent(folder, ExportSettings.from_environ({}), lock, is_live=False)
    thread = threading.Thread(target=agent.serve)
    thread.start()
    agent.at_work.wait(10)
    yield Served(folder, thread)
    agent.stop()
    thread.join()
    writer.close()


def test_an_agent_whose_lock_file_is_deleted_makes_it_anew(serving: Served):
    """Nobody else can become the agent of the run, and it goes on."""
    (serving.folder / LOCK_FILE).unlink()
    wait_until((serving.folder / LOCK_FILE).exists)
    assert take_agent_lock(serving.folder) is None
    assert serving.thread.is_alive()


def test_there_are_never_two_agents_even_if_the_lock_file_is_deleted(serving: Served):
    """Who gets the new file first is the next one; it waits until the other has noticed and ended."""
    lock = None
    while lock is None:
        (serving.folder / LOCK_FILE).unlink(missing_ok=True)
        lock = take_agent_lock(serving.folder)
    assert lock_folder(serving.folder) is None
    wait_until(lambda: not serving.thread.is_alive())
    folder_lock = lock_folder(serving.folder)
    assert folder_lock is not None
    for descriptor in (lock, folder_lock):
        os.close(descriptor)


def test_an_agent_whose_folder_is_deleted_ends(serving: Served):
    """There is nothing to deliver any more; a rank that goes on recording starts another one."""
    serving.folder.rename(serving.folder.with_name("gone"))
    wait_until(lambda: not serving.thread.is_alive())
