"""From OTLP JSON to views: lines of the files that local mode writes, or that a Collector does.

Spans of a rank are best fed before its points. A value is of the step that the last point of ``METRICS_STEP`` with no
later time shows; where there are none, as of what came over the network, the time of its step's start decides.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, NamedTuple

import msgspec

from periflow_otel import names
from periflow_otel.view.log_entries import WARNING, LogEntry
from periflow_otel.view.otlp_lines import (
    NOTHING,
    Attributes,
    LogRecord,
    Metric,
    Number,
    Point,
    Span,
    Value,
    decode,
    decode_attributes,
    elapsed_s,
    integer_of,
    number_of,
    numbers_of,
    point_attributes,
    scalar,
    scalars,
    seconds,
    times_of,
    to_float,
    to_integer,
)
from periflow_otel.view.rank_view import Member, RankView
from periflow_otel.view.run_view import RunView

_Row = tuple[int, float, float, float]
"""A step: its number, its start and its duration in seconds, and the gap before it."""
_STEP_KEY: Final = b'{"key":"%s",' % names.STEP.encode()
_TEXT: Final = b'"stringValue"'
_USUAL_END: Final = re.compile(
    re.escape(_STEP_KEY) + rb'"value":\{"intValue":"(\d+)"\}\},\{"key":"%s","value":\{"intValue":"(\d+)"\}\}'
    rb'(?:,\{"key":"[a-z_.]+","value":\{"intValue":"\d+"\}\})*(?:,\{"key":"%s","value":\{"doubleValue":([^"}]+)\}\})?\]'
    % tuple(re.escape(each).encode() for each in (names.RANK, names.GAP))
)
"""How the attributes of most steps end where local mode writes them. No text in them can look so: its quotes are
escaped."""
_NAN: Final = float("nan")


class OtlpFeed:
    """Makes a view of each run that lines tell of."""

    def __init__(self, *, takes_span_metrics: bool = False, make_view: Callable[[str], RunView] = RunView) -> None:
        """Begin with no runs.

        Args:
            takes_span_metrics: Take the values of metrics from the spans of steps: where there are no points.
            make_view: Makes the view of a run from its id.
        """
        self._make_view = make_view
        self.views: dict[str, RunView] = {}
        """By the id of the run."""
        self._takes_span_metrics = takes_span_metrics
        self._places: dict[RankView, _Places] = {}
        self._totals: dict[tuple[Any, ...], Point] = {}
        """By stream, of those that tell of the time since their last point."""
        self._checkpoints: set[tuple[RankView, int, str]] = set()
        """Step and kind of those that are known: an event may be one of a span, and a log record too."""

    def feed(self, line: bytes) -> None:
        """Take a line.

        Raises:
            msgspec.DecodeError: It is no OTLP JSON.
        """
        decoded = decode(line)
        for group in decoded.resourceSpans:
            if (who := _Who(scalars(group.resource.attributes))).run_id:
                self._add_spans(who, [span for scope in group.scopeSpans for span in scope.spans])
        for group in decoded.resourceMetrics:
            if (who := _Who(scalars(group.resource.attributes))).run_id:
                self._add_points(who, [metric for scope in group.scopeMetrics for metric in scope.metrics])
        for group in decoded.resourceLogs:
            if (who := _Who(scalars(group.resource.attributes))).run_id:
                for scope in group.scopeLogs:
                    self._add_log_records(who, scope.scope.name, scope.logRecords)

    def _view(self, who: "_Who") -> RunView:
        view = self.views.get(who.run_id)
        if view is None:
            view = self.views[who.run_id] = self._make_view(who.run_id)
        view.mode, view.world_size = who.mode or view.mode, who.world_size or view.world_size
        view.name = who.name or view.name
        return view

    def _rank(self, who: "_Who", rank: int) -> RankView:
        view = self._view(who)
        attempt = who.attempt or max((each for each, _ in view.ranks), default=1)  # an agent is there for all of them
        return view.rank(Member(attempt, rank, node_rank=who.node_rank, host=who.host))

    def _add_spans(self, who: "_Who", spans: Sequence[Span]) -> None:
        rows: dict[int, list[_Row]] = {}
        steps: dict[int, list[_Step]] = {}
        for span in spans:
            if not self._takes_span_metrics and (usual := _usual_step(span)):
                rows.setdefault(usual[0], []).append(usual[1])
                continue
            known = decode_attributes(span.attributes)
            attributes = {each.key: each.value for each in known}
            rank = integer_of(attributes.get(names.RANK, NOTHING), -1)
            if rank < 0:
                continue
            if span.name == names.STEP_SPAN:
                steps.setdefault(rank, []).append(_step(span, attributes))
            else:
                self._add_span(who, self._rank(who, rank), span, scalars(known))
            for event in span.events:
                self._add_event(self._rank(who, rank), event.name, event.timeUnixNano, scalars(event.attributes))
        for rank in sorted(rows.keys() | steps.keys()):
            self._add_steps(self._rank(who, rank), rows.get(rank, []), steps.get(rank, []))

    def _add_log_records(self, who: "_Who", logger: str, records: Sequence[LogRecord]) -> None:
        """Take events, and what somebody should read of what was said."""
        for record in records:
            is_told = record.eventName or record.severityNumber >= WARNING
            attributes = scalars(record.attributes) if is_told else {}
            if (rank := to_integer(attributes.get(names.RANK), -1)) < 0:
                continue
            if record.eventName:
                self._add_event(self._rank(who, rank), record.eventName, record.timeUnixNano, attributes)
            else:
                self._view(who).logs.add(
                    LogEntry(
                        self._rank(who, rank).member.attempt,
                        rank,
                        attributes.get(names.STEP),
                        seconds(record.timeUnixNano),
                        record.severityNumber,
                        record.severityText,
                        logger,
                        str(scalar(record.body)),
                        attributes.get(names.EXCEPTION_TYPE),
                    )
                )

    def _add_event(self, rank: RankView, name: str, time: Number, attributes: dict[str, Any]) -> None:
        if name == names.CHECKPOINT_UPLOAD:
            checkpoint = rank, to_integer(attributes.get(names.STEP), 0), str(attributes.get(names.SAVE_TYPE, "NORMAL"))
            if checkpoint not in self._checkpoints:
                self._checkpoints.add(checkpoint)
                rank.add_checkpoint(checkpoint[1], seconds(time), checkpoint[2])
        elif name == names.RUN_RESTART:
            rank.restart_gap_s = to_float(attributes.get(names.RESTART_GAP))
        elif name == names.RUN_FATAL:
            rank.last_words = str(attributes.get(names.FATAL, ""))
            rank.set_stack(str(attributes.get(names.CODE_STACKTRACE, "")))
        elif name == names.EXCEPTION and names.EXCEPTION_STACKTRACE in attributes:
            rank.set_stack(str(attributes[names.EXCEPTION_STACKTRACE]))

    def _add_steps(self, rank: RankView, usual: list[_Row], others: "Sequence[_Step]") -> None:
        rows = sorted([*usual, *(step.row for step in others if step.error != "killed")])
        if rows:
            if not rank.steps:
                rank.change(initial_step=rows[0][0] - 1)
            rank.end_steps(*map(list, zip(*rows, strict=True)))
        for each in others:
            self._add_step(rank, each)

    def _add_step(self, rank: RankView, step: "_Step") -> None:
        """Take what only few steps have."""
        if step.error:
            rank.begin_step(step.number, step.start_s)
            rank.add_error(step.number, step.end_s, step.error)
        if step.pause_s:
            rank.add_pause("gc", step.number, step.end_s, step.pause_s)
        for key, value in step.texts:
            rank.add_text(key, value)
        if self._takes_span_metrics:
            _add_values(rank, step)

    def _add_span(self, who: "_Who", rank: RankView, span: Span, attributes: dict[str, Any]) -> None:
        start_s, end_s = seconds(span.startTimeUnixNano), seconds(span.endTimeUnixNano)
        if span.name in (names.RUN_START_SPAN, names.RUN_SPAN):
            self._view(who).config.update(
                (name.removeprefix(names.CONFIG_PREFIX), value)
                for name, value in attributes.items()
                if name.startswith(names.CONFIG_PREFIX)
            )
        if span.name == names.RUN_START_SPAN:
            rank.change(
                started_s=start_s,
                local_rank=attributes.get(names.LOCAL_RANK, 0),
                target_step=attributes.get(names.TARGET_STEP),
            )
        elif span.name == names.STUCK_SPAN:
            events = [scalars(event.attributes) for event in span.events]
            self._view(who).stuck.add(rank.member.attempt, attributes, start_s, end_s, events)
        elif span.name == names.SLOW_SPAN:
            events = [scalars(event.attributes) for event in span.events]
            self._view(who).slow.add(rank.member.attempt, attributes, end_s, events)
        elif span.name == names.RUN_SPAN:
            rank.end(str(attributes.get(names.OUTCOME, "finished")), end_s)
        elif span.name not in (names.CHECKPOINT_SPAN, names.METRICS_SPAN):
            rank.add_phase(span.name, elapsed_s(span))

    def _add_points(self, who: "_Who", metrics: Sequence[Metric]) -> None:
        for metric in sorted(metrics, key=lambda metric: metric.name != names.METRICS_STEP.name):
            points = [*metric.gauge.dataPoints, *metric.sum.dataPoints, *metric.histogram.dataPoints]
            for raw, group in groupby(points, key=attrgetter("attributes")):
                attributes = point_attributes(bytes(raw))
                key = who.run_id, who.attempt, metric.name, attributes
                is_delta = _DELTA in (metric.sum.aggregationTemporality, metric.histogram.aggregationTemporality)
                taken = list(group)
                self._add_stream(who, metric, attributes, self._since_start(key, taken) if is_delta else taken)

    def _since_start(self, key: tuple[Any, ...], points: Iterable[Point]) -> list[Point]:
        """Return the last of points that each tell of the time since the one before, as one that tells of all."""
        for each in points:
            self._totals[key] = _plus(self._totals.get(key), each)
        return [self._totals[key]]

    def _add_stream(
        self, who: "_Who", metric: Metric, attributes: tuple[tuple[str, Any], ...], points: list[Point]
    ) -> None:
        name, given = metric.name, dict(attributes)
        rank = given.get(names.RANK)
        if name in _TELEMETRY:
            self._view(who).telemetry[name, attributes] = number_of(points[-1])
        elif name == names.STEP_SKEW.name:
            self._rank(who, given.get(names.LAST_RANK, 0)).set_late(
                int(to_float(points[-1].count)), to_float(points[-1].sum), to_float(points[-1].max)
            )
        elif isinstance(rank, int):
            self._add_of_rank(self._rank(who, rank), metric, attributes, points)
        else:
            rank_view = self._view(who).first_rank(to_integer(given.get(names.NODE_RANK), who.node_rank))
            self._add_machine(rank_view or self._rank(who, 0), metric, attributes, points)

    def _add_of_rank(self, rank: RankView, metric: Metric, stream: Attributes, points: list[Point]) -> None:
        name, attributes, times_s = metric.name, dict(stream), times_of(points)
        if name == names.METRICS_STEP.name:
            self._places_of(rank).add(times_s, list(map(int, numbers_of(points))))
        elif name.startswith(names.METRIC_PREFIX) and name != names.METRIC_NONFINITE.name:
            steps = self._places_of(rank).steps(times_s)
            key = str(attributes.get(names.METRIC_KEY, name.removeprefix(names.METRIC_PREFIX)))
            rank.add_values(key, steps, times_s, numbers_of(points))
        elif name in _KNOWN:
            _add_state(rank, name, attributes, number_of(points[-1]))
        else:
            self._add_machine(rank, metric, stream, points)

    def _add_machine(self, rank: RankView, metric: Metric, attributes: Attributes, points: list[Point]) -> None:
        times_s = times_of(points)
        steps = self._places_of(rank).steps(times_s)
        for step, time_s, value in zip(steps, times_s, numbers_of(points), strict=True):
            rank.add_of_machine(metric.name, attributes, time_s, value, is_sum=metric.sum.isMonotonic, step=step)

    def _places_of(self, rank: RankView) -> "_Places":
        if rank not in self._places:
            self._places[rank] = _Places(rank)
        return self._places[rank]


class _Places:
    """Which step of a rank values are of, by their time."""

    def __init__(self, rank: RankView) -> None:
        self._rank = rank
        self._times_s: list[float] = []
        self._steps: list[int] = []

    def add(self, times_s: list[float], steps: list[int]) -> None:
        """Take points that tell it, and keep the last of those before: values may be of it still."""
        self._times_s, self._steps = self._times_s[-1:] + times_s, self._steps[-1:] + steps

    def steps(self, times_s: list[float]) -> list[int]:
        """Return the step of each value."""
        if not self._times_s or times_s[0] < self._times_s[0]:
            return [self._rank.step_at(time_s) for time_s in times_s]
        if times_s == self._times_s[-len(times_s) :]:  # a metric that is given in every step
            return self._steps[-len(times_s) :]
        return [self._steps[bisect_right(self._times_s, time_s) - 1] for time_s in times_s]


class _Who:
    """What a resource says."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        self.run_id = str(attributes.get(names.RUN_ID, attributes.get("service.name", "")))
        self.attempt = to_integer(attributes.get(names.ATTEMPT), 0)
        self.node_rank = to_integer(attributes.get(names.NODE_RANK), 0)
        self.world_size = to_integer(attributes.get(names.WORLD_SIZE), 0)
        self.mode = str(attributes.get(names.MODE, ""))
        self.name = str(attributes.get(names.RUN_NAME, ""))
        self.host = str(attributes.get("host.name", ""))


class _Step(NamedTuple):
    """The span of a step."""

    row: _Row
    pause_s: float
    error: str
    texts: Sequence[tuple[str, str]]
    attributes: Mapping[str, Value]

    @property
    def number(self) -> int:
        return self.row[0]

    @property
    def start_s(self) -> float:
        return self.row[1]

    @property
    def end_s(self) -> float:
        return self.row[1] + self.row[2]


def _usual_step(span: Span) -> tuple[int, _Row] | None:
    """Return the rank of a step and when it began, of which nothing else is to be known; None: look at all of it.

    Of a million steps nearly all are so, and this takes a fraction of the time.
    """
    raw = bytes(span.attributes)
    start = raw.find(_STEP_KEY)
    if span.name != names.STEP_SPAN or span.events or span.status.code or raw.find(_TEXT, 0, start) >= 0:
        return None
    match = _USUAL_END.match(raw, max(start, 0))
    if match is None:
        return None
    number, rank, gap_s = match.groups()
    start_ns, end_ns = span.startTimeUnixNano or 0, span.endTimeUnixNano or 0
    return int(rank), (int(number), start_ns / 1e9, (end_ns - start_ns) / 1e9, _NAN if gap_s is None else float(gap_s))


def _step(span: Span, attributes: dict[str, Value]) -> _Step:
    gap_s = attributes.get(names.GAP, NOTHING).doubleValue
    kind = attributes.get(names.ERROR_TYPE, NOTHING).stringValue
    number = integer_of(attributes.get(names.STEP, NOTHING), 0)
    return _Step(
        (number, seconds(span.startTimeUnixNano), elapsed_s(span), _NAN if gap_s is None else float(gap_s)),
        float(attributes.get(names.PAUSE, NOTHING).doubleValue or 0.0),
        (kind or "error") if span.status.code in _ERRORS else "",
        [
            (key.removeprefix(names.METRIC_PREFIX), value.stringValue)
            for key, value in attributes.items()
            if value.stringValue is not None
            and key.startswith(names.METRIC_PREFIX)
            and value.stringValue not in _NOT_FINITE
        ],
        attributes,
    )


def _add_values(rank: RankView, step: _Step) -> None:
    """Take values from the span of their step."""
    for name, value in step.attributes.items():
        plain = scalar(value)
        if name.startswith(names.METRIC_PREFIX) and (not isinstance(plain, str) or plain in _NOT_FINITE):
            key = name.removeprefix(names.METRIC_PREFIX)
            rank.add_values(key, [step.number], [step.end_s], [to_float(plain)])


def _plus(before: Point | None, point: Point) -> Point:
    if before is None:
        return point
    return msgspec.structs.replace(
        point,
        asDouble=number_of(before) + number_of(point),
        asInt=None,
        count=to_float(before.count) + to_float(point.count),
        sum=to_float(before.sum) + to_float(point.sum),
        max=max(to_float(before.max), to_float(point.max)),
    )


def _add_state(rank: RankView, name: str, attributes: dict[str, Any], value: float) -> None:
    """Take the latest of a built-in instrument."""
    if name == names.TIME.name:
        rank.spent_s[str(attributes.get(names.TIME_KIND, ""))] = value
    elif name == names.STEP_REDONE.name:
        rank.redone_steps = int(value)
    elif name == names.WORK_DONE.name:
        rank.done[str(attributes.get(names.WORK_KIND, ""))] = value
    elif name == names.WORK_PEAK.name:
        rank.peak_flops = value
    elif name == names.STEP_COMPLETED.name and attributes.get(names.STEP_OUTCOME) == "ok":
        rank.well_ended = value
        rank.note_ended()
    elif name == names.STEP_CURRENT.name:
        rank.begin_step(int(value), 0.0)
        rank.note_ended()
    elif name == names.STEP_TARGET.name:
        rank.change(target_step=int(value))
    elif name == names.RUN_ENDED.name and value and rank.outcome is None:
        rank.end(str(attributes.get(names.OUTCOME, "finished")), rank.seen_s)


_TELEMETRY: Final = frozenset(each.name for each in names.OF_AGENT if each is not names.STEP_SKEW)
_KNOWN: Final = frozenset(each.name for each in names.INSTRUMENTS if each not in names.OF_MACHINE)
_DELTA: Final = 1
_ERRORS: Final = (2, "STATUS_CODE_ERROR")
_NOT_FINITE: Final = frozenset({"NaN", "Infinity", "-Infinity"})
