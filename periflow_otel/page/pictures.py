"""Curves as SVG and numbers as tables: what a page shows that may not run scripts."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

View = Mapping[str, Any]

MAX_CURVES: Final = 24
"""So many metrics of a run have a picture; all have their last value in a table."""
_WIDTH: Final = 600
_HEIGHT: Final = 200
_LEFT: Final = 60
_BOTTOM: Final = 20


def pictures(views: Sequence[View]) -> str:
    """Return HTML with a summary, the curves and the last values of each run."""
    return "\n".join(map(_of_run, views))


def _of_run(view: View) -> str:
    run = view["run"]
    facts = {name: run[name] for name in ("state", "step", "target_step", "pace", "attempt", "world_size")}
    curves = _curves(view["series"])
    cards = "\n".join(map(_card, curves[:MAX_CURVES]))
    return (
        f"<main><section><h2>{escape(str(run['name'] or run['id']))}</h2>{_table('Run', facts)}</section>"
        f'<section><h2>Metrics</h2><div class="grid">{cards}</div>{_table("Last values", run["last"])}</section></main>'
    )


def _curves(series: Iterable[View]) -> list[View]:
    """Return one series of each metric: the lowest rank's, of the last attempt."""
    found: dict[str, View] = {}
    for each in series:
        if each["kind"] == "metric":
            known = found.get(each["key"], each)
            found[each["key"]] = min(known, each, key=lambda one: (one["rank"], -one["attempt"]))
    return list(found.values())


def _card(series: View) -> str:
    title = escape(series["key"])
    return f'<article class="card"><h3>{title}</h3>{curve_svg(series)}</article>'


def curve_svg(series: View) -> str:
    """Return a curve by step as SVG, over the range of values in each row."""
    means = series.get("mean", series["last"])
    rows = list(zip(series["step"], means, series.get("min", means), series.get("max", means), strict=True))
    known = [row for row in rows if row[1] is not None]
    title = escape(series["key"])
    if not known:
        return f"<p>{title}: no finite values</p>"
    x0, x1 = known[0][0], max(known[-1][0], known[0][0] + 1)
    y0, y1 = min(row[2] for row in known), max(row[3] for row in known)

    def place(step: float, value: float) -> str:
        x = _LEFT + (step - x0) / (x1 - x0) * (_WIDTH - _LEFT - 10)
        y = 8 + (1 - _share(value, y0, y1)) * (_HEIGHT - _BOTTOM - 16)
        return f"{x:.1f} {y:.1f}"

    area = [place(step, high) for step, _, _, high in known] + [place(step, low) for step, _, low, _ in reversed(known)]
    lines = " ".join(f"M{'L'.join(place(row[0], row[1]) for row in part)}" for part in _parts(rows))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title} by step">'
        f'<path class="area" d="M{"L".join(area)}Z"/><path class="curve" d="{lines}"/>'
        f'<path class="axis" d="M{_LEFT} 0V{_HEIGHT - _BOTTOM}H{_WIDTH}"/>'
        f'<text x="4" y="16">{y1:.4g}</text><text x="4" y="{_HEIGHT - _BOTTOM}">{y0:.4g}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 4}">{x0:.0f}</text>'
        f'<text x="{_WIDTH - 60}" y="{_HEIGHT - 4}">{x1:.0f}</text></svg>'
    )


def _share(value: float, low: float, high: float) -> float:
    """Return where a value lies between two, from 0 to 1; the difference of their halves is never too large."""
    span = high / 2 - low / 2
    return (value / 2 - low / 2) / span if span else 0.5


def _parts(rows: Sequence[tuple[Any, ...]]) -> Iterable[list[tuple[Any, ...]]]:
    """Yield what lies between gaps."""
    part: list[tuple[Any, ...]] = []
    for row in rows:
        if row[1] is not None:
            part.append(row)
        elif part:
            yield part
            part = []
    if part:
        yield part


def _table(caption: str, values: Mapping[str, Any]) -> str:
    cells = ((escape(str(name)), escape(_shown(value))) for name, value in values.items())
    rows = "".join(f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in cells)
    return f"<table><caption>{escape(caption)}</caption><tbody>{rows}</tbody></table>"


def _shown(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
