"""``python -m periflow_otel`` is the command ``periflow-otel``."""

import sys

from periflow_otel.cli import main

sys.exit(main())
