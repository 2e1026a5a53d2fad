"""Which file systems only one machine at a time can have mounted: there, a lock that is free is free everywhere."""

import re
from pathlib import Path
from typing import Final

_LOCAL: Final = frozenset(
    {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}
)
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
_MOUNTS: Final = Path("/proc/self/mountinfo")


def is_local(folder: Path) -> bool:
    """Tell whether a folder is certainly on a file system that no other machine can write to at the same time."""
    return _type_of(folder) in _LOCAL


def _type_of(folder: Path) -> str:
    """Return the type of the file system that a folder is on; empty if nobody can tell, as on macOS."""
    try:
        lines = _MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
        path = folder.resolve()
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        return ""
    # Of those that hold the folder the longest counts, and of two in one place the last.
    mounts = [(root, kind) for root, kind in map(_mount, lines) if path.is_relative_to(root)]
    return max(enumerate(mounts), key=lambda each: (len(each[1][0].parts), each[0]), default=(0, (Path(), "")))[1][1]


def _mount(line: str) -> tuple[Path, str]:
    """Return where something is mounted, and its type."""
    before, _, after = line.partition(" - ")
    root = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), before.split(" ")[4])
    return Path(root), after.split(" ")[0]
