"""``periflow-otel tail``: what a run records, as it records it."""

import sys
import time
from collections.abc import Iterable, Iterator
from heapq import nlargest
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from periflow_otel.cli.known_runs import find_run, ranks_at_work
from periflow_otel.journal.reader import JournalReader, Position, Written, written_journals
from periflow_otel.records import LogLine, Metric, RankRun
from periflow_otel.run_config import without_user_info
from periflow_otel.terminal import one_line

INTERVAL_S: Final = 0.2
_CHUNK: Final = 1000


class Line(NamedTuple):
    """What one call of ``pf.metric`` gave, or one of the script's loggers."""

    run: RankRun
    record: Metric | LogLine

    def as_json(self) -> str:
        """Return it as a JSON object."""
        return msgspec.json.encode(
            {
                "run": self.run.run_id,
                "attempt": self.run.attempt,
                "rank": self.run.rank,
                "step": self.record.step,
                "time": self.record.time_unix_ns / 1e9,
                **_content(self.record),
            }
        ).decode()

    def as_text(self) -> str:
        """Return it for people."""
        rank = f"rank {self.run.rank}  " if self.run.world_size > 1 else ""
        step = "" if self.record.step is None else f"step {self.record.step}  "
        return f"{rank}{step}{_words(self.record)}"


def tail(wanted: str | None, lines: int, *, is_json: bool) -> int:
    """Print what a run gives to ``pf.metric``, and what it logs where that is recorded, until it is over.

    Args:
        wanted: Which, by what it is called; None: the latest.
        lines: With how many of those to begin that its journals still hold, all ranks together.
        is_json: A JSON object a line.

    Returns:
        0 when it is over, 1 if it does not go on.

    Raises:
        ConfigurationError: Several runs may be meant.
    """
    run = find_run(wanted)
    if run is None or not run.is_live:
        name = "" if wanted is None else f" {one_line(wanted)}"
        print(f"periflow-otel: no run{name} goes on here; 'periflow-otel export' has what is over", file=sys.stderr)
        return 1
    for line in follow(run.folder, lines):
        print(line.as_json() if is_json else line.as_text(), flush=True)
    return 0


def follow(folder: Path, last: int | None = None) -> Iterator[Line]:
    """Yield what the ranks of a run give, each in its order, until none of them lives.

    Args:
        folder: Of the run, on this node.
        last: With how many of those to begin that are there already; None: all.
    """
    followers: dict[Path, _Follower] = {}
    is_at_work = True
    while is_at_work:
        is_at_work = bool(ranks_at_work(folder))  # asked before reading: what came until then is read still
        for written in written_journals(folder):
            followers.setdefault(written.journal.folder, _Follower(written))
        # also of journals that are delivered and gone: they are open here
        lines = chain.from_iterable(follower.read() for follower in followers.values())
        yield from lines if last is None else _latest(lines, last)
        last = None
        time.sleep(INTERVAL_S if is_at_work else 0)


def _latest(lines: Iterable[Line], count: int) -> list[Line]:
    """Return the last lines by their time; of one time, as they come."""
    latest = nlargest(count, enumerate(lines), key=lambda each: (each[1].record.time_unix_ns, each[0]))
    return [line for _, line in reversed(latest)]


class _Follower:
    def __init__(self, written: Written) -> None:
        self._reader = JournalReader(written.journal.folder, holds_on=True)
        self._run = written.run
        self._position = Position()

    def read(self) -> Iterator[Line]:
        while (chunk := self._reader.read(self._position, _CHUNK)).position != self._position:
            self._position = chunk.position
            yield from (Line(self._run, record) for record in chunk.records if isinstance(record, Metric | LogLine))


def _content(record: Metric | LogLine) -> dict[str, Any]:
    if isinstance(record, Metric):
        return {"values": record.values}
    said = {"level": record.level_name, "logger": record.logger, "message": without_user_info(record.message)}
    return said | ({"exception": record.error} if record.error else {})


def _words(record: Metric | LogLine) -> str:
    if isinstance(record, Metric):
        return " ".join(f"{one_line(key)}={_shown(value)}" for key, value in record.values.items())
    return one_line(f"{record.level_name} {record.logger}: {without_user_info(record.message)}")


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else one_line(str(value))
