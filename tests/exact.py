"""Ranks of two tenants, and tiers that carry what they record while they are killed, stopped and slowed in turn."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from programs import Collector, Program, free_ports, program, read_spans
from programs import _messages as messages
from rules import Rules
from tiers import NodeAgent, Tiers

TENANTS = ("a", "b")
RANKS = """
import os, sys, time
from periflow_otel import TrainingRun
ranks, steps, pause_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
environ = {**os.environ, "WORLD_SIZE": str(ranks)}
runs = [TrainingRun(environ={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(ranks)]
for step in range(1, steps + 1):
    for run in runs:
        run.start_step()
        run.end_step()
        run.metric({"loss": 1 / step})
        if step % 20 == 0:
            run.upload_checkpoint()
    time.sleep(pause_s)
for run in runs:
    run.shutdown(timeout_s=60)
"""
"""Many ranks in one process, which record as those of a node do."""


class Exact:
    """Both tenants, with a run each of the same id, over Kafka."""

    def __init__(
        self, folder: Path, rules: Rules, store: Collector, tiers: Tiers, kafka: Program, nodes: dict[str, NodeAgent]
    ) -> None:
        """Know them; ``Exact.started`` starts them."""
        self.tiers, self.nodes = tiers, nodes
        self._folder, self._rules, self._store, self._kafka = folder, rules, store, kafka

    @classmethod
    @contextmanager
    def started(cls, folder: Path) -> "Iterator[Exact]":
        """Start stores, tiers, a broker and a node agent for each tenant."""
        (port,) = free_ports(1)
        broker = [program("kafka-dev"), "-port", str(port), "-topics", "otlp_spans:4"]
        with ExitStack() as running:
            (folder / "rules").mkdir()
            rules = running.enter_context(Rules(folder / "rules"))
            traces = running.enter_context(Collector(folder / "store"))
            kafka = running.enter_context(Program(broker, folder / "kafka.log", [port]))
            store = (rules.otlp, traces.grpc_endpoint.removeprefix("http://"))
            more = {"KEPT_PERCENT": "100", "SAMPLING_WAIT": "1s"}
            tiers = running.enter_context(Tiers.started(folder / "tiers", *store, kafka=f"127.0.0.1:{port}", **more))
            nodes = {
                tenant: running.enter_context(tiers.node_agent(tiers.issuer.token(tenant=tenant), f"node-{tenant}"))
                for tenant in TENANTS
            }
            yield cls(folder, rules, traces, tiers, kafka, nodes)

    def train(self, ranks: int, steps: int, pause_s: float) -> list["subprocess.Popen[bytes]"]:
        """Start the ranks of both tenants."""
        return [
            subprocess.Popen(
                [sys.executable, "-c", RANKS, str(ranks), str(steps), str(pause_s)],
                cwd=self._folder,
                env={
                    "PERIFLOW_STATE_DIR": str(self._folder / f"state-{tenant}"),
                    "PERIFLOW_RUN_ID": "exact",
                    "OTEL_SERVICE_NAME": tenant,
                    "OTEL_EXPORTER_PROMETHEUS_PORT": "0",
                    "OTEL_EXPORTER_OTLP_ENDPOINT": node.endpoint,
                },
            )
            for tenant, node in self.nodes.items()
        ]

    @property
    def disturbances(self) -> list[Callable[[float], None]]:
        """What happens to one part after the other, for some seconds."""
        tiers = self.tiers
        killed = [_killed(each) for each in (tiers.gateway, tiers.checkpoints, tiers.uploads, self.nodes["a"])]
        slowed = [_slowed(each) for each in (self._kafka, tiers.gateway, tiers.checkpoints, tiers.samplers[0])]
        return [*killed, *slowed, _restarted(tiers.samplers[1])]

    def steps(self, tenant: str) -> Counter[tuple[int, int]]:
        """Return step and rank of a tenant's spans. What has come twice is one span by its id, as a store has it."""
        spans = [span for span in self._store.spans() if span.resource["periflow.tenant"] == tenant]
        steps = {
            (span.trace_id, span.span_id): (span.attributes["periflow.step.number"], span.attributes["periflow.rank"])
            for span in spans
            if span.name == "periflow.step"
        }
        return Counter(steps.values())

    def completed(self, tenant: str) -> float:
        """Return how many steps of a tenant the store of metrics has counted."""
        labels = f'periflow_tenant="{tenant}",periflow_run_id="exact"'
        counted = f"sum(last_over_time(periflow_step_completed_total{{{labels}}}[1h]))"
        return self._rules.values(counted, "").get("", 0)

    def uploads(self) -> Counter[str]:
        """Return the ids of the uploads that the webhook was told of."""
        requests = map(ExportTraceServiceRequest.FromString, messages(self._folder / "tiers/checkpoints/traces.pb"))
        return Counter(str(span.attributes["periflow.checkpoint.id"]) for each in requests for span in read_spans(each))


def expected_uploads(ranks: int, steps: int) -> set[str]:
    """Return the ids of all uploads of both tenants."""
    each = [(step, rank) for step in range(20, steps + 1, 20) for rank in range(ranks)]
    return {f"{tenant}/exact/1/{step}/{rank}" for tenant in TENANTS for step, rank in each}


def _killed(part: Program) -> Callable[[float], None]:
    def disturb(seconds: float) -> None:
        part.kill()
        time.sleep(seconds)
        part.start()

    return disturb


def _restarted(part: Program) -> Callable[[float], None]:
    def disturb(seconds: float) -> None:
        part.stop()
        time.sleep(seconds)
        part.start()

    return disturb


def _slowed(part: Program) -> Callable[[float], None]:
    def disturb(seconds: float) -> None:
        with part.paused():
            time.sleep(seconds)

    return disturb
