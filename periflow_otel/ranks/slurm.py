"""What SLURM sets for the tasks of a step."""

import re
from typing import Final

from periflow_otel.config.environ import Environ, parse_count
from periflow_otel.ranks.identity import SINGLE, Identity, half_set, read_count, read_identity, read_text


def from_slurm(environ: Environ) -> Identity | None:
    """Variables: https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES ."""
    if _slurm_step(environ) is None:
        return None
    identity = read_identity(
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
    return with_slurm(environ, identity._replace(local_world_size=tasks))


def single(environ: Environ) -> Identity:
    """Take a process that nobody else knows for the only one of its run."""
    if (read_count(environ, "WORLD_SIZE", 1) or 1) > 1:
        raise half_set(environ, "WORLD_SIZE", "RANK")
    if job := read_text(environ, "SLURM_JOB_ID"):
        return SINGLE._replace(source=f"a single process in SLURM job {job}, not started by srun")
    return SINGLE


def slurm_id(environ: Environ, tasks: int) -> str | None:
    """Return the id of the step, if it started just these tasks; else other steps may belong to the run."""
    job, step = read_text(environ, "SLURM_JOB_ID"), _slurm_step(environ)
    if job is None or step is None or read_text(environ, _slurm_size(environ)) != str(tasks):
        return None
    # In a step with a terminal, a person may start one run after another.
    return None if "SLURM_PTY_PORT" in environ else f"slurm-{job}.{step}"


def with_slurm(environ: Environ, identity: Identity) -> Identity:
    """Add what SLURM knows of a run whose ranks are the tasks of a step."""
    run_id = slurm_id(environ, identity.world_size)
    if run_id is None:
        return identity._replace(run_id=None, restarts=None)
    restarts = read_count(environ, "SLURM_RESTART_COUNT") or 0
    # Numbers of jobs are a cluster's own, and begin again one day.
    place = [environ.get(name, "") for name in ("SLURM_CLUSTER_NAME", "SLURM_JOB_START_TIME")]
    return identity._replace(run_id=run_id, restarts=restarts, launch=f"{' '.join(place)} {run_id} {restarts}")


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
    return "SLURM_STEP_NUM_TASKS" if read_text(environ, "SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"


def _slurm_tasks_on(environ: Environ, node_rank: int) -> int | None:
    """Return how many tasks a node has: 1 for node 3 and ``2(x3),1``. What is not written so says nothing."""
    tasks = read_text(environ, "SLURM_STEP_TASKS_PER_NODE") or read_text(environ, "SLURM_TASKS_PER_NODE") or ""
    for part in filter(None, (re.fullmatch(r"(\d{1,18})(?:\(x(\d{1,18})\))?", part) for part in tasks.split(","))):
        node_rank -= int(part[2] or 1)
        if node_rank < 0:
            return int(part[1])
    return None
