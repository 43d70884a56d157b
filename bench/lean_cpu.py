#!/usr/bin/env python3
"""Our forwards against diffusers' own on a CPU, in float32 at the full size of SVD-XT: time, peak memory, and how far the results are apart.

Writes `lean_cpu.md` beside this file when told to. Linux only; takes 10 GiB of disk for a checkpoint of random weights that is made on the spot, and 16 GiB of RAM.

Each side is a process of its own on the same memory-mapped file, and they take their steps in turn, so that whatever else the machine does slows both alike.
The first step of each, which warms up and reads the weights in, is not timed. Peaks count from when the network is open.
Afterwards diffusers takes the first step once more in float64, to tell whose rounding it is that keeps the sides apart.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_suffix(".md")
for folder in (ROOT / "scripts", ROOT):
    sys.path.insert(0, str(folder))

from turns import MIB, Turns, call, cores, forget_peak, memory, other_load, paired_ratio, say, versions, worker  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

    from lean_video.models.svd import SVDModel

OURS, STOCK = "ours", "diffusers"
SIDES = (OURS, STOCK)
STEP, DECODE = "guided step", "decode"
TASKS = (STEP, DECODE)
FRAMES, PIXELS = 8, 256
SIGMAS = (80.0, 20.0, 5.0, 1.0, 0.2)  # of the steps, in turn
TIME_GOAL, MEMORY_GOAL, DIFFERENCE_GOAL = 1.05, 0.75, 1e-5


@dataclass(frozen=True)
class Job:
    """size: of `make_checkpoint`; steps: of each process, the first of which is not timed; repeats: with new processes."""

    size: str
    steps: int
    repeats: int


FULL, QUICK = Job("full", 4, 2), Job("small", 4, 1)


# In the worker process


def open_task(task: str, checkpoint: Path) -> tuple[SVDModel, Any, Tensor]:
    """(model, the module that the task runs, latents to start from)"""
    import torch

    from lean_video.checkpoints import open_svd

    model = open_svd(checkpoint, "fp32")
    network = model.unet if task == STEP else model.vae
    return model, network, torch.randn(FRAMES, 4, PIXELS // 8, PIXELS // 8, generator=torch.Generator().manual_seed(0))


def take_steps(task: str, side: str, checkpoint: Path, steps: int, result: Path) -> None:
    from safetensors.torch import save_file

    turns = Turns()
    model, network, latents_T4hw = open_task(task, checkpoint)
    results: list[Tensor] = []
    turns.answer(parameters=sum(weights.numel() for weights in (network if task == STEP else network.decoder).parameters()))
    forget_peak()
    opened = memory("RssAnon")
    run = (_sampling if task == STEP else _decoding)(model, side, latents_T4hw)
    for step in range(steps):
        turns.wait()
        result_of_step = run(step)
        turns.done()
        results.append(result_of_step)
    turns.answer(peak=memory("VmHWM"), mapped=memory("RssFile"), opened=opened)
    save_file({str(step): tensor.contiguous() for step, tensor in enumerate(results)}, result)


def take_reference(task: str, checkpoint: Path, result: Path) -> None:
    import torch
    from safetensors.torch import save_file

    model, network, latents_T4hw = open_task(task, checkpoint)
    torch.nn.Module.to(network, torch.float64)  # not diffusers' own, which warns of what it leaves undone
    save_file({"0": (_sampling if task == STEP else _decoding)(model, STOCK, latents_T4hw)(0).contiguous()}, result)
    print(result)


def _sampling(model: SVDModel, side: str, noise_T4hw: Tensor) -> Callable[[int], Tensor]:
    import stock
    import torch

    from lean_video.lean.transfer import transfer_to
    from lean_video.lean.unet import sampling_plans
    from lean_video.models import svd

    cpu = torch.device("cpu")
    pair = stock.guidance_pair(model.unet.config.cross_attention_dim, PIXELS, PIXELS)
    if side == STOCK:
        estimates = stock.estimator(model.unet, pair, FRAMES, transfer_to(cpu))
    else:
        plan = replace(sampling_plans(cpu)[0], streamed=True)
        estimates = svd.estimator(model.unet, pair, FRAMES, transfer_to(cpu), plan)

    def run(step: int) -> Tensor:
        sigma = SIGMAS[step % len(SIGMAS)]
        return estimates(noise_T4hw * (1 + sigma**2) ** 0.5, sigma)

    return run


def _decoding(model: SVDModel, side: str, latents_T4hw: Tensor) -> Callable[[int], Tensor]:
    import stock
    import torch

    from lean_video.lean.transfer import transfer_to
    from lean_video.models import render

    device = torch.device("cpu")
    if side == OURS:
        return lambda step: render.decode_clip(model, latents_T4hw, device=device)
    return lambda step: stock.decode(model.vae, latents_T4hw, transfer_to(device))


def compare(task: str, ours: Path, theirs: Path, reference: Path) -> None:
    """Prints how far ours are from theirs, ours and theirs from the reference, and the share of theirs that a picture can show."""
    from safetensors.torch import load_file

    a, b, exact = load_file(ours), load_file(theirs), load_file(reference)["0"]
    inside = 1.0 if task == STEP else float((exact.abs() < 1).double().mean())
    if task == DECODE:  # ours are pictures by now: 0..1, channels last
        a = {step: y.permute(0, 3, 1, 2) * 2 - 1 for step, y in a.items()}
        b, exact = {step: x.clamp(-1, 1) for step, x in b.items()}, exact.clamp(-1, 1)
    apart = max(float((a[step] - b[step]).abs().max()) for step in b)
    print(apart, *(float((side["0"].double() - exact).abs().max()) for side in (a, b)), inside)


# In the parent process


@dataclass
class Run:
    """What the processes of one side reported: seconds of each timed step and bytes."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    mapped: list[int] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)

    @property
    def peak(self) -> float:
        return statistics.median(self.peaks)

    @property
    def working(self) -> float:
        """Of the peak, what is neither a mapped file, which stays once read, nor was held when the network had been opened."""
        return statistics.median(peak - mapped - opened for peak, mapped, opened in zip(self.peaks, self.mapped, self.opened, strict=True))


@dataclass(frozen=True)
class Measured:
    task: str
    parameters: int
    runs: dict[str, Run]
    difference: float
    errors: dict[str, float]
    inside: float

    @property
    def time_ratio(self) -> float:
        return paired_ratio(self.runs[OURS].wall, self.runs[STOCK].wall)

    @property
    def cpu_ratio(self) -> float:
        return paired_ratio(self.runs[OURS].cpu, self.runs[STOCK].cpu)

    @property
    def peak_ratio(self) -> float:
        return self.runs[OURS].peak / self.runs[STOCK].peak

    @property
    def working_ratio(self) -> float:
        return self.runs[OURS].working / self.runs[STOCK].working

    def rows(self) -> list[str]:
        title = f"{self.task}, {self.parameters / 1e6:.1f}M"
        ratios = {OURS: [""] * 5, STOCK: [f"{self.time_ratio:.3f}", f"{self.cpu_ratio:.3f}", f"{self.peak_ratio:.3f}", f"{self.working_ratio:.3f}", f"{self.difference:.1e}"]}
        rows: list[str] = []
        for side, run in self.runs.items():
            time_ratio, cpu_ratio, peak_ratio, working_ratio, difference = ratios[side]
            cells = (
                *(title, side, f"{statistics.median(run.wall):.2f} ({min(run.wall):.2f})", time_ratio, f"{statistics.median(run.cpu):.2f}", cpu_ratio),
                *(
                    f"{run.peak / MIB:.0f}",
                    peak_ratio,
                    f"{statistics.median(run.mapped) / MIB:.0f}",
                    f"{run.working / MIB:.0f}",
                    working_ratio,
                    f"{self.errors[side]:.1e}",
                    difference,
                ),
            )
            rows.append(f"| {' | '.join(cells)} |")
        return rows

    def verdicts(self) -> list[str]:
        goals = (
            ("time ratio", f"{self.time_ratio:.3f}", f"{TIME_GOAL}", self.time_ratio <= TIME_GOAL),
            ("RSS ratio", f"{self.peak_ratio:.3f}", f"{MEMORY_GOAL}", self.peak_ratio <= MEMORY_GOAL),
            ("max \\|d\\|", f"{self.difference:.1e}", f"{DIFFERENCE_GOAL:.0e}", self.difference <= DIFFERENCE_GOAL),
        )
        return [f"| {self.task} | {name} | {value} | ≤ {goal} | {'met' if met else '**not met**'} |" for name, value, goal, met in goals]


def measure(task: str, job: Job, checkpoint: Path) -> Measured:
    runs = {side: Run() for side in SIDES}
    results = {side: checkpoint.with_name(f"{side}.safetensors") for side in SIDES}
    reference = checkpoint.with_name("reference.safetensors")
    parameters, difference, errors, inside = 0, 0.0, dict.fromkeys(SIDES, 0.0), 1.0
    for number in range(job.repeats):
        with ExitStack() as stack:
            workers = {side: stack.enter_context(worker(__file__, "--worker", task, side, str(checkpoint), str(job.steps), str(results[side]))) for side in SIDES}
            for process in workers.values():
                parameters = process.answer()["parameters"]
            for step in range(job.steps):
                for side in SIDES if (step + number) % 2 else reversed(SIDES):
                    taken = workers[side].step()
                    say(f"{task}: repeat {number + 1} of {job.repeats}, step {step + 1} of {job.steps}, {side}: {taken['wall']:.1f} s")
                    if step > 0:
                        runs[side].wall.append(taken["wall"])
                        runs[side].cpu.append(taken["cpu"])
            for side, process in workers.items():
                held = process.answer()
                runs[side].peaks.append(held["peak"])
                runs[side].mapped.append(held["mapped"])
                runs[side].opened.append(held["opened"])
                process.wait()
        if not reference.exists():
            say(f"{task}: in float64")
            call(__file__, "--reference", task, str(checkpoint), str(reference))
        apart, *of_sides, inside = map(float, call(__file__, "--compare", task, *(str(results[side]) for side in SIDES), str(reference)).split())
        difference = max(difference, apart)
        errors = {side: max(errors[side], error) for side, error in zip(SIDES, of_sides, strict=True)}
    reference.unlink()
    return Measured(task, parameters, runs, difference, errors, inside)


def prepare(size: str, checkpoint: Path) -> None:
    from make_checkpoint import SIZES, write_checkpoint

    print(write_checkpoint(checkpoint, SIZES[size]))


def document(job: Job, tasks: Sequence[str], command: str) -> str:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="lean-video-bench-") as name:
        checkpoint = Path(name, f"{job.size}_svd_xt.safetensors")
        say(f"writing a checkpoint of size {job.size}")
        call(__file__, "--prepare", job.size, str(checkpoint))
        measured = [measure(task, job, checkpoint) for task in tasks]
    return "\n".join(
        [
            "# Our forwards against diffusers', on a CPU",
            "",
            f"{date.today().isoformat()}, {cores()}, no GPU used. Python {platform.python_version()}, {versions('torch', 'diffusers')}. Made by `{command}`.",
            other_load(load),
            "",
            f"{FRAMES} frames of {PIXELS}x{PIXELS}, float32, one thread a process, networks of size {job.size}, random weights. Ratios are ours / diffusers'.",
            "",
            "| network | side | s, median (least) | **time ratio** | CPU s | ratio | peak RSS, MiB | **RSS ratio** | of it mapped files, MiB | working memory, MiB | ratio | from float64 | **max \\|d\\|** |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
            *(row for found in measured for row in found.rows()),
            "",
            "| | | measured | goal | |",
            "|---|---|---|---|---|",
            *(verdict for found in measured for verdict in found.verdicts()),
            "",
            f"- *Guided step*: both guidance halves at one noise level, {', '.join(f'{sigma:g}' for sigma in SIGMAS[: job.steps])} in turn, after the same preconditioning. diffusers' `unet(...)` takes the halves as one batch, as its pipeline does; ours is `models.svd.estimator` with the widest plan, its weights streamed: on a CPU, let go of after each layer. The largest difference is between the two halves' denoised latents.",
            "- *Decode*: the whole clip with the temporal decoder: `vae.decode(z, num_frames=...)` against `models.render.decode_clip`, which also turns the result into pictures. The largest difference is between pictures in -1..1"
            + "".join(f"; {found.inside:.0%} of the values lie inside, the others are cut at both ends." for found in measured if found.task == DECODE),
            "- *Max |d|* is between the sides. *From float64* is the largest difference of each side from diffusers' own forward on the same weights in float64: where one side's is small, the difference between the sides is the other's rounding.",
            f"- {(job.steps - 1) * job.repeats} timed steps a side in {job.repeats} {'run' if job.repeats == 1 else 'runs'}; the first step of a run is not timed. The sides take their steps in turn, so that other load on the machine meets both alike, and ratios of time are medians of the ratios at the same step. CPU time does not count waiting for a core: on a busy machine it is the one to read.",
            "- Peak RSS is VmHWM of the process from when the network is open, libraries included. Both sides map their weights from the same file. Mapped pages count once they have been read, and stay until they are let go of; *working memory* is what the peak has beside them and beside what the process held before the first step.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}; else the table is printed only")
    parser.add_argument("--quick", action="store_true", help="a small network, to try the script")
    parser.add_argument("--task", choices=TASKS, action="append", help="default: all")
    arguments = parser.parse_args()
    if not sys.platform.startswith("linux"):
        parser.error("peaks are read from /proc: run this on Linux")
    text = document(QUICK if arguments.quick else FULL, arguments.task or TASKS, " ".join(["python bench/lean_cpu.py", *sys.argv[1:]]))
    if arguments.write:
        TABLE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--worker", task, side, checkpoint, steps, result]:
            take_steps(task, side, Path(checkpoint), int(steps), Path(result))
        case ["--reference", task, checkpoint, result]:
            take_reference(task, Path(checkpoint), Path(result))
        case ["--compare", task, ours, theirs, reference]:
            compare(task, Path(ours), Path(theirs), Path(reference))
        case ["--prepare", size, checkpoint]:
            prepare(size, Path(checkpoint))
        case _:
            main()
