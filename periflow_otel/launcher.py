"""Keeps an agent alive for a run, one that does what the newest rank wants.

Whoever takes the lock of the run starts an agent, which takes the lock over: so there is never a second one, however
many ranks start at once. Where there is one already, its note in the lock file says what it delivers and where to. If
that is not what this rank wants, and this rank began later, an agent is started without the lock. It holds the lock of
the next one, which makes the first let go as soon as no request is under way.

An agent that fails before it is at work is not started again at once: the pauses grow, over all ranks, until one lives.
``agent.spawn`` says how a process becomes an agent.
"""

import logging
import os
import threading
import time
import weakref
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec.structs import replace

from periflow_otel.agent.spawn import Inheritance, NotAPythonError, is_agent, start_agent
from periflow_otel.config.environ import Environ
from periflow_otel.config.export import ExportSettings
from periflow_otel.config.paths import find_state_dirs, with_absolute_paths
from periflow_otel.config.run import RunSettings
from periflow_otel.descriptors import copy_descriptor
from periflow_otel.journal.agent_lock import open_lock, take_agent_lock, take_next_lock
from periflow_otel.journal.agent_note import AgentNote, log_bytes, read_note, why_failed, write_note
from periflow_otel.journal.files import open_own
from periflow_otel.journal.folders import AGENT_LOG

if TYPE_CHECKING:
    from periflow_otel.agent.agent import Agent

THREAD_START_TIMEOUT_S: Final = 10.0
"""How long a thread is given until it is at work: Python 3.12 and later start no further ones when a script ends."""

_Descriptor = TypeVar("_Descriptor", int, int | None)
_log = logging.getLogger("periflow_otel")


class AgentLauncher:
    """Keeps one agent alive for a run on this node."""

    def __init__(self, folder: Path, settings: RunSettings, environ: Environ) -> None:
        """Prepare to start an agent; nothing is started yet.

        Args:
            folder: Folder of the run.
            settings: Whether the agent is a process or a thread of this one, or there is none, and what it is to do.
            environ: Environment of an agent process, and where an agent thread finds its settings.

        In a process that was started to become an agent, this ends it: then ``sys.executable`` is no Python, but the
        program that trains, and it must not train twice.
        """
        if is_agent():
            os._exit(os.EX_SOFTWARE)
        self._folder = folder
        self._mode = settings.agent
        self._environ = with_absolute_paths(environ)
        self._wanted = AgentNote(settings.agent_settings, time.monotonic_ns())
        self._opened = ExitStack()
        self._busy = threading.Lock()
        self._thread: threading.Thread | None = None
        self._agent: Agent | None = None
        self._is_over = threading.Event()
        self._told: str | None = None
        self._pid = os.getpid()
        _launchers.add(self)

    def ensure(self) -> bool:
        """Start an agent unless one is alive, and return whether there is one. Takes 30 µs if so, some 15 ms if not."""
        if self._mode == "off" or os.getpid() != self._pid:
            return False
        if not self._busy.acquire(blocking=False):  # another thread is at it, or what a signal handler has interrupted
            return True
        try:
            return self._ensure()
        except (OSError, RuntimeError) as error:  # RuntimeError: no more threads
            self._tell(
                "no agent can be started (%s); records stay in %s and are exported by 'periflow-otel replay'. Where "
                "processes cannot be started, set PERIFLOW_AGENT=thread.",
                getattr(error, "strerror", None) or error,
            )
            return False
        finally:
            self._opened.close()
            self._busy.release()

    def stop(self, timeout_s: float) -> None:
        """End an agent thread, with what looks after left-overs; an agent process ends by itself when it is done."""
        self._is_over.set()
        if self._agent and self._thread:
            self._agent.stop()
            self._thread.join(timeout_s)

    def release(self) -> None:
        """Let go of what is open while an agent starts; the agent has it now."""
        self._opened.close()

    def _ensure(self) -> bool:
        lock = self._keep(take_agent_lock(self._folder))
        if lock is not None:
            return self._start_first(lock)
        if read_note(self._folder).gives_way_to(self._wanted):
            next_lock = self._keep(take_next_lock(self._folder))
            if next_lock is not None:
                self._start(self._keep(open_lock(self._folder)), next_lock, self._wanted)
        return True

    def _start_first(self, lock: int) -> bool:
        """Start an agent that has the lock, unless the last one has failed and it is too early."""
        last, reason = read_note(self._folder), why_failed(self._folder)
        if reason:
            self._tell(
                "the agent has failed (%s); it is tried again, less and less often. Until one is at work, records stay "
                "in %s.",
                reason,
            )
            if not last.is_due():
                return False
        failures = last.failures + 1 if reason else max(1, last.failures)
        note = replace(self._wanted, born_ns=time.monotonic_ns(), failures=failures, log_bytes=log_bytes(self._folder))
        with suppress(OSError):  # the disk is full
            write_note(lock, note)
        self._start(lock, None, note)
        return True

    def _start(self, lock: int, next_lock: int | None, note: AgentNote) -> None:
        if self._mode == "process":
            log = self._keep(_open_log(self._folder))
            try:
                start_agent(self._folder, Inheritance(lock, next_lock, log), note.encode(), self._environ)
            except NotAPythonError as error:
                _log.warning("the agent runs in a thread of this process, as it cannot be a process: %s", error)
                self._mode = "thread"
        if self._mode == "thread":
            self._start_thread(lock, next_lock, note)

    def _start_thread(self, lock: int, next_lock: int | None, note: AgentNote) -> None:
        from periflow_otel.agent.agent import Agent  # noqa: PLC0415  # exporters stay out of a training process

        settings = ExportSettings.from_environ(self._environ)
        is_first = self._thread is None
        # A lock is held until all its descriptors are closed: those here are, when the agent has its own.
        next_copy = None if next_lock is None else copy_descriptor(next_lock)
        self._agent = agent = Agent(self._folder, settings, copy_descriptor(lock), next_copy, note)
        self._thread = threading.Thread(target=self._serve, args=(agent,), name="periflow-agent", daemon=True)
        self._thread.start()
        agent.at_work.wait(THREAD_START_TIMEOUT_S)
        if is_first:
            threading.Thread(target=self._sweep, args=(settings,), name="periflow-leftovers", daemon=True).start()

    def _serve(self, agent: "Agent") -> None:
        try:
            agent.serve()
        except Exception:  # noqa: BLE001  # whatever it is, it would be the same with the next one
            self._mode = "off"
            _log.exception("the agent has failed; records stay in %s", self._folder)

    def _sweep(self, settings: ExportSettings) -> None:
        from periflow_otel.agent.leftovers import sweep  # noqa: PLC0415  # as above

        with suppress(RuntimeError):  # a script that ends starts no more threads
            sweep(find_state_dirs(self._environ), settings, self._folder, self._is_over)

    def _keep(self, descriptor: _Descriptor) -> _Descriptor:
        """Have a descriptor closed when an agent has started, or in a forked child, where it would keep a lock."""
        if descriptor is not None:
            self._opened.callback(os.close, descriptor)
        return descriptor

    def _tell(self, message: str, reason: object) -> None:
        """Say once for each reason why nothing is delivered."""
        if self._told != str(reason):
            self._told = str(reason)
            _log.warning(message, reason, self._folder)


def _open_log(folder: Path) -> int:
    """Open the log of the agent; without a place for it, what it says is only for the terminal."""
    try:
        return open_own(folder / AGENT_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


_launchers: "weakref.WeakSet[AgentLauncher]" = weakref.WeakSet()


def _release_in_child() -> None:
    """A forked child that kept a descriptor would keep the lock."""
    for launcher in list(_launchers):
        launcher.release()


os.register_at_fork(after_in_child=_release_in_child)
