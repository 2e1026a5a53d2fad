"""What torchrun set first and many others do: RANK and WORLD_SIZE, or in their place NODE_RANK and LOCAL_RANK."""

import re

from periflow_otel.config.environ import Environ
from periflow_otel.errors import ConfigurationError
from periflow_otel.ranks.identity import Identity, half_set, ranks_per_node, read_count, read_identity, read_text
from periflow_otel.ranks.slurm import slurm_id, with_slurm


def from_rank(environ: Environ) -> Identity | None:
    """Read what torchrun, DeepSpeed, Kubeflow and people set: RANK, WORLD_SIZE, and perhaps more.

    Variables: https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables .
    """
    identity = read_identity(
        environ,
        "RANK and WORLD_SIZE",
        rank="RANK",
        size="WORLD_SIZE",
        local_rank=("LOCAL_RANK",),
        local_size=("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "NPROC_PER_NODE"),
        node_rank=("GROUP_RANK", "NODE_RANK", "CROSS_RANK"),
    )
    if identity is not None and "TORCHELASTIC_RUN_ID" in environ:
        return _with_torchrun(environ, identity)
    return identity and with_slurm(environ, identity)


def _with_torchrun(environ: Environ, identity: Identity) -> Identity:
    nodes = read_count(environ, "GROUP_WORLD_SIZE", 1) or 1
    given, own = read_text(environ, "TORCHELASTIC_RUN_ID"), _find_torchrun(environ)
    common = given if given != "none" else (own if nodes == 1 else None) or slurm_id(environ, tasks=nodes)
    return identity._replace(
        run_id=common or own,
        is_common=common is not None,
        # Each torchrun counts what it restarted itself, so that several disagree.
        restarts=_torchrun_restarts(environ) if nodes == 1 else None,
        meeting_point=f"{environ.get('MASTER_ADDR')}:{environ.get('MASTER_PORT')}",
        source="torchrun",
    )


def _find_torchrun(environ: Environ) -> str | None:
    """Name the torchrun of this node that was given no id for its run; None if there is none such.

    Every run without an id is called "none", and the master of the next run may have the same address and port. But
    each torchrun makes itself a folder with a random name.
    """
    folder = re.search(r"/none_(\w+)/attempt_\d+/\d+/error\.json$", environ.get("TORCHELASTIC_ERROR_FILE", ""))
    return folder and f"torchrun-{folder[1]}"


def _torchrun_restarts(environ: Environ) -> int:
    """Number the restarts by torchrun and by SLURM, which starts a torchrun again that has given up."""
    most = read_count(environ, "TORCHELASTIC_MAX_RESTARTS") or 0
    restarts = read_count(environ, "TORCHELASTIC_RESTART_COUNT") or 0
    return (read_count(environ, "SLURM_RESTART_COUNT") or 0) * (most + 1) + restarts


def from_node_rank(environ: Environ) -> Identity | None:
    """Place a process by its node, as PeriFlow and Lightning tell it.

    Without a local rank it is taken for the first of its node, as the process is that starts the others.
    """
    world_size, node_rank = read_count(environ, "WORLD_SIZE", 1), read_count(environ, "NODE_RANK")
    local_rank = read_count(environ, "LOCAL_RANK")
    if world_size is None or (node_rank is None and local_rank is None):
        return None
    local_size = ranks_per_node(environ, world_size)
    if node_rank and local_size is None:
        raise half_set(environ, "NODE_RANK", "NUM_NODES")
    local_size = local_size or world_size
    rank = (node_rank or 0) * local_size + (local_rank or 0)
    if rank >= world_size:
        message = (
            f"NODE_RANK {node_rank or 0} and LOCAL_RANK {local_rank or 0}, with {local_size} ranks on a node, make"
            f" rank {rank} but WORLD_SIZE is {world_size}; set RANK, or correct them"
        )
        raise ConfigurationError(message, "WORLD_SIZE")
    source = "NODE_RANK and WORLD_SIZE"
    return Identity(rank, local_rank or 0, node_rank or 0, world_size, local_size, None, None, source)
