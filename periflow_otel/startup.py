"""What a run settles before its first step: its arguments, checked, and where its journals are."""

import logging
import operator
import os
import platform
import secrets
import socket
import sys
import time
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from periflow_otel import names
from periflow_otel.config import RunSettings, fallback_state_dir
from periflow_otel.environ import Environ
from periflow_otel.errors import ConfigurationError, PeriFlowError
from periflow_otel.journal.folders import node_folder, run_folder
from periflow_otel.ranks import Identity, agree, find_torchrun, require_cloud

MAX_RUN_ID_CHARS: Final = 256
_MAX_STEP: Final = 1 << 62

_log = logging.getLogger("periflow_otel")


def initial_step(environ: Environ, given: object, *, is_cloud: bool) -> int:
    """Return how many steps are done already.

    Raises:
        ConfigurationError: ``given`` is no such number.
        PeriFlowInternalError: Cloud mode lacks a variable that PeriFlow sets.
    """
    processed = require_cloud(environ).processed_iters if is_cloud else 0
    if given is None:
        return processed
    steps = _integer(given)
    if steps is None or steps < 0:
        message = f"initial_step is {given!r}; give the number of steps already done, 0 or more"
        raise ConfigurationError(message)
    return steps


def step_number(given: object, *, least: int) -> int:
    """Return the number of a step that the caller has told.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is below ``least``, or beyond all sense.
    """
    try:
        number = operator.index(given)  # type: ignore[arg-type]  # what has none raises
    except TypeError:
        number = None
    if number is None or isinstance(given, bool):
        message = f"the step is {given!r}, which is not an integer; give its number"
        raise TypeError(message)
    if not least <= number <= _MAX_STEP:
        message = f"the step is {number}; give its number, {least} or more: the first step is 1"
        raise ValueError(message)
    return number


def target_step(given: object, initial_step: int, *, is_cloud: bool) -> int | None:
    """Return the number of the last step; in local mode a value that makes no sense is ignored, as ever.

    Raises:
        PeriFlowError: In cloud mode, ``given`` is no integer or not beyond the steps already done.
    """
    steps = _integer(given)
    if is_cloud and given is not None:
        if steps is None:
            message = f"total_train_steps is {given!r}; give the number of the last step, an integer"
            raise PeriFlowError(message)
        if steps <= initial_step:
            message = (
                f"total_train_steps is {steps}, but {initial_step} steps are done already, as PROCESSED_ITERS or "
                "initial_step says; give the number of the last step, counted from the beginning of the run"
            )
            raise PeriFlowError(message)
    return steps if steps is not None and steps > 0 else None


def local_log(given: str | os.PathLike[str] | None, identity: Identity) -> str:
    """Return the absolute path of the metric log, in a folder that exists.

    Raises:
        ConfigurationError: It cannot be written.
    """
    if not isinstance(given, str | os.PathLike | None):
        message = f"local_log_name is {given!r}; give the path of a file, as text"
        raise ConfigurationError(message)
    rank = f"_{identity.rank}" if identity.world_size > 1 else ""
    path = Path(os.path.expanduser(given or f"./periflow_trainer_{int(time.time())}{rank}.log"))  # noqa: PTH111  # Path raises
    try:
        path = path.absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        is_writable = os.access(path, os.W_OK) or (not path.exists() and os.access(path.parent, os.W_OK))
        reason = None if is_writable and not path.is_dir() else "not writable"
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = getattr(error, "strerror", None) or str(error)
    if reason is None:
        return str(path)
    message = f"the metric log {str(path)!r} cannot be written ({reason}); give init() another local_log_name"
    raise ConfigurationError(message)


def find_run_id(given: object, identity: Identity, environ: Environ) -> str:
    """Return the identity of a run: the one given, else the launcher's, else one that is made up.

    Ranks of a process group make it up together. A launcher has one identity for all runs that a process begins one
    after the other, so all but the first are numbered.

    Args:
        given: What the user wants.
        identity: Who this process is.
        environ: Where torchrun leaves what it knows.

    Raises:
        ConfigurationError: It is no text, too long, or has characters that cannot be shown.
    """
    wanted = given.strip() if isinstance(given, str) else given
    if wanted:
        return _checked_run_id(wanted)
    known = identity.run_id or ""
    _begun[known] += 1
    if known:
        return _checked_run_id(_numbered(known, _begun[known]))
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


def _checked_run_id(given: object) -> str:
    if isinstance(given, str) and len(given) <= MAX_RUN_ID_CHARS and given.isprintable():
        return given
    shown = repr(given) if len(repr(given)) <= 40 else repr(given)[:40] + "…"
    message = f"the run id is {shown}; give text of at most {MAX_RUN_ID_CHARS} printable characters"
    raise ConfigurationError(message)


def usable_folder(state_dir: Path, run_id: str) -> Path:
    """Return the folder of a run on this node: in the state directory, or in a temporary one if that cannot be used.

    Raises nothing: where neither can be used, the journal finds that out and says so.
    """
    candidates = (state_dir, fallback_state_dir())
    found = (folder for each in candidates if (folder := _folder_in(each, run_id)))
    return next(found, node_folder(run_folder(state_dir, run_id)))


def _folder_in(candidate: Path, run_id: str) -> Path | None:
    """Make the folder of a run on this node; return None, and say why, if journals cannot be there."""
    from periflow_otel.journal.places import make_usable, own_place  # noqa: PLC0415  # needs fcntl; not on Windows

    try:
        place = own_place(candidate)
        folder = node_folder(run_folder(place, run_id))
        make_usable(place, folder)
    except (OSError, ValueError) as error:
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


def _integer(given: object) -> int | None:
    """Return an integer, NumPy's too; None for anything else. True is a mistake, not a number of steps."""
    try:
        number = operator.index(given)  # type: ignore[arg-type]  # what has none raises
    except TypeError:
        return None
    return None if isinstance(given, bool) or abs(number) > _MAX_STEP else number


def _made_up_id() -> str:
    """Return an identity that sorts by time and tells a person when the run began."""
    return f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
