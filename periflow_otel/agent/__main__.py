"""The agent process: ``python -m periflow_otel.agent FOLDER LOCK``, started by ``periflow_otel.init``.

``FOLDER`` is the folder of the run, ``LOCK`` the inherited descriptor that holds its lock.
"""

import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

from periflow_otel.agent.agent import QUIET_AFTER_S, Agent
from periflow_otel.agent.leftovers import deliver_leftovers
from periflow_otel.config import ExportSettings, find_state_dirs
from periflow_otel.errors import ConfigurationError
from periflow_otel.journal.folders import AGENT_LOG
from periflow_otel.logs import LOGGER, keep_quiet

_log = logging.getLogger(LOGGER)


def main(folder: Path, lock: int) -> None:
    """Serve a run, and deliver what earlier runs have left behind."""
    os.nice(10)
    _close_all_beyond(lock)
    log = os.open(folder / AGENT_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    _set_up_logging(log)
    try:
        settings = ExportSettings.from_environ(os.environ)
    except ConfigurationError:
        _log.exception("the agent cannot start")
        return
    agent = Agent(folder, settings, lock, on_quiet=lambda: _let_go_of_terminal(log))
    _set_up_signals(agent)
    sweep = threading.Thread(target=deliver_leftovers, args=(find_state_dirs(os.environ), settings, agent), daemon=True)
    sweep.start()
    agent.serve()
    sweep.join(max(settings.linger_s, QUIET_AFTER_S))


def _close_all_beyond(last: int) -> None:
    """Close what training holds open and did not mark as its own: a socket kept here would block its port."""
    for descriptor in [int(entry.name) for entry in Path("/dev/fd").iterdir()]:
        if descriptor > last:
            with suppress(OSError):  # the one that the list was read through
                os.close(descriptor)


def _set_up_logging(log: int) -> None:
    """Log into a file, and for as long as a person may be looking, on stderr."""
    logging.basicConfig(
        format="%(asctime)s %(name)s: %(message)s",
        level=logging.WARNING,
        handlers=[logging.StreamHandler(), logging.StreamHandler(open(log, "w", closefd=False))],  # noqa: SIM115
    )
    keep_quiet()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what gRPC would write on stderr is in the answers too


def _set_up_signals(agent: Agent) -> None:
    """Outlive what ends training: Ctrl-C, a closed terminal, the warning of a job manager, and for a while the end."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)

    def shorten(_number: int, _frame: object) -> None:
        agent.linger_s = min(agent.linger_s, QUICK_LINGER_S)

    signal.signal(signal.SIGTERM, shorten)


def _let_go_of_terminal(log: int) -> None:
    """Whoever reads what training prints must not wait for the agent."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # training may have had it closed
            stream.flush()
            os.dup2(log, stream.fileno())


QUICK_LINGER_S = 5.0
"""How long the agent goes on without ranks after SIGTERM, which a job manager sends to everything in a job."""

if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
