"""What ``faulthandler`` writes of a Python stack, as data. Pure.

It writes from a signal handler and in pieces, so a reader may find the end cut off: what is whole counts.
"""

import re
from collections.abc import Collection
from typing import Final, NamedTuple

MAX_SHOWN_CHARS: Final = 8192
"""Longest stack that is shown; the outer frames of a longer one are left out."""
_FRAME: Final = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)')
_HEAD: Final = re.compile(r"(Stack|(Current )?[Tt]hread 0x[0-9a-f]+.*) \(most recent call first\):")
_FATAL: Final = re.compile(r"Fatal Python error: (.*)")
_MANY: Final = 1_000_000
_SEPARATOR: Final = re.compile(r"[/\\]")
_LIBRARY: Final = re.compile(r"[/\\](site-packages|dist-packages|lib[/\\]python3[^/\\]*)[/\\]|^<frozen ")


class Frame(NamedTuple):
    """A call that has not returned."""

    file: str
    line: int
    """0: unknown."""
    function: str

    @property
    def is_of_library(self) -> bool:
        """Whether it is code of Python itself or of an installed package."""
        return _LIBRARY.search(self.file) is not None

    @property
    def place(self) -> str:
        """File and line, as people say it."""
        return f"{_SEPARATOR.split(self.file)[-1]}:{self.line}"


Stack = tuple[Frame, ...]
"""The innermost call first."""


class Fatal(NamedTuple):
    """What a process has said of the signal that ended it."""

    reason: str
    stack: Stack
    """Of the thread that it hit; empty where it was in no Python code."""


def parse(text: str) -> list[Stack]:
    """Return all stacks in a text, whatever else is in it."""
    stacks: list[list[Frame]] = []
    is_within = False
    for line in text.splitlines():
        if _HEAD.fullmatch(line):
            stacks.append([])
            is_within = True
        elif is_within and (match := _FRAME.fullmatch(line)):
            stacks[-1].append(Frame(match[1], int(match[2]) if match[2].isdecimal() else 0, match[3]))
        else:
            is_within = is_within and line.startswith("  ")
    return [tuple(stack) for stack in stacks]


def parse_fatal(text: str) -> Fatal | None:
    """Return the last words of a process; None if it has said none."""
    found = list(_FATAL.finditer(text))
    if not found:
        return None
    last = text[found[-1].end() :]
    is_current = last.find("Current thread 0x")
    stacks = parse(last[max(0, is_current) :])
    return Fatal(found[-1][1].strip(), stacks[0] if stacks else ())


def calls(stack: Stack) -> tuple[tuple[str, str], ...]:
    """Return which functions a stack is in, whatever the lines: equal while a rank waits, or turns in a small loop."""
    return tuple((frame.file, frame.function) for frame in stack)


def user_frame(stack: Stack) -> Frame | None:
    """Return the innermost call in code of the user's own; of a library where there is none."""
    return next((frame for frame in stack if not frame.is_of_library), stack[0] if stack else None)


def traceback_text(stack: Stack) -> str:
    """Return a stack as Python shows one, the innermost call last."""
    lines: list[str] = []
    left = MAX_SHOWN_CHARS
    for frame in stack:
        line = f'  File "{frame.file}", line {frame.line}, in {frame.function}'
        left -= len(line) + 1
        if left < 0:
            lines.append("  …")
            break
        lines.append(line)
    return "\n".join(["Traceback (most recent call last):", *reversed(lines)])


def ranges(numbers: Collection[int]) -> str:
    """Return numbers as people write them: ``0-2, 5``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def from_ranges(text: str) -> list[int]:
    """Return the numbers that people have written so; nothing of what is none."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal() and (last or first).isdecimal() and int(last or first) - int(first) < _MANY:
            numbers += range(int(first), int(last or first) + 1)
    return numbers
