"""What a journal keeps in memory while the disk takes nothing."""

from collections import deque
from typing import Final

MAX_BYTES: Final = 32 << 20
"""Of all frames together."""


class Overflow:
    """Frames that wait for the disk, the oldest dropped first where they are too many."""

    __slots__ = ("dropped", "frames", "size_bytes")

    def __init__(self) -> None:
        """Begin with nothing."""
        self.frames: deque[bytes] = deque()
        self.size_bytes = 0
        self.dropped = 0
        """How many, since the disk has taken something."""

    def keep(self, data: bytes) -> None:
        """Keep one more."""
        self.frames.append(data)
        self.size_bytes += len(data)
        while self.size_bytes > MAX_BYTES:
            self.take()
            self.dropped += 1

    def take(self) -> bytes:
        """Return the oldest, which is kept no longer."""
        data = self.frames.popleft()
        self.size_bytes -= len(data)
        return data
