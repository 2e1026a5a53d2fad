"""Where spans, points and log lines go: one module per destination, behind one small protocol."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from periflow_otel.records import RankRun

Item = tuple[RankRun, Any]
"""A span, a point or a record, with the rank that it comes from."""

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


@runtime_checkable
class ShowsState(Protocol):
    """An exporter that shows a run as it is."""

    def forget(self, run: RankRun) -> None:
        """Show a rank no more: its run is over, and delivered everywhere. In the thread of ``export``."""
