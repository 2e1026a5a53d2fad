"""How an agent process is born: of a program that may be anything, into a world of its own.

The starter may be a script in any Python (of a virtual environment, uv, conda; a zip application; a vendored package),
under any launcher, with threads, a GPU and a thousand open files. So

- nothing of the starter runs in the new process: ``subprocess`` executes a fresh interpreter, and has closed all that
  the starter had open before that begins; only the lock, the log and the starter's own output are handed on;
- the interpreter is isolated, without ``site``: no ``.pth`` file, ``sitecustomize`` or ``PYTHON*`` variable has a say,
  and so no auto-instrumentation, coverage or debugger. In their place it is handed the ``sys.path`` of the starter, and
  takes this package from exactly where the starter has it;
- it is nobody's child: the interpreter that was started forks, answers with the process id of its child, and ends. A
  script that waits for its children, or a launcher that kills them, never meets the agent;
- it has a session of its own, ``/`` as its folder, and the log of the agent as stderr. What else it puts right, such as
  signals and processors, it does itself: see ``periflow_otel.agent.__main__``;
- it carries a mark, and a process with that mark starts no agent. An executable that is no Python, but the program that
  the starter is itself, ends as soon as it begins a run.

An executable that gives no answer is no Python that can do this.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

from periflow_otel.descriptors import copy_descriptor

ANSWER_TIMEOUT_S: Final = 10.0
"""How long an interpreter may take to begin: it is the one that runs already, so its files are at hand."""
MARK: Final = "_PERIFLOW_AGENT"
"""Variable that is set in an agent; it holds the note for it."""

_PACKAGE: Final = "periflow_otel"
_NEEDED: Final = ("msgspec", "opentelemetry")
"""Packages that every starter has loaded."""
_NONE: Final = -1
"""Stands for a descriptor that there is not."""
_FROM_OUTSIDE: Final = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""What may be over soon: no processes, memory or descriptors at the moment."""

# The interpreter's own library comes first in the path, as in the starter. Whoever was in the way is found last.
_FIRST_WORDS: Final = """\
import faulthandler, os, sys
child = os.fork()
if child:
    os.write(1, b"%d" % child)
    os._exit(0)
os.dup2(2, 1)
faulthandler.enable()
_, root, folder, *numbers = sys.argv[1:9]
sys.path[:] = dict.fromkeys((*sys.path[1:], *sys.argv[9:]))
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
spec = PathFinder.find_spec("periflow_otel", [root])
sys.modules["periflow_otel"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["periflow_otel"])
from periflow_otel.agent.__main__ import main
main(folder, *map(int, numbers))
"""


class NotAPythonError(Exception):
    """What should run the agent is no Python that can; the message says why."""


class Inheritance(NamedTuple):
    """Descriptors that an agent gets, besides those of the starter's own output."""

    lock: int
    """Of the run."""
    next_lock: int | None
    """Held by an agent that has to wait for the lock; None for one that has it."""
    log: int
    """Where the agent logs."""


def start_agent(folder: Path, inheritance: Inheritance, note: str, environ: Mapping[str, str]) -> None:
    """Start an agent process. Takes as long as an interpreter without ``site`` needs to begin, some 10 ms.

    Args:
        folder: Folder of the run.
        inheritance: What it gets.
        note: What it is told besides, for it alone.
        environ: Variables that the agent finds its settings in.

    Raises:
        NotAPythonError: This interpreter has no executable that could run it.
        OSError: It cannot be started now.
    """
    executable = _find_executable()
    with ExitStack() as opened:
        inherited = [_NONE if each is None else each for each in inheritance[:2]]
        inherited += [_copy(stream, opened) for stream in (1, 2)]
        command = (*_command(executable), str(folder), str(os.getpid()), *map(str, inherited), *_search_path())
        pid, status = _execute(command, inherited, inheritance.log, {**_environment(environ), MARK: note})
    if not pid.isdigit():
        message = f"{executable} ended with status {status}"
        raise NotAPythonError(message)


def _execute(
    command: Sequence[str],
    inherited: Sequence[int],
    log: int,
    environ: Mapping[str, str],
    timeout_s: float = ANSWER_TIMEOUT_S,
) -> tuple[bytes, int]:
    """Return what the started process answers, and its status."""
    try:
        started = subprocess.Popen(  # noqa: S603  # this interpreter
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=[each for each in inherited if each != _NONE],
            start_new_session=True,
            cwd="/",
            env=environ,
        )
    except OSError as error:
        if error.errno in _FROM_OUTSIDE:
            raise
        message = f"{command[0]} cannot be executed: {error.strerror}"
        raise NotAPythonError(message) from None
    with started:
        try:
            return started.communicate(timeout=timeout_s)[0], started.returncode
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)  # with all that it has started, which may hold the pipe
            message = f"{command[0]} gives no answer"
            raise NotAPythonError(message) from None


def is_agent() -> bool:
    """Tell whether this process is an agent, or was started in place of one."""
    return MARK in os.environ


def _find_executable() -> str:
    """Return the interpreter that runs this; raise if it has none, or that is a program with a Python inside."""
    path = shutil.which(sys.executable) if sys.executable else None
    if path is None:
        message = "this interpreter does not know its executable"
    elif getattr(sys, "frozen", False):
        message = "this is a frozen program"
    elif not any(name in os.path.basename(path).lower() for name in ("python", "pypy")):  # noqa: PTH119  # a name
        message = f"{path} is no Python"
    else:
        return _absolute(path)  # not resolved: a virtual environment is found by its link
    raise NotAPythonError(message)


def _command(executable: str) -> tuple[str, ...]:
    """Return what runs ``_FIRST_WORDS``."""
    utf8 = f"utf8={sys.flags.utf8_mode}"  # paths in journals are text as the starter reads them
    return executable, "-S", "-X", utf8, "-c", _FIRST_WORDS, f"{_PACKAGE}.agent", _root(_PACKAGE)


def _search_path() -> list[str]:
    """Return where the starter finds modules, and where it has found what it needs of us, whatever its path is now.

    The folder of its script comes last: there may be files called like modules.
    """
    roots = [_root(name) for name in (_PACKAGE, *_NEEDED) if name in sys.modules]
    given = [each for each in sys.path if isinstance(each, str)]  # Python passes over the rest
    path = dict.fromkeys(filter(None, [*map(_absolute, given), *roots]))
    own = [each for each in dict.fromkeys(_own_folders()) if path.pop(each, each) is None]
    return [*path, *own]


def _root(package: str) -> str:
    """Return the folder, or the zip file, that holds a package that is loaded."""
    return os.path.dirname(_absolute(next(iter(sys.modules[package].__path__))))  # noqa: PTH120  # as sys.path has it


def _own_folders() -> Iterator[str]:
    """Yield where a script finds its own modules: the working folder, and the one above the main module."""
    yield _absolute("")
    main = sys.modules.get("__main__", ModuleType("__main__"))
    if file := getattr(main, "__file__", None):
        name = getattr(getattr(main, "__spec__", None), "name", "")
        yield str([*Path(file).resolve().parents][: name.count(".") + 1][-1])


def _absolute(path: str) -> str:
    """Return a path that does not depend on the working folder; nothing if that is gone."""
    try:
        return os.path.abspath(path)  # noqa: PTH100  # not resolved, and cheap
    except OSError:
        return ""


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the starter without those that change a Python."""
    needed = () if sys.flags.ignore_environment else ("PYTHONHOME",)
    return {name: value for name, value in environ.items() if name in needed or not name.startswith("PYTHON")}


def _copy(stream: int, opened: ExitStack) -> int:
    """Return a copy of a stream with a number that none has; ``_NONE`` if the stream is closed."""
    try:
        copy = copy_descriptor(stream)
    except OSError as error:
        if error.errno == errno.EBADF:
            return _NONE
        raise
    opened.callback(os.close, copy)
    return copy
