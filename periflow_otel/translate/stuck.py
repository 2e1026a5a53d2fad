"""Which rank holds up a run, as far as the stacks of the ranks of a node tell. Pure.

A rank that waits for others in a collective is not to blame. Nor is one that works at something that takes long: its
functions change from one stack to the next, or bear the name of what is known to take long.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import Final, NamedTuple

from periflow_otel.translate.stacks import Frame, Stack, calls, ranges, user_frame


class Activity(Enum):
    """What a rank does while no step ends."""

    STUCK = "stuck"
    WAITS = "waits for other ranks"
    MAY_WAIT = "may wait for other ranks"
    """In the backward pass, say, whose collectives have no Python frames."""
    WORKS = "works"
    EVALUATES = "evaluates"
    SAVES = "saves"
    COMPILES = "compiles"
    IDLES = "idles"
    """Nobody has asked it to do anything: a notebook between two cells."""
    IS_DEBUGGED = "is debugged"
    IS_STOPPED = "is stopped"
    SILENT = "gives no answer"


HARMLESS: Final = frozenset({Activity.IDLES, Activity.IS_DEBUGGED, Activity.IS_STOPPED})
"""What is never worth a word: somebody wants it so."""
LONG: Final = frozenset({Activity.WORKS, Activity.EVALUATES, Activity.SAVES, Activity.COMPILES})
"""What takes long by nature; and so may waiting for ranks of other nodes, which do one of these perhaps."""

_COLLECTIVES: Final = re.compile(
    r"(monitored_)?barrier|(all_?)?(reduce|gather|to_?all)(_.*|v)?|reduce_scatter.*|broadcast(_.*)?|scatter(_.*)?|recv.*"
    r"|send.*|wait_for_everyone|sync_global_devices|process_allgather|init_process_group|rendezvous|synchronize_sparse"
)
_COMMUNICATION: Final = re.compile(
    r"[/\\](torch[/\\]distributed[/\\](distributed_c10d|c10d_logger|_functional_collectives|rendezvous|nn)"
    r"|horovod|deepspeed[/\\]comm|accelerate|mpi4py|jax[/\\]experimental[/\\]multihost_utils)"
)
_MAY_WAIT: Final = re.compile(r"_engine_run_backward|run_backward|backward|synchronize|_sync_.*")
_DEBUGGERS: Final = re.compile(r"[/\\](pdb|bdb|ipdb|pudb|debugpy|pydevd[^/\\]*|_pydevd_bundle)([/\\].*|\.py)$")
_NOTEBOOKS: Final = re.compile(r"[/\\](ipykernel|ipykernel_launcher\.py|IPython|_pyrepl)([/\\]|$)|[/\\]code\.py$")
_CELL: Final = re.compile(r"ipykernel_\d+|<ipython-input|^<stdin>|^<python-input")
_COMPILERS: Final = re.compile(
    r"[/\\](torch[/\\](_dynamo|_inductor|_functorch[/\\]_aot|utils[/\\]cpp_extension|jit)"
    r"|triton[/\\](compiler|backends|runtime[/\\](jit|autotuner))|jax[/\\]_src[/\\](compiler|pjit|interpreters)|numba[/\\]core)"
)
_EVALUATION: Final = re.compile(r"test|(.*_)?(eval|evaluate|evaluation|valid|validate|validation|predict)(_.*)?")
_SAVING: Final = re.compile(r"(.*_)?(save|saves|saving|checkpoint|upload|push)(_.*)?")
_TRAINING: Final = re.compile(r"(^|_)(train|training|fit|main)(_|$)")
"""What has this in its name may evaluate and save too, but is not known to do so now."""
_WORKING: Final = 4
"""So many different places in as many stacks or more, none of them most of the time, are work and no small loop."""


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
        if self.activity is Activity.WAITS and (frame := _collective(self.stack)):
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
    does = {each.rank: activity_of(each) for each in witnesses}
    is_alone = len(witnesses) == 1 and not gone and not elsewhere
    suspects = frozenset({witnesses[0].rank}) if is_alone else _suspects(witnesses, does)
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
                Activity.STUCK if rest is False and does[members[0].rank] is Activity.WAITS else does[members[0].rank],
                _last(members[0]),
                is_culprit=not rest,
            )
            for (rest, *_), members in ordered
        ),
        gone,
        elsewhere,
    )


def activity_of(witness: Witness) -> Activity:
    """Tell what a rank does, as far as it can be told without the others."""
    if witness.activity is not None:
        return witness.activity
    if not witness.stacks:
        return Activity.SILENT
    return next((activity for activity, is_so in _SIGNS if is_so(witness.stacks)), Activity.STUCK)


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


def _behind(witnesses: Sequence[Witness]) -> list[Witness]:
    least = min(each.progress for each in witnesses)
    return [each for each in witnesses if each.progress == least]


def _last(witness: Witness) -> Stack:
    return witness.stacks[-1] if witness.stacks else ()


def _inner(stack: Stack) -> int:
    """Return how many calls of libraries are within the innermost one of the user's own code."""
    return next((number for number, frame in enumerate(stack) if not frame.is_of_library), len(stack))


def _collective(stack: Stack) -> Frame | None:
    """Return the outermost call of a collective that the innermost code of the user's own has made."""
    inner = [frame for frame in stack[: _inner(stack)] if _COMMUNICATION.search(frame.file)]
    return next((frame for frame in reversed(inner) if _COLLECTIVES.fullmatch(frame.function)), None)


def _is_debugged(stacks: Sequence[Stack]) -> bool:
    return any(_DEBUGGERS.search(frame.file) for frame in stacks[-1])


def _is_idle(stacks: Sequence[Stack]) -> bool:
    """Tell whether an interpreter waits for somebody to type."""
    files = [frame.file for frame in stacks[-1]]
    return not files or (any(map(_NOTEBOOKS.search, files)) and not any(map(_CELL.search, files)))


def _compiles(stacks: Sequence[Stack]) -> bool:
    return any(_COMPILERS.search(frame.file) for frame in stacks[-1])


def _works(stacks: Sequence[Stack]) -> bool:
    """Tell whether a rank comes about more than in a small loop."""
    counts = Counter(map(calls, stacks))
    return len(counts) >= _WORKING and 2 * max(counts.values()) <= len(stacks)


def _waits(stacks: Sequence[Stack]) -> bool:
    return _collective(stacks[-1]) is not None


def _may_wait(stacks: Sequence[Stack]) -> bool:
    stack = stacks[-1]
    return any(_MAY_WAIT.fullmatch(frame.function) for frame in stack[: _inner(stack) + 1])


def _is_named(name: "re.Pattern[str]", stacks: Sequence[Stack]) -> bool:
    functions = [frame.function for frame in stacks[-1]]
    return any(name.fullmatch(function) and not _TRAINING.search(function) for function in functions)


_SIGNS: Final[tuple[tuple[Activity, Callable[[Sequence[Stack]], bool]], ...]] = (
    (Activity.IS_DEBUGGED, _is_debugged),
    (Activity.IDLES, _is_idle),
    (Activity.COMPILES, _compiles),
    (Activity.WORKS, _works),
    (Activity.WAITS, _waits),
    (Activity.EVALUATES, partial(_is_named, _EVALUATION)),
    (Activity.SAVES, partial(_is_named, _SAVING)),
    (Activity.MAY_WAIT, _may_wait),
)
"""How stacks tell what a rank does; the first that holds."""


def place_of(frame: Frame | None) -> str:
    """Return where a call is, in few words."""
    return "no Python code" if frame is None else f"{frame.place} ({frame.function})"
