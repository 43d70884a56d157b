#!/usr/bin/env python3
"""What the monitor costs, and whether what it tells is so.

Prints a table, and with --write puts it into `monitor.md` beside this file. Linux only.

Cost: the CPU time of a process that does nothing but sample, at both rates, without a driver and on eight cards, which tests/engine/nvml.c pretends.
Truth: memory that the monitor tells of a device and of this process against an allocation of known size, where there is a card; and nodes that allocate
known amounts against what the timeline says of them. Room: what the server holds after many runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from os import getloadavg
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_suffix(".md")
sys.path.insert(0, str(ROOT))

from turns import MIB, call, cores, memory, other_load, say, versions  # noqa: E402

from lean_video.vram.gauges import Device, Gauges, Host, Snapshot  # noqa: E402
from lean_video.vram.samples import MOST_SAMPLES  # noqa: E402
from lean_video.vram.timeline import Label, Recorder  # noqa: E402
from lean_video.vram.watch import Watch  # noqa: E402
from tests.engine.stand_ins import Gpu, World, build_nvml  # noqa: E402

COST_GOAL, ERROR_GOAL = 0.5, 2.0  # percent of a core, percent of what was allocated
RATES = {"10 Hz, while a prompt runs": True, "1 Hz, idle": False}
UNMEASURED = "not measured"


@dataclass(frozen=True)
class Job:
    seconds: float  # of each measurement of cost
    sizes: tuple[int, ...]  # MiB that nodes allocate
    on_card: tuple[int, ...]
    runs: tuple[int, int]


FULL = Job(20, (32, 64, 128, 256, 512), (256, 1024, 4096), (1_000, 10_000))
QUICK = Job(3, (32, 128), (256,), (100, 1_000))


# Cost


def sample(seconds: float, is_busy: bool) -> dict[str, float]:
    """CPU time of this process while it samples, as the pack does."""
    recorder = Recorder()
    if is_busy:
        recorder.start_run("run", {})
        recorder.start_node("run", "1")
    taken = 0

    def add(snapshot: Snapshot) -> None:
        nonlocal taken
        taken += 1
        recorder.add(snapshot)

    gauges = Gauges()
    watch = Watch(gauges, add)
    devices = len(gauges.read().devices)  # what is done once is done
    watch.busy(is_busy)
    time.sleep(1)
    taken, began, cpu = 0, time.perf_counter(), time.process_time()
    time.sleep(seconds)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - began
    watch.stop()
    began = time.process_time()
    for _ in range(1000):
        recorder.add(gauges.read())
    at_once = time.process_time() - began
    return {"percent": 100 * cpu / wall, "rate": taken / wall, "each": 1e6 * cpu / taken, "at_once": 1e3 * at_once, "devices": devices}


def cost_table(seconds: float, scratch: Path) -> list[str]:
    lines = ["| machine | rate | samples/s | µs a sample | µs without waits | **% of one core** | goal |", "|---|---|---|---|---|---|---|"]
    no_driver = scratch / "none"
    no_driver.mkdir()
    (no_driver / "libnvidia-ml.so.1").write_text("not a library", encoding="utf-8")
    compiler = shutil.which("cc") or shutil.which("gcc")
    machines: dict[str, dict[str, str] | None] = {"no driver": {"LD_LIBRARY_PATH": str(no_driver)}}
    for name, moving in (("8 cards, nothing moves", 0), ("8 cards, memory of one moves", 1), ("8 cards, memory of all moves", 8)):
        world = None
        if compiler is not None:
            folder = scratch / f"moving-{moving}"
            world = World(build_nvml(compiler, folder), folder)
            world.has(*(Gpu(i, compute={1: 500, 2: 700}, moves=i < moving) for i in range(8)))
        machines[name] = world and {key: world.environment()[key] for key in ("LD_LIBRARY_PATH", "FAKE_NVML_WORLD")} | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
    machines["this machine's own cards"] = {} if Gauges().read().devices else None
    for machine, env in machines.items():
        for rate, is_busy in RATES.items():
            if env is None:
                lines.append(f"| {machine} | {rate} | {UNMEASURED} | {UNMEASURED} | {UNMEASURED} | {UNMEASURED} | < {COST_GOAL} |")
                continue
            found = json.loads(call(__file__, "--sample", str(seconds), str(int(is_busy)), env=env))
            assert machine[0] != "8" or found["devices"] == 8
            say(f"{machine}, {rate}: {found['percent']:.3f} % of a core")
            lines.append(f"| {machine} | {rate} | {found['rate']:.1f} | {found['each']:.0f} | {found['at_once']:.0f} | {found['percent']:.2f} | < {COST_GOAL} |")
    return lines


# Truth


def on_card(sizes: list[int]) -> list[dict[str, float | None]] | None:
    """What more the monitor tells of the device and of this process once so many MiB are allocated; None without a card."""
    import torch

    if not torch.cuda.is_available():
        return None
    gauges = Gauges()
    warm = torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    found: list[dict[str, float | None]] = []
    for size in sizes:
        torch.cuda.empty_cache()
        before = gauges.read().devices[0]
        held = torch.ones(size * MIB, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        time.sleep(1.1)  # all that is told is of up to a second ago
        after = gauges.read().devices[0]
        found.append({what: _grown(before, after, what) for what in ("used", "process", "allocated")})
        del held
    del warm
    return found


def _grown(before: Device, after: Device, what: str) -> float | None:
    first, second = getattr(before, what), getattr(after, what)
    return None if first is None or second is None else (second - first) / MIB


def card_table(sizes: tuple[int, ...]) -> list[str]:
    lines = ["| allocated, MiB | device in use, MiB | **error** | this process, MiB | **error** | torch's allocator, MiB | **error** | goal |", "|---|---|---|---|---|---|---|---|"]
    found = json.loads(call(__file__, "--card", json.dumps(sizes)))
    for i, size in enumerate(sizes):
        cells: list[str] = []
        for what in ("used", "process", "allocated"):
            grown = None if found is None else found[i][what]
            cells += [UNMEASURED, UNMEASURED] if grown is None else [f"{grown:.1f}", _error(grown, size)]
        lines.append(f"| {size} | {' | '.join(cells)} | ≤ {ERROR_GOAL:.0f} % |")
    return lines


def nodes_of(sizes: list[int], device: str) -> list[dict[str, Any]] | None:
    """The nodes of a run that each allocate so many MiB, every second of which keeps them, as the recorder tells of them."""
    allocate: Callable[[int], object] = lambda size: bytearray(b"1") * (size * MIB)  # noqa: E731
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return None
        allocate = lambda size: torch.ones(size * MIB, dtype=torch.uint8, device="cuda")  # noqa: E731
        torch.zeros(1, device="cuda")
    recorder = Recorder()
    recorder.start_run("run", {})
    kept: list[object] = []
    for i, size in enumerate(sizes):
        recorder.start_node("run", str(size))
        held = allocate(size)
        if i % 2:
            kept.append(held)
        del held
        recorder.finish_node("run", str(size))
    recorder.end_run("run", "success")
    run = recorder.run("run")
    assert run is not None
    return run["nodes"]


def nodes_table(sizes: tuple[int, ...]) -> list[str]:
    lines = ["| node allocates, MiB | and then | RAM, MiB | **error** | device, MiB | **error** | goal |", "|---|---|---|---|---|---|---|"]
    found = {device: json.loads(call(__file__, "--nodes", json.dumps(sizes), device)) for device in ("cpu", "cuda")}
    for i, size in enumerate(sizes):
        cells: list[str] = []
        for device, what in (("cpu", "host"), ("cuda", "device")):
            if found[device] is None:
                cells += [UNMEASURED, UNMEASURED]
            else:
                held = found[device][i][what]
                grown = (held["peak"] - held["start"]) / MIB
                cells += [f"{grown:.1f}", _error(grown, size)]
        lines.append(f"| {size} | {'keeps it' if i % 2 else 'frees it'} | {' | '.join(cells)} | ≤ {ERROR_GOAL:.0f} % |")
    return lines


def _error(found: float, expected: float) -> str:
    return f"{100 * (found - expected) / expected:+.2f} %"


# Room


def after_runs(counts: list[int]) -> list[int]:
    """RSS of this process after so many runs of three nodes, four steps and ten samples on eight cards; and after 50 more that are as long as a run can be."""
    recorder = Recorder()
    held: list[int] = []
    for i in range(max(counts)):
        _one_run(recorder, f"run {i}", samples=10)
        if i + 1 in counts:
            gc.collect()
            held.append(memory("VmRSS"))
    for i in range(50):
        _one_run(recorder, f"long {i}", samples=MOST_SAMPLES)
    gc.collect()
    return [*held, memory("VmRSS")]


def _one_run(recorder: Recorder, run_id: str, samples: int) -> None:
    recorder.start_run(run_id, {str(i): Label("KSampler", f"node {i} of {run_id}") for i in range(3)})
    for node in ("0", "1", "2"):
        recorder.start_node(run_id, node)
        recorder.predict(run_id, node, 1000)
        for step in range(4 if node == "1" else 0):
            recorder.step(run_id, node, "step", step, 4)
    for i in range(samples):
        cards = tuple(Device(card, "NVIDIA H100", "nvml", 80 << 30, (i + card) << 20, process=i << 20, allocated=i << 20) for card in range(8))
        recorder.add(Snapshot(time.time(), Host(64 << 30, 32 << 30, 32 << 30, 1 << 30), cards))
    recorder.end_run(run_id, "error", f"{run_id} ran out of memory")


def room_table(runs: tuple[int, int]) -> list[str]:
    first, last, full = json.loads(call(__file__, "--runs", json.dumps(runs)))
    return [
        f"| | after {runs[0]:,} runs | after {runs[1]:,} runs | **ratio** | after 50 more, each as long as can be |",
        "|---|---|---|---|---|",
        f"| RSS, MiB | {first / MIB:.1f} | {last / MIB:.1f} | {last / first:.3f} | {full / MIB:.1f} |",
    ]


# The file


def document(job: Job, command: str) -> str:
    load = getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="lean-video-bench-") as scratch:
        cost = cost_table(job.seconds, Path(scratch))
    card = card_table(job.on_card)
    return "\n".join(
        [
            "# The monitor",
            "",
            f"{date.today().isoformat()}, {cores()}, {'no GPU' if UNMEASURED in card[-1] else 'with a GPU'}. Python {platform.python_version()}, {versions('torch', 'nvidia-ml-py', 'psutil')}. Made by `{command}`.",
            other_load(load),
            "",
            "## What sampling costs",
            "",
            *cost,
            "",
            f"- CPU time of a whole process that only samples, over {job.seconds:g} s, as percent of one core: devices, processes, RAM, and what a timeline keeps of each sample.",
            "- *Without waits*: the same samples one right after the other. What they cost more at their rate is waking up, and code and data that others have put out of the cache meanwhile.",
            "- *8 cards*: `tests/engine/nvml.c`, a library that speaks NVML, loaded as the driver's is. What a real driver takes to answer comes on top; on a card of which nothing moves it is asked one question a sample, for all else once a second, and for who holds it four times a second while that moves.",
            "",
            "## What is told of a card",
            "",
            *card,
            "",
            "- What the monitor tells more of after an allocation of known size than before, in a process that has its CUDA context already.",
            "",
            "## What is told of nodes",
            "",
            *nodes_table(job.sizes),
            "",
            "- One run whose nodes allocate so much and write to it; what the timeline says a node held at most, less what was held as it began. RAM is the process's resident set, the device torch's allocator.",
            "",
            "## What is kept of runs",
            "",
            *room_table(job.runs),
            "",
            f"- RSS of one process that hears of that many runs, each with its nodes, steps, samples of eight cards and a failure. The last 50 are kept. As long as can be: {MOST_SAMPLES} samples.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}; else the table is printed only")
    parser.add_argument("--quick", action="store_true", help="shorter and smaller, to try the script")
    arguments = parser.parse_args()
    if not sys.platform.startswith("linux"):
        parser.error("peaks are read from /proc: run this on Linux")
    text = document(QUICK if arguments.quick else FULL, " ".join(["python bench/monitor.py", *sys.argv[1:]]))
    if arguments.write:
        TABLE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--sample", seconds, is_busy]:
            print(json.dumps(sample(float(seconds), is_busy == "1")))
        case ["--card", sizes]:
            print(json.dumps(on_card(json.loads(sizes))))
        case ["--nodes", sizes, device]:
            print(json.dumps(nodes_of(json.loads(sizes), device)))
        case ["--runs", counts]:
            print(json.dumps(after_runs(json.loads(counts))))
        case _:
            main()
