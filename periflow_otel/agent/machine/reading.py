"""Reads the machine in threads of their own: a driver that hangs holds up neither delivery nor the care for ranks."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from periflow_otel.agent.machine.children import observe_children
from periflow_otel.agent.machine.processes import Processes
from periflow_otel.agent.machine.system import System
from periflow_otel.processes import Process
from periflow_otel.records import RankRun
from periflow_otel.translate.telemetry import Observation, Observed

_log = logging.getLogger("periflow_otel")


class Rank(NamedTuple):
    """A rank of this node that lives."""

    folder: Path
    """Of its journal."""
    run: RankRun


class Reading(NamedTuple):
    """What was seen at one time."""

    of_node: Sequence[Observation] = ()
    of_ranks: Mapping[Path, Observed] = {}
    """By the folder of the journal."""


_FIRST_S: Final = 1.0
"""When the first look is taken: scripts that do little are over by then, and pay nothing."""
NOTHING_YET: Final = Reading()
Read = Callable[[Sequence[Rank]], Reading]


class Reader:
    """Reads one part of the machine every so often. What it cannot read is missing, and said once."""

    def __init__(self, name: str, make_read: Callable[[], Read], interval_s: float) -> None:
        """Prepare; ``start`` sets it going.

        Args:
            name: What is read, for the log.
            make_read: Called in the thread: returns what reads. It may raise ``ImportError``.
            interval_s: How often.
        """
        self.latest = NOTHING_YET
        """Replaced by each reading."""
        self.ranks: Sequence[Rank] = ()
        """To be replaced by whoever knows them."""
        self._name = name
        self._make_read = make_read
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"periflow-{name}", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Read no more. One that is reading is not waited for: nothing depends on it."""
        self._stopping.set()

    def _serve(self) -> None:
        if self._stopping.wait(min(_FIRST_S, self._interval_s)):
            return  # the run was over before there was anything to see
        try:
            self._go_on(self._make_read())
        except Exception as error:  # noqa: BLE001  # whatever it is: training and telemetry go on without
            _log.warning("nothing is shown of the %s: %s: %s", self._name, type(error).__name__, error)

    def _go_on(self, read: Read) -> None:
        self.latest = read(self.ranks)
        while not self._stopping.wait(self._interval_s):
            self.latest = read(self.ranks)


def make_read_system(folder: Path) -> Read:
    """Return what reads the node, the agent's own process and those of ranks.

    Args:
        folder: Of the run: on a file system that matters, as are those of metric logs.

    Raises:
        ImportError: psutil is missing or broken.
    """
    system, processes, own = System(), Processes(), Process.current()

    def read(ranks: Sequence[Rank]) -> Reading:
        cpus = system.cpu_limit()

        def observe(process: Process) -> Iterator[Observation]:
            if seen := processes.read(process, cpus):
                yield from seen
                yield from observe_children(process.pid)

        folders = {folder, *(Path(each.run.local_log).parent for each in ranks if each.run.local_log)}
        of_ranks = {each.folder: Observed(time.time_ns(), tuple(observe(each.run.process))) for each in ranks}
        return Reading((*system.read(folders), *processes.read(own, cpus)), of_ranks)

    return read
