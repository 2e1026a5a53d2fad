"""The agent process. ``periflow_otel.agent.spawn`` says how it comes here, and calls ``main``."""

import gc
import logging
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Final

from periflow_otel.agent.agent import LEAST_LINGER_S, Agent
from periflow_otel.agent.leftovers import sweep
from periflow_otel.agent.spawn import MARK
from periflow_otel.config.export import ExportSettings
from periflow_otel.config.paths import find_state_dirs
from periflow_otel.errors import ConfigurationError
from periflow_otel.journal.agent_note import decode_note
from periflow_otel.logs import LOGGER, is_of_this_run, limit_repeats, name_run, speak_of
from periflow_otel.processes import wait_for_end
from periflow_otel.terminal import Terminal

QUICK_LINGER_S: Final = 5.0
"""How long the agent goes on without ranks after SIGTERM, which a job manager sends to everything in a job."""
_MANY_OBJECTS: Final = 50_000
"""Only when there are so many more is it looked for cycles among them: a second of many ranks makes and frees as many
as would have everything looked through, and next to nothing here makes cycles."""
_NICENESS: Final = 10
_MAX_PROCESSORS: Final = 8192
"""As many as a Linux kernel may be built for; it takes those that there are, and that the agent may use."""

_ERRORS_INSTEAD: Final = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
"""What Python ignores, so that a closed pipe or a file beyond ``ulimit -f`` is an error of the call."""

_log = logging.getLogger(LOGGER)


def main(folder: str, starter: int, lock: int, next_lock: int, out: int, err: int) -> None:
    """Serve a run, and deliver what earlier runs have left behind.

    Args:
        folder: Folder of the run.
        starter: Process id of who started the agent.
        lock: Descriptor that holds the lock of the run, or is to hold it.
        next_lock: Descriptor that holds the lock of the next agent, where another has that of the run; else -1.
        out: Descriptor of the starter's stdout, where it was open; else -1.
        err: As ``out``, of its stderr.
    """
    _forget_the_starter()
    gc.set_threshold(_MANY_OBJECTS)
    sys.stdout, sys.stderr = terminals = Terminal(out), Terminal(err)
    threading.Thread(target=_let_go_of, args=(terminals, starter), daemon=True).start()
    _set_up_logging()
    try:
        with speak_of(Path(folder).parent.name):  # the starter has said the same, for people
            settings = ExportSettings.from_environ(os.environ)
    except ConfigurationError:
        _log.exception("the agent cannot start")
        return
    note = decode_note(os.environ.get(MARK, ""))
    agent = Agent(Path(folder), settings, lock, next_lock if next_lock >= 0 else None, note)
    _set_up_signals(agent)
    is_over = threading.Event()
    arguments = (find_state_dirs(os.environ), settings, agent.folder, is_over)
    sweeper = threading.Thread(target=sweep, args=arguments, daemon=True)
    sweeper.start()
    threading.Thread(target=_make_way, args=(agent.at_work,), daemon=True).start()
    agent.serve()
    is_over.set()
    sweeper.join(max(settings.linger_s, LEAST_LINGER_S))


def _forget_the_starter() -> None:
    """Take nothing over of what the starter does with signals, processors and the modes of files."""
    os.umask(0o077)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, *_ERRORS_INSTEAD}:
        with suppress(OSError):  # the C library keeps some for itself
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    with suppress(OSError, AttributeError):  # AttributeError: not Linux
        os.sched_setaffinity(0, range(_MAX_PROCESSORS))


def _make_way(at_work: threading.Event) -> None:
    """Leave the processors to training, once that is watched: until then somebody may wait to be told where.

    Of Linux each thread has a priority of its own, and hands it on to those that it starts.
    """
    at_work.wait()
    niceness = os.nice(_NICENESS)
    for thread in Path("/proc/self/task").glob("*"):
        with suppress(ProcessLookupError):  # it has ended
            os.setpriority(os.PRIO_PROCESS, int(thread.name), niceness)


def _let_go_of(terminals: tuple[Terminal, ...], starter: int) -> None:
    """Close the starter's output when the starter has ended: who reads it must not wait, and others write there now."""
    wait_for_end(starter)
    for terminal in terminals:
        terminal.close()


def _set_up_logging() -> None:
    """Log into the file that is this process's stderr, and to whoever reads the output of the starter."""
    log = open(2, "w", closefd=False)  # noqa: SIM115  # until the end
    # What ends the agent is for its log alone: the next one would say it again, and the launcher says it once.
    sys.excepthook = lambda *error: traceback.print_exception(*error, file=log)
    screen, file = logging.StreamHandler(), logging.StreamHandler(log)
    screen.addFilter(is_of_this_run)
    file.addFilter(name_run)
    screen.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    file.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(of_run)s%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[screen, file])
    limit_repeats()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what gRPC would write on stderr is in the answers too


def _set_up_signals(agent: Agent) -> None:
    """Outlive what ends training: Ctrl-C, a closed terminal, the warning of a job manager, and for a while the end."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)

    def shorten(_number: int, _frame: object) -> None:
        agent.linger_s = min(agent.linger_s, QUICK_LINGER_S)

    signal.signal(signal.SIGTERM, shorten)
