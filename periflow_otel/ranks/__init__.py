"""Who this process is among the ranks of a run, told by what started it.

Sources are asked in turn, and the first that knows wins. The order matters where one launcher runs inside another:
``torchrun`` or ``mpirun`` inside a SLURM job find SLURM's variables beside their own, and those count something else.
"""

from periflow_otel.ranks.cloud import CloudVariables, require_cloud
from periflow_otel.ranks.find import find_identity
from periflow_otel.ranks.identity import Identity, describe
from periflow_otel.ranks.process_group import Modules, agree

__all__ = ["CloudVariables", "Identity", "Modules", "agree", "describe", "find_identity", "require_cloud"]
