"""Who emits: each rank of an attempt is a service instance, and the agent of a run on a node is one.

Receivers know an instance by its id, and want its points in the order of their times. Ranks that shared one would come
in each other's way.
"""

from functools import lru_cache
from typing import Final

from periflow_otel import names
from periflow_otel.records import RankRun
from periflow_otel.translate.telemetry import Resource

_INSTANCE_ID: Final = "service.instance.id"


@lru_cache(maxsize=4096)
def resource_of(run: RankRun) -> Resource:
    """Return the resource of a rank in one attempt, or of an agent, which is there for all attempts."""
    given = dict(run.resource)
    attributes: dict[str, str | int] = {
        "service.namespace": "periflow",
        **given,
        "telemetry.sdk.name": names.SCOPE,
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": names.VERSION,
        "telemetry.distro.name": names.SCOPE,
        "telemetry.distro.version": names.VERSION,
        _INSTANCE_ID: _instance_id(run, given.get(_INSTANCE_ID)),
        names.RUN_ID: run.run_id,
        names.NODE_RANK: run.node_rank,
        names.MODE: run.mode,
    }
    if not run.is_of_agent():
        attributes |= {names.ATTEMPT: run.attempt, names.WORLD_SIZE: run.world_size}
    return Resource(tuple(sorted(attributes.items())))


def _instance_id(run: RankRun, given: str | int | None) -> str | int:
    """Return what no other rank, attempt or agent is called; a single rank is what the user calls it."""
    if run.is_of_agent():
        return f"{given or run.run_id}/agent-{run.node_rank}"
    if given is None:
        return f"{run.run_id}/{run.attempt}/{run.rank}"
    return given if run.world_size == 1 else f"{given}/{run.rank}"
