"""Exact forward of diffusers' SVD UNet in little memory.

Every layer is run on as little of the clip as it can be without changing its result: layers that look at one frame on chunks of frames,
layers that mix frames on chunks of positions, the temporal norms in two passes. Only the clip between two layers, one copy of it as tokens,
and the skip connections exist whole. Chunk sizes change the result by rounding error only.

Folded, since they are the same at every step of a run: cross-attention, which has one key and so gives every token the same vector
(`transformer.one_key_attention`), and the embedding of the frame positions.

Shape suffixes: B guidance halves, T frames of the clip, F frames of one chunk, C channels, D channels of the context, E the time embedding,
P positions, h and w the latent frame, H and W the frame at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .clip import Clip, drained
from .frames import FrameOp, children, frame_chunks, norm_silu, regrouped, resnet, run_frames
from .group_norm import GroupStatistics
from .pieces import Pieces, Repeats, default_pieces
from .temporal import mix_frames, temporal_share
from .transfer import Arrival, Stage, Transfer, Weights
from .transformer import frame_positions, gather_tokens, mix_space, mix_time, one_key_attention, split_frames, to_tokens

if TYPE_CHECKING:
    from diffusers import UNetSpatioTemporalConditionModel
    from diffusers.models.resnet import SpatioTemporalResBlock
    from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel


@dataclass(frozen=True)
class UNetPlan:
    """What a forward trades for what. The results are the same.

    pieces    how much of a clip is worked on at a time
    streamed  weights lie on the host and come to the device for the layers that need them; else they stay there
    together  both guidance halves go through each layer in turn, so that streamed weights come once a step; else one half after the other
              goes through the whole network, so that one half's skip connections exist at a time
    parked    skip connections wait on the host
    """

    pieces: Pieces
    streamed: bool = False
    together: bool = False
    parked: bool = False


def sampling_plans(device: torch.device) -> tuple[UNetPlan, ...]:
    """From the fastest to the smallest: each takes less memory than the one before it."""
    widest = default_pieces(device)
    fine, finest = Pieces(min(widest.elements, 2**22)), Pieces(2**20)
    plans = (
        UNetPlan(widest),
        UNetPlan(fine),
        UNetPlan(fine, parked=True),
        UNetPlan(fine, streamed=True, together=True),
        UNetPlan(fine, streamed=True, together=True, parked=True),
        UNetPlan(fine, streamed=True, parked=True),
        UNetPlan(finest, streamed=True, parked=True),
    )
    return tuple(dict.fromkeys(plans))


class LeanUNet:
    """The UNet for clips of one length under given conditionings, one for each guidance half.

    unet: its weights are on the host, and stay there but for what the plan has on the device.
    embedding_B1D, added_ids_B3: as the UNet takes them, the embedding on the host.
    transfer: to the device that computes; default, the host itself.
    plan: default, everything on the device, in pieces that suit it.
    weights: of this network by the same transfer, streamed or not as the plan has it, when they are to outlive this object.
    tick: called after every piece of work; may raise to cancel.
    """

    @torch.no_grad()
    def __init__(
        self,
        unet: UNetSpatioTemporalConditionModel,
        embedding_B1D: Tensor,
        added_ids_B3: Tensor,
        frames: int,
        *,
        transfer: Transfer | None = None,
        plan: UNetPlan | None = None,
        weights: Weights | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._unet: Any = unet
        self._frames = frames
        self._transfer = transfer or Transfer(torch.device("cpu"))
        device = self._transfer.device
        self._plan = plan or UNetPlan(default_pieces(device))
        self._pieces = self._plan.pieces
        self._weights = weights or Weights(self._transfer, resident=not self._plan.streamed)
        self._tick = tick
        self._added_ids_B3 = added_ids_B3.to(device)
        # Keyed by module: the folded cross-attention [1,1,C] of each half, and the frame positions [T,C].
        self._contexts: dict[nn.Module, list[Tensor]] = {}
        self._positions: dict[nn.Module, Tensor] = {}
        for transformer in _transformers(unet):
            self._positions[transformer] = frame_positions(transformer, frames, embedding_B1D).to(device)
            for block in (*transformer.transformer_blocks, *transformer.temporal_transformer_blocks):
                self._contexts[block] = [one_key_attention(block.attn2, context_11D).to(device) for context_11D in embedding_B1D.split(1)]

    @torch.no_grad()
    def __call__(self, x_BT8hw: Tensor, timestep: Tensor) -> Tensor:
        """What `unet(x, timestep, ...)` gives, [B,T,4,h,w], up to rounding; all on the device."""
        walks = [self._walk(half, x_T8hw, timestep) for half, x_T8hw in enumerate(x_BT8hw)]
        groups = [walks] if self._plan.together else [[walk] for walk in walks]
        return torch.stack([v_T4hw for group in groups for v_T4hw in self._run_abreast(group)])

    def _run_abreast(self, walks: Sequence[Generator[Stage, None, Tensor]]) -> list[Tensor]:
        """Takes all walks, which have the same stages, through each stage before the next; their results."""
        results: list[Tensor] = []
        modules, *_ = [next(walk) for walk in walks]
        while not results:
            with self._weights.stage(modules):
                for walk in walks:
                    try:
                        modules = next(walk)
                    except StopIteration as end:
                        results.append(end.value)
        return results

    def _walk(self, half: int, x_T8hw: Tensor, timestep: Tensor) -> Generator[Stage, None, Tensor]:
        """One half through the network. It stops before each stage to tell whose weights come next."""
        unet = self._unet
        yield unet.time_embedding, unet.add_embedding, unet.conv_in
        temb_1E = self._time_embedding(half, timestep, x_T8hw.dtype)
        channels, (height, width) = unet.conv_in.out_channels, x_T8hw.shape[2:]
        skips: list[list[Tensor]] = []
        chunks = self._keep(self._run([unet.conv_in], frame_chunks(x_T8hw, self._pieces.frames(channels, height, width), unet.conv_in.weight)), skips)
        for block in unet.down_blocks:
            for block_resnet, attention in _pairs(block):
                clip = yield from self._resnet(block_resnet, regrouped(chunks, self._frames_at(block_resnet, skips[-1])), temb_1E)
                if attention is not None:
                    yield from self._transformer(attention, clip, half)
                chunks = self._keep(clip.chunks, skips)
            for downsampler in children(block, "downsamplers"):
                yield (downsampler,)
                chunks = self._keep(self._run([downsampler], chunks), skips)

        first, *rest = unet.mid_block.resnets
        clip = yield from self._resnet(first, chunks, temb_1E)
        for attention, block_resnet in zip(unet.mid_block.attentions, rest, strict=True):
            yield from self._transformer(attention, clip, half)
            clip = yield from self._resnet(block_resnet, clip.drain(), temb_1E)

        chunks, upsampler = clip.drain(), []
        for block in unet.up_blocks:
            for block_resnet, attention in _pairs(block):
                skip = skips.pop()
                frames = self._frames_at(block_resnet, skip)
                if upsampler:  # it becomes part of the resnet, so that its wide result exists for one chunk of frames only
                    chunks = run_frames([partial(_upsample, *upsampler, skip[0].shape[2:])], regrouped(chunks, frames), self._frames, self._tick)
                chunks = _joined(regrouped(chunks, frames), regrouped(self._fetched(skip), frames))
                clip = yield from self._resnet(block_resnet, chunks, temb_1E, *upsampler)
                if attention is not None:
                    yield from self._transformer(attention, clip, half)
                chunks, upsampler = clip.drain(), []
            upsampler = children(block, "upsamplers")

        yield unet.conv_norm_out, unet.conv_out
        return torch.cat(self._run([partial(norm_silu, unet.conv_norm_out), unet.conv_out], chunks))

    def _time_embedding(self, half: int, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        unet = self._unet
        added_1A = unet.add_time_proj(self._added_ids_B3[half]).reshape(1, -1).to(dtype)
        return unet.time_embedding(unet.time_proj(timestep.reshape(1)).to(dtype)) + unet.add_embedding(added_1A)

    def _keep(self, chunks: list[Tensor], skips: list[list[Tensor]]) -> Iterator[Tensor]:
        """Adds a clip to the skip connections; its chunks for the next layer."""
        if not self._plan.parked:
            skips.append(chunks)
            return iter(chunks)
        skips.append([self._transfer.park(x_FCHW) for x_FCHW in chunks])
        return drained(chunks)

    def _fetched(self, skip: list[Tensor]) -> Iterator[Tensor]:
        """The chunks of a skip connection, which lets go of them; of a parked one, each is on its way while the one before it is worked on."""
        if not self._plan.parked:
            yield from drained(skip)
            return
        coming: Arrival | None = None
        for x_FCHW in drained(skip):
            arrived, coming = coming, self._transfer.fetch([x_FCHW])
            if arrived is not None:
                yield arrived()[0]
            del arrived, x_FCHW
        if coming is not None:
            yield coming()[0]

    def _frames_at(self, block: SpatioTemporalResBlock, clip: list[Tensor]) -> int:
        """Frames of a chunk of the block's result, on a clip of this size."""
        return self._pieces.frames(block.spatial_res_block.out_channels, *clip[0].shape[2:])

    def _run(self, ops: Sequence[FrameOp], chunks: Iterable[Tensor]) -> list[Tensor]:
        return list(run_frames(ops, chunks, self._frames, self._tick))

    def _resnet(self, block: SpatioTemporalResBlock, chunks: Iterable[Tensor], temb_1E: Tensor, *before: nn.Module) -> Generator[Stage, None, Clip]:
        """A new clip; `before` are modules that run as `chunks` are drawn."""
        yield *before, block.spatial_res_block
        statistics = GroupStatistics(block.temporal_res_block.norm1)
        chunks = statistics.passing(run_frames([partial(resnet, block.spatial_res_block, temb_1E=temb_1E)], chunks, self._frames, self._tick), self._frames)
        channels = block.spatial_res_block.out_channels
        clip = Clip(chunks, self._pieces.positions(channels, self._frames))
        yield block.temporal_res_block, block.time_mixer
        # A transformer of this size holds as much in tokens as may be spared here.
        spare_elements = sum(x_FCHW.numel() for x_FCHW in clip.chunks)
        mix_frames(block, clip, statistics, spare_elements=spare_elements, tick=self._tick, temb_1E=temb_1E)
        return clip

    def _transformer(self, transformer: TransformerSpatioTemporalModel, clip: Clip, half: int) -> Generator[Stage, None, None]:
        """Adds the transformer's result to the clip in place."""
        tokens: list[Tensor] = []
        chunk_tokens = self._pieces.tokens(clip.frame_shape[0])
        layers = list(zip(transformer.transformer_blocks, transformer.temporal_transformer_blocks, strict=True))
        for index, (spatial, temporal) in enumerate(layers):
            first, last = index == 0, index + 1 == len(layers)
            yield (*((transformer.norm, transformer.proj_in) if first else ()), *_without_cross_attention(spatial))
            if first:
                tokens = [transformer.proj_in(to_tokens(transformer.norm(x_FCHW))) for x_FCHW in clip.chunks]
            repeats = Repeats(clip.device, self._frames)
            for tokens_FPC in tokens:
                if repeats(len(tokens_FPC)):
                    continue
                mix_space(spatial, tokens_FPC, self._contexts[spatial][half], chunk_tokens)
                self._tick()
            yield (*_without_cross_attention(temporal), transformer.time_mixer, *((transformer.proj_out,) if last else ()))
            share = temporal_share(transformer.time_mixer, clip.dtype)
            repeats = Repeats(clip.device, math.prod(clip.frame_shape[1:]))
            for span in clip.spans():
                if repeats(span.stop - span.start):
                    continue
                x_PTC = gather_tokens(tokens, span)
                y_PTC = mix_time(temporal, x_PTC + self._positions[transformer], self._contexts[temporal][half], chunk_tokens)
                y_PTC = torch.lerp(x_PTC, y_PTC, share)
                del x_PTC
                if last:
                    y_PTC = transformer.proj_out(y_PTC)
                    for x_FCHW, y_FPC in split_frames(y_PTC, clip.chunks):
                        x_FCHW.view(*x_FCHW.shape[:2], -1)[:, :, span] += y_FPC.transpose(1, 2)
                else:
                    for tokens_FPC, y_FPC in split_frames(y_PTC, tokens):
                        tokens_FPC[:, span] = y_FPC
                del y_PTC
                self._tick()


def _pairs(block: Any) -> Iterator[tuple[Any, Any]]:
    """Each resnet of a block with its transformer, None where the block has none."""
    attentions = children(block, "attentions") or [None] * len(block.resnets)
    return zip(block.resnets, attentions, strict=True)


def _joined(chunks: Iterator[Tensor], skips: Iterator[Tensor]) -> Iterator[Tensor]:
    for x_FCHW in chunks:
        x_FCHW = torch.cat([x_FCHW, next(skips)], dim=1)
        yield x_FCHW
        del x_FCHW


def _upsample(upsampler: Any, size: torch.Size, x_FCHW: Tensor) -> Tensor:
    """Twice the size, or as large as the skip connection that it will meet where that is not twice."""
    doubled = tuple(size) == (2 * x_FCHW.shape[2], 2 * x_FCHW.shape[3])
    return upsampler(x_FCHW, None if doubled else tuple(size))


def step_weights(unet: nn.Module) -> Iterator[Tensor]:
    """The weights that a step needs on the device: all but those that are folded."""
    folded = {tensor for transformer in _transformers(unet) for tensor in transformer.time_pos_embed.parameters()}
    for transformer in _transformers(unet):
        for block in (*transformer.transformer_blocks, *transformer.temporal_transformer_blocks):
            folded |= {*block.norm2.parameters(), *block.attn2.parameters()}
    return (tensor for tensor in unet.parameters() if tensor not in folded)


def _transformers(unet: nn.Module) -> Iterator[Any]:
    from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel

    return (module for module in unet.modules() if isinstance(module, TransformerSpatioTemporalModel))


def _without_cross_attention(block: Any) -> Stage:
    """The children of a transformer block that a step runs: its cross-attention is folded, and the norm before that with it."""
    return tuple(module for name, module in block.named_children() if name not in ("norm2", "attn2"))
