"""`inspect`, `plan` and `render`: Stable Video Diffusion."""

from __future__ import annotations

import argparse
import json
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import demo
from ..errors import LeanVideoError
from .terminal import AddParser, Bar, device_named, gpu, preset_for, read_image, say

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..models.planning import Budget, Plan
    from ..models.svd import SVDModel
    from ..vram.meter import Measured

# What a clip is made with where nothing is asked for, by checkpoint.
_USUAL: dict[str, Any] = {"frames": 25, "width": 1024, "height": 576, "motion_bucket": 127, "steps": 25, "solver": "euler", "schedule": "karras", "guidance": (1.0, 3.0)}
_DEMO: dict[str, Any] = {
    "frames": demo.FRAMES,
    "width": demo.SIZES[0][0],
    "height": demo.SIZES[0][1],
    "motion_bucket": demo.MOTION_BUCKET,
    "steps": demo.STEPS,
    "solver": demo.SOLVER,
    "schedule": demo.SCHEDULE,
    "guidance": demo.GUIDANCE,
}


def _help(name: str) -> str:
    usual, demos = (" ".join(map("{:g}".format, values[name])) if isinstance(values[name], tuple) else values[name] for values in (_USUAL, _DEMO))
    return f"{usual} if not given" + (f"; {demos} for the demo model" if demos != usual else "")


def add_commands(add_parser: AddParser) -> None:
    inspect = add_parser("inspect", help="say what a checkpoint is", description="What a checkpoint is, from its header. Exit code 2 when it cannot be used.")
    inspect.add_argument("file", metavar="FILE", help="a .safetensors file or a diffusers folder, or demo")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(run=_inspect)

    plan = add_parser(
        "plan",
        help="say what a clip will take",
        description="What a clip will take, phase by phase, and the fastest way to make it within a budget. No weights are read and no GPU is needed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    plan.add_argument("checkpoint", metavar="CHECKPOINT", help="an SVD .safetensors file, a diffusers folder, demo, or svd or svd_xt for the published networks without a file")
    _add_clip(plan)
    plan.add_argument("--budget", type=_budget, default="max", help="device memory, such as 400MiB or 4GiB; max for the fastest plan, min for the smallest")
    plan.add_argument("--precision", choices=("auto", "fp32", "fp16", "bf16"), default="auto", help="auto is what a GPU would use")
    plan.add_argument("--json", action="store_true", help="print JSON; peak_mib is in MiB, weights and everything included")
    plan.set_defaults(run=_plan)

    render = add_parser("render", help="make a clip from an image", description="Makes a clip from an image.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    render.add_argument("checkpoint", metavar="CHECKPOINT", help="an SVD .safetensors file or a diffusers folder, or demo: the small model that comes with the pack")
    render.add_argument("image", type=Path, metavar="IMAGE", help="the first frame")
    render.add_argument("out", type=Path, metavar="OUT", help="a video file (.mp4, .webm, .mov, .mkv, .gif, .webp) or a folder for PNGs")
    _add_clip(render)
    render.add_argument("--resize", choices=("crop", "pad", "stretch"), default="crop")
    render.add_argument("--steps", type=int, default=argparse.SUPPRESS, help=_help("steps"))
    render.add_argument("--solver", choices=("euler", "heun", "dpmpp_2m", "euler_ancestral", "lcm"), default=argparse.SUPPRESS, help=_help("solver"))
    render.add_argument(
        "--schedule",
        choices=("karras", "exponential", "align_your_steps", "uniform"),
        default=argparse.SUPPRESS,
        help=_help("schedule"),
    )
    render.add_argument(
        "--guidance",
        type=float,
        nargs=2,
        metavar=("MIN", "MAX"),
        default=argparse.SUPPRESS,
        help=_help("guidance"),
    )
    render.add_argument("--guidance-mode", choices=("linear", "triangular", "constant"), default="linear")
    render.add_argument("--fps", type=int, default=6)
    render.add_argument("--motion-bucket", type=int, default=argparse.SUPPRESS, help=_help("motion_bucket"))
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


def _add_clip(parser: argparse.ArgumentParser) -> None:
    for name in ("frames", "width", "height"):
        parser.add_argument(f"--{name}", type=int, default=argparse.SUPPRESS, help=_help(name))


def _complete(options: argparse.Namespace) -> None:
    """What was not asked for is as suits the checkpoint."""
    for name, value in (_DEMO if options.checkpoint == demo.NAME else _USUAL).items():
        if not hasattr(options, name):
            setattr(options, name, value)


def _inspect(options: argparse.Namespace) -> int:
    from ..checkpoints import inspect

    report = inspect(demo.checkpoint(options.file))
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
    _complete(options)
    from ..checkpoints import open_svd
    from ..checkpoints.published import PUBLISHED, published_parts
    from ..models import svd
    from ..models.planning import MIB

    if options.checkpoint in PUBLISHED:
        precision: svd.Precision = "fp16" if options.precision == "auto" else options.precision
        model = svd.SVDModel(Path(options.checkpoint), options.checkpoint, "single file", precision, published_parts())
    else:
        model = open_svd(demo.checkpoint(options.checkpoint), options.precision, device_type="cuda")
    frames = options.frames
    width, height = svd.round_size(model, options.width, options.height)
    plan = _planned(model, frames, width, height, options.budget, gpu())
    if options.json:
        size = {"frames": frames, "width": width, "height": height, "precision": model.precision}
        chosen = {key: value for key, value in asdict(plan).items() if key in ("encode_on_host", "sample", "decode")}
        step = {"tflop": round(plan.step.work / 1e12, 3), "moved_mib": round(plan.step.moved / MIB, 1), "seconds": plan.step.seconds}
        peaks = {phase: round(peak / MIB, 1) for phase, peak in plan.peak.items()}
        print(json.dumps({"plan": {**size, **chosen}, "peak_mib": peaks, "step": step}, indent=2))
    else:
        print(f"{options.checkpoint}, {frames} frames of {width}x{height}, {model.precision}")
        print("\n".join(f"  {line}" for line in plan.describe()))
    return 0


def _planned(model: SVDModel, frames: int, width: int, height: int, budget: Budget, device: torch.device | None) -> Plan:
    """For a device that is here, or for any GPU. What is measured for it is kept in the user's cache folder."""
    import platformdirs

    from ..models import planning, svd
    from ..vram.device import device_profile
    from ..vram.store import Store

    store = Store(platformdirs.user_cache_path("lean_video", appauthor=False) / "planning.json")
    profile = None if device is None else device_profile(device, svd.dtype_of(model.precision), store)
    return planning.plan_clip(model.parts, model.precision, frames=frames, width=width, height=height, budget=budget, device=device, store=store, profile=profile)


def _render(options: argparse.Namespace) -> int:
    _complete(options)
    from ..media import combine

    preset = preset_for(options.out)
    frames, asked = options.frames, [options.width, options.height]
    _check_render(options)
    image = read_image(options.image)

    from ..checkpoints import open_svd
    from ..lean.transfer import transfer_to
    from ..models import render, svd
    from ..models.planning import MIB
    from ..vram.meter import Measured, measured

    device = device_named(options.device)
    model = open_svd(demo.checkpoint(options.checkpoint), options.precision, device_type=device.type)
    svd.check_frames(frames)
    size = svd.round_size(model, *asked)
    if list(size) != asked:
        say(f"Size rounded from {asked[0]}x{asked[1]} to {size[0]}x{size[1]}: this network takes multiples of {model.size_step}.")

    budget: Budget | None = options.budget
    if budget is None and device.type == "cuda":
        budget = 0
    if demo.is_demo(model.path) and (unlikely := demo.unlikely(*size)):
        say(unlikely)
    plan = None if budget is None else _planned(model, frames, *size, budget, device)
    for line in plan.describe() if plan else ():
        say(line)

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
            progress=Bar("encode").update,
            say=say,
        )
    for warning in svd.warnings(conditioning):
        say(warning)
    bar = Bar("sample")
    bar.update(0, options.steps)
    with watch() as sampling:
        latents = render.sample_clip(
            model,
            conditioning,
            frames=frames,
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
            say=say,
        )
    if options.save_latents is not None:
        _save_latents(latents, options.save_latents)
    with watch() as decoding:
        frames_THWC = render.decode_clip(model, latents, device=device, transfer=decoding.transfer, plan=plan and plan.decode, progress=Bar("decode").update, say=say)
    written = combine(frames_THWC, options.out, preset, options.fps, progress=Bar("write").update)
    for note in written.notes:
        say(note)
    if plan is not None:
        for phase, held in (("encode", encoding), ("sample", sampling), ("decode", decoding)):
            peak = "not measured here" if held.peak is None else f"measured {held.peak / MIB:6.1f} MiB"
            say(f"{phase:<7} predicted {plan.peak[phase] / MIB:6.1f} MiB, {peak}")
    print(written.path)
    return 0


def _check_render(options: argparse.Namespace) -> None:
    """What can be refused before anything is loaded."""
    from ..models.svd import check_clip, check_steps

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
