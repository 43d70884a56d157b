#!/usr/bin/env python3
"""What each plan takes on a CUDA card against what was predicted, and how fast it is beside stock diffusers and diffusers' own group offloading.

Writes `vram.md` beside this file when told to. The networks have the size of SVD-XT, fp16, random weights that are made on the spot (5 GiB of disk, 10 GiB of RAM).
Without a card it says so and leaves the table; `--predicted-only` needs none and fills in what is counted on the meta device.

All runs of a clip are made in turn, twice; each makes a few steps, of which the first warms up and is not timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_suffix(".md")
for folder in (ROOT / "scripts", ROOT):
    sys.path.insert(0, str(folder))

from turns import MIB, say, versions  # noqa: E402

if TYPE_CHECKING:
    import torch

    from lean_video.lean.transfer import Transfer
    from lean_video.models.parts import Part
    from lean_video.models.planning import Budget, Plan
    from lean_video.models.svd import Precision, SVDModel
    from lean_video.vram.device import DeviceProfile

GIB = 1024 * MIB
SAMPLE, DECODE = "sample", "decode"
STOCK, OFFLOADED = "diffusers", "diffusers, group offload"
STREAMING_GOAL, PREDICTION_GOAL = 1.10, 0.05
NOT_MEASURED, OUT_OF_MEMORY, NOTHING = "not measured", "out of memory", "-"


@dataclass(frozen=True)
class Clip:
    frames: int
    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.frames} frames, {self.width}x{self.height}"

    @property
    def latents(self) -> tuple[int, int, int, int]:
        return self.frames, 4, self.height // 8, self.width // 8


@dataclass(frozen=True)
class Job:
    """What is measured: a network of a size that `make_checkpoint` knows, clips, and budgets in bytes to plan them for; offloaded: the clip that diffusers also offloads."""

    size: str
    precision: Precision
    sampled: tuple[Clip, ...]
    decoded: tuple[Clip, ...]
    offloaded: Clip
    budgets: dict[str, Budget]
    steps: int = 4
    decodes: int = 3
    rounds: int = 2


SQUARE, LONG, WIDE = Clip(24, 512, 512), Clip(48, 512, 512), Clip(25, 1024, 576)
FULL = Job("full", "fp16", (SQUARE, LONG, WIDE), (SQUARE, WIDE), SQUARE, {"max": "max", "4 GiB": 4 * GIB, "2 GiB": 2 * GIB, "min": "min"})
TINY_CLIP = Clip(5, 192, 128)
TINY = Job("small", "fp32", (TINY_CLIP,), (TINY_CLIP,), TINY_CLIP, {"max": "max", "32 MiB": 32 * MIB, "min": "min"}, steps=3, decodes=2, rounds=1)


# The machine that is measured


@dataclass
class Peaks:
    """Bytes. allocated: by tensors, without what was there before; reserved: by torch's allocator for them; used: as the driver sees it, if it can be asked."""

    allocated: int = 0
    reserved: int | None = None
    used: int | None = None


class Machine:
    """What is measured. This one is the CPU in place of a card, to try the script: bytes are counted there as predictions are."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.name = "No card: a CPU that pretends to be one"

    def profile(self, precision: Precision) -> DeviceProfile | None:
        """What planning is to know of the device."""
        return None

    @contextmanager
    def watch(self) -> Generator[tuple[Transfer, Peaks]]:
        """Fills in the peaks of what runs inside the block, which is given a transfer to the device."""
        from lean_video.vram.meter import measured

        peaks = Peaks()
        with measured(self.device) as found:
            yield found.transfer, peaks
        peaks.allocated = found.peak or 0

    def now(self) -> float:
        """Seconds, once everything that was asked for is done."""
        return time.perf_counter()

    def notes(self) -> list[str]:
        return []


class Card(Machine):
    """A CUDA card."""

    def __init__(self) -> None:
        import torch

        super().__init__(torch.device("cuda", torch.cuda.current_device()))
        properties = torch.cuda.get_device_properties(self.device)
        self.name = f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}"
        # What a library takes once a process belongs to no run.
        half = torch.ones(64, 64, dtype=torch.float16, device=self.device)
        torch.addmm(half[0], half, half) @ half
        torch.nn.functional.conv2d(half.view(1, 64, 8, 8), half.view(64, 64, 1, 1))
        torch.cuda.synchronize(self.device)
        del half
        self._libraries = torch.cuda.memory_allocated(self.device)
        self._profile: DeviceProfile | None = None
        self._driver = _Driver.of(self.device)

    def profile(self, precision: Precision) -> DeviceProfile:
        from lean_video.models.svd import dtype_of
        from lean_video.vram.device import device_profile
        from lean_video.vram.store import Store

        self._profile = self._profile or device_profile(self.device, dtype_of(precision), Store())
        return self._profile

    @contextmanager
    def watch(self) -> Generator[tuple[Transfer, Peaks]]:
        import torch

        gc.collect()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        reserved = torch.cuda.memory_reserved(self.device)
        with _sampled(self._driver) as used, super().watch() as (transfer, peaks):
            yield transfer, peaks
            torch.cuda.synchronize(self.device)
        peaks.reserved = torch.cuda.max_memory_reserved(self.device) - reserved
        peaks.used = max(used, default=None)

    def now(self) -> float:
        import torch

        torch.cuda.synchronize(self.device)
        return super().now()

    def notes(self) -> list[str]:
        whose = "nothing, as NVML cannot be asked" if self._driver is None else "this process, CUDA's own context included" if self._driver.of_process else "the whole card"
        workspace = 0 if self._profile is None else self._profile.workspace
        return [
            f"Before all runs, libraries held {self._libraries / MIB:.0f} MiB, which is in no row. *Driver*: what NVML says of {whose}.",
            f"Our plans are predicted with what was measured of this card: {workspace / MIB:.0f} MiB that libraries and rounding take beside the tensors of a layer.",
        ]


class _Driver:
    """NVML's view of a card's memory: of this process, where it can tell (it cannot in most containers)."""

    @staticmethod
    def of(device: torch.device) -> _Driver | None:
        try:
            return _Driver(device)
        except Exception as error:  # there are many ways in which a machine has no NVML, and none of them matters
            say(f"NVML cannot be asked ({error or type(error).__name__}): pip install nvidia-ml-py, or do without that column")
            return None

    def __init__(self, device: torch.device) -> None:
        import pynvml
        import torch

        pynvml.nvmlInit()
        self._nvml = pynvml
        self._card = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        self.of_process = self._of_process() is not None

    def used(self) -> int:
        return (self._of_process() if self.of_process else None) or int(self._nvml.nvmlDeviceGetMemoryInfo(self._card).used)

    def _of_process(self) -> int | None:
        processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._card)
        return next((process.usedGpuMemory for process in processes if process.pid == os.getpid()), None)


@contextmanager
def _sampled(driver: _Driver | None) -> Generator[list[int]]:
    """What the driver says, asked every few milliseconds inside the block."""
    used: list[int] = []
    if driver is None:
        yield used
        return
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.01):
            used.append(driver.used())

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield used
    finally:
        over.set()
        thread.join()


# The runs


Work = Callable[["Transfer", Callable[[], None]], None]
"""Does some equal pieces of work on the device that a transfer leads to, and calls after each."""


class SmallerPlanError(Exception):
    """Memory ran out, and the run would have gone on under another plan than the one that is measured."""


def _no_smaller_plan(line: str) -> None:
    raise SmallerPlanError(line)


@dataclass
class Row:
    """One run of a clip. plan: None for diffusers; predicted: bytes, where there is a prediction."""

    clip: Clip
    title: str
    work: Callable[[SVDModel], Work]
    plan: Any = None
    predicted: int | None = None
    peaks: list[Peaks] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    failed: bool = False

    @property
    def measured(self) -> bool:
        return bool(self.peaks) and not self.failed

    @property
    def allocated(self) -> int:
        return max(peaks.allocated for peaks in self.peaks)

    @property
    def error(self) -> float | None:
        """How much more was allocated than predicted, relatively."""
        return self.allocated / self.predicted - 1 if self.measured and self.predicted is not None else None

    @property
    def time(self) -> float:
        return statistics.median(self.seconds)

    def cells(self, stock: Row) -> list[str]:
        predicted = NOTHING if self.predicted is None else f"{self.predicted / MIB:.0f}"
        if not self.measured:
            missing = OUT_OF_MEMORY if self.failed else NOT_MEASURED
            return [str(self.clip), self.title, predicted, missing, *[NOTHING if self.failed else NOT_MEASURED] * 5]
        error = self.error
        return [
            *(str(self.clip), self.title, predicted, f"{self.allocated / MIB:.0f}", NOTHING if error is None else f"{error:+.1%}"),
            *(_mib([peaks.reserved for peaks in self.peaks]), _mib([peaks.used for peaks in self.peaks])),
            *(f"{self.time:.3f}", f"{self.time / stock.time:.2f}" if stock.measured else NOTHING),
        ]


def _mib(figures: Sequence[int | None]) -> str:
    known = [figure for figure in figures if figure is not None]
    return f"{max(known) / MIB:.0f}" if known else NOTHING


def measure(rows: Sequence[Row], model: SVDModel, machine: Machine, rounds: int) -> None:
    from lean_video.errors import LeanVideoError
    from lean_video.vram.ladder import is_out_of_memory

    for _ in range(rounds):
        for row in rows:
            if row.failed:
                continue
            say(f"{row.clip}, {row.title}")
            try:
                peaks, seconds = _watched(row.work(model), machine)
            except Exception as error:
                if not (is_out_of_memory(error) or isinstance(error, SmallerPlanError) or (isinstance(error, LeanVideoError) and "Memory ran out" in str(error))):
                    raise
                say(f"  {OUT_OF_MEMORY}")
                row.failed = True
                continue
            row.peaks.append(peaks)
            row.seconds += seconds


def _watched(work: Work, machine: Machine) -> tuple[Peaks, list[float]]:
    """(what it held, seconds of each piece of work but the first)"""
    import torch

    with torch.no_grad(), machine.watch() as (transfer, peaks):
        times: list[float] = []
        work(transfer, lambda: times.append(machine.now()))
    return peaks, [after - before for before, after in itertools.pairwise(times)]


def predict_stock(job: Job, phase: str, clip: Clip, parts: Mapping[str, Part]) -> int:
    """Bytes that diffusers' forward holds at most, counted on the meta device."""
    import stock
    import torch

    from lean_video.models.svd import dtype_of
    from lean_video.vram.trace import AttentionKernels, LiveBytes, TracedTransfer

    say(f"counting {STOCK}: {phase} {clip}")
    module: Any = torch.nn.Module.to(parts["unet" if phase == SAMPLE else "vae"].skeleton(), dtype=dtype_of(job.precision))
    live, meta = LiveBytes(), torch.device("meta")
    transfer, latents = TracedTransfer(live, meta), torch.empty(clip.latents, device=meta)
    with torch.no_grad(), AttentionKernels(), _on_device(module if phase == SAMPLE else module.decoder, transfer):
        if phase == DECODE:
            stock.decode(module, latents, transfer)
        else:
            pair = stock.guidance_pair(module.config.cross_attention_dim, clip.width, clip.height, meta)
            stock.estimator(module, pair, clip.frames, transfer)(latents, 1.0)
    return live.peak


def plans(job: Job, parts: Mapping[str, Part], clip: Clip, machine: Machine | None) -> dict[str, Plan]:
    """The plan for each budget: the one place that knows how plans are asked for."""
    from lean_video.models.planning import plan_clip
    from lean_video.vram.store import Store

    say(f"planning {clip}")
    profile, store = None if machine is None else machine.profile(job.precision), Store()
    device = None if machine is None or machine.device.type == "cpu" else machine.device
    size: Any = {"frames": clip.frames, "width": clip.width, "height": clip.height}
    return {name: plan_clip(parts, job.precision, **size, budget=budget, device=device, store=store, profile=profile) for name, budget in job.budgets.items()}


def rows_of(job: Job, phase: str, clip: Clip, parts: Mapping[str, Part], planned: Mapping[str, Plan]) -> Iterator[Row]:
    """Stock first, then a row for each plan: budgets that have the same share one."""
    if phase == SAMPLE:
        yield Row(clip, STOCK, lambda model: _stock_sampling(job, clip, model.unet), predicted=predict_stock(job, phase, clip, parts))
    else:
        yield Row(clip, STOCK, lambda model: _stock_decoding(job, clip, model.vae), predicted=predict_stock(job, phase, clip, parts))
    budgets: dict[Any, list[str]] = {}
    for name, plan in planned.items():
        budgets.setdefault(getattr(plan, phase), []).append(name)
    for plan, names in budgets.items():
        work = _sampling if phase == SAMPLE else _decoding
        title = f"budget {', '.join(names)}: {_describe(plan)}"
        yield Row(clip, title, lambda model, plan=plan, work=work: work(job, clip, model, plan), plan, planned[names[0]].peak[phase])
    if phase == SAMPLE and clip == job.offloaded:
        yield Row(clip, OFFLOADED, lambda model: _offloaded_sampling(job, clip, model))


def _describe(plan: Any) -> str:
    """A plan's fields, those that are on."""
    words: list[str] = []
    for name in (each.name for each in dataclasses.fields(plan)):
        value = getattr(plan, name)
        if hasattr(value, "elements"):
            words.append(f"{name} of {value.elements / 2**20:g} Mi")
        elif value:
            words.append(name)
    return ", ".join(words)


def _sampling(job: Job, clip: Clip, model: SVDModel, plan: Any) -> Work:
    import stock

    from lean_video.models import render

    conditioning, _ = stock.guidance_pair(model.unet.config.cross_attention_dim, clip.width, clip.height)

    def work(transfer: Transfer, on_step: Callable[[], None]) -> None:
        render.sample_clip(
            model,
            conditioning,
            frames=clip.frames,
            steps=job.steps,
            device=transfer.device,
            transfer=transfer,
            plan=plan,
            on_step=lambda done, total, x0: on_step(),
            say=_no_smaller_plan,
        )

    return work


def _stock_sampling(job: Job, clip: Clip, unet: Any, *, comes_by_itself: bool = False) -> Work:
    """The same sampling around diffusers' forward."""
    import stock

    from lean_video.sampling import guidance_scale, guide, sample

    pair = stock.guidance_pair(unet.config.cross_attention_dim, clip.width, clip.height)
    scale = guidance_scale("linear", clip.frames, 1.0, 3.0)

    def work(transfer: Transfer, on_step: Callable[[], None]) -> None:
        with nullcontext() if comes_by_itself else _on_device(unet, transfer):
            denoise = guide(stock.estimator(unet, pair, clip.frames, transfer), scale)
            sample(denoise, clip.latents, steps=job.steps, seed=0, on_step=lambda done, total, x0: on_step())

    return work


def _offloaded_sampling(job: Job, clip: Clip, model: SVDModel) -> Work:
    import torch

    unet: Any = model.parts["unet"].build(model.dtype)  # its own, as the hooks stay on the module

    def work(transfer: Transfer, on_step: Callable[[], None]) -> None:
        if transfer.device.type == "cuda":
            unet.enable_group_offload(onload_device=transfer.device, offload_device=torch.device("cpu"), offload_type="leaf_level", use_stream=True)
        _stock_sampling(job, clip, unet, comes_by_itself=True)(transfer, on_step)

    return work


def _latents(clip: Clip) -> torch.Tensor:
    import torch

    return torch.randn(clip.latents, generator=torch.Generator().manual_seed(0))


def _decoding(job: Job, clip: Clip, model: SVDModel, plan: Any) -> Work:
    from lean_video.models import render

    latents = _latents(clip)
    _ = model.vae  # opened here, outside the watch

    def work(transfer: Transfer, on_decode: Callable[[], None]) -> None:
        for _ in range(job.decodes):
            render.decode_clip(model, latents, device=transfer.device, transfer=transfer, plan=plan, say=_no_smaller_plan)
            on_decode()

    return work


def _stock_decoding(job: Job, clip: Clip, vae: Any) -> Work:
    import stock

    latents = _latents(clip)

    def work(transfer: Transfer, on_decode: Callable[[], None]) -> None:
        with _on_device(vae.decoder, transfer):
            for _ in range(job.decodes):
                stock.decode(vae, latents, transfer)
                on_decode()

    return work


@contextmanager
def _on_device(module: Any, transfer: Transfer) -> Generator[None]:
    """Holds all of a module's weights on the device inside the block."""
    from lean_video.lean.transfer import Weights

    with ExitStack() as stack:
        with transfer.computing():
            stack.enter_context(Weights(transfer, resident=True).stage((module,)))
        yield


# The file


HEADER = ("clip", "run", "predicted, MiB", "**allocated, MiB**", "**above predicted**", "reserved, MiB", "driver, MiB", "{time}", "**time / diffusers'**")


def table(rows: dict[Clip, list[Row]], time_title: str) -> list[str]:
    lines = [f"| {' | '.join(HEADER).format(time=time_title)} |", "|" + "---|" * len(HEADER)]
    for (stock, *_), clip_rows in ((each, each) for each in rows.values()):
        lines += [f"| {' | '.join(row.cells(stock))} |" for row in clip_rows]
    return lines


def findings(job: Job, sampled: dict[Clip, list[Row]], decoded: dict[Clip, list[Row]]) -> list[str]:
    every = [row for rows in (*sampled.values(), *decoded.values()) for row in rows]
    errors = [abs(row.error) for row in every if row.plan is not None and row.error is not None]
    lines = [_finding("largest difference between predicted and allocated, over all plans", max(errors, default=None), PREDICTION_GOAL, "{:.1%}", "{:.0%}")]
    planned = [row for row in sampled[job.offloaded] if row.plan is not None]
    resident, streamed = (next(row for row in planned if row.plan.streamed is wanted) for wanted in (False, True))
    ratio = streamed.time / resident.time if streamed.measured and resident.measured else None
    names = " against ".join(row.title.partition(":")[0] for row in (streamed, resident))
    return [*lines, _finding(f"s/step, streamed / resident weights, {job.offloaded} ({names})", ratio, STREAMING_GOAL, "{:.2f}", "{:.2f}")]


def _finding(name: str, value: float | None, goal: float, form: str, goal_form: str) -> str:
    verdict = "" if value is None else "met" if value <= goal else "**not met**"
    return f"| {name} | {NOT_MEASURED if value is None else form.format(value)} | ≤ {goal_form.format(goal)} | {verdict} |"


def document(job: Job, machine: Machine | None, command: str) -> str:
    from make_checkpoint import SIZES, write_checkpoint

    from lean_video.checkpoints import open_svd

    with tempfile.TemporaryDirectory(prefix="lean-video-bench-") as name:
        checkpoint = Path(name, f"{job.size}_svd_xt.safetensors")
        if machine is None:
            from lean_video.checkpoints.published import published_parts

            model, parts = None, published_parts()
        else:
            say(f"writing a checkpoint of size {job.size}")
            write_checkpoint(checkpoint, SIZES[job.size], {"fp16": "float16", "fp32": "float32"}[job.precision])
            model = open_svd(checkpoint, job.precision)
            parts = model.parts
        planned = {clip: plans(job, parts, clip, machine) for clip in dict.fromkeys((*job.sampled, *job.decoded))}
        sampled = {clip: list(rows_of(job, SAMPLE, clip, parts, planned[clip])) for clip in job.sampled}
        decoded = {clip: list(rows_of(job, DECODE, clip, parts, planned[clip])) for clip in job.decoded}
        if model is not None and machine is not None:
            for rows in (*sampled.values(), *decoded.values()):
                measure(rows, model, machine, job.rounds)
        notes = [] if machine is None else machine.notes()
    where = f"No card: only what is counted on the meta device; the rest is {NOT_MEASURED}." if machine is None else f"{machine.name}."
    return "\n".join(
        [
            "# Memory and speed on a card",
            "",
            f"{date.today().isoformat()}. {where} Python {platform.python_version()}, {versions('torch', 'diffusers')}. Made by `{command}`.",
            "",
            f"{job.precision}, networks of size {job.size}, random weights; weights and everything else included in every figure.",
            "",
            "## Sampling",
            "",
            *table(sampled, "s/step"),
            "",
            "## Decoding",
            "",
            *table(decoded, "s"),
            "",
            "## Against the goals",
            "",
            "| | measured | goal | |",
            "|---|---|---|---|",
            *findings(job, sampled, decoded),
            "",
            "- *Budget*: the plan that `models.planning.plan_clip` finds for so much memory; *max* is the fastest there is, *min* the smallest. Budgets that get the same plan share a row. What a plan trades is in its name: how many elements are worked on at a time, weights *streamed* from the host, guidance halves *together* through each layer, what waits on the host *parked*.",
            "- *Predicted*: counted on the meta device by running the same code there, diffusers' too. *Allocated*: the peak of torch's allocator less what it had before. *Reserved*: what the allocator took from the driver for that.",
            f"- *{STOCK}*: the eager `unet(...)` with both guidance halves in one batch, weights on the card; `vae.decode` of the whole clip. *{OFFLOADED}*: the same UNet with `enable_group_offload`, leaf level, `use_stream=True`. All sides sample with our solver: guided, Euler.",
            f"- Seconds are medians over {job.rounds} rounds in which all runs of a clip take turns, {job.steps - 1} timed steps or {job.decodes - 1} decodes in each; the first of each is not timed.",
            *(f"- {note}" for note in notes),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}; else the table is printed only")
    parser.add_argument("--predicted-only", action="store_true", help="measure nothing; needs no card")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)  # cpu: to try the script
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import torch

    job = TINY if arguments.tiny else FULL
    if arguments.predicted_only:
        machine, job = None, FULL
    elif arguments.device == "cpu":
        machine = Machine(torch.device("cpu"))
    elif torch.cuda.is_available():
        machine = Card()
    else:
        print("This bench needs a CUDA card; the table is left as it is. --predicted-only fills in what can be known without one.")
        return
    text = document(job, machine, " ".join(["python bench/vram.py", *sys.argv[1:]]))
    if arguments.write:
        TABLE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
