"""A screen on which something is shown again and again: another one than that which the shell is on."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

Describe = Callable[[int | None], str]
"""Returns what to show, in so many lines if it can; None: in any number."""
_ENTER: Final = "\x1b[?1049h\x1b[?25l"
_LEAVE: Final = "\r\n\x1b[?25h\x1b[?1049l"
"""With a new line for terminals that have one screen alone."""
_HOME: Final = "\x1b[H"
_REST_OF_LINE: Final = "\x1b[K"
_REST_OF_SCREEN: Final = "\x1b[J"


@contextmanager
def watched() -> Iterator[Callable[[Describe], None]]:
    """Give what shows something in place of what it showed before; where there is no screen, below that.

    The screen of the shell comes back as it was.
    """
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield lambda describe: print(describe(None), end="\n\n", flush=True)
        return
    try:
        sys.stdout.write(_ENTER)
        yield _draw
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


def _draw(describe: Describe) -> None:
    """Write over what is there, line by line, so that nothing flickers; what has no room is cut off."""
    size = shutil.get_terminal_size()
    lines = [line[: size.columns] for line in describe(size.lines).splitlines()[: size.lines]]
    sys.stdout.write(_HOME + f"{_REST_OF_LINE}\r\n".join(lines) + _REST_OF_LINE + _REST_OF_SCREEN)
    sys.stdout.flush()
