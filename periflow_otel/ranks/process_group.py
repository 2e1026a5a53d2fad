"""What the process group of ``torch.distributed`` knows, and how its ranks agree on something."""

import sys
import time
import weakref
from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

from periflow_otel.config.environ import Environ
from periflow_otel.processes import process_started_unix_ns
from periflow_otel.ranks.identity import Identity, read_count

Modules = Mapping[str, Any]
AGREE_TIMEOUT_S: Final = 10.0
"""How long ranks wait for rank 0 to say what the run is called."""


def process_group(modules: Modules) -> Any:
    """Return ``torch.distributed`` if the script has imported and initialised it, else None."""
    distributed = modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed


def from_process_group(distributed: Any, launched: Identity, environ: Environ, modules: Modules) -> Identity:
    """Ask the process group: the only one that knows about processes that the script started itself.

    Args:
        distributed: ``torch.distributed``.
        launched: What the launcher says.
        environ: Where the launcher said it.
        modules: Where ``multiprocessing`` is, if the script has imported it.
    """
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    nodes = -(-launched.world_size // launched.local_world_size)
    local_size = launched.local_world_size if launched.world_size == world_size else -(-world_size // nodes)
    return launched._replace(
        rank=rank,
        local_rank=_local_rank(environ, launched, rank, local_size),
        world_size=world_size,
        local_world_size=local_size,
        run_id=launched.run_id or (_family(environ, modules) if nodes == 1 else None),
        source="torch.distributed" if launched.world_size == 1 else f"torch.distributed and {launched.source}",
    )


def _local_rank(environ: Environ, launched: Identity, rank: int, local_world_size: int) -> int:
    if launched.rank == rank and launched.local_world_size == local_world_size:
        return launched.local_rank
    given = read_count(environ, "LOCAL_RANK")
    return rank % local_world_size if given is None else given


def _family(environ: Environ, modules: Modules) -> str | None:
    """Name the processes that one process started with multiprocessing, as ``torch.multiprocessing.spawn`` does.

    They share a random key. The port is in the name because a process may start one group of ranks after another.
    """
    processes = modules.get("multiprocessing.process")
    if processes is None or processes.parent_process() is None:
        return None
    secret = bytes(processes.current_process().authkey)
    return f"spawn-{blake2b(secret, digest_size=8).hexdigest()}-{environ.get('MASTER_PORT', '')}"


def agree(text: str | None, modules: Modules = sys.modules, *, timeout_s: float = AGREE_TIMEOUT_S) -> str | None:
    """Give what rank 0 says to all ranks, through the key-value store of the process group; there is no collective.

    The ranks call this equally often in a process group: each time it is about something else.

    Args:
        text: What to say, as rank 0; None to hear it, as any other.
        modules: Where ``torch.distributed`` is, if the script has imported it.
        timeout_s: How long to wait for rank 0.

    Returns:
        What rank 0 says; None without a process group, or if rank 0 says nothing in time.
    """
    distributed = process_group(modules)
    if distributed is None:
        return None
    try:
        numbers = _agreements.setdefault(distributed.group.WORLD, Counter())
        numbers[text is None] += 1
        store = distributed.distributed_c10d._get_default_store()  # noqa: SLF001  # there is no public way
        key = f"periflow_otel/agreement/{numbers[text is None]}"
        return _hear(store, key, timeout_s) if text is None else _say(store, key, text)
    except Exception:  # noqa: BLE001  # another version of torch, a lost connection: training goes on all the same
        return None


_agreements: Final["weakref.WeakKeyDictionary[Any, Counter[bool]]"] = weakref.WeakKeyDictionary()
"""By process group, how often something was said (False) and heard (True)."""
_heard: Final[set[str]] = set()


def _say(store: Any, key: str, text: str) -> str:
    store.set(key, f"{time.time_ns()} {text}")
    store.add(f"{key}/is_set", 1)
    return text


def _hear(store: Any, key: str, timeout_s: float) -> str | None:
    # To wait for the key would be simpler, but blocks all else that uses the store, and old versions do not recover.
    deadline_s, pause_s = time.monotonic() + timeout_s, 0.01
    while True:
        if store.add(f"{key}/is_set", 0) and _is_new(said := store.get(key).decode()):
            _heard.add(said)
            return str(said.partition(" ")[2])
        if time.monotonic() > deadline_s:
            return None
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.5)


def _is_new(said: str) -> bool:
    """Tell whether rank 0 said it in this process group: torchrun's store outlives the ranks of an attempt.

    A process group is there only once all its ranks are, so what was said in it came after this process began.
    """
    return said not in _heard and int(said.partition(" ")[0]) >= process_started_unix_ns()
