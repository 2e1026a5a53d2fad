"""What is read of NVIDIA's GPUs, by their driver's own library: no CUDA context, and none of their memory."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from periflow_otel import conventions, names
from periflow_otel.agent.machine.gpu_users import Gpu, find_users
from periflow_otel.agent.machine.reading import NOTHING_YET, Rank, Read, Reading
from periflow_otel.translate.telemetry import Observation

_DRIVER: Final = Path("/proc/driver/nvidia")
_Attributes = tuple[tuple[str, str | int], ...]


class _Device(NamedTuple):
    """A GPU, or a MIG device in one."""

    gpu: Gpu
    handle: Any
    attributes: _Attributes


def make_read_gpus() -> Read:
    """Return what reads the GPUs; of a machine that has none, nothing.

    Raises:
        ImportError: There is a driver, and the library's binding is missing or broken.
    """
    try:
        import pynvml  # noqa: PLC0415  # in an agent that reads the machine alone
    except ImportError:
        if _DRIVER.exists():
            raise
        return lambda _: NOTHING_YET
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return lambda _: NOTHING_YET
    gpus = Gpus(pynvml)
    return lambda ranks: Reading(tuple(gpus.read(ranks)))


class Gpus:
    """Reads all GPUs that this process can see."""

    def __init__(self, nvml: Any) -> None:
        """Begin to listen for errors.

        Args:
            nvml: The library's binding, ready for use.
        """
        self._nvml = nvml
        self._began_unix_ns = time.time_ns()
        self._xids: Counter[tuple[str, int]] = Counter()
        self._events: Any = None
        self._devices: list[_Device] = []

    def read(self, ranks: Sequence[Rank]) -> Iterator[Observation]:
        """Yield what there is to see now, of each GPU with the rank that uses it, where it is one."""
        self._devices = list(self._find())  # MIG devices come and go
        users = find_users([each.gpu for each in self._devices], ranks)
        self._listen()
        for device in self._devices:
            found = users.get(device.gpu.uuid, frozenset())
            who: _Attributes = tuple((names.RANK, rank) for rank in found) if len(found) == 1 else ()
            yield from self._read(device, (*device.attributes, *who))

    def _find(self) -> Iterator[_Device]:
        nvml = self._nvml
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = self._ask(nvml.nvmlDeviceGetHandleByIndex, index)
            if handle is not None:
                yield from self._with_parts(handle, index)

    def _with_parts(self, handle: Any, index: int) -> Iterator[_Device]:
        """Yield a GPU, and the MIG devices in it."""
        nvml = self._nvml
        uuid = self._ask(nvml.nvmlDeviceGetUUID, handle) or f"GPU {index}"
        model = ((conventions.HW_MODEL, name),) if (name := self._ask(nvml.nvmlDeviceGetName, handle)) else ()
        parts = list(self._parts(handle))
        gpu = Gpu(uuid, index, "", self._pids(handle), has_parts=bool(parts))
        yield _Device(gpu, handle, ((conventions.HW_ID, uuid), (conventions.HW_NAME, f"GPU {index}"), *model))
        for number, part in enumerate(parts):
            part_uuid = self._ask(nvml.nvmlDeviceGetUUID, part) or f"{uuid}/{number}"
            attributes = (
                (conventions.HW_ID, part_uuid),
                (conventions.HW_NAME, f"GPU {index} MIG {number}"),
                *model,
                (conventions.HW_PARENT, uuid),
            )
            yield _Device(Gpu(part_uuid, index, uuid, self._pids(part)), part, attributes)

    def _parts(self, handle: Any) -> Iterator[Any]:
        nvml = self._nvml
        mode = self._ask(nvml.nvmlDeviceGetMigMode, handle)
        for number in range((self._ask(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0) if mode and mode[0] else 0):
            part = self._ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
            if part is not None:
                yield part

    def _pids(self, handle: Any) -> frozenset[int]:
        processes = self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()
        return frozenset(each.pid for each in processes)

    def _read(self, device: _Device, who: _Attributes) -> Iterator[Observation]:
        handle, nvml = device.handle, self._nvml
        memory = self._memory(handle)
        if memory is not None:
            yield Observation(conventions.GPU_MEMORY_LIMIT, memory.total, who, self._began_unix_ns)
            yield Observation(conventions.GPU_MEMORY_USAGE, memory.used, who, self._began_unix_ns)
            if memory.total:
                yield Observation(conventions.GPU_MEMORY_UTILIZATION, memory.used / memory.total, who)
        if device.gpu.parent:
            return  # all else is of the whole GPU
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        if rates is not None:
            yield Observation(conventions.GPU_UTILIZATION, rates.gpu / 100, (*who, (conventions.GPU_TASK, "general")))
        whole = (*who, (conventions.HW_TYPE, "gpu"))
        for instrument, ask, scale in self._plain():
            value = self._ask(ask, handle)
            if value is not None:
                yield Observation(instrument, value / scale if scale > 1 else value, whole, self._began_unix_ns)
        yield from self._errors(device, whole)
        yield from self._status(device, who)

    def _memory(self, handle: Any) -> Any:
        """Return what memory there is and what programs use; without what the driver keeps for itself, as nvidia-smi.

        Drivers before 510 count that as used.
        """
        ask, version = self._nvml.nvmlDeviceGetMemoryInfo, self._nvml.nvmlMemory_v2
        return self._ask(ask, handle, version) or self._ask(ask, handle)

    def _plain(self) -> Iterator[tuple[names.Instrument, Callable[[Any], Any], int]]:
        """Yield what one number tells, with what asks for it, and how many of its units make one of ours."""
        nvml = self._nvml
        yield conventions.HW_POWER, nvml.nvmlDeviceGetPowerUsage, 1000
        yield conventions.HW_ENERGY, nvml.nvmlDeviceGetTotalEnergyConsumption, 1000
        yield conventions.HW_TEMPERATURE, lambda each: nvml.nvmlDeviceGetTemperature(each, nvml.NVML_TEMPERATURE_GPU), 1

    def _errors(self, device: _Device, whole: _Attributes) -> Iterator[Observation]:
        nvml = self._nvml
        kinds = {
            "corrected": nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED,
            "uncorrected": nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
        }
        for name, kind in kinds.items():
            count = self._ask(nvml.nvmlDeviceGetTotalEccErrors, device.handle, kind, nvml.NVML_VOLATILE_ECC)
            if count is not None:
                attributes = (*whole, (conventions.ERROR_TYPE, name))
                yield Observation(conventions.HW_ERRORS, count, attributes, self._began_unix_ns)
        for (uuid, xid), count in self._xids.items():
            if uuid == device.gpu.uuid:
                attributes = (*whole, (conventions.ERROR_TYPE, f"xid_{xid}"))
                yield Observation(conventions.HW_ERRORS, count, attributes, self._began_unix_ns)

    def _status(self, device: _Device, who: _Attributes) -> Iterator[Observation]:
        """Tell whether the hardware holds a GPU back, and why. The usual limit of its power is no fault."""
        nvml = self._nvml
        try:
            reasons, is_lost = self._reasons(device.handle), False
        except nvml.NVMLError_GpuIsLost:
            reasons, is_lost = 0, True
        except nvml.NVMLError:  # not of this GPU
            return
        hot = nvml.nvmlClocksThrottleReasonSwThermalSlowdown | nvml.nvmlClocksThrottleReasonHwThermalSlowdown
        brake = nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
        held = {"temperature": hot, "power_supply": brake, "gpu": hot | brake | nvml.nvmlClocksThrottleReasonHwSlowdown}
        for kind, mask in held.items():
            states = {"ok": not reasons & mask, "degraded": bool(reasons & mask)}
            if kind == "gpu":
                states = {"ok": states["ok"] and not is_lost, "degraded": states["degraded"], "failed": is_lost}
            yield from self._states(kind, states, who)

    def _reasons(self, handle: Any) -> int:
        """Return why the clock is not higher; older and newer drivers know it by different names."""
        nvml = self._nvml
        try:
            return int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        except (AttributeError, nvml.NVMLError_FunctionNotFound):
            return int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))

    def _states(self, kind: str, states: Mapping[str, bool], who: _Attributes) -> Iterator[Observation]:
        for state, is_so in states.items():
            attributes = (*who, (conventions.HW_TYPE, kind), (conventions.HW_STATE, state))
            yield Observation(conventions.HW_STATUS, int(is_so), attributes, self._began_unix_ns)

    def _listen(self) -> None:
        """Count what the driver has told of since the last reading."""
        nvml = self._nvml
        if self._events is None:
            self._events = self._ask(nvml.nvmlEventSetCreate) or ()
            for device in self._devices if self._events else ():
                if not device.gpu.parent:
                    self._ask(nvml.nvmlDeviceRegisterEvents, device.handle, _XID, self._events)
        for _ in range(_MAX_EVENTS if self._events else 0):
            event = self._ask(nvml.nvmlEventSetWait_v2, self._events, 0)
            if event is None:  # there is none
                return
            if event.eventType == _XID and (uuid := self._ask(nvml.nvmlDeviceGetUUID, event.device)):
                self._xids[uuid, event.eventData] += 1

    def _ask(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        """Return an answer; None where the GPU, the driver or the container has none."""
        try:
            return ask(*arguments)
        except self._nvml.NVMLError:
            return None


_XID: Final = 8
"""``nvmlEventTypeXidCriticalError``."""
_MAX_EVENTS: Final = 100
"""Of one reading."""
