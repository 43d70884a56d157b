"""Exact decode and encode with diffusers' VAEs in little memory.

`AutoencoderKLTemporalDecoder` mixes frames and its temporal norms span the clip, so a cut anywhere changes every frame.
Here the whole clip goes through the decoder layer by layer instead: what looks at one frame runs in chunks of frames,
what mixes frames runs in chunks of positions. Chunk sizes change the result by rounding error only.

Shape suffixes: T frames of the clip, F frames of one chunk, B images, C channels, P positions of one chunk,
h and w the latent frame, H and W the frame at hand (of `out_THW3`: the picture).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from ..errors import LeanVideoError
from .frames import Clip, FrameOp, children, drain, frame_chunks, norm_silu, optional, resnet, run_frames
from .group_norm import GroupStatistics
from .pieces import default_pieces
from .temporal import convolve_time, count_spans, gather_positions, mix_frames, position_spans

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
    from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import TemporalDecoder
    from diffusers.models.autoencoders.vae import Decoder, Encoder
    from diffusers.models.resnet import SpatioTemporalResBlock

Progress = Callable[[int, int], None]


@torch.no_grad()
def decode(
    vae: AutoencoderKLTemporalDecoder | AutoencoderKL,
    z_T4hw: Tensor,
    *,
    out_THW3: Tensor | None = None,
    frames: int = 1,
    chunk_elements: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Pictures [T,H,W,3] in 0..1 of a clip of latents that are already divided by the VAE's scaling factor.

    Equals `vae.decode(z, num_frames=T)` of the whole clip up to rounding. Computes in the decoder's dtype, on its device
    (norm statistics in higher precision); a VAE that needs upcasting must be given upcast. Pictures are written to
    `out_THW3` (contiguous; default: new, float32, on the CPU) as they are finished.

    frames: how many frames at a time go through the spatial layers.
    chunk_elements: how many elements of the clip at a time go through the temporal layers.
    progress: called with (done, total) after every layer of every chunk; may raise to cancel.
    Raises LeanVideoError for latents of another kind.
    """
    chunking = _Chunking(frames, chunk_elements or default_pieces(vae.decoder.conv_in.weight.device).elements)
    _check_latents(z_T4hw, vae.config["latent_channels"])
    out_THW3 = _output_for(z_T4hw, _upscale(vae.decoder), out_THW3)
    chunks = frame_chunks(z_T4hw, frames, vae.decoder.conv_in.weight)
    if hasattr(vae.decoder, "time_conv_out"):
        _decode_clip(cast("TemporalDecoder", vae.decoder), z_T4hw.shape, chunks, out_THW3, chunking, progress)
    else:
        _decode_frames(cast("AutoencoderKL", vae), len(z_T4hw), chunks, out_THW3, chunking, progress)
    return out_THW3


@torch.no_grad()
def encode_mode(vae: AutoencoderKLTemporalDecoder | AutoencoderKL, x_B3HW: Tensor, *, progress: Progress | None = None) -> Tensor:
    """The mode of the latent distribution of each image, [B,4,h,w], not scaled, in the encoder's dtype on its device.

    x_B3HW: images in -1..1, H and W multiples of the VAE's factor.
    progress: called with (done, total) after every layer of every image; may raise to cancel.
    """
    ops = _encoder_ops(vae)
    meter = _Meter(len(ops) * len(x_B3HW), progress)
    moments = run_frames(ops, frame_chunks(x_B3HW, 1, vae.encoder.conv_in.weight), meter.tick)
    return torch.cat([m.chunk(2, dim=1)[0] for m in moments])


# The temporal decoder: stages of frame-by-frame layers, each ended by a mix over time


@dataclass(frozen=True)
class _Chunking:
    frames: int
    elements: int

    def frame_chunks(self, clip_frames: int) -> int:
        return math.ceil(clip_frames / self.frames)

    def positions(self, channels: int, clip_frames: int) -> int:
        return max(1, self.elements // (channels * clip_frames))


@dataclass(frozen=True)
class _Stage:
    """Frame-by-frame layers run one after the other on each chunk of frames, then the temporal half of `block`.

    An upsampler is the first layer of the stage after it, so its wide result exists for one chunk of frames only.
    """

    frame_ops: tuple[FrameOp, ...]
    block: SpatioTemporalResBlock
    upscale: int

    @property
    def channels(self) -> int:
        return self.block.temporal_res_block.in_channels


def _decode_clip(
    decoder: TemporalDecoder,
    z_shape: Sequence[int],
    chunks: Iterable[Tensor],
    out_THW3: Tensor,
    chunking: _Chunking,
    progress: Progress | None,
) -> None:
    clip_frames, _, h, w = z_shape
    stages = _temporal_stages(decoder)
    head = _head_ops(decoder)
    frame_positions = [h * w * stage.upscale**2 for stage in stages]
    chunk_positions = [chunking.positions(stage.channels, clip_frames) for stage in stages]
    clip_elements = [clip_frames * stage.channels * n for stage, n in zip(stages, frame_positions, strict=True)]
    picture_positions = out_THW3.shape[1] * out_THW3.shape[2]
    picture_chunk = chunking.positions(3, clip_frames)
    meter = _Meter(
        chunking.frame_chunks(clip_frames) * (sum(len(stage.frame_ops) for stage in stages) + len(head))
        + sum(2 * count_spans(*sizes) for sizes in zip(frame_positions, chunk_positions, strict=True))
        + count_spans(picture_positions, picture_chunk),
        progress,
    )

    for i, stage in enumerate(stages):
        clip: Clip = []
        statistics = GroupStatistics(stage.block.temporal_res_block.norm1)
        for x_FCHW in run_frames(stage.frame_ops, chunks, meter.tick):
            clip.append(x_FCHW.contiguous())
            statistics.add(clip[-1], channel_axis=1)
            del x_FCHW
        mix_frames(
            stage.block,
            clip,
            statistics,
            chunk_positions=chunk_positions[i],
            spare_elements=max(clip_elements) - clip_elements[i],  # up to here the widest stage has paid for it
            tick=meter.tick,
        )
        chunks = drain(clip)

    clip = list(run_frames(head, chunks, meter.tick))
    for span in position_spans(picture_positions, picture_chunk):
        rgb_3TP = _to_picture(convolve_time(decoder.time_conv_out, gather_positions(clip, span)), out_THW3.dtype)
        out_THW3.view(clip_frames, picture_positions, 3)[:, span] = rgb_3TP.permute(1, 2, 0)
        meter.tick()


def _temporal_stages(decoder: TemporalDecoder) -> list[_Stage]:
    stages: list[_Stage] = []
    ops: list[FrameOp] = [decoder.conv_in]
    upscale = 1

    def end_stage(block: SpatioTemporalResBlock) -> None:
        stages.append(_Stage((*ops, partial(resnet, block.spatial_res_block)), block, upscale))
        ops.clear()

    first, *rest = children(decoder.mid_block, "resnets")
    end_stage(first)
    for attention, block in zip(decoder.mid_block.attentions, rest, strict=False):  # diffusers, too, stops at the shorter
        ops.append(attention)
        end_stage(block)
    for up_block in decoder.up_blocks:
        for block in children(up_block, "resnets"):
            end_stage(block)
        for upsampler in children(up_block, "upsamplers"):
            ops.append(upsampler)
            upscale *= 2
    return stages


# The plain decoder and the encoder: frame by frame from end to end


def _decode_frames(
    vae: AutoencoderKL,
    clip_frames: int,
    chunks: Iterable[Tensor],
    out_THW3: Tensor,
    chunking: _Chunking,
    progress: Progress | None,
) -> None:
    ops = _decoder_ops(vae)
    meter = _Meter(chunking.frame_chunks(clip_frames) * len(ops), progress)
    start = 0
    for rgb_F3HW in run_frames(ops, chunks, meter.tick):
        end = start + len(rgb_F3HW)
        out_THW3[start:end] = _to_picture(rgb_F3HW, out_THW3.dtype).permute(0, 2, 3, 1)
        start = end


def _decoder_ops(vae: AutoencoderKL) -> list[FrameOp]:
    decoder = vae.decoder
    ops: list[FrameOp] = [decoder.conv_in, *_mid_ops(decoder)]
    for up_block in decoder.up_blocks:
        ops += [partial(resnet, block) for block in children(up_block, "resnets")]
        ops += children(up_block, "upsamplers")
    return [*optional(vae, "post_quant_conv"), *ops, *_head_ops(decoder)]


def _encoder_ops(vae: AutoencoderKLTemporalDecoder | AutoencoderKL) -> list[FrameOp]:
    encoder = vae.encoder
    ops: list[FrameOp] = [encoder.conv_in]
    for down_block in encoder.down_blocks:
        ops += [partial(resnet, block) for block in children(down_block, "resnets")]
        ops += children(down_block, "downsamplers")
    return [*ops, *_mid_ops(encoder), *_head_ops(encoder), *optional(vae, "quant_conv")]


def _mid_ops(coder: Decoder | Encoder) -> list[FrameOp]:
    first, *rest = children(coder.mid_block, "resnets")
    ops: list[FrameOp] = [partial(resnet, first)]
    for attention, block in zip(children(coder.mid_block, "attentions"), rest, strict=True):
        ops += [op for op in (attention, partial(resnet, block)) if op is not None]
    return ops


def _head_ops(coder: Decoder | Encoder | TemporalDecoder) -> list[FrameOp]:
    return [partial(norm_silu, cast(nn.GroupNorm, coder.conv_norm_out)), coder.conv_out]


def _to_picture(rgb: Tensor, dtype: torch.dtype) -> Tensor:
    """-1..1 to 0..1; overwrites `rgb` where its dtype allows."""
    return rgb.to(dtype).mul_(0.5).add_(0.5).clamp_(0, 1)


# Around the run


class _Meter:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done = 0
        self._total = total
        self._progress = progress

    def tick(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def _check_latents(z_T4hw: Tensor, channels: int) -> None:
    if z_T4hw.ndim != 4 or z_T4hw.shape[1] != channels or z_T4hw.numel() == 0:
        raise LeanVideoError(
            f"The latents to decode have the shape {list(z_T4hw.shape)}, while this decoder takes "
            f"[frames, {channels}, height, width]: connect latents made by the same kind of model."
        )


def _upscale(decoder: Decoder | TemporalDecoder) -> int:
    return 2 ** sum(len(children(up_block, "upsamplers")) for up_block in decoder.up_blocks)


def _output_for(z_T4hw: Tensor, upscale: int, out_THW3: Tensor | None) -> Tensor:
    clip_frames, _, h, w = z_T4hw.shape
    shape = (clip_frames, h * upscale, w * upscale, 3)
    if out_THW3 is None:
        return torch.empty(shape, dtype=torch.float32, device="cpu")
    if out_THW3.shape != shape or not out_THW3.is_contiguous():
        raise ValueError(f"out_THW3 must be contiguous and of shape {list(shape)}, not {list(out_THW3.shape)}")
    return out_THW3
