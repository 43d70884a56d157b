"""The command line: the engine without ComfyUI.

Results go to stdout, progress and notes to stderr. A user's mistake is one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .errors import LeanVideoError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .models.planning import Budget, Plan
    from .models.svd import SVDModel
    from .vram.meter import Measured


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 2 a mistake in what was asked, 130 interrupted."""
    try:
        options = _parser().parse_args(arguments)
        return options.run(options)
    except LeanVideoError as error:
        print(f"lean_video: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nlean_video: interrupted.", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LeanVideoError(f"{message} (see python -m lean_video {self.prog.partition(' ')[2]} --help).".replace("  ", " "))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lean_video", description="Video from an image with Stable Video Diffusion, without ComfyUI.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    inspect = commands.add_parser("inspect", help="say what a checkpoint is", description="What a checkpoint is, from its header. Exit code 2 when it cannot be used.")
    inspect.add_argument("file", type=Path, metavar="FILE", help="a .safetensors file or a diffusers folder")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(run=_inspect)

    plan = commands.add_parser(
        "plan",
        help="say what a clip will take",
        description="What a clip will take, phase by phase, and the fastest way to make it within a budget. No weights are read and no GPU is needed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    plan.add_argument("checkpoint", metavar="CHECKPOINT", help="an SVD .safetensors file, a diffusers folder, or svd or svd_xt for the published networks without a file")
    plan.add_argument("--frames", type=int, default=25)
    plan.add_argument("--width", type=int, default=1024)
    plan.add_argument("--height", type=int, default=576)
    plan.add_argument("--budget", type=_budget, default="max", help="device memory, such as 400MiB or 4GiB; max for the fastest plan, min for the smallest")
    plan.add_argument("--precision", choices=("auto", "fp32", "fp16", "bf16"), default="auto", help="auto is what a GPU would use")
    plan.add_argument("--json", action="store_true", help="print JSON; peak_mib is in MiB, weights and everything included")
    plan.set_defaults(run=_plan)

    render = commands.add_parser("render", help="make a clip from an image", description="Makes a clip from an image.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    render.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="an SVD .safetensors file or a diffusers folder")
    render.add_argument("image", type=Path, metavar="IMAGE", help="the first frame")
    render.add_argument("out", type=Path, metavar="OUT", help="a video file (.mp4, .webm, .mov, .mkv, .gif, .webp) or a folder for PNGs")
    render.add_argument("--frames", type=int, default=25)
    render.add_argument("--width", type=int, default=1024)
    render.add_argument("--height", type=int, default=576)
    render.add_argument("--resize", choices=("crop", "pad", "stretch"), default="crop")
    render.add_argument("--steps", type=int, default=25)
    render.add_argument("--solver", choices=("euler", "heun", "dpmpp_2m", "euler_ancestral", "lcm"), default="euler")
    render.add_argument("--schedule", choices=("karras", "exponential", "align_your_steps", "uniform"), default="karras")
    render.add_argument("--guidance", type=float, nargs=2, metavar=("MIN", "MAX"), default=(1.0, 3.0))
    render.add_argument("--guidance-mode", choices=("linear", "triangular", "constant"), default="linear")
    render.add_argument("--fps", type=int, default=6)
    render.add_argument("--motion-bucket", type=int, default=127)
    render.add_argument("--augmentation", type=float, default=0.02)
    render.add_argument("--augmentation-seed", type=int, default=0)
    render.add_argument("--seed", type=int, default=0)
    render.add_argument("--precision", choices=("auto", "fp32", "fp16", "bf16"), default="auto")
    render.add_argument(
        "--budget",
        type=_budget,
        default=None,
        help="device memory to stay within, such as 400MiB or 4GiB, or min or max; what is free on a GPU if not given. Says what is predicted and what was measured.",
    )
    render.add_argument("--device", default=None, help="a torch device such as cpu, cuda:0 or mps; the best there is if not given")
    render.add_argument("--save-latents", type=Path, metavar="FILE.safetensors", default=None, help="also write the latents: `samples` [T,4,h,w] as in ComfyUI's LATENT")
    render.set_defaults(run=_render)
    return parser


def _inspect(options: argparse.Namespace) -> int:
    from .checkpoints import inspect

    report = inspect(options.file)
    if options.json:
        print(json.dumps(asdict(report), indent=2))
    else:
        print(f"{report.file}: {report.family or 'unknown'}")
        for name, value in (("version", report.version), ("layout", report.layout), ("precision", report.precision)):
            if value is not None:
                print(f"  {name:<14}{value}")
        for component, count in report.parameters.items():
            print(f"  {component:<14}{count:,} parameters")
    if report.problems:
        raise LeanVideoError(" ".join(report.problems))
    return 0


def _budget(text: str) -> Budget:
    """A budget such as 400MiB, 4GiB, min or max, or 0 for what is free."""
    if text == "min" or text == "max":
        return text
    if text == "0":
        return 0
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]i?)B", text.strip(), re.IGNORECASE)
    if found is None or float(found.group(1)) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no budget: give one such as 400MiB or 4GiB, or min or max")
    unit = found.group(2).lower()
    return float(found.group(1)) * (1024 if unit.endswith("i") else 1000) ** ("kmg".index(unit[0]) + 1)


def _plan(options: argparse.Namespace) -> int:
    from .checkpoints import open_svd
    from .checkpoints.published import PUBLISHED, published_parts
    from .models import svd
    from .models.planning import MIB

    if options.checkpoint in PUBLISHED:
        precision: svd.Precision = "fp16" if options.precision == "auto" else options.precision
        model = svd.SVDModel(Path(options.checkpoint), options.checkpoint, "single file", precision, published_parts())
    else:
        model = open_svd(Path(options.checkpoint), options.precision, device_type="cuda")
    width, height = svd.round_size(model, options.width, options.height)
    plan = _planned(model, options.frames, width, height, options.budget, _gpu())
    if options.json:
        size = {"frames": options.frames, "width": width, "height": height, "precision": model.precision}
        chosen = {key: value for key, value in asdict(plan).items() if key in ("encode_on_host", "sample", "decode")}
        step = {"tflop": round(plan.step.work / 1e12, 3), "moved_mib": round(plan.step.moved / MIB, 1), "seconds": plan.step.seconds}
        peaks = {phase: round(peak / MIB, 1) for phase, peak in plan.peak.items()}
        print(json.dumps({"plan": {**size, **chosen}, "peak_mib": peaks, "step": step}, indent=2))
    else:
        print(f"{options.checkpoint}, {options.frames} frames of {width}x{height}, {model.precision}")
        print("\n".join(f"  {line}" for line in plan.describe()))
    return 0


def _planned(model: SVDModel, frames: int, width: int, height: int, budget: Budget, device: torch.device | None) -> Plan:
    """For a device that is here, or for any GPU. What is measured for it is kept in the user's cache folder."""
    import platformdirs

    from .models import planning, svd
    from .vram.device import device_profile
    from .vram.store import Store

    store = Store(platformdirs.user_cache_path("lean_video", appauthor=False) / "planning.json")
    profile = None if device is None else device_profile(device, svd.dtype_of(model.precision), store)
    return planning.plan_clip(model.parts, model.precision, frames=frames, width=width, height=height, budget=budget, device=device, store=store, profile=profile)


def _render(options: argparse.Namespace) -> int:
    from .media import combine

    preset = _preset(options.out)
    _check_render(options)
    image = _read_image(options.image)

    from .checkpoints import open_svd
    from .lean.transfer import transfer_to
    from .models import render, svd
    from .models.planning import MIB
    from .vram.meter import Measured, measured

    device = _device(options.device)
    model = open_svd(options.checkpoint, options.precision, device_type=device.type)
    svd.check_frames(options.frames)
    size = svd.round_size(model, options.width, options.height)
    if size != (options.width, options.height):
        _say(f"Size rounded from {options.width}x{options.height} to {size[0]}x{size[1]}: this network takes multiples of {model.size_step}.")

    budget: Budget | None = options.budget
    if budget is None and device.type == "cuda":
        budget = 0
    plan = None if budget is None else _planned(model, options.frames, *size, budget, device)
    for line in plan.describe() if plan else ():
        _say(line)

    def watch() -> AbstractContextManager[Measured]:
        return nullcontext(Measured(transfer_to(device))) if plan is None else measured(device)

    with watch() as encoding:
        conditioning = render.condition(
            model,
            image,
            *size,
            device=device,
            resize=options.resize,
            fps=options.fps,
            motion_bucket=options.motion_bucket,
            augmentation=options.augmentation,
            augmentation_seed=options.augmentation_seed,
            transfer=encoding.transfer,
            on_host=plan is not None and plan.encode_on_host,
            progress=_Bar("encode").update,
            say=_say,
        )
    for warning in svd.warnings(conditioning):
        _say(warning)
    bar = _Bar("sample")
    bar.update(0, options.steps)
    with watch() as sampling:
        latents = render.sample_clip(
            model,
            conditioning,
            frames=options.frames,
            steps=options.steps,
            device=device,
            solver=options.solver,
            schedule=options.schedule,
            guidance=tuple(options.guidance),
            guidance_mode=options.guidance_mode,
            seed=options.seed,
            transfer=sampling.transfer,
            plan=plan and plan.sample,
            on_step=lambda done, total, x0: bar.update(done, total),
            say=_say,
        )
    if options.save_latents is not None:
        _save_latents(latents, options.save_latents)
    with watch() as decoding:
        frames = render.decode_clip(model, latents, device=device, transfer=decoding.transfer, plan=plan and plan.decode, progress=_Bar("decode").update, say=_say)
    written = combine(frames, options.out, preset, options.fps, progress=_Bar("write").update)
    for note in written.notes:
        _say(note)
    if plan is not None:
        for phase, held in (("encode", encoding), ("sample", sampling), ("decode", decoding)):
            peak = "not measured here" if held.peak is None else f"measured {held.peak / MIB:6.1f} MiB"
            _say(f"{phase:<7} predicted {plan.peak[phase] / MIB:6.1f} MiB, {peak}")
    print(written.path)
    return 0


def _preset(out: Path) -> str:
    from .media import PRESETS

    if not out.suffix:
        return "png sequence"
    for preset in PRESETS.values():
        if preset.extension == out.suffix.lower():
            return preset.name
    known = ", ".join(sorted({preset.extension for preset in PRESETS.values() if preset.extension}))
    raise LeanVideoError(f"{out.name} has an ending that no format here has: use {known}, or a folder name for PNGs.")


def _check_render(options: argparse.Namespace) -> None:
    """What can be refused before anything is loaded."""
    from .models.svd import check_clip, check_steps

    check_steps(options.steps)
    check_clip(options.frames, options.width, options.height)
    if not 1 <= options.fps <= 120:
        raise LeanVideoError(f"{options.fps} fps cannot be asked for: choose 1 to 120.")
    if not 0 <= options.motion_bucket <= 1023:
        raise LeanVideoError(f"The motion bucket {options.motion_bucket} is out of range: choose 0 to 1023.")
    if not 0 <= options.augmentation <= 10:
        raise LeanVideoError(f"The augmentation {options.augmentation} is out of range: choose 0 to 10.")
    if not all(0 <= scale <= 100 for scale in options.guidance):
        raise LeanVideoError("The guidance {} {} is out of range: choose 0 to 100.".format(*options.guidance))
    for name, seed in (("seed", options.seed), ("augmentation seed", options.augmentation_seed)):
        if not 0 <= seed < 2**64:
            raise LeanVideoError(f"The {name} {seed} is out of range: choose 0 to {2**64 - 1}.")
    if options.out.is_dir() and (options.out.suffix or any(options.out.iterdir())):
        raise LeanVideoError(f"The folder {options.out} is there already: choose a new name.")
    for target in (options.out, options.save_latents):
        if target is not None and not target.absolute().parent.is_dir():
            raise LeanVideoError(f"The folder {target.parent} does not exist: make it first.")


def _read_image(path: Path) -> Tensor:
    """[H,W,3 or 4], float32 0..1, turned as its EXIF says."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            pixels = np.asarray(image.convert("RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB"))
    except FileNotFoundError:
        raise LeanVideoError(f"There is no image {path}: check the name.") from None
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError, SyntaxError, ValueError):
        raise LeanVideoError(f"{path.name} is not an image that can be read: use a PNG, JPEG or WebP file.") from None
    return torch.from_numpy(pixels.copy()).float() / 255


def _gpu() -> torch.device | None:
    import torch

    return torch.device("cuda") if torch.cuda.is_available() else None


def _device(name: str | None) -> torch.device:
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise LeanVideoError(f"The device {name} cannot be used here: leave --device out, or name another.") from None
    return device


def _save_latents(latents_T4hw: Tensor, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.part")
    try:
        save_file({"samples": latents_T4hw.contiguous()}, temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise LeanVideoError(f"{path} cannot be written ({error}): free space or choose another place.") from None
    finally:
        temporary.unlink(missing_ok=True)


def _say(text: str) -> None:
    print(f"lean_video: {text}", file=sys.stderr)


class _Bar:
    """One line of progress on stderr: rewritten in place on a terminal, once at the end elsewhere."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = time.monotonic()
        self._shown = ""

    def update(self, done: int, total: int) -> None:
        filled = 24 * done // max(1, total)
        line = f"{self._what:<8}[{'#' * filled}{'.' * (24 - filled)}] {done}/{total}"
        if sys.stderr.isatty():
            if line != self._shown:
                print(f"\r{line}", end="" if done < total else f"  {time.monotonic() - self._began:.1f} s\n", file=sys.stderr, flush=True)
        elif done >= total:
            print(f"{line}  {time.monotonic() - self._began:.1f} s", file=sys.stderr)
        self._shown = line
