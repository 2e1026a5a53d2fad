"""Exporters made for OpenTelemetry get the same telemetry that ours deliver, and their faults lose nothing."""

import importlib
import json
import math
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from programs import Collector, wait_until
from recorder import make_run

from periflow_otel import names
from periflow_otel.agent.destinations import durable_consumer
from periflow_otel.agent.watch import find_journals
from periflow_otel.config.endpoints import OtlpSettings
from periflow_otel.config.export import ExportSettings
from periflow_otel.errors import ConfigurationError
from periflow_otel.exporters import Outcome, Verdict, taken
from periflow_otel.exporters.otlp import OtlpExporter
from periflow_otel.exporters.sdk import SdkPointExporter, SdkSpanExporter
from periflow_otel.journal.folders import journal_folder
from periflow_otel.journal.writer import JournalWriter
from periflow_otel.records import RankRun, StepEnded, encode
from periflow_otel.translate.telemetry import Event, Exemplar, ExponentialHistogram, Histogram, Link, Point, Span

NOW = 1_700_000_000_000_000_000


def run(rank: int = 0, run_id: str = "job") -> RankRun:
    """Return a rank of a run."""
    return make_run(
        run_id=run_id, rank=rank, local_rank=rank, world_size=8, mode="local", started_unix_ns=1,
        resource=(("host.cpus", 8), ("host.name", "bücher")),
    )  # fmt: skip


def spans() -> list[tuple[RankRun, Span]]:
    """Return spans of several ranks and runs that have everything that a span can have."""
    attributes = {"text": "é", "number": 1 << 40, "ratio": 0.5, "ok": True, "keys": ["a", "b"], "nan": math.nan}
    event = Event("periflow.checkpoint.upload", NOW + 1, {"step": 1})
    return [
        (
            run(),
            Span("periflow.step", 7 << 64, 1, None, NOW, NOW + 5, attributes, (event,), (Link(9, 9),), "ValueError"),
        ),
        (run(1), Span("periflow.step", 7 << 64, 2, 1, NOW, NOW + 6, {})),
        (run(0, "other"), Span("periflow.run", 8 << 64, 3, None, NOW, NOW + 7, {}, error="")),
    ]


def points() -> list[tuple[RankRun, Point]]:
    """Return points of every kind, with both temporalities, exemplars, and values that are no numbers."""
    labels = ((names.RANK, 0), ("periflow.key", "损失"))
    exemplars = (Exemplar(NOW, 0.3, 11, 12), Exemplar(NOW + 1, 700.0, 13, 14))
    explicit = Histogram(3, 1.5, 0.1, 1.0, (0.5, 1.0), (1, 1, 1))
    exponential = ExponentialHistogram(6, 2.5, 0.0, 1.0, 3, 1, -4, (2, 0, 3))
    loss, numbers = names.user_instrument("损失"), (0.5, 7, math.nan, math.inf, -math.inf, 1 << 62)
    found = [
        *(Point(loss, labels, NOW + i * 1_000_000, number) for i, number in enumerate(numbers)),
        Point(names.STEP_COMPLETED, labels, NOW, 3, NOW - 9),
        Point(names.TIME, labels, NOW, 1.5, NOW - 9, is_delta=True),
        Point(names.STEP_DURATION, labels, NOW, explicit, NOW - 9, exemplars),
        Point(names.STEP_DURATION, labels, NOW, explicit, NOW - 9, is_delta=True),
        Point(names.STEP_GAP, labels, NOW, exponential, NOW - 9, exemplars),
        Point(names.STEP_GAP, labels, NOW, exponential, NOW - 9, is_delta=True),
    ]
    return [*((run(), point) for point in found), (run(0, "other"), found[0])]


def halves(received: Iterable[object]) -> tuple[list[str], list[str]]:
    """Return the first and the second half of what a receiver got, as text: NaN is equal to itself then."""
    shown = list(map(repr, received))
    return shown[: len(shown) // 2], shown[len(shown) // 2 :]


def settings(collector: Collector, protocol: str, signal: str) -> OtlpSettings:
    """Return what our own exporter needs to reach a Collector."""
    if protocol == "grpc":
        return OtlpSettings(signal, collector.grpc_endpoint, protocol="grpc", insecure=True)  # type: ignore[arg-type]
    return OtlpSettings(signal, f"{collector.http_endpoint}/v1/{signal}")  # type: ignore[arg-type]


@pytest.fixture(params=["http", "grpc"])
def protocol(request: pytest.FixtureRequest, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the protocol for which the environment names the Collector."""
    endpoint = collector.grpc_endpoint if request.param == "grpc" else collector.http_endpoint
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    return str(request.param)


def test_official_exporter_delivers_the_same_spans(collector: Collector, protocol: str):
    """A real Collector gets spans equal in every field from the registered exporter and from ours."""
    with closing(SdkSpanExporter(f"otlp_proto_{protocol}")) as registered:
        assert registered.export(spans()) == taken(len(spans()))
    with closing(OtlpExporter(settings(collector, protocol, "traces"))) as ours:
        assert ours.export(spans()) == taken(len(spans()))
    theirs, expected = halves(collector.spans())
    assert (theirs, len(theirs)) == (expected, len(spans()))


def test_official_exporter_delivers_the_same_points(collector: Collector, protocol: str):
    """A real Collector gets points equal in every field, exemplars and NaN included."""
    with closing(SdkPointExporter(f"otlp_proto_{protocol}")) as registered:
        assert registered.export(points()) == taken(len(points()))
    with closing(OtlpExporter(settings(collector, protocol, "metrics"))) as ours:
        assert ours.export(points()) == taken(len(points()))
    theirs, expected = halves(collector.points())
    assert (theirs, len(theirs)) == (expected, len(points()))
    assert "exemplars" in str(theirs)


def stdout_of(script: str) -> list[Any]:
    """Return the JSON documents that a script which can use the functions above prints."""
    program = f"import test_sdk_exporter as test\nfrom periflow_otel.exporters.sdk import *\n{script}"
    environ = {"PYTHONPATH": ":".join(filter(None, sys.path)), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", program]
    text = subprocess.run(command, capture_output=True, check=True, env=environ, timeout=60).stdout.decode()
    documents = []
    while text := text.strip():
        document, end = json.JSONDecoder().raw_decode(text)
        documents.append(document)
        text = text[end:]
    return documents


def test_console_prints_spans():
    """The exporter called ``console`` writes each span to stdout as JSON."""
    printed = stdout_of("SdkSpanExporter('console').export(test.spans())")
    assert [each["name"] for each in printed] == [span.name for _, span in spans()]
    assert printed[0]["context"]["trace_id"] == f"0x{7 << 64:032x}"
    assert printed[0]["status"] == {"status_code": "ERROR"}
    assert printed[1]["parent_id"] == f"0x{1:016x}"
    assert printed[2]["resource"]["attributes"]["periflow.run.id"] == "other"


def test_console_prints_points():
    """The exporter called ``console`` writes all metrics to stdout as JSON."""
    (printed,) = stdout_of("SdkPointExporter('console').export(test.points())")
    metrics = [
        metric
        for resource_metrics in printed["resource_metrics"]
        for scope_metrics in resource_metrics["scope_metrics"]
        for metric in scope_metrics["metrics"]
    ]
    assert sum(len(metric["data"]["data_points"]) for metric in metrics) == len(points())
    assert {metric["name"] for metric in metrics} == {point.instrument.name for _, point in points()}
    assert repr(metrics[0]["data"]["data_points"][2]["value"]) == "nan"


ACME = """
from opentelemetry.sdk.metrics import Counter, Histogram, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, MetricExporter, MetricExportResult
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

mood = "content"
taken = []

class Moody:
    def take(self, data, results):
        if mood == "angry":
            raise RuntimeError("token=secret")
        if mood == "content":
            taken.append(data)
        return results.SUCCESS if mood == "content" else results.FAILURE

    def shutdown(self, *args, **kwargs):
        raise RuntimeError("never content")

class MoodySpans(Moody, SpanExporter):
    def export(self, spans):
        return self.take([span.name for span in spans], SpanExportResult)

class MoodyPoints(Moody, MetricExporter):
    def export(self, metrics_data, timeout_millis=10_000, **kwargs):
        scopes = [scope for resource in metrics_data.resource_metrics for scope in resource.scope_metrics]
        return self.take([metric.name for scope in scopes for metric in scope.metrics], MetricExportResult)

    def force_flush(self, timeout_millis=10_000):
        return True

class Deltas(MetricExporter):
    def __init__(self):
        aggregation = ExponentialBucketHistogramAggregation()
        kinds = (Counter, Histogram, ObservableCounter)
        super().__init__(dict.fromkeys(kinds, AggregationTemporality.DELTA), {Histogram: aggregation})

    def export(self, metrics_data, timeout_millis=10_000, **kwargs):
        resources = metrics_data.resource_metrics
        taken.extend(metric for each in resources for scope in each.scope_metrics for metric in scope.metrics)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis=10_000):
        return True

    def shutdown(self, timeout_millis=10_000, **kwargs):
        pass

class HalfDeltas(Deltas):
    def __init__(self):
        MetricExporter.__init__(self, {Counter: AggregationTemporality.DELTA})

class Silent(Deltas):
    def __init__(self):
        pass

class Unready(MoodySpans):
    def __init__(self):
        raise RuntimeError("token=secret")

class Other:
    pass
"""


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a package that registers exporters, some of which work when they are in the mood; return its module."""
    (tmp_path / "acme_telemetry.py").write_text(ACME)
    metadata = tmp_path / "acme_telemetry-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-telemetry\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        textwrap.dedent(
            """
            [opentelemetry_traces_exporter]
            acme = acme_telemetry:MoodySpans
            unready = acme_telemetry:Unready
            gone = acme_telemetry:Gone
            other = acme_telemetry:Other

            [opentelemetry_metrics_exporter]
            acme = acme_telemetry:MoodyPoints
            deltas = acme_telemetry:Deltas
            half = acme_telemetry:HalfDeltas
            silent = acme_telemetry:Silent
            other = acme_telemetry:Other
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_telemetry", raising=False)
    return importlib.import_module("acme_telemetry")


Make = Callable[[str], Any]
SIGNALS = pytest.mark.parametrize(("make", "items"), [(SdkSpanExporter, spans()), (SdkPointExporter, points())])


@SIGNALS
@pytest.mark.parametrize(
    ("mood", "message"),
    [("sad", "exporter acme reports failure"), ("angry", "exporter acme raised RuntimeError")],
)
def test_failure_loses_nothing(acme: Any, make: Make, items: list[Any], mood: str, message: str):
    """What an exporter refused or choked on is kept, told without what may be secret, and delivered when it can be."""
    exporter = make("acme")
    acme.mood = mood
    assert exporter.export(items) == Outcome(Verdict.FAILED, message)
    acme.mood = "content"
    assert exporter.export(items) == taken(len(items))
    (given,) = acme.taken
    assert set(given) == {getattr(item, "instrument", item).name for _, item in items}


@SIGNALS
def test_exporter_that_cannot_be_shut_down_is_left(acme: Any, make: Make, items: list[Any]):
    """An error at the very end concerns nobody."""
    del acme, items
    make("acme").close()


@pytest.mark.parametrize(("make", "variable"), [(SdkSpanExporter, "TRACES"), (SdkPointExporter, "METRICS")])
def test_unknown_name_is_a_mistake_that_is_explained(make: Make, variable: str):
    """A name that is not registered is told with those that are."""
    with pytest.raises(ConfigurationError) as caught:
        make("zipkni")
    assert str(caught.value) == (
        f"OTEL_{variable}_EXPORTER names 'zipkni', which is not installed; "
        "choose from console, none, otlp, otlp_proto_grpc, otlp_proto_http, or install its package"
    )


@pytest.mark.parametrize(
    ("make", "variable", "interface"),
    [(SdkSpanExporter, "TRACES", "SpanExporter"), (SdkPointExporter, "METRICS", "MetricExporter")],
)
def test_name_of_something_else_is_a_mistake_that_is_explained(acme: Any, make: Make, variable: str, interface: str):
    """What is registered and is no exporter is refused, with the names of those that may be."""
    del acme
    with pytest.raises(ConfigurationError) as caught:
        make("other")
    assert str(caught.value).startswith(
        f"OTEL_{variable}_EXPORTER names 'other', which is a Other and no {interface}; choose from acme, console, "
    )


@pytest.mark.parametrize(("name", "error"), [("unready", "RuntimeError"), ("gone", "AttributeError")])
def test_exporter_that_cannot_start_is_named(acme: Any, name: str, error: str):
    """The kind of error is told, and what may be secret in it is not."""
    del acme
    with pytest.raises(ConfigurationError) as caught:
        SdkSpanExporter(name)
    assert str(caught.value) == (
        f"the exporter {name!r} of OTEL_TRACES_EXPORTER cannot start ({error}); see its documentation"
    )


def test_exporter_is_given_the_temporality_and_the_histograms_that_it_prefers(acme: Any, tmp_path: Path):
    """A back end of deltas would add cumulative sums up again: what it gets in several rounds adds up to the truth."""
    (folder := journal_folder(tmp_path, 1, 0)).mkdir()
    writer = JournalWriter(folder, make_run())
    exports = ExportSettings.from_environ({"OTEL_METRICS_EXPORTER": "deltas"})
    consumer = durable_consumer("sdk.deltas.metrics", exports, tmp_path)
    assert consumer is not None
    consumer.follow(find_journals(tmp_path, {}).values())
    consumer.start()
    for step in range(1, 6):
        writer.append(encode(StepEnded(step, NOW + step * 1_000_000_000, 5_000_000)))
        consumer.hurry()
        wait_until(lambda step=step: completed(acme.taken) == step, 20, "the step is counted")
    consumer.stop(10)
    sums = [
        metric.data for metric in acme.taken if metric.name in {"periflow.step.completed", "periflow.step.duration"}
    ]
    assert {data.aggregation_temporality.name for data in sums} == {"DELTA"}
    assert {type(data).__name__ for data in sums} == {"Sum", "ExponentialHistogram"}


def completed(metrics: Iterable[Any]) -> int:
    """Return how many steps a back end of deltas counts."""
    steps = (metric.data for metric in list(metrics) if metric.name == "periflow.step.completed")
    return int(sum(point.value for data in steps for point in data.data_points))


@pytest.mark.usefixtures("acme")
def test_exporter_of_mixed_wishes_is_warned_of(caplog: pytest.LogCaptureFixture):
    """Sums and histograms share one temporality here."""
    half = SdkPointExporter("half")
    assert (half.is_delta, half.observes_deltas) == (True, False)
    assert caplog.messages == ["half wants deltas of counters or of histograms, not of both: both follow the counters"]


@pytest.mark.usefixtures("acme")
def test_exporter_without_wishes_is_given_totals():
    """The default of the standard, also for an exporter that forgot to say."""
    for exporter in map(SdkPointExporter, ("acme", "silent")):
        assert (exporter.is_delta, exporter.observes_deltas, exporter.is_exponential) == (False, False, False)
