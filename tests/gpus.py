"""GPUs for machines that have none: a library in the place of the driver's, which says what a file says."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

SOURCE: Final = Path(__file__).with_name("nvml_stub.c")
LIBRARY: Final = "libnvidia-ml.so.1"
H100: Final = {
    "uuid": "GPU-11111111-aaaa", "name": "NVIDIA H100 80GB HBM3", "memory": 85520809984, "used": 1234567890,
    "reserved": 34567890, "utilization": 87, "power": 512345, "energy": 987654321, "temperature": 61, "reasons": 4,
    "corrected": 3, "uncorrected": 0, "mig": 0,
}  # fmt: skip
"""What a GPU says, in the units of the driver."""


def build(folder: Path) -> Path:
    """Build the library, and return the folder that it is in."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}", "-o", folder / LIBRARY, SOURCE]
    subprocess.run(command, check=True)
    return folder


class FakeGpus:
    """What the library says."""

    def __init__(self, file: Path) -> None:
        """Begin without GPUs."""
        self._file = file
        self._said: dict[str, object] = {}
        self.say(count=0)

    def say(self, **values: object) -> None:
        """Say something of all GPUs together."""
        self._said.update(values)
        lines = "".join(f"{name} {value}\n" for name, value in self._said.items())
        fresh = self._file.with_suffix(".new")
        fresh.write_text(lines)
        fresh.replace(self._file)

    def add(self, number: int, part: int | None = None, **values: object) -> None:
        """Add a GPU, or a MIG device in one, or say something else of it."""
        name = f"{number}" if part is None else f"{number}/{part}"
        count = max(int(str(self._said["count"])), number + 1)
        self.say(count=count, **{f"{name}.{key}": value for key, value in values.items()})


def use(library: Path, file: Path, environ: Mapping[str, str] = os.environ) -> FakeGpus:
    """Have this process find the library in the place of the driver's; ``environ`` says where its file is."""
    assert environ["NVML_STUB"] == str(file)
    ctypes.CDLL(str(library / LIBRARY))  # one that is loaded is found by its name
    return FakeGpus(file)
