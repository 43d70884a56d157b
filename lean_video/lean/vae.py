"""Exact decode and encode with diffusers' VAEs in little memory.

`AutoencoderKLTemporalDecoder` mixes frames and its temporal norms span the clip, so a cut anywhere changes every frame.
Here the whole clip goes through the decoder layer by layer instead: what looks at one frame runs in chunks of frames,
what mixes frames runs in chunks of positions. Chunk sizes change the result by rounding error only.

Shape suffixes: T frames of the clip, F frames of one chunk, B images, C channels, P positions of one chunk,
h and w the latent frame, H and W the frame at hand (of `out_THW3`: the picture).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..errors import LeanVideoError
from .clip import Clip, ParkedClip, position_spans
from .frames import FrameOp, children, frame_chunks, norm_silu, optional, regrouped, resnet, run_frames
from .group_norm import GroupStatistics
from .pieces import Pieces, default_pieces
from .strips import norm_conv_in_strips, resnet_in_strips, rows_of, upsampled_rows
from .temporal import convolve_time, mix_frames
from .transfer import Transfer, Weights
from .transformer import self_attention

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
    from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import TemporalDecoder
    from diffusers.models.autoencoders.vae import Decoder, Encoder
    from diffusers.models.resnet import SpatioTemporalResBlock

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DecodePlan:
    """What a decode trades for what. The pictures are the same.

    pieces    how much of a clip is worked on at a time, a frame at least
    streamed  weights lie on the host and come to the device for the layers that need them; else they stay there
    parked    between two layers, the clip waits on the host
    strips    frames larger than that go through in strips of rows, and attention in pieces of queries; None: frames go through whole
    """

    pieces: Pieces
    streamed: bool = False
    parked: bool = False
    strips: Pieces | None = None


def decode_plans(device: torch.device) -> tuple[DecodePlan, ...]:
    """From the fastest to the smallest: each takes less memory than the one before it."""
    widest = default_pieces(device)
    wide, strips, finest = Pieces(min(widest.elements, 2**23)), Pieces(min(widest.elements, 2**22)), Pieces(min(widest.elements, 2**20))
    plans = (
        DecodePlan(widest),
        DecodePlan(wide, strips=strips),
        DecodePlan(wide, parked=True, strips=strips),
        DecodePlan(wide, streamed=True, parked=True, strips=strips),
        DecodePlan(finest, streamed=True, parked=True, strips=finest),
    )
    return tuple(dict.fromkeys(plans))


@torch.no_grad()
def decode(
    vae: AutoencoderKLTemporalDecoder | AutoencoderKL,
    z_T4hw: Tensor,
    *,
    out_THW3: Tensor | None = None,
    transfer: Transfer | None = None,
    plan: DecodePlan | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Pictures [T,H,W,3] in 0..1 of a clip of latents that are already divided by the VAE's scaling factor.

    Equals `vae.decode(z, num_frames=T)` of the whole clip up to rounding. Computes in the decoder's dtype (norm statistics in higher
    precision); a VAE that needs upcasting must be given upcast. Pictures are written to `out_THW3` (contiguous; default: new, float32,
    on the CPU) as they are finished.

    transfer: to the device that computes, from the host, where the decoder's weights are; default, the host itself.
    plan: default, everything on the device, in pieces that suit it; a plain image decoder runs frame by frame whatever it says.
    progress: called with (done, total) after every layer of every chunk; may raise to cancel.
    Raises LeanVideoError for latents of another kind.
    """
    transfer = transfer or Transfer(vae.decoder.conv_in.weight.device)
    plan = plan or DecodePlan(default_pieces(transfer.device))
    _check_latents(z_T4hw, vae.config["latent_channels"])
    out_THW3 = _output_for(z_T4hw, _upscale(vae.decoder), out_THW3)
    with transfer.computing():
        z_T4hw = z_T4hw.to(transfer.device, vae.decoder.conv_in.weight.dtype)
        if hasattr(vae.decoder, "time_conv_out"):
            _decode_clip(cast("TemporalDecoder", vae.decoder), z_T4hw, out_THW3, transfer, plan, progress)
        else:
            _decode_frames(cast("AutoencoderKL", vae), z_T4hw, out_THW3, transfer, progress)
    return out_THW3


@torch.no_grad()
def encode_mode(vae: AutoencoderKLTemporalDecoder | AutoencoderKL, x_B3HW: Tensor, *, progress: Progress | None = None) -> Tensor:
    """The mode of the latent distribution of each image, [B,4,h,w], not scaled, in the encoder's dtype on its device.

    x_B3HW: images in -1..1, H and W multiples of the VAE's factor.
    progress: called with (done, total) after every layer of every image; may raise to cancel.
    """
    ops = _encoder_ops(vae)
    meter = _Meter(len(ops) * len(x_B3HW), progress)
    moments = run_frames(ops, frame_chunks(x_B3HW, 1, vae.encoder.conv_in.weight), len(x_B3HW), meter.tick)
    return torch.cat([m.chunk(2, dim=1)[0] for m in moments])


# The temporal decoder: stages of frame-by-frame layers, each ended by a mix over time


@dataclass(frozen=True)
class _Stage:
    """Modules and then a resnet that look at one frame, and the temporal half of that resnet.

    An upsampler belongs to the stage after it, so that its wide result never exists for the whole clip.
    """

    before: nn.Module | None
    upsampler: nn.Module | None
    block: SpatioTemporalResBlock
    upscale: int

    @property
    def channels(self) -> int:
        return self.block.temporal_res_block.in_channels

    @property
    def frame_modules(self) -> tuple[nn.Module, ...]:
        return tuple(module for module in (self.before, self.upsampler, self.block.spatial_res_block) if module is not None)


def _decode_clip(
    decoder: TemporalDecoder,
    z_T4hw: Tensor,
    out_THW3: Tensor,
    transfer: Transfer,
    plan: DecodePlan,
    progress: Progress | None,
) -> None:
    clip_frames, _, h, w = z_T4hw.shape
    pieces, weights = plan.pieces, Weights(transfer, resident=not plan.streamed)
    stages = _temporal_stages(decoder)
    clip_elements = [clip_frames * stage.channels * h * w * stage.upscale**2 for stage in stages]
    picture_positions = out_THW3.shape[1] * out_THW3.shape[2]
    picture_spans = list(position_spans(picture_positions, pieces.positions(3, clip_frames)))
    chunk_frames = [pieces.frames(stage.channels, h * stage.upscale, w * stage.upscale) for stage in stages]
    meter = _Meter(
        sum(
            math.ceil(clip_frames / frames) + 2 * math.ceil(h * w * stage.upscale**2 / pieces.positions(stage.channels, clip_frames))
            for frames, stage in zip(chunk_frames, stages, strict=True)
        )
        + math.ceil(clip_frames / chunk_frames[-1])
        + len(picture_spans),
        progress,
    )

    def new_clip(chunks: Iterable[Tensor], channels: int) -> Clip | ParkedClip:
        positions = pieces.positions(channels, clip_frames)
        return ParkedClip(chunks, positions, transfer) if plan.parked else Clip(chunks, positions)

    chunks: Iterator[Tensor] = iter(z_T4hw.split(1))
    for i, stage in enumerate(stages):
        spatial = partial(_run_stage, stage, plan.strips)
        statistics = GroupStatistics(stage.block.temporal_res_block.norm1)
        with weights.stage(stage.frame_modules):
            clip = new_clip(statistics.passing(run_frames([spatial], regrouped(chunks, chunk_frames[i]), clip_frames, meter.tick), clip_frames), stage.channels)
        # Up to what the widest stage holds anyway, memory may be spent on not computing twice.
        spare_elements = 0 if plan.parked else max(clip_elements) - clip_elements[i]
        with weights.stage((stage.block.temporal_res_block, stage.block.time_mixer)):
            mix_frames(stage.block, clip, statistics, spare_elements=spare_elements, tick=meter.tick)
        chunks = clip.drain()

    with weights.stage((decoder.conv_norm_out, decoder.conv_out)):
        head = partial(_run_head, decoder, plan.strips)
        pictures = Clip(run_frames([head], regrouped(chunks, chunk_frames[-1]), clip_frames, meter.tick), pieces.positions(3, clip_frames))
    with weights.stage((decoder.time_conv_out,)):
        for span in picture_spans:
            rgb_3TP = _to_picture(convolve_time(decoder.time_conv_out, pictures.gather(span)), out_THW3.dtype)
            out_THW3.view(clip_frames, picture_positions, 3)[:, span] = rgb_3TP.permute(1, 2, 0).to(out_THW3.device)
            meter.tick()


def _run_stage(stage: _Stage, strips: Pieces | None, x_FCHW: Tensor) -> Tensor:
    """The frame-by-frame half of a stage, in strips where one frame is more than a piece."""
    block: Any = stage.block.spatial_res_block
    upsampler = stage.upsampler
    if hasattr(stage.before, "to_q"):
        x_FCHW = _attend_frame(stage.before, x_FCHW, strips)
    elif stage.before is not None:
        x_FCHW = stage.before(x_FCHW)
    factor = 1 if upsampler is None else 2
    height, width = factor * x_FCHW.shape[2], factor * x_FCHW.shape[3]
    rows = height if strips is None else strips.rows(stage.channels, width)
    if len(x_FCHW) > 1 or rows >= height:
        return resnet(block, x_FCHW if upsampler is None else upsampler(x_FCHW))
    if upsampler is not None:
        return resnet_in_strips(block, upsampled_rows(upsampler, x_FCHW), height, rows)
    return resnet_in_strips(block, rows_of(x_FCHW), height, rows, out=x_FCHW if block.conv_shortcut is None else None)


def _attend_frame(attention: Any, x_FCHW: Tensor, strips: Pieces | None) -> Tensor:
    """The middle's attention over a frame. Its heads are so wide that some kernels hold a score matrix, so queries go in pieces."""
    tokens_FPC = attention.group_norm(x_FCHW.flatten(2)).transpose(1, 2)
    chunk_queries = None if strips is None else max(1, strips.elements // tokens_FPC.shape[:2].numel())
    y_FPC = self_attention(attention, tokens_FPC, chunk_queries)
    return x_FCHW + y_FPC.transpose(1, 2).unflatten(2, x_FCHW.shape[2:])


def _run_head(decoder: TemporalDecoder, strips: Pieces | None, x_FCHW: Tensor) -> Tensor:
    norm, conv = decoder.conv_norm_out, decoder.conv_out
    _, channels, height, width = x_FCHW.shape
    rows = height if strips is None else strips.rows(channels, width)
    if len(x_FCHW) > 1 or rows >= height:
        return conv(norm_silu(norm, x_FCHW))
    return norm_conv_in_strips(norm, conv, x_FCHW, rows)


def _temporal_stages(decoder: TemporalDecoder) -> list[_Stage]:
    mid = decoder.mid_block
    # diffusers, too, stops at the shorter of the two lists.
    middle = list(zip([decoder.conv_in, *mid.attentions], children(mid, "resnets"), strict=False))
    stages = [_Stage(before, None, block, 1) for before, block in middle]
    upscale, upsampler = 1, None
    for up_block in decoder.up_blocks:
        for block in children(up_block, "resnets"):
            upscale *= 1 if upsampler is None else 2
            stages.append(_Stage(None, upsampler, block, upscale))
            upsampler = None
        upsampler = next(iter(children(up_block, "upsamplers")), None)
    return stages


# The plain decoder and the encoder: frame by frame from end to end


def _decode_frames(
    vae: AutoencoderKL,
    z_T4hw: Tensor,
    out_THW3: Tensor,
    transfer: Transfer,
    progress: Progress | None,
) -> None:
    ops = _decoder_ops(vae)
    meter = _Meter(len(z_T4hw) * len(ops), progress)
    with Weights(transfer, resident=True).stage((vae.decoder, *optional(vae, "post_quant_conv"))):
        for i, rgb_13HW in enumerate(run_frames(ops, z_T4hw.split(1), len(z_T4hw), meter.tick)):
            out_THW3[i : i + 1] = _to_picture(rgb_13HW, out_THW3.dtype).permute(0, 2, 3, 1).to(out_THW3.device)


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
