"""Layers that look at one frame at a time, over a clip that lies in chunks of frames.

Shape suffixes: F frames of one chunk, C channels, H and W the frame, B images, E the time embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pieces import Repeats

FrameOp = Callable[[Tensor], Tensor]
"""Maps [F,C,H,W] to [F,C',H',W'], each frame by itself."""


def children(block: nn.Module, name: str) -> list[Any]:
    """The modules of a list that some blocks have not, or have as None."""
    return list(getattr(block, name, None) or ())


def optional(owner: nn.Module, name: str) -> list[nn.Module]:
    module = getattr(owner, name, None)
    return [] if module is None else [module]


def resnet(block: Any, x_FCHW: Tensor, temb_1E: Tensor | None = None) -> Tensor:
    """A `ResnetBlock2D` as SVD uses it (SiLU, scale 1, one time embedding for all frames), with two copies of the input less."""
    y_FCHW = block.conv1(norm_silu(block.norm1, x_FCHW))
    if temb_1E is not None:
        y_FCHW += block.time_emb_proj(F.silu(temb_1E))[:, :, None, None]
    y_FCHW = block.conv2(norm_silu(block.norm2, y_FCHW))
    return y_FCHW.add_(x_FCHW if block.conv_shortcut is None else block.conv_shortcut(x_FCHW))


def norm_silu(norm: nn.GroupNorm, x_FCHW: Tensor) -> Tensor:
    return F.silu(norm(x_FCHW), inplace=True)


def run_frames(ops: Sequence[FrameOp], chunks: Iterable[Tensor], frames: int, tick: Callable[[], None]) -> Iterator[Tensor]:
    """Each chunk of a clip of `frames` frames after all of `ops`; it holds one chunk at a time, and none while the next is being fetched."""
    repeats, shape = None, torch.Size()
    for x_FCHW in chunks:
        repeats = repeats or Repeats(x_FCHW.device, frames)
        if repeats(len(x_FCHW)):
            x_FCHW = x_FCHW.new_empty(len(x_FCHW), *shape)
        else:
            for op in ops:
                x_FCHW = op(x_FCHW)
                tick()
            shape = x_FCHW.shape[1:]
        yield x_FCHW
        del x_FCHW


def regrouped(chunks: Iterable[Tensor], frames: int) -> Iterator[Tensor]:
    """The same frames in chunks of `frames`, the last one of what is left; chunks of that size pass without a copy."""
    held: list[Tensor] = []
    for x_FCHW in chunks:
        if not held and len(x_FCHW) == frames:
            yield x_FCHW
            del x_FCHW
            continue
        while len(x_FCHW):
            missing = frames - sum(map(len, held))
            held.append(x_FCHW[:missing] if len(x_FCHW) > missing else x_FCHW)
            x_FCHW = x_FCHW[missing:]
            if sum(map(len, held)) == frames:
                whole = _whole(held)
                yield whole
                del whole
        del x_FCHW
    if held:
        yield _whole(held)


def _whole(held: list[Tensor]) -> Tensor:
    """All frames in one tensor; empties the list."""
    whole = held[0] if len(held) == 1 else torch.cat(held)
    held.clear()
    return whole


def frame_chunks(x_BCHW: Tensor, frames: int, weight: Tensor) -> Iterator[Tensor]:
    """Chunks of frames, where and as the weight is: encoder and decoder may lie on different devices in different dtypes."""
    return (x_FCHW.to(weight.device, weight.dtype) for x_FCHW in x_BCHW.split(frames))
