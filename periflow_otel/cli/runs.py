"""How the runs on this node are: what they have not delivered, and why."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from periflow_otel.agent.dead_letters import count_dead_letters
from periflow_otel.agent.leftovers import is_going_on
from periflow_otel.cli.findings import Finding
from periflow_otel.config.export import ExportSettings
from periflow_otel.journal.agent_lock import is_locked
from periflow_otel.journal.agent_note import why_failed
from periflow_otel.journal.cursors import cursor_path, load_cursor
from periflow_otel.journal.files import read_end
from periflow_otel.journal.folders import (
    AGENT_LOG,
    is_readable,
    left_alone,
    node_folders,
    other_node_folders,
)
from periflow_otel.journal.reader import Written, unreadable_journals, written_journals
from periflow_otel.journal.space import size_bytes
from periflow_otel.records import RankRun
from periflow_otel.translate.spans import SAMPLED_OUT

SHOWN: Final = 10
"""How many runs are told of one by one, the latest first."""
STALLED_S: Final = 30.0
"""A consumer with something to deliver that has delivered nothing for so long is in trouble."""

_LOG_BYTES: Final = 64 << 10
_WAIT: Final = "records wait for"


def examine_runs(state_dirs: Iterable[Path], settings: ExportSettings) -> Iterator[Finding]:
    """Tell of the runs that have not delivered all: their journals are there, or something is set aside."""
    state_dirs = list(state_dirs)
    foreign = [folder for state_dir in state_dirs for folder in left_alone(state_dir)]
    yield from (Finding("left alone", f"{folder} is not this user's own") for folder in foreign)
    folders = [folder for state_dir in state_dirs for folder in _folders(state_dir)]
    findings = (finding for folder in folders if (finding := _examine(folder, settings)))
    yield from islice(findings, SHOWN)
    if faults := sum(each.is_fault for each in findings):
        yield Finding("runs", f"{faults} more in need of attention", is_fault=True)


def _examine(folder: Path, settings: ExportSettings) -> Finding | None:
    if not is_readable(folder):
        return Finding(f"run {folder.parent.name}", f"{folder} cannot be read", is_fault=True)
    ranks = list(written_journals(folder))
    unreadable = len(unreadable_journals(folder))
    texts = [f"{_journals(unreadable)} in {folder} cannot be read"] if unreadable else []
    texts += _tell_of_the_agent(folder)
    texts += _tell_set_aside(folder)
    if not ranks:
        return Finding(f"run {folder.parent.name}", "; ".join(texts), is_fault=True) if texts else None
    undelivered = _tell_undelivered(folder, ranks, settings)
    return Finding(
        f"run {ranks[0].run.run_id}",
        "; ".join((_tell_progress(ranks), *texts, *undelivered)),
        is_fault=bool(texts or undelivered),
    )


def _tell_of_the_agent(folder: Path) -> Iterator[str]:
    if not is_locked(folder) and (reason := why_failed(folder)):
        yield f"the agent fails before it is at work: {reason}"


def _folders(state_dir: Path) -> Iterator[Path]:
    """Yield the folders of runs on this node, the latest first, and those of other names that are over."""
    yield from reversed(node_folders(state_dir))
    yield from (folder for folder in other_node_folders(state_dir) if not is_going_on(folder))


def _journals(count: int) -> str:
    return f"{count} journal{'' if count == 1 else 's'}"


def _tell_set_aside(folder: Path) -> list[str]:
    counts = count_dead_letters(folder)
    texts = [
        f"{count} item{'' if count == 1 else 's'} of {consumer} {'is' if count == 1 else 'are'} set aside ({reason})"
        for (consumer, reason), count in counts.items()
    ]
    return [*texts, f"periflow-otel replay {folder} sends them again"] if texts else []


def _alive(ranks: Iterable[Written]) -> set[int]:
    return {each.run.rank for each in ranks if each.is_alive}


def _tell_progress(ranks: list[Written]) -> str:
    step = max(each.journal.head().step for each in ranks)
    alive = len(_alive(ranks))
    if not alive:
        return f"over, after step {step}"
    # Some may be done, and their journals gone.
    return f"{alive} of {max(ranks[-1].run.local_world_size, alive)} ranks are at work, in step {step}"


def _tell_undelivered(folder: Path, ranks: list[Written], settings: ExportSettings) -> list[str]:
    is_over = not _alive(ranks)
    counts = _count_undelivered(ranks, is_over=is_over)
    texts = _grouped(counts)
    if is_over and any(what == _WAIT for what, _ in counts):
        texts += _tell_what_is_left(ranks, settings)
    if counts and (said := _last_line(folder / AGENT_LOG)):
        texts.append(f"the agent said: {said}")
    return texts


def _tell_what_is_left(ranks: list[Written], settings: ExportSettings) -> Iterator[str]:
    size_mib = sum(size_bytes(journal.folder) for journal, _ in ranks) / (1 << 20)
    age_h = (time.time() - max(each.journal.folder.stat().st_mtime for each in ranks)) / 3600
    yield f"they take {size_mib:.1f} MiB, for {age_h:.1f} h now"
    if not all(settings.sends_to(run.orders.destination) for _, run in ranks):
        yield "they are for another receiver, or for other credentials, and wait for the run that has these"
    yield "periflow-otel replay delivers them"


def _count_undelivered(ranks: Iterable[Written], *, is_over: bool) -> Counter[tuple[str, str]]:
    """Count what waits though it should be delivered by now, and what was dropped other than by sampling."""
    counts: Counter[tuple[str, str]] = Counter()
    for journal, run in ranks:
        first, end = journal.first_sequence(), journal.head().sequence
        for consumer in run.orders.consumers:
            cursor = load_cursor(journal.folder, consumer)
            had = cursor.position.sequence
            if is_over or _idle_s(journal.folder, consumer, run) > STALLED_S:
                counts[_WAIT, consumer] += max(0, end - max(had, first))
            for reason, count in (*cursor.dropped.items(), ("journal", max(0, first - had))):
                if reason != SAMPLED_OUT:
                    counts[f"were dropped ({reason}) for", consumer] += count
    return +counts


def _grouped(counts: Counter[tuple[str, str]]) -> list[str]:
    """Return one text for all consumers of which the same is to be said."""
    groups: dict[tuple[int, str], list[str]] = {}
    for (what, consumer), count in counts.items():
        groups.setdefault((count, what), []).append(consumer)
    return [f"{count} {what} {', '.join(consumers)}" for (count, what), consumers in groups.items()]


def _idle_s(journal: Path, consumer: str, run: RankRun) -> float:
    """Return how long ago a consumer delivered something."""
    with suppress(OSError):
        return time.time() - cursor_path(journal, consumer).stat().st_mtime
    return time.time() - run.started_unix_ns / 1e9


def _last_line(log: Path) -> str:
    lines = read_end(log, _LOG_BYTES).decode("utf-8", "replace").splitlines()
    return next((line for line in reversed(lines) if "periflow_otel: " in line), "").partition("periflow_otel: ")[2]
