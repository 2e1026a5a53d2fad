"""Which rank holds up a run, as far as the stacks of the ranks of a node tell. Pure.

A rank that waits for others in a collective is not to blame. Nor is one that works at something that takes long: its
functions change from one stack to the next, or bear the name of what is known to take long.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from periflow_otel.translate.stragglers.activities import HARMLESS, LONG, Activity, activity_of, collective
from periflow_otel.translate.stragglers.stacks import Frame, Stack, calls, ranges, user_frame


class Witness(NamedTuple):
    """What was seen of a rank."""

    rank: int
    step: int
    """That has begun last."""
    is_step_open: bool
    stacks: tuple[Stack, ...] = ()
    """Asked for one after another; those that were not given are missing."""
    activity: Activity | None = None
    """What is known of it without them."""

    @property
    def progress(self) -> tuple[int, bool]:
        """How far it is: in a step is behind between that step and the next."""
        return self.step, not self.is_step_open


class Group(NamedTuple):
    """Ranks that are at the same place."""

    ranks: tuple[int, ...]
    activity: Activity
    stack: Stack
    is_culprit: bool

    @property
    def frame(self) -> Frame | None:
        """Where it is, in the words of the user's own code."""
        return user_frame(self.stack)

    @property
    def place(self) -> str:
        """That in few words; what it does where there is no stack."""
        return place_of(self.frame) if self.stack else self.activity.value

    def describe(self) -> str:
        """Say which ranks do what, and where."""
        one = len(self.ranks) == 1
        who = f"rank {self.ranks[0]}" if one else f"{len(self.ranks)} ranks ({ranges(self.ranks)})"
        if self.activity is Activity.WAITS and (frame := collective(self.stack)):
            return f"{who} wait{'s' * one} in {frame.function}"
        if self.activity is Activity.SILENT:
            return f"{who} give{'s' * one} no answer"
        verb = "is" if one else "are"
        return f"{who} {verb} {'in ' if self.stack else ''}{self.place.removeprefix('is ')}"


class Finding(NamedTuple):
    """What is to be said of a node whose ranks do not go on."""

    groups: tuple[Group, ...]
    """Those to blame first."""
    gone: int = 0
    """So many ranks of the node are not there any more."""
    elsewhere: int = 0
    """So many ranks are on other nodes."""

    @property
    def culprits(self) -> tuple[Group, ...]:
        """Those that hold up the others; none if all wait for one that is elsewhere."""
        return tuple(group for group in self.groups if group.is_culprit)

    def excuse(self) -> Activity | None:
        """Return why there may be nothing to say; None: there is."""
        found = {group.activity for group in self.groups if group.activity in HARMLESS}
        found |= {group.activity for group in self.culprits if group.activity in LONG}
        if self.elsewhere and not self.culprits and not self.gone:
            found.add(Activity.WAITS)
        return min(found, key=lambda each: (each not in HARMLESS, each.value)) if found else None

    def describe(self) -> str:
        """Say it in one line."""
        parts = [group.describe() for group in self.groups]
        if self.gone:
            parts.append(f"{self.gone} rank{' is' if self.gone == 1 else 's are'} gone")
        return "; ".join(parts)

    def who(self) -> str:
        """Return which ranks are to blame; all, where none is."""
        return ranges([rank for group in self.culprits or self.groups for rank in group.ranks])

    def place(self) -> str:
        """Return where the first of these ranks is."""
        return (self.culprits or self.groups)[0].place


def find_culprits(witnesses: Sequence[Witness], gone: int = 0, elsewhere: int = 0) -> Finding:
    """Group the ranks of a node, and tell who holds up the others.

    Args:
        witnesses: The ranks that are there.
        gone: How many others were there, and are not any more.
        elsewhere: How many there are on other nodes.
    """
    does = {each.rank: each.activity or activity_of(each.stacks) for each in witnesses}
    is_alone = len(witnesses) == 1 and not gone and not elsewhere
    suspects = frozenset({witnesses[0].rank}) if is_alone else _suspects(witnesses, does)
    if not suspects and not gone and not elsewhere:
        suspects = _odd(witnesses)
    does |= {each.rank: Activity.WAITS for each in witnesses if does[each.rank] is Activity.MAY_WAIT}
    groups: dict[tuple[object, ...], list[Witness]] = {}
    for each in witnesses:
        key = (each.rank not in suspects, does[each.rank].value, calls(_last(each)))
        groups.setdefault(key, []).append(each)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], item[1][0].rank))
    return Finding(
        tuple(
            Group(
                tuple(each.rank for each in members),
                does[members[0].rank],
                _last(members[0]),
                is_culprit=not rest,
            )
            for (rest, *_), members in ordered
        ),
        gone,
        elsewhere,
    )


def _suspects(witnesses: Sequence[Witness], does: dict[int, Activity]) -> frozenset[int]:
    """Return the ranks that do not seem to wait: of several the one that is behind, or that is not where most are."""
    waits = (Activity.WAITS, Activity.MAY_WAIT)
    left = [each for each in witnesses if does[each.rank] not in waits]
    if not left and Activity.WAITS in does.values():
        left = [each for each in witnesses if does[each.rank] is Activity.MAY_WAIT]
    if not left:
        behind = _behind(witnesses)
        return frozenset(each.rank for each in behind) if len(behind) < len(witnesses) else frozenset()
    left = _behind(left)
    counts = Counter(calls(_last(each)) for each in left)
    most, count = counts.most_common(1)[0]
    if len(counts) > 1 and 2 * count > len(left):
        left = [each for each in left if calls(_last(each)) != most]
    return frozenset(each.rank for each in left)


def _odd(witnesses: Sequence[Witness]) -> frozenset[int]:
    """Return the few that wait in another collective than most: the others do not take part in it."""
    waits_in = {each.rank: frame.function for each in witnesses if (frame := collective(_last(each)))}
    most, count = Counter(waits_in.values()).most_common(1)[0] if waits_in else ("", 0)
    is_known = 2 * count > len(witnesses) == len(waits_in)
    return frozenset(rank for rank, function in waits_in.items() if is_known and function != most)


def _behind(witnesses: Sequence[Witness]) -> list[Witness]:
    least = min(each.progress for each in witnesses)
    return [each for each in witnesses if each.progress == least]


def _last(witness: Witness) -> Stack:
    return witness.stacks[-1] if witness.stacks else ()


def place_of(frame: Frame | None) -> str:
    """Return where a call is, in few words."""
    return "no Python code" if frame is None else f"{frame.place} ({frame.function})"
