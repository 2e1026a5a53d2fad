"""Where spans, points and log lines go: one module per destination, behind one small protocol."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

from periflow_otel.records import RankRun

Item_contra = TypeVar("Item_contra", contravariant=True)


class Outcome(NamedTuple):
    """What became of the items that were given to an exporter.

    The first ``delivered + rejected`` of them are done with. If that is not all, the exporter wants the rest again.
    """

    delivered: int
    rejected: int = 0
    """Refused by the receiver for good."""
    message: str = ""
    """Why items were rejected or are left, for the log: one line, no secrets."""
    retry_after_s: float | None = None
    """How long the receiver asks to be left alone; None leaves it to the caller's backoff."""


class Exporter(Protocol[Item_contra]):
    """One destination of one signal.

    An exporter is used by one thread. It raises nothing for a fault of the world: that is an ``Outcome``.
    """

    def export(self, items: Sequence[tuple[RankRun, Item_contra]]) -> Outcome:
        """Deliver items, oldest first, each with the rank that it comes from: what up to 512 records hold."""

    def close(self) -> None:
        """Release files and connections."""
