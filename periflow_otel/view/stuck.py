"""Ranks that did not go on: the latest word on each time that they did not."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from periflow_otel import names
from periflow_otel.translate.stragglers.stacks import from_ranges

MAX_KEPT: Final = 50
"""So many times are kept, the latest."""


class StuckTimes:
    """Takes what the agents of a run say; some agent says it again and again, and at last that it is over."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._times: dict[tuple[int, int, int], dict[str, Any]] = {}
        """By attempt, node and step."""

    def add(
        self,
        attempt: int,
        attributes: Mapping[str, Any],
        start_s: float,
        end_s: float,
        events: Iterable[Mapping[str, Any]],
    ) -> None:
        """Take a span with its events.

        Args:
            attempt: Of the run.
            attributes: Of the span.
            start_s: Since when, in Unix seconds.
            end_s: When that was said.
            events: Attributes of each; none when it is over.
        """
        node_rank, step = int(attributes.get(names.NODE_RANK, 0)), int(attributes.get(names.STEP, 0))
        before = self._times.pop((attempt, node_rank, step), {"stacks": []})
        stacks = stacks_of(events)
        self._times[attempt, node_rank, step] = {
            "attempt": attempt,
            "node_rank": node_rank,
            "step": step,
            "phase": attributes.get(names.STUCK_PHASE, ""),
            "since": round(start_s, 3),
            "time": round(end_s, 3),
            "ranks": from_ranges(str(attributes.get(names.STUCK_RANKS, ""))),
            "place": attributes.get(names.STUCK_PLACE, ""),
            "summary": attributes.get(names.STUCK_SUMMARY, ""),
            "is_over": bool(attributes.get(names.STUCK_OVER, False)),
            "stacks": stacks or before["stacks"],
        }
        while len(self._times) > MAX_KEPT:
            del self._times[next(iter(self._times))]

    def add_earlier(self, other: "StuckTimes") -> None:
        """Take what was said of attempts before."""
        self._times = {
            **{(each["attempt"], each["node_rank"], each["step"]): each for each in other.to_list()},
            **self._times,
        }

    def present(self, attempt: int) -> str | None:
        """Return in a line what holds up an attempt now; None if nothing does, as far as anybody has said."""
        return next(
            (each["summary"] for each in self._times.values() if each["attempt"] == attempt and not each["is_over"]),
            None,
        )

    def to_list(self) -> list[dict[str, Any]]:
        """Return all, in the order in which they were last told of."""
        return list(self._times.values())


def stacks_of(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what ranks were doing, from the attributes of the events that tell it."""
    return [
        {
            "ranks": from_ranges(str(each.get(names.STUCK_RANKS, ""))),
            "role": each.get(names.STUCK_ROLE, ""),
            "summary": each.get(names.STUCK_SUMMARY, ""),
            "stacktrace": each.get(names.CODE_STACKTRACE, ""),
        }
        for each in events
    ]
