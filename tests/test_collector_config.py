"""The configurations of the Collector, carried out by the Collector: nothing is lost, mixed up or let in."""

import math
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import requests
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from programs import Collector, Program, ReceivedLog, ReceivedSpan, free_ports, program, read_spans, wait_until
from programs import _messages as messages
from prometheus_client.parser import text_string_to_metric_families
from stack import CONFIG, ROOT, Prometheus, Stack, start_ranks, wait_for_ranks
from tiers import Issuer, Tiers, command
from training import agents

from periflow_otel import names

STEPS = 200
TRAINING = f"""
import os, time
import periflow_otel as pf
rank, value = int(os.environ["RANK"]), float(os.environ.get("VALUE", "0"))
pf.init(total_train_steps={STEPS})
for step in range(1, {STEPS + 1}):
    try:
        with pf.train_step():
            time.sleep(0.6 if step == 71 else 0.002)
            if step == 11:
                raise RuntimeError
    except RuntimeError:
        pass
    pf.metric({{"loss": float("nan") if step == 37 else value + step}})
    if step % 50 == 0:
        pf.upload_checkpoint()
"""
UPLOADS = [50, 100, 150, 200]
MARKED = {11, 37, 71, *UPLOADS}
KEPT_PERCENT = 25
SPAN = {"traceId": "1" * 32, "spanId": "2" * 16, "name": "periflow.step"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Return a running Prometheus and Jaeger."""
    with Stack(tmp_path_factory.mktemp("stores") / "stack") as stack:
        yield stack


@pytest.fixture(scope="module")
def tiers(tmp_path_factory: pytest.TempPathFactory, stack: Stack) -> Iterator[Tiers]:
    """Return a running gateway with samplers that keep every trace."""
    with Tiers.started(tmp_path_factory.mktemp("tiers"), *stores(stack), KEPT_PERCENT="100") as tiers:
        yield tiers


@pytest.mark.parametrize(
    "configs",
    [
        *("local", "node-agent", "gateway", "sampling", "uploads"),
        *("gateway scale/gateway-kafka", "sampling scale/sampling-kafka", "uploads resend"),
        *("node-agent scale/node-agent-logs", "gateway scale/gateway-logs scale/gateway-kafka"),
    ],
)
def test_a_configuration_is_valid(tmp_path: Path, configs: str):
    """The Collector accepts every configuration."""
    keys = Issuer(tmp_path / "issuer").keys
    environ = {"GATEWAY_CERTIFICATE": "certificate", "GATEWAY_KEY": "key", "TOKEN_KEYS": str(keys)}
    validate = command(*configs.split(), environ=environ)
    validate.insert(validate.index(program("otelcol")) + 1, "validate")
    checked = subprocess.run(validate, capture_output=True, text=True, timeout=60, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_builder_has_what_the_configurations_use():
    """Every component of every configuration is in the builder's manifest, and nothing else."""
    manifest = yaml.safe_load((CONFIG / "otelcol-builder.yaml").read_text())
    built = {
        kind: {re.sub(f"{kind[:-1]}$", "", part["gomod"].split()[0].rpartition("/")[2]) for part in manifest[kind]}
        for kind in ("receivers", "processors", "connectors", "exporters", "extensions")
    }
    modules = {
        "otlp_grpc": "otlp",
        "bearertokenauth": "bearertokenauth",
        "oidc": "oidcauth",
        "file_storage": "filestorage",
    }
    used: dict[str, set[str]] = {kind: set() for kind in built}
    for path in [*CONFIG.glob("*.yaml"), *CONFIG.glob("scale/*.yaml")]:
        if path.stem not in ("jaeger", "otelcol-builder"):
            for kind, components in yaml.safe_load(path.read_text()).items():
                if kind in used:
                    types = {name.partition("/")[0] for name in components}
                    used[kind] |= {modules.get(each, each.replace("_", "")) for each in types}
    assert used == built


CONTEXTS = ("resource", "scope", "metric", "datapoint", "span", "spanevent", "log")
"""Of statements, from the outermost on."""


def test_statements_of_one_list_are_of_one_context():
    """All of a list run in its innermost one: what is done to a scope is not done where that is missing."""
    configs = [path for path in CONFIG.glob("**/*.yaml") if "_statements:" in path.read_text()]
    processors = [each for path in configs for each in yaml.safe_load(path.read_text())["processors"].values()]
    lists = [statements for each in processors for statements in _statement_lists(each or {})]
    assert len(lists) > 10
    assert [each for each in lists if len(set(map(_innermost, each))) > 1] == []


def _statement_lists(processor: dict[str, Any]) -> Iterator[list[str]]:
    for key, groups in processor.items():
        if key.endswith("_statements"):
            yield from (group["statements"] for group in groups if not isinstance(group, str))
            yield from filter(None, [[group for group in groups if isinstance(group, str)]])


def _innermost(statement: str) -> str:
    return max(re.findall(rf"\b({'|'.join(CONTEXTS)})\.", statement), key=CONTEXTS.index)


def test_every_collector_has_the_same_version():
    """Containers of the stack and of Kubernetes run the Collector that the builder would build."""
    version = yaml.safe_load((CONFIG / "otelcol-builder.yaml").read_text())["dist"]["version"]
    texts = [path.read_text() for path in (ROOT / "docker-compose.yml", *CONFIG.glob("scale/kubernetes/*.yaml"))]
    images = [image for text in texts for image in re.findall(r"opentelemetry-collector-contrib:(\S+)", text)]
    assert images == [version] * 5


@pytest.mark.parametrize("path", sorted(CONFIG.glob("scale/kubernetes/*.yaml")), ids=lambda path: path.stem)
def test_a_manifest_keeps_to_the_schema(path: Path):
    """Kubernetes would accept every field of it."""
    for manifest in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(manifest, "1.37", strict=True)


def test_a_run_arrives_whole_through_all_tiers(stack: Stack, tiers: Tiers):
    """From the ranks over node agent, gateway and samplers: every span, value, exemplar and checkpoint, once."""
    with tiers.node_agent(tiers.issuer.token(tenant="acme"), "whole") as node:
        wait_for_ranks(start_ranks(TRAINING, PERIFLOW_RUN_ID="whole", OTEL_EXPORTER_OTLP_ENDPOINT=node.endpoint))
        wait_for_all(stack, "whole", ranks=2)
    assert set(steps_of(stack, "whole").values()) == {1}
    assert uploads(tiers, "whole") == {f"acme/whole/1/{step}/{rank}": 1 for step in UPLOADS for rank in (0, 1)}
    for rank in ("0", "1"):
        values = losses(stack, f'periflow_run_id="whole",periflow_rank="{rank}"')
        assert math.isnan(values.pop(36))
        assert values == [step for step in range(1, STEPS + 1) if step != 37]
    (labels,) = {
        (series.labels["periflow_tenant"], series.labels["job"])
        for series in stack.prometheus.query('periflow_metric_loss{periflow_run_id="whole"}')
    }
    assert labels == ("acme", "periflow/periflow-training")
    exemplars = stack.prometheus.exemplars('periflow_step_duration_seconds_bucket{periflow_run_id="whole"}')
    for exemplar in exemplars:
        assert len(stack.jaeger.page(exemplar["labels"]["trace_id"])) == 2
    assert exemplars


SAYING = """
import logging
import periflow_otel as pf
logging.lastResort = logging.NullHandler()
pf.init(total_train_steps=3)
for step in range(1, 4):
    with pf.train_step():
        for number in range(100):
            logging.getLogger("data").warning("%d of step %d", number, step)
"""


def test_what_is_logged_arrives_through_all_tiers(stack: Stack, tiers: Tiers):
    """In order, under the tenant of the token, with the trace of the step as the store of traces has it."""
    with tiers.node_agent(tiers.issuer.token(tenant="acme"), "logs") as node:
        environ = {"PERIFLOW_LOGS": "warning", "OTEL_EXPORTER_OTLP_ENDPOINT": node.endpoint}
        wait_for_ranks(start_ranks(SAYING, ranks=1, PERIFLOW_RUN_ID="says", **environ))
        wait_until(lambda: len(logs(tiers, "says")) >= 300, 60, "all records")
    found = logs(tiers, "says")
    assert [each.body for each in found] == [f"{number} of step {step}" for step in (1, 2, 3) for number in range(100)]
    assert {each.resource["periflow.tenant"] for each in found} == {"acme"}
    wait_until(lambda: len(steps_of(stack, "says")) == 3, 60, "all steps")
    spans = [span for span in spans_of(stack, "says", "periflow-training") if span.name == names.STEP_SPAN]
    assert {(each.trace_id, each.attributes[names.STEP]) for each in found} == {
        (span.trace_id, span.attributes[names.STEP]) for span in spans
    }


def test_the_gateway_counts_steps_before_any_is_left_out(stack: Stack, tmp_path: Path):
    """Marked steps are all kept, whole, and the stated share of the others; the step count knows nothing of it."""
    sampling = {"KEPT_PERCENT": str(KEPT_PERCENT), "SLOW_STEP_MS": "500"}
    with Tiers.started(tmp_path / "tiers", *stores(stack), **sampling) as tiers:
        token = tiers.issuer.token(tenant="acme")
        wait_for_ranks(start_ranks(TRAINING, PERIFLOW_RUN_ID="share", **tiers.direct(token)))
        wait_until(lambda: outcomes(stack, "share") == ["finished"] * 2, 60, "the run has arrived")
        counted = 'sum(periflow_gateway_calls_total{periflow_run_id="share",periflow_tenant="acme"})'
        wait_until(lambda: stack.prometheus.values(counted, "") == {"": 2 * STEPS}, 30, "all steps are counted")
    kept = steps_of(stack, "share")
    by_rank = [{step for step, rank in kept if rank == each} for each in (0, 1)]
    assert by_rank[0] == by_rank[1]
    assert by_rank[0] >= MARKED
    # Which ones are kept depends on their trace ids alone, so this is the same each time: within three sigma.
    share = len(by_rank[0] - MARKED) / (STEPS - len(MARKED))
    assert share == pytest.approx(KEPT_PERCENT / 100, abs=0.095)
    assert len(uploads(tiers, "share")) == 2 * len(UPLOADS)


def test_a_sampler_that_is_stopped_decides_first(stack: Stack, tmp_path: Path):
    """What a sampler holds when it is told to end goes on to the store."""
    waiting = {"KEPT_PERCENT": "100", "SAMPLING_WAIT": "10m"}
    with Tiers.started(tmp_path / "tiers", *stores(stack), **waiting) as tiers:
        token = tiers.issuer.token(tenant="acme")
        wait_for_ranks(start_ranks(TRAINING, PERIFLOW_RUN_ID="held", **tiers.direct(token)))
        wait_until(lambda: not agents(Path.cwd() / "state"), 60, "everything is delivered")
        assert not steps_of(stack, "held")
    assert steps_of(stack, "held") == {(step, rank): 1 for step in range(1, STEPS + 1) for rank in (0, 1)}


def test_kafka_carries_whole_traces(stack: Stack, tmp_path: Path):
    """With Kafka between gateway and two samplers every trace is still seen by one of them, whole, and once."""
    (port,) = free_ports(1)
    kafka = [program("kafka-dev"), "-port", str(port), "-topics", "otlp_spans:4"]
    sampling = {"KEPT_PERCENT": str(KEPT_PERCENT), "SLOW_STEP_MS": "500"}
    with (
        Program(kafka, tmp_path / "kafka.log", [port]),
        Tiers.started(tmp_path / "tiers", *stores(stack), kafka=f"127.0.0.1:{port}", **sampling) as tiers,
    ):
        token = tiers.issuer.token(tenant="acme")
        wait_for_ranks(start_ranks(TRAINING, PERIFLOW_RUN_ID="kafka", **tiers.direct(token)))
        wait_until(lambda: outcomes(stack, "kafka") == ["finished"] * 2, 60, "the run has arrived")
        wait_until(lambda: {step for step, _ in steps_of(stack, "kafka")} >= MARKED, 30, "all decisions are made")
    kept = steps_of(stack, "kafka")
    assert set(kept.values()) == {1}
    assert (
        {step for step, rank in kept if rank == 0} == {step for step, rank in kept if rank == 1} != set(range(1, 201))
    )
    assert len(uploads(tiers, "kafka")) == 2 * len(UPLOADS)


def test_a_tenant_is_who_the_token_says(stack: Stack, tiers: Tiers):
    """Two tenants, each claiming to be the other, are kept apart in everything that arrives."""
    tenants = {"north": "1000", "south": "2000"}
    claims = {"north": "south", "south": "north"}
    folder = Path.cwd()
    processes = []
    for tenant, value in tenants.items():
        (folder / tenant).mkdir()
        os.chdir(folder / tenant)
        processes += start_ranks(
            TRAINING,
            ranks=1,
            PERIFLOW_RUN_ID=f"of-{tenant}",
            VALUE=value,
            OTEL_SERVICE_NAME=tenant,
            OTEL_RESOURCE_ATTRIBUTES=f"periflow.tenant={claims[tenant]}",
            **tiers.direct(tiers.issuer.token(tenant=tenant)),
        )
    wait_for_ranks(processes)
    for tenant, value in tenants.items():
        wait_for_all(stack, f"of-{tenant}", 1, tenant)
        values = losses(stack, f'periflow_tenant="{tenant}"')
        assert [each - float(value) for each in values if not math.isnan(each)] == [
            *range(1, 37),
            *range(38, STEPS + 1),
        ]
        assert {span.resource["periflow.tenant"] for span in stack.jaeger.spans(tenant)} == {tenant}
    found = [
        (span.resource["periflow.tenant"], span.resource["service.name"])
        for span in tiers.checkpoints.spans()
        if span.resource["periflow.run.id"].startswith("of-")
    ]
    assert Counter(found) == {(tenant, tenant): len(UPLOADS) for tenant in tenants}


@pytest.mark.parametrize("token", ["missing", "of another", "expired", "without tenant"])
def test_what_comes_without_a_good_token_is_refused(tiers: Tiers, tmp_path: Path, token: str):
    """The gateway says that it was the token, and lets nothing in."""
    tokens = {
        "missing": "",
        "of another": Issuer(tmp_path / "other").token(tenant="acme"),
        "expired": tiers.issuer.token(tenant="acme", exp=1),
        "without tenant": tiers.issuer.token(),
    }
    event = {"name": "periflow.checkpoint.upload", "attributes": [_attribute("periflow.checkpoint.id", token)]}
    body = _one_span(events=[event], attributes=[_attribute("periflow.tenant", "acme")])
    headers = {"authorization": f"Bearer {tokens[token]}"} if tokens[token] else {}
    answer = requests.post(f"{tiers.url}/v1/traces", json=body, headers=headers, verify=tiers.certificate, timeout=30)
    if token == "without tenant":  # noqa: S105  # no password
        assert answer.status_code == 200
    else:
        assert answer.status_code == 401
        assert "token" in answer.text or "authentication" in answer.text
    assert not any(span.attributes["periflow.checkpoint.id"] == token for span in tiers.checkpoints.spans())


def test_a_refused_token_loses_nothing(stack: Stack, tiers: Tiers):
    """The training says why nothing is delivered; with a good token all of it is, from the journal."""
    bad = {**tiers.direct(Issuer(Path.cwd() / "other").token(tenant="acme")), "PERIFLOW_EXIT_TIMEOUT": "1"}
    (rank,) = start_ranks(TRAINING, ranks=1, PERIFLOW_RUN_ID="refused", PERIFLOW_AGENT_LINGER="1", **bad)
    wait_for_ranks([rank])
    wait_until(lambda: not agents(Path.cwd() / "state"), 60, "the agent has given up")
    log = "".join(path.read_text() for path in Path("state").glob("refused/**/*.log"))
    assert "401" in log
    good = {
        **os.environ,
        **tiers.direct(tiers.issuer.token(tenant="acme")),
        "PERIFLOW_STATE_DIR": f"{Path.cwd()}/state",
    }
    replay = Path(sys.executable).with_name("periflow-otel")
    subprocess.run([replay, "replay"], env=good, check=True, timeout=120, capture_output=True)
    wait_for_all(stack, "refused", ranks=1)
    assert set(steps_of(stack, "refused").values()) == {1}


def test_a_node_without_queue_refuses_what_the_gateway_refuses(tiers: Tiers):
    """The answer about a bad token comes through to the ranks, which keep what they have."""
    with tiers.node_agent("not a token", "bad", NODE_QUEUE="false") as node:
        answer = requests.post(f"{node.endpoint}/v1/traces", json=_one_span(), timeout=30)
    assert answer.status_code == 401
    assert "token" in answer.text


def test_nothing_is_lost_while_the_gateway_is_away(stack: Stack, tiers: Tiers):
    """What ranks deliver to a node while the gateway is down, and the node's Collector is killed, arrives later."""
    with tiers.node_agent(tiers.issuer.token(tenant="acme"), "away") as node:
        tiers.gateway.kill()
        wait_for_ranks(start_ranks(TRAINING, PERIFLOW_RUN_ID="away", OTEL_EXPORTER_OTLP_ENDPOINT=node.endpoint))
        wait_until(lambda: not agents(Path.cwd() / "state"), 60, "the node has taken everything")
        node.kill()
        node.start()
        tiers.gateway.start()
        wait_for_all(stack, "away", ranks=2)
        checkpoints = {f"acme/away/1/{step}/{rank}" for step in UPLOADS for rank in (0, 1)}
        wait_until(lambda: uploads(tiers, "away").keys() == checkpoints, 90, "all checkpoints have arrived")
    assert outcomes(stack, "away") == ["finished"] * 2


def test_a_node_that_drops_what_is_refused_is_reported(tiers: Tiers, tmp_path: Path):
    """An alert about the node with the bad token fires, and no other."""
    with (
        tiers.node_agent("not a token", "dropping") as dropping,
        tiers.node_agent(tiers.issuer.token(tenant="acme"), "delivering") as delivering,
        watching(tmp_path, dropping.metrics_port, delivering.metrics_port) as prometheus,
    ):
        for node in (dropping, delivering):
            requests.post(f"{node.endpoint}/v1/traces", json=_one_span(), timeout=30).raise_for_status()
        wait_until(lambda: prometheus.query("otelcol_exporter_sent_spans"), 60, "one node has delivered")
        wait_until(lambda: prometheus.query("ALERTS"), 60, "an alert fires")
        (alert,) = prometheus.query("ALERTS")
    assert (alert.labels["alertname"], alert.labels["alertstate"]) == ("PeriFlowCollectorDrops", "firing")
    assert alert.labels["instance"] == f"127.0.0.1:{dropping.metrics_port}"


def test_alerts_ask_for_what_collectors_tell(tiers: Tiers, tmp_path: Path):
    """All metrics that the alerts ask for are there once something was refused, late, too late, and nobody's."""
    rules = (CONFIG / "prometheus" / "collectors.yml").read_text()
    asked = set(re.findall(r"otelcol_[\w.]+(?:\([\w|]+\)[\w.]*)?", rules))
    filters = set(re.findall(r'filter="([\w/]+)"', rules))
    direct, nobody = (
        {"headers": {"authorization": f"Bearer {tiers.issuer.token(**claims)}"}, "verify": tiers.certificate}
        for claims in ({"tenant": "acme"}, {})
    )
    with (
        tiers.node_agent("not a token", "refused") as refused,
        tiers.node_agent(tiers.issuer.token(tenant="acme"), "late") as late,
        watching(tmp_path, refused.metrics_port, late.metrics_port, *tiers.metrics_ports) as prometheus,
    ):

        def is_all_there() -> bool:
            for node in (refused, late):
                requests.post(f"{node.endpoint}/v1/traces", json=_one_span(), timeout=30).raise_for_status()
                requests.post(f"{node.endpoint}/v1/metrics", json=_one_point(1), timeout=30).raise_for_status()
                requests.post(f"{node.endpoint}/v1/logs", json=_one_log_record(), timeout=30).raise_for_status()
            for value in (1, 2):  # at the same time: Prometheus refuses the second
                requests.post(f"{tiers.url}/v1/metrics", json=_one_point(value), timeout=30, **direct)
            requests.post(f"{tiers.url}/v1/metrics", json=_one_point(1, time_unix_ns=1), timeout=30, **direct)
            requests.post(f"{tiers.url}/v1/traces", json=_one_span(), timeout=30, **nobody)
            requests.post(f"{tiers.url}/v1/logs", json=_one_log_record(), timeout=30, **nobody)
            told = prometheus.names()
            is_asked_for = all(any(re.fullmatch(name, each) for each in told) for name in asked)
            return is_asked_for and all(prometheus.query(f'{{filter="{name}"}}') for name in filters)

        wait_until(is_all_there, 60, "all metrics are there")


@contextmanager
def watching(folder: Path, *ports: int) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes Collectors and knows the alerts about them."""
    targets = [f"127.0.0.1:{port}" for port in ports]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(CONFIG / "prometheus" / "collectors.yml")],
        "scrape_configs": [{"job_name": "collectors", "static_configs": [{"targets": targets}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [
        *(program("prometheus"), f"--config.file={folder}/prometheus.yml"),
        *(f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address=127.0.0.1:{port}"),
    ]
    with Program(command, folder / "prometheus.log", [port]):
        wait_until(lambda: requests.get(f"{url}/-/ready", timeout=10).ok, 30, "Prometheus is ready")
        yield Prometheus(url)


def test_no_trace_is_lost_while_their_store_is_away(tmp_path: Path):
    """Samplers that hold all they can wait with the others, and deliver everything once the store is back."""
    traces = range(1, 4001)
    limits = {"KEPT_PERCENT": "100", "SAMPLING_TRACES": "500"}
    with ExitStack() as running:
        store = running.enter_context(Collector(tmp_path / "store"))
        address = store.grpc_endpoint.removeprefix("http://")
        tiers = running.enter_context(Tiers.started(tmp_path / "tiers", store.http_endpoint, address, **limits))
        node = running.enter_context(tiers.node_agent(tiers.issuer.token(tenant="acme")))
        store.kill()
        for first in traces[::100]:
            spans = [{**SPAN, "traceId": f"{trace:032x}"} for trace in range(first, first + 100)]
            requests.post(f"{node.endpoint}/v1/traces", json=_message(*spans), timeout=30).raise_for_status()
        wait_until(lambda: all(map(is_full, tiers.metrics_ports[1:3])), 60, "both samplers hold all they can")
        store.start()
        wait_until(lambda: {span.trace_id for span in store.spans()} == set(traces), 90, "all traces have arrived")


def is_full(sampler: int) -> bool:
    """Tell whether both the memory for traces and the queue for the store are full."""
    metrics = own_metrics(sampler)
    held, queued = "otelcol_processor_tail_sampling_sampling_traces_on_memory", "otelcol_exporter_queue_size"
    return (metrics[held], metrics[queued]) == (500, 1000)


def own_metrics(port: int) -> dict[str, float]:
    """Return what a Collector says of itself: a value for each of its metrics, summed up."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text):
        for sample in family.samples:
            found[sample.name.removesuffix("_total")] += sample.value
    return found


def _one_span(**more: Any) -> dict[str, Any]:
    return _message({**SPAN, **more})


def _one_point(value: int, time_unix_ns: int | None = None) -> dict[str, Any]:
    minute_ns = 60 * 10**9
    at = time_unix_ns or time.time_ns() // minute_ns * minute_ns
    point = {"name": "sent", "gauge": {"dataPoints": [{"asInt": value, "timeUnixNano": at}]}}
    return {"resourceMetrics": [{"scopeMetrics": [{"metrics": [point]}]}]}


def _one_log_record() -> dict[str, Any]:
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": [{"body": {"stringValue": "said"}}]}]}]}


def _message(*spans: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}


def _attribute(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}


def stores(stack: Stack) -> tuple[str, str]:
    """Return where metrics and traces go."""
    return f"{stack.prometheus.url}/api/v1/otlp", stack.jaeger_otlp


def spans_of(stack: Stack, run_id: str, service: str) -> Sequence[ReceivedSpan]:
    """Return the spans of a run in Jaeger."""
    return [span for span in stack.jaeger.spans(service) if span.resource["periflow.run.id"] == run_id]


def wait_for_all(stack: Stack, run_id: str, ranks: int, service: str = "periflow-training") -> None:
    """Wait until all steps and values have arrived: what is tried again may come after what was sent later."""
    steps = {(step, rank) for step in range(1, STEPS + 1) for rank in range(ranks)}
    wait_until(lambda: steps_of(stack, run_id, service).keys() == steps, 90, "all steps have arrived")
    for rank in range(ranks):
        series = f'periflow_run_id="{run_id}",periflow_rank="{rank}"'
        wait_until(lambda series=series: len(losses(stack, series)) == STEPS, 90, "all values have arrived")
    wait_until(lambda: outcomes(stack, run_id, service) == ["finished"] * ranks, 30, "the end has arrived")


def steps_of(stack: Stack, run_id: str, service: str = "periflow-training") -> Counter[tuple[int, int]]:
    """Return step and rank of the step spans in Jaeger."""
    return Counter(
        (span.attributes["periflow.step.number"], span.attributes["periflow.rank"])
        for span in spans_of(stack, run_id, service)
        if span.name == "periflow.step"
    )


def outcomes(stack: Stack, run_id: str, service: str = "periflow-training") -> list[str]:
    """Return how the ranks of a run have ended, as far as Jaeger knows."""
    spans = spans_of(stack, run_id, service)
    return [span.attributes["periflow.run.outcome"] for span in spans if span.name == "periflow.run"]


def losses(stack: Stack, labels: str) -> list[float]:
    """Return all values of the loss in Prometheus, of one series."""
    found = stack.prometheus.query(f"periflow_metric_loss{{{labels}}}[15m]")
    assert len(found) <= 1
    return [value for series in found for _, value in series.samples]


def logs(tiers: Tiers, run_id: str) -> list[ReceivedLog]:
    """Return the log records of a run that the store has."""
    return [each for each in tiers.checkpoints.logs() if each.resource["periflow.run.id"] == run_id]


def uploads(tiers: Tiers, run_id: str) -> Counter[str]:
    """Return the ids of the checkpoints that the webhook was told of, each in a request of its own."""
    found: Counter[str] = Counter()
    for request in messages(tiers.folder / "checkpoints" / "traces.pb"):
        (span,) = read_spans(ExportTraceServiceRequest.FromString(request))
        if span.resource["periflow.run.id"] == run_id:
            found[span.attributes["periflow.checkpoint.id"]] += 1
    return found
