"""The local stack carries a run to Jaeger and Prometheus, whole."""

import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import yaml
from faulty_receiver import from_json
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from programs import Program, ReceivedSpan, free_ports, is_listening, program, read_logs, wait_until
from stack import CONFIG, PORTS, ROOT, Series, Stack, start_ranks, wait_for_ranks, wait_for_run
from training import Training, agents

from periflow_otel.journal.folders import node_folder, run_folder

COMPOSE = ROOT / "docker-compose.yml"
STEPS = list(range(1, 61))
CHECKPOINTS = [20, 40, 60]
NOT_FINITE = 37
TRAINING = f"""
import logging, os, time
import periflow_otel as pf
logging.basicConfig(level=logging.INFO)
rank = int(os.environ["RANK"])
pf.init(total_train_steps={len(STEPS)}, local_log_name="train.log")
for step in range(1, {len(STEPS) + 1}):
    with pf.train_step():
        logging.info("step %d of rank %d", step, rank)
        time.sleep(0.005 + 0.01 * rank)
    pf.metric({{"loss": float("nan") if step == {NOT_FINITE} else 1 / step, "learning rate": 0.1 * rank}})
    if step % 20 == 0:
        pf.upload_checkpoint()
"""


class Trained:
    """A stack that a run was sent to, and one that has read the files of the same run."""

    def __init__(self, online: Stack, offline: Stack, files: list[Path]) -> None:
        """Know both."""
        self.online, self.offline, self.files = online, offline, files


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """Train two ranks, which send to one stack, and give the files that they also write to another."""
    folder = tmp_path_factory.mktemp("stack")
    with pytest.MonkeyPatch.context() as patch, Stack(folder / "on") as online, Stack(folder / "off") as offline:
        (folder / "run").mkdir()
        patch.chdir(folder / "run")
        environ = {"PERIFLOW_RUN_ID": "seen", "PERIFLOW_LOGS": "info", "OTEL_EXPORTER_OTLP_ENDPOINT": online.endpoint}
        wait_for_ranks(start_ranks(TRAINING, **environ))
        wait_until(lambda: not agents(Path.cwd() / "state"), 60, "the agent has written its last report")
        files = sorted((folder / "run").glob("*.jsonl"))
        for file in files:
            shutil.copy(file, offline.offline)
        wait_for_run(offline.jaeger)
        yield Trained(online, offline, files)


def test_every_span_arrives(trained: Trained):
    """Jaeger has one trace for each step, with a span of each rank below that of rank 0, and nothing twice."""
    spans = trained.online.jaeger.spans()
    steps = [span for span in spans if span.name == "periflow.step"]
    assert Counter((span.attributes["periflow.step.number"], span.attributes["periflow.rank"]) for span in steps) == {
        (step, rank): 1 for step in STEPS for rank in (0, 1)
    }
    roots = {span.trace_id: span for span in steps if span.attributes["periflow.rank"] == 0}
    assert len(roots) == len(STEPS)
    assert all(
        span.parent_span_id == roots[span.trace_id].span_id for span in steps if span.attributes["periflow.rank"]
    )
    assert Counter(span.name for span in spans) == {
        "periflow.step": 2 * len(STEPS),
        "periflow.run.start": 2,
        "periflow.run": 2,
    }


def test_checkpoints_arrive_with_their_steps(trained: Trained):
    """Each rank's upload is an event of the step that it belongs to."""
    found = [
        (
            span.attributes["periflow.step.number"],
            span.attributes["periflow.rank"],
            attributes["periflow.checkpoint.id"],
        )
        for span in trained.online.jaeger.spans()
        for name, _, attributes in span.events
        if name == "periflow.checkpoint.upload"
    ]
    assert sorted(found) == [(step, rank, f"seen/1/{step}/{rank}") for step in CHECKPOINTS for rank in (0, 1)]


def test_every_value_arrives(trained: Trained):
    """Prometheus has each value that a rank recorded, with a time of its own, NaN too."""
    for rank in ("0", "1"):
        (loss,) = trained.online.prometheus.query(f'periflow_metric_loss{{periflow_rank="{rank}"}}[10m]')
        values = [value for _, value in loss.samples]
        assert math.isnan(values[NOT_FINITE - 1])
        assert [value for value in values if not math.isnan(value)] == [1 / n for n in STEPS if n != NOT_FINITE]
        assert loss.labels["periflow_key"] == "loss"
        assert loss.labels["periflow_run_id"] == "seen"


def test_a_trace_with_a_value_that_is_not_finite_can_be_looked_at(trained: Trained):
    """The request that Jaeger's page makes for the step with the NaN is answered, with the NaN in it."""
    (trace_id,) = {
        span.trace_id for span in trained.online.jaeger.spans() if "periflow.step.nonfinite_keys" in span.attributes
    }
    spans = trained.online.jaeger.page(f"{trace_id:032x}")
    tags = [{tag["key"]: tag["value"] for tag in span["tags"]} for span in spans]
    assert [each["periflow.metric.loss"] for each in tags] == ["NaN", "NaN"]
    assert {each["periflow.metric.learning rate"] for each in tags} == {0, 0.1}


def test_an_exemplar_leads_to_the_trace_of_all_ranks(trained: Trained):
    """The trace that an exemplar of the step time names is there, with the span it names and all other ranks."""
    exemplars = trained.online.prometheus.exemplars("periflow_step_duration_seconds_bucket")
    assert {math.floor(math.log10(float(each["value"]))) for each in exemplars} <= {-3, -2, -1}
    for exemplar in exemplars:
        spans = trained.online.jaeger.page(exemplar["labels"]["trace_id"])
        assert exemplar["labels"]["span_id"] in {span["spanID"] for span in spans}
        assert {tag["value"] for span in spans for tag in span["tags"] if tag["key"] == "periflow.rank"} == {0, 1}


def test_a_key_that_can_be_no_label_keeps_nothing_out(trained: Trained):
    """Prometheus would refuse all that comes with it, such as a resource whose keys are words of another script."""
    stack, at = trained.online, time.time_ns()
    attributes = [{"key": "손실", "value": {"stringValue": "x"}}]
    point = {"asDouble": 1.0, "timeUnixNano": str(at), "attributes": attributes}
    metrics = [{"metrics": [{"name": "beside", "gauge": {"dataPoints": [point]}}]}]
    body = {"resourceMetrics": [{"resource": {"attributes": attributes}, "scopeMetrics": metrics}]}
    requests.post(f"{stack.endpoint}/v1/metrics", json=body, timeout=30).raise_for_status()
    assert stack.prometheus.query("beside")


def test_files_of_a_run_give_the_same_spans(trained: Trained):
    """What was written without a receiver and read later is the same, span by span."""
    assert len(trained.files) == 3
    online, offline = ({span.span_id: span for span in each.jaeger.spans()} for each in _stacks(trained))
    assert offline.keys() == online.keys()
    for span_id, span in online.items():
        assert repr(_comparable(offline[span_id])) == repr(_comparable(span))


def test_files_of_a_run_give_the_same_points(trained: Trained):
    """Every value is there with the same time, and every instrument of a run ends with the same value."""
    for stack in _stacks(trained):
        wait_until(lambda stack=stack: _finished(stack), 30, "the last points have arrived")
    online, offline = (_series(each, "periflow_metric_.+") for each in _stacks(trained))
    assert len(online) == 4
    assert repr(offline) == repr(online)
    instruments = "periflow_(step|time|checkpoint|metric_nonfinite).+"
    online, offline = (_series(each, instruments) for each in _stacks(trained))
    last = {labels: samples[-1][1] for labels, samples in online.items()}
    assert {labels: samples[-1][1] for labels, samples in offline.items()} == last


def test_what_was_logged_is_in_a_file(trained: Trained):
    """Of the run that was sent, and of the one that was read, with the traces that Jaeger shows."""
    traces = {span.attributes.get("periflow.step.number"): span.trace_id for span in trained.online.jaeger.spans()}
    for stack in _stacks(trained):
        wait_until(lambda stack=stack: len(_logged(stack.logs)) == 2 * len(STEPS), 60, "all log records")
        assert _logged(stack.logs) == {
            (f"step {step} of rank {rank}", traces[step]) for step in STEPS for rank in range(2)
        }


def _logged(file: Path) -> set[tuple[str, int]]:
    """Return message and trace of each log record in a file."""
    lines = file.read_bytes().splitlines() if file.exists() else []
    records = [record for line in lines for record in read_logs(from_json(line, ExportLogsServiceRequest()))]
    return {(record.body, record.trace_id) for record in records}


def test_an_agent_is_scraped_where_a_link_says_so(tmp_path: Path):
    """The Prometheus of the stack finds a run that sends nothing by a link to its prometheus.json."""
    shutil.copytree(CONFIG / "prometheus", tmp_path / "prometheus")
    link = tmp_path / "prometheus" / "agents" / "run.json"
    link.symlink_to(node_folder(run_folder(tmp_path / "state", "scraped")) / "prometheus.json")
    (port,) = free_ports(1)
    command = [
        *(program("prometheus"), f"--config.file={tmp_path}/prometheus/prometheus.yml"),
        *(f"--storage.tsdb.path={tmp_path}/tsdb", f"--web.listen-address=127.0.0.1:{port}"),
    ]
    with (
        Training(1000, 0.1, PERIFLOW_RUN_ID="scraped"),
        Program(command, tmp_path / "prometheus.log", [port]),
    ):
        asked = 'periflow_metric_loss{periflow_run_id="scraped",periflow_rank="0",job="periflow-agents"}'
        wait_until(lambda: is_there(f"http://127.0.0.1:{port}", asked), 60, "the run is scraped")


def is_there(url: str, promql: str) -> bool:
    """Tell whether a Prometheus, which may not be ready yet, has a series."""
    answer = requests.get(f"{url}/api/v1/query", {"query": promql}, timeout=10)
    return answer.ok and bool(answer.json()["data"]["result"])


def test_the_stack_says_where_to_look_and_ends_its_programs(tmp_path: Path):
    """One line has the addresses to open, one what a training needs; Ctrl-C leaves no program behind, and no errors."""
    with Stack(tmp_path / "stack") as stack:
        urls = (stack.endpoint, stack.prometheus.url, stack.jaeger.url, stack.alertmanager)
        ports = [int(url.rpartition(":")[2]) for url in urls]
        assert stack.said == [
            f"Open {urls[1]} (Prometheus), {urls[2]} (Jaeger) or {urls[3]} (Alertmanager)\n",
            f"Train with OTEL_EXPORTER_OTLP_ENDPOINT={stack.endpoint}\n",
        ]
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # children of a script's background job ignore it too
            stack.process.send_signal(signal.SIGINT)
            stack.process.wait(60)
    assert stack.process.returncode == 0
    assert not any(map(is_listening, ports))
    assert "level=ERROR" not in (tmp_path / "stack" / "prometheus.log").read_text()


def test_a_program_that_ends_is_named(tmp_path: Path):
    """With the last line of its log; what earlier ones wrote there stays."""
    (tmp_path / "otelcol").symlink_to("/bin/sh")  # which takes no --config
    for name in ("prometheus", "jaeger", "alertmanager"):
        (tmp_path / name).symlink_to(program(name))
    (tmp_path / "stack").mkdir()
    log = tmp_path / "stack" / "otelcol.log"
    log.write_text("earlier\n")
    ended = run_script(tmp_path / "stack", PERIFLOW_STACK="native", PERIFLOW_TEST_BIN=str(tmp_path), **own_ports())
    assert (ended.returncode, ended.stdout) == (1, "")
    earlier, *_, last = log.read_text().splitlines()
    assert earlier == "earlier"
    assert ended.stderr == f"otelcol has ended. {log} ends with\n{last}\n"


def run_script(folder: Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    """Run the script until it ends by itself, which it does only if something is wrong."""
    script = [sys.executable, ROOT / "scripts" / "stack", folder]
    environ = {**os.environ, **environ}
    return subprocess.run(script, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_a_port_that_is_taken_is_named(tmp_path: Path):
    """Nothing is started: the answers of another stack would be taken for those of this one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {**own_ports(), "STACK_PROMETHEUS_PORT": str(port)}
        ended = run_script(tmp_path / "stack", PERIFLOW_STACK="native", **ports)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(rf"Port {port} cannot be used \(.+\)\. .* set STACK_PROMETHEUS_PORT\n", ended.stderr)


def test_a_program_that_is_missing_is_named(tmp_path: Path):
    """Without the programs the stack says which one it lacks, and that Docker would do."""
    for name in ("prometheus", "jaeger", "alertmanager"):
        (tmp_path / name).symlink_to("/bin/true")
    ended = run_script(tmp_path, PATH=str(tmp_path), PERIFLOW_TEST_BIN="", PERIFLOW_STACK="native", **own_ports())
    assert ended.returncode == 1
    assert ended.stderr == (
        "otelcol-contrib or otelcol is not on PATH; docs/stack.md says what to install. With Docker: make stack\n"
    )


@pytest.mark.parametrize(("docker", "what"), [(None, "is not on PATH"), ("/bin/false", "has no compose plugin")])
def test_without_docker_or_its_plugin_the_other_way_is_named(tmp_path: Path, docker: str | None, what: str):
    """In one line."""
    if docker:
        (tmp_path / "docker").symlink_to(docker)
    ended = run_script(tmp_path, PATH=str(tmp_path))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"docker {what}. Without it: PERIFLOW_STACK=native make stack\n"


def own_ports() -> dict[str, str]:
    """Return what gives a stack ports that nobody uses."""
    return {f"STACK_{name}_PORT": str(port) for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True)}


def _stacks(trained: Trained) -> tuple[Stack, Stack]:
    return trained.online, trained.offline


def _finished(stack: Stack) -> bool:
    completed = stack.prometheus.query("periflow_step_completed_total")
    return [series.samples[-1][1] for series in completed] == [len(STEPS)] * 2


def _comparable(span: ReceivedSpan) -> ReceivedSpan:
    """Return a span without the order of its attributes, which Jaeger does not keep."""
    events = [(name, at, dict(sorted(attributes.items()))) for name, at, attributes in span.events]
    resource = dict(sorted(span.resource.items()))
    return span._replace(attributes=dict(sorted(span.attributes.items())), events=events, resource=resource)


def _series(stack: Stack, names: str) -> dict[str, list[tuple[float, float]]]:
    found: list[Series] = stack.prometheus.query(f'{{__name__=~"{names}"}}[10m]')
    return {repr(sorted(each.labels.items())): each.samples for each in sorted(found, key=repr)}


def test_the_compose_file_is_one():
    """It keeps to the specification; images have versions; nothing listens beyond this machine."""
    checked = subprocess.run(
        [
            sys.executable,
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            "vendor.compose-spec",
            ROOT / "docker-compose.yml",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    for service in services.values():
        assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+", service["image"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith("./collector-config") or (ROOT / source).exists()


def test_docker_accepts_the_compose_file():
    """Where the plugin is, it finds nothing wrong with the file."""
    compose = ["docker", "compose"]
    if not shutil.which("docker") or subprocess.run([*compose, "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    subprocess.run([*compose, "--file", COMPOSE, "config", "--quiet"], check=True, timeout=60)
