"""Keeps an agent alive for a run: a process, or where that cannot be, a thread. ``birth`` says how one begins."""

import logging
import os
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from periflow_otel.birth import NotAPythonError, is_agent, start_agent
from periflow_otel.config import AgentMode, ExportSettings
from periflow_otel.environ import Environ
from periflow_otel.journal.agent_lock import take_agent_lock
from periflow_otel.journal.folders import AGENT_LOG

if TYPE_CHECKING:
    from periflow_otel.agent.agent import Agent

_log = logging.getLogger("periflow_otel")


class AgentLauncher:
    """Keeps one agent alive for a run on this node."""

    def __init__(self, folder: Path, mode: AgentMode, environ: Environ) -> None:
        """Prepare to start an agent; nothing is started yet.

        Args:
            folder: Folder of the run.
            mode: ``process``, ``thread`` (in this process) or ``off``.
            environ: Environment of an agent process, and where an agent thread finds its settings.

        In a process that was started to become an agent, this ends it: then ``sys.executable`` is no Python, but the
        program that trains, and it must not train twice.
        """
        if is_agent():
            os._exit(os.EX_SOFTWARE)
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
        """Start an agent that takes the lock over: so there is never a second one, however many ranks start at once."""
        log = _open_log(self._folder)
        try:
            start_agent(self._folder, lock, log, self._environ)
        except NotAPythonError as error:
            _log.warning("the agent runs in a thread of this process, as it cannot be a process: %s", error)
            self._mode = "thread"
            self._start_thread(lock)
        finally:
            os.close(log)

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


def _open_log(folder: Path) -> int:
    """Open the log of the agent; without a place for it, what it says is only for the terminal."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(folder / AGENT_LOG, flags, 0o600)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


_launchers: "weakref.WeakSet[AgentLauncher]" = weakref.WeakSet()


def _release_in_child() -> None:
    """A forked child that kept the descriptor would keep the lock."""
    for launcher in list(_launchers):
        launcher.release()


os.register_at_fork(after_in_child=_release_in_child)
