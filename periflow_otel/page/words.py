"""A run in a few words, for a terminal."""

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

from periflow_otel.terminal import one_line
from periflow_otel.view.log_entries import ERROR
from periflow_otel.view.words import duration_words

View = Mapping[str, Any]
"""What ``RunView.to_dict`` returns."""
MAX_LINE_CHARS: Final = 200
"""Of what was logged."""
MAX_VALUES: Final = 12


def describe_run(view: View) -> str:
    """Return some lines on how a run went."""
    run = view["run"]
    target = f"/{run['target_step']}" if run["target_step"] else ""
    duration = duration_words(run["seen"] - run["started"]) if run["started"] else "–"
    attempts = f", attempt {run['attempt']}" if run["attempt"] > 1 else ""
    lines = [
        f"{one_line(run['name'] or run['id'])}: {run['state']} at step {run['step']}{target}, {duration}{attempts}"
    ]
    lines += _values(run["last"])
    steps = [rank for rank in view["ranks"] if rank["attempt"] == run["attempt"] and rank["duration"]["p50"]]
    if steps:
        slowest = max(steps, key=lambda rank: rank["duration"]["p50"])
        duration_s = slowest["duration"]
        lines.append(
            f"  step time p50 {duration_words(duration_s['p50'])}, p95 {duration_words(duration_s['p95'])}, "
            f"max {duration_words(duration_s['max'])}" + (f", rank {slowest['rank']}" if len(steps) > 1 else "")
        )
    lines += [f"  {'!' if each['is_fault'] else '-'} {one_line(each['text'])}" for each in view["findings"]]
    lines += [f"  last error: {said_words(each, view)}" for each in _errors(view)[-1:]]
    return "\n".join(lines)


def _values(last: Mapping[str, float | None]) -> list[str]:
    """Return the last values of metrics, losses first, and how many more there are."""
    known = sorted(last, key=lambda key: "loss" not in key.lower())
    left = len(known) - MAX_VALUES
    lines = [f"  {one_line(key)} {_shown(last[key])}" for key in known[:MAX_VALUES]]
    return [*lines, f"  and {left} more {'metric' if left == 1 else 'metrics'}"] if left > 0 else lines


def _shown(value: float | None) -> str:
    return "is not finite" if value is None or not isfinite(value) else f"{value:.6g}"


def said_words(said: Mapping[str, Any], view: View) -> str:
    """Return in a line what a rank has logged, where and when."""
    where = [f"rank {said['rank']}"] if view["run"]["world_size"] > 1 else []
    where += [f"step {said['step']}"] if said["step"] is not None else []
    line = one_line(f"{said['logger']}: {said['message']}"[:MAX_LINE_CHARS])
    return f"{line} ({', '.join(where)})" if where else line


def _errors(view: View) -> list[Any]:
    """Return what the ranks of the last attempt have logged as errors."""
    kept = view["logs"]["kept"]
    return [each for each in kept if each["severity"] >= ERROR and each["attempt"] == view["run"]["attempt"]]
