"""Measure what a core of each Collector carries: ``python benchmarks/bench_collectors.py``, about five minutes.

Simulated ranks record steps with three metrics, and one agent turns their journals into OTLP requests, which are kept.
These are sent to a node agent as fast as it takes them and go all the way: node agent (TLS, gzip, queue on disk),
gateway (token, tenant, step metrics, checkpoints), sampler, stores that throw everything away; once with Kafka between
gateway and samplers and once without. What is shown is items per second of CPU time of each process: per core, that is,
however many cores the machine has and whoever else uses them: the lower and the higher of two runs. Folders given as
arguments are other states of ``collector-config`` (``git archive COMMIT collector-config | tar -x -C FOLDER``), which
take turns with the present one and stand before it in the table. Needs the programs that the tests need.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from threading import Thread

import requests
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import tiers as configured
from programs import Program, free_ports, program, read_points, read_spans
from tiers import CONFIG, Tiers

import periflow_otel as pf

RANKS, STEPS, CHECKPOINT_EVERY, RUNS = 64, 2000, 500, 2
WAYS = {
    "spans/s": ("/v1/traces", False),
    "spans/s with Kafka": ("/v1/traces", True),
    "points/s": ("/v1/metrics", False),
}
"""What is sent, and whether Kafka is on its way."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
CLOUD = {
    "PERIFLOW_ENABLED": "1",
    "NODE_RANK": "0",
    "NUM_NODES": "1",
    "PROCESSED_ITERS": "0",
    "CKPT_DIR": "checkpoints",  # nothing is written there
}
REQUESTS: list[tuple[str, bytes]] = []
"""Path and body of what the agent has sent."""


class Recorder(BaseHTTPRequestHandler):
    """Keeps every request."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Keep one."""
        REQUESTS.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        """Stay silent."""


def record(state: dict[str, str]) -> None:
    """Record the steps of all ranks, one after the other."""
    for rank in range(RANKS):
        who = {"RANK": str(rank), "LOCAL_RANK": str(rank), "PERIFLOW_AGENT": "off"}
        run = pf.TrainingRun(STEPS, environ={**state, **who})
        for step in range(1, STEPS + 1):
            run.start_step()
            run.end_step()
            run.metric({"loss": 1 / step, "learning_rate": 0.001, "gradient_norm": 1.5})
            if step % CHECKPOINT_EVERY == 0:
                run.upload_checkpoint()
        run.shutdown()


def export(folder: Path) -> None:
    """Keep what an agent makes of the records of ranks that are gone."""
    state = {
        **CLOUD,
        "PERIFLOW_STATE_DIR": str(folder / "state"),
        "PERIFLOW_RUN_ID": "simulated",
        "WORLD_SIZE": str(RANKS),
    }
    ranks = get_context("spawn").Process(target=record, args=(state,))
    ranks.start()
    ranks.join()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    Thread(target=server.serve_forever, daemon=True).start()
    environ = {**os.environ, **state, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
    replay = [Path(sys.executable).with_name("periflow-otel"), "replay"]
    while subprocess.run(replay, env=environ, check=False).returncode:
        print("again", file=sys.stderr)
    server.shutdown()


def count() -> tuple[int, int]:
    """Return how many spans and points were kept."""
    spans = sum(len(list(read_spans(ExportTraceServiceRequest.FromString(body)))) for body in bodies("/v1/traces"))
    points = sum(len(list(read_points(ExportMetricsServiceRequest.FromString(body)))) for body in bodies("/v1/metrics"))
    return spans, points


def bodies(path: str) -> Iterator[bytes]:
    """Yield the requests of a signal."""
    return (body for kept, body in REQUESTS if kept == path)


def measure(folder: Path, config: Path, path: str, kafka: bool) -> dict[str, float]:  # noqa: FBT001  # one of two ways
    """Send all requests of a signal through all Collectors and return the CPU seconds of each."""
    folder.mkdir()
    configured.CONFIG = config
    with ExitStack() as running:
        grpc, http, broker = free_ports(3)
        sink = running.enter_context(Program(sink_command(folder, grpc, http), folder / "sink.log", [grpc, http]))
        if kafka:
            command = [program("kafka-dev"), "-port", str(broker), "-topics", "otlp_spans:4"]
            running.enter_context(Program(command, folder / "kafka.log", [broker]))
        stores = f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}"
        address = f"127.0.0.1:{broker}" if kafka else None
        tiers = running.enter_context(Tiers.started(folder / "tiers", *stores, kafka=address, SAMPLING_WAIT="5s"))
        node = running.enter_context(tiers.node_agent(tiers.issuer.token(tenant="acme")))
        processes = {"node agent": [node], "gateway": [tiers.gateway], "sampler": tiers.samplers, "sink": [sink]}
        before = {name: cpu_s(programs) for name, programs in processes.items()}
        with ThreadPoolExecutor(4) as threads:
            for answer in threads.map(lambda body: send(node.endpoint + path, body), bodies(path)):
                answer.raise_for_status()
        wait_until_idle([each for programs in processes.values() for each in programs])
        return {name: cpu_s(programs) - before[name] for name, programs in processes.items()}


def measure_memory(folder: Path) -> float:
    """Return the bytes that samplers need for a span that they hold."""
    folder.mkdir()
    with ExitStack() as running:
        grpc, http = free_ports(2)
        running.enter_context(Program(sink_command(folder, grpc, http), folder / "sink.log", [grpc, http]))
        stores = f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}"
        tiers = running.enter_context(Tiers.started(folder / "tiers", *stores, SAMPLING_WAIT="10m"))
        headers = {"Authorization": f"Bearer {tiers.issuer.token(tenant='acme')}"}
        empty = resident_bytes(tiers.samplers)
        for body in bodies("/v1/traces"):
            url = f"{tiers.url}/v1/traces"
            send(url, body, headers, verify=tiers.certificate).raise_for_status()
        return (resident_bytes(tiers.samplers) - empty) / count()[0]


def resident_bytes(programs: list[Program]) -> int:
    """Return the memory that programs use."""
    pages = [int(Path(f"/proc/{pid(each)}/statm").read_text().split()[1]) for each in programs]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def pid(each: Program) -> int:
    """Return the process id of a program."""
    assert each._process  # noqa: S101, SLF001  # it runs
    return each._process.pid  # noqa: SLF001


def send(url: str, body: bytes, headers: dict[str, str] | None = None, verify: str | None = None) -> requests.Response:
    """Send one request as the agent did."""
    headers = {"Content-Type": "application/x-protobuf", **(headers or {})}
    return requests.post(url, body, headers=headers, verify=verify, timeout=120)


def wait_until_idle(programs: list[Program]) -> None:
    """Wait until no CPU time has been used for longer than samplers wait."""
    used, since = cpu_s(programs), time.monotonic()
    while time.monotonic() - since < 8:
        time.sleep(0.5)
        now = cpu_s(programs)
        if now - used > 0.1:
            used, since = now, time.monotonic()


def cpu_s(programs: list[Program]) -> float:
    """Return the CPU time that programs have used."""
    total = 0
    for each in programs:
        fields = Path(f"/proc/{pid(each)}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS_PER_S


def sink_command(folder: Path, grpc: int, http: int) -> list[str]:
    """Return the command of a Collector that throws away what it gets."""
    pipeline = {"receivers": ["otlp"], "exporters": ["debug"]}
    protocols = {
        "grpc": {"endpoint": f"127.0.0.1:{grpc}", "max_recv_msg_size_mib": 64},
        "http": {"endpoint": f"127.0.0.1:{http}"},
    }
    config = {
        "receivers": {"otlp": {"protocols": protocols}},
        "exporters": {"debug": {"verbosity": "basic"}},
        "service": {
            "telemetry": {"metrics": {"level": "none"}},
            "pipelines": {"traces": pipeline, "metrics": pipeline},
        },
    }
    (folder / "sink.json").write_text(json.dumps(config))
    return [program("otelcol"), "--config", str(folder / "sink.json")]


def measure_all(folder: Path, configs: list[Path], items: dict[str, int]) -> dict[tuple[Path, str, str], list[float]]:
    """Return items per CPU second of each configuration, Collector and way, run by run; configurations take turns."""
    rates: dict[tuple[Path, str, str], list[float]] = defaultdict(list)
    for run in range(RUNS):
        for way, (path, kafka) in WAYS.items():
            for config in configs:
                used = measure(folder / f"{run}-{way.replace('/', '-')}-{configs.index(config)}", config, path, kafka)
                for tier, seconds in used.items():
                    rates[config, tier, way].append(items[path] / seconds)
    return rates


def main() -> None:
    """Print a table."""
    configs = [*map(Path, sys.argv[1:]), CONFIG]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(folder)
        spans, points = count()
        rates = measure_all(folder, configs, {"/v1/traces": spans, "/v1/metrics": points})
        print(
            f"{RANKS} ranks, {STEPS} steps each: {spans} spans, {points} points; {platform.machine()}, {cpu_name()}\n"
        )
        print(f"| | | {' | '.join(WAYS)} |\n|{' --- |' * (2 + len(WAYS))}")
        for tier in ("node agent", "gateway", "sampler"):
            for config in configs:
                shown = [
                    f"{min(found):,.0f} - {max(found):,.0f}" for found in (rates[config, tier, way] for way in WAYS)
                ]
                if tier == "sampler":
                    shown[-1] = ""
                print(f"| {tier} | {config} | {' | '.join(shown)} |")
        print(f"\nA span is {sum(map(len, bodies('/v1/traces'))) / spans:.0f} bytes as it is sent, before gzip,")
        print(f"and {measure_memory(folder / 'memory'):,.0f} bytes of memory in a sampler.")


def cpu_name() -> str:
    """Return what the machine calls its processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")


if __name__ == "__main__":
    main()
