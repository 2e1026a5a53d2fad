"""Who this process is among the ranks of a run, told by what started it.

Sources are asked in turn, and the first that knows wins. The order matters where one launcher runs inside another:
``torchrun`` or ``mpirun`` inside a SLURM job find SLURM's variables beside their own, and those count something else.
"""

import json
import os
import re
import sys
import time
import weakref
from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from periflow_otel import names
from periflow_otel.environ import Environ, Variables, parse_count
from periflow_otel.errors import ConfigurationError, PeriFlowInternalError
from periflow_otel.processes import process_started_unix_ns

Modules = Mapping[str, Any]

AGREE_TIMEOUT_S: Final = 10.0
"""How long ranks wait for rank 0 to say what the run is called."""


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


class CloudVariables(NamedTuple):
    """What PeriFlow sets in cloud mode."""

    world_size: int
    node_rank: int
    num_nodes: int
    processed_iters: int
    """Steps that earlier attempts did."""


def find_identity(environ: Environ = os.environ, modules: Modules = sys.modules) -> Identity:
    """Find out who this process is.

    Args:
        environ: Where launchers leave what they know.
        modules: Where ``torch.distributed`` is, if the script has imported it; it is never imported here.

    Raises:
        ConfigurationError: A launcher's variables are malformed, contradict each other, or are not all there.
    """
    return _from_torch(environ, modules) or _from_environ(environ)


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
    distributed = _process_group(modules)
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


def describe(identity: Identity) -> str:
    """Say in one line who a process is, and how that was found out."""
    place = f"rank {identity.rank} of {identity.world_size}"
    if identity.world_size > 1:
        place += f" (local rank {identity.local_rank} of {identity.local_world_size} on node {identity.node_rank})"
    return f"{place}, from {identity.source}"


def require_cloud(environ: Environ) -> CloudVariables:
    """Return what PeriFlow sets in cloud mode.

    Raises:
        PeriFlowInternalError: A variable is missing or malformed.
    """
    cloud = CloudVariables(
        _cloud_integer(environ, names.WORLD_SIZE_VAR, 1),
        _cloud_integer(environ, names.NODE_RANK_VAR, 0),
        _cloud_integer(environ, names.NUM_NODES_VAR, 1),
        _cloud_integer(environ, names.PROCESSED_ITERS, 0),
    )
    if cloud.world_size % cloud.num_nodes:
        message = (
            f"WORLD_SIZE is {cloud.world_size} and NUM_NODES is {cloud.num_nodes}; cloud mode needs the same number"
            f" of ranks on every node. {_GO_LOCAL}"
        )
        raise PeriFlowInternalError(message)
    return cloud


_GO_LOCAL: Final = "Unset PERIFLOW_ENABLED to train locally."


def _cloud_integer(environ: Environ, name: str, least: int) -> int:
    value = environ.get(name)
    if value is None:
        message = f"{name} is not set; cloud mode needs it. {_GO_LOCAL}"
        raise PeriFlowInternalError(message)
    number = parse_count(value)
    if number is None or number < least:
        message = f"{name} is {value!r}; cloud mode needs an integer of at least {least}. {_GO_LOCAL}"
        raise PeriFlowInternalError(message)
    return number


# The sources


def _from_torch(environ: Environ, modules: Modules) -> Identity | None:
    """Ask the process group: the only one that knows about processes that the script started itself."""
    distributed = _process_group(modules)
    if distributed is None:
        return None
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    launched = _launched(environ)
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


def _process_group(modules: Modules) -> Any:
    """Return ``torch.distributed`` if the script has imported and initialised it, else None."""
    distributed = modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed


def _local_rank(environ: Environ, launched: Identity, rank: int, local_world_size: int) -> int:
    if launched.rank == rank and launched.local_world_size == local_world_size:
        return launched.local_rank
    given = _integer(environ, "LOCAL_RANK")
    return rank % local_world_size if given is None else given


def _launched(environ: Environ) -> Identity:
    """Return what the launcher says, where it need not say everything."""
    try:
        return _from_environ(environ)
    except ConfigurationError:
        return _SINGLE


def _family(environ: Environ, modules: Modules) -> str | None:
    """Name the processes that one process started with multiprocessing, as ``torch.multiprocessing.spawn`` does.

    They share a random key. The port is in the name because a process may start one group of ranks after another.
    """
    processes = modules.get("multiprocessing.process")
    if processes is None or processes.parent_process() is None:
        return None
    secret = bytes(processes.current_process().authkey)
    return f"spawn-{blake2b(secret, digest_size=8).hexdigest()}-{environ.get('MASTER_PORT', '')}"


def _from_environ(environ: Environ) -> Identity:
    return (
        _from_rank(environ)
        or _from_open_mpi(environ)
        or _from_table(environ, LAUNCHERS)
        or _from_hydra(environ)
        or _from_slurm(environ)
        or _from_pmi(environ)
        or _from_node_rank(environ)
        or _from_table(environ, ONE_PER_NODE)
        or _from_hosts(environ)
        or _single(environ)
    )


def _from_rank(environ: Environ) -> Identity | None:
    """Read what torchrun, DeepSpeed, Kubeflow and people set: RANK, WORLD_SIZE, and perhaps more.

    Variables: https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables .
    """
    identity = _identity(
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
    return identity and _with_slurm(environ, identity)


def _with_torchrun(environ: Environ, identity: Identity) -> Identity:
    nodes = _integer(environ, "GROUP_WORLD_SIZE", 1) or 1
    given, own = _text(environ, "TORCHELASTIC_RUN_ID"), _find_torchrun(environ)
    common = given if given != "none" else (own if nodes == 1 else None) or _slurm_id(environ, tasks=nodes)
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
    most = _integer(environ, "TORCHELASTIC_MAX_RESTARTS") or 0
    restarts = _integer(environ, "TORCHELASTIC_RESTART_COUNT") or 0
    return (_integer(environ, "SLURM_RESTART_COUNT") or 0) * (most + 1) + restarts


def _from_table(environ: Environ, launchers: tuple[Launcher, ...]) -> Identity | None:
    return next((found for each in launchers if (found := _from_launcher(environ, each))), None)


def _from_launcher(environ: Environ, launcher: Launcher) -> Identity | None:
    name, rank, size, local_rank, local_size, node_rank, nodes, run_id = launcher
    if _text(environ, size) is None and launcher in ONE_PER_NODE:
        return None  # processes that are counted, and yet may have nothing to do with each other
    identity = _identity(
        environ, name, rank=rank, size=size, local_rank=local_rank, local_size=local_size, node_rank=node_rank
    )
    if identity is None:
        return None
    if launcher in ONE_PER_NODE:
        identity = identity._replace(local_rank=0, node_rank=identity.rank, local_world_size=1)
    elif count := _first(environ, nodes, 1):
        identity = _spread(identity, count)
    return identity._replace(run_id=run_id and _text(environ, run_id))


def _spread(identity: Identity, nodes: int) -> Identity:
    """Spread ranks over nodes evenly, the first ones onto the first node."""
    local_world_size = -(-identity.world_size // nodes)
    return identity._replace(local_world_size=local_world_size, node_rank=identity.rank // local_world_size)


def _from_open_mpi(environ: Environ) -> Identity | None:
    """Add to the namespace, which comes from host and process id and so comes again, what mpirun chose at random."""
    identity = _from_launcher(environ, OPEN_MPI)
    random = _text(environ, "OMPI_MCA_orte_precondition_transports")
    halves = (random or "").split("-")
    if identity is None or identity.run_id is None or random is None or halves[0] == halves[-1]:
        return identity  # twice the same is not random: another launcher than mpirun
    return identity._replace(run_id=f"{identity.run_id}-{halves[0][:8]}", launch=random)


def _from_hosts(environ: Environ) -> Identity | None:
    """Find the place of this host in the list that SageMaker, or a TPU slice, gives to all; there is one rank on each.

    Variables: https://github.com/aws/sagemaker-training-toolkit/blob/master/ENVIRONMENT_VARIABLES.md .
    """
    if (host := _text(environ, "SM_CURRENT_HOST")) and (hosts := _json(environ, "SM_HOSTS")):
        known = _json(environ, "SM_TRAINING_ENV")
        job = known.get("job_name") if isinstance(known, dict) else None
        if isinstance(hosts, list) and host in hosts:
            return _host(hosts.index(host), len(hosts), "SageMaker")._replace(run_id=job and str(job))
    number, names_of_hosts = _integer(environ, "TPU_WORKER_ID"), _text(environ, "TPU_WORKER_HOSTNAMES")
    size = (names_of_hosts or "").count(",") + 1
    if number is None or names_of_hosts is None or number >= size:
        return None
    return _host(number, size, "a TPU slice")


def _host(number: int, hosts: int, source: str) -> Identity:
    return Identity(number, 0, number, hosts, 1, None, None, source)


def _json(environ: Environ, name: str) -> Any:
    try:
        return json.loads(environ.get(name, ""))
    except ValueError:
        return None


def _from_hydra(environ: Environ) -> Identity | None:
    """Read what mpiexec of MPICH and Intel MPI sets; without a local rank it may be SLURM's, which says more itself."""
    if _text(environ, "MPI_LOCALRANKID") or _text(environ, "PMI_LOCAL_RANK"):
        return _from_pmi(environ)
    return None


def _from_pmi(environ: Environ) -> Identity | None:
    return _identity(
        environ,
        "MPICH",
        rank="PMI_RANK",
        size="PMI_SIZE",
        local_rank=("MPI_LOCALRANKID", "PMI_LOCAL_RANK"),
        local_size=("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
    )


def _from_slurm(environ: Environ) -> Identity | None:
    """Variables: https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES ."""
    if _slurm_step(environ) is None:
        return None
    identity = _identity(
        environ,
        "SLURM",
        rank="SLURM_PROCID",
        size=_slurm_size(environ),
        local_rank=("SLURM_LOCALID",),
        node_rank=("SLURM_NODEID",),
    )
    if identity is None:
        return None
    tasks = _slurm_tasks_on(environ, identity.node_rank) or identity.local_world_size
    return _with_slurm(environ, identity._replace(local_world_size=tasks))


def _slurm_step(environ: Environ) -> int | None:
    """Return the number of the step that ``srun`` started this process in.

    The script of ``sbatch`` and the shell of ``salloc`` are in no such step, although SLURM_PROCID is 0 there and
    SLURM_NTASKS the size of the whole job: what they start is on its own.
    """
    step = parse_count(environ.get("SLURM_STEP_ID", ""))
    return None if step is None or step >= _SLURM_SPECIAL_STEPS else step


_SLURM_SPECIAL_STEPS: Final = 0xFFFFFFF0
"""From here on: the batch script, the interactive shell and the like (``slurm.h``)."""


def _slurm_size(environ: Environ) -> str:
    return "SLURM_STEP_NUM_TASKS" if _text(environ, "SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"


def _slurm_tasks_on(environ: Environ, node_rank: int) -> int | None:
    """Return how many tasks a node has: 1 for node 3 and ``2(x3),1``. What is not written so says nothing."""
    text = _text(environ, "SLURM_STEP_TASKS_PER_NODE") or _text(environ, "SLURM_TASKS_PER_NODE") or ""
    for part in filter(None, (re.fullmatch(r"(\d{1,18})(?:\(x(\d{1,18})\))?", part) for part in text.split(","))):
        node_rank -= int(part[2] or 1)
        if node_rank < 0:
            return int(part[1])
    return None


def _slurm_id(environ: Environ, tasks: int) -> str | None:
    """Return the id of the step, if it started just these tasks; else other steps may belong to the run."""
    job, step = _text(environ, "SLURM_JOB_ID"), _slurm_step(environ)
    if job is None or step is None or _text(environ, _slurm_size(environ)) != str(tasks):
        return None
    # In a step with a terminal, a person may start one run after another.
    return None if "SLURM_PTY_PORT" in environ else f"slurm-{job}.{step}"


def _with_slurm(environ: Environ, identity: Identity) -> Identity:
    run_id = _slurm_id(environ, identity.world_size)
    if run_id is None:
        return identity._replace(run_id=None, restarts=None)
    restarts = _integer(environ, "SLURM_RESTART_COUNT") or 0
    # Numbers of jobs are a cluster's own, and begin again one day.
    place = [environ.get(name, "") for name in ("SLURM_CLUSTER_NAME", "SLURM_JOB_START_TIME")]
    return identity._replace(run_id=run_id, restarts=restarts, launch=f"{' '.join(place)} {run_id} {restarts}")


def _from_node_rank(environ: Environ) -> Identity | None:
    """Place a process by its node, as PeriFlow and Lightning tell it.

    Without a local rank it is taken for the first of its node, as the process is that starts the others.
    """
    world_size, node_rank = _integer(environ, "WORLD_SIZE", 1), _integer(environ, "NODE_RANK")
    local_rank = _integer(environ, "LOCAL_RANK")
    if world_size is None or (node_rank is None and local_rank is None):
        return None
    local_size = _ranks_per_node(environ, world_size)
    if node_rank and local_size is None:
        raise _half_set(environ, "NODE_RANK", "NUM_NODES")
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


def _single(environ: Environ) -> Identity:
    if (_integer(environ, "WORLD_SIZE", 1) or 1) > 1:
        raise _half_set(environ, "WORLD_SIZE", "RANK")
    if job := _text(environ, "SLURM_JOB_ID"):
        return _SINGLE._replace(source=f"a single process in SLURM job {job}, not started by srun")
    return _SINGLE


_SINGLE: Final = Identity(0, 0, 0, 1, 1, None, None, "a single process without a launcher")

# Reading variables


def _identity(
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
    number, world_size = _integer(environ, rank), _integer(environ, size, 1)
    if number is None:
        return None
    if world_size is None:
        raise _half_set(environ, rank, size)
    if number >= world_size:
        message = f"{rank} is {number} but {size} is {world_size}; give a rank from 0 to {world_size - 1}"
        raise ConfigurationError(message, rank)
    local_world_size = _first(environ, local_size, 1) or _ranks_per_node(environ, world_size) or world_size
    local, node = _first(environ, local_rank), _first(environ, node_rank)
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


def _ranks_per_node(environ: Environ, world_size: int) -> int | None:
    nodes = _integer(environ, "NUM_NODES", 1)
    if nodes is not None and world_size % nodes == 0:
        return world_size // nodes
    return _integer(environ, "NPROC_PER_NODE", 1)


def _first(environ: Environ, variables: tuple[str, ...], least: int = 0) -> int | None:
    return next((number for name in variables if (number := _integer(environ, name, least)) is not None), None)


def _integer(environ: Environ, name: str, least: int = 0) -> int | None:
    return Variables(environ).count(name, least)


def _text(environ: Environ, name: str) -> str | None:
    return Variables(environ).text(name)


def _half_set(environ: Environ, name: str, missing: str) -> ConfigurationError:
    return ConfigurationError(f"{name} is {environ[name]!r} but {missing} is not set; set both, or unset {name}", name)
