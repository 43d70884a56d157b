"""Nodes for tests alone: inputs that no file can give, and a look at what comes out."""

from __future__ import annotations

import gc
import hashlib
import math
import time
import uuid
from pathlib import Path
from typing import Any

import folder_paths  # pyright: ignore[reportMissingImports]
import numpy as np
import torch
from aiohttp import web
from server import PromptServer  # pyright: ignore[reportMissingImports]


def _photo(frames: int, height: int, width: int) -> torch.Tensor:
    """A smooth coloured scene that drifts from frame to frame."""
    y = torch.linspace(0, 1, height)[:, None]
    x = torch.linspace(0, 1, width)[None, :]
    shots = []
    for frame in range(frames):
        shift = frame / 16
        waves = torch.sin(6 * (x + shift)) * torch.cos(4 * y)
        shots.append(torch.stack([(x + y) / 2, (1 + waves) / 2, (1 - y).expand(height, width)], dim=-1))
    return torch.stack(shots)


class ProbeImage:
    """An IMAGE of a given kind and size."""

    CATEGORY = "Lean Video/probe"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        size = ("INT", {"default": 64, "min": 0, "max": 8192})
        return {
            "required": {
                "kind": (["photo", "noise", "nan", "infinite", "empty", "rgba"],),
                "frames": ("INT", {"default": 1, "min": 0, "max": 100000}),
                "width": size,
                "height": size,
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**32}),
            }
        }

    def make(self, kind: str, frames: int, width: int, height: int, seed: int) -> tuple[torch.Tensor]:
        if kind == "empty":
            return (torch.zeros(0, height, width, 3),)
        if kind == "noise":
            generator = torch.Generator().manual_seed(seed)
            return (torch.rand(frames, height, width, 3, generator=generator),)
        image = _photo(frames, height, width)
        if kind == "nan":
            image[-1, height // 2, width // 2, 0] = float("nan")
        if kind == "infinite":
            image[-1, height // 2, width // 2, 0] = float("inf")
        if kind == "rgba":
            alpha = torch.linspace(0, 1, width).expand(frames, height, width)[..., None]
            image = torch.cat([image, alpha], dim=-1)
        return (image,)


class ProbeAudio:
    """An AUDIO of a given kind: {"waveform": [1, 2, samples], "sample_rate"}."""

    CATEGORY = "Lean Video/probe"
    RETURN_TYPES = ("AUDIO",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "kind": (["sine", "silent", "empty"],),
                "seconds": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 3600.0, "step": 0.01}),
                "sample_rate": ("INT", {"default": 44100, "min": 1, "max": 192000}),
            }
        }

    def make(self, kind: str, seconds: float, sample_rate: int) -> tuple[dict[str, Any]]:
        samples = 0 if kind == "empty" else round(seconds * sample_rate)
        wave = torch.sin(2 * math.pi * 440 * torch.arange(samples) / sample_rate) / 2
        if kind == "silent":
            wave = torch.zeros(samples)
        return ({"waveform": wave.expand(1, 2, samples).contiguous(), "sample_rate": sample_rate},)


class ProbeLatent:
    """A LATENT of any number of channels, zero or NaN."""

    CATEGORY = "Lean Video/probe"
    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"channels": ("INT", {"default": 4, "min": 1, "max": 64}), "frames": ("INT", {"default": 4, "min": 0, "max": 64}), "kind": (["zero", "nan"],)}}

    def make(self, channels: int, frames: int, kind: str) -> tuple[dict[str, torch.Tensor]]:
        return ({"samples": torch.full((frames, channels, 8, 16), float("nan") if kind == "nan" else 0.0)},)


class ProbeAllocate:
    """Holds so many MiB of RAM for a while, and gives back what came in."""

    CATEGORY = "Lean Video/probe"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "hold"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE",),
                "mib": ("INT", {"default": 100, "min": 0, "max": 4096}),
                "seconds": ("FLOAT", {"default": 0.3, "min": 0.0, "max": 60.0}),
                "fail": ("BOOLEAN", {"default": False}),
            }
        }

    def hold(self, images: torch.Tensor, mib: int, seconds: float, fail: bool) -> tuple[torch.Tensor]:
        held = torch.ones(mib * 2**20, dtype=torch.uint8)
        time.sleep(seconds)
        if fail:
            raise MemoryError("Allocation on device failed.")
        del held
        return (images,)


class ProbeStats:
    """Shows the shape and values of images or latents, and keeps them as a .npy file."""

    CATEGORY = "Lean Video/probe"
    RETURN_TYPES = ()
    FUNCTION = "look"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}, "optional": {"images": ("IMAGE",), "latents": ("LATENT",)}}

    def look(self, images: torch.Tensor | None = None, latents: dict[str, torch.Tensor] | None = None) -> dict[str, Any]:
        tensor = images if images is not None else (latents or {})["samples"]
        values = tensor.detach().cpu().contiguous().numpy()
        folder = Path(folder_paths.get_temp_directory())
        folder.mkdir(parents=True, exist_ok=True)
        name = f"probe_{uuid.uuid4().hex}.npy"
        np.save(folder / name, values)
        stats = {
            "shape": list(values.shape),
            "dtype": str(values.dtype),
            "min": float(values.min()) if values.size else None,
            "max": float(values.max()) if values.size else None,
            "mean": float(values.mean()) if values.size else None,
            "finite": bool(np.isfinite(values).all()),
            "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
            "file": {"filename": name, "subfolder": "", "type": "temp"},
        }
        return {"ui": {"stats": [stats]}}


@PromptServer.instance.routes.get("/lean_video_probe/live")
async def live(request: web.Request) -> web.Response:
    """How many objects of the class `name` are alive."""
    name = request.query["name"]
    gc.collect()
    count = sum(type(thing).__name__ == name for thing in gc.get_objects())
    return web.json_response({"count": count})


NODE_CLASS_MAPPINGS = {
    "LeanVideoProbeImage": ProbeImage,
    "LeanVideoProbeAudio": ProbeAudio,
    "LeanVideoProbeLatent": ProbeLatent,
    "LeanVideoProbeStats": ProbeStats,
    "LeanVideoProbeAllocate": ProbeAllocate,
}
