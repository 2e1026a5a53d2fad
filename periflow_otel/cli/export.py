"""``periflow-otel export``: every value of every metric as a row, for pandas and others."""

import csv
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from periflow_otel.cli.output import whole_file
from periflow_otel.cli.sources import find_sources, find_views
from periflow_otel.errors import ConfigurationError
from periflow_otel.view.rank_view import Limits, Member, RankView, SeriesKind
from periflow_otel.view.run_view import RunView

COLUMNS: Final = ("run", "attempt", "rank", "step", "time", "metric", "value")
"""``time`` is in seconds since 1970, UTC."""
_ROWS_AT_ONCE: Final = 65_536

Rows = Iterable[tuple[str, int, int, int, float, str, float]]
Take = Callable[[Rows], None]


def export(sources: Sequence[str], out: Path | None, *, is_parquet: bool) -> int:
    """Write the values of runs at full resolution, in the order of their files.

    Args:
        sources: Runs, files or folders; none: the working folder.
        out: Where; None for stdout, which takes CSV only.
        is_parquet: Write Parquet, not CSV.

    Returns:
        0.

    Raises:
        ConfigurationError: A source is neither a file nor a run, nothing is recorded there, or Parquet cannot be
            written.
    """
    found = find_sources(sources)
    with ExitStack() as stack:
        place = out and stack.enter_context(whole_file(out))
        take = _parquet(place, stack) if is_parquet else _csv(place, stack)
        find_views(found, lambda run_id: _Run(run_id, take))
        take(())  # the header at least
    return 0


class _Run(RunView):
    """Gives every value away."""

    def __init__(self, run_id: str, take: Take) -> None:
        super().__init__(run_id)
        self._take = take

    def make_rank(self, member: Member, limits: Limits) -> RankView:
        """Return a rank that gives every value away."""
        return _Rank(member, limits, self.run_id, self._take)


class _Rank(RankView):
    def __init__(self, member: Member, limits: Limits, run_id: str, take: Take) -> None:
        super().__init__(member, limits)
        self._run_id = run_id
        self._take = take

    def add_values(
        self, key: str, steps: Sequence[int], times_s: Sequence[float], values: Sequence[float],
        kind: SeriesKind = "metric",
    ) -> None:  # fmt: skip
        """Write them down."""
        who = self._run_id, self.member.attempt, self.member.rank
        if kind == "metric":
            rows = zip(steps, times_s, values, strict=True)
            self._take((*who, step, round(time_s, 6), key, value) for step, time_s, value in rows)


def _csv(out: Path | None, stack: ExitStack) -> Take:
    file = sys.stdout if out is None else stack.enter_context(out.open("w", newline="", encoding="utf-8"))
    writer = csv.writer(file, lineterminator="\n")
    header: list[Any] = [COLUMNS]

    def take(rows: Rows) -> None:
        writer.writerows(header)
        header.clear()
        writer.writerows(rows)

    return take


def _parquet(out: Path | None, stack: ExitStack) -> Take:
    if out is None:
        message = "Parquet cannot be written to a terminal; give a file: -o values.parquet"
        raise ConfigurationError(message)
    try:
        import pyarrow as arrow  # noqa: ICN001, PLC0415  # an extra
        from pyarrow import parquet  # noqa: PLC0415  # as above
    except ImportError as error:
        message = "Parquet needs pyarrow: pip install 'periflow_otel[parquet]'"
        raise ConfigurationError(message) from error
    text, integer, number = arrow.string(), arrow.int64(), arrow.float64()
    types = (text, integer, integer, integer, number, text, number)
    schema = arrow.schema(list(zip(COLUMNS, types, strict=True)))
    writer = stack.enter_context(parquet.ParquetWriter(out, schema))
    waiting: list[Any] = []

    def flush() -> None:
        columns = zip(*waiting, strict=True) if waiting else ((),) * len(COLUMNS)
        arrays = [arrow.array(column, each) for column, each in zip(columns, types, strict=True)]
        writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
        waiting.clear()

    def take(rows: Rows) -> None:
        waiting.extend(rows)
        if len(waiting) >= _ROWS_AT_ONCE:
            flush()

    stack.callback(flush)
    return take
