"""How numbers are said."""

from collections.abc import Iterable

from periflow_otel.translate.stragglers.stacks import ranges


def duration_words(seconds: float) -> str:
    """Return a duration in its two largest units."""
    if seconds < 60:
        scale, unit = _unit(seconds)
        return f"{seconds * scale:.3g} {unit}"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return f"{days}d {h}h" if days else f"{hours}h {m}m" if hours else f"{minutes}m {s}s"


def ranks_words(ranks: Iterable[int]) -> str:
    """Name ranks: ``Rank 3``, or ``Ranks 0-3, 7``."""
    several = set(ranks)
    return f"Rank{'' if len(several) == 1 else 's'} {ranges(several)}"


def _unit(seconds: float) -> tuple[float, str]:
    if seconds >= 1 or seconds == 0:
        return 1.0, "s"
    return (1e3, "ms") if seconds >= 1e-3 else (1e6, "µs")
