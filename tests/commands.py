"""What tests of the command ``periflow-otel`` share."""

from collections.abc import Callable

import pytest

import periflow_otel as pf
from periflow_otel.cli import main

Begin = Callable[..., pf.TrainingRun]
"""Begins a run that records without an agent: the fixture ``begin``."""


class Said:
    """What a command printed, and its exit status."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        """Run the command; what was printed before does not count."""
        capsys.readouterr()
        self.status = main(arguments)
        self.output, self.errors = capsys.readouterr()
