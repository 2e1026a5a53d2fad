"""What a run settles before its first step: its settings, who it is, and where its journal and its metric log are.

In local mode training comes first: there only what the caller wrote raises. A variable that cannot be used is ignored,
and a folder that cannot be used is replaced, with one warning that has the remedy.
"""

import logging
import os
import platform
import socket
import sys
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from periflow_otel import names
from periflow_otel.config.environ import Environ, find_mode
from periflow_otel.config.run import RunSettings
from periflow_otel.config.unread import unread
from periflow_otel.errors import ConfigurationError
from periflow_otel.journal.folders import state_dir_of
from periflow_otel.journal.ledger import find_earlier
from periflow_otel.processes import Process
from periflow_otel.ranks import Identity, describe, find_identity, require_cloud
from periflow_otel.records import Orders, RankRun, Work
from periflow_otel.training import arguments
from periflow_otel.training.joining import Place, join_run
from periflow_otel.training.local_log import find_log, is_file

_ARCHITECTURES: Final = {
    "x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64", "i386": "x86", "i686": "x86",
    "armv6l": "arm32", "armv7l": "arm32", "ppc": "ppc32", "ppc64": "ppc64", "ppc64le": "ppc64",
}  # fmt: skip
"""What the semantic conventions call a machine's architecture."""
_log = logging.getLogger("periflow_otel")


class Beginning(NamedTuple):
    """All that is settled when a run begins."""

    settings: RunSettings
    environ: Environ
    """Without the variables that cannot be used."""
    run: RankRun
    place: Place
    is_recording: bool


def settle(
    total_train_steps: object,
    local_log_name: str | os.PathLike[str] | None,
    run_id: object,
    initial_step: object,
    name: object,
    work: Work | None,
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
    run_name = arguments.run_name(name)
    identity = find_identity(environ)
    is_recording = can_record(settings)
    place = join_run(run_id or settings.run_id, identity, settings, is_recording=is_recording)
    log = None
    if is_recording and not is_cloud:
        log = _find_log(local_log_name, identity, settings, place)
    run = RankRun(
        run_id=place.run_id,
        attempt=place.attempt,
        seed=place.seed,
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
        work=work,
        local_world_size=identity.local_world_size,
        traceparent=settings.traceparent,
        tracestate=settings.tracestate,
        resource=resource(settings, run_name),
        orders=Orders(_consumers(settings, log), settings.destination, settings.sampling_ratio),
        earlier=find_earlier(place.folder, identity.rank, place.number) if is_recording else None,
    )
    if identity.local_rank == 0 and (ignored := unread(environ)):
        _log.warning("not read here, see docs/configuration.md: %s", ", ".join(ignored))
    _log.info("run %s, attempt %d: %s", run.run_id, run.attempt, describe(identity))
    return Beginning(settings, environ, run, place, is_recording)


def _find_log(
    name: str | os.PathLike[str] | None, identity: Identity, settings: RunSettings, place: Place
) -> str | None:
    rank = None if identity.world_size == 1 else identity.rank
    try:
        return find_log(name, rank, state_dir_of(place.folder), is_written=settings.agent != "off")
    except ConfigurationError:
        place.give_up()
        raise


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


def resource(settings: RunSettings, run_name: str | None = None) -> tuple[tuple[str, str | int], ...]:
    """Return the resource attributes of the run, sorted by key. Never a command line or a variable: secrets."""
    attributes = {
        "service.name": settings.service_name,
        "host.name": socket.gethostname(),
        "host.arch": _ARCHITECTURES.get(platform.machine().lower(), platform.machine()),
        "os.type": sys.platform,
        "process.runtime.name": sys.implementation.name,
        "process.runtime.version": platform.python_version(),
        **dict(settings.resource_attributes),
        **({names.RUN_NAME: run_name} if run_name else {}),
    }
    return tuple(sorted(attributes.items()))
