"""Where ``periflow_sdk`` keeps the object behind its functions, for scripts that import it from there."""

from periflow_otel import periflow

__all__ = ["periflow"]
