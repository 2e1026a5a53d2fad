"""A run in a few words, for a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

View = Mapping[str, Any]
"""What ``RunView.to_dict`` returns."""


def describe_run(view: View) -> str:
    """Return some lines on how a run went."""
    run = view["run"]
    target = f"/{run['target_step']}" if run["target_step"] else ""
    duration = duration_words(run["seen"] - run["started"]) if run["started"] else "–"
    attempts = f", attempt {run['attempt']}" if run["attempt"] > 1 else ""
    lines = [
        f"{one_line(run['name'] or run['id'])}: {run['state']} at step {run['step']}{target}, {duration}{attempts}"
    ]
    lines += [f"  {one_line(key)} {value:.6g}" for key, value in run["last"].items() if value is not None]
    steps = [rank for rank in view["ranks"] if rank["attempt"] == run["attempt"] and rank["duration"]["p50"]]
    if steps:
        slowest = max(steps, key=lambda rank: rank["duration"]["p50"])
        duration_s = slowest["duration"]
        lines.append(
            f"  step time p50 {duration_words(duration_s['p50'])}, p95 {duration_words(duration_s['p95'])}, "
            f"max {duration_words(duration_s['max'])}" + (f", rank {slowest['rank']}" if len(steps) > 1 else "")
        )
    lines += _trouble(view)
    return "\n".join(lines)


def _trouble(view: View) -> Iterator[str]:
    for rank in view["ranks"]:
        for key, count in rank["nonfinite"]["by_key"].items():
            step = next((mark["step"] for mark in rank["nonfinite"]["kept"] if mark["key"] == key), "?")
            yield f"  ! {one_line(key)} was not finite {count} times on rank {rank['rank']}, first at step {step}"
    for attempt in view["attempts"][1:]:
        yield f"  ! attempt {attempt['attempt']} did {attempt['redone_steps']} steps again"


def duration_words(seconds: float) -> str:
    """Return a duration in its two largest units."""
    if seconds < 60:
        scale, unit = _unit(seconds)
        return f"{seconds * scale:.3g} {unit}"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return f"{days}d {h}h" if days else f"{hours}h {m}m" if hours else f"{minutes}m {s}s"


def _unit(seconds: float) -> tuple[float, str]:
    if seconds >= 1 or seconds == 0:
        return 1.0, "s"
    return (1e3, "ms") if seconds >= 1e-3 else (1e6, "µs")


def one_line(text: str) -> str:
    """Return text that can neither end the line nor steer a terminal."""
    return "".join(each if each.isprintable() else "?" for each in text)
