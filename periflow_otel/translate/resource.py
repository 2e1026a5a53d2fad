"""The resource of a run on a node: who emits."""

from functools import lru_cache

from periflow_otel import names
from periflow_otel.records import RankRun
from periflow_otel.translate.telemetry import Resource


@lru_cache(maxsize=1024)
def resource_of(run: RankRun) -> Resource:
    """Return the resource, which all ranks of one attempt on one node share."""
    attributes: dict[str, str | int] = {
        "service.namespace": "periflow",
        "service.instance.id": f"{run.run_id}/{run.node_rank}",
        **dict(run.resource),
        names.RUN_ID: run.run_id,
        names.ATTEMPT: run.attempt,
        names.NODE_RANK: run.node_rank,
        names.WORLD_SIZE: run.world_size,
        names.MODE: run.mode,
    }
    return Resource(tuple(sorted(attributes.items())))
