"""What memory there is now, of every device and of the host.

NVIDIA's cards are read through NVML, which needs no CUDA context; others through torch, and only where it is in use already. Reading never raises: what
cannot be read is told in a sentence, and tried again later.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

MIB = 2**20
_RETRY_S = 10.0


@dataclass(frozen=True)
class Process:
    """A process that holds memory of a device, in bytes; None where the driver does not tell."""

    pid: int
    name: str | None
    used: int | None


@dataclass(frozen=True)
class Device:
    """A device, in bytes, percent, degrees Celsius and watts; None where it does not tell.

    index      as the programs here see it
    process    what this process holds
    allocated  what torch has given out of what it has `reserved`; `peak` the most since that was last reset
    problem    why what is shown may be old or missing
    """

    index: int
    name: str
    backend: str
    total: int
    used: int
    uuid: str | None = None
    process: int | None = None
    others: tuple[Process, ...] = ()
    allocated: int | None = None
    reserved: int | None = None
    peak: int | None = None
    utilisation: int | None = None
    temperature: float | None = None
    power: float | None = None
    power_limit: float | None = None
    problem: str | None = None

    @property
    def free(self) -> int:
        return max(0, self.total - self.used)


@dataclass(frozen=True)
class Host:
    """RAM in bytes; `process` is this process's resident set."""

    total: int
    used: int
    available: int
    process: int


@dataclass(frozen=True)
class Snapshot:
    """Everything at one time, in seconds since 1970. `problem` is why devices may be missing."""

    time: float
    host: Host
    devices: tuple[Device, ...] = ()
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        devices = [{**asdict(device), "free": device.free} for device in self.devices]
        return {"time": self.time, "host": asdict(self.host), "devices": devices, "problem": self.problem}


class Gauges:
    """Reads them all. One object may be read from several threads, one at a time."""

    def __init__(self) -> None:
        import psutil

        self._psutil: Any = psutil
        self._own: Any = psutil.Process()
        self._nvml = _Nvml()

    def read(self) -> Snapshot:
        memory = self._psutil.virtual_memory()
        host = Host(memory.total, memory.total - memory.available, memory.available, self._own.memory_info().rss)
        devices, problem = self._nvml.read()
        if not devices:
            devices = _through_torch()
            problem = None if devices else problem
        return Snapshot(time.time(), host, tuple(devices), problem)

    def close(self) -> None:
        self._nvml.close()


class _Nvml:
    """NVML, opened when it is first read and again after it was lost."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[tuple[int, Any]] = []
        self._last: dict[int, Device] = {}
        self._try_again = 0.0
        self._problem: str | None = None
        self._names: dict[int, str | None] = {}

    def read(self) -> tuple[list[Device], str | None]:
        if self._nvml is None:
            if time.monotonic() < self._try_again:
                return list(self._last.values()), self._problem
            self._open()
        if self._nvml is None:
            return list(self._last.values()), self._problem
        devices = [self._device(index, handle) for index, handle in self._handles]
        if any(device.problem for device in devices):
            self.close()  # a driver that has lost a card is asked anew for what it has
            self._later(self._problem)
        self._last = {device.index: device for device in devices}
        return devices, self._problem

    def close(self) -> None:
        nvml, self._nvml = self._nvml, None
        if nvml is not None:
            with contextlib.suppress(Exception):  # it is gone either way
                nvml.nvmlShutdown()

    def _later(self, problem: str | None) -> None:
        self._problem, self._try_again = problem, time.monotonic() + _RETRY_S

    def _open(self) -> None:
        try:
            import pynvml
        except ImportError:
            self._later("The package nvidia-ml-py is not installed, so NVIDIA cards are not seen.")
            return
        try:
            pynvml.nvmlInit()
        except Exception as error:
            self._last = {}
            self._later(_why_not(error))
            return
        self._nvml = pynvml
        try:
            setting = os.environ.get("CUDA_VISIBLE_DEVICES")
            if setting is not None and setting.strip().startswith("MIG-"):  # a part of a card, of which a program sees the first
                self._handles = [(0, pynvml.nvmlDeviceGetHandleByUUID(setting.split(",")[0].strip().encode()))]
            else:
                handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
                visible = visible_devices([_text(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles], setting, _torch_uuids())
                self._handles = [(index, handles[i]) for index, i in enumerate(visible)]
            self._problem = None
        except Exception as error:
            self._handles = []
            self.close()
            self._later(_why_not(error))
        self._last = {index: device for index, device in self._last.items() if any(index == known for known, _ in self._handles)}

    def _device(self, index: int, handle: Any) -> Device:
        nvml = self._nvml

        def ask(question: Callable[[], Any]) -> Any:
            try:
                return question()
            except nvml.NVMLError as error:
                if _is_gone(error):
                    raise
                return None  # this card or driver does not tell that

        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            name = ask(lambda: _text(nvml.nvmlDeviceGetName(handle))) or "an NVIDIA GPU"
            uuid = ask(lambda: _text(nvml.nvmlDeviceGetUUID(handle)))
            processes = self._processes(handle, ask)
            use = ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
            temperature = ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
            power = ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
            limit = ask(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))
        except Exception as error:
            before = self._last.get(index)
            if before is None:
                return Device(index, "an NVIDIA GPU", "nvml", 0, 0, problem=_why_not(error))
            return Device(index, before.name, "nvml", before.total, before.used, before.uuid, problem=_why_not(error))
        own = next((process.used for process in processes if process.pid == os.getpid()), 0) if processes is not None else None
        return Device(
            index,
            name,
            "nvml",
            int(memory.total),
            int(memory.total - memory.free),
            uuid,
            own,
            tuple(process for process in processes or () if process.pid != os.getpid()),
            *_torch_figures(uuid),
            utilisation=None if use is None else int(use.gpu),
            temperature=None if temperature is None else float(temperature),
            power=None if power is None else power / 1000,
            power_limit=None if limit is None else limit / 1000,
        )

    def _processes(self, handle: Any, ask: Callable[[Callable[[], Any]], Any]) -> list[Process] | None:
        """Each process once; None where the driver names none to us."""
        asked = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")
        answers = [self._one_list(handle, ask, name) for name in asked]
        if all(answer is None for answer in answers):
            return None
        used = {entry.pid: entry.usedGpuMemory for answer in answers for entry in answer or ()}
        for pid in used:
            if pid not in self._names:
                self._names[pid] = _process_name(pid)
        self._names = {pid: name for pid, name in self._names.items() if pid in used or len(self._names) < 4096}
        return [Process(pid, self._names[pid], None if size is None else int(size)) for pid, size in sorted(used.items())]

    def _one_list(self, handle: Any, ask: Callable[[Callable[[], Any]], Any], name: str) -> Sequence[Any] | None:
        """The newest form of the question that this driver answers."""
        for version in ("_v3", "_v2", ""):
            question = getattr(self._nvml, name + version, None)
            answer = None if question is None else ask(lambda question=question: question(handle))
            if answer is not None:
                return answer
        return None


def visible_devices(uuids: Sequence[str], setting: str | None, torch_uuids: Sequence[str] | None = None) -> list[int]:
    """Which of NVML's devices the programs here see, in their order.

    setting      CUDA_VISIBLE_DEVICES: numbers, or UUIDs, also shortened; as for CUDA, what follows an entry that names no device does not count
    torch_uuids  of torch's devices, where it uses some: CUDA numbers the fastest card first, which only it knows
    """
    if torch_uuids:
        return [uuids.index(uuid) for uuid in torch_uuids if uuid in uuids]
    if setting is None:
        return list(range(len(uuids)))
    found: list[int] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isdecimal() and int(entry) < len(uuids):
            chosen = int(entry)
        else:
            named = [i for i, uuid in enumerate(uuids) if len(entry) > 4 and uuid.lower().startswith(entry.lower())]
            if len(named) != 1:
                break
            chosen = named[0]
        if chosen in found:
            break
        found.append(chosen)
    return found


def torch_in_use() -> Any:
    """torch, if it has a CUDA context already: asking it for figures would make one otherwise."""
    torch = sys.modules.get("torch")
    try:
        return torch if torch is not None and torch.cuda.is_initialized() else None
    except Exception:  # a torch that is just being imported, or broken
        return None


def _torch_uuids() -> list[str] | None:
    torch = torch_in_use()
    try:
        return None if torch is None else [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(torch.cuda.device_count())]
    except Exception:  # not every build tells
        return None


def _torch_figures(uuid: str | None) -> tuple[int | None, int | None, int | None]:
    torch = torch_in_use()
    if torch is None:
        return None, None, None
    try:
        uuids = _torch_uuids() or []
        index = uuids.index(uuid) if uuid in uuids else None
        return (None, None, None) if index is None else _allocator(torch, index)
    except Exception:
        return None, None, None


def _allocator(torch: Any, index: int) -> tuple[int, int, int]:
    return int(torch.cuda.memory_allocated(index)), int(torch.cuda.memory_reserved(index)), int(torch.cuda.max_memory_allocated(index))


def _through_torch() -> list[Device]:
    """AMD's cards, Apple's, and NVIDIA's where there is no NVML."""
    torch = torch_in_use()
    try:
        if torch is not None:
            return [_torch_device(torch, index) for index in range(torch.cuda.device_count())]
        torch = sys.modules.get("torch")
        if torch is not None and torch.backends.mps.is_available():
            most, held = int(torch.mps.recommended_max_memory()), int(torch.mps.driver_allocated_memory())
            return [Device(0, "Apple GPU", "mps", most, held, process=held, allocated=int(torch.mps.current_allocated_memory()))]
    except Exception:
        return []
    return []


def _torch_device(torch: Any, index: int) -> Device:
    free, total = torch.cuda.mem_get_info(index)
    return Device(index, str(torch.cuda.get_device_name(index)), "cuda", int(total), int(total - free), None, None, (), *_allocator(torch, index))


def _why_not(error: Exception) -> str:
    code = getattr(error, "value", None)
    reason = {
        3: "the driver does not support it",
        4: "this user has no permission",
        9: "the driver is not loaded",
        12: "the driver has no NVML library",
        15: "a GPU has fallen off the bus: restart the machine, and check its power if that happens again",
        16: "the driver needs a GPU to be reset",
        18: "the driver and its library are of different versions: restart the machine",
    }.get(code if isinstance(code, int) else -1)
    if code in (9, 12):
        return "There is no NVIDIA driver here, so no NVIDIA card is seen."
    return f"NVIDIA's cards cannot be read: {reason or str(error).strip() or type(error).__name__}."


def _is_gone(error: Exception) -> bool:
    """Whether the card or the driver itself is no longer there, and not only one figure."""
    return getattr(error, "value", None) in (1, 6, 9, 15, 16, 18, 28, 999)


def _process_name(pid: int) -> str | None:
    import psutil

    try:
        return str(psutil.Process(pid).name())
    except Exception:  # of another user, or gone
        return None


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
