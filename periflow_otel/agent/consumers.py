"""Which consumers a run has: the table of exporters."""

import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from periflow_otel.agent.consumer import Consumer, Item, RecordTranslator, Translator
from periflow_otel.agent.skew import StepSkew
from periflow_otel.config import ExportSettings
from periflow_otel.errors import ConfigurationError
from periflow_otel.exporters import Exporter
from periflow_otel.journal.folders import DISCOVERY_FILE
from periflow_otel.records import Metric, RankRun, StepEnded
from periflow_otel.translate.points import PointTranslator
from periflow_otel.translate.steps import SpanTranslator

LOG_INTERVAL_S: Final = 0.25
"""How often the metric log grows: somebody may be watching it."""
NETWORK_INTERVAL_S: Final = 1.0
"""How often a request is sent: one costs about 2 ms of CPU, whatever its size."""
FILE_INTERVAL_S: Final = 5.0
"""How often the OTLP JSON files grow: each time by the state of all instruments, some 4 KiB per rank."""
LIVE_INTERVAL_S: Final = 1.0
"""How often the Prometheus endpoint and the console see the state of the instruments, new or not."""

Reports = Callable[[], Sequence[Item]]
_log = logging.getLogger("periflow_otel")


def durable_consumer(name: str, settings: ExportSettings, reports: Reports) -> Consumer | None:
    """Make a consumer that must have a record before the journal may forget it; None if it cannot be made now.

    Args:
        name: As in :meth:`ExportSettings.consumers`.
        settings: How to reach its destination.
        reports: Makes points on the agent itself.
    """
    stem, _, signal = name.rpartition(".")
    try:
        exporter = _exporter(name, settings)
    except ConfigurationError as error:
        _log.warning("%s: what it should deliver stays in the journal: %s", name, error)
        return None
    return Consumer(
        name,
        exporter,
        _translator(stem, signal, settings),
        interval_s={"": LOG_INTERVAL_S, "otlp_file": FILE_INTERVAL_S}.get(stem, NETWORK_INTERVAL_S),
        refresh_s=settings.metric_interval_s if signal == "metrics" else float("inf"),
        reports=reports if signal == "metrics" else tuple,
        is_per_rank=stem in ("", "otlp_file"),
    )


def live_consumers(
    settings: ExportSettings, folder: Path, reports: Reports, skew: StepSkew | None
) -> Iterator[Consumer]:
    """Make the consumers that show a run while it lasts, and feed ``skew`` where there are several ranks."""
    url = None
    if settings.serves_prometheus:
        from periflow_otel.exporters.prometheus import PrometheusExporter  # noqa: PLC0415  # only where it is used

        exporter = PrometheusExporter(settings.prometheus_host, settings.prometheus_port, folder / DISCOVERY_FILE)
        url = exporter.url
        yield Consumer(
            "prometheus",
            exporter,
            PointTranslator,
            interval_s=LIVE_INTERVAL_S,
            refresh_s=LIVE_INTERVAL_S,
            reports=reports,
            forget=exporter.forget,
        )
    if skew is not None:
        yield Consumer("skew", skew, partial(RecordTranslator, StepEnded), interval_s=LIVE_INTERVAL_S)
    if settings.shows_console:
        from periflow_otel.exporters.console import Console  # noqa: PLC0415  # only where it is used

        console = Console(first_line=f"metrics for Prometheus are at {url}" if url else "")
        yield Consumer("console", console, PointTranslator, interval_s=LIVE_INTERVAL_S, refresh_s=LIVE_INTERVAL_S)


def _translator(stem: str, signal: str, settings: ExportSettings) -> Callable[[RankRun, bytes], Translator]:
    if signal == "traces":
        return SpanTranslator
    if signal != "metrics":
        return partial(RecordTranslator, Metric)
    if stem == "otlp_file":
        return PointTranslator
    return partial(
        PointTranslator,
        is_delta=settings.temporality != "cumulative",
        is_exponential=settings.histogram != "explicit_bucket_histogram",
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
        otlp = settings.otlp_traces if is_traces else settings.otlp_metrics
        if otlp is None:
            message = "no OTLP endpoint is set; set OTEL_EXPORTER_OTLP_ENDPOINT"
            raise ConfigurationError(message)
        return _load("otlp", "OtlpExporter", otlp)
    return _load("sdk", "SdkSpanExporter" if is_traces else "SdkPointExporter", stem.removeprefix("sdk."))


def _load(module: str, name: str, *arguments: object) -> Exporter[Any]:
    exporter: Exporter[Any] = getattr(importlib.import_module(f"periflow_otel.exporters.{module}"), name)(*arguments)
    return exporter
