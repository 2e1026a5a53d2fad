"""Standard variables that are not obeyed. Who sets one is told, once: elsewhere it would have changed something."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Final

from periflow_otel.config.environ import Environ

UNREAD: Final = {
    "OTEL_CONFIG_FILE": "every setting is a variable or an argument",
    "OTEL_EXPERIMENTAL_CONFIG_FILE": "as above",
    "OTEL_PROPAGATORS": "`TRACEPARENT` is read, and nothing is passed on",
    "OTEL_BSP_*": "the journal is the queue; its bound is `PERIFLOW_JOURNAL_MAX_BYTES`",
    "OTEL_BLRP_*": "as above",
    "OTEL_ATTRIBUTE_*_LIMIT": "text is cut at 4096 characters, and a run has at most 1000 metric keys",
    "OTEL_SPAN_*_LIMIT": "as above",
    "OTEL_EVENT_*_LIMIT": "as above",
    "OTEL_LINK_*_LIMIT": "as above",
    "OTEL_LOGRECORD_*_LIMIT": "as above",
    "OTEL_METRICS_EXEMPLAR_FILTER": "exemplars are of steps that have a span",
    "OTEL_METRIC_EXPORT_TIMEOUT": "`OTEL_EXPORTER_OTLP_TIMEOUT` bounds each request, and the data is kept",
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "`OTEL_RESOURCE_ATTRIBUTES` adds what is wanted",
    "OTEL_ENTITIES": "as above",
    "OTEL_PYTHON_ID_GENERATOR": "ids are derived from run, attempt, step and rank, so that ranks agree on them",
    "OTEL_LOG_LEVEL": "`logging` sets the level of the logger `periflow_otel`",
}
"""Patterns of names, and what holds instead."""
_HARMLESS: Final = {
    "OTEL_PROPAGATORS": frozenset({"tracecontext", "baggage"}),
    "OTEL_METRICS_EXEMPLAR_FILTER": frozenset({"trace_based"}),
    "OTEL_PYTHON_ID_GENERATOR": frozenset({"random"}),
    "OTEL_LOG_LEVEL": frozenset({"info", "warn", "warning"}),
}
"""Values that ask for what happens anyway."""


def unread(environ: Environ) -> list[str]:
    """Name the variables that are set and not obeyed."""
    return sorted(_unread(environ))


def _unread(environ: Environ) -> Iterator[str]:
    for name, value in environ.items():
        wanted = {each.strip().lower() for each in value.split(",")} - {""}
        if (
            wanted
            and not wanted <= _HARMLESS.get(name, frozenset())
            and any(fnmatchcase(name, each) for each in UNREAD)
        ):
            yield name
