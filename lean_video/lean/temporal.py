"""The part of a spatio-temporal resnet that mixes frames, over positions of a clip that lies in chunks of frames.

Shape suffixes: T frames of the clip, F frames of one chunk, C channels, H and W the frame, P positions of one chunk.
A position is one of the H*W places of a frame; a chunk of positions holds all T frames of each of its places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .frames import Clip
from .group_norm import GroupStatistics, normalise_silu

if TYPE_CHECKING:
    from diffusers.models.resnet import AlphaBlender, SpatioTemporalResBlock


def position_spans(frame_positions: int, chunk_positions: int) -> Iterator[slice]:
    """The spans of at most `chunk_positions` that cover a frame, in order."""
    for start in range(0, frame_positions, chunk_positions):
        yield slice(start, min(start + chunk_positions, frame_positions))


def count_spans(frame_positions: int, chunk_positions: int) -> int:
    return math.ceil(frame_positions / chunk_positions)


def gather_positions(clip: Clip, span: slice) -> Tensor:
    """A contiguous copy [C,T,P] of every frame of the clip at the positions of `span`."""
    return torch.cat([_positions(x_FCHW, span).transpose(0, 1) for x_FCHW in clip], dim=1)


def convolve_time(conv: nn.Conv3d, x_CTP: Tensor) -> Tensor:
    """A (3,1,1) convolution; positions lie along the width, which torch's CPU kernel handles faster than a height."""
    return conv(x_CTP[None, :, :, None])[0, :, :, 0]


def mix_frames(
    block: SpatioTemporalResBlock,
    clip: Clip,
    input_statistics: GroupStatistics,
    *,
    chunk_positions: int,
    spare_elements: int,
    tick: Callable[[], None],
    temb_1E: Tensor | None = None,
) -> None:
    """Adds the temporal branch of `block` to the clip in place; `input_statistics` are those of its norm1 on the clip.

    `temb_1E` is the time embedding, one for all frames, where the block takes one.
    The second norm needs all of the first convolution's result. As much of it as `spare_elements` allow is kept
    (a chunk at least), the rest is computed again. `tick` is called once per chunk of positions in each of the passes.
    The blend s*x + (1-s)*(x + branch) is x + (1-s)*branch, so the spatial input is not needed beside the clip.
    """
    temporal: Any = block.temporal_res_block
    norm1 = input_statistics.scale_and_shift(clip[0].dtype)
    spans = list(position_spans(clip[0].shape[2] * clip[0].shape[3], chunk_positions))

    time_C11 = None if temb_1E is None else temporal.time_emb_proj(F.silu(temb_1E))[0, :, None, None]

    def first_half(span: slice) -> Tensor:
        y_CTP = convolve_time(temporal.conv1, normalise_silu(gather_positions(clip, span), *norm1))
        return y_CTP if time_C11 is None else y_CTP.add_(time_C11)

    kept: list[Tensor | None] = []
    statistics = GroupStatistics(temporal.norm2)
    for span in spans:
        y_CTP = first_half(span)
        statistics.add(y_CTP)
        keep = not kept or spare_elements >= y_CTP.numel()
        kept.append(y_CTP if keep else None)
        spare_elements -= y_CTP.numel() if keep else 0
        del y_CTP
        tick()

    norm2 = statistics.scale_and_shift(clip[0].dtype)
    share = temporal_share(block.time_mixer, clip[0])
    for index, span in enumerate(spans):
        y_CTP, kept[index] = kept[index], None
        if y_CTP is None:
            y_CTP = first_half(span)
        y_CTP = normalise_silu(y_CTP, *norm2)
        y_CTP = convolve_time(temporal.conv2, y_CTP)
        _add_positions(clip, span, y_CTP, share)
        del y_CTP
        tick()


def temporal_share(mixer: AlphaBlender, like: Tensor) -> Tensor:
    """The weight [1] of the temporal side, whichever way round the blender is switched, in the dtype of `like`."""
    no_image_11 = like.new_zeros(1, 1)
    alpha = mixer.get_alpha(no_image_11, ndims=3).reshape(1).to(like.dtype)
    return alpha if mixer.switch_spatial_to_temporal_mix else 1 - alpha


def _add_positions(clip: Clip, span: slice, y_CTP: Tensor, share: Tensor) -> None:
    frames_per_chunk = [x_FCHW.shape[0] for x_FCHW in clip]
    for x_FCHW, y_CFP in zip(clip, y_CTP.split(frames_per_chunk, dim=1), strict=True):
        _positions(x_FCHW, span).addcmul_(y_CFP.transpose(0, 1), share)


def _positions(x_FCHW: Tensor, span: slice) -> Tensor:
    return x_FCHW.view(*x_FCHW.shape[:2], -1)[:, :, span]  # view, not flatten: a copy would lose what is written to it
