"""Finished spans, points and log records as OTLP, in protobuf and in JSON: two writers, one model.

What is here is what both say with the same numbers.
"""

from typing import Final

from periflow_otel.config.endpoints import Signal

FIELDS: Final[dict[Signal, str]] = {
    "traces": "resourceSpans",
    "metrics": "resourceMetrics",
    "logs": "resourceLogs",
}
"""What holds all else in OTLP JSON."""
SPAN_KIND_INTERNAL: Final = 1
STATUS_CODE_ERROR: Final = 2
DELTA: Final = 1
CUMULATIVE: Final = 2
FLAGS: Final = 0x100
"""That it is known whether the parent of a span, or the span that a link leads to, is of another process."""
REMOTE: Final = 0x200
"""That it is."""
SMALL: Final = 1024
"""An attribute with an integer below this is written once and remembered: ranks are such."""
