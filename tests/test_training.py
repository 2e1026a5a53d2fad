"""A real training script, written for ``periflow_sdk``, with nothing but its import changed."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import requests
from programs import Collector, Program, ReceivedPoint, ReceivedSpan, Rotel, free_ports, needs, program, wait_until
from training import Training, cloud

from periflow_otel import names
from periflow_otel.exporters.prometheus import family_name
from periflow_otel.journal.folders import node_folder, run_folder

pytestmark = needs("torch")

SCRIPT = Path(__file__).parent / "scripts" / "train_digits.py"
STEPS = list(range(1, 301))
CHECKPOINTS = list(range(50, 301, 50))
ORIGINAL = """
import contextlib, json
def init(total_train_steps, local_log_name=None):
    global log
    log = local_log_name
def metric(msg):
    with open(log, "a") as file:
        file.write(json.dumps(msg) + "\\n")
def train_step(): return contextlib.nullcontext()
def upload_checkpoint(): pass
def is_emergency_save(): return False
"""
"""What ``periflow_sdk`` does in local mode, as far as it can be seen from outside."""


def changed() -> str:
    """Return the script with its one line changed."""
    code = SCRIPT.read_text()
    assert code.count("import periflow_sdk as pf\n") == 1
    return code.replace("import periflow_sdk as pf\n", "import periflow_otel as pf\n")


@pytest.fixture(scope="module")
def original_log(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run the script unchanged, over what the original writes, and return its metric log."""
    folder = tmp_path_factory.mktemp("original")
    (folder / "periflow_sdk.py").write_text(ORIGINAL)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, SCRIPT], cwd=folder, env=environ, check=True, timeout=120)
    return (folder / "digits.log").read_text()


def is_same(one: object, other: object) -> bool:
    """Tell whether two values are equal, NaN to NaN."""
    return one == other or (
        isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    )


def check_spans(spans: list[ReceivedSpan], log: list[dict[str, Any]]) -> None:
    """Check that there is one span for each step, with the metrics of the log and the checkpoints where they belong."""
    by_step = {span.attributes["periflow.step.number"]: span for span in spans if span.name == "periflow.step"}
    assert sorted(span.attributes["periflow.step.number"] for span in spans if span.name == "periflow.step") == STEPS
    expected: dict[int, dict[str, Any]] = {}
    for line in log:
        expected.setdefault(line["iteration"], {}).update(line)
    for step, span in by_step.items():
        assert not span.is_error
        for key, value in expected[step].items():
            shown = "NaN" if is_same(value, math.nan) else value
            assert span.attributes[f"periflow.metric.{key}"] == shown
        events = [(name, attributes["periflow.step.number"]) for name, _, attributes in span.events]
        assert events == ([("periflow.checkpoint.upload", step)] if step in CHECKPOINTS else [])
    assert by_step[123].attributes["periflow.step.nonfinite_keys"] == ["train/grad norm"]
    assert [span.attributes["periflow.run.outcome"] for span in spans if span.name == "periflow.run"] == ["finished"]


def check_points(points: list[ReceivedPoint], log: list[dict[str, Any]]) -> None:
    """Check that every number that was given has a point, in order and with a time of its own, NaN too."""
    for key in ("iteration", "loss", "train/grad norm", "eval/accuracy"):
        values = [line[key] for line in log if key in line]
        found = [point for point in points if point.name == f"periflow.metric.{key}"]
        assert len(found) == len(values)
        assert all(map(is_same, [point.value for point in found], values))
        times = [point.time_unix_ns for point in found]
        assert times == sorted(set(times))


def test_local_mode_writes_what_the_original_writes(collector: Collector, original_log: str):
    """The metric log is the same, line for line; the files hold a span for each step and a point for each value."""
    with Training(code=changed()) as training:
        training.wait(120)
        training.wait_for_agent()
        assert (training.process.returncode, training.errors) == (0, "")
    assert Path("digits.log").read_text() == original_log
    log = [json.loads(line) for line in original_log.splitlines()]
    for signal in ("traces", "metrics"):
        for line in Path(f"digits.{signal}.jsonl").read_bytes().splitlines():
            url = f"{collector.http_endpoint}/v1/{signal}"
            requests.post(url, line, headers={"content-type": "application/json"}, timeout=10).raise_for_status()
    check_spans(collector.spans(), log)
    check_points(collector.points(), log)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_cloud_mode_delivers_everything_once(collector: Collector, original_log: str, protocol: str):
    """Every step, value and checkpoint is at the receiver, exactly once."""
    log = [json.loads(line) for line in original_log.splitlines()]
    endpoint = collector.grpc_endpoint if protocol == "grpc" else collector.http_endpoint
    with Training(code=changed(), **cloud(endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)) as training:
        training.wait(120)
        training.wait_for_agent()
        assert (training.process.returncode, training.errors) == (0, "")
    check_spans(collector.spans(), log)
    check_points(collector.points(), log)
    assert not Path("digits.log").exists()


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_another_receiver_understands_the_same(collector: Collector, tmp_path: Path, original_log: str, protocol: str):
    """What goes through a receiver of other people's making comes out whole."""
    log = [json.loads(line) for line in original_log.splitlines()]
    with Rotel(tmp_path / "rotel", collector.http_endpoint) as rotel:
        endpoint = rotel.grpc_endpoint if protocol == "grpc" else rotel.http_endpoint
        with Training(code=changed(), **cloud(endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)) as training:
            training.wait(120)
            training.wait_for_agent()
        wait_until(lambda: any(span.name == "periflow.run" for span in collector.spans()), 20)
    check_spans(collector.spans(), log)
    check_points(sorted(collector.points(), key=lambda point: point.time_unix_ns), log)


def test_exporters_of_other_people_deliver_the_same(collector: Collector):
    """The official exporter and the console one get what our own delivers: each span and value twice, and printed."""
    exporters = "otlp,otlp_proto_http,console"
    environ = {"OTEL_TRACES_EXPORTER": exporters, "OTEL_METRICS_EXPORTER": exporters}
    with Training(code=changed(), **cloud(collector.http_endpoint, **environ)) as training:
        training.wait(120)
        training.wait_for_agent()
        assert (training.process.returncode, training.errors) == (0, "")
    spans = Counter(map(repr, collector.spans()))
    assert set(spans.values()) == {2}
    assert len(spans) == 300 + 2
    points = Counter(  # without their times: to leave in order, one may be a millisecond later in one place
        (point.name, repr(point.value))
        for point in collector.points()
        if point.name.startswith("periflow.metric.") and point.name != names.METRIC_NONFINITE.name
    )
    assert not [count for count in points.values() if count % 2]
    assert points.total() == 2 * (3 * 300 + 4 * 2)
    printed = {line.split('"')[3] for line in training.output.splitlines() if '"span_id": "' in line}
    assert printed >= {f"0x{span.span_id:016x}" for span in collector.spans()}


def test_prometheus_sees_every_instrument(tmp_path: Path):
    """A real Prometheus finds the endpoint by itself and has a series of every instrument; promtool is content."""
    (port,) = free_ports(1)
    discovery = node_folder(run_folder(tmp_path / "state", "seen")) / "prometheus.json"
    (tmp_path / "prometheus.yml").write_text(f"""
scrape_configs:
- job_name: training
  scrape_interval: 200ms
  file_sd_configs: [{{files: ["{discovery}"], refresh_interval: 200ms}}]
""")
    command = [
        *(program("prometheus"), f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb"),
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    # One rank has nobody to differ from, a first attempt does nothing again, nothing is refused, configured or said of
    # the work, no rank is stuck or held up by collections, nobody looks at the machine, a run that is over has no
    # endpoint, and the steps of values are for files.
    unseen = (
        names.STEP_SKEW, names.STEP_REDONE, names.STEP_PAUSE, names.STUCK_TIME, names.TELEMETRY_SET_ASIDE,
        names.RUN_CONFIG, names.RUN_ENDED, names.METRICS_STEP, names.WORK_DONE, names.WORK_PEAK, *names.OF_MACHINE,
    )  # fmt: skip
    expected = {_series(each) for each in names.INSTRUMENTS if each not in unseen}
    expected |= {"periflow_metric_loss", "periflow_metric_train_grad_norm", "periflow_metric_eval_accuracy"}
    with (
        Training(0.06, code=changed(), PERIFLOW_RUN_ID="seen"),
        Program(command, tmp_path / "prometheus.log", [port]),
    ):
        wait_until(lambda: not expected - _names(port), 60, "every series is there")
        (target,) = json.loads(discovery.read_text())[0]["targets"]
        page = requests.get(f"http://{target}/metrics", timeout=10).content
    checked = subprocess.run([program("promtool"), "check", "metrics"], input=page, capture_output=True, check=True)
    assert checked.stderr == b""


def _series(instrument: names.Instrument) -> str:
    name, _ = family_name(instrument)
    return name + {"counter": "_total", "histogram": "_bucket", "gauge": ""}[instrument.kind]


def _names(port: int) -> set[str]:
    answer = requests.get(f"http://127.0.0.1:{port}/api/v1/label/__name__/values", timeout=10)
    return set(answer.json()["data"]) if answer.ok else set()  # it is not ready at once
