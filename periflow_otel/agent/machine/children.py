"""The processes below that of a rank, such as data loader workers, found without a look at all of the machine."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from periflow_otel import names
from periflow_otel.translate.telemetry import Observation

MAX_CHILDREN: Final = 256
"""Of more, the rest is not looked at: it would take too long."""
_PROC: Final = Path("/proc")


def observe_children(pid: int) -> Iterator[Observation]:
    """Yield how many processes there are below one, and their memory; nothing where the kernel does not tell."""
    children = list(_below(pid))
    if children:
        yield Observation(names.MACHINE_CHILDREN, len(children))
        yield Observation(names.MACHINE_CHILDREN_MEMORY, sum(map(_memory, children)))


def _below(pid: int) -> Iterator[int]:
    """Yield the processes below one, at most so many."""
    waiting = list(_children(pid))
    for _ in range(MAX_CHILDREN):
        if not waiting:
            return
        yield (child := waiting.pop())
        waiting += _children(child)


def _children(pid: int) -> list[int]:
    """Return what the threads of a process have started."""
    try:
        threads = list((_PROC / str(pid) / "task").iterdir())
    except OSError:  # it is gone, or this is not Linux
        return []
    return [int(child) for thread in threads for child in _read(thread / "children").split()]


def _memory(pid: int) -> int:
    words = _read(_PROC / str(pid) / "statm").split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 else 0


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except OSError:
        return ""
