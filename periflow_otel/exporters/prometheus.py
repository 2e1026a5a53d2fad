"""Serves the latest points to Prometheus, under the names that the same points have when they come over OTLP.

So one dashboard fits both ways. An instrument's name is taken apart at everything that is neither letter nor digit
and joined with ``_``; the unit follows, and ``_total`` for a counter. Attributes become labels in the same way:
``periflow.rank`` is ``periflow_rank``.
"""

import json
import logging
import re
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import accumulate, groupby
from math import log2
from pathlib import Path
from typing import Final

from prometheus_client.core import Exemplar as PrometheusExemplar
from prometheus_client.core import GaugeMetricFamily, Metric, Sample
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from periflow_otel import names
from periflow_otel.exporters import Outcome, taken
from periflow_otel.journal.files import replace_file
from periflow_otel.names import Instrument
from periflow_otel.records import RankRun
from periflow_otel.translate.resource import resource_of
from periflow_otel.translate.telemetry import (
    AttributeValue,
    Exemplar,
    ExponentialHistogram,
    Histogram,
    Point,
    Resource,
)
from periflow_otel.translate.values import text
from periflow_otel.web.http import Request, Response
from periflow_otel.web.site import Site

PATH: Final = "/metrics"

_UNITS: Final = {"s": "seconds", "By": "bytes", "W": "watts", "J": "joules", "Cel": "celsius", "{flop}/s": "per_second"}
"""Units that become part of a name; those in braces and none do not, and 1 only of a gauge, which is a ratio."""

_LOG2_BOUNDS: Final = tuple(map(log2, names.SECONDS_BOUNDS))

_log = logging.getLogger("periflow_otel")

_Series = tuple[str, tuple[tuple[str, str | int], ...]]


class PrometheusExporter:
    """Shows the latest point of every series to whoever scrapes it, over HTTP at ``/metrics``.

    If the site is not served, points are taken and not shown. ``discovery_file`` tells Prometheus
    (``file_sd_configs``) where to scrape, as long as this lives.
    """

    def __init__(self, site: Site, discovery_file: Path) -> None:
        """Begin to show.

        Args:
            site: Where the page is; closed in the end.
            discovery_file: Written when the first point arrives, for the owner alone (0600), removed by ``close``.
        """
        self._latest = LatestPoints()
        self._discovery_file = discovery_file
        self._announced_run_id: str | None = None
        self._site = site
        site.add(PATH, self._page, is_public=True)
        site.add("/", lambda _: Response(f"Metrics for Prometheus are at {PATH}\n".encode()))

    @property
    def url(self) -> str | None:
        """Where the page is; None if it is not served."""
        return self._site.url(PATH)

    def export(self, items: Sequence[tuple[RankRun, Point]]) -> Outcome:
        """Remember the points for the next scrape. Cumulative ones only: of a delta, the latest says nothing."""
        self._latest.update(items)
        if items and self._site.is_served and items[-1][0].run_id != self._announced_run_id:
            self._announced_run_id = items[-1][0].run_id
            self._announce(self._announced_run_id)
        return taken(len(items))

    def forget(self, run: RankRun) -> None:
        """Show a rank no more: its run is over."""
        self._latest.forget(run)

    def close(self) -> None:
        """Stop serving and remove the discovery file."""
        if self._site.is_served:
            self._site.close()
            with suppress(OSError):
                self._discovery_file.unlink()

    def _page(self, request: Request) -> Response:
        try:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
        except TypeError:  # a version that is no number
            encode, content_type = choose_encoder("")
        return Response(encode(self._latest), content_type)

    def _announce(self, run_id: str) -> None:
        groups = [{"targets": [self._site.address], "labels": {_label_name(names.RUN_ID): run_id}}]
        try:
            replace_file(self._discovery_file, json.dumps(groups).encode() + b"\n")
        except OSError as error:
            why = self._discovery_file, error.strerror or error
            _log.warning("%s, which tells Prometheus where to look, cannot be written: %s", *why)


class LatestPoints(Collector):
    """The latest point of every series, as Prometheus wants to see it. Safe to collect while it is updated."""

    def __init__(self) -> None:
        """Begin with no points."""
        self._lock = threading.Lock()
        self._points: dict[RankRun, dict[_Series, Point]] = {}

    def update(self, items: Iterable[tuple[RankRun, Point]]) -> None:
        """Replace the points of the same series."""
        with self._lock:
            for run, group in groupby(items, lambda item: item[0]):
                points = self._points.setdefault(run, {})
                points.update(((point.instrument.name, point.attributes), point) for _, point in group)

    def forget(self, run: RankRun) -> None:
        """Drop all points of a rank."""
        with self._lock:
            self._points.pop(run, None)

    def collect(self) -> Iterator[Metric]:
        """Yield one family per Prometheus name."""
        runs, points = self._snapshot()
        families: dict[tuple[str, str], Metric] = {}
        for point in points:
            name, unit = family_name(point.instrument)
            kind = "gauge" if point.instrument.kind == "updowncounter" else point.instrument.kind
            if (name, kind) not in families:
                families[name, kind] = Metric(name, point.instrument.meaning, kind, unit)
            families[name, kind].samples.extend(_samples(name, point))
        yield from families.values()
        yield _target_info(resource_of(run) for run in runs if not run.is_of_agent())

    def _snapshot(self) -> tuple[list[RankRun], list[Point]]:
        """Return the runs and their points; where two attempts have the same series, only the later one's."""
        latest: dict[_Series, Point] = {}
        with self._lock:
            runs = sorted(self._points, key=lambda run: run.started_unix_ns)
            for run in runs:
                latest.update(self._points[run])
        return runs, list(latest.values())


@lru_cache(maxsize=4096)
def family_name(instrument: Instrument) -> tuple[str, str]:
    """Return the name of an instrument in Prometheus, without ``_total``, and its unit there."""
    words = re.findall(r"[a-zA-Z0-9:]+", instrument.name)
    unit = "ratio" if (instrument.unit, instrument.kind) == ("1", "gauge") else _UNITS.get(instrument.unit, "")
    if unit and unit not in words:
        words.append(unit)
    return "_".join(words), unit


def _samples(name: str, point: Point) -> Iterator[Sample]:
    labels = _labels(point.attributes)
    value = point.value
    if isinstance(value, Histogram):
        yield from _histogram_samples(name, labels, value, point.exemplars)
    elif isinstance(value, ExponentialHistogram):
        yield from _histogram_samples(name, labels, _with_bounds(value), point.exemplars)
    else:
        yield Sample(f"{name}_total" if point.instrument.kind == "counter" else name, labels, value)


def _histogram_samples(
    name: str, labels: dict[str, str], histogram: Histogram, exemplars: Iterable[Exemplar]
) -> Iterator[Sample]:
    # Later exemplars replace earlier ones of the same bucket: the format has room for one.
    by_bucket = {bisect_left(histogram.bounds, each.value): _exemplar(each) for each in exemplars}
    bounds = (*map(floatToGoString, histogram.bounds), "+Inf")
    for bucket, (bound, count) in enumerate(zip(bounds, accumulate(histogram.bucket_counts), strict=True)):
        yield Sample(f"{name}_bucket", {**labels, "le": bound}, count, None, by_bucket.get(bucket))
    yield Sample(f"{name}_sum", labels, histogram.sum)
    yield Sample(f"{name}_count", labels, histogram.count)


def _with_bounds(histogram: ExponentialHistogram) -> Histogram:
    """Sort an exponential histogram, for which the text format has no word, into the bounds of all others.

    A bucket across a bound counts as above it: it is the bounds, not the finest counts, that must stay the same.
    """
    counts = [histogram.zero_count, *(0 for _ in _LOG2_BOUNDS)]
    width = 2.0**-histogram.scale
    for index, count in enumerate(histogram.bucket_counts, histogram.offset):
        counts[bisect_left(_LOG2_BOUNDS, (index + 1) * width)] += count
    bounds = names.SECONDS_BOUNDS
    return Histogram(histogram.count, histogram.sum, histogram.min, histogram.max, bounds, tuple(counts))


def _exemplar(exemplar: Exemplar) -> PrometheusExemplar:
    ids = {"trace_id": f"{exemplar.trace_id:032x}", "span_id": f"{exemplar.span_id:016x}"}
    return PrometheusExemplar(ids, exemplar.value, exemplar.time_unix_ns / 1e9)


def _target_info(resources: Iterable[Resource]) -> Metric:
    """Describe what is seen here, in one series as it is one target: by what all that is shown has in common."""
    family = GaugeMetricFamily("target_info", "Resource attributes of the run.")
    every = [dict.fromkeys(resource.attributes) for resource in resources]
    if every:
        common = (each for each in every[0] if all(each in other for other in every))
        family.samples.append(Sample("target_info", _labels(common), 1))
    return family


def _labels(attributes: Iterable[tuple[str, AttributeValue]]) -> dict[str, str]:
    """Return attributes as labels; of several that get one name the values are joined, as the standard says."""
    labels: dict[str, str] = {}
    for key, value in attributes:
        name = _label_name(key)
        labels[name] = f"{labels[name]};{_label_value(value)}" if name in labels else _label_value(value)
    return labels


@lru_cache(maxsize=4096)
def _label_name(key: str) -> str:
    name = re.sub(r"[^a-zA-Z0-9]+", "_", key)
    return name if name[:1].isalpha() else f"key{name}" if name[:1] == "_" else f"key_{name}"


def _label_value(value: AttributeValue) -> str:
    return text(value if isinstance(value, str) else json.dumps(value))
