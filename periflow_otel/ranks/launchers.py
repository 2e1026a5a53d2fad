"""Launchers that set a rank and a size under names of their own: a row each."""

from typing import Final, NamedTuple

from periflow_otel.config.environ import Environ
from periflow_otel.ranks.identity import Identity, first_count, read_identity, read_text


class Launcher(NamedTuple):
    """Where a launcher leaves what it knows."""

    name: str
    rank: str
    size: str
    local_rank: tuple[str, ...] = ()
    local_size: tuple[str, ...] = ()
    node_rank: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    """The number of nodes, where it does not tell the size of one."""
    run_id: str | None = None
    """What it gives to all ranks of a run."""

    @property
    def variables(self) -> tuple[str, ...]:
        """All variables that are read."""
        several = (*self.local_rank, *self.local_size, *self.node_rank, *self.nodes)
        return (self.rank, self.size, *several, *([self.run_id] if self.run_id else []))


# https://docs.open-mpi.org/en/v5.0.x/tuning-apps/environment-var.html
# OMPI_COMM_WORLD_NODE_RANK does not number nodes: it is the local rank over all jobs on the node.
OPEN_MPI: Final = Launcher(
    "Open MPI",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    ("OMPI_COMM_WORLD_LOCAL_RANK",),
    ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    run_id="PMIX_NAMESPACE",
)
LAUNCHERS: Final = (
    # https://github.com/horovod/horovod/blob/master/horovod/runner/gloo_run.py
    Launcher(
        "Horovod",
        "HOROVOD_RANK",
        "HOROVOD_SIZE",
        ("HOROVOD_LOCAL_RANK",),
        ("HOROVOD_LOCAL_SIZE",),
        ("HOROVOD_CROSS_RANK",),
    ),
    # https://github.com/flux-framework/flux-core/blob/master/src/shell/task.c
    Launcher(
        "Flux",
        "FLUX_TASK_RANK",
        "FLUX_JOB_SIZE",
        ("FLUX_TASK_LOCAL_ID",),
        nodes=("FLUX_JOB_NNODES",),
        run_id="FLUX_JOB_ID",
    ),
    # LSF's jsrun, as the tests of PMIx read it
    Launcher(
        "jsrun",
        "JSM_NAMESPACE_RANK",
        "JSM_NAMESPACE_SIZE",
        ("JSM_NAMESPACE_LOCAL_RANK",),
        ("JSM_NAMESPACE_LOCAL_SIZE",),
    ),
)
"""Launchers of several ranks on a node, in the order in which they are asked."""
ONE_PER_NODE: Final = (
    # https://www.kubeflow.org/docs/components/trainer/user-guides/jax/
    Launcher("JAX", "JAX_PROCESS_ID", "JAX_NUM_PROCESSES"),
    # https://docs.skypilot.co/en/stable/running-jobs/environment-variables.html
    Launcher("SkyPilot", "SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES", run_id="SKYPILOT_TASK_ID"),
    # https://kubernetes.io/docs/concepts/workloads/controllers/job/#completion-mode
    Launcher("Kubernetes", "JOB_COMPLETION_INDEX", "WORLD_SIZE"),
)
"""Launchers of one process on each node; without the number of processes each is a run of its own."""


def from_table(environ: Environ, launchers: tuple[Launcher, ...]) -> Identity | None:
    """Ask launchers in turn."""
    return next((found for each in launchers if (found := _from_launcher(environ, each))), None)


def _from_launcher(environ: Environ, launcher: Launcher) -> Identity | None:
    name, rank, size, local_rank, local_size, node_rank, nodes, run_id = launcher
    if read_text(environ, size) is None and launcher in ONE_PER_NODE:
        return None  # processes that are counted, and yet may have nothing to do with each other
    identity = read_identity(
        environ, name, rank=rank, size=size, local_rank=local_rank, local_size=local_size, node_rank=node_rank
    )
    if identity is None:
        return None
    if launcher in ONE_PER_NODE:
        identity = identity._replace(local_rank=0, node_rank=identity.rank, local_world_size=1)
    elif count := first_count(environ, nodes, 1):
        identity = _spread(identity, count)
    return identity._replace(run_id=run_id and read_text(environ, run_id))


def _spread(identity: Identity, nodes: int) -> Identity:
    """Spread ranks over nodes evenly, the first ones onto the first node."""
    local_world_size = -(-identity.world_size // nodes)
    return identity._replace(local_world_size=local_world_size, node_rank=identity.rank // local_world_size)


def from_open_mpi(environ: Environ) -> Identity | None:
    """Add to the namespace, which comes from host and process id and so comes again, what mpirun chose at random."""
    identity = _from_launcher(environ, OPEN_MPI)
    random = read_text(environ, "OMPI_MCA_orte_precondition_transports")
    halves = (random or "").split("-")
    if identity is None or identity.run_id is None or random is None or halves[0] == halves[-1]:
        return identity  # twice the same is not random: another launcher than mpirun
    return identity._replace(run_id=f"{identity.run_id}-{halves[0][:8]}", launch=random)


def from_hydra(environ: Environ) -> Identity | None:
    """Read what mpiexec of MPICH and Intel MPI sets; without a local rank it may be SLURM's, which says more itself."""
    if read_text(environ, "MPI_LOCALRANKID") or read_text(environ, "PMI_LOCAL_RANK"):
        return from_pmi(environ)
    return None


def from_pmi(environ: Environ) -> Identity | None:
    """Read what MPICH sets, and whoever starts processes by its interface."""
    return read_identity(
        environ,
        "MPICH",
        rank="PMI_RANK",
        size="PMI_SIZE",
        local_rank=("MPI_LOCALRANKID", "PMI_LOCAL_RANK"),
        local_size=("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
    )
