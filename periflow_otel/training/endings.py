"""How this process ends: what is called then, and by which exception."""

import atexit
import os
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from periflow_otel.errors import full_type
from periflow_otel.records import RankRun
from periflow_otel.terminal import is_screen, say


def call_at_exit(call: Callable[[], None]) -> None:
    """Call at the end of this process, also of a child of ``multiprocessing``, which may run no atexit handlers."""
    atexit.register(call)
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.parent_process() is not None:
        from multiprocessing.util import Finalize  # noqa: PLC0415  # loaded already

        Finalize(None, call, exitpriority=0)
        process = processes.current_process()
        process.name = _Name(process.name)


def time_left_s(timeout_s: float) -> float:
    """Return what is left of the time that the end of this process may take in all, counted from the first call."""
    return max(0.0, timeout_s - (time.monotonic() - _began_s()))


@lru_cache(maxsize=1)
def _began_s() -> float:
    return time.monotonic()


def say_what_is_recorded(run: RankRun, steps: int) -> None:
    """Tell who sits before a screen what a run has left, and the command that shows it; the first rank does."""
    if run.rank == 0 and steps and _has_files(run) and is_screen():
        from shlex import quote  # noqa: PLC0415  # only where somebody may read it

        log = str(run.local_log).removeprefix(f"{Path.cwd()}{os.sep}")
        count = f"{steps} step{'' if steps == 1 else 's'}"
        say(f"periflow_otel: {count} recorded beside {log}; to see them: periflow-otel report {quote(log)}")


def _has_files(run: RankRun) -> bool:
    return any(each.startswith("otlp_file.") for each in run.orders.consumers)


def failure(error: BaseException | None) -> str | None:
    """Name the type of an exception; None for one by which code is left as its author wants it."""
    if error is None or isinstance(error, _WAYS_OUT) or (isinstance(error, SystemExit) and not _status(error)):
        return None
    return full_type(error)


_WAYS_OUT = (GeneratorExit, StopIteration, StopAsyncIteration)


def _status(error: SystemExit) -> object:
    """Return what a process ends with; text, even empty, counts as a failure."""
    return error.code if error.code is None or isinstance(error.code, int) else 1


def error_at_exit(old: BaseException | None) -> BaseException | None:
    """Return the exception that ends this process; ``old`` was there before."""
    error = sys.exc_info()[1] or _Name.error or getattr(sys, "last_value", None)
    if error is None or error is old or hasattr(sys, "ps1"):
        return None
    return _given_up(error) if isinstance(error, SystemExit) else error


def _given_up(error: SystemExit) -> BaseException | None:
    """Return what a child has ended of that writes its failure down and exits with a status, as PyTorch's ranks do."""
    return (error.__context__ or error) if _status(error) else None


class _Name(str):
    """Name of a child of ``multiprocessing``, which sees the exception that ends it.

    From Python 3.13 on, that exception is forgotten when the handlers at exit run. It is there while the child says on
    stderr which process has failed, and so asks for its name.
    """

    __slots__ = ()
    error: BaseException | None = None

    def __str__(self) -> str:
        error = sys.exc_info()[1]
        if error and error.__traceback__ and error.__traceback__.tb_frame.f_code.co_name == "_bootstrap":
            _Name.error = error
        return self[:]

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (self[:],)
