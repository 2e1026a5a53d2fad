"""Where a run goes: the table of exporters. To add one is to add a row."""

import importlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from periflow_otel.agent.consumer import Consumer
from periflow_otel.agent.dead_letters import DeadLetters
from periflow_otel.config.endpoints import Signal
from periflow_otel.config.export import ExportSettings
from periflow_otel.errors import ConfigurationError
from periflow_otel.exporters import Exporter
from periflow_otel.journal.folders import DISCOVERY_FILE
from periflow_otel.records import Metric
from periflow_otel.terminal import say
from periflow_otel.translate import MakeTranslator
from periflow_otel.translate.as_is import EveryRecord, RecordTranslator
from periflow_otel.translate.log_records import LogTranslator
from periflow_otel.translate.points import PointTranslator
from periflow_otel.translate.spans import SpanTranslator

LOG_INTERVAL_S: Final = 0.25
"""How often the metric log grows: somebody may be watching it."""
NETWORK_INTERVAL_S: Final = 1.0
"""How often a request is sent."""
FILE_INTERVAL_S: Final = 5.0
"""How often the OTLP JSON files grow: each time by the state of all instruments, some 4 KiB per rank."""
LIVE_INTERVAL_S: Final = 1.0
"""How often the Prometheus endpoint and the console see the state of the instruments, new or not."""

_log = logging.getLogger("periflow_otel")


class Destination(NamedTuple):
    """How a consumer is made."""

    exporter: Callable[[ExportSettings, str], Exporter[Any]]
    """Makes the exporter from the settings, and the name that the user gave to it."""
    translator: Callable[[ExportSettings, Any], MakeTranslator]
    """Chooses from the settings and the exporter what it is given: records, spans, points or log records."""
    interval_s: float
    is_per_rank: bool = False
    """Ranks have destinations of their own, and one that fails does not hold up the others."""
    adds_up: Callable[[ExportSettings, Any], bool] = lambda *_: False
    """Tells whether of sums that are read it wants what has come since the last time, from the settings and the
    exporter."""


def durable_consumer(name: str, settings: ExportSettings, folder: Path) -> Consumer | None:
    """Make a consumer that must have a record before the journal may forget it; None if it cannot be made now.

    Args:
        name: As in :meth:`ExportSettings.consumers`: a key of ``DESTINATIONS``, or ``sdk.NAME.SIGNAL``.
        settings: How to reach its destination.
        folder: Folder of the run: what is not taken is set aside there.
    """
    key, exporter_name = _row(name)
    destination = DESTINATIONS.get(key)
    if destination is None:
        _log.warning("%s: this version knows no such exporter; what it should deliver stays in the journal", name)
        return None
    try:
        exporter = destination.exporter(settings, exporter_name)
    except ConfigurationError as error:
        _log.warning("%s: what it should deliver stays in the journal: %s", name, error)
        return None
    return Consumer(
        name,
        exporter,
        destination.translator(settings, exporter),
        DeadLetters(folder, name).add,
        interval_s=destination.interval_s,
        refresh_s=settings.metric_interval_s if name.endswith(".metrics") else float("inf"),
        takes_reports=name.endswith(".metrics"),
        takes_news=name.endswith(".traces"),
        is_per_rank=destination.is_per_rank,
        adds_up=destination.adds_up(settings, exporter),
    )


def live_consumers(settings: ExportSettings, folder: Path) -> Iterator[Consumer]:
    """Make the consumers that show a run while it lasts."""
    said = ""
    if settings.serves_prometheus or settings.serves_page:
        from periflow_otel.web.site import Site  # noqa: PLC0415  # only where something is served

        site = Site(settings.prometheus_host, settings.prometheus_port, settings.allowed_hosts)
        if settings.serves_prometheus:
            exporter = load("prometheus.PrometheusExporter", site, folder / DISCOVERY_FILE)
            said = f"metrics for Prometheus are at {exporter.url}" if site.is_served else ""
            yield _live_consumer("prometheus", exporter, takes_reports=True)
        if settings.serves_page:
            page = load("live_page.LivePage", site, folder)
            yield Consumer("page", page, EveryRecord, interval_s=LIVE_INTERVAL_S, takes_reports=True, takes_news=True)
            if page.url:
                say(f"periflow_otel: watch this run at {page.url}")
    if settings.shows_console:
        yield _live_consumer("console", load("console.Console", first_line=said))


def load(name: str, *arguments: Any, **keywords: Any) -> Any:
    """Make an exporter; its module, and what that needs, is imported only now."""
    module, _, kind = name.rpartition(".")
    return getattr(importlib.import_module(f"periflow_otel.exporters.{module}"), kind)(*arguments, **keywords)


def _row(consumer: str) -> tuple[str, str]:
    """Return the key of a consumer's row, and the name that the user gave to its exporter."""
    stem, _, signal = consumer.rpartition(".")
    if stem.startswith("sdk."):
        return f"sdk.{signal}", stem.removeprefix("sdk.")
    return consumer, stem


def _live_consumer(name: str, exporter: Exporter[Any], *, takes_reports: bool = False) -> Consumer:
    return Consumer(
        name,
        exporter,
        PointTranslator,
        interval_s=LIVE_INTERVAL_S,
        refresh_s=LIVE_INTERVAL_S,
        takes_reports=takes_reports,
    )


def _otlp(signal: Signal, settings: ExportSettings, _: str) -> Exporter[Any]:
    if signal not in settings.otlp:
        message = "no OTLP endpoint is set; set OTEL_EXPORTER_OTLP_ENDPOINT"
        raise ConfigurationError(message)
    others = [otlp for other, otlp in settings.otlp.items() if other != signal]
    exporter: Exporter[Any] = load("otlp.OtlpExporter", settings.otlp[signal], others)
    return exporter


def _metric_calls(*_: object) -> MakeTranslator:
    return partial(RecordTranslator, Metric)


def _spans(settings: ExportSettings, _: object) -> MakeTranslator:
    return partial(SpanTranslator, has_events=settings.events != "log")


def _log_records(settings: ExportSettings, _: object) -> MakeTranslator:
    return partial(LogTranslator, has_events=settings.events != "span")


def _adds_up_as_set(settings: ExportSettings, _: object) -> bool:
    return settings.temporality == "delta"  # "lowmemory" remembers no reading


def _adds_up_as_preferred(_: ExportSettings, exporter: Any) -> bool:
    adds_up: bool = exporter.observes_deltas
    return adds_up


def _points_as_set(settings: ExportSettings, exporter: object, *, shows_steps: bool = False) -> MakeTranslator:
    return partial(
        PointTranslator,
        is_delta=settings.temporality != "cumulative",
        observes_deltas=_adds_up_as_set(settings, exporter),
        is_exponential=settings.histogram != "explicit_bucket_histogram",
        shows_steps=shows_steps,
    )


def _points_as_preferred(_: ExportSettings, exporter: Any) -> MakeTranslator:
    return partial(
        PointTranslator,
        is_delta=exporter.is_delta,
        observes_deltas=exporter.observes_deltas,
        is_exponential=exporter.is_exponential,
    )


DESTINATIONS: Final[dict[str, Destination]] = {
    "metric_log": Destination(lambda *_: load("metric_log.MetricLog"), _metric_calls, LOG_INTERVAL_S, is_per_rank=True),
    "otlp_file.traces": Destination(
        lambda *_: load("otlp_file.OtlpSpanFile"), _spans, FILE_INTERVAL_S, is_per_rank=True
    ),
    "otlp_file.metrics": Destination(
        lambda *_: load("otlp_file.OtlpPointFile"),
        partial(_points_as_set, shows_steps=True),
        FILE_INTERVAL_S,
        is_per_rank=True,
        adds_up=_adds_up_as_set,
    ),
    "otlp_file.logs": Destination(
        lambda *_: load("otlp_file.OtlpLogFile"), _log_records, FILE_INTERVAL_S, is_per_rank=True
    ),
    "otlp.traces": Destination(partial(_otlp, "traces"), _spans, NETWORK_INTERVAL_S),
    "otlp.metrics": Destination(partial(_otlp, "metrics"), _points_as_set, NETWORK_INTERVAL_S, adds_up=_adds_up_as_set),
    "otlp.logs": Destination(partial(_otlp, "logs"), _log_records, NETWORK_INTERVAL_S),
    "sdk.traces": Destination(lambda _, name: load("sdk.SdkSpanExporter", name), _spans, NETWORK_INTERVAL_S),
    "sdk.metrics": Destination(
        lambda _, name: load("sdk.SdkPointExporter", name),
        _points_as_preferred,
        NETWORK_INTERVAL_S,
        adds_up=_adds_up_as_preferred,
    ),
}
"""By the name of the consumer, which its cursors bear."""
