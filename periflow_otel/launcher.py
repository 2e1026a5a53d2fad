"""Starts the agent of a run, and starts it again when it has died."""

import errno
import logging
import os
import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from periflow_otel.config import AgentMode, Environ, ExportSettings
from periflow_otel.journal.agent_lock import take_agent_lock

if TYPE_CHECKING:
    from periflow_otel.agent.agent import Agent

_log = logging.getLogger("periflow_otel")
_LOCK_DESCRIPTOR = 3
"""Where the agent finds the lock that its starter took for it."""


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
        self._child = 0
        self._thread: threading.Thread | None = None
        self._agent: Agent | None = None
        self._has_warned = False
        self._pid = os.getpid()
        _launchers.add(self)

    def ensure(self) -> None:
        """Start an agent unless one is alive. Takes some 20 µs if one is, and a few ms if not."""
        if self._mode == "off" or os.getpid() != self._pid:
            return
        try:
            self._lock = take_agent_lock(self._folder)
            if self._lock is not None:
                self._start(self._lock)
        except OSError as error:
            self._warn(error)
        finally:
            self.release()
            self._reap()

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
        safe_path = ["-P"] if sys.version_info >= (3, 11) else []
        self._child = os.posix_spawn(
            sys.executable,
            [sys.executable, *safe_path, "-m", "periflow_otel.agent", str(self._folder), str(_LOCK_DESCRIPTOR)],
            self._environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, lock, _LOCK_DESCRIPTOR),
            ],
            setsid=True,
        )

    def _start_thread(self, lock: int) -> None:
        from periflow_otel.agent.agent import Agent  # noqa: PLC0415  # exporters stay out of a training process

        self._agent = Agent(self._folder, ExportSettings.from_environ(self._environ), lock)
        self._lock = None  # it is the agent's now
        self._thread = threading.Thread(target=self._agent.serve, name="periflow-agent", daemon=True)
        self._thread.start()

    def _reap(self) -> None:
        """Let an agent that has ended leave the process table."""
        if self._child:
            try:
                pid, status = os.waitpid(self._child, os.WNOHANG)
            except ChildProcessError:  # somebody else waited for it
                self._child = 0
                return
            if pid:
                self._child = 0
                if status:
                    self._warn(OSError(errno.ECHILD, f"it ended with status {os.waitstatus_to_exitcode(status)}"))

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "the agent of this run could not be kept alive (%s); records stay in %s and are exported by "
                "'periflow-otel replay'. Where processes cannot be started, set PERIFLOW_AGENT=thread.",
                error.strerror,
                self._folder,
            )


_launchers: "weakref.WeakSet[AgentLauncher]" = weakref.WeakSet()


def _release_in_child() -> None:
    """A forked child that kept the descriptor would keep the lock."""
    for launcher in list(_launchers):
        launcher.release()


os.register_at_fork(after_in_child=_release_in_child)
