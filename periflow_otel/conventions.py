"""The instruments of OpenTelemetry's semantic conventions that the agent shows of the machine, and their attributes.

Their names, kinds and units are the published ones, letter by letter; a test compares them with OpenTelemetry's own
package. ``docs/telemetry.md`` is generated from this module as from ``periflow_otel.names``.
"""

from typing import Final

from periflow_otel.names import Instrument

# Attributes
CPU_MODE: Final = "cpu.mode"
"""What a processor did: user, system, nice, idle, iowait, interrupt or steal."""
ATTRIBUTES: Final = (CPU_MODE,)

# Of a node
SYSTEM_CPU_TIME: Final = Instrument(
    "system.cpu.time", "counter", "s", "Time that the processors of the node have spent, all together, by mode."
)
SYSTEM_CPU_UTILIZATION: Final = Instrument(
    "system.cpu.utilization", "gauge", "1", "Share of the processors' time since the last reading, by mode."
)
OF_NODE: Final = (SYSTEM_CPU_TIME, SYSTEM_CPU_UTILIZATION)

# Of a process: a rank, or the agent
PROCESS_MEMORY_USAGE: Final = Instrument(
    "process.memory.usage", "updowncounter", "By", "Physical memory that the process takes."
)
OF_PROCESS: Final = (PROCESS_MEMORY_USAGE,)

INSTRUMENTS: Final = (*OF_NODE, *OF_PROCESS)
