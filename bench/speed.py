"""How long frames between frames take: ours against the same network written down plainly, on the CPU in turn; and frames a second of a GPU where there is one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from clips import fetch, frames, source
from torch import Tensor
from turns import MIB, paired_ratio, say

if TYPE_CHECKING:
    from pathlib import Path

    from interpolation import Options

GOAL = 1.0
OURS, PLAIN, INDEXED = "ours", "plain", "plain, by indexing"
VERSIONS = ("4.6", "4.0")
TURNS = 3
GPU_SIZES = ((1280, 720), (1920, 1080))
GPU_FRAMES = 17


@dataclass
class Times:
    wall: list[float] = field(default_factory=lambda: [])
    cpu: list[float] = field(default_factory=lambda: [])


def section(options: Options) -> list[str]:
    return [*_on_cpu(options), "", *_on_gpu(options)]


def _clip(count: int, width: int, height: int) -> Tensor:
    """[T,H,W,3] in 0..1"""
    import cv2

    pictures = [cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA) for picture in frames(fetch(source("bunny-1080p.mp4")), 470, count)]
    return torch.from_numpy(np.stack(pictures)).float() / 255


def _on_cpu(options: Options) -> list[str]:
    width, height = (320, 192) if options.quick else (1280, 720)
    lines = [
        f"Seconds for each frame made at {width}x{height} on the CPU, float32, the median of {TURNS} turns, and the ratio of ours to it (of CPU seconds in brackets). Goal: ≤ {GOAL:.1f}.",
        "",
        f"| network | from, to | {OURS} | {PLAIN} | **ratio** | {INDEXED} | **ratio** | goal | max \\|d\\| |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for version in VERSIONS:
        for count, factor in ((5, 2), (3, 4)):
            lines.append(_row(version, options.rife(version), _clip(count, width, height), factor))
            say(lines[-1])
    return [
        *lines,
        "",
        "- *Ours* is `interpolate_clip` as the node calls it, with cuts and repeats looked for. *Plain* is the network written down step by step, one call for each frame made (`tests/engine/plain_ifnet.py`), which warps with `grid_sample` as the releases do; *by indexing* is that file as it is, which warps without.",
        "- One process; the sides take their turns in changing order after one frame each to warm up, and ratios are medians of the ratios of the same turn. *Max |d|* is between our frames and plain's, in 0..1.",
    ]


def _row(version: str, weights: Path, clip_THWC: Tensor, factor: int) -> str:
    made = (len(clip_THWC) - 1) * (factor - 1)
    sides = _sides(version, weights, factor)
    for run in sides.values():
        run(clip_THWC[:2])
    times = {side: Times() for side in sides}
    results: dict[str, Tensor] = {}
    for turn in range(TURNS):
        order = list(sides) if turn % 2 == 0 else list(reversed(sides))
        for side in order:
            wall, cpu = time.perf_counter(), time.process_time()
            results[side] = sides[side](clip_THWC)
            times[side].wall.append(time.perf_counter() - wall)
            times[side].cpu.append(time.process_time() - cpu)
            say(f"{version} {factor}x, turn {turn + 1}, {side}: {times[side].wall[-1] / made:.2f} s a frame")
    cells = [f"{statistics.median(times[OURS].wall) / made:.2f}"]
    for side in (PLAIN, INDEXED):
        wall, cpu = paired_ratio(times[OURS].wall, times[side].wall), paired_ratio(times[OURS].cpu, times[side].cpu)
        cells += [f"{statistics.median(times[side].wall) / made:.2f}", f"**{wall:.3f}** ({cpu:.3f})"]
    met = paired_ratio(times[OURS].wall, times[PLAIN].wall) <= GOAL
    difference = float((results[OURS] - results[PLAIN]).abs().max())
    return f"| RIFE {version} | {len(clip_THWC)} frames, {factor}x | {' | '.join(cells)} | {'met' if met else '**not met**'} | {difference:.1e} |"


def _sides(version: str, weights: Path, factor: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Each from a clip [T,H,W,3] to the frames of the result, [N,H,W,3]."""
    import plain_ifnet
    from safetensors.torch import load_file

    from lean_video.interpolation.clip import interpolate_clip
    from lean_video.interpolation.rife import load
    from lean_video.interpolation.timeline import Between

    rife, file = load(weights), load_file(weights)
    release = next(found for found in plain_ifnet.RELEASES if found.versions.startswith(version))
    indexed = plain_ifnet._shifted

    def ours(clip_THWC: Tensor) -> Tensor:
        return interpolate_clip(clip_THWC, rife, Between(factor - 1))[0]

    def plain(clip_THWC: Tensor, warp: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        shown = [frame.permute(2, 0, 1) for frame in clip_THWC]
        result: list[Tensor] = []
        plain_ifnet._shifted = warp
        try:
            with torch.no_grad():
                for a, b in pairwise(shown):
                    result += [a, *(plain_ifnet.plain_forward(release, file, a, b, k / factor) for k in range(1, factor))]
        finally:
            plain_ifnet._shifted = indexed
        return torch.stack([*result, shown[-1]]).permute(0, 2, 3, 1)

    return {OURS: ours, PLAIN: lambda clip: plain(clip, _sampled), INDEXED: lambda clip: plain(clip, indexed)}


def _sampled(x_1CHW: Tensor, flow_12HW: Tensor) -> Tensor:
    """`x` read `flow` pixels away, by grid_sample, as the releases write it."""
    height, width = x_1CHW.shape[-2:]
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    grid = torch.stack((columns + flow_12HW[0, 0] * 2 / (width - 1), rows + flow_12HW[0, 1] * 2 / (height - 1)), -1)[None]
    return F.grid_sample(x_1CHW, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _on_gpu(options: Options) -> list[str]:
    if not torch.cuda.is_available():
        return ["On a GPU: not measured, since this machine has none."]
    lines = [
        f"On {torch.cuda.get_device_name()}: {GPU_FRAMES} frames to {2 * GPU_FRAMES - 1}, from memory to memory, looking for cuts included.",
        "",
        "| network | size | numbers | frames at once | frames made a second | of the result a second | peak, MiB | predicted, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for version in VERSIONS[: 1 if options.quick else None]:
        for width, height in GPU_SIZES:
            clip_THWC = _clip(GPU_FRAMES, width, height)
            lines += [_gpu_row(version, options.rife(version), clip_THWC, half) for half in (False, True)]
            say(lines[-1])
    return lines


def _gpu_row(version: str, weights: Path, clip_THWC: Tensor, half: bool) -> str:
    from lean_video.interpolation.clip import interpolate_clip
    from lean_video.interpolation.cost import choose_batch
    from lean_video.interpolation.rife import load
    from lean_video.interpolation.timeline import Between

    height, width = clip_THWC.shape[1:3]
    rife = load(weights, device="cuda", half=half)
    batch, predicted = choose_batch(rife, width, height, torch.cuda.mem_get_info()[0])
    interpolate_clip(clip_THWC[: batch + 1], rife, Between(1), batch=batch)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    seconds: list[float] = []
    for _ in range(TURNS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        interpolate_clip(clip_THWC, rife, Between(1), batch=batch)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    taken, made, peak = statistics.median(seconds), len(clip_THWC) - 1, torch.cuda.max_memory_allocated()
    numbers = "float16" if half else "float32"
    return f"| RIFE {version} | {width}x{height} | {numbers} | {batch} | {made / taken:.1f} | {(2 * made + 1) / taken:.1f} | {peak / MIB:.0f} | {predicted / MIB:.0f} |"
