"""Stand-ins for what this machine may not have: NVIDIA's driver library over a world that a test writes, and a torch that uses cards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]
MIB = 2**20

_READER = """
import json, sys
from lean_video.vram import gauges
gauges._RETRY_S, gauges._AGAIN_S, gauges._MOVED_S = float(sys.argv[1]), float(sys.argv[2]), float(sys.argv[2]) / 4
exec(sys.argv[3])
every = gauges.Gauges()
for line in sys.stdin:
    exec(line)
    print(json.dumps(every.read().as_json()), flush=True)
every.close()
"""


def build_nvml(compiler: str, folder: Path, processes: int = 3) -> Path:
    """The folder that has nvml.c as the driver's library; `processes` is the latest form of the questions about processes that it knows."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", f"-DPROCESSES={processes}", "-o", str(library), str(Path(__file__).with_name("nvml.c"))], check=True)
    return folder


@dataclass(frozen=True)
class Gpu:
    """A card of the world, in MiB, percent, degrees and watts. Processes are pid → MiB, None for a driver that does not tell."""

    number: int = 0
    total: int = 8192
    used: int = 1024
    compute: Mapping[int, int | None] = field(default_factory=dict)
    graphics: Mapping[int, int | None] = field(default_factory=dict)
    use: int = 37
    temperature: int = 61
    power: float = 123.456
    limit: float = 300.0
    failures: Mapping[str, int] = field(default_factory=dict)
    is_lost: bool = False
    moves: bool = False
    is_part: bool = False

    @property
    def uuid(self) -> str:
        return f"{'MIG' if self.is_part else 'GPU'}-{self.number:x}c6cafe0-1234-5678-9abc-def012345678"

    @property
    def name(self) -> str:
        return f"NVIDIA Card {self.number}"

    def lines(self) -> list[str]:
        def held(kind: str, processes: Mapping[int, int | None]) -> list[str]:
            return [f"{kind} {pid} {-1 if size is None else size * MIB}" for pid, size in processes.items()]

        return [
            f"{'mig' if self.is_part else 'gpu'} {self.uuid}",
            f"name {self.name}",
            f"memory {self.total * MIB} {self.used * MIB}",
            *held("compute", self.compute),
            *held("graphics", self.graphics),
            f"use {self.use}",
            f"temperature {self.temperature}",
            f"power {round(self.power * 1000)}",
            f"limit {round(self.limit * 1000)}",
            *(["lost"] if self.is_lost else []),
            *(["moves"] if self.moves else []),
            *(f"fail {function} {code}" for function, code in self.failures.items()),
        ]


class World:
    """What the library tells to the programs that were started in it."""

    def __init__(self, library: Path, folder: Path) -> None:
        self._library, self._file, self._calls = library, folder / "world.txt", folder / "calls.txt"
        self.has()

    def has(self, *gpus: Gpu, failures: Mapping[str, int] | None = None) -> None:
        """From now on."""
        lines = [f"fail {function} {code}" for function, code in (failures or {}).items()]
        new = self._file.with_suffix(".new")
        new.write_text("\n".join([*lines, *(line for gpu in gpus for line in gpu.lines())]) + "\n", encoding="utf-8")
        new.replace(self._file)

    def environment(self, **more: str) -> dict[str, str]:
        own = {"LD_LIBRARY_PATH": str(self._library), "FAKE_NVML_WORLD": str(self._file), "FAKE_NVML_CALLS": str(self._calls), "PYTHONPATH": str(ROOT)}
        return {**{key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}, **own, **more}

    def calls(self) -> list[str]:
        """The functions that were called since this was asked last."""
        if not self._calls.exists():
            return []
        calls = self._calls.read_text(encoding="utf-8").split()
        self._calls.unlink()
        return calls

    @contextmanager
    def reader(self, retry_s: float = 0.0, again_s: float = 0.0, first: str = "", **environment: str) -> Iterator[Reader]:
        """A program with Gauges. `first` is what it runs before it makes them."""
        arguments = [sys.executable, "-c", _READER, str(retry_s), str(again_s), first]
        process = subprocess.Popen(arguments, cwd=ROOT, env=self.environment(**environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            yield Reader(process)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
            process.wait()


class Reader:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process, self.pid = process, process.pid

    def read(self, first: str = "") -> dict[str, Any]:
        """A snapshot, after the program has run a line."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(first + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the program ended: reading raised"
        return json.loads(line)


@dataclass
class TorchCard:
    """A device of torch, in MiB. Without a context, what would make one raises."""

    uuid: str | None = None
    total: int = 8192
    used: int = 2048
    allocated: int = 512
    reserved: int = 768
    peak: int = 640
    has_context: bool = True


class TorchCuda:
    """torch.cuda, of which all but `is_initialized` raises until it is in use."""

    def __init__(self, cards: Sequence[TorchCard], is_in_use: bool = True) -> None:
        self.cards, self.is_in_use = cards, is_in_use
        self.asked: list[str] = []

    def is_initialized(self) -> bool:
        return self.is_in_use

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        assert self.is_in_use, f"torch.cuda.{name} would make a context"
        return getattr(self, f"_{name}")

    def _device_count(self) -> int:
        return len(self.cards)

    def _current_device(self) -> int:
        return next(index for index, card in enumerate(self.cards) if card.has_context)

    def _get_device_name(self, index: int) -> str:
        return f"Card {index} of torch"

    def _get_device_properties(self, index: int) -> SimpleNamespace:
        uuid = self.cards[index].uuid
        return SimpleNamespace(total_memory=self.cards[index].total * MIB, **({} if uuid is None else {"uuid": uuid.removeprefix("GPU-")}))

    def _mem_get_info(self, index: int) -> tuple[int, int]:
        card = self._used(index)
        return (card.total - card.used) * MIB, card.total * MIB

    def _memory_stats_as_nested_dict(self, index: int) -> dict[str, Any]:
        card = self._used(index)
        return {
            "allocated_bytes": {"all": {"current": card.allocated * MIB, "peak": card.peak * MIB}},
            "reserved_bytes": {"all": {"current": card.reserved * MIB, "peak": card.reserved * MIB}},
        }

    def _memory_allocated(self, index: int) -> int:
        return self._used(index).allocated * MIB

    def _max_memory_allocated(self, index: int) -> int:
        return self._used(index).peak * MIB

    def _reset_peak_memory_stats(self, index: int) -> None:
        self._used(index).peak = self.cards[index].allocated

    def _used(self, index: int) -> TorchCard:
        assert self.cards[index].has_context, "this would make a context"
        return self.cards[index]


def stand_in_torch(*cards: TorchCard, is_in_use: bool = True, mps: SimpleNamespace | None = None) -> SimpleNamespace:
    cuda = TorchCuda(cards, is_in_use)
    return SimpleNamespace(
        cuda=cuda,
        _C=SimpleNamespace(_cuda_hasPrimaryContext=lambda index: cards[index].has_context),
        mps=mps,
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps is not None)),
    )
