"""Exporters that do what they are told, and know what they were given."""

from collections.abc import Callable, Sequence
from typing import Any

from periflow_otel.exporters import Item, Outcome


class Scripted:
    """Answers as ``answer`` says, and keeps what it took."""

    def __init__(self, answer: Callable[[list[Any]], Outcome] = lambda items: Outcome(len(items))) -> None:
        """Call ``answer`` with the items of each call, without their ranks."""
        self.answer = answer
        self.calls: list[list[Any]] = []
        self.taken: list[Item] = []

    def export(self, items: Sequence[Item]) -> Outcome:
        """Take what the answer says."""
        self.calls.append([item for _, item in items])
        outcome = self.answer(self.calls[-1])
        self.taken += items[: outcome.delivered + outcome.rejected]
        return outcome

    def close(self) -> None:
        """Do nothing."""
