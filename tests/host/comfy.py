"""The client that host tests use: ComfyUI's API, the probe nodes, and prompts to start from."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from comfy_client import Client, Prompt, Run
from comfy_server import Server
from numpy.typing import NDArray

CHECKPOINT = "small_svd.safetensors"


class Comfy(Client):
    """A client of a test server; knows the probe nodes (see `tests/host/probe`)."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.url)
        self.server = server

    def live(self, class_name: str = "SVDModel") -> int:
        """How many objects of a class are alive in the server process, after a collection."""
        return self.get("/lean_video_probe/live", name=class_name)["count"]

    def stats(self, run: Run, node: str) -> list[dict[str, Any]]:
        """What a LeanVideoProbeStats node saw, once per clip: shape, dtype, min, max, mean,
        finite, sha256, file."""
        return run.outputs[node]["stats"]

    def tensor(self, stats: dict[str, Any]) -> NDArray[Any]:
        """The very values that a LeanVideoProbeStats node saw."""
        return np.load(io.BytesIO(self.view(stats["file"])), allow_pickle=False)


def probe_image(kind: str = "photo", frames: int = 1, width: int = 128, height: int = 64) -> dict[str, Any]:
    """A node that makes an IMAGE: photo, noise, nan, infinite, empty, rgba."""
    inputs = {"kind": kind, "frames": frames, "width": width, "height": height, "seed": 0}
    return {"class_type": "LeanVideoProbeImage", "inputs": inputs}


def probe_audio(kind: str = "sine", seconds: float = 1.0) -> dict[str, Any]:
    """A node that makes an AUDIO: sine, silent, or without samples ("empty")."""
    inputs = {"kind": kind, "seconds": seconds, "sample_rate": 44100}
    return {"class_type": "LeanVideoProbeAudio", "inputs": inputs}


def image_to_video(image: dict[str, Any] | None = None, **changes: Any) -> Prompt:
    """A small image-to-video prompt: "1" image, "2" loader, "3" conditioning, "4" sampler,
    "5" decode, "6" combine (mp4), "7" the frames' statistics.

    `changes` are inputs by name, set on whichever of our nodes has an input of that name.
    """
    prompt: Prompt = {
        "1": image or probe_image(),
        "2": _node("LeanVideoSVDLoader", checkpoint=CHECKPOINT, precision="fp32"),
        "3": _node(
            "LeanVideoSVDConditioning",
            model=["2", 0],
            image=["1", 0],
            width=128,
            height=64,
            resize="crop",
            batch="first image",
            fps=6,
            motion_bucket=127,
            augmentation=0.02,
            augmentation_seed=0,
        ),
        "4": _node(
            "LeanVideoTemporalSampler",
            model=["2", 0],
            conditioning=["3", 0],
            frames=4,
            steps=2,
            solver="euler",
            schedule="karras",
            guidance_min=1.0,
            guidance_max=3.0,
            guidance_mode="linear",
            seed=0,
        ),
        "5": _node("LeanVideoTemporalDecode", model=["2", 0], latents=["4", 0]),
        "6": combine(["5", 0]),
        "7": _node("LeanVideoProbeStats", images=["5", 0]),
    }
    for name, value in changes.items():
        takers = [node for node in prompt.values() if name in node["inputs"]]
        if not takers:
            raise KeyError(f"no node of the prompt has an input {name!r}")
        for node in takers:
            if not isinstance(node["inputs"][name], list):
                node["inputs"][name] = value
    return prompt


def combine(images: list[Any], **changes: Any) -> dict[str, Any]:
    """A Video Combine node with its defaults, writing an mp4."""
    inputs: dict[str, Any] = {
        "images": images,
        "fps": 6.0,
        "format": "h264 (mp4)",
        "filename_prefix": "video/lean_video",
        "quality": 80,
        "pixel_format": "auto",
        "loop_count": 0,
        "ping_pong": False,
    }
    return {"class_type": "LeanVideoCombine", "inputs": {**inputs, **changes}}


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
