"""What memory there is now, of every device and of the host.

NVIDIA's cards are read through NVML, which needs no CUDA context; others through torch, and only where it is in use already. Reading never raises: what
cannot be read is told in a sentence, and tried again later.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

MIB = 2**20
_RETRY_S = 10.0
_AGAIN_S = 1.0  # what moves slowly, or costs much to ask for, is as old as this at most; drivers average utilisation and power over about as long
_MOVED_S = 0.25  # who holds a card's memory is as old as this at most while it moves


@dataclass(frozen=True)
class Process:
    """A process that holds memory of a device, in bytes; None where the driver does not tell."""

    pid: int
    name: str | None
    used: int | None


class Device(NamedTuple):  # which are made ten times as fast as frozen dataclasses, and ten times a second for each device
    """A device, in bytes, percent, degrees Celsius and watts; None where it does not tell.

    index      as the programs here see it
    process    what this process holds; as all but memory in use and torch's figures, of up to a second ago
    allocated  what torch has given out of what it has `reserved`; `peak` the most since that was last reset
    problem    why what is shown may be old or missing
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  # tuples have a method of that name, which nobody asks a device for
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
    """RAM in bytes, of up to a second ago; `process` is this process's resident set, now."""

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
        devices = [{**device._asdict(), "others": [asdict(process) for process in device.others], "free": device.free} for device in self.devices]
        return {"time": self.time, "host": asdict(self.host), "devices": devices, "problem": self.problem}


class Gauges:
    """Reads them all. One object may be read from several threads, one at a time."""

    def __init__(self) -> None:
        import psutil

        self._psutil: Any = psutil
        self._resident = _Resident()
        self._nvml = _Nvml()
        self._memory: Any = None
        self._asked_at = 0.0

    def read(self) -> Snapshot:
        now = time.monotonic()
        if self._memory is None or now - self._asked_at >= _AGAIN_S:
            self._memory, self._asked_at = self._psutil.virtual_memory(), now
        memory = self._memory
        host = Host(memory.total, memory.total - memory.available, memory.available, self._resident.read())
        devices, problem = self._nvml.read()
        if not devices:
            devices = _through_torch()
            problem = None if devices else problem
        return Snapshot(time.time(), host, tuple(devices), problem)

    def close(self) -> None:
        """Until it is read again."""
        self._nvml.close()
        self._resident.close()


@dataclass
class _Card:
    """A card as NVML has it, and what was told last; without a handle it cannot be read until NVML is opened again."""

    handle: Any
    now: Device
    is_torchs: bool  # torch's device of this index is this very card
    asked_at: float = float("-inf")  # for all but its memory
    held_at: float = float("-inf")  # for its processes
    drawing: Sequence[Any] | None = None  # the processes that use it for graphics


class _Resident:
    """This process's resident set in bytes. On Linux a file is kept open for it: to open it anew would cost more than all else that a sample does."""

    def __init__(self) -> None:
        import psutil

        self._own: Any = psutil.Process()
        self._statm: Any = None

    def read(self) -> int:
        if self._statm is None:
            with contextlib.suppress(OSError):  # another system
                self._statm = Path("/proc/self/statm").open("rb", buffering=0)  # noqa: SIM115
        if self._statm is None:
            return int(self._own.memory_info().rss)
        return int(os.pread(self._statm.fileno(), 128, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        if self._statm is not None:
            self._statm.close()
            self._statm = None


class _Nvml:
    """NVML, opened when it is first read, and again after it or one of its cards was lost."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._cards: list[_Card] = []
        self._problem: str | None = None
        self._open_at = 0.0
        self._had_torch = False

    def read(self) -> tuple[list[Device], str | None]:
        torch, now = torch_in_use(), time.monotonic()
        if now >= self._open_at or (self._nvml is not None and self._had_torch != (torch is not None)):
            self._open(torch)
        return [self._read(card, torch, now) for card in self._cards], self._problem

    def close(self) -> None:
        nvml, self._nvml, self._open_at = self._nvml, None, 0.0
        if nvml is not None:
            with contextlib.suppress(Exception):  # it is gone either way
                nvml.nvmlShutdown()

    def _open(self, torch: Any) -> None:
        self.close()
        before, self._cards, self._had_torch = self._cards, [], torch is not None
        try:
            import pynvml
        except Exception:  # missing, or a file of it is broken
            self._problem = "The package nvidia-ml-py cannot be imported, so NVIDIA cards are not seen."
            self._open_at = time.monotonic() + _RETRY_S
            return
        try:
            pynvml.nvmlInit()
            self._nvml = pynvml
            self._cards, self._problem = self._find(torch, before)
        except Exception as error:
            self.close()
            self._problem = "There is no NVIDIA driver here, so no NVIDIA card is seen." if _code(error) == 12 else f"NVIDIA's cards cannot be read: {_reason(error)}."
        is_whole = self._nvml is not None and all(card.handle is not None for card in self._cards)
        self._open_at = float("inf") if is_whole else time.monotonic() + _RETRY_S

    def _find(self, torch: Any, before: Sequence[_Card]) -> tuple[list[_Card], str | None]:
        """The cards that the programs here see, and why there may be none."""
        setting, torch_uuids = os.environ.get("CUDA_VISIBLE_DEVICES"), _torch_uuids(torch)
        is_part = setting is not None and setting.startswith("MIG-")
        handles = self._parts(str(setting)) if is_part else self._handles()
        uuids = [self._text("nvmlDeviceGetUUID", handle) for handle, _ in handles]
        lost = iter([card.now for card in before if card.now.uuid and card.now.uuid not in uuids])
        known = [next(lost, None) if handle is None else None for handle, _ in handles]
        uuids = [device.uuid if device else uuid for device, uuid in zip(known, uuids, strict=True)]
        visible = dict(enumerate(range(len(handles)))) if is_part else visible_devices([uuid or "" for uuid in uuids], setting, torch_uuids)
        cards: list[_Card] = []
        for index, i in visible.items():
            handle, why = handles[i]
            device = known[i] or Device(index, self._text("nvmlDeviceGetName", handle) or "an NVIDIA GPU", "nvml", 0, 0, uuids[i])
            device = device._replace(index=index, problem=why and f"This GPU cannot be read: {why}.")
            cards.append(_Card(handle, device, is_torchs=torch_uuids is not None or len(visible) == 1))
        are_hidden = not cards and torch_uuids is None and (is_part or len(handles) > 0)
        return cards, f"CUDA_VISIBLE_DEVICES is {setting!r}, which names no NVIDIA card that is here." if are_hidden else None

    def _handles(self) -> list[tuple[Any, str | None]]:
        """Of each card that CUDA counts a handle, or why there is none."""
        nvml = self._nvml
        handles: list[tuple[Any, str | None]] = []
        refused: Exception | None = None
        for i in range(nvml.nvmlDeviceGetCount()):
            try:
                handles.append((nvml.nvmlDeviceGetHandleByIndex(i), None))
            except nvml.NVMLError_NoPermission as error:  # kept from this container
                refused = error
            except Exception as error:
                handles.append((None, _reason(error)))
        if refused is not None and not handles:
            raise refused
        return handles

    def _parts(self, setting: str) -> list[tuple[Any, str | None]]:
        """The part of a card that a program sees, which is the first that is named."""
        handle = self._ask("nvmlDeviceGetHandleByUUID", setting.split(",")[0].encode())
        return [] if handle is None else [(handle, None)]

    def _read(self, card: _Card, torch: Any, now: float) -> Device:
        if card.handle is None:
            return card.now
        in_torch = torch if card.is_torchs else None
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(card.handle)
            total, used = int(memory.total), int(memory.total - memory.free)
        except self._nvml.NVMLError_NotSupported:  # as of a card that shares the RAM
            total, used = _memory(in_torch, card.now.index)
        except Exception as error:
            before, card.handle = card.now, None
            card.now = Device(before.index, before.name, "nvml", before.total, before.used, before.uuid, problem=f"This GPU cannot be read: {_reason(error)}.")
            self._open_at = min(self._open_at, now + _RETRY_S)  # a driver that has lost a card is asked anew for what it has
            return card.now
        if now - card.asked_at >= _AGAIN_S:
            card.asked_at = now
            card.now = self._ask_all(card, total, used)
        elif used != card.now.used:  # and if not, nobody holds more or less than before
            card.now = card.now._replace(used=used, **(self._held(card) if now - card.held_at >= _MOVED_S else {}))
        if in_torch is None:
            return card.now
        allocated, reserved, peak = _allocator(in_torch, card.now.index)
        own = card.now.process
        if own == 0 and reserved:
            own = None  # it holds some: the driver knows it under another number, as of a container
        return card.now._replace(process=own, allocated=allocated, reserved=reserved, peak=peak)

    def _ask_all(self, card: _Card, total: int, used: int) -> Device:
        handle = card.handle
        card.drawing = self._newest("nvmlDeviceGetGraphicsRunningProcesses", handle)
        use, temperature = self._ask("nvmlDeviceGetUtilizationRates", handle), self._ask("nvmlDeviceGetTemperature", handle, self._nvml.NVML_TEMPERATURE_GPU)
        power, limit = self._ask("nvmlDeviceGetPowerUsage", handle), self._ask("nvmlDeviceGetEnforcedPowerLimit", handle)
        return card.now._replace(
            total=total,
            used=used,
            **self._held(card),
            utilisation=None if use is None else int(use.gpu),
            temperature=None if temperature is None else float(temperature),
            power=None if power is None else power / 1000,
            power_limit=None if limit is None else limit / 1000,
            problem=None if total else "The driver does not tell how much memory this GPU has.",
        )

    def _held(self, card: _Card) -> dict[str, Any]:
        """What processes hold of it, this one and others; None of this one where the driver names none to us."""
        card.held_at = time.monotonic()
        computing = self._newest("nvmlDeviceGetComputeRunningProcesses", card.handle)
        if computing is None and card.drawing is None:
            return {"process": None, "others": ()}
        used: dict[int, int | None] = {}
        for entry in [*(computing or ()), *(card.drawing or ())]:
            pid, size, known = entry.pid, entry.usedGpuMemory, used.get(entry.pid)
            # One that computes and draws is in both lists, with all that it holds.
            used[pid] = size if known is None else known if size is None else max(known, size)
        own = used.pop(os.getpid(), 0)
        names = {process.pid: process.name for process in card.now.others}
        return {"process": own, "others": tuple(Process(pid, names[pid] if pid in names else _process_name(pid), size) for pid, size in sorted(used.items()))}

    def _newest(self, question: str, handle: Any) -> Sequence[Any] | None:
        """The answer to the newest form of a question that this driver knows."""
        answer = self._ask(f"{question}_v3", handle)
        return self._ask(f"{question}_v2", handle) if answer is None else answer

    def _ask(self, question: str, *about: Any) -> Any:
        """None where this card or driver does not tell."""
        try:
            return getattr(self._nvml, question)(*about)
        except Exception:
            return None

    def _text(self, question: str, handle: Any) -> str | None:
        value = self._ask(question, handle)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def visible_devices(uuids: Sequence[str], setting: str | None, torch_uuids: Sequence[str] | None = None) -> dict[int, int]:
    """Which of NVML's devices the programs here see: their index of each, and NVML's.

    setting      CUDA_VISIBLE_DEVICES, numbers or UUIDs, also shortened; read as torch reads it: what follows an entry that names no device does not count,
                 and a device that is named twice hides all
    torch_uuids  of torch's devices, where it is in use and tells: CUDA numbers the fastest card first, which only it knows
    """
    if torch_uuids is not None:
        return {index: uuids.index(uuid) for index, uuid in enumerate(torch_uuids) if uuid in uuids}
    if setting is None:
        return dict(enumerate(range(len(uuids))))
    is_by_uuid = setting.startswith("GPU-")
    entries: list[str] = []
    for part in setting.split(","):
        number = re.match(r"[+-]?\d+", part.strip(), re.ASCII)
        entry = part if is_by_uuid else str(int(number[0])) if number else "-"
        if entry in entries:
            return {}
        if not entry.startswith("GPU-") if is_by_uuid else entry.startswith("-"):
            break
        entries.append(entry)
    found: list[int] = []
    for entry in entries:
        named = [i for i, uuid in enumerate(uuids) if (uuid.startswith(entry) if is_by_uuid else str(i) == entry)]
        if len(named) != 1:
            break
        found += named
    return dict(enumerate(found)) if len(set(found)) == len(found) else {}


def torch_in_use() -> Any:
    """torch, if it has a CUDA context already: asking it for figures would make one otherwise."""
    torch = sys.modules.get("torch")
    try:
        return torch if torch is not None and torch.cuda.is_initialized() else None
    except Exception:  # a torch that is just being imported, or broken
        return None


def torch_devices(torch: Any) -> list[int]:
    """Those of torch's devices that it has a context on."""
    return [index for index in range(torch.cuda.device_count()) if _has_context(torch, index)]


def _has_context(torch: Any, index: int) -> bool:
    try:
        return bool(torch._C._cuda_hasPrimaryContext(index))
    except Exception:  # not part of what torch promises to keep
        return index == torch.cuda.current_device()


def _memory(torch: Any, index: int) -> tuple[int, int]:
    """Total and used, as torch tells; both 0 where it cannot without a context."""
    if torch is None or not _has_context(torch, index):
        return 0, 0
    free, total = torch.cuda.mem_get_info(index)
    return int(total), int(total - free)


def _torch_uuids(torch: Any) -> list[str] | None:
    try:
        return None if torch is None else [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(torch.cuda.device_count())]
    except Exception:  # not every build tells
        return None


def _allocator(torch: Any, index: int) -> tuple[int, int, int] | tuple[None, None, None]:
    """What is allocated, reserved, and was allocated at most; in one question, as each takes torch as long as all."""
    try:
        if not _has_context(torch, index):
            return 0, 0, 0
        stats = torch.cuda.memory_stats_as_nested_dict(index)
        allocated = stats["allocated_bytes"]["all"]
        return int(allocated["current"]), int(stats["reserved_bytes"]["all"]["current"]), int(allocated["peak"])
    except Exception:
        return None, None, None


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
    name = str(torch.cuda.get_device_name(index))
    if not _has_context(torch, index):
        return Device(index, name, "cuda", int(torch.cuda.get_device_properties(index).total_memory), 0, problem="What is in use of this GPU is told once a program here uses it.")
    return Device(index, name, "cuda", *_memory(torch, index), None, None, (), *_allocator(torch, index))


def _code(error: Exception) -> object:
    return getattr(error, "value", None)


def _reason(error: Exception) -> str:
    code = _code(error)
    reason = {
        3: "the driver does not support it",
        4: "this user has no permission",
        9: "the driver is not loaded",
        15: "it has fallen off the bus; restart the machine, and check its power if that happens again",
        16: "the driver needs it to be reset",
        18: "the driver and its library are of different versions; restart the machine",
    }.get(code if isinstance(code, int) else -1)
    return reason or str(error).strip() or type(error).__name__


def _process_name(pid: int) -> str | None:
    import psutil

    try:
        return str(psutil.Process(pid).name())
    except Exception:  # of another user, or gone
        return None
