"""Launchers that give a list of hosts to all, with one rank on each."""

import json
from typing import Any

from periflow_otel.config.environ import Environ
from periflow_otel.ranks.identity import Identity, read_count, read_text


def from_hosts(environ: Environ) -> Identity | None:
    """Find the place of this host in the list that SageMaker, or a TPU slice, gives to all; there is one rank on each.

    Variables: https://github.com/aws/sagemaker-training-toolkit/blob/master/ENVIRONMENT_VARIABLES.md .
    """
    if (host := read_text(environ, "SM_CURRENT_HOST")) and (hosts := _json(environ, "SM_HOSTS")):
        known = _json(environ, "SM_TRAINING_ENV")
        job = known.get("job_name") if isinstance(known, dict) else None
        if isinstance(hosts, list) and host in hosts:
            return _host(hosts.index(host), len(hosts), "SageMaker")._replace(run_id=job and str(job))
    number, names_of_hosts = read_count(environ, "TPU_WORKER_ID"), read_text(environ, "TPU_WORKER_HOSTNAMES")
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
