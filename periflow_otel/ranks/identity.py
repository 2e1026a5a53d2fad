"""One process among the ranks of a run, and how variables that say so are read."""

from typing import Final, NamedTuple

from periflow_otel.config.environ import Environ, Variables
from periflow_otel.errors import ConfigurationError


class Identity(NamedTuple):
    """One process among the ranks of a run; ranks and sizes as torch.distributed defines them."""

    rank: int
    local_rank: int
    node_rank: int
    world_size: int
    local_world_size: int
    run_id: str | None
    """What the launcher gave to all ranks of this run and to no other run, if it did."""
    restarts: int | None
    """How often the launcher started the run again, where it gives the same number to all ranks."""
    source: str
    """What said so, for the log."""
    launch: str | None = None
    """What the launcher gave to all ranks of this attempt and to no other, if it did."""
    meeting_point: str | None = None
    """Where ranks meet, if the launcher chose a place: where it is another, so is the attempt."""
    is_common: bool = True
    """``run_id`` is the same on all nodes."""


def describe(identity: Identity) -> str:
    """Say in one line who a process is, and how that was found out."""
    place = f"rank {identity.rank} of {identity.world_size}"
    if identity.world_size > 1:
        place += f" (local rank {identity.local_rank} of {identity.local_world_size} on node {identity.node_rank})"
    return f"{place}, from {identity.source}"


SINGLE: Final = Identity(0, 0, 0, 1, 1, None, None, "a single process without a launcher")


def read_identity(
    environ: Environ,
    source: str,
    *,
    rank: str,
    size: str,
    local_rank: tuple[str, ...] = (),
    local_size: tuple[str, ...] = (),
    node_rank: tuple[str, ...] = (),
) -> Identity | None:
    """Read variables, of which each launcher has its own names; None if there is no rank."""
    number, world_size = read_count(environ, rank), read_count(environ, size, 1)
    if number is None:
        return None
    if world_size is None:
        raise half_set(environ, rank, size)
    if number >= world_size:
        message = f"{rank} is {number} but {size} is {world_size}; give a rank from 0 to {world_size - 1}"
        raise ConfigurationError(message, rank)
    local_world_size = first_count(environ, local_size, 1) or ranks_per_node(environ, world_size) or world_size
    local, node = first_count(environ, local_rank), first_count(environ, node_rank)
    return Identity(
        rank=number,
        local_rank=number % local_world_size if local is None else local,
        node_rank=number // local_world_size if node is None else node,
        world_size=world_size,
        local_world_size=local_world_size,
        run_id=None,
        restarts=None,
        source=source,
    )


def ranks_per_node(environ: Environ, world_size: int) -> int | None:
    """Return the size of a node by what PeriFlow, people and ``torch.distributed.launch`` set; None if nobody does."""
    nodes = read_count(environ, "NUM_NODES", 1)
    if nodes is not None and world_size % nodes == 0:
        return world_size // nodes
    return read_count(environ, "NPROC_PER_NODE", 1)


def first_count(environ: Environ, variables: tuple[str, ...], least: int = 0) -> int | None:
    """Return the first that is set of several variables."""
    return next((number for name in variables if (number := read_count(environ, name, least)) is not None), None)


def read_count(environ: Environ, name: str, least: int = 0) -> int | None:
    """Return an integer of at least ``least``; None if it is not set."""
    return Variables(environ).count(name, least)


def read_text(environ: Environ, name: str) -> str | None:
    """Return the value of a variable; None if it is not set, or blank."""
    return Variables(environ).text(name)


def half_set(environ: Environ, name: str, missing: str) -> ConfigurationError:
    """Say that a variable is set without the one that belongs to it."""
    return ConfigurationError(f"{name} is {environ[name]!r} but {missing} is not set; set both, or unset {name}", name)
