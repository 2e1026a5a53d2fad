"""``periflow-otel stacks``: what the ranks of a run on this node are doing now."""

import sys
import time
from pathlib import Path

import msgspec

from periflow_otel.agent.stragglers.inquiry import Inquiry
from periflow_otel.agent.watch import RankJournal, find_journals
from periflow_otel.cli.known_runs import find_run
from periflow_otel.terminal import one_line
from periflow_otel.translate.stragglers.stacks import traceback_text
from periflow_otel.translate.stragglers.stuck import Finding

_STACKS = 3
_PAUSE_S = 0.05


def show_stacks(wanted: str | None, *, is_json: bool) -> int:
    """Ask all ranks of a run on this node for their Python stacks, and show equal ones together.

    Args:
        wanted: Which, by what it is called; None: the latest that goes on.
        is_json: Write a list of objects with ``ranks``, ``activity``, ``place`` and ``stacktrace``.

    Returns:
        0; 1 if no such run goes on here, or none of its ranks gives an answer.

    Raises:
        ConfigurationError: Several runs may be meant.
    """
    run = find_run(wanted)
    journals = _alive(run.folder) if run and run.is_live else []
    if not journals:
        name = "" if wanted is None else f" {one_line(wanted)}"
        print(f"periflow-otel: no run{name} is going on here", file=sys.stderr)
        return 1
    finding = ask(journals)
    print(_json(finding) if is_json else _text(finding), flush=True)
    return int(not any(group.stack for group in finding.groups))


def ask(journals: list[RankJournal]) -> Finding:
    """Ask ranks what they are doing; takes some tenths of a second."""
    inquiry = Inquiry(journals, _STACKS)
    while not inquiry.look():
        time.sleep(_PAUSE_S)
    return inquiry.finding()


def _alive(folder: Path) -> list[RankJournal]:
    journals = list(find_journals(folder, {}).values())
    for journal in journals:
        journal.look()
    return [journal for journal in journals if journal.is_alive and not journal.reader.is_closed()]


def _text(finding: Finding) -> str:
    parts = []
    for group in finding.groups:
        parts.append(one_line(group.describe()))
        parts += [one_line(line) for line in traceback_text(group.stack).splitlines()[1:]]
    return "\n".join(parts)


def _json(finding: Finding) -> str:
    groups = [
        {
            "ranks": group.ranks,
            "activity": group.activity.value,
            "place": group.place,
            "stacktrace": traceback_text(group.stack) if group.stack else None,
        }
        for group in finding.groups
    ]
    return msgspec.json.encode(groups).decode()
