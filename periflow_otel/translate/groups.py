"""Telemetry in the groups in which OTLP carries it."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import attrgetter
from typing import TypeVar

from periflow_otel.records import RankRun
from periflow_otel.translate.resource import resource_of
from periflow_otel.translate.telemetry import ExponentialHistogram, LogRecord, Point, Resource

Item = TypeVar("Item")


def by_resource(items: Iterable[tuple[RankRun, Item]]) -> dict[Resource, list[Item]]:
    """Group items by resource, in the order given."""
    groups: dict[Resource, list[Item]] = {}
    group_of_run: dict[int, list[Item]] = {}  # by identity: to hash a run takes longer than all else here
    for run, item in items:
        group = group_of_run.get(id(run))
        if group is None:
            group = group_of_run[id(run)] = groups.setdefault(resource_of(run), [])
        group.append(item)
    return groups


def by_metric(points: Iterable[Point]) -> Iterable[list[Point]]:
    """Group points that one OTLP metric can hold: of one instrument, temporality and kind of histogram."""
    groups: dict[tuple[str, str, bool, bool], list[Point]] = {}
    for point in points:
        instrument = point.instrument
        key = instrument.name, instrument.kind, point.is_delta, type(point.value) is ExponentialHistogram
        group = groups.get(key)
        if group is None:
            group = groups[key] = []
        group.append(point)
    return groups.values()


def by_scope(records: Iterable[LogRecord]) -> Iterator[tuple[str, Iterator[LogRecord]]]:
    """Group consecutive records of one scope: so all stay in the order in which they were said."""
    return groupby(records, attrgetter("scope"))
