"""Lets methods of ours come before those of a framework's object, where the framework has no event."""

import copyreg
from collections.abc import Callable
from typing import Any

MakeClass = Callable[[type], type]
"""Makes a class below another one, with methods that come before those of it. A function of a module."""


def watch(watched: Any, make: MakeClass) -> None:
    """Let an object be one of the class that ``make`` makes of its own; once is enough, and twice is once.

    Nothing is kept in the object, nothing refers to it, and its copies are watched as well.
    """
    theirs = type(watched)
    if not hasattr(theirs, "periflow_made_by"):
        watched.__class__ = _disguised(make(theirs), theirs, make)


def _disguised(made: Any, theirs: type, make: MakeClass) -> Any:
    made.__name__, made.__qualname__, made.__module__ = theirs.__name__, theirs.__qualname__, theirs.__module__
    made.__reduce_ex__ = _reduce
    made.periflow_made_by = staticmethod(make)
    return made


def _reduce(watched: Any, protocol: Any) -> Any:
    """Take a copy apart into what is found by name, which the class that was made is not."""
    theirs: Any = type(watched).__base__
    call, arguments, *rest = theirs.__reduce_ex__(watched, protocol)
    if call is not copyreg.__newobj__:  # type: ignore[attr-defined]  # not in the stubs
        return call, arguments, *rest
    return _new, (watched.periflow_made_by, theirs, *arguments[1:]), *rest


def _new(make: MakeClass, theirs: type, *arguments: Any) -> Any:
    made = theirs.__new__(theirs, *arguments)
    watch(made, make)
    return made
