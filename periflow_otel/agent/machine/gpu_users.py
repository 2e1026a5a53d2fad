"""Which rank uses which GPU: as the driver says, else as ``CUDA_VISIBLE_DEVICES`` of the rank says."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from periflow_otel.agent.machine.reading import Rank
from periflow_otel.processes import pid_namespace

_VARIABLE = "CUDA_VISIBLE_DEVICES"


class Gpu(NamedTuple):
    """A GPU, or a MIG device in one."""

    uuid: str
    number: int
    """Of the whole GPU, in the order of the driver."""
    parent: str
    """UUID of the whole GPU; empty if it is one."""
    pids: frozenset[int]
    """Processes that compute on it."""
    has_parts: bool = False
    """It is divided into MIG devices, and nobody uses the whole."""


def find_users(gpus: Sequence[Gpu], ranks: Iterable[Rank]) -> Mapping[str, frozenset[int]]:
    """Return the ranks that use each GPU, by its UUID."""
    users: dict[str, set[int]] = {}
    for rank in ranks:
        for gpu in _used(gpus, rank):
            users.setdefault(gpu.uuid, set()).add(rank.run.rank)
    return {uuid: frozenset(found) for uuid, found in users.items()}


def _used(gpus: Sequence[Gpu], rank: Rank) -> list[Gpu]:
    if rank.run.process.pid_namespace == pid_namespace():
        computing = [gpu for gpu in gpus if rank.run.process.pid in gpu.pids and not gpu.has_parts]
        if computing:
            return computing
    return _meant(gpus, _variable(rank.run.process.pid), rank.run.local_rank)


def _meant(gpus: Sequence[Gpu], visible: str, local_rank: int) -> list[Gpu]:
    """Return the GPU that a rank is to use: the only one that it sees, or of several that with its number."""
    seen = visible_gpus(gpus, visible)
    if len(seen) == 1:
        return seen
    return seen[local_rank : local_rank + 1]


def visible_gpus(gpus: Sequence[Gpu], visible: str) -> list[Gpu]:
    """Return what a program sees that has this ``CUDA_VISIBLE_DEVICES``: all up to the first that there is not."""
    seen: list[Gpu] = []
    for entry in visible.split(","):
        found = _named(gpus, entry.strip())
        if len(found) != 1:
            break
        seen += found
    return seen


def _named(gpus: Sequence[Gpu], entry: str) -> list[Gpu]:
    """Return what an entry names: a number, or the beginning of a UUID."""
    if entry.isdecimal():
        return [gpu for gpu in gpus if gpu.number == int(entry) and not gpu.parent]
    return [gpu for gpu in gpus if gpu.uuid.startswith(entry)] if entry.startswith(("GPU-", "MIG-")) else []


def _variable(pid: int) -> str:
    """Return the variable as the process was started with it; nothing if it was not set or cannot be read."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return ""
    prefix = f"{_VARIABLE}=".encode()
    values = (entry.removeprefix(prefix) for entry in environ.split(b"\0") if entry.startswith(prefix))
    return next(values, b"").decode("ascii", "replace")
