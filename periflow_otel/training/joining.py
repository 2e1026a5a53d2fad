"""Which run a process takes part in, and in which attempt: settled among its ranks before the first record.

Ranks agree through the store of their process group, where there is one, and else through the folder of the run. What
the launcher says must do where they have neither in common. Ids of spans are derived from a seed that they agree on
with it, and that is random unless the launcher's word has to do: so they are the run's own, whatever was lost before.
"""

import logging
import secrets
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from periflow_otel import names
from periflow_otel.config.paths import fallback_state_dir
from periflow_otel.config.run import RunSettings
from periflow_otel.journal import attempts
from periflow_otel.journal.attempts import Made, Membership, Wish
from periflow_otel.journal.folders import (
    claim_journal,
    journal_folder,
    make_private,
    node_folder,
    own_attempts,
    run_folder,
    state_dir_of,
)
from periflow_otel.ranks import Identity, Modules, agree
from periflow_otel.terminal import one_line
from periflow_otel.training import arguments

_MAX_PLACE_CHARS: Final = 240
"""What a launcher calls a place may be longer; with a number after it, it must do as the identity of a run."""

_log = logging.getLogger("periflow_otel")


class Place(NamedTuple):
    """A rank's place in a run."""

    run_id: str
    attempt: int
    seed: str
    """What ids are derived from."""
    folder: Path
    """Folder of the run on this node."""
    journal: Path
    membership: Membership | None = None
    """None where nothing is recorded, or the folder cannot be used."""

    @property
    def number(self) -> int:
        """Number of the attempt in the folder of the run, where another one may have had its number."""
        return self.attempt if self.membership is None else self.membership.number

    def leave(self, error: str | None) -> None:
        """Let others know how the run ended for this rank: with the type of an exception, or well."""
        if self.membership is not None:
            self.membership.leave(error)

    def give_up(self) -> None:
        """Leave no trace: the run did not begin."""
        if self.membership is not None:
            self.membership.withdraw()
            with suppress(OSError):
                self.journal.rmdir()


class _Agreed(msgspec.Struct, frozen=True):
    """What rank 0 says to all ranks."""

    run_id: str
    attempt: int
    seed: str


def join_run(
    given: object, identity: Identity, settings: RunSettings, *, is_recording: bool, modules: Modules = sys.modules
) -> Place:
    """Find out which run this process is part of, and take its place there.

    Args:
        given: What the user calls the run. Default: what the launcher calls it, else a name that is made up.
        identity: Who this process is.
        settings: Where journals are, and which attempt it is if the user says so.
        is_recording: There is going to be a journal.
        modules: Where ``torch.distributed`` is, if the script has imported it.

    Raises:
        ConfigurationError: ``given`` is no text, too long, or has characters that cannot be shown.
    """
    name = _given_name(given)
    agreed = _hear(modules) if identity.rank else None
    if agreed is not None and name in (None, agreed.run_id):
        return _join_agreed(agreed, identity, settings, is_recording=is_recording)
    place = _join_alone(name, identity, settings, is_recording=is_recording)
    if identity.world_size > 1 and not _say(place, identity, modules):
        _warn_of_strangers(name, identity, settings)
    return place


def next_attempt(place: Place, rank: int, world_size: int, *, is_recording: bool) -> Place:
    """Take the same place in the next attempt, as all ranks do by themselves."""
    place.leave(None)
    attempt = place.attempt + 1
    following = place._replace(attempt=attempt, journal=journal_folder(place.folder, attempt, rank), membership=None)
    if not is_recording:
        return following
    try:
        made = Made(place.seed, world_size, None, None)
        membership = attempts.join_agreed(place.folder, Wish(rank, made, attempt))
        journal = claim_journal(place.folder, membership.number, rank)
    except (OSError, ImportError):  # the journal, which tries again later, says so
        return following
    return following._replace(journal=journal, membership=membership)


def _hear(modules: Modules) -> _Agreed | None:
    """Hear what rank 0 says, if there is a process group in which it says anything."""
    said = agree(None, modules)
    try:
        return None if said is None else msgspec.json.decode(said, type=_Agreed)
    except msgspec.DecodeError:  # rank 0 has another version of this package
        return None


def _say(place: Place, identity: Identity, modules: Modules) -> bool:
    """Say it, as rank 0; return whether the others can hear."""
    text = msgspec.json.encode(_Agreed(place.run_id, place.attempt, place.seed)).decode()
    return identity.rank == 0 and agree(text, modules) is not None


def _join_agreed(agreed: _Agreed, identity: Identity, settings: RunSettings, *, is_recording: bool) -> Place:
    _begun.add((settings.state_dir, agreed.run_id))
    folder = node_folder(run_folder(settings.state_dir, agreed.run_id))
    journal = journal_folder(folder, agreed.attempt, identity.rank)
    place = Place(agreed.run_id, agreed.attempt, agreed.seed, folder, journal)
    if not is_recording:
        return place
    folder = usable_folder(settings.state_dir, agreed.run_id)
    made = _made(agreed.seed, identity)
    try:
        membership = attempts.join_agreed(folder, Wish(identity.rank, made, agreed.attempt))
        journal = claim_journal(folder, membership.number, identity.rank)
    except (OSError, ImportError):  # the journal, which tries again later, says so
        return place._replace(folder=folder)
    return place._replace(folder=folder, journal=journal, membership=membership)


def _join_alone(name: str | None, identity: Identity, settings: RunSettings, *, is_recording: bool) -> Place:
    """Join the first run of the place that goes on, or begin the next."""
    folder = None
    for run_id, following in [(name, None)] if name else _run_ids(identity, settings.state_dir):
        if not is_recording:
            return _lonely(run_id, node_folder(run_folder(settings.state_dir, run_id)), identity, settings)
        if folder is None:
            folder = usable_folder(settings.state_dir, run_id)
        folder = node_folder(run_folder(state_dir_of(folder), run_id))
        try:
            place = _try_to_join(run_id, following, folder, identity, settings)
        except (OSError, ImportError):  # the journal, which tries again later, says so
            return _lonely(run_id, folder, identity, settings)
        if place is not None:
            _begun.add((settings.state_dir, run_id))
            return place
    raise AssertionError  # there is always another name


def _try_to_join(
    run_id: str, following: str | None, folder: Path, identity: Identity, settings: RunSettings
) -> Place | None:
    made = _made(_seed(run_id, identity, settings), identity)
    make_private(folder)
    membership = attempts.join(
        folder,
        Wish(identity.rank, made, settings.attempt, is_named=following is None),
        known=max(own_attempts(folder, identity.rank), default=0),
        has_successor=following is not None and attempts.has_attempts(run_folder(state_dir_of(folder), following)),
    )
    if membership is None:
        return None
    journal = claim_journal(folder, membership.number, identity.rank)
    return Place(run_id, membership.number, membership.seed, folder, journal, membership)


def _lonely(run_id: str, folder: Path, identity: Identity, settings: RunSettings) -> Place:
    """Return the place of a rank that cannot know of others."""
    _begun.add((settings.state_dir, run_id))
    attempt = settings.attempt or (identity.restarts or 0) + 1
    journal = journal_folder(folder, attempt, identity.rank)
    return Place(run_id, attempt, _seed(run_id, identity, settings), folder, journal)


def usable_folder(state_dir: Path, run_id: str) -> Path:
    """Return the folder of a run on this node: in the state directory, or in a temporary one if that cannot be used.

    Raises nothing: where neither can be used, the journal finds that out and says so.
    """
    candidates = (state_dir, fallback_state_dir())
    found = (folder for each in candidates if (folder := _folder_in(each, run_id)))
    return next(found, node_folder(run_folder(state_dir, run_id)))


def _folder_in(candidate: Path, run_id: str) -> Path | None:
    """Make the folder of a run on this node; return None, and say why, if journals cannot be there."""
    try:
        from periflow_otel.journal.places import make_usable, own_place  # noqa: PLC0415  # needs fcntl; not on Windows

        place = own_place(candidate)
        folder = node_folder(run_folder(place, run_id))
        make_usable(place, folder)
    except (OSError, ImportError, ValueError) as error:  # too many files are open even to import, for instance
        reason = getattr(error, "strerror", None) or error
        _log.warning("%s cannot hold the journal (%s); set %s", candidate, reason, names.STATE_DIR)
        return None
    return folder


def _made(seed: str, identity: Identity) -> Made:
    return Made(seed, identity.world_size, identity.restarts, identity.meeting_point)


def _seed(run_id: str, identity: Identity, settings: RunSettings) -> str:
    """Return what is the run's own; where ranks cannot agree on it, what the user or the launcher gives all of them."""
    if settings.attempt is not None:
        return f"{run_id} {settings.attempt}"
    has_nodes = identity.world_size > identity.local_world_size
    return f"{run_id} {identity.launch}" if has_nodes and identity.launch else attempts.new_seed()


def _run_ids(identity: Identity, state_dir: Path) -> Iterator[tuple[str, str | None]]:
    """Yield the names of runs in the place that the launcher names, each with the next one's; else one that is made up.

    A single process never begins a run twice.
    """
    if identity.run_id is None:
        yield f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}", None
        return
    run_id = base = one_line(identity.run_id)[:_MAX_PLACE_CHARS]
    for number in count(2):
        following = f"{base}-{number}"
        if identity.world_size > 1 or (state_dir, run_id) not in _begun:
            yield run_id, following
        run_id = following


def _given_name(given: object) -> str | None:
    name = given.strip() if isinstance(given, str) else given
    return arguments.run_id(name) if name else None


def _warn_of_strangers(name: str | None, identity: Identity, settings: RunSettings) -> None:
    """Say what ranks that have not agreed cannot know of one another."""
    if name is None and not (identity.run_id and identity.is_common):
        _log.warning(
            "the ranks have no identity in common, so each is shown as a run of its own; set PERIFLOW_RUN_ID to the "
            "same text on all ranks"
        )
    elif identity.world_size > identity.local_world_size and not (identity.launch or settings.attempt):
        _log.warning(
            "the nodes of this run do not know of one another, so each shows traces of its own, unless they share "
            "%s; call init_process_group() before pf.init(), or set %s to the same number on all ranks",
            names.STATE_DIR,
            names.ATTEMPT_VAR,
        )


_begun: Final[set[tuple[Path, str]]] = set()
"""Runs that this process has begun, by where their journals are to be."""
