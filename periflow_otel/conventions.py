"""The instruments of OpenTelemetry's semantic conventions that the agent shows of the machine, and their attributes.

Their names, kinds and units are the published ones, letter by letter; a test compares them with OpenTelemetry's own
package. ``docs/telemetry.md`` is generated from this module as from ``periflow_otel.names``.
"""

from typing import Final

from periflow_otel.names import Instrument

# Attributes
CPU_MODE: Final = "cpu.mode"
"""What a processor did: user, system, nice, idle, iowait, interrupt or steal."""
MEMORY_STATE: Final = "system.memory.state"
"""used, free, cached or buffers."""
PAGING_STATE: Final = "system.paging.state"
"""used or free."""
PAGING_DIRECTION: Final = "system.paging.direction"
"""in: back from the disk; out: to the disk."""
DISK_DIRECTION: Final = "disk.io.direction"
"""read or write."""
MOUNTPOINT: Final = "system.filesystem.mountpoint"
"""Where the file system is mounted that holds the state folder or a metric log."""
FILESYSTEM_STATE: Final = "system.filesystem.state"
"""used, free, or reserved for root."""
INTERFACE: Final = "network.interface.name"
"""A network interface that is not the loopback; where some have hardware of their own, one of those."""
NETWORK_DIRECTION: Final = "network.io.direction"
"""transmit or receive."""
CONTEXT_SWITCH_TYPE: Final = "process.context_switch.type"
"""voluntary: it waited; involuntary: others had their turn."""
HW_ID: Final = "hw.id"
"""UUID of a GPU, or of a MIG device in it."""
HW_NAME: Final = "hw.name"
"""Number of a GPU on its node, and of the MIG device in it, such as GPU 0 or GPU 0 MIG 1."""
HW_MODEL: Final = "hw.model"
"""What its maker calls a GPU."""
HW_PARENT: Final = "hw.parent"
"""UUID of the GPU that a MIG device is in."""
HW_TYPE: Final = "hw.type"
"""gpu; of hw.status also temperature and power_supply: what is wrong with the GPU."""
HW_STATE: Final = "hw.state"
"""ok; degraded: held back by the hardware; failed: the driver cannot reach it."""
GPU_TASK: Final = "hw.gpu.task"
"""general."""
ERROR_TYPE: Final = "error.type"
"""corrected or uncorrected: of the memory of a GPU; xid_N: the driver has told of error N since the agent began."""
ATTRIBUTES: Final = (
    CPU_MODE, MEMORY_STATE, PAGING_STATE, PAGING_DIRECTION, DISK_DIRECTION, MOUNTPOINT, FILESYSTEM_STATE, INTERFACE,
    NETWORK_DIRECTION, CONTEXT_SWITCH_TYPE, HW_ID, HW_NAME, HW_MODEL, HW_PARENT, HW_TYPE, HW_STATE, GPU_TASK,
    ERROR_TYPE,
)  # fmt: skip

# Of a node
SYSTEM_CPU_TIME: Final = Instrument(
    "system.cpu.time", "counter", "s", "Time that the processors have spent, all together, by mode."
)
SYSTEM_CPU_UTILIZATION: Final = Instrument(
    "system.cpu.utilization", "gauge", "1", "Share of the processors' time since the last reading, by mode."
)
SYSTEM_CPU_COUNT: Final = Instrument(
    "system.cpu.logical.count", "updowncounter", "{cpu}", "Processors that may be used."
)
SYSTEM_MEMORY_USAGE: Final = Instrument("system.memory.usage", "updowncounter", "By", "Memory by state.")
SYSTEM_MEMORY_LIMIT: Final = Instrument("system.memory.limit", "updowncounter", "By", "Memory that there is.")
SYSTEM_MEMORY_UTILIZATION: Final = Instrument(
    "system.memory.utilization", "gauge", "1", "Share of the memory by state."
)
SYSTEM_PAGING_USAGE: Final = Instrument("system.paging.usage", "updowncounter", "By", "Swap space by state.")
SYSTEM_PAGING_OPERATIONS: Final = Instrument(
    "system.paging.operations", "counter", "{operation}", "Pages that were swapped."
)
SYSTEM_DISK_IO: Final = Instrument("system.disk.io", "counter", "By", "Bytes from and to all disks.")
SYSTEM_DISK_OPERATIONS: Final = Instrument(
    "system.disk.operations", "counter", "{operation}", "Operations of all disks."
)
SYSTEM_FILESYSTEM_USAGE: Final = Instrument(
    "system.filesystem.usage", "updowncounter", "By", "Space of a file system by state."
)
SYSTEM_FILESYSTEM_LIMIT: Final = Instrument(
    "system.filesystem.limit", "updowncounter", "By", "Space of a file system, all together."
)
SYSTEM_FILESYSTEM_UTILIZATION: Final = Instrument(
    "system.filesystem.utilization", "gauge", "1", "Share of what users may have of a file system that is used."
)
SYSTEM_NETWORK_IO: Final = Instrument("system.network.io", "counter", "By", "Bytes over a network interface.")
SYSTEM_NETWORK_ERRORS: Final = Instrument(
    "system.network.errors", "counter", "{error}", "Errors of a network interface."
)
OF_NODE: Final = (
    SYSTEM_CPU_TIME, SYSTEM_CPU_UTILIZATION, SYSTEM_CPU_COUNT, SYSTEM_MEMORY_USAGE, SYSTEM_MEMORY_LIMIT,
    SYSTEM_MEMORY_UTILIZATION, SYSTEM_PAGING_USAGE, SYSTEM_PAGING_OPERATIONS, SYSTEM_DISK_IO, SYSTEM_DISK_OPERATIONS,
    SYSTEM_FILESYSTEM_USAGE, SYSTEM_FILESYSTEM_LIMIT, SYSTEM_FILESYSTEM_UTILIZATION, SYSTEM_NETWORK_IO,
    SYSTEM_NETWORK_ERRORS,
)  # fmt: skip

# Of a process: a rank, or the agent
PROCESS_CPU_TIME: Final = Instrument("process.cpu.time", "counter", "s", "Processor time of the process, by mode.")
PROCESS_CPU_UTILIZATION: Final = Instrument(
    "process.cpu.utilization", "gauge", "1", "Share of all processors' time since the last reading, by mode."
)
PROCESS_MEMORY_USAGE: Final = Instrument(
    "process.memory.usage", "updowncounter", "By", "Physical memory that the process takes."
)
PROCESS_MEMORY_VIRTUAL: Final = Instrument(
    "process.memory.virtual", "updowncounter", "By", "Address space that the process has."
)
PROCESS_THREAD_COUNT: Final = Instrument("process.thread.count", "updowncounter", "{thread}", "Threads of the process.")
PROCESS_FILE_COUNT: Final = Instrument(
    "process.unix.file_descriptor.count", "updowncounter", "{file_descriptor}", "Files that the process has open."
)
PROCESS_CONTEXT_SWITCHES: Final = Instrument(
    "process.context_switches", "counter", "{context_switch}", "How often the process has left its processor."
)
PROCESS_DISK_IO: Final = Instrument("process.disk.io", "counter", "By", "Bytes from and to disks.")
PROCESS_UPTIME: Final = Instrument("process.uptime", "gauge", "s", "Time since the process began.")
OF_PROCESS: Final = (
    PROCESS_CPU_TIME, PROCESS_CPU_UTILIZATION, PROCESS_MEMORY_USAGE, PROCESS_MEMORY_VIRTUAL, PROCESS_THREAD_COUNT,
    PROCESS_FILE_COUNT, PROCESS_CONTEXT_SWITCHES, PROCESS_DISK_IO, PROCESS_UPTIME,
)  # fmt: skip

# Of a GPU
GPU_UTILIZATION: Final = Instrument(
    "hw.gpu.utilization", "gauge", "1", "Share of the time in which the GPU did something."
)
GPU_MEMORY_USAGE: Final = Instrument("hw.gpu.memory.usage", "updowncounter", "By", "Memory of a GPU that is used.")
GPU_MEMORY_LIMIT: Final = Instrument("hw.gpu.memory.limit", "updowncounter", "By", "Memory of a GPU.")
GPU_MEMORY_UTILIZATION: Final = Instrument(
    "hw.gpu.memory.utilization", "gauge", "1", "Share of the memory of a GPU that is used."
)
HW_POWER: Final = Instrument("hw.power", "gauge", "W", "Power that a GPU takes.")
HW_ENERGY: Final = Instrument("hw.energy", "counter", "J", "Energy that a GPU has taken since its driver was loaded.")
HW_TEMPERATURE: Final = Instrument("hw.temperature", "gauge", "Cel", "Temperature of a GPU.")
HW_ERRORS: Final = Instrument("hw.errors", "counter", "{error}", "Errors of a GPU, by type.")
HW_STATUS: Final = Instrument("hw.status", "updowncounter", "1", "1: a GPU is in this state; 0: it is not.")
OF_GPU: Final = (
    GPU_UTILIZATION, GPU_MEMORY_USAGE, GPU_MEMORY_LIMIT, GPU_MEMORY_UTILIZATION, HW_POWER, HW_ENERGY, HW_TEMPERATURE,
    HW_ERRORS, HW_STATUS,
)  # fmt: skip

INSTRUMENTS: Final = (*OF_NODE, *OF_PROCESS, *OF_GPU)
