"""Fixtures of all tests: every test has a folder and an environment of its own."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import Collector

_FOREIGN = re.compile(
    r"(OTEL|PERIFLOW|XDG|TORCHELASTIC|SLURM|OMPI|PMI|PMIX|MASTER)_.*|.*_proxy"
    r"|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|NODE_RANK|NUM_NODES|PROCESSED_ITERS|CKPT_DIR|TRACEPARENT",
    re.IGNORECASE,
)


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run the test in an empty folder, with its journals there, and with no variable that could change its result."""
    for name in os.environ:
        if _FOREIGN.fullmatch(name) and name != "PERIFLOW_TEST_BIN":
            monkeypatch.delenv(name)
    monkeypatch.setenv("PERIFLOW_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    """Return a running OpenTelemetry Collector."""
    with Collector(tmp_path / "otelcol") as collector:
        yield collector
