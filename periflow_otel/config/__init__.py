"""Settings, resolved once from the environment; nothing else but ``ranks`` reads it.

``OTEL_*`` variables mean what the OpenTelemetry specification says: an empty value is an unset one, and one that makes
no sense is ignored with a warning. But an endpoint, a header, a certificate or an exporter that cannot be used is an
error, and so is every value of a ``PERIFLOW_*`` variable that makes no sense.
"""
