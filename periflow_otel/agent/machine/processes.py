"""What is read of a process: a rank of this node, or the agent itself."""

from collections.abc import Iterator
from typing import Any

from periflow_otel import conventions
from periflow_otel.processes import Process
from periflow_otel.translate.telemetry import Observation


class Processes:
    """Reads processes, time and again."""

    def __init__(self) -> None:
        """Find psutil.

        Raises:
            ImportError: It is missing or broken.
        """
        import psutil  # noqa: PLC0415  # in an agent that reads the machine alone

        self._psutil: Any = psutil
        self._known: dict[Process, Any] = {}

    def read(self, process: Process) -> tuple[Observation, ...]:
        """Return what there is to see of a process now: nothing, if it is gone or cannot be seen from here."""
        if not process.is_alive():
            self._known.pop(process, None)
            return ()
        try:
            known = self._known.get(process) or self._psutil.Process(process.pid)
            self._known[process] = known
            return tuple(self._read(known))
        except self._psutil.Error:  # it is gone, or another user's
            self._known.pop(process, None)
            return ()

    def _read(self, process: Any) -> Iterator[Observation]:
        with process.oneshot():
            started_unix_ns = int(process.create_time() * 1e9)
            memory = process.memory_info()
        yield Observation(conventions.PROCESS_MEMORY_USAGE, memory.rss, (), started_unix_ns)
