"""What the interpreter of a rank has said of the fatal signal that ended it."""

from pathlib import Path
from typing import Final

from periflow_otel.journal.stacks import StackFile
from periflow_otel.translate.stragglers.stacks import parse_fatal, traceback_text, user_frame

_END_BYTES: Final = 64 << 10


def last_words(folder: Path) -> tuple[str | None, str]:
    """Return what a process has died of, and its stack.

    Args:
        folder: Its journal.

    Returns:
        A text such as ``Segmentation fault in crash.py:3 (crash)``, and the stack as Python shows one; None and nothing
        of a process that has said nothing: it was killed, say.
    """
    try:
        file = StackFile(folder)
        fatal = parse_fatal(file.read(max(0, file.size() - _END_BYTES)))
    except (OSError, ValueError, TypeError):  # it has no such file
        return None, ""
    if fatal is None:
        return None, ""
    frame = user_frame(fatal.stack)
    where = f" in {frame.place} ({frame.function})" if frame else ""
    return f"{fatal.reason}{where}", traceback_text(fatal.stack) if fatal.stack else ""
