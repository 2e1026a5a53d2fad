"""The sources in the order in which they are asked."""

import os
import sys

from periflow_otel.config.environ import Environ
from periflow_otel.errors import ConfigurationError
from periflow_otel.ranks.hosts import from_hosts
from periflow_otel.ranks.identity import SINGLE, Identity
from periflow_otel.ranks.launchers import LAUNCHERS, ONE_PER_NODE, from_hydra, from_open_mpi, from_pmi, from_table
from periflow_otel.ranks.process_group import Modules, from_process_group, process_group
from periflow_otel.ranks.slurm import from_slurm, single
from periflow_otel.ranks.torchrun import from_node_rank, from_rank


def find_identity(environ: Environ = os.environ, modules: Modules = sys.modules) -> Identity:
    """Find out who this process is.

    Args:
        environ: Where launchers leave what they know.
        modules: Where ``torch.distributed`` is, if the script has imported it; it is never imported here.

    Raises:
        ConfigurationError: A launcher's variables are malformed, contradict each other, or are not all there.
    """
    distributed = process_group(modules)
    if distributed is None:
        return _from_environ(environ)
    return from_process_group(distributed, _launched(environ), environ, modules)


def _launched(environ: Environ) -> Identity:
    """Return what the launcher says, where it need not say everything."""
    try:
        return _from_environ(environ)
    except ConfigurationError:
        return SINGLE


def _from_environ(environ: Environ) -> Identity:
    return (
        from_rank(environ)
        or from_open_mpi(environ)
        or from_table(environ, LAUNCHERS)
        or from_hydra(environ)
        or from_slurm(environ)
        or from_pmi(environ)
        or from_node_rank(environ)
        or from_table(environ, ONE_PER_NODE)
        or from_hosts(environ)
        or single(environ)
    )
