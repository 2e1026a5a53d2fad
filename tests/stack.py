"""The local stack as ``make stack`` starts it without Docker, and what is asked of Prometheus and Jaeger."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import requests
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from programs import ReceivedSpan, free_ports, program, read_spans, wait_until
from prometheus_client.parser import text_string_to_metric_families
from typing_extensions import Self

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "collector-config"
PORTS = ("OTLP_GRPC", "OTLP_HTTP", "PROMETHEUS", "ALERTMANAGER", "JAEGER", "JAEGER_GRPC", "JAEGER_OTLP")


class Series(NamedTuple):
    """A series with its samples."""

    labels: dict[str, str]
    samples: list[tuple[float, float]]
    """Unix seconds and value."""


class Stack:
    """The programs of ``scripts/stack`` on free ports."""

    def __init__(self, folder: Path) -> None:
        """Start them, with what they keep in ``folder``, and wait until they are ready."""
        for name in ("otelcol", "prometheus", "jaeger", "alertmanager"):
            program(name)
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.offline = folder / "offline"
        self.logs = folder / "logs" / "logs.jsonl"
        self.endpoint = f"http://127.0.0.1:{ports['OTLP_HTTP']}"
        self.prometheus = Prometheus(f"http://127.0.0.1:{ports['PROMETHEUS']}")
        self.alertmanager = f"http://127.0.0.1:{ports['ALERTMANAGER']}"
        self.jaeger_otlp = f"127.0.0.1:{ports['JAEGER_OTLP']}"
        self.jaeger = Jaeger(f"http://127.0.0.1:{ports['JAEGER']}")
        environ = {f"STACK_{name}_PORT": str(port) for name, port in ports.items()}
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "scripts" / "stack", folder],
            env={**os.environ, **environ, "PERIFLOW_STACK": "native"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.said = [self.process.stdout.readline() for _ in range(2)]
        assert all(self.said), "the stack has ended"

    def __enter__(self) -> Self:
        """Return the running stack."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it. Not as Ctrl-C does, which is nothing to a process that was started in the background of a script."""
        self.process.terminate()
        self.process.communicate(timeout=60)


class Prometheus:
    """A Prometheus to ask."""

    def __init__(self, url: str) -> None:
        """Know where it is."""
        self.url = url

    def query(self, promql: str, at: float | None = None) -> list[Series]:
        """Return what an expression is now, or at a Unix time: one sample for each series, or those of a range."""
        answer = self._get("query", {"query": promql, **({} if at is None else {"time": at})})
        if answer["resultType"] == "scalar":
            return [Series({}, _samples([answer["result"]]))]
        return [_series(each) for each in answer["result"]]

    def values(self, promql: str, label: str) -> dict[str, float]:
        """Return the present values of an expression by a label."""
        return {series.labels.get(label, ""): series.samples[-1][1] for series in self.query(promql)}

    def query_range(self, promql: str, start: float, end: float, step_s: float = 1) -> list[Series]:
        """Return what an expression was over a time, as a panel asks for it."""
        answer = self._get("query_range", {"query": promql, "start": start, "end": end, "step": step_s})
        return [_series(each) for each in answer["result"]]

    def exemplars(self, promql: str) -> list[dict[str, Any]]:
        """Return the exemplars of the last hour."""
        now = time.time()
        found = self._get("query_exemplars", {"query": promql, "start": now - 3600, "end": now + 60})
        return [exemplar for series in found for exemplar in series["exemplars"]]

    def names(self) -> set[str]:
        """Return the names of all series."""
        return set(self._get("label/__name__/values", {}))

    def rules(self) -> list[dict[str, Any]]:
        """Return the rules of all groups with their state."""
        return [rule for group in self._get("rules", {})["groups"] for rule in group["rules"]]

    def last_evaluations(self) -> list[float]:
        """Return the Unix time of the last evaluation of each group of rules, whose moments are spread."""
        page = requests.get(f"{self.url}/metrics", timeout=30).text
        return [
            sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == "prometheus_rule_group_last_evaluation_timestamp_seconds"
        ]

    def _get(self, path: str, parameters: Mapping[str, Any]) -> Any:
        answer = requests.post if path.startswith("query") else requests.get
        body = answer(f"{self.url}/api/v1/{path}", parameters, timeout=30).json()
        assert body["status"] == "success", (parameters, body)
        return body["data"]


class Jaeger:
    """A Jaeger to ask."""

    def __init__(self, url: str) -> None:
        """Know where it is."""
        self.url = url

    def spans(self, service: str = "periflow-training") -> list[ReceivedSpan]:
        """Return all spans of a service."""
        times = {"query.start_time_min": "2020-01-01T00:00:00Z", "query.start_time_max": "2100-01-01T00:00:00Z"}
        parameters = {"query.service_name": service, "query.num_traces": "100000", **times}
        answer = requests.get(f"{self.url}/api/v3/traces", parameters, timeout=60)
        if answer.status_code == 404:  # there is no such trace
            return []
        assert answer.ok, answer.text
        spans = []
        for line in answer.text.splitlines():
            spans += list(read_spans(ParseDict(_with_base64(json.loads(line)["result"]), ExportTraceServiceRequest())))
        return spans

    def page(self, trace_id: str) -> list[dict[str, Any]]:
        """Return the spans of one trace as Jaeger's page asks for them."""
        answer = requests.get(f"{self.url}/api/traces/{trace_id}", timeout=30)
        answer.raise_for_status()
        (trace,) = answer.json()["data"]
        return list(trace["spans"])


def start_ranks(code: str, *arguments: object, ranks: int = 2, **environ: str) -> "list[subprocess.Popen[str]]":
    """Start a training script once for each rank, in the current folder, as a launcher does on one node."""
    common = {
        "WORLD_SIZE": str(ranks),
        "PERIFLOW_STATE_DIR": f"{Path.cwd()}/state",
        "OTEL_EXPORTER_PROMETHEUS_PORT": "0",
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), **environ},
            text=True,
        )
        for rank in range(ranks)
    ]


def wait_for_ranks(processes: "Sequence[subprocess.Popen[str]]") -> None:
    """Wait until all ranks have ended well."""
    assert [process.wait(120) for process in processes] == [0] * len(processes)


def wait_for_run(jaeger: Jaeger, ranks: int = 2, service: str = "periflow-training") -> None:
    """Wait until the spans have arrived that come last."""
    wait_until(
        lambda: sum(span.name == "periflow.run" for span in jaeger.spans(service)) >= ranks, 60, "the run has arrived"
    )


def _series(result: dict[str, Any]) -> Series:
    return Series(result["metric"], _samples(result.get("values") or [result["value"]]))


def _samples(values: Sequence[Sequence[Any]]) -> list[tuple[float, float]]:
    return [(float(at), float(value)) for at, value in values]


def _with_base64(node: Any) -> Any:
    """Turn the ids of OTLP JSON into what protobuf's own JSON has there."""
    if isinstance(node, list):
        return [_with_base64(each) for each in node]
    if not isinstance(node, dict):
        return node
    return {
        key: base64.b64encode(bytes.fromhex(value)).decode()
        if key in ("traceId", "spanId", "parentSpanId")
        else _with_base64(value)
        for key, value in node.items()
    }
