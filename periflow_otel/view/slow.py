"""Who holds up steps, single ones or all, by who that is and where."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from periflow_otel import names
from periflow_otel.translate.stragglers.stacks import from_ranges, ranges
from periflow_otel.view.stuck import stacks_of

MAX_KEPT: Final = 50
"""So many of them are kept, those that have come last."""


class SlowSteps:
    """Takes what the agents of a run say."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._places: dict[tuple[int, bool, str, str], dict[str, Any]] = {}
        """By attempt, whether it is about all steps, ranks, and where they were."""

    def add(
        self, attempt: int, attributes: Mapping[str, Any], end_s: float, events: Iterable[Mapping[str, Any]]
    ) -> None:
        """Take a span with its events.

        Args:
            attempt: Of the run.
            attributes: Of the span.
            end_s: Its end, Unix seconds.
            events: Attributes of each.
        """
        who, place = str(attributes.get(names.STUCK_RANKS, "")), str(attributes.get(names.STUCK_PLACE, ""))
        step, excess_s = int(attributes.get(names.STEP, 0)), float(attributes.get(names.SLOW_EXCESS, 0.0))
        is_lasting = bool(attributes.get(names.SLOW_LASTING, False))
        key = (attempt, is_lasting, who, _function(place))
        before = self._places.pop(key, {"count": 0, "seconds": 0.0, "longest": 0.0, "first_step": step})
        self._places[key] = {
            "attempt": attempt,
            "is_lasting": is_lasting,
            "ranks": from_ranges(who),
            "place": place,
            "doing": str(attributes.get(names.SLOW_DOING, "")),
            "count": before["count"] + 1,
            "seconds": before["seconds"] + excess_s,
            "longest": max(before["longest"], excess_s),
            "time": round(end_s, 3),
            "first_step": min(before["first_step"], step),
            "last_step": max(before.get("last_step", step), step),
            "stacks": stacks_of(events),
        }
        while len(self._places) > MAX_KEPT:
            del self._places[next(iter(self._places))]

    def add_earlier(self, other: "SlowSteps") -> None:
        """Take what was said of attempts before."""
        earlier = {
            (each["attempt"], each["is_lasting"], ranges(each["ranks"]), _function(each["place"])): each
            for each in other.to_list()
        }
        self._places = {**earlier, **self._places}

    def to_list(self) -> list[dict[str, Any]]:
        """Return all, those that cost the most first."""
        return sorted(self._places.values(), key=lambda each: -each["seconds"])


def _function(place: str) -> str:
    """Return a place without its line, which changes in a loop: ``train.py (load)``."""
    file, _, function = place.partition(" (")
    return f"{file.rpartition(':')[0]} ({function}"
