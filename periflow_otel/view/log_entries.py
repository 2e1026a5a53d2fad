"""What ranks have logged that somebody should read: the latest warnings, and the latest errors."""

from collections import deque
from typing import Any, Final

import msgspec

WARNING: Final = 13
"""As OpenTelemetry numbers severities,"""
ERROR: Final = 17
"""from this one on something went wrong."""
MAX_KEPT: Final = 100
"""Of warnings, and of errors: however many there are of the ones, the others stay."""
MAX_CHARS: Final = 500
"""Of a message."""


class LogEntry(msgspec.Struct, frozen=True):
    """One log record."""

    attempt: int
    rank: int
    step: int | None
    """None outside of steps."""
    time: float
    """Unix seconds."""
    severity: int
    level: str
    """What the script calls the severity."""
    logger: str
    message: str
    exception: str | None = None
    """Type of the exception that was logged."""


class LogEntries:
    """Takes warnings and errors, and keeps the latest."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.warnings, self.errors = _Latest(), _Latest()

    def add(self, entry: LogEntry) -> None:
        """Take a log record."""
        cut = entry.message[:MAX_CHARS] + "…" if len(entry.message) > MAX_CHARS else entry.message
        (self.errors if entry.severity >= ERROR else self.warnings).add(msgspec.structs.replace(entry, message=cut))

    def add_earlier(self, other: "LogEntries") -> None:
        """Take what was said in the attempts before."""
        self.warnings.add_earlier(other.warnings)
        self.errors.add_earlier(other.errors)

    def to_dict(self) -> dict[str, Any]:
        """Return how many there were, and those that are kept by their time."""
        kept = sorted((*self.warnings.kept, *self.errors.kept), key=lambda entry: entry.time)
        return {
            "warnings": self.warnings.count,
            "errors": self.errors.count,
            "kept": list(map(msgspec.structs.asdict, kept)),
        }


class _Latest:
    def __init__(self) -> None:
        self.count = 0
        self.kept: deque[LogEntry] = deque(maxlen=MAX_KEPT)

    def add(self, entry: LogEntry) -> None:
        self.count += 1
        self.kept.append(entry)

    def add_earlier(self, other: "_Latest") -> None:
        self.count += other.count
        self.kept = deque((*other.kept, *self.kept), MAX_KEPT)
