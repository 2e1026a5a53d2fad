"""How numbers are said."""

from collections.abc import Iterable, Sequence


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
    ordered = sorted(set(ranks))
    if len(ordered) == 1:
        return f"Rank {ordered[0]}"
    return f"Ranks {', '.join(map(_stretch_words, _stretches(ordered)))}"


def _unit(seconds: float) -> tuple[float, str]:
    if seconds >= 1 or seconds == 0:
        return 1.0, "s"
    return (1e3, "ms") if seconds >= 1e-3 else (1e6, "µs")


def _stretches(numbers: Sequence[int]) -> list[list[int]]:
    """Return sorted numbers as stretches without a hole."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return found


def _stretch_words(stretch: Sequence[int]) -> str:
    if len(stretch) < 3:
        return ", ".join(map(str, stretch))
    return f"{stretch[0]}-{stretch[-1]}"
