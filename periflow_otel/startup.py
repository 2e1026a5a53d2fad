"""What a run settles before its first step: its settings, who it is, and where its journal and its metric log are.

In local mode training comes first: there only what the caller wrote raises. A variable that cannot be used is ignored,
and a folder that cannot be used is replaced, with one warning that has the remedy.
"""

import logging
import os
import platform
import secrets
import socket
import sys
from collections import Counter
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple

from periflow_otel import arguments, names
from periflow_otel.config import RunSettings, fallback_state_dir, find_mode
from periflow_otel.environ import Environ
from periflow_otel.errors import ConfigurationError
from periflow_otel.journal.folders import claim_journal, journal_folder, node_folder, run_folder
from periflow_otel.journal.ledger import find_earlier
from periflow_otel.local_log import find_log, is_file
from periflow_otel.processes import Process
from periflow_otel.ranks import Identity, agree, describe, find_identity, find_torchrun, require_cloud
from periflow_otel.records import Orders, RankRun

_log = logging.getLogger("periflow_otel")


class Beginning(NamedTuple):
    """All that is settled when a run begins."""

    settings: RunSettings
    environ: Environ
    """Without the variables that cannot be used."""
    run: RankRun
    folder: Path
    """Of the run on this node."""
    journal: Path
    is_recording: bool


def settle(
    total_train_steps: object,
    local_log_name: str | os.PathLike[str] | None,
    run_id: object,
    initial_step: object,
    environ: Environ,
    now_unix_ns: int,
) -> Beginning:
    """Settle everything: find out who this process is, and claim a place for its journal.

    Raises:
        ConfigurationError: An argument, or in cloud mode a variable, has a value that cannot be used.
        PeriFlowInternalError: Cloud mode lacks a variable that PeriFlow sets.
        PeriFlowError: Cloud mode, and ``total_train_steps`` is not an integer or not beyond the steps already done.
    """
    is_cloud = find_mode(environ) == "cloud"
    environ = environ if is_cloud else _usable(environ)
    settings = RunSettings.from_environ(environ)
    initial = arguments.initial_step(initial_step, require_cloud(environ).processed_iters if is_cloud else 0)
    target = arguments.target_step(total_train_steps, initial, is_cloud=is_cloud)
    identity = find_identity(environ)
    run_id = find_run_id(run_id or settings.run_id, identity, environ)
    folder = journal = node_folder(run_folder(settings.state_dir, run_id))
    attempt = None if identity.restarts is None else identity.restarts + 1
    log = None
    is_recording = can_record(settings)
    if is_recording:
        folder = usable_folder(settings.state_dir, run_id)
        if not is_cloud:
            rank = None if identity.world_size == 1 else identity.rank
            log = find_log(local_log_name, rank, folder.parents[1], is_written=settings.agent != "off")
        attempt, journal = claim(folder, identity.rank, attempt)
    run = RankRun(
        run_id=run_id,
        attempt=attempt or 1,
        rank=identity.rank,
        local_rank=identity.local_rank,
        node_rank=identity.node_rank,
        world_size=identity.world_size,
        mode="cloud" if is_cloud else "local",
        local_log=log,
        process=Process.current(),
        started_unix_ns=now_unix_ns,
        initial_step=initial,
        total_steps=target,
        local_world_size=identity.local_world_size,
        traceparent=settings.traceparent,
        resource=resource(settings),
        orders=Orders(_consumers(settings, log), settings.destination, settings.sampling_ratio),
        earlier=find_earlier(folder.parent, identity.rank, attempt or 1),
    )
    _log.info("run %s, attempt %d: %s", run_id, run.attempt, describe(identity))
    return Beginning(settings, environ, run, folder, journal, is_recording)


def claim(folder: Path, rank: int, attempt: int | None) -> tuple[int, Path]:
    """Return the attempt, and a folder for its journal that no other process has."""
    try:
        return claim_journal(folder, rank, attempt)
    except OSError:  # the journal, which tries again later, says so
        return attempt or 1, journal_folder(folder, attempt or 1, rank)


def can_record(settings: RunSettings) -> bool:
    """Tell whether this process records anything."""
    if settings.is_disabled:
        return False
    if sys.platform in ("linux", "darwin"):
        return True
    _log.warning(
        "periflow_otel needs Linux or macOS to record, not %s; nothing is recorded, training goes on", sys.platform
    )
    return False


def _usable(environ: Environ) -> Environ:
    """Return an environment without the variables that cannot be used."""
    try:
        find_identity(environ)
        _check_run_id(RunSettings.from_environ(environ).run_id)
    except ConfigurationError as error:
        unusable = error.variable or ""
        rest = {name: value for name, value in environ.items() if not fnmatchcase(name, unusable)}
        if len(rest) == len(environ):  # nothing that can be left out
            raise
        _log.warning("%s; until then %s is ignored, and training goes on", error, unusable)
        return _usable(rest)
    return environ


def _check_run_id(given: str | None) -> None:
    try:
        arguments.run_id(given or "")
    except ConfigurationError as error:
        raise ConfigurationError(str(error), names.RUN_ID_VAR) from None


def _consumers(settings: RunSettings, log: str | None) -> tuple[str, ...]:
    """Name who must have a record: without the files beside the metric log, where that is none."""
    if settings.is_cloud or is_file(log):
        return settings.consumers
    return tuple(each for each in settings.consumers if not each.startswith("otlp_file."))


def find_run_id(given: object, identity: Identity, environ: Environ) -> str:
    """Return the identity of a run: the one given, else the launcher's, else one that is made up.

    Ranks of a process group make it up together. A launcher has one identity for all runs that a process begins one
    after the other, so all but the first are numbered.

    Args:
        given: What the user wants.
        identity: Who this process is.
        environ: Where torchrun leaves what it knows.

    Raises:
        ConfigurationError: It is not text, too long, or has characters that cannot be shown.
    """
    wanted = given.strip() if isinstance(given, str) else given
    if wanted:
        return arguments.run_id(wanted)
    known = identity.run_id or ""
    _begun[known] += 1
    if known:
        return arguments.run_id(_numbered(known, _begun[known]))
    torchrun = find_torchrun(environ)
    made_up = _numbered(torchrun, _begun[known]) if torchrun else _made_up_id()
    if identity.world_size == 1:
        return made_up
    shared = agree(identity.rank, f"run_id/{_begun[known]}", made_up)
    if shared is None:
        _log.warning("%s", _NO_COMMON_ID)
    return shared or made_up


_begun: Final[Counter[str]] = Counter()
"""How many runs this process has begun, by what its launcher calls them."""
_NO_COMMON_ID: Final = (
    "the ranks have no identity in common, so each is shown as a run of its own; set PERIFLOW_RUN_ID to the same text "
    "on all ranks"
)


def _numbered(run_id: str, number: int) -> str:
    return run_id if number == 1 else f"{run_id}-{number}"


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


def resource(settings: RunSettings) -> tuple[tuple[str, str | int], ...]:
    """Return the resource attributes of the run, sorted by key. Never a command line or a variable: secrets."""
    attributes = {
        "service.name": settings.service_name,
        "host.name": socket.gethostname(),
        "host.arch": platform.machine(),
        "os.type": sys.platform,
        "process.runtime.name": sys.implementation.name,
        "process.runtime.version": platform.python_version(),
        "telemetry.distro.name": names.SCOPE,
        **dict(settings.resource_attributes),
    }
    return tuple(sorted(attributes.items()))


def _made_up_id() -> str:
    """Return an identity that sorts by time and tells a person when the run began."""
    return f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
