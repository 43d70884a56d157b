"""Stable Video Diffusion: load, condition, sample, decode, encode."""

from __future__ import annotations

from typing import Any

import torch

from ..lean_video.checkpoints import demo, hub, open_svd
from ..lean_video.checkpoints.diffusers_folder import is_diffusers_folder
from ..lean_video.checkpoints.open import PRECISIONS, svd_parts
from ..lean_video.errors import LeanVideoError
from ..lean_video.media.resize import RESIZE_MODES
from ..lean_video.models import render, svd
from ..lean_video.sampling import GUIDANCE_MODES, SCHEDULES, SOLVERS
from . import host
from .inputs import check_connected
from .vram import BUDGET_INPUT, PLAN_INPUT, decode_plan, encode_on_host, sampling

CATEGORY = "Lean Video"
MODEL, CONDITIONING = "SVD_MODEL", "SVD_CONDITIONING"
_DIFFUSERS = " (diffusers)"
_FIRST_IMAGE, _EACH_IMAGE = "first image", "one clip per image"
_MAX_SEED = 0xFFFFFFFFFFFFFFFF


def _with_notes(node_id: str | None, notes: list[str], *result: Any) -> dict[str, Any]:
    for text in notes:
        host.note(node_id, text)
    return ({"ui": {"text": notes}} if notes else {}) | {"result": result}


_MODEL_INPUT = (MODEL, {"tooltip": "From the SVD Loader."})
_LOADER, _LATENTS = "an SVD Loader", "a node that gives latents"


class SVDLoader:
    DESCRIPTION = (
        "Opens a Stable Video Diffusion checkpoint. Nothing but its header is read until the model is used. demo is a small model that comes with the pack. "
        "A name that ends in (download) is fetched from Hugging Face into the checkpoints folder when the graph runs."
    )
    CATEGORY = CATEGORY
    FUNCTION = "run"
    RETURN_TYPES = (MODEL,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The checkpoint, for the other Lean Video nodes.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        files = [name for name in host.model_names("checkpoints") if name.lower().endswith(".safetensors")]
        folders = [name + _DIFFUSERS for name in _diffusers_folders()]
        return {
            "required": {
                "checkpoint": (
                    [*files, *folders, demo.NAME, *hub.choices(files)],
                    {
                        "tooltip": "An SVD checkpoint: a single file from the checkpoints folder or a folder in diffusers. demo is here already, for clips of 192x128. (download) fetches one that you do not have yet, about 9.6 GB for a video checkpoint."
                    },
                ),
                "precision": (
                    list(PRECISIONS),
                    {"default": "auto", "tooltip": "auto is half precision on a GPU and fp32 on a CPU. fp16 and bf16 halve the memory; fp32 is the reference."},
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, checkpoint: str | None = None) -> bool | str:
        """True, or what is wrong with the chosen file, from its header."""
        try:
            path = _checkpoint_path(checkpoint) if checkpoint is not None else None
            if path is not None:
                svd_parts(path)
        except LeanVideoError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, checkpoint: str, precision: str) -> str:
        try:
            path = _checkpoint_path(checkpoint)
            return "" if path is None else str(path.stat().st_mtime_ns)
        except (LeanVideoError, OSError):
            return ""

    def run(self, checkpoint: str, precision: str) -> tuple[svd.SVDModel]:
        path = _checkpoint_path(checkpoint)
        if path is None:
            known = hub.parse_choice(checkpoint)
            assert known is not None
            path = hub.download(known, host.model_folders("checkpoints")[0], progress=host.progress())
        return (open_svd(path, precision, device_type=host.device().type),)


def open_checkpoint(choice: object, precision: Any, device_type: str) -> svd.SVDModel:
    """The model of a choice of the list, from its header, for a device of that type. Raises LeanVideoError, also where it would have to be downloaded first."""
    path = _checkpoint_path(choice)
    if path is None:
        raise LeanVideoError("The checkpoint is not here yet: it is fetched when the graph runs.")
    return open_svd(path, precision, device_type=device_type)


def _diffusers_folders() -> dict[str, Any]:
    """Name → path of the diffusers pipelines that lie directly in ComfyUI's diffusers folders."""
    found: dict[str, Any] = {}
    for root in host.model_folders("diffusers"):
        if root.is_dir():
            found |= {folder.name: folder for folder in sorted(root.iterdir()) if is_diffusers_folder(folder)}
    return found


def _checkpoint_path(choice: object) -> Any:
    """Path of a choice of the list, or None when it has to be downloaded first. Raises LeanVideoError for a name that is not in the list."""
    if not isinstance(choice, str):  # ComfyUI leaves the list to VALIDATE_INPUTS, and a graph written by hand may hold anything
        raise LeanVideoError(f"The checkpoint is {choice!r}, which is no name: give the name of one from the list.")
    if choice.endswith(_DIFFUSERS):
        path = _diffusers_folders().get(choice.removesuffix(_DIFFUSERS))
        if path is None:
            raise LeanVideoError(f"There is no diffusers folder named {choice.removesuffix(_DIFFUSERS)}: refresh the list and choose again.")
        return path
    if choice == demo.NAME:
        return demo.FILE
    names = host.model_names("checkpoints")
    known = hub.parse_choice(choice)
    if known is not None:
        choice = next((name for name in names if name.replace("\\", "/").rpartition("/")[2] == known.filename), "")
        if not choice:
            return None
    if choice not in names:
        raise LeanVideoError(f"There is no checkpoint named {choice}: refresh the list and choose again.")
    return host.model_path("checkpoints", choice)


class SVDConditioning:
    DESCRIPTION = "What a clip is made from: the image as the network sees it, and how much should move. CLIP sees the whole image, whatever its shape."
    CATEGORY = CATEGORY
    FUNCTION = "run"
    RETURN_TYPES = (CONDITIONING,)
    RETURN_NAMES = ("conditioning",)
    OUTPUT_IS_LIST = (True,)
    OUTPUT_TOOLTIPS = ("One conditioning for each clip.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": _MODEL_INPUT,
                "image": ("IMAGE", {"tooltip": "The first frame of the clip. Any size; transparency goes on black."}),
                "width": (
                    "INT",
                    {"default": 1024, "min": 64, "max": svd.MAX_SIDE, "step": 8, "tooltip": "Width of the clip in pixels, rounded to what the network can take (multiples of 64)."},
                ),
                "height": (
                    "INT",
                    {"default": 576, "min": 64, "max": svd.MAX_SIDE, "step": 8, "tooltip": "Height of the clip in pixels, rounded to what the network can take (multiples of 64)."},
                ),
                "resize": (
                    list(RESIZE_MODES),
                    {"default": "crop", "tooltip": "How the image meets that size: crop fills it and cuts the rest, pad adds black bars, stretch bends it."},
                ),
                "batch": (
                    [_FIRST_IMAGE, _EACH_IMAGE],
                    {"default": _FIRST_IMAGE, "tooltip": "With several images: one clip from the first, or a clip from each. The nodes that follow then run once for each clip."},
                ),
                "fps": ("INT", {"default": 6, "min": 1, "max": 120, "tooltip": "Frames a second that the motion is meant for. The network was trained on 6 to 31."}),
                "motion_bucket": (
                    "INT",
                    {"default": 127, "min": 0, "max": 1023, "tooltip": "How much moves: 1 is almost still, 127 usual, 255 as much as the network was trained on."},
                ),
                "augmentation": (
                    "FLOAT",
                    {
                        "default": 0.02,
                        "min": 0.0,
                        "max": 10.0,
                        "step": 0.01,
                        "tooltip": "Noise added to the image: more lets the clip leave it further behind. The strength is exactly as written.",
                    },
                ),
                "augmentation_seed": ("INT", {"default": 0, "min": 0, "max": _MAX_SEED, "tooltip": "Seed of that noise: the same seed gives the same clip."}),
            },
            "optional": {"plan": PLAN_INPUT},
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, width: int | None = None, height: int | None = None) -> bool | str:
        for name, side in (("width", width), ("height", height)):
            if side is not None and not 64 <= side <= svd.MAX_SIDE:
                return f"The {name} is {side}: choose 64 to {svd.MAX_SIDE} pixels."
        return True

    def run(
        self,
        model: svd.SVDModel,
        image: Any,
        width: int,
        height: int,
        resize: str,
        batch: str,
        fps: int,
        motion_bucket: int,
        augmentation: float,
        augmentation_seed: int,
        plan: object = None,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        check_connected(model=(model, svd.SVDModel, _LOADER), image=(image, torch.Tensor, "a node that gives images"))
        if len(image) == 0:
            raise LeanVideoError("The image batch is empty: connect at least one image.")
        images = image[:1] if batch == _FIRST_IMAGE else image
        size = svd.round_size(model, width, height)
        on_host = encode_on_host(model, *size, plan)
        device, progress = host.device(), host.progress()
        clips = [
            render.condition(
                model,
                picture,
                *size,
                device=device,
                resize=resize,
                fps=fps,
                motion_bucket=motion_bucket,
                augmentation=augmentation,
                augmentation_seed=augmentation_seed,
                on_host=on_host,
                say=lambda text: host.note(unique_id, text),
                progress=lambda done, total, i=i: progress(i * total + done, len(images) * total),
            )
            for i, picture in enumerate(images)
        ]
        notes: list[str] = []
        if size != (width, height):
            notes.append(f"The size was rounded from {width}x{height} to {size[0]}x{size[1]}: this network takes multiples of {model.size_step}.")
        if demo.is_demo(model.path) and (unlikely := demo.unlikely(*size)):
            notes.append(unlikely)
        notes += svd.warnings(clips[0])
        return _with_notes(unique_id, notes, clips)


class TemporalSampler:
    DESCRIPTION = "Makes the clip: from noise, or from start latents when some are connected. The same seed gives the same clip."
    CATEGORY = CATEGORY
    FUNCTION = "run"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latents",)
    OUTPUT_TOOLTIPS = ("The clip as latents: for Temporal Decode, or ComfyUI's own VAE Decode.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        scale = {"min": 0.0, "max": 100.0, "step": 0.1}
        return {
            "required": {
                "model": _MODEL_INPUT,
                "conditioning": (CONDITIONING, {"tooltip": "From SVD Conditioning."}),
                "frames": (
                    "INT",
                    {
                        "default": 25,
                        "min": 1,
                        "max": svd.MAX_FRAMES,
                        "tooltip": "Length of the clip. svd was trained on 14 frames, svd_xt on 25; with start latents, as many as they have.",
                    },
                ),
                "steps": (
                    "INT",
                    {"default": 25, "min": 1, "max": svd.MAX_STEPS, "tooltip": "Steps from noise to clip: 20 to 30 usually, 10 with align_your_steps, 4 to 8 with lcm."},
                ),
                "solver": (
                    list(SOLVERS),
                    {
                        "default": "euler",
                        "tooltip": "euler is the reference; heun is finer and takes twice as long; dpmpp_2m converges faster; lcm is for distilled checkpoints only.",
                    },
                ),
                "schedule": (list(SCHEDULES), {"default": "karras", "tooltip": "How noise is taken away: karras is the reference, align_your_steps suits few steps."}),
                "guidance_min": ("FLOAT", {"default": 1.0, **scale, "tooltip": "How strongly the first frame is held to the image."}),
                "guidance_max": (
                    "FLOAT",
                    {
                        "default": 3.0,
                        **scale,
                        "tooltip": "How strongly the last frame is (linear), the middle one (triangular) or every one (constant). svd was published with 2.5, svd_xt with 1.5 to 3.",
                    },
                ),
                "guidance_mode": (list(GUIDANCE_MODES), {"default": "linear", "tooltip": "How guidance runs over the frames. With 1 everywhere, half the work is saved."}),
                "seed": ("INT", {"default": 0, "min": 0, "max": _MAX_SEED, "control_after_generate": True, "tooltip": "Seed of all randomness: the same on every device."}),
            },
            "optional": {
                "latents": ("LATENT", {"tooltip": "A start clip (video to video), from Temporal Encode or another sampler."}),
                "denoise": (
                    "FLOAT",
                    {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": "With start latents: 0 leaves them as they are, 1 keeps almost nothing of them."},
                ),
                "plan": PLAN_INPUT,
                "budget_mib": BUDGET_INPUT,
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, frames: int | None = None, steps: int | None = None) -> bool | str:
        try:
            if frames is not None:
                svd.check_frames(frames)
            if steps is not None:
                svd.check_steps(steps)
        except LeanVideoError as error:
            return str(error)
        return True

    def run(
        self,
        model: svd.SVDModel,
        conditioning: svd.Conditioning,
        frames: int,
        steps: int,
        solver: str,
        schedule: str,
        guidance_min: float,
        guidance_max: float,
        guidance_mode: str,
        seed: int,
        latents: dict[str, Any] | None = None,
        denoise: float = 1.0,
        plan: object = None,
        budget_mib: int = 0,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        check_connected(model=(model, svd.SVDModel, _LOADER), conditioning=(conditioning, svd.Conditioning, "SVD Conditioning"))
        if latents is not None:
            check_connected(latents=(latents, dict, _LATENTS))
        start = None if latents is None else latents["samples"]
        notes: list[str] = []
        if start is not None and len(start) != frames:
            notes.append(f"The start latents have {len(start)} frames, so the clip has {len(start)}, not {frames}.")
            frames = len(start)
        elif start is None and denoise < 1:
            notes.append("Denoise is below 1 but no start latents are connected: the clip is made from noise.")
        progress = host.sampling_progress(unique_id, conditioning.fps)
        height, width = (svd.SPATIAL_FACTOR * side for side in conditioning.latent_size)
        with sampling(model, frames, width, height, budget_mib, plan) as how:
            samples = render.sample_clip(
                model,
                conditioning,
                frames=frames,
                steps=steps,
                device=host.device(),
                solver=solver,
                schedule=schedule,
                guidance=(guidance_min, guidance_max),
                guidance_mode=guidance_mode,
                seed=seed,
                start_T4hw=start,
                strength=denoise,
                transfer=how.transfer,
                plan=how.plan,
                weights=how.weights,
                say=lambda text: host.note(unique_id, text),
                on_step=lambda done, total, x0: progress(done, total, svd.preview(x0)),
                tick=host.throw_if_interrupted,
            )
        return _with_notes(unique_id, notes, {"samples": samples})


class TemporalDecode:
    DESCRIPTION = "Turns latents into frames, mixing time over the whole clip: no seams, and the same frames however much memory is free."
    CATEGORY = CATEGORY
    FUNCTION = "run"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("frames",)
    OUTPUT_TOOLTIPS = ("The frames of the clip.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": _MODEL_INPUT,
                "latents": ("LATENT", {"tooltip": "A clip from the Temporal Sampler, or from ComfyUI's KSampler on an SVD model."}),
            },
            "optional": {"plan": PLAN_INPUT, "budget_mib": BUDGET_INPUT},
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def run(self, model: svd.SVDModel, latents: dict[str, Any], plan: object = None, budget_mib: int = 0, unique_id: str | None = None) -> tuple[Any]:
        check_connected(model=(model, svd.SVDModel, _LOADER), latents=(latents, dict, _LATENTS))
        samples = latents["samples"]
        chosen = decode_plan(model, *svd.check_latents(samples), budget_mib, plan)
        return (render.decode_clip(model, samples, device=host.device(), plan=chosen, progress=host.progress(), say=lambda text: host.note(unique_id, text)),)


class TemporalEncode:
    DESCRIPTION = "Turns frames into latents: the start clip of video to video. Frames are resized to the nearest size the network takes."
    CATEGORY = CATEGORY
    FUNCTION = "run"
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latents",)
    OUTPUT_TOOLTIPS = ("The clip as latents, for the Temporal Sampler.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": _MODEL_INPUT,
                "images": ("IMAGE", {"tooltip": "The frames of the clip, in order."}),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def run(self, model: svd.SVDModel, images: Any, unique_id: str | None = None) -> dict[str, Any]:
        check_connected(model=(model, svd.SVDModel, _LOADER), images=(images, torch.Tensor, "a node that gives images"))
        if len(images) == 0:
            raise LeanVideoError("There are no frames to encode: connect at least one image.")
        given = (images.shape[2], images.shape[1])
        size = svd.round_size(model, *given)
        notes = [] if size == given else [f"The frames were resized from {given[0]}x{given[1]} to {size[0]}x{size[1]}: this network takes multiples of {model.size_step}."]
        on_host = encode_on_host(model, *size, None)
        samples = render.encode_clip(model, images, device=host.device(), on_host=on_host, progress=host.progress(), say=lambda text: host.note(unique_id, text))
        return _with_notes(unique_id, notes, {"samples": samples})


NODE_CLASS_MAPPINGS = {
    "LeanVideoSVDLoader": SVDLoader,
    "LeanVideoSVDConditioning": SVDConditioning,
    "LeanVideoTemporalSampler": TemporalSampler,
    "LeanVideoTemporalDecode": TemporalDecode,
    "LeanVideoTemporalEncode": TemporalEncode,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LeanVideoSVDLoader": "SVD Loader",
    "LeanVideoSVDConditioning": "SVD Conditioning",
    "LeanVideoTemporalSampler": "Temporal Sampler",
    "LeanVideoTemporalDecode": "Temporal Decode",
    "LeanVideoTemporalEncode": "Temporal Encode",
}
