"""diffusers' own forwards, given what our forwards are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lean_video.lean.transfer import Transfer
    from lean_video.models.svd import Conditioning


def guidance_pair(context: int, width: int, height: int, device: torch.device | None = None) -> list[Conditioning]:
    """Conditioned and unconditioned, of a random image of so many pixels; on the host, or on the meta device."""
    import torch

    from lean_video.models.svd import SPATIAL_FACTOR, Conditioning

    generator = torch.Generator().manual_seed(1)
    embedding = torch.randn(1, 1, context, generator=generator)
    concat = torch.randn(1, 4, height // SPATIAL_FACTOR, width // SPATIAL_FACTOR, generator=generator)
    return [Conditioning((factor * embedding).to(device), (factor * concat).to(device), fps=6, motion_bucket=127, augmentation=0.02) for factor in (1, 0)]


def estimator(unet: Any, conditionings: Sequence[Conditioning], frames: int, transfer: Transfer) -> Callable[[Tensor, float], Tensor]:
    """What `svd.estimator` is, with `unet` called once for all conditionings, as diffusers' pipeline calls it; its weights are on the device, or come by themselves."""
    import torch

    dtype = unet.dtype
    concat_BT4hw = torch.stack([c.concat_latents.expand(frames, -1, -1, -1) for c in conditionings]).to(dtype)
    embedding_B1D = torch.cat([c.image_embedding for c in conditionings]).to(dtype)
    added_ids_B3 = torch.tensor([[c.fps - 1, c.motion_bucket, c.augmentation] for c in conditionings], dtype=dtype).to(transfer.device)
    with transfer.computing():
        concat_BT4hw, embedding_B1D = transfer.fetch([concat_BT4hw, embedding_B1D])()

    @torch.no_grad()
    def estimates(x_T4hw: Tensor, sigma: float) -> Tensor:
        c_in = 1 / math.sqrt(sigma**2 + 1)
        x_T4hw_in = (x_T4hw * c_in).to(dtype)
        with transfer.computing():
            c_noise = torch.tensor(0.25 * math.log(sigma), device=transfer.device)
            x_BT8hw = torch.cat([x_T4hw_in.to(transfer.device).expand(len(conditionings), -1, -1, -1, -1), concat_BT4hw], dim=2)
            v_BT4hw = unet(x_BT8hw, c_noise, encoder_hidden_states=embedding_B1D, added_time_ids=added_ids_B3, return_dict=False)[0]
        return x_T4hw / (sigma**2 + 1) - v_BT4hw.to(x_T4hw.device, torch.float32) * sigma * c_in

    return estimates


def decode(vae: Any, z_T4hw: Tensor, transfer: Transfer) -> Tensor:
    """[T,3,H,W] in -1..1 of the whole clip at once, where the latents are; the decoder's weights are on the device."""
    import torch

    weight = vae.decoder.conv_in.weight
    with torch.no_grad(), transfer.computing():
        rgb_T3HW = vae.decode(z_T4hw.to(transfer.device, weight.dtype), num_frames=len(z_T4hw), return_dict=False)[0]
    return rgb_T3HW.to(z_T4hw.device)
