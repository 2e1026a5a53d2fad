"""``periflow-otel status`` and ``runs``: how runs are, in a terminal."""

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from periflow_otel.cli.known_runs import KnownRun, View, find_run, known_runs, view_of
from periflow_otel.journal.pages import page_url
from periflow_otel.page.braille import curve
from periflow_otel.page.words import describe_run, one_line
from periflow_otel.settings.paths import find_state_dirs
from periflow_otel.view.words import duration_words

INTERVAL_S: Final = 2.0
"""How often a status that is watched is shown again."""
MAX_CURVES: Final = 4
MAX_RANKS: Final = 32
_CURVE_HEIGHT: Final = 3
_FULL: Final = "\u28ff"
"""A piece of a curve."""
_CLEAR: Final = "\x1b[H\x1b[J"
_TROUBLED: Final = frozenset({"failed", "killed"})


def show_runs(*, is_json: bool) -> int:
    """List the runs of this machine and folder, the latest first.

    Returns:
        0, also where there are none.
    """
    runs = known_runs(find_state_dirs(os.environ), Path())
    if is_json:
        _print_json([{**run.summary, "folder": str(run.folder), "logs": run.logs} for run in runs])
    elif runs:
        print("\n".join(_table([_HEADER, *map(_row, runs)])))
    else:
        print("no run is known on this machine, nor are there files of one in this folder")
    return 0


def show_status(run_id: str | None, *, is_watched: bool, is_json: bool) -> int:
    """Show how a run is.

    Args:
        run_id: Which; None: the latest that goes on, else the latest.
        is_watched: Show it again and again, until it is over.
        is_json: Write what ``docs/view.md`` describes, once or, if it is watched, a line each time.

    Returns:
        0 if it goes on or went well, 1 if it did not, or is not known.
    """
    while True:
        run = find_run(known_runs(find_state_dirs(os.environ), Path()), run_id)
        if run is None:
            print(f"periflow-otel: no run{'' if run_id is None else f' {run_id}'} is known here", file=sys.stderr)
            return 1
        view = view_of(run)
        if is_json:
            _print_json(view)
        else:
            print(f"{_CLEAR if is_watched else ''}{describe(view, run)}", flush=True)
        if not (is_watched and run.is_live):
            return int(view["run"]["state"] in _TROUBLED)
        run_id = run.run_id
        time.sleep(INTERVAL_S)


def describe(view: View, run: KnownRun) -> str:
    """Return lines on a run: how far it is, curves, ranks side by side."""
    width = min(shutil.get_terminal_size().columns, 120)
    lines = [describe_run(view), *_time_left(view), *_curves(view, width), *_ranks(view)]
    if run.is_live and (url := page_url(run.folder)):
        lines.append(f"live at {url}")
    return "\n".join(lines)


def _time_left(view: View) -> Iterator[str]:
    run = view["run"]
    if run["pace"]:
        left = f", {duration_words(run['seconds_left'])} left" if run["seconds_left"] else ""
        yield f"  {run['pace']:.3g} step/s{left}"
    yield from _work(run)


def _work(run: Any) -> Iterator[str]:
    if run["work"]:
        share = "" if run["utilization"] is None else f" ({run['utilization']:.1%} of the peak)"
        paces = (
            f"{amount:.3g} {one_line(kind)}/s" + (share if kind == "flops" else "")
            for kind, amount in run["work"].items()
        )
        yield f"  {', '.join(paces)}"


def _curves(view: View, width: int) -> Iterator[str]:
    last = max((each["attempt"] for each in view["series"]), default=0)
    shown: dict[str, Any] = {}
    for each in view["series"]:
        if each["kind"] == "metric" and each["attempt"] == last:
            shown.setdefault(each["key"], each)
    for key, series in list(shown.items())[:MAX_CURVES]:
        values = series.get("mean") or series["last"]
        known = [value for value in values if value is not None]
        if len(known) > 1:
            values_seen = f"{min(known):.4g} to {max(known):.4g}"
            yield ""
            yield f"{one_line(key)[: max(1, width - len(values_seen) - 2)]}  {values_seen}"
            if _can_show(_FULL):
                yield from curve(values, width, _CURVE_HEIGHT)
    if len(shown) > MAX_CURVES:
        yield f"and {len(shown) - MAX_CURVES} more metrics"


def _can_show(text: str) -> bool:
    """Tell whether the terminal has letters for a text."""
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return False
    return True


def _ranks(view: View) -> Iterator[str]:
    ranks = [each for each in view["ranks"] if each["attempt"] == view["run"]["attempt"]]
    if len(ranks) > 1:
        yield ""
        yield from _table([_RANK_HEADER, *map(_rank_row, ranks[:MAX_RANKS])])
    if len(ranks) > MAX_RANKS:
        yield f"and {len(ranks) - MAX_RANKS} more ranks"


_RANK_HEADER: Final = ("RANK", "HOST", "STATE", "STEP", "STEP TIME P50", "P95", "LAST TO BEGIN")


def _rank_row(rank: Any) -> tuple[str, ...]:
    times = [duration_words(rank["duration"][name]) if rank["duration"][name] else "–" for name in ("p50", "p95")]
    state = rank["outcome"] or "running"
    return str(rank["rank"]), one_line(rank["host"]), state, str(rank["step"]), *times, _lateness(rank["late"])


def _lateness(late: Any) -> str:
    return f"{late['count']} times, {duration_words(late['max'])} at most" if late and late["count"] else ""


_STATES_OF_OVER: Final = {"running": "gone", "unknown": "ended"}
_HEADER: Final = ("RUN", "STATE", "STEP", "LAST", "TOOK", "SEEN")


def _row(run: KnownRun) -> tuple[str, ...]:
    summary = run.summary
    target = f"/{summary['target_step']}" if summary["target_step"] else ""
    name = f" ({one_line(summary['name'])})" if summary["name"] else ""
    state = summary["state"] if run.is_live else _STATES_OF_OVER.get(summary["state"], summary["state"])
    took = duration_words(summary["seen"] - summary["started"]) if summary["started"] and summary["seen"] else "–"
    return (
        one_line(run.run_id) + name, state, f"{summary['step']}{target}", _last(summary["last"]), took,
        f"{duration_words(max(0.0, time.time() - summary['seen']))} ago" if summary["seen"] else "–",
    )  # fmt: skip


def _last(values: dict[str, float | None]) -> str:
    """Return the value that says most: the loss, if there is one, else the first metric."""
    for key in sorted(values, key=lambda key: "loss" not in key.lower()):
        if values[key] is not None:
            return f"{one_line(key)} {values[key]:.4g}"
    return ""


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _print_json(value: object) -> None:
    print(msgspec.json.encode(value).decode(), flush=True)
