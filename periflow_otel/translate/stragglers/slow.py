"""Which rank held up a step that took much longer than usual, as far as a few looks at the ranks of a node tell. Pure.

Ranks that meet within a step end it together, so all of them are slow. At each look some wait in a collective, or most
are at the very same place; who does neither holds them up. A rank that does so at most looks is to blame.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import Final, NamedTuple

from periflow_otel.translate.stragglers.activities import Activity, activity_of, collective, may_wait
from periflow_otel.translate.stragglers.stacks import Frame, Stack, user_frame
from periflow_otel.translate.stragglers.stuck import place_of

LEAST_LOOKS: Final = 3
"""At so many looks a rank must have held up others,"""
LEAST_SHARE: Final = 1 / 3
"""at this share of all looks in a slow step,"""
LASTING_SHARE: Final = 1 / 4
"""or at this share of looks at random moments,"""
MOST: Final = 2 / 3
"""and at this share of those at which any did."""
_EXCUSED: Final = frozenset(
    {Activity.EVALUATES, Activity.SAVES, Activity.COMPILES, Activity.IDLES, Activity.IS_DEBUGGED}
)
"""What takes long by nature, or because somebody wants it so."""


class Doing(Enum):
    """What the main thread of a rank does, as the scheduler sees it."""

    COMPUTES = "computes"
    QUEUES = "waits for a processor"
    READS = "waits for a disk"
    SLEEPS = "sleeps or waits"


class Sample(NamedTuple):
    """What was seen of a rank at a look."""

    stack: Stack
    doing: Doing


Look = Mapping[int, Sample]
"""By rank; those that gave no answer are missing."""


class Culprit(NamedTuple):
    """Who held up a step."""

    ranks: tuple[int, ...]
    doing: Doing
    stack: Stack
    """Where it was most of the time."""
    waiting: Mapping[int, Stack]
    """Where the others were at the same time."""
    share: float = 1.0
    """Of the looks at which the others waited for it."""

    @property
    def place(self) -> str:
        """Where it is, in the words of the user's own code."""
        return place_of(user_frame(self.stack))


def find_culprit(looks: Sequence[Look], least_share: float = LEAST_SHARE) -> Culprit | None:
    """Tell who held up the others; None if nobody did, or it cannot be told.

    Args:
        looks: At the ranks of a node, one after another.
        least_share: Of the looks at which a rank must have done so.
    """
    held = [(look, busy) for look in looks if (busy := _busy(look))]
    counts = Counter(rank for _, busy in held for rank in busy)
    least = max(LEAST_LOOKS, least_share * len(looks), MOST * len(held))
    ranks = tuple(sorted(rank for rank, count in counts.items() if count >= least))
    if not ranks:
        return None
    seen = [look for look, busy in held if ranks[0] in busy]
    samples = [look[ranks[0]] for look in seen]
    if activity_of([each.stack for each in samples]) in _EXCUSED:
        return None
    stack = _usual_stack([each.stack for each in samples])
    last = next(look for look in reversed(seen) if look[ranks[0]].stack == stack)
    doing = Counter(each.doing for each in samples).most_common(1)[0][0]
    waiting = {rank: each.stack for rank, each in last.items() if rank not in ranks}
    return Culprit(ranks, doing, stack, waiting, len(seen) / len(looks))


def _busy(look: Look) -> Collection[int]:
    """Return the ranks for which the others wait at a look: some ranks do, and no fewer than those."""
    counts = Counter(each.stack for each in look.values() if each.doing is not Doing.QUEUES)
    most, count = counts.most_common(1)[0] if counts else ((), 0)
    together = most if 2 * count > len(look) else None
    busy = [rank for rank, each in look.items() if not _waits(each) and each.stack != together]
    return busy if 2 * len(busy) <= len(look) else ()


def _waits(sample: Sample) -> bool:
    return collective(sample.stack) is not None or (sample.doing is Doing.SLEEPS and may_wait(sample.stack))


def _usual_stack(stacks: Sequence[Stack]) -> Stack:
    """Return the most common stack at the place where most are; lines change in a loop."""
    function, _ = Counter(map(_function, stacks)).most_common(1)[0]
    return Counter(each for each in stacks if _function(each) == function).most_common(1)[0][0]


def _function(stack: Stack) -> tuple[str, str]:
    frame: Frame | None = user_frame(stack)
    return (frame.file, frame.function) if frame else ("", "")
