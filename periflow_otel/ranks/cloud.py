"""What PeriFlow sets in cloud mode."""

from typing import Final, NamedTuple

from periflow_otel import names
from periflow_otel.config.environ import Environ, parse_count
from periflow_otel.errors import PeriFlowInternalError, shown


class CloudVariables(NamedTuple):
    """What PeriFlow sets in cloud mode."""

    world_size: int
    node_rank: int
    num_nodes: int
    processed_iters: int
    """Steps that earlier attempts did."""


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
        message = f"{name} is {shown(value)}; cloud mode needs an integer of at least {least}. {_GO_LOCAL}"
        raise PeriFlowInternalError(message)
    return number
