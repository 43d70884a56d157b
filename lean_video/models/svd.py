"""Stable Video Diffusion: an image becomes a clip.

Reference: Stability-AI/generative-models ("sgm"), `scripts/sampling/simple_video_sample.py` and `sgm/modules`.
Shape letters: T frames, C channels, H W pixels, h w latent pixels (an eighth).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import LeanVideoError
from .parts import Part

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..lean.transfer import Transfer, Weights
    from ..lean.unet import UNetPlan
    from ..sampling.solvers import Denoiser

Precision = Literal["fp32", "fp16", "bf16"]
Progress = Callable[[int, int], None]

LATENT_CHANNELS = 4
SPATIAL_FACTOR = 8  # of the VAE
MAX_FRAMES = 1024
MAX_SIDE = 4096
MAX_STEPS = 1000
MIN_STRENGTH = 0.001  # the schedule behind a strength has steps / strength noise levels
MAX_CLIP_PIXELS = 1024 * 1024 * 576  # of all frames together: as float32 frames they take 7 GiB

# What each latent channel looks like: a linear map to RGB in -1..1, for previews only. Widely used for the SD 1 latent space, which SVD shares.
_LATENT_TO_RGB = ((0.3512, 0.2297, 0.3227), (0.3250, 0.4974, 0.2350), (-0.2829, 0.1762, 0.2721), (-0.2120, -0.2616, -0.7177))


def dtype_of(precision: Precision) -> torch.dtype:
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


@dataclass(frozen=True)
class SVDModel:
    """An SVD checkpoint whose components are opened on first use and live as long as this object.

    kept is for what is to live as long as the model.
    version is "svd" (trained on 14 frames) or "svd_xt" (25), told from the file's name or a diffusers configuration; "demo" is the model that comes with the pack.
    """

    path: Path
    version: str
    layout: Literal["single file", "diffusers folder"]
    precision: Precision
    parts: Mapping[str, Part]
    kept: dict[str, Any] = field(default_factory=dict[str, Any], repr=False, compare=False)
    _modules: dict[str, nn.Module] = field(default_factory=dict[str, "nn.Module"], repr=False, compare=False)

    @property
    def dtype(self) -> torch.dtype:
        return dtype_of(self.precision)

    @property
    def unet(self) -> Any:
        return self._open("unet")

    @property
    def image_encoder(self) -> Any:
        return self._open("image_encoder")

    @property
    def vae(self) -> Any:
        """The autoencoder; its encoder runs in float32 whatever the precision, as in the reference: it is small and runs once."""
        return self._open("vae", float32_prefixes=("encoder.", "quant_conv."))

    @property
    def scaling_factor(self) -> float:
        return float(self.parts["vae"].config["scaling_factor"])

    @property
    def size_step(self) -> int:
        """Width and height in pixels must be multiples of this: the VAE's factor times that of the UNet's levels."""
        return size_step(self.parts)

    def _open(self, name: str, float32_prefixes: tuple[str, ...] = ()) -> nn.Module:
        if name not in self._modules:
            self._modules[name] = self.parts[name].build(self.dtype, float32_prefixes)
        return self._modules[name]


@dataclass(frozen=True)
class Conditioning:
    """What a clip is made from.

    image_embedding  [1,1,C]: CLIP's view of the whole image
    concat_latents   [1 or T,4,h,w], float32: the image as the VAE sees it, not scaled
    fps, motion_bucket, augmentation: as the user means them; the network is told fps - 1
    """

    image_embedding: Tensor
    concat_latents: Tensor
    fps: int
    motion_bucket: int
    augmentation: float

    @property
    def latent_size(self) -> tuple[int, int]:
        height, width = self.concat_latents.shape[-2:]
        return int(height), int(width)


def size_step(parts: Mapping[str, Part]) -> int:
    return SPATIAL_FACTOR * 2 ** (len(parts["unet"].config["block_out_channels"]) - 1)


def round_size(model: SVDModel, width: int, height: int) -> tuple[int, int]:
    """The nearest (width, height) that the UNet can take. Raises LeanVideoError outside 1..4096 pixels."""
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise LeanVideoError(f"The size {width}x{height} cannot be made: each side must have 1 to {MAX_SIDE} pixels.")
    step = model.size_step
    return max(step, round(width / step) * step), max(step, round(height / step) * step)


def check_frames(frames: int) -> None:
    """Raises LeanVideoError for a frame count that no run should be asked for."""
    if not 1 <= frames <= MAX_FRAMES:
        raise LeanVideoError(f"A clip of {frames} frames cannot be made: ask for 1 to {MAX_FRAMES} frames.")


def check_steps(steps: int) -> None:
    """Raises LeanVideoError for a step count that no run should be asked for."""
    if not 1 <= steps <= MAX_STEPS:
        raise LeanVideoError(f"{steps} steps cannot be taken: ask for 1 to {MAX_STEPS}.")


def check_clip(frames: int, width: int, height: int) -> None:
    """Raises LeanVideoError for a clip of more pixels than a request may make us hold."""
    check_frames(frames)
    if frames * width * height > MAX_CLIP_PIXELS:
        raise LeanVideoError(f"A clip of {frames} frames of {width}x{height} is too large: at this size ask for at most {MAX_CLIP_PIXELS // (width * height)} frames.")


def check_latents(latents_T4hw: Tensor) -> tuple[int, int, int]:
    """Frames, width and height in pixels of the clip. Raises LeanVideoError for latents of another shape than SVD's, or too many."""
    if latents_T4hw.ndim != 4 or latents_T4hw.shape[1] != LATENT_CHANNELS or 0 in latents_T4hw.shape:
        raise LeanVideoError(f"Latents of shape {list(latents_T4hw.shape)} are not an SVD clip: [frames, {LATENT_CHANNELS}, height/8, width/8] is.")
    clip = len(latents_T4hw), latents_T4hw.shape[3] * SPATIAL_FACTOR, latents_T4hw.shape[2] * SPATIAL_FACTOR
    check_clip(*clip)
    return clip


def denoiser(unet: Any, conditioning: Conditioning, frames: int, transfer: Transfer, plan: UNetPlan | None = None, tick: Callable[[], None] = lambda: None) -> Denoiser:
    """SVD's network as a denoiser `(x_T4hw, sigma) -> x0_T4hw` in float32. Arguments as of `estimator`."""
    estimates = estimator(unet, [conditioning], frames, transfer, plan, tick)
    return lambda x_T4hw, sigma: estimates(x_T4hw, sigma)[0]


def estimator(
    unet: Any,
    conditionings: Sequence[Conditioning],
    frames: int,
    transfer: Transfer,
    plan: UNetPlan | None = None,
    tick: Callable[[], None] = lambda: None,
    weights: Weights | None = None,
) -> Callable[[Tensor, float], Tensor]:
    """`(x_T4hw, sigma) -> x0_BT4hw`, both in float32 on the host: an estimate for each conditioning, computed on the device of `transfer`.

    `plan` and `weights` are those of a `LeanUNet`. `tick` is called many times in each call and may raise to cancel.
    EDM preconditioning with v-prediction: sgm `VScalingWithEDMcNoise` with sigma_data = 1.
    """
    import torch

    from ..lean.unet import LeanUNet

    device = transfer.device
    dtype = unet.dtype
    concat_BT4hw = torch.stack([c.concat_latents.expand(frames, -1, -1, -1) for c in conditionings]).to(dtype)
    embedding_B1D = torch.cat([c.image_embedding for c in conditionings]).to(dtype)
    added_ids_B3 = torch.tensor([[c.fps - 1, c.motion_bucket, c.augmentation] for c in conditionings], dtype=torch.float32)
    with transfer.computing():
        network = LeanUNet(unet, embedding_B1D, added_ids_B3, frames, transfer=transfer, plan=plan, weights=weights, tick=tick)
        (concat_BT4hw,) = transfer.fetch([concat_BT4hw])()

    def estimates(x_T4hw: Tensor, sigma: float) -> Tensor:
        c_skip, c_in = 1 / (sigma**2 + 1), 1 / math.sqrt(sigma**2 + 1)
        c_out = -sigma * c_in
        x_T4hw_in = (x_T4hw * c_in).to(dtype)
        with transfer.computing():
            c_noise = torch.tensor(0.25 * math.log(sigma), device=device)
            x_BT4hw = x_T4hw_in.to(device).expand(len(conditionings), -1, -1, -1, -1)
            v_BT4hw = network(torch.cat([x_BT4hw, concat_BT4hw], dim=2), c_noise)
        return x_T4hw * c_skip + v_BT4hw.to(x_T4hw.device, torch.float32) * c_out

    return estimates


def preview(latents_T4hw: Tensor) -> Tensor:
    """A rough picture [T,h,w,3], uint8 on the CPU, of latents in the network's scale, one pixel for each: cheap enough for every step."""
    import torch

    rgb = latents_T4hw.float().movedim(1, -1) @ torch.tensor(_LATENT_TO_RGB, device=latents_T4hw.device)
    return (rgb / 2 + 0.5).nan_to_num().clamp(0, 1).mul(255).round().to(torch.uint8).cpu()


def warnings(conditioning: Conditioning) -> list[str]:
    """A sentence for each setting outside what the network was trained on."""
    found: list[str] = []
    if not 6 <= conditioning.fps <= 31:
        found.append(f"{conditioning.fps} fps is outside what SVD was trained on (6 to 31): expect poor motion.")
    if conditioning.motion_bucket > 255:
        found.append(f"A motion bucket of {conditioning.motion_bucket} is outside what SVD was trained on (0 to 255): expect artefacts.")
    return found
