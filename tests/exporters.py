"""Exporters that do what they are told, and know what they were given."""

from collections.abc import Callable, Sequence
from typing import Any

from periflow_otel.exporters import Item, Outcome, Verdict, taken


def take(items: list[Any]) -> Outcome:
    """Take everything."""
    return taken(len(items))


def down(_: list[Any]) -> Outcome:
    """Take nothing, as nobody is there."""
    return Outcome(Verdict.LATER, "down")


def fail(_: list[Any]) -> Outcome:
    """Take nothing, and do not say why."""
    return Outcome(Verdict.FAILED, "HTTP 500")


class Scripted:
    """Answers as ``answer`` says, and keeps what it took."""

    def __init__(self, answer: Callable[[list[Any]], Outcome] = take) -> None:
        """Call ``answer`` with the items of each call, without their ranks."""
        self.answer = answer
        self.calls: list[list[Any]] = []
        self.taken: list[Item] = []

    def export(self, items: Sequence[Item]) -> Outcome:
        """Take what the answer says."""
        self.calls.append([item for _, item in items])
        outcome = self.answer(self.calls[-1])
        self.taken += items[: outcome.done]
        return outcome

    def close(self) -> None:
        """Do nothing."""
