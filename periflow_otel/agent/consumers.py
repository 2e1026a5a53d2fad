"""Which consumers a run has: the table of exporters."""

import importlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from periflow_otel.agent.consumer import Consumer, Translator
from periflow_otel.config import ExportSettings
from periflow_otel.exporters import Exporter
from periflow_otel.journal.folders import DISCOVERY_FILE
from periflow_otel.records import Metric, Record, RunStarted
from periflow_otel.translate.points import PointTranslator
from periflow_otel.translate.steps import SpanTranslator

LOCAL_INTERVAL_S: Final = 0.25
"""How often files and the Prometheus endpoint are brought up to date."""
NETWORK_INTERVAL_S: Final = 1.0
"""How often a request is sent: one costs about 2 ms of CPU, whatever its size."""
LOCAL_REFRESH_S: Final = 1.0
"""How often the Prometheus endpoint and the console see the state of the instruments, new or not."""

Reports = Callable[[], Iterable[object]]


class MetricTranslator:
    """Passes the calls of ``pf.metric`` on as they are."""

    def __init__(self, run: RunStarted, state: bytes) -> None:
        """Begin; there is nothing to remember."""
        del run, state
        self._metrics: list[Metric] = []

    def feed(self, record: Record) -> None:
        """Keep a metric, and nothing else."""
        if isinstance(record, Metric):
            self._metrics.append(record)

    def step_began(self, step: int, started_unix_ns: int) -> None:
        """Do nothing: a metric is complete as it is."""

    def settle(self, now_unix_ns: int | None = None) -> None:
        """Do nothing: metrics do not add up."""

    def take(self) -> list[Metric]:
        """Return the metrics since the last call."""
        metrics, self._metrics = self._metrics, []
        return metrics

    def encode_state(self) -> bytes:
        """Return nothing."""
        return b""

    def dropped(self) -> dict[str, int]:
        """Return nothing."""
        return {}


def durable_consumers(settings: ExportSettings, reports: Reports) -> Iterator[Consumer]:
    """Make the consumers that must have a record before the journal may forget it."""
    delta = partial(
        PointTranslator,
        is_delta=settings.temporality != "cumulative",
        is_exponential=settings.histogram != "explicit_bucket_histogram",
    )
    for name in settings.consumers():
        stem, _, signal = name.rpartition(".")
        translator: Callable[[RunStarted, bytes], Translator] = MetricTranslator
        if signal == "traces":
            translator = SpanTranslator
        elif signal == "metrics":
            translator = PointTranslator if stem == "otlp_file" else delta
        yield Consumer(
            name,
            _exporter(name, settings),
            translator,
            interval_s=LOCAL_INTERVAL_S if stem in ("", "otlp_file") else NETWORK_INTERVAL_S,
            refresh_s=settings.metric_interval_s if signal == "metrics" else float("inf"),
            reports=reports if signal == "metrics" else tuple,
        )


def live_consumers(settings: ExportSettings, folder: Path, reports: Reports) -> Iterator[Consumer]:
    """Make the consumers that show a run while it lasts."""
    if settings.serves_prometheus:
        from periflow_otel.exporters.prometheus import PrometheusExporter  # noqa: PLC0415  # only where it is used

        exporter = PrometheusExporter(settings.prometheus_host, settings.prometheus_port, folder / DISCOVERY_FILE)
        yield Consumer(
            "prometheus",
            exporter,
            PointTranslator,
            interval_s=LOCAL_INTERVAL_S,
            refresh_s=LOCAL_REFRESH_S,
            reports=reports,
        )
    if settings.shows_console:
        from periflow_otel.exporters.console import Console  # noqa: PLC0415  # only where it is used

        yield Consumer(
            "console", Console(), PointTranslator, interval_s=LOCAL_INTERVAL_S, refresh_s=LOCAL_REFRESH_S
        )


def _exporter(name: str, settings: ExportSettings) -> Exporter[Any]:
    """Make the exporter of a durable consumer; its module, and what that needs, is imported only now."""
    stem, _, signal = name.rpartition(".")
    is_traces = signal == "traces"
    if name == "metric_log":
        return _load("metric_log", "MetricLog")
    if stem == "otlp_file":
        return _load("otlp_file", "OtlpSpanFile" if is_traces else "OtlpPointFile")
    if stem == "otlp":
        return _load("otlp", "OtlpExporter", settings.otlp_traces if is_traces else settings.otlp_metrics)
    return _load("sdk", "SdkSpanExporter" if is_traces else "SdkPointExporter", stem.removeprefix("sdk."))


def _load(module: str, name: str, *arguments: object) -> Exporter[Any]:
    return getattr(importlib.import_module(f"periflow_otel.exporters.{module}"), name)(*arguments)
