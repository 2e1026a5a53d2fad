"""``periflow-otel status`` and ``runs``: how runs are, in a terminal."""

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from periflow_otel.cli.known_runs import KnownRun, View, find_run, known_runs, view_of
from periflow_otel.cli.watching import watched
from periflow_otel.config.paths import find_state_dirs
from periflow_otel.journal.pages import page_url
from periflow_otel.page.braille import curve
from periflow_otel.page.words import describe_run
from periflow_otel.terminal import one_line
from periflow_otel.view.words import duration_words

INTERVAL_S: Final = 2.0
"""How often a status that is watched is shown again."""
MAX_CURVES: Final = 4
MAX_RANKS: Final = 32
_CURVE_HEIGHT: Final = 3
_FULL: Final = "\u28ff"
"""A piece of a curve."""
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


def show_status(wanted: str | None, *, is_watched: bool, is_json: bool) -> int:
    """Show how a run is.

    Args:
        wanted: Which, by what it is called; None: the latest that goes on, else the latest.
        is_watched: Show it again and again, until it is over.
        is_json: Write what ``docs/view.md`` describes, once or, if it is watched, a line each time.

    Returns:
        0 if it goes on or went well, 1 if it did not, or is not known.

    Raises:
        ConfigurationError: Several runs may be meant.
    """
    run = find_run(wanted)
    if run is None:
        name = "" if wanted is None else f" {one_line(wanted)}"
        hint = "" if wanted is None else "; 'periflow-otel runs' lists those that are"
        print(f"periflow-otel: no run{name} is known here{hint}", file=sys.stderr)
        return 1
    if is_watched and run.is_live:
        run = _watch(run, is_json=is_json)
    view = view_of(run)
    if is_json:
        _print_json(view)
    else:
        print(describe(view, run))
    return int(view["run"]["state"] in _TROUBLED)


def _watch(run: KnownRun, *, is_json: bool) -> KnownRun:
    """Show a run until it is over; return what is known of it then."""
    with watched() as show:
        while run.is_live:
            view = view_of(run)
            if is_json:
                _print_json(view)
            else:
                show(partial(describe, view, run))
            time.sleep(INTERVAL_S)
            run = find_run(run.run_id) or run._replace(is_live=False)
    return run


def describe(view: View, run: KnownRun, height: int | None = None) -> str:
    """Return lines on a run: how far it is, curves, ranks side by side.

    Args:
        view: What is known of it.
        run: The run.
        height: How many lines there is room for: curves are left out for that. None: any number.
    """
    width = min(shutil.get_terminal_size().columns, 120)
    above, below = [*describe_run(view).splitlines(), *_time_left(view)], [*_ranks(view)]
    if run.is_live and (url := page_url(run.folder)):
        below.append(f"live at {url}")
    room = MAX_CURVES if height is None else (height - len(above) - len(below) - 1) // (_CURVE_HEIGHT + 2)
    return "\n".join([*above, *_curves(view, width, max(0, min(room, MAX_CURVES))), *below])


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


def _curves(view: View, width: int, most: int) -> Iterator[str]:
    """Yield the curves of metrics that change: the value of the others has been said, and is all there is to them."""
    last = max((each["attempt"] for each in view["series"]), default=0)
    shown: dict[str, Any] = {}
    for each in view["series"]:
        if each["kind"] == "metric" and each["attempt"] == last and _changes(each):
            shown.setdefault(each["key"], each)
    keys = sorted(shown, key=_by_weight)
    for key in keys[:most]:
        values = _values(shown[key])
        known = [value for value in values if value is not None]
        values_seen = f"{min(known):.4g} to {max(known):.4g}"
        yield ""
        yield f"{one_line(key)[: max(1, width - len(values_seen) - 2)]}  {values_seen}"
        if _can_show(_FULL):
            yield from curve(values, width, _CURVE_HEIGHT)
    if len(keys) > most:
        yield f"and {len(keys) - most} more metrics that change"


def _values(series: Any) -> list[float | None]:
    return list(series.get("mean") or series["last"])


def _changes(series: Any) -> bool:
    return len({value for value in _values(series) if value is not None}) > 1


def _by_weight(key: str) -> bool:
    """Put losses first: they say most."""
    return "loss" not in key.lower()


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
    for key in sorted(values, key=_by_weight):
        if values[key] is not None:
            return f"{one_line(key)} {values[key]:.4g}"
    return ""


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _print_json(value: object) -> None:
    print(msgspec.json.encode(value).decode(), flush=True)
