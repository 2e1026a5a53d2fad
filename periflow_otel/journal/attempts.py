"""Which attempt of a run a rank takes part in, agreed on through files that all ranks of a node see.

    <state dir>/<run id>/@attempts/003/made      what the first rank of attempt 3 made up for all
                                      /r00000    rank 0 took part: locked while it lives, then how it ended

Where a home directory is shared, the ranks of all nodes see them. A hard link puts a file there whole, and only if
there is none: so of ranks that come at once one makes the attempt and the others join it.
"""

import os
import secrets
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from periflow_otel.journal.files import load_own, open_own
from periflow_otel.journal.folders import ATTEMPTS, make_private
from periflow_otel.journal.life import holds
from periflow_otel.processes import Process

MADE_FILE: Final = "made"

_MAX_BYTES: Final = 4 << 10
"""More than any of the files takes."""
_FINISHED: Final = b"finished\n"
_FAILED: Final = b"failed\n"

State = Literal["absent", "alive", "away", "finished", "lost"]
"""What is known of a rank in an attempt. Away: on another machine, with no word of its end."""


class Made(msgspec.Struct, frozen=True):
    """What the first rank of an attempt made up for all."""

    seed: str
    """What ids are derived from."""
    world_size: int
    restarts: int | None
    """How often the launcher had started the run again, if it told."""
    meeting_point: str | None = None
    """Where its ranks meet, if the launcher told."""


class _Part(msgspec.Struct, frozen=True):
    """Who took part."""

    process: Process
    node: str
    """Name of the folder of its node."""


class Wish(NamedTuple):
    """What a rank knows of its attempt before it looks."""

    rank: int
    made: Made
    """What it would make up."""
    attempt: int | None = None
    """Its number, where somebody gave one."""
    is_named: bool = False
    """The user gave the run its name, so that it goes on although it has finished. A launcher names only a place."""


class Membership:
    """A rank's part in an attempt, seen by others as alive until ``leave``, or the end of the process."""

    def __init__(self, number: int, seed: str, path: Path, descriptor: int) -> None:
        """Hold a descriptor of the file that tells of the rank: it has the lock."""
        self._path = path
        self.number = number
        """Of the attempt, as it is called in the folder of the run."""
        self.seed = seed
        self._descriptor: int | None = descriptor
        _memberships.add(self)

    def leave(self, error: str | None) -> None:
        """Write down how it ended: with the type of an exception, or without one. Once."""
        if self._descriptor is not None:
            with suppress(OSError):  # the disk is full: it counts as lost
                os.write(self._descriptor, _FINISHED if error is None else _FAILED)
            self.release()

    def withdraw(self) -> None:
        """Be as if never there."""
        with suppress(OSError):
            self._path.unlink()
        self.release()

    def release(self) -> None:
        """Let go of the lock and say nothing: this is a forked child, or the end of the process."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    __del__ = release


def join(node: Path, wish: Wish, *, known: int = 0, has_successor: bool = False) -> Membership | None:
    """Join the attempt that goes on, or make the next one.

    Args:
        node: Folder of the run on this node; it exists.
        wish: Who joins, and what it would make up.
        known: The highest attempt of this rank that is known from elsewhere: its files may be gone.
        has_successor: There is a later run in the same place.

    Returns:
        None if the run there is another one: it has finished, or another process is this rank in it right now.

    Raises:
        OSError: The folder cannot be used.
    """
    while True:
        number = _choose(node.parent / ATTEMPTS, wish, known, has_successor=has_successor)
        if number is None:
            return None
        made = _make(_folder(node.parent, number), wish.made)
        if membership := _take_part(node, number, wish.rank, made.seed):
            return membership


def join_agreed(node: Path, wish: Wish) -> Membership:
    """Join the attempt with the seed and the number that all ranks agreed on.

    Its folder has a later number where this node knows another attempt by that one.

    Raises:
        OSError: The folder cannot be used.
    """
    number = wish.attempt or 1
    while True:
        made = _make(_folder(node.parent, number), wish.made)
        if made.seed == wish.made.seed and (found := _take_part(node, number, wish.rank, made.seed)):
            return found
        number += 1


def new_seed() -> str:
    """Return a seed that no other run has."""
    return secrets.token_hex(8)


def earlier_parts(run_folder: Path, rank: int) -> Iterator[tuple[int, Path]]:
    """Yield the attempts in which a rank took part, with the node folder that each was in."""
    for number in _numbers(run_folder / ATTEMPTS):
        with suppress(OSError, ValueError):  # it did not, or nobody can tell
            part, _ = _look(_folder(run_folder, number) / _name(rank))
            yield number, run_folder / part.node


def has_attempts(run_folder: Path) -> bool:
    """Tell whether anybody has taken part in a run."""
    return bool(_numbers(run_folder / ATTEMPTS))


def _choose(folder: Path, wish: Wish, known: int, *, has_successor: bool) -> int | None:
    if wish.attempt and _state(folder / f"{wish.attempt:03d}" / _name(wish.rank)) == "absent":
        return wish.attempt
    newest, told = max(_numbers(folder), default=0), (wish.made.restarts or 0) + 1
    if newest < max(known, 1):
        return max(known + 1, told)
    there = _read(folder / f"{newest:03d}")
    if there is None:  # somebody is making it right now, or it is damaged, as by a machine that lost its power
        return newest + os.path.lexists(folder / f"{newest:03d}" / MADE_FILE)
    states = _states(folder / f"{newest:03d}")
    own = states.pop(wish.rank, "absent")
    has_finished = own in ("absent", "finished") and set(states.values()) <= {"finished"}
    if told > newest and not (has_finished and has_successor):
        return told
    if own == "absent" and msgspec.structs.replace(there, seed=wish.made.seed) == wish.made:
        return newest if has_finished or {"alive", "away"} & set(states.values()) else newest + 1
    is_another = own == "alive" or has_finished or (own == "finished" and "lost" not in states.values())
    return None if is_another and not wish.is_named else newest + 1


def _states(attempt: Path) -> dict[int, State]:
    names = (each.name[1:] for each in attempt.iterdir() if each.name.startswith("r"))
    return {int(name): _state(attempt / _name(int(name))) for name in names if name.isdecimal()}


def _state(path: Path) -> State:
    try:
        part, outcome = _look(path)
    except FileNotFoundError:
        return "absent"
    except (OSError, ValueError):  # ValueError: damaged
        return "lost"
    if outcome:
        return "finished" if outcome == _FINISHED else "lost"
    if holds(part.process, path):
        return "alive"
    return "lost" if part.process.is_of_this_boot() else "away"


def _look(path: Path) -> tuple[_Part, bytes]:
    part, _, outcome = load_own(path, _MAX_BYTES).partition(b"\n")
    return msgspec.json.decode(part, type=_Part), outcome


def _make(attempt: Path, made: Made) -> Made:
    """Make an attempt, unless it is there, and return what was made up for it."""
    make_private(attempt)
    descriptor = _link_new(attempt / MADE_FILE, msgspec.json.encode(made))
    if descriptor is not None:
        os.close(descriptor)
        return made
    return _read(attempt) or made


def _read(attempt: Path) -> Made | None:
    try:
        return msgspec.json.decode(load_own(attempt / MADE_FILE, _MAX_BYTES), type=Made)
    except (OSError, msgspec.DecodeError):
        return None


def _take_part(node: Path, number: int, rank: int, seed: str) -> Membership | None:
    path = _folder(node.parent, number) / _name(rank)
    descriptor = _link_new(path, msgspec.json.encode(_Part(Process.current(), node.name)) + b"\n")
    return None if descriptor is None else Membership(number, seed, path, descriptor)


def _link_new(path: Path, content: bytes) -> int | None:
    """Put a file there, locked and whole; return a descriptor that appends to it, or None if there is one already."""
    import fcntl  # noqa: PLC0415  # Windows, which has no journal, has no such module

    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    descriptor = open_own(draft, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL)
    try:
        os.write(descriptor, content)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.hardlink_to(draft)
    except FileExistsError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        draft.unlink(missing_ok=True)
    return descriptor


def _folder(run_folder: Path, number: int) -> Path:
    return run_folder / ATTEMPTS / f"{number:03d}"


def _name(rank: int) -> str:
    return f"r{rank:05d}"


def _numbers(folder: Path) -> list[int]:
    try:
        return [int(each.name) for each in folder.iterdir() if each.name.isdecimal()]
    except FileNotFoundError:
        return []


_memberships: "weakref.WeakSet[Membership]" = weakref.WeakSet()


def _release_in_child() -> None:
    """A forked child that kept a descriptor would keep its parent's part in the run."""
    for membership in list(_memberships):
        membership.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
