"""Pages over HTTP, for this machine's own eyes: to add one, give a :class:`~periflow_otel.web.site.Site` a handler."""
