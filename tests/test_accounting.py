"""Whatever a receiver answers and whoever is killed: what was recorded is delivered, set aside or counted as lost."""

import json
import os
import random
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from faulty_receiver import AtRandom, FaultyGrpcReceiver, FaultyReceiver, GrpcAtRandom, refuse
from journals import numbered
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from programs import wait_until
from recorded import folders_left
from recorder import make_run
from training import CLOUD, Training, agents, cloud, end, isolate

from periflow_otel.agent.consumer import Consumer
from periflow_otel.agent.dead_letters import DeadLetters
from periflow_otel.agent.destinations import durable_consumer
from periflow_otel.agent.leftovers import deliver_leftover
from periflow_otel.agent.pace import HASTY_REQUESTS, HASTY_REQUESTS_PER_S, MAX_BACKOFF_S
from periflow_otel.agent.watch import RankJournal, find_journals
from periflow_otel.config.export import ExportSettings
from periflow_otel.journal.cursors import Cursor
from periflow_otel.journal.folders import journal_folder, node_folders
from periflow_otel.journal.writer import JournalWriter
from periflow_otel.otlp.from_json import request_from_json
from periflow_otel.records import StepEnded, encode

CHAOS_S = float(os.environ.get("PERIFLOW_TEST_CHAOS_S", "15"))
"""How long a receiver misbehaves; set it to 600 for a thorough look."""
WORST_RETRY_AFTER_S = 60.0 if CHAOS_S > 120 else 2.0
STEPS = 300
_SIGNALS = ("traces", "metrics", "logs")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path)


def record(folder: Path, ranks: int) -> list[RankJournal]:
    """Record steps and metrics of some ranks."""
    for rank in range(ranks):
        journal = journal_folder(folder, 1, rank)
        journal.mkdir()
        writer = JournalWriter(journal, make_run(rank=rank, world_size=ranks, local_world_size=ranks))
        for step in range(1, STEPS + 1):
            writer.append(encode(StepEnded(step, step * 1_000_000_000, 500_000_000)))
            writer.append(numbered(step))
    return list(find_journals(folder, {}).values())


def serve(folder: Path, journals: Sequence[RankJournal], endpoint: str, signal: str) -> Consumer:
    """Set a consumer going, as an agent does."""
    settings = ExportSettings.from_environ({**CLOUD, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
    consumer = durable_consumer(f"otlp.{signal}", settings, folder)
    assert consumer is not None
    consumer.follow(journals)
    consumer.start()
    return consumer


def has_all(consumer: Consumer, journals: Sequence[RankJournal]) -> bool:
    """Tell whether everything is done with."""
    return all(consumer.cursor(each).position.sequence >= each.reader.head().sequence for each in journals)


def total(cursor: Cursor) -> int:
    """Return how many items were accounted for."""
    return cursor.delivered + sum(cursor.set_aside.values()) + sum(cursor.dropped.values())


def letters_of(folder: Path, signal: str) -> list[bytes]:
    """Return what is set aside."""
    return [letter.data for letter in DeadLetters(folder, f"otlp.{signal}").read()]


@pytest.mark.parametrize("seed", range(2))
def test_every_span_is_delivered_set_aside_or_counted(tmp_path: Path, seed: int):
    """Also where an agent dies without committing, again and again: exactly, and rank by rank."""
    chance = random.Random(seed)  # noqa: S311  # any will do, but the same again
    journals = record(tmp_path, ranks=2)
    misbehaviour = AtRandom(chance)
    with FaultyReceiver(misbehaviour) as receiver:
        for _ in range(4):
            consumer = serve(tmp_path, journals, receiver.endpoint, "traces")
            before = len(receiver.requests)
            wait_until(lambda: len(receiver.requests) > before or has_all(consumer, journals), 60, "some requests")  # noqa: B023
            time.sleep(chance.uniform(0.1, 1))  # the moment is what is tested
            consumer.stop(30)
        misbehaviour.is_well = True
        consumer = serve(tmp_path, journals, receiver.endpoint, "traces")
        wait_until(partial(has_all, consumer, journals), 60, "everything is done with")
        consumer.stop(30)
        taken = {span.span_id for span in receiver.spans()} - {span.span_id for span in misbehaviour.taken_out}
    aside = _span_ids(letters_of(tmp_path, "traces"))
    out = {span.span_id for span in misbehaviour.taken_out}
    cursors = [consumer.cursor(each) for each in journals]
    assert len(taken | aside | out) == 2 * STEPS  # the last step is still held, and a run has a span of its own
    assert [total(each) for each in cursors] == [STEPS, STEPS]


def test_what_is_set_aside_stands_in_the_cursor(tmp_path: Path):
    """Of each rank, by reason, and is the rest of what was recorded."""
    journals = record(tmp_path, ranks=2)
    with FaultyReceiver(refuse("periflow.run.start")) as receiver:
        consumer = serve(tmp_path, journals, receiver.endpoint, "traces")
        wait_until(partial(has_all, consumer, journals), 60, "everything is done with")
        consumer.stop(30)
    cursors = [consumer.cursor(each) for each in journals]
    assert [(each.delivered, each.set_aside) for each in cursors] == [(STEPS - 1, {"refused": 1})] * 2
    assert len(letters_of(tmp_path, "traces")) == 2


SCRIPT = """
import logging, sys, time
import periflow_otel as pf

log = logging.getLogger("script")
log.setLevel(logging.INFO)
pf.init(local_log_name="train.log")
end_s, step = time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < end_s:
    step += 1
    with pf.train_step():
        time.sleep(0.02)
    pf.metric({"n": step})
    log.info(step)
    if step % 50 == 0:
        pf.upload_checkpoint()
print(step)
"""


@pytest.mark.timeout(CHAOS_S + 300)
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_run_among_random_answers_and_kills_loses_nothing(protocol: str, monkeypatch: pytest.MonkeyPatch):
    """All that was recorded arrives or is set aside; nobody waits longer than is asked for, and nobody is flooded."""
    chance = random.Random()  # noqa: S311  # any will do
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    is_grpc, holds = protocol == "grpc", CHAOS_S > 120
    misbehaviour = GrpcAtRandom(chance, holds=holds) if is_grpc else AtRandom(chance, holds=holds)
    environ = {"PERIFLOW_AGENT_LINGER": "600", "PERIFLOW_EXIT_TIMEOUT": "1", "PERIFLOW_LOGS": "info"}
    kills, began_s = 0, time.monotonic()
    with FaultyGrpcReceiver(misbehaviour) if is_grpc else FaultyReceiver(misbehaviour) as receiver:  # type: ignore[arg-type]  # each its own
        with Training(CHAOS_S, code=SCRIPT, **cloud(receiver.endpoint, **environ)) as training:
            while training.process.poll() is None:
                time.sleep(chance.uniform(2, 5))  # the moment is what is tested
                for pid in agents(training.state):
                    end(pid)
                    kills += 1
            ended_s = time.monotonic()
            misbehaviour.is_well = True
            steps = int(training.wait().output)
            wait_until(partial(_deliver_left, training.state, receiver.endpoint), 120, "what is left is delivered")
        letters = {signal: _letters(training.state, signal) for signal in _SIGNALS}
        spans, points, logs = receiver.spans(), receiver.points("periflow.metric.n"), receiver.logs()
        requests = list(receiver.requests)
    numbers = {span.attributes["periflow.step.number"] for span in spans if span.name == "periflow.step"}
    assert numbers | _steps(letters["traces"]) == set(range(1, steps + 1))
    assert {point.value for point in points} | _values(letters["metrics"]) == set(range(1, steps + 1))
    assert {int(record.body) for record in logs if record.body} | _said(letters["logs"]) == set(range(1, steps + 1))
    assert len(requests) < 2 * ((1 + kills) * HASTY_REQUESTS + HASTY_REQUESTS_PER_S * (time.monotonic() - began_s))
    for signal in _SIGNALS:
        times_s = [began_s, *(each.time_s for each in requests if each.signal == signal and each.time_s < ended_s)]
        assert max(after - before for before, after in pairwise(times_s)) < WORST_RETRY_AFTER_S + MAX_BACKOFF_S + 8


def _letters(state: Path, signal: str) -> list[bytes]:
    return [data for folder in node_folders(state) for data in letters_of(folder, signal)]


def _steps(letters: Sequence[bytes]) -> set[int]:
    return {
        int(attribute["value"]["intValue"])
        for letter in letters
        for span in json.loads(letter)["resourceSpans"][0]["scopeSpans"][0]["spans"]
        for attribute in span["attributes"]
        if span["name"] == "periflow.step" and attribute["key"] == "periflow.step.number"
    }


def _values(letters: Sequence[bytes]) -> set[int]:
    return {
        int(point["asInt"])
        for letter in letters
        for metric in json.loads(letter)["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
        if metric["name"] == "periflow.metric.n"
        for point in metric["gauge"]["dataPoints"]
    }


def _said(letters: Sequence[bytes]) -> set[int]:
    return {
        int(record["body"]["stringValue"])
        for letter in letters
        for record in json.loads(letter)["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    }


def _deliver_left(state: Path, endpoint: str) -> bool:
    """Deliver what a killed agent has left, unless another one is at work; return whether nothing is left."""
    settings = ExportSettings.from_environ({**os.environ, **CLOUD, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
    for folder in node_folders(state):
        deliver_leftover(folder, settings, 60)
    return not folders_left(state)


def _span_ids(letters: Sequence[bytes]) -> set[int]:
    requests = [ExportTraceServiceRequest.FromString(request_from_json("traces", each)) for each in letters]
    return {
        int.from_bytes(span.span_id, "big")
        for request in requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    }
