"""From what a rank records to a view, with no spans and points on the way: a fraction of the work."""

from collections.abc import Iterable
from functools import lru_cache
from itertools import chain
from typing import Any, Final

from periflow_otel import names
from periflow_otel.records import (
    Checkpoint,
    Config,
    LogLine,
    Metric,
    Paused,
    Phase,
    Raised,
    RankLost,
    RankRun,
    Record,
    RunFinished,
    StepEnded,
)
from periflow_otel.run_config import without_user_info
from periflow_otel.translate.as_is import StepBegan
from periflow_otel.translate.facts import outcome_of, pauses_of, restart_gap_ns, save_type
from periflow_otel.translate.log_records import severity
from periflow_otel.translate.telemetry import Observed, Span
from periflow_otel.translate.values import flatten, number, text
from periflow_otel.translate.walltime import CHECKPOINT, RESTART, WallTime
from periflow_otel.view.lately import NOTE_S
from periflow_otel.view.log_entries import WARNING, LogEntry
from periflow_otel.view.rank_view import Member
from periflow_otel.view.run_view import RunView

Fed = Record | Observed | StepBegan | Span
"""What is known of a rank: its records, and what its agent sees."""
_NAN: Final = float("nan")
_NOTE_NS: Final = int(NOTE_S * 1e9)
_APART: Final = frozenset({StepBegan, Span, LogLine})
"""Of these there may be many, and what comes before and after them may be put away together."""
_ENOUGH: Final = 4096
"""Records that are put away at once, at most: one by one each would take ten times as long."""


class RecordFeed:
    """Feeds a view with the records of one rank, in their order."""

    def __init__(self, view: RunView, run: RankRun) -> None:
        """Begin with the rank itself."""
        view.mode, view.world_size = run.mode, run.world_size
        view.name = str(dict(run.resource).get(names.RUN_NAME, ""))
        self._view = view
        self._run = run
        self._waiting: list[Fed] = []
        self._noted_unix_ns = 0
        self._rank = view.rank(member_of(run))
        self._rank.peak_flops = run.work.peak_flops if run.work else None
        self._wall_time = WallTime(accounted_unix_ns=run.started_unix_ns, ended_step=run.initial_step)
        if run.earlier:
            self._rank.restart_gap_s = restart_gap_ns(run) / 1e9
            self._wall_time.spent_ns[RESTART] = restart_gap_ns(run)

    def feed(self, records: Iterable[Fed]) -> None:
        """Take some records, and what was seen of the rank.

        They may wait for more of them: ``settle`` is to be called before the view is read.
        """
        self._waiting += records
        if len(self._waiting) >= _ENOUGH:
            self.settle()

    def step_began(self, step: int, started_unix_ns: int) -> None:
        """Note the step that is going on."""
        self._rank.begin_step(step, started_unix_ns / 1e9)

    def settle(self) -> None:
        """Let the view have everything that was fed."""
        records, self._waiting = self._waiting, []
        steps: list[StepEnded] = []
        metrics: list[Metric] = []
        for record in records:
            kind = type(record)
            if kind is StepEnded:
                if not 0 <= record.start_unix_ns - self._noted_unix_ns < _NOTE_NS:  # type: ignore[union-attr]
                    self._end_steps(steps)
                    steps = []
                    self._note(record.start_unix_ns)  # type: ignore[union-attr]
                steps.append(record)  # type: ignore[arg-type]  # as just seen
            elif kind is Metric:
                metrics.append(record)  # type: ignore[arg-type]  # as just seen
            elif kind in _APART:
                self._add_apart(record)
            else:
                self._end_steps(steps)
                steps = []
                self._note_metrics(metrics)
                self._add_rare(record)
        self._end_steps(steps)
        self._note_metrics(metrics)
        self._add_metrics(metrics)
        self._note_time()

    def _note(self, unix_ns: int) -> None:
        """Note how much there is before a step, every few seconds, whatever becomes of the clock."""
        self._noted_unix_ns = unix_ns
        self._note_time()
        self._rank.note(unix_ns / 1e9)

    def _note_time(self) -> None:
        self._rank.spent_s.update((kind, spent_ns / 1e9) for kind, spent_ns in self._wall_time.spent_ns.items())

    def _note_metrics(self, metrics: list[Metric]) -> None:
        if metrics:
            self._wall_time.note(metrics[-1].time_unix_ns)

    def _add_apart(self, record: Fed) -> None:
        """Take what changes nothing for others."""
        match record:
            case StepBegan():
                self.step_began(*record)
            case Span():
                self._view.add_span(self._run.attempt, record)
            case LogLine():
                self._add_line(record)

    def _add_rare(self, record: Fed) -> None:
        match record:
            case Checkpoint():
                self._add_checkpoint(record)
            case Phase():
                self._rank.add_phase(text(record.name), record.duration_ns / 1e9)
                self._wall_time.end_phase(record)
            case Config():
                self._view.config.update(record.values)
            case Paused():
                for kind, duration_ns in pauses_of(record):
                    self._rank.add_pause(kind, record.step, record.time_unix_ns / 1e9, duration_ns / 1e9)
            case Observed():
                self._observe(record)
            case Raised():
                self._rank.set_stack(without_user_info(record.stack))
            case RunFinished():
                self._wall_time.close(record.time_unix_ns)
                self._rank.end(outcome_of(record), record.time_unix_ns / 1e9)
            case RankLost():
                self._lose_step(record)
                self._wall_time.lose(record)
                self._rank.last_words = record.fatal
                self._rank.set_stack(record.stack)
                self._rank.end(outcome_of(record), record.time_unix_ns / 1e9)

    def _add_line(self, line: LogLine) -> None:
        if severity(line.level) < WARNING:
            return
        self._view.logs.add(
            LogEntry(
                self._run.attempt,
                self._run.rank,
                line.step,
                line.time_unix_ns / 1e9,
                severity(line.level),
                line.level_name,
                line.logger,
                without_user_info(line.message),
                line.error,
            )
        )

    def _add_checkpoint(self, record: Checkpoint) -> None:
        before_ns = self._wall_time.spent_ns.get(CHECKPOINT, 0)
        self._wall_time.end_checkpoint(record)
        self._rank.add_saving((self._wall_time.spent_ns.get(CHECKPOINT, 0) - before_ns) / 1e9)
        self._rank.add_checkpoint(record.step, record.time_unix_ns / 1e9, save_type(record))

    def _observe(self, observed: Observed) -> None:
        for each in observed.values:
            kind, time_s = each.instrument.kind, observed.time_unix_ns / 1e9
            name = each.instrument.name
            self._rank.add_of_machine(name, each.attributes, time_s, each.value, is_sum=kind == "counter")

    def _lose_step(self, record: RankLost) -> None:
        """Note the step that was open when the process went."""
        self.step_began(record.last_started_step, record.last_started_unix_ns)
        if record.last_started_step > self._rank.ended_step:
            self._rank.add_error(record.last_started_step, record.time_unix_ns / 1e9, outcome_of(record))

    def _end_steps(self, records: list[StepEnded]) -> None:
        if not records:
            return
        self._wall_time.end_steps(records)
        self._rank.end_steps(
            [each.step for each in records],
            [each.start_unix_ns / 1e9 for each in records],
            [each.duration_ns / 1e9 for each in records],
            [_NAN if each.gap_ns is None else each.gap_ns / 1e9 for each in records],
        )
        if self._run.work:
            self._rank.add_work(sum(each.error is None for each in records), self._run.work.kinds)
        for each in records:
            if each.error is not None:
                self._rank.add_error(each.step, (each.start_unix_ns + each.duration_ns) / 1e9, each.error)
        if self._run.earlier and records[0].step <= self._run.earlier.last_step:
            self._rank.redone_steps += sum(each.step <= self._run.earlier.last_step for each in records)

    def _add_metrics(self, records: list[Metric]) -> None:
        if not records:
            return
        steps = [each.step for each in records]
        times_s = [each.time_unix_ns / 1e9 for each in records]
        rows = [each.values for each in records]
        if all(row.keys() == rows[0].keys() for row in rows):
            for key in rows[0]:
                self._add_column(key, steps, times_s, [row[key] for row in rows])
            return
        for key in dict.fromkeys(chain.from_iterable(rows)):
            some = [i for i, row in enumerate(rows) if key in row]
            values = [rows[i][key] for i in some]
            self._add_column(key, [steps[i] for i in some], [times_s[i] for i in some], values)

    def _add_column(self, key: str, steps: list[int], times_s: list[float], values: list[Any]) -> None:
        if set(map(type, values)) == {float}:
            self._rank.add_values(key, steps, times_s, values)
            return
        for step, time_s, value in zip(steps, times_s, values, strict=True):
            self._add_value(key, step, time_s, value)

    def _add_value(self, key: str, step: int, time_s: float, value: object) -> None:
        if isinstance(value, int | float):
            self._rank.add_values(key, [step], [time_s], [float(number(value))])
        elif isinstance(value, str):
            self._rank.add_text(key, text(value))
        elif isinstance(value, dict):
            for inner, each in flatten(key, value):
                self._add_value(inner, step, time_s, each)


@lru_cache(maxsize=1024)
def member_of(run: RankRun) -> Member:
    """Return who a rank is."""
    return Member(
        attempt=run.attempt,
        rank=run.rank,
        local_rank=run.local_rank,
        node_rank=run.node_rank,
        host=str(dict(run.resource).get("host.name", "")),
        started_s=run.started_unix_ns / 1e9,
        initial_step=run.initial_step,
        target_step=run.total_steps,
    )
