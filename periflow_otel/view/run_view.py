"""A run: what its ranks did in all its attempts, and what the agents say of their own work."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec.structs import asdict

from periflow_otel import names
from periflow_otel.translate.telemetry import ExponentialHistogram, Histogram, Point, Span
from periflow_otel.view.findings import find
from periflow_otel.view.gpu_peaks import peaks_of_ranks
from periflow_otel.view.heat import QUANTILES, merged, quantile, usual
from periflow_otel.view.lately import Sums
from periflow_otel.view.log_entries import LogEntries
from periflow_otel.view.rank_view import Limits, Marks, Member, RankView
from periflow_otel.view.slow import SlowSteps
from periflow_otel.view.stuck import StuckTimes

VERSION: Final = 1
"""Of what ``to_dict`` returns: another one if a reader of this one could misunderstand it."""
MAX_TOTAL_ROWS: Final = 200_000
"""Of all series together, some 16 MB: where there are many series each has fewer rows."""


class RunView:
    """Takes the ranks of a run; for one thread at a time."""

    def __init__(self, run_id: str, max_total_rows: int = MAX_TOTAL_ROWS) -> None:
        """Begin without ranks."""
        self.run_id = run_id
        self.name = ""
        self.config: dict[str, Any] = {}
        """What the user has said of the run."""
        self.mode = ""
        self.world_size = 0
        self.ranks: dict[tuple[int, int], RankView] = {}
        """By attempt and rank."""
        self.telemetry: dict[tuple[str, tuple[tuple[str, Any], ...]], float] = {}
        """The latest of what agents say of their own work, by instrument and attributes."""
        self.stuck = StuckTimes()
        self.logs = LogEntries()
        self.slow = SlowSteps()
        self._limits = Limits(max_total_rows)

    def rank(self, member: Member) -> RankView:
        """Return a rank, which may be a new one."""
        key = (member.attempt, member.rank)
        if key not in self.ranks:
            self.ranks[key] = self.make_rank(member, self._limits)
        return self.ranks[key]

    def make_rank(self, member: Member, limits: Limits) -> RankView:
        """Return a new rank; for those who want more of it."""
        return RankView(member, limits)

    def add_reports(self, points: Iterable[Point]) -> None:
        """Take what agents say of their own work, of the ranks of their node, and of the machine."""
        for point in points:
            if isinstance(point.value, Histogram | ExponentialHistogram):
                self._add_lateness(dict(point.attributes), point.value)
            elif point.instrument in names.OF_AGENT - names.OF_MACHINE:
                self.telemetry[point.instrument.name, point.attributes] = point.value
            elif rank := self.first_rank(int(dict(point.attributes).get(names.NODE_RANK, 0))):
                name, kind, time_s = point.instrument.name, point.instrument.kind, point.time_unix_ns / 1e9
                rank.add_of_machine(name, point.attributes, time_s, point.value, is_sum=kind == "counter")

    def add_span(self, attempt: int, span: Span) -> None:
        """Take what an agent has found out about ranks of its node."""
        events = [event.attributes for event in span.events]
        if span.name == names.STUCK_SPAN:
            self.stuck.add(attempt, span.attributes, span.start_unix_ns / 1e9, span.end_unix_ns / 1e9, events)
        else:
            self.slow.add(attempt, span.attributes, span.end_unix_ns / 1e9, events)

    def first_rank(self, node_rank: int) -> RankView | None:
        """Return the first rank of a node in the last attempt: what is told of the node is kept with it."""
        return next((each for each in self.last_attempt() if each.member.node_rank == node_rank), None)

    def add_earlier(self, other: "RunView") -> None:
        """Take the attempts before those that are known."""
        first = min((attempt for attempt, _ in self.ranks), default=0)
        for (attempt, rank), each in other.ranks.items():
            if attempt < first:
                self.ranks[attempt, rank] = each.moved_to(self._limits)
        self.stuck.add_earlier(other.stuck)
        self.logs.add_earlier(other.logs)
        self.slow.add_earlier(other.slow)

    def _add_lateness(self, attributes: Mapping[str, Any], late: Histogram | ExponentialHistogram) -> None:
        attempt = max((attempt for attempt, _ in self.ranks), default=0)
        if rank := self.ranks.get((attempt, int(attributes.get(names.LAST_RANK, -1)))):
            bounds = (0.0, *late.bounds) if isinstance(late, Histogram) else ()
            lateness = dict(zip(bounds, late.bucket_counts, strict=True)) if bounds else {}
            rank.set_late(late.count, late.sum, late.max or 0.0, lateness)

    @property
    def is_going_on(self) -> bool:
        """Whether a rank of the last attempt has not ended."""
        return any(each.outcome is None for each in self.last_attempt())

    def last_attempt(self) -> list[RankView]:
        """Return the ranks of the last attempt, in order."""
        last = max((attempt for attempt, _ in self.ranks), default=0)
        return [each for (attempt, _), each in sorted(self.ranks.items()) if attempt == last]

    def outcome(self) -> str:
        """Return how the last attempt went: ``running``, or the worst of what became of its ranks."""
        if not self.ranks:
            return "unknown"
        outcomes = {each.outcome or "running" for each in self.last_attempt()}
        return next(each for each in ("running", "killed", "failed", "interrupted", "finished") if each in outcomes)

    def summary(self) -> dict[str, Any]:
        """Return what fits into a line of a list of runs."""
        ranks = self.last_attempt()
        at_work = [each for each in ranks if each.outcome is None] or ranks  # who has left is no longer waited for
        step = min((each.ended_step for each in at_work), default=0)
        target = next((each.member.target_step for each in ranks if each.member.target_step), None)
        # A rank that is only slower to tell does not slow the others down: the slowest pace is that of the run.
        pace = min((pace for each in at_work if (pace := each.pace())), default=None)
        is_left = pace and target and target > step and self.is_going_on
        work = _work(ranks, pace) if pace else {}
        return {
            "id": self.run_id,
            "name": self.name,
            "mode": self.mode,
            "state": self.outcome(),
            "world_size": self.world_size,
            "attempt": max((attempt for attempt, _ in self.ranks), default=0),
            "step": step,
            "target_step": target,
            "started": min(
                (each.member.started_s for each in self.ranks.values() if each.member.started_s), default=None
            ),
            "seen": max((each.seen_s for each in self.ranks.values()), default=None),
            "pace": _rounded(pace),
            "work": {kind: _rounded(amount) for kind, amount in work.items()},
            "utilization": _rounded(_utilization(ranks, work.get("flops"))),
            "seconds_left": _rounded((target - step) / pace) if is_left and pace and target else None,
            "stuck": self.stuck.present(max((attempt for attempt, _ in self.ranks), default=0))
            if self.is_going_on
            else None,
            "last": self._last_values(),
        }

    def to_dict(self, since: int = 0, digits: int | None = None, now_s: float | None = None) -> dict[str, Any]:
        """Return everything, as ``docs/view.md`` describes it.

        Args:
            since: Of the series, return what has changed after this revision, which an earlier call returned.
            digits: Round the values of series to so many; None leaves them as they are.
            now_s: Unix time, for a run that goes on: it tells how long a step has not ended.
        """
        for each in self.ranks.values():
            each.fit()
        whole = {
            "version": VERSION,
            "revision": self._limits.revision,
            "since": since,
            "run": {**self.summary(), "config": self.config},
            "attempts": [self._attempt(attempt) for attempt in sorted({attempt for attempt, _ in self.ranks})],
            "ranks": [_rank(each) for _, each in sorted(self.ranks.items())],
            "step_time": [{"attempt": attempt, **merged(each.heat for each in ranks).to_dict()}
                          for attempt, ranks in self._by_attempt()],
            "series": [each for _, rank in sorted(self.ranks.items()) for each in _series(rank, since, digits)],
            "stuck": self.stuck.to_list(),
            "logs": self.logs.to_dict(),
            "slow": self.slow.to_list(),
            "telemetry": [{"name": name, "attributes": dict(attributes), "value": value}
                          for (name, attributes), value in sorted(self.telemetry.items(), key=repr)],
        }  # fmt: skip
        self._limits.revision += 1
        return whole | {"findings": list(map(asdict, find(whole, now_s)))}

    def _by_attempt(self) -> list[tuple[int, list[RankView]]]:
        attempts: dict[int, list[RankView]] = {}
        for (attempt, _), each in sorted(self.ranks.items()):
            attempts.setdefault(attempt, []).append(each)
        return list(attempts.items())

    def _attempt(self, attempt: int) -> dict[str, Any]:
        ranks = [each for (number, _), each in sorted(self.ranks.items()) if number == attempt]
        return {
            "attempt": attempt,
            "started": min((each.member.started_s for each in ranks if each.member.started_s), default=None),
            "seen": max(each.seen_s for each in ranks),
            "ranks": len(ranks),
            "initial_step": min(each.member.initial_step for each in ranks),
            "ended_step": max(each.ended_step for each in ranks),
            "outcomes": dict(Counter(each.outcome or "running" for each in ranks)),
            "redone_steps": max(each.redone_steps for each in ranks),
            "restart_gap": _rounded(max(each.restart_gap_s for each in ranks)),
        }

    def _last_values(self) -> dict[str, float | None]:
        """Return the latest value of each metric, of the lowest rank that has it."""
        last: dict[str, float | None] = {}
        for each in self.last_attempt():
            for (kind, key), series in each.series.items():
                if kind == "metric" and key not in last and (value := series.latest()) is not None:
                    last[key] = _rounded(value)
        return last


def _work(ranks: Iterable[RankView], pace: float) -> dict[str, float]:
    """Return what all ranks do in a second, by kind."""
    together: Counter[str] = Counter()
    for rank in ranks:
        together.update(rank.work_pace(pace))
    return dict(together)


def _utilization(ranks: Sequence[RankView], flops: float | None) -> float | None:
    """Return the share of what their devices can do; None where that of one is neither said nor known."""
    if not flops:
        return None
    known = peaks_of_ranks(dict(attributes) for rank in ranks for _, attributes in rank.machine)
    peaks = [rank.peak_flops or known.get(rank.member.rank) for rank in ranks]
    return flops / sum(filter(None, peaks)) if flops and all(peaks) else None


def _series(rank: RankView, since: int, digits: int | None) -> Iterable[dict[str, Any]]:
    for (kind, key), series in rank.series.items():
        if series.revision > since:
            who = {"kind": kind, "key": key, "attempt": rank.member.attempt, "rank": rank.member.rank}
            yield {**who, **series.to_dict(series.since(since), None if kind == "start" else digits)}


def _rank(rank: RankView) -> dict[str, Any]:
    member, sums = rank.member, rank.sums()
    return {
        "attempt": member.attempt,
        "rank": member.rank,
        "local_rank": member.local_rank,
        "node_rank": member.node_rank,
        "host": member.host,
        "started": member.started_s,
        "seen": rank.seen_s,
        "ended": rank.ended_s,
        "outcome": rank.outcome,
        "last_words": rank.last_words,
        "stack": rank.stack,
        "steps": rank.steps,
        "step": rank.last_step,
        "ended_step": rank.ended_step,
        "step_started": rank.step_started_s if rank.last_step > rank.ended_step else None,
        **_done(sums),
        "late": _late(sums) and {**_late(sums), "max": rank.late["max"]},
        **_present(rank, sums),
        "checkpoints": _marks(rank.checkpoints),
        "errors": _marks(rank.errors),
        "clock_sets": _marks(rank.clock_sets),
        "nonfinite": {**_marks(rank.nonfinite), "by_key": dict(rank.nonfinite_by_key)},
        "text": rank.text,
        "machine": [
            {"name": name, "attributes": dict(attributes), "value": _rounded(value)}
            for (name, attributes), value in rank.machine.items()
        ],
        "memory_growth": growth._asdict() if (growth := rank.memory_growth()) else None,
        "left_out": rank.left_out,
    }


def _done(sums: Sums) -> dict[str, Any]:
    """Return what was done in a time."""
    return {
        "duration": {name: quantile(sums["durations"], share) for name, share in QUANTILES.items()},
        "gap": {"usual": _rounded(usual(sums["gaps"])), "max": quantile(sums["gaps"], 1.0)},
        "time": {kind: _rounded(spent_s) for kind, spent_s in sums["time"].items()},
        "late": _late(sums),
        "pauses": {kind: _rounded(paused_s) for kind, paused_s in sums["pauses"].items()},
        "phases": {
            name: {"count": sums["phase_counts"][name], "seconds": _rounded(spent_s)}
            for name, spent_s in sums["phases"].items()
        },
    }


def _present(rank: RankView, sums: Sums) -> dict[str, Any]:
    """Return what a rank does of late, as long as the run goes on."""
    if rank.outcome is not None:
        return {"lately": None, "saving": []}
    lately = rank.lately.of(sums)
    since_s, steps = rank.lately.since_s() or rank.member.started_s, sum(lately["durations"].values())
    return {
        "lately": {"since": since_s, "steps": steps, **_done(lately)},
        "saving": [_rounded(took_s) for took_s in rank.savings_s],
    }


def _late(sums: Sums) -> dict[str, float | None]:
    """Return how often a rank was the last to begin, by how much together, and at least in half of these cases."""
    count, sum_s, left = sums["late"].get("count", 0), sums["late"].get("sum", 0.0), 0.0
    if not count:
        return {}
    for bound_s, times in sorted(sums["lateness"].items(), reverse=True):
        left += times
        if left >= count / 2:
            return {"count": count, "sum": _rounded(sum_s), "usual": bound_s}
    return {"count": count, "sum": _rounded(sum_s), "usual": _rounded(sum_s / count)}


def _marks(marks: Marks) -> Mapping[str, Any]:
    return {"count": marks.count, "kept": marks.kept}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.7g}")
