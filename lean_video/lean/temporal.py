"""The part of a spatio-temporal resnet that mixes frames, over spans of positions.

Shape suffixes: T frames of the clip, C channels, P positions of one span, E the time embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .clip import Clip, ParkedClip
from .group_norm import GroupStatistics, normalise_silu
from .pieces import Repeats

if TYPE_CHECKING:
    from diffusers.models.resnet import SpatioTemporalResBlock


def convolve_time(conv: nn.Conv3d, x_CTP: Tensor) -> Tensor:
    """A (3,1,1) convolution; positions lie along the width, which torch's CPU kernel handles faster than a height."""
    return conv(x_CTP[None, :, :, None])[0, :, :, 0]


def mix_frames(
    block: SpatioTemporalResBlock,
    clip: Clip | ParkedClip,
    input_statistics: GroupStatistics,
    *,
    spare_elements: int,
    tick: Callable[[], None],
    temb_1E: Tensor | None = None,
) -> None:
    """Adds the temporal branch of `block` to the clip in place; `input_statistics` are those of its norm1 on the clip.

    `temb_1E` is the time embedding, one for all frames, where the block takes one.
    The second norm needs all of the first convolution's result. As much of it as `spare_elements` allow is kept
    (one span's at least), the rest is computed again. `tick` is called once per span in each of the two passes.
    The blend s*x + (1-s)*(x + branch) is x + (1-s)*branch, so the spatial input is not needed beside the clip.
    """
    temporal: Any = block.temporal_res_block
    dtype = clip.dtype
    norm1 = input_statistics.scale_and_shift(dtype)
    spans = list(clip.spans())

    time_C11 = None if temb_1E is None else temporal.time_emb_proj(F.silu(temb_1E))[0, :, None, None]

    def first_half(span: slice) -> Tensor:
        y_CTP = convolve_time(temporal.conv1, normalise_silu(clip.gather(span), *norm1))
        return y_CTP if time_C11 is None else y_CTP.add_(time_C11)

    kept: list[Tensor | None] = []
    statistics = GroupStatistics(temporal.norm2)
    repeats = Repeats(clip.device, spans[-1].stop)
    for span in spans:
        if repeats(length := span.stop - span.start):
            y_CTP = torch.empty(temporal.out_channels, clip.frames, length, dtype=dtype, device=clip.device)
        else:
            y_CTP = first_half(span)
            statistics.add(y_CTP)
        keep = not kept or spare_elements >= y_CTP.numel()
        kept.append(y_CTP if keep else None)
        spare_elements -= y_CTP.numel() if keep else 0
        del y_CTP
        tick()

    norm2 = statistics.scale_and_shift(dtype)
    share = temporal_share(block.time_mixer, dtype)
    repeats = Repeats(clip.device, spans[-1].stop)
    for index, span in enumerate(spans):
        y_CTP, kept[index] = kept[index], None
        if repeats(span.stop - span.start):
            continue
        if y_CTP is None:
            y_CTP = first_half(span)
        y_CTP = normalise_silu(y_CTP, *norm2)
        y_CTP = convolve_time(temporal.conv2, y_CTP)
        clip.add(span, y_CTP, share)
        del y_CTP
        tick()


def temporal_share(mixer: Any, dtype: torch.dtype) -> Tensor:
    """The weight [1] of the temporal side of an `AlphaBlender`, whichever way round the blender is switched."""
    no_image_11 = torch.zeros(1, 1, device=mixer.mix_factor.device)
    alpha = mixer.get_alpha(no_image_11, ndims=3).reshape(1).to(dtype)
    return alpha if mixer.switch_spatial_to_temporal_mix else 1 - alpha
