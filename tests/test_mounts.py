"""Which file systems only one machine can write to."""

import os
import subprocess
from pathlib import Path

import pytest
from disks import small_disk

from periflow_otel.journal.mounts import is_local


def test_a_file_system_in_memory_is_local(tmp_path: Path):
    """Also below a folder whose name the kernel must spell out, and where there is nothing yet."""
    with small_disk(tmp_path / "a disk", "1m") as disk:
        (disk / "below").mkdir()
        assert is_local(disk / "below")
        assert is_local(disk / "to be" / "made")


def test_a_file_system_of_another_kind_is_not(tmp_path: Path):
    """What is not known to be local may be shared; the mount point that is nearest counts."""
    assert not is_local(Path("/proc/self"))
    with small_disk(tmp_path / "disk", "1m") as disk:
        (disk / "proc").mkdir()
        if subprocess.run(["mount", "-t", "proc", "none", disk / "proc"], check=False).returncode:  # noqa: S607
            pytest.skip("this container may not mount")
        assert not is_local(disk / "proc" / str(os.getpid()))
