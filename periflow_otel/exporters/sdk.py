"""Any exporter of the OpenTelemetry ecosystem: what ``OTEL_TRACES_EXPORTER`` or ``OTEL_METRICS_EXPORTER`` names.

Spans and points become the SDK's objects, and go through the SDK's exporter interfaces.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any, Final, TypeVar

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk import resources
from opentelemetry.sdk.metrics import Counter, ObservableCounter
from opentelemetry.sdk.metrics import Exemplar as SdkExemplar
from opentelemetry.sdk.metrics import Histogram as Histograms
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Buckets,
    DataPointT,
    ExponentialHistogramDataPoint,
    Gauge,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import ExponentialHistogram as SdkExponentialHistogram
from opentelemetry.sdk.metrics.export import Histogram as SdkHistogram
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags, TraceState

from periflow_otel.errors import ConfigurationError
from periflow_otel.exporters import Outcome, Verdict, taken
from periflow_otel.names import SCHEMA_URL, SCOPE, VERSION
from periflow_otel.records import RankRun
from periflow_otel.translate import telemetry
from periflow_otel.translate.groups import by_metric, by_resource
from periflow_otel.translate.resource import resource_of
from periflow_otel.translate.telemetry import (
    AttributeValue,
    Exemplar,
    ExponentialHistogram,
    Histogram,
    Point,
    Resource,
    Span,
)
from periflow_otel.translate.values import number, text

_log = logging.getLogger("periflow_otel")


class SdkSpanExporter:
    """A registered span exporter."""

    def __init__(self, name: str) -> None:
        """Load the exporter, which reads its own settings from the environment.

        Args:
            name: Name of its entry point in ``opentelemetry_traces_exporter``.

        Raises:
            ConfigurationError: There is no such exporter, or it cannot be made.
        """
        self._name = name
        self._exporter = _load("traces", name, SpanExporter)

    def export(self, items: Sequence[tuple[RankRun, Span]]) -> Outcome:
        """Deliver spans: all of them, or none if the exporter reports failure or raises."""
        spans = sdk_spans(items)
        return _outcome(self._name, len(items), lambda: self._exporter.export(spans) is SpanExportResult.SUCCESS)

    def close(self) -> None:
        """Shut the exporter down."""
        _shutdown(self._exporter)


class SdkPointExporter:
    """A registered metric exporter. Points go to it as they are; it says which it wants."""

    def __init__(self, name: str) -> None:
        """Load the exporter, which reads its own settings from the environment.

        Args:
            name: Name of its entry point in ``opentelemetry_metrics_exporter``.

        Raises:
            ConfigurationError: There is no such exporter, or it cannot be made.
        """
        self._name = name
        self._exporter = _load("metrics", name, MetricExporter)  # type: ignore[type-abstract]  # only for isinstance
        temporality = getattr(self._exporter, "_preferred_temporality", None) or {}  # as the SDK's own readers ask
        aggregation = getattr(self._exporter, "_preferred_aggregation", None) or {}
        counters, histograms, observed = (
            temporality.get(kind) is AggregationTemporality.DELTA for kind in (Counter, Histograms, ObservableCounter)
        )
        self.is_delta = counters
        """It wants what has been counted since the last time, not since the run began."""
        self.observes_deltas = observed
        """It wants the same of sums that are not counted but read."""
        self.is_exponential = isinstance(aggregation.get(Histograms), ExponentialBucketHistogramAggregation)
        """It wants histograms with exponential buckets."""
        if counters != histograms:
            _log.warning("%s wants deltas of counters or of histograms, not of both: both follow the counters", name)

    def export(self, items: Sequence[tuple[RankRun, Point]]) -> Outcome:
        """Deliver points: all of them, or none if the exporter reports failure or raises."""
        data = sdk_metrics(items)
        return _outcome(self._name, len(items), lambda: self._exporter.export(data) is MetricExportResult.SUCCESS)

    def close(self) -> None:
        """Shut the exporter down."""
        _shutdown(self._exporter)


_Interface = TypeVar("_Interface", bound=SpanExporter | MetricExporter)


def _load(signal: str, name: str, interface: type[_Interface]) -> _Interface:
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    registered = entry_points(group=f"opentelemetry_{signal}_exporter")
    known = ", ".join(sorted({"none", "otlp", *registered.names} - {name}))
    found = next(iter(registered.select(name=name)), None)
    if found is None:
        message = f"{variable} names {name!r}, which is not installed; choose from {known}, or install its package"
        raise ConfigurationError(message)
    try:
        exporter = found.load()()
    except Exception as error:
        message = f"the exporter {name!r} of {variable} cannot start ({type(error).__name__}); see its documentation"
        raise ConfigurationError(message) from error
    if not isinstance(exporter, interface):
        kind = type(exporter).__name__
        message = f"{variable} names {name!r}, which is a {kind} and no {interface.__name__}; choose from {known}"
        raise ConfigurationError(message)
    return exporter


def _outcome(name: str, count: int, export: Callable[[], bool]) -> Outcome:
    try:
        is_success = export()
    except Exception as error:  # noqa: BLE001 - other people's code may raise anything
        return Outcome(Verdict.FAILED, f"exporter {name} raised {type(error).__name__}")
    return taken(count) if is_success else Outcome(Verdict.FAILED, f"exporter {name} reports failure")


def _shutdown(exporter: SpanExporter | MetricExporter) -> None:
    with suppress(Exception):  # there is nothing left to lose
        exporter.shutdown()


def sdk_spans(items: Iterable[tuple[RankRun, Span]]) -> list[ReadableSpan]:
    """Return spans as the SDK's, in the order given."""
    return [_span(span, _resource(resource_of(run))) for run, span in items]


def sdk_metrics(items: Iterable[tuple[RankRun, Point]]) -> MetricsData:
    """Return points as the SDK's data: one metric per instrument and resource, its points in the order given."""
    return MetricsData([_resource_metrics(resource, points) for resource, points in by_resource(items).items()])


def _span(span: Span, resource: resources.Resource) -> ReadableSpan:
    return ReadableSpan(
        name=text(span.name),
        context=_context(span, span.span_id),
        parent=None if span.parent_span_id is None else _context(span, span.parent_span_id, span.is_parent_remote),
        resource=resource,
        attributes=_span_attributes(span),
        events=[_event(event) for event in span.events],
        links=[Link(_link_context(link)) for link in span.links],
        status=Status() if span.error is None else Status(StatusCode.ERROR),
        start_time=span.start_unix_ns,
        end_time=span.end_unix_ns,
        instrumentation_scope=_SCOPE,
    )


def _event(event: telemetry.Event) -> Event:
    return Event(text(event.name), _attributes(event.attributes.items()), event.time_unix_ns)


def _context(span: Span, span_id: int, is_remote: bool = False) -> SpanContext:  # noqa: FBT001, FBT002  # private
    state = TraceState.from_header([span.trace_state]) if span.trace_state else None
    return SpanContext(span.trace_id, span_id, is_remote, _SAMPLED, state)


def _link_context(link: telemetry.Link) -> SpanContext:
    return SpanContext(link.trace_id, link.span_id, is_remote=False, trace_flags=_SAMPLED)


def _span_attributes(span: Span) -> BoundedAttributes:
    attributes = BoundedAttributes(attributes=_attributes(span.attributes.items()))
    attributes.dropped = span.dropped_attributes
    return attributes


@lru_cache(maxsize=64)
def _resource(resource: Resource) -> resources.Resource:
    return resources.Resource(_attributes(resource.attributes), SCHEMA_URL)


def _attributes(attributes: Iterable[tuple[str, AttributeValue]]) -> dict[str, Any]:
    return {text(key): _attribute(value) for key, value in attributes}


def _attribute(value: AttributeValue) -> AttributeValue:
    """Return an attribute's value with the text and the numbers in it as OTLP can hold them."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return number(value)
    return [text(each) for each in value]


def _resource_metrics(resource: Resource, points: list[Point]) -> ResourceMetrics:
    scope_metrics = ScopeMetrics(_SCOPE, [_metric(metric) for metric in by_metric(points)], SCHEMA_URL)
    return ResourceMetrics(_resource(resource), [scope_metrics], SCHEMA_URL)


def _metric(points: Sequence[Point]) -> Metric:
    instrument = points[0].instrument
    return Metric(text(instrument.name), text(instrument.meaning), instrument.unit, _data(points))


def _data(points: Sequence[Point]) -> Gauge | Sum | SdkHistogram | SdkExponentialHistogram:
    first = points[0]
    data_points: list[Any] = [_data_point(point) for point in points]
    temporality = AggregationTemporality.DELTA if first.is_delta else AggregationTemporality.CUMULATIVE
    if first.instrument.kind == "gauge":
        return Gauge(data_points)
    if first.instrument.kind in ("counter", "updowncounter"):
        return Sum(data_points, temporality, is_monotonic=first.instrument.kind == "counter")
    if isinstance(first.value, ExponentialHistogram):
        return SdkExponentialHistogram(data_points, temporality)
    return SdkHistogram(data_points, temporality)


def _data_point(point: Point) -> DataPointT:
    return _make_data_point(
        point.value,
        attributes=_attributes(point.attributes),
        start_time_unix_nano=point.start_unix_ns,
        time_unix_nano=point.time_unix_ns,
        exemplars=[_exemplar(exemplar) for exemplar in point.exemplars],
    )


def _make_data_point(value: float | Histogram | ExponentialHistogram, **fields: Any) -> DataPointT:
    if isinstance(value, Histogram):
        return HistogramDataPoint(
            **fields, **_totals(value), bucket_counts=value.bucket_counts, explicit_bounds=value.bounds
        )
    if isinstance(value, ExponentialHistogram):
        return ExponentialHistogramDataPoint(
            **fields,
            **_totals(value),
            scale=value.scale,
            zero_count=value.zero_count,
            positive=Buckets(value.offset, value.bucket_counts),
            negative=Buckets(0, ()),
            flags=0,
        )
    return NumberDataPoint(**fields, value=number(value))


def _totals(value: Histogram | ExponentialHistogram) -> dict[str, Any]:
    return {"count": value.count, "sum": value.sum, "min": value.min, "max": value.max}


def _exemplar(exemplar: Exemplar) -> SdkExemplar:
    return SdkExemplar({}, number(exemplar.value), exemplar.time_unix_ns, exemplar.span_id, exemplar.trace_id)


_SCOPE: Final = InstrumentationScope(SCOPE, VERSION, SCHEMA_URL)
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
