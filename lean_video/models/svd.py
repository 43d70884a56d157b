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
from ..lean import vae as lean_vae
from ..sampling import guidance_scale, guide, is_guided, sample
from .images import clip_pixels, fit
from .parts import Part
from .residency import resident

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..lean.transfer import Transfer
    from ..lean.unet import UNetPlan
    from ..lean.vae import DecodePlan
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


def _silent(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class SVDModel:
    """An SVD checkpoint whose components are opened on first use and live as long as this object.

    version is "svd" (trained on 14 frames) or "svd_xt" (25), told from the file's name or a diffusers configuration.
    """

    path: Path
    version: str
    layout: Literal["single file", "diffusers folder"]
    precision: Precision
    parts: Mapping[str, Part]
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
        return SPATIAL_FACTOR * 2 ** (len(self.parts["unet"].config["block_out_channels"]) - 1)

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


def condition(
    model: SVDModel,
    image_HWC: Tensor,
    width: int,
    height: int,
    *,
    device: torch.device,
    resize: str = "crop",
    fps: int = 6,
    motion_bucket: int = 127,
    augmentation: float = 0.02,
    augmentation_seed: int = 0,
    progress: Progress = _silent,
) -> Conditioning:
    """Conditioning of a clip of `width` x `height` pixels (multiples of `model.size_step`) on one image.

    image_HWC     [H,W,1, 3 or 4], 0..1; transparency is composited on black
    resize        "crop", "pad" or "stretch": how the image meets the clip's shape; CLIP always sees the whole image
    augmentation  standard deviation of the noise added to the image in [-1,1]; its seed makes it reproducible

    Raises LeanVideoError for an image that is empty or holds NaN.
    """
    import torch

    image_1CHW = check_image(image_HWC)
    progress(0, 2)
    with torch.inference_mode():
        encoder = model.image_encoder
        with resident(device, encoder):
            pixels = clip_pixels(image_1CHW, encoder.config.image_size).to(device, model.dtype)
            embedding = encoder(pixels).image_embeds.float().cpu()[:, None]
        progress(1, 2)
        frame = fit(image_1CHW, width, height, resize) * 2 - 1
        if augmentation > 0:
            noise = torch.randn(frame.shape, generator=torch.Generator().manual_seed(augmentation_seed))
            frame = frame + augmentation * noise
        latents = _encode(model, frame, device)
        progress(2, 2)
    return Conditioning(embedding.clone(), latents.clone(), fps, motion_bucket, augmentation)


def encode_clip(model: SVDModel, frames_THWC: Tensor, *, device: torch.device, progress: Progress = _silent) -> Tensor:
    """Latents [T,4,h,w], as ComfyUI's LATENT, of a clip [T,H,W,C] 0..1, resized to the nearest size the UNet can take.

    The start clip of video to video.
    """
    import torch

    width, height = round_size(model, frames_THWC.shape[2], frames_THWC.shape[1])
    check_clip(len(frames_THWC), width, height)
    latents: list[Tensor] = []
    vae = model.vae
    with torch.inference_mode(), resident(device, vae.encoder, vae.quant_conv):
        for i, frame in enumerate(frames_THWC):
            pixels = fit(check_image(frame), width, height, "stretch") * 2 - 1
            latents.append(lean_vae.encode_mode(vae, pixels.to(device)).float().cpu())
            progress(i + 1, len(frames_THWC))
    return torch.cat(latents)


def _encode(model: SVDModel, pixels_1CHW: Tensor, device: torch.device) -> Tensor:
    vae = model.vae
    with resident(device, vae.encoder, vae.quant_conv):
        return lean_vae.encode_mode(vae, pixels_1CHW.to(device)).float().cpu()


def sample_clip(
    model: SVDModel,
    conditioning: Conditioning,
    *,
    frames: int,
    steps: int,
    device: torch.device,
    solver: str = "euler",
    schedule: str = "karras",
    guidance: tuple[float, float] = (1.0, 3.0),
    guidance_mode: str = "linear",
    seed: int = 0,
    start_T4hw: Tensor | None = None,
    strength: float = 1.0,
    transfer: Transfer | None = None,
    plan: UNetPlan | None = None,
    on_step: Callable[[int, int, Tensor], None] = lambda done, total, x0: None,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """Latents [T,4,h,w] of a clip: float32 on the CPU, as ComfyUI's LATENT: in the VAE's own scale, which is the network's divided by `model.scaling_factor`.

    Keywords as in `sampling.sample` and `sampling.guidance_scale`; `plan` says what the network's run costs, never what it gives, `transfer` how tensors reach the device (default: as suits it); `on_step` gets latents in the network's scale; `tick` is called many times a step. Either may raise to cancel.
    Raises LeanVideoError for a clip or step count that is too large, and when the start clip has another size than the conditioning.
    """
    from ..lean.transfer import transfer_to

    height, width = conditioning.latent_size
    check_clip(frames, width * SPATIAL_FACTOR, height * SPATIAL_FACTOR)
    check_steps(steps)
    if not (strength == 0 or MIN_STRENGTH <= strength <= 1):
        raise LeanVideoError(f"A denoise of {strength} is out of range: choose 0, or {MIN_STRENGTH} to 1.")
    shape = (frames, LATENT_CHANNELS, height, width)
    if start_T4hw is not None and tuple(start_T4hw.shape) != shape:
        got, size = tuple(start_T4hw.shape), (width * SPATIAL_FACTOR, height * SPATIAL_FACTOR)
        raise LeanVideoError(f"The start latents have the shape {list(got)}, this clip needs {list(shape)}: make them with {frames} frames of {size[0]}x{size[1]} pixels.")
    if start_T4hw is not None and strength <= 0:
        return start_T4hw.float()
    scale = guidance_scale(guidance_mode, frames, *guidance)
    transfer = transfer or transfer_to(device)
    if is_guided(scale):
        denoise = guide(estimator(model.unet, [conditioning, _blank(conditioning)], frames, transfer, plan, tick), scale)
    else:
        denoise = denoiser(model.unet, conditioning, frames, transfer, plan, tick)
    latents = sample(
        denoise,
        shape,
        steps=steps,
        seed=seed,
        device=device,
        solver=solver,
        schedule=schedule,
        start_T4hw=None if start_T4hw is None else start_T4hw * model.scaling_factor,
        strength=strength,
        on_step=on_step,
    )
    return latents / model.scaling_factor


def _blank(conditioning: Conditioning) -> Conditioning:
    """The unconditioned twin: no image for CLIP nor for the VAE, the rest kept."""
    import torch

    return Conditioning(
        torch.zeros_like(conditioning.image_embedding),
        torch.zeros_like(conditioning.concat_latents),
        conditioning.fps,
        conditioning.motion_bucket,
        conditioning.augmentation,
    )


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
) -> Callable[[Tensor, float], Tensor]:
    """`(x_T4hw, sigma) -> x0_BT4hw` in float32, on the device of `transfer`: an estimate for each conditioning.

    `tick` is called many times in each call and may raise to cancel.
    EDM preconditioning with v-prediction: sgm `VScalingWithEDMcNoise` with sigma_data = 1.
    """
    import torch

    from ..lean.unet import LeanUNet

    device = transfer.device
    dtype = unet.dtype
    concat_BT4hw = torch.stack([c.concat_latents.expand(frames, -1, -1, -1) for c in conditionings]).to(device, dtype)
    network = LeanUNet(
        unet,
        torch.cat([c.image_embedding for c in conditionings]).to(dtype),
        torch.tensor([[c.fps - 1, c.motion_bucket, c.augmentation] for c in conditionings], dtype=torch.float32),
        frames,
        transfer=transfer,
        plan=plan,
        tick=tick,
    )

    def estimates(x_T4hw: Tensor, sigma: float) -> Tensor:
        c_skip, c_in = 1 / (sigma**2 + 1), 1 / math.sqrt(sigma**2 + 1)
        c_out = -sigma * c_in
        c_noise = torch.tensor(0.25 * math.log(sigma), device=device)
        x_BT4hw = (x_T4hw * c_in).to(dtype).expand(len(conditionings), -1, -1, -1, -1)
        v_BT4hw = network(torch.cat([x_BT4hw, concat_BT4hw], dim=2), c_noise)
        return x_T4hw * c_skip + v_BT4hw.float() * c_out

    return estimates


def decode_clip(
    model: SVDModel,
    latents_T4hw: Tensor,
    *,
    device: torch.device,
    transfer: Transfer | None = None,
    plan: DecodePlan | None = None,
    progress: Progress = _silent,
) -> Tensor:
    """Frames [T,H,W,3], float32 0..1 on the CPU, of latents as in ComfyUI's LATENT. Time is mixed over the whole clip: no seams.

    Raises LeanVideoError for latents of another model's shape or holding NaN.
    """
    import torch

    if latents_T4hw.ndim != 4 or latents_T4hw.shape[1] != LATENT_CHANNELS or 0 in latents_T4hw.shape:
        raise LeanVideoError(f"Latents of shape {list(latents_T4hw.shape)} are not an SVD clip: [frames, {LATENT_CHANNELS}, height/8, width/8] is.")
    check_clip(len(latents_T4hw), latents_T4hw.shape[3] * SPATIAL_FACTOR, latents_T4hw.shape[2] * SPATIAL_FACTOR)
    if not bool(torch.isfinite(latents_T4hw).all()):
        raise LeanVideoError("The latents hold NaN or infinity, so no frame can be decoded: sample again in fp32 or bf16.")
    from ..lean.transfer import transfer_to

    return lean_vae.decode(model.vae, latents_T4hw, transfer=transfer or transfer_to(device), plan=plan, progress=progress)


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


def check_image(image_HWC: Tensor) -> Tensor:
    """The image as [1,3,H,W], RGB, transparency composited on black. Raises LeanVideoError when it is empty or not finite."""
    import torch

    if image_HWC.ndim != 3 or 0 in image_HWC.shape:
        raise LeanVideoError(f"The image is empty (shape {list(image_HWC.shape)}): connect an image with pixels.")
    if image_HWC.shape[-1] not in (1, 3, 4):
        raise LeanVideoError(f"The image has {image_HWC.shape[-1]} channels: grey, RGB and RGBA images can be used.")
    image = image_HWC.float().cpu()
    if not bool(torch.isfinite(image).all()):
        raise LeanVideoError("The image holds NaN or infinity: the node that made it failed, look there.")
    if image.shape[-1] == 4:
        image = image[..., :3] * image[..., 3:]
    elif image.shape[-1] == 1:
        image = image.expand(-1, -1, 3)
    return image.movedim(-1, 0)[None].clamp(0, 1).contiguous()
