#!/usr/bin/env python3
"""What Lean Video adds: to sampling, against diffusers' own pipeline, and to ComfyUI's start-up.

Writes `overhead.md` beside this file. Linux only: peaks are read from /proc.

Sampling. Each side is a process of its own, on the CPU, and all take their steps in turn: one step of one, one step of the next,
so that whatever else the machine does slows them alike. A step is timed from one step callback to the next, and the first step,
which warms up, is left out. The ratio is the median over steps of ours / theirs at the same step. Image encoding and decoding are on neither side.

Start-up. Each ComfyUI found is started with the pack linked in and asked what it printed; then the pack alone is imported, the way ComfyUI does,
in fresh processes that have imported ComfyUI's own modules before.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_suffix(".md")
for folder in (ROOT / "scripts", ROOT):
    sys.path.insert(0, str(folder))

from turns import MIB, Turns, Worker, call, cores, memory, other_load, paired_ratio, say, versions, worker  # noqa: E402

OURS, SAME, FOLDER = "ours", "diffusers, our modules", "diffusers, its loader"
SIDES = (OURS, SAME, FOLDER)
TIME_GOAL, MEMORY_GOAL, IMPORT_GOAL_S = 1.02, 1.0, 0.3
HEAVY = ("torch", "diffusers", "transformers", "kornia", "av", "huggingface_hub")


@dataclass(frozen=True)
class Job:
    """One clip: what is sampled, and how often."""

    size: str
    frames: int
    pixels: int
    steps: int
    repeats: int


# 14 frames are the clip that svd was trained on. In the last the network's weights, not its activations, weigh most.
FULL = (Job("tiny", 14, 256, 12, 3), Job("mid", 14, 256, 6, 3), Job("mid", 6, 128, 10, 3))
QUICK = (Job("tiny", 14, 256, 5, 1), Job("mid", 14, 256, 4, 1), Job("mid", 6, 128, 5, 1))


# Sampling, in the worker process


def take_steps(side: str, checkpoint: Path, job: Job) -> None:
    """Loads a model, says so on stdout, takes one step for each line on stdin and reports each as a line of JSON."""
    import torch
    from safetensors.torch import save_file

    from lean_video.checkpoints import open_svd

    turns = Turns()
    model = open_svd(checkpoint, "fp32")
    # Both sides hold all three components, as a real run does; only the UNet's weights are read.
    vae, encoder = model.vae, model.image_encoder
    if side == FOLDER:
        from diffusers import UNetSpatioTemporalConditionModel

        unet = UNetSpatioTemporalConditionModel.from_pretrained(checkpoint.with_suffix(""), local_files_only=True).eval()
    else:
        unet = model.unet
    latent = job.pixels // 8
    generator = torch.Generator().manual_seed(1)
    embedding = torch.randn(1, 1, unet.config.cross_attention_dim, generator=generator)
    image_latents = torch.randn(1, 4, latent, latent, generator=generator)
    run = _ours(model, embedding, image_latents, job) if side == OURS else _theirs(unet, vae, encoder, embedding, image_latents, job)
    for weights in unet.parameters():
        weights.sum()  # brings memory-mapped pages in, so that the baseline counts them for every side
    gc.collect()
    loaded = memory("VmRSS")

    def on_step(done: int) -> None:
        turns.done()
        if done < job.steps:
            turns.wait()

    turns.answer()
    turns.wait()
    latents = run(on_step)
    turns.answer(loaded=loaded, peak=memory("VmHWM"))
    save_file({"samples": latents}, sys.argv[-1])


def _ours(model: Any, embedding: Any, image_latents: Any, job: Job) -> Callable[[Callable[[int], None]], Any]:
    import torch

    from lean_video.models import render, svd

    conditioning = svd.Conditioning(embedding, image_latents, fps=6, motion_bucket=127, augmentation=0.02)

    def run(on_step: Callable[[int], None]) -> Any:
        latents = render.sample_clip(model, conditioning, frames=job.frames, steps=job.steps, device=torch.device("cpu"), on_step=lambda done, total, x0: on_step(done))
        return latents * model.scaling_factor  # diffusers gives the scale that the network works in

    return run


def _theirs(unet: Any, vae: Any, encoder: Any, embedding: Any, image_latents: Any, job: Job) -> Callable[[Callable[[int], None]], Any]:
    import torch
    from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
    from transformers import CLIPImageProcessor

    class Sampling(StableVideoDiffusionPipeline):
        """The pipeline with its image encoded already; guidance batches the two halves, unconditioned first."""

        def _encode_image(self, *_: Any) -> Any:
            return torch.cat([torch.zeros_like(embedding), embedding])

        def _encode_vae_image(self, *_: Any, **__: Any) -> Any:
            return torch.cat([torch.zeros_like(image_latents), image_latents])

    # The scheduler_config.json of the published SVD folders.
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        timestep_type="continuous",
        steps_offset=1,
        use_karras_sigmas=True,
    )
    pipeline = Sampling(vae=vae, image_encoder=encoder, unet=unet, scheduler=scheduler, feature_extractor=CLIPImageProcessor())
    pipeline.set_progress_bar_config(disable=True)
    latent = job.pixels // 8

    def run(on_step: Callable[[int], None]) -> Any:
        def callback(_: Any, step: int, __: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            on_step(step + 1)
            return kwargs

        return pipeline(
            torch.zeros(1, 3, job.pixels, job.pixels),
            height=job.pixels,
            width=job.pixels,
            num_frames=job.frames,
            num_inference_steps=job.steps,
            min_guidance_scale=1.0,
            max_guidance_scale=3.0,
            fps=6,
            latents=torch.randn(job.frames, 4, latent, latent, generator=torch.Generator().manual_seed(0))[None],
            output_type="latent",
            callback_on_step_end=callback,
        ).frames[0]

    return run


def prepare(size: str, checkpoint: Path) -> None:
    """Writes a checkpoint, and its UNet once more as diffusers keeps it; prints the number of the UNet's parameters."""
    from make_checkpoint import SIZES, write_checkpoint

    from lean_video.checkpoints import open_svd

    write_checkpoint(checkpoint, SIZES[size])
    unet = open_svd(checkpoint, "fp32").unet
    unet.save_pretrained(checkpoint.with_suffix(""))
    print(sum(weights.numel() for weights in unet.parameters()))


# Sampling, in the parent process


@dataclass
class Run:
    """What one process reported: seconds of each step and bytes."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: int = 0
    loaded: int = 0


def measure(job: Job, scratch: Path) -> tuple[int, list[dict[str, Run]], float]:
    """(UNet parameters, the runs of each repeat by side, largest relative difference between the clips of our modules on both sides)."""
    checkpoint = scratch / f"{job.size}.safetensors"
    prepared = call(__file__, "--prepare", job.size, str(checkpoint))
    repeats: list[dict[str, Run]] = []
    difference = 0.0
    for number in range(job.repeats):
        say(f"{job.size}: repeat {number + 1} of {job.repeats}")
        with ExitStack() as stack:
            workers = {side: stack.enter_context(_worker(side, checkpoint, job, scratch / f"{SIDES.index(side)}.safetensors")) for side in SIDES}
            runs = {side: Run() for side in SIDES}
            for process in workers.values():
                process.answer()
            for step in range(job.steps):
                for i in range(len(SIDES)):
                    side = SIDES[(i + step + number) % len(SIDES)]
                    taken = workers[side].step()
                    runs[side].wall.append(taken["wall"])
                    runs[side].cpu.append(taken["cpu"])
            for side, process in workers.items():
                held = process.answer()
                runs[side].peak, runs[side].loaded = held["peak"], held["loaded"]
                process.wait()
        repeats.append(runs)
        difference = max(difference, float(call(__file__, "--compare", str(scratch / "0.safetensors"), str(scratch / "1.safetensors"))))
    return int(prepared), repeats, difference


def _worker(side: str, checkpoint: Path, job: Job, result: Path) -> AbstractContextManager[Worker]:
    return worker(__file__, "--worker", side, str(checkpoint), job.size, *map(str, (job.frames, job.pixels, job.steps)), str(result))


def compare(ours: Path, theirs: Path) -> None:
    from safetensors.torch import load_file

    a, b = load_file(ours)["samples"], load_file(theirs)["samples"]
    print(float((a - b).norm() / b.norm()))


def sampling_table(jobs: tuple[Job, ...], scratch: Path) -> list[str]:
    lines = [
        "| UNet | clip | side | s/step, median (least) | **time ratio** | CPU s/step | ratio | peak RSS, MiB | **RSS ratio** | above the loaded model, MiB | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    notes: list[str] = []
    for job in jobs:
        parameters, repeats, difference = measure(job, scratch)
        clip = f"{job.frames} frames, {job.pixels}x{job.pixels}"
        wall = {side: [s for runs in repeats for s in runs[side].wall[1:]] for side in SIDES}
        cpu = {side: [s for runs in repeats for s in runs[side].cpu[1:]] for side in SIDES}
        peak = {side: statistics.median(runs[side].peak for runs in repeats) for side in SIDES}
        above = {side: statistics.median(runs[side].peak - runs[side].loaded for runs in repeats) for side in SIDES}
        for side in SIDES:
            values = [
                f"{statistics.median(wall[side]):.3f} ({min(wall[side]):.3f})",
                f"{statistics.median(cpu[side]):.3f}",
                f"{peak[side] / MIB:.0f}",
                f"{above[side] / MIB:.0f}",
            ]
            ratios = [""] * 4
            if side != OURS:
                ratios = [
                    f"{ratio:.3f}" for ratio in (paired_ratio(wall[OURS], wall[side]), paired_ratio(cpu[OURS], cpu[side]), peak[OURS] / peak[side], above[OURS] / above[side])
                ]
                say(f"{job.size}, {clip}, ours against {side}: time {ratios[0]}, CPU time {ratios[1]}, RSS {ratios[2]}, above the loaded model {ratios[3]}")
            cells = " | ".join(f"{value} | {ratio}" for value, ratio in zip(values, ratios, strict=True))
            lines.append(f"| {job.size}, {parameters / 1e6:.1f}M | {clip} | {side} | {cells} |")
        count = f"{len(wall[OURS])} timed steps a side in {job.repeats} {'run' if job.repeats == 1 else 'runs'}"
        notes.append(f"{job.size}, {clip}: {count}; with the same modules, our final latents differ from diffusers' by {difference:.1e} (relative L2).")
    return [*lines, "", *(f"- {note}" for note in notes)]


# Start-up


def startup_table(repeats: int, scratch: Path) -> list[str]:
    from comfy_server import PACK, Server
    from get_comfyui import found

    lines = [
        "| ComfyUI | Python | starts in, s | the pack, as ComfyUI prints it, s | **the pack alone, s, median (least, most)** | its CPU time, s | heavy libraries it loads |",
        "|---|---|---|---|---|---|---|",
    ]
    for host in found():
        say(f"ComfyUI {host.version}")
        base = scratch / host.version
        server, begun = Server(host, base, flags=("--cpu",)), time.perf_counter()
        with server:
            whole = time.perf_counter() - begun
            printed = re.findall(rf"(\d+\.\d+) seconds:.*{PACK}", server.log_text())
        program, flags = (base, []) if (base / "main.py").exists() else (host.path, ["--base-directory", str(base)])
        probes = [json.loads(call(__file__, "--import", str(program), str(base / "custom_nodes" / PACK), *flags, python=host.python, cwd=base)) for _ in range(repeats + 1)][1:]
        seconds = [probe["seconds"] for probe in probes]
        heavy = sorted({name for probe in probes for name in probe["heavy"]})
        alone = f"{statistics.median(seconds):.3f} ({min(seconds):.3f}, {max(seconds):.3f})"
        say(f"ComfyUI {host.version}: {alone} s, loads {heavy or 'nothing heavy'}")
        lines.append(
            f"| {host.version} | {probes[0]['python']} | {whole:.1f} | {', '.join(printed)} | {alone} | {statistics.median(probe['cpu'] for probe in probes):.3f} | {', '.join(heavy) or 'none'} |"
        )
    without = json.loads(call(__file__, "--import", "", str(ROOT)))
    lines += ["", f"- Imported without any ComfyUI, the pack loads of {', '.join(HEAVY)}: {', '.join(without['heavy']) or 'none'}."]
    return lines


def import_pack(program: str, pack: Path, flags: list[str]) -> None:
    """Imports the pack as ComfyUI does, after the modules that ComfyUI has by then; prints seconds and what came in with it."""
    if program:
        sys.path[:] = [program, *(entry for entry in sys.path if not Path(entry).is_relative_to(ROOT) or "site-packages" in entry)]
        sys.argv = ["main.py", "--cpu", *flags]
        import comfy.options  # type: ignore[import-not-found]

        comfy.options.enable_args_parsing()
        import nodes  # type: ignore[import-not-found]  # noqa: F401

        if importlib.util.find_spec("comfy_extras.nodes_video"):
            import comfy_extras.nodes_video  # type: ignore[import-not-found]  # noqa: F401
    before = set(sys.modules)
    started = time.perf_counter(), time.process_time()
    spec = importlib.util.spec_from_file_location("lean_video_pack", pack / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    seconds, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    assert module.NODE_CLASS_MAPPINGS
    came = {name.partition(".")[0] for name in set(sys.modules) - before}
    print("\n" + json.dumps({"seconds": seconds, "cpu": cpu, "heavy": sorted(came & set(HEAVY)), "python": platform.python_version()}))


# The file


def document(jobs: tuple[Job, ...], repeats: int, command: str) -> str:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="lean-video-bench-") as name:
        sampling = sampling_table(jobs, Path(name))
        startup = startup_table(repeats, Path(name))
    return "\n".join(
        [
            "# Overhead",
            "",
            f"{date.today().isoformat()}, {cores()}, no GPU used. Python {platform.python_version()}, {versions('torch', 'diffusers', 'transformers')}. Made by `{command}`.",
            other_load(load),
            "",
            "## Sampling against diffusers' StableVideoDiffusionPipeline",
            "",
            f"float32 on the CPU, one thread a process, guidance 1 to 3, Euler, Karras noise levels, random weights. Ratios are ours / theirs: goals time ≤ {TIME_GOAL}, RSS ≤ {MEMORY_GOAL:.1f}.",
            "",
            *sampling,
            "- *diffusers, our modules*: the pipeline is handed the very modules that our loader builds from the checkpoint, weights memory-mapped as in ours.",
            "- *diffusers, its loader*: the pipeline on a UNet that diffusers loads from a folder of the same weights with `from_pretrained`.",
            "- Each side is its own process, and they take their steps in turn, A B C, B C A, so that other load on the machine meets all alike. A step is timed from one step callback to the next without the first, which warms up. The time ratio is the median of the ratios at the same step; the CPU time of the process beside it does not count waiting for a core, so on a busy machine it is the one to read.",
            "- Peak RSS is VmHWM of the process, libraries and weights included; *above the loaded model* is that peak less the RSS once all UNet weights have been read. Encoding and decoding are on neither side.",
            "- diffusers runs each layer on the whole clip and both guidance halves. Ours runs one half after the other, each layer on pieces of the clip that fit the cache, and computes the cross-attention, which has one key, once a run.",
            "",
            "## ComfyUI's start-up",
            "",
            f"Goal: the pack takes ≤ {IMPORT_GOAL_S} s.",
            "",
            *startup,
            f'- *As ComfyUI prints it*: "Import times for custom nodes" of a server started with the pack as its only one. *Alone*: the same import in {repeats} fresh processes, after the modules that ComfyUI has imported by then.',
            f"- Heavy libraries looked for: {', '.join(HEAVY)}; those that ComfyUI has loaded itself are not counted, as they cost the pack nothing (torch always is one).",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="about five minutes: fewer steps and repeats")
    parser.add_argument("--out", type=Path, default=TABLE, help="the file to write")
    arguments = parser.parse_args()
    jobs, repeats = (QUICK, 3) if arguments.quick else (FULL, 5)
    if not sys.platform.startswith("linux"):
        parser.error("peaks are read from /proc: run this on Linux")
    text = document(jobs, repeats, "python bench/overhead.py" + (" --quick" if arguments.quick else ""))
    arguments.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--worker", side, checkpoint, size, frames, pixels, steps, _]:
            take_steps(side, Path(checkpoint), Job(size, int(frames), int(pixels), int(steps), 1))
        case ["--prepare", size, checkpoint]:
            prepare(size, Path(checkpoint))
        case ["--compare", ours, theirs]:
            compare(Path(ours), Path(theirs))
        case ["--import", program, pack, *flags]:
            import_pack(program, Path(pack), flags)
        case _:
            main()
