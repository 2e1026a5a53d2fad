"""What is read of the node."""

from collections.abc import Iterator
from typing import Any, Final

from periflow_otel import conventions
from periflow_otel.translate.telemetry import Observation

_MODES: Final = {
    "user": "user", "nice": "nice", "system": "system", "idle": "idle", "iowait": "iowait", "irq": "interrupt",
    "softirq": "interrupt", "steal": "steal",
}  # fmt: skip
"""What psutil calls what a processor does, and what the semantic conventions call it."""


class System:
    """Reads the node, time and again."""

    def __init__(self) -> None:
        """Find psutil.

        Raises:
            ImportError: It is missing or broken.
        """
        import psutil  # noqa: PLC0415  # in an agent that reads the machine alone

        self._psutil: Any = psutil
        self._booted_unix_ns = int(psutil.boot_time()) * 1_000_000_000
        self._cpu_before: dict[str, float] = {}

    def read(self) -> Iterator[Observation]:
        """Yield what there is to see now."""
        yield from self._cpu()

    def _cpu(self) -> Iterator[Observation]:
        times = self._cpu_times()
        before, self._cpu_before = self._cpu_before, times
        for mode, time_s in times.items():
            attributes = ((conventions.CPU_MODE, mode),)
            yield Observation(conventions.SYSTEM_CPU_TIME, time_s, attributes, self._booted_unix_ns)
        spent_s = {mode: max(0.0, time_s - before.get(mode, time_s)) for mode, time_s in times.items()}
        if all_s := sum(spent_s.values()):
            for mode, mode_s in spent_s.items():
                yield Observation(conventions.SYSTEM_CPU_UTILIZATION, mode_s / all_s, ((conventions.CPU_MODE, mode),))

    def _cpu_times(self) -> dict[str, float]:
        found = self._psutil.cpu_times()
        times: dict[str, float] = {}
        for name, mode in _MODES.items():
            if hasattr(found, name):
                times[mode] = times.get(mode, 0.0) + getattr(found, name)
        return times
