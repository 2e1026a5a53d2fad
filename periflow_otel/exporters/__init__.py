"""Where spans, points and log lines go: one module per destination, behind one small protocol."""

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from periflow_otel.records import RankRun

Item = tuple[RankRun, Any]
"""A span, a point or a record, with the rank that it comes from."""
Item_contra = TypeVar("Item_contra", contravariant=True)


class Verdict(Enum):
    """What an exporter's answer means for what it was given, and so what is done next."""

    TAKEN = "delivered"
    TOO_LARGE = "too_large"
    """Less at once may pass: it is halved."""
    REFUSED = "refused"
    """Some of the items are to blame: they are looked for, and set aside."""
    FAILED = "failed"
    """Tried again. If that does not help, while others pass, an item may be to blame after all."""
    LATER = "later"
    """Nothing is wrong with it: tried again after a while."""
    WRONG = "wrong"
    """Kept until somebody changes something: an address, a token, a setting."""
    DECLINED = "declined"
    """The receiver takes no such items at all, though it takes others."""


class Outcome(NamedTuple):
    """What became of the items that were given to an exporter."""

    verdict: Verdict
    cause: str = ""
    """What happened, in our words, for the log: one line, no secrets. The same trouble has the same cause."""
    said: str = ""
    """The receiver's own words, cleaned."""
    retry_after_s: float | None = None
    """How long to wait before the next try; None leaves it to the caller's backoff."""
    done: int = 0
    """So many of the first items are done with, whatever the verdict is about the rest."""
    rejected: int = 0
    """So many of those that are done with were refused for good, and nobody knows which."""

    @property
    def message(self) -> str:
        """Cause and reason in one line."""
        return ": ".join(filter(None, (self.cause, self.said)))


def taken(count: int, rejected: int = 0, said: str = "") -> Outcome:
    """Return the outcome of a success.

    Args:
        count: How many items were given.
        rejected: How many of them the receiver took out, for good.
        said: What it had to say.
    """
    return Outcome(Verdict.TAKEN, said=said, done=count, rejected=rejected)


class Exporter(Protocol[Item_contra]):
    """One destination of one signal.

    An exporter is used by one thread. It raises nothing for a fault of the world: that is an ``Outcome``.
    """

    def export(self, items: Sequence[tuple[RankRun, Item_contra]]) -> Outcome:
        """Try once to deliver items, oldest first, each with the rank that it comes from."""

    def close(self) -> None:
        """Release files and connections."""


@runtime_checkable
class ShowsState(Protocol):
    """An exporter that shows a run as it is."""

    def forget(self, run: RankRun) -> None:
        """Show a rank no more: its run is over, and delivered everywhere. In the thread of ``export``."""


@runtime_checkable
class IsWatched(Protocol):
    """An exporter that somebody may be looking at."""

    def is_awaited(self) -> bool:
        """Tell whether somebody is looking who does not know all there is yet. From any thread."""
