"""Starts the agent of a run, and starts it again when it has died."""

import errno
import logging
import os
import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from periflow_otel.config import AgentMode, ExportSettings
from periflow_otel.environ import Environ
from periflow_otel.journal.agent_lock import take_agent_lock

if TYPE_CHECKING:
    from periflow_otel.agent.agent import Agent

_log = logging.getLogger("periflow_otel")
_LOCK_DESCRIPTOR = 3
"""Where the agent finds the lock that its starter took for it."""
# Not from the working directory, where a file may be called like a module that the agent needs.
_AGENT = (
    ("-P", "-m", "periflow_otel.agent")
    if sys.version_info >= (3, 11)
    else ("-c", "import runpy, sys; sys.path.remove(''); runpy.run_module('periflow_otel.agent', None, '__main__')")
)


class AgentLauncher:
    """Keeps one agent alive for a run on this node."""

    def __init__(self, folder: Path, mode: AgentMode, environ: Environ) -> None:
        """Prepare to start an agent; nothing is started yet.

        Args:
            folder: Folder of the run.
            mode: ``process``, ``thread`` (in this process) or ``off``.
            environ: Environment of an agent process, and where an agent thread finds its settings.
        """
        self._folder = folder
        self._mode = mode
        self._environ = dict(environ)
        self._lock: int | None = None
        self._thread: threading.Thread | None = None
        self._agent: Agent | None = None
        self._has_warned = False
        self._pid = os.getpid()
        _launchers.add(self)

    def ensure(self) -> bool:
        """Start an agent unless one is alive, and return whether there is one. Takes 20 µs if so, a few ms if not."""
        if self._mode == "off" or os.getpid() != self._pid:
            return False
        _reap()
        try:
            self._lock = take_agent_lock(self._folder)
            if self._lock is not None:
                self._start(self._lock)
        except (OSError, RuntimeError) as error:  # RuntimeError: no more threads
            self._warn(error)
            return False
        finally:
            self.release()
        return True

    def stop(self, timeout_s: float) -> None:
        """End an agent thread; an agent process ends by itself when there is nothing left for it to do."""
        if self._agent and self._thread:
            self._agent.stop()
            self._thread.join(timeout_s)

    def release(self) -> None:
        """Let go of the lock; an agent that was started holds it now."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _start(self, lock: int) -> None:
        if self._mode == "thread":
            self._start_thread(lock)
        else:
            self._start_process(lock)

    def _start_process(self, lock: int) -> None:
        """Start an agent that takes the lock over: so there is never a second one, however many ranks start at once.

        It shares stdout and stderr, for what exporters and the log have to say, and lets go of them after the ranks.
        """
        if not sys.executable:
            raise OSError(errno.ENOENT, "this interpreter does not know its own path")
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, *_AGENT, str(self._folder), str(_LOCK_DESCRIPTOR)],
            self._environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, lock, _LOCK_DESCRIPTOR),
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                *((os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2) if _is_closed(stream)),
            ],
            setsid=True,
        )
        _children.add(pid)

    def _start_thread(self, lock: int) -> None:
        from periflow_otel.agent.agent import Agent  # noqa: PLC0415  # exporters stay out of a training process

        self._agent = Agent(self._folder, ExportSettings.from_environ(self._environ), lock)
        self._lock = None  # it is the agent's now
        self._thread = threading.Thread(target=self._agent.serve, name="periflow-agent", daemon=True)
        self._thread.start()

    def _warn(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "no agent can be started (%s); records stay in %s and are exported by 'periflow-otel replay'. Where "
                "processes cannot be started, set PERIFLOW_AGENT=thread.",
                getattr(error, "strerror", None) or error,
                self._folder,
            )


def _is_closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False


def _reap() -> None:
    """Let agents that have ended leave the process table."""
    for child in list(_children):
        try:
            pid, status = os.waitpid(child, os.WNOHANG)
        except ChildProcessError:  # somebody else waited for it
            pid, status = child, 0
        if pid:
            _children.discard(child)
        if status:
            _log.warning(
                "an agent ended with status %d; nothing is lost, another one takes its place",
                os.waitstatus_to_exitcode(status),
            )


_children: set[int] = set()
"""Agents that this process has started, as far as they are not known to have ended."""
_launchers: "weakref.WeakSet[AgentLauncher]" = weakref.WeakSet()


def _release_in_child() -> None:
    """A forked child that kept the descriptor would keep the lock; and its parent's children are not its own."""
    _children.clear()
    for launcher in list(_launchers):
        launcher.release()


os.register_at_fork(after_in_child=_release_in_child)
