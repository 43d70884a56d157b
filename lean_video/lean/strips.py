"""Layers of one frame in strips of rows, for frames that are too large to be worked on whole: the same result.

A 3x3 convolution looks one row past its strip, a GroupNorm needs the statistics of the whole frame first.
Shape suffixes: C and I channels, H and W the frame, R rows of one strip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .group_norm import GroupStatistics, normalise_silu
from .pieces import Repeats

Rows = Callable[[int, int], Tensor]
"""Gives rows a..b of a frame, [1,C,R,W]."""


def spans(height: int, rows: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """From and to of each strip; on the meta device, of those that stand for all."""
    repeats = Repeats(device, height)
    for start in range(0, height, rows):
        strip = start, min(start + rows, height)
        if not repeats(strip[1] - start):
            yield strip


def rows_of(x_1CHW: Tensor) -> Rows:
    return lambda a, b: x_1CHW[:, :, a:b]


def upsampled_rows(upsampler: Any, x_1CHW: Tensor) -> Rows:
    """Rows of the frame at twice the size, computed when asked for, so that it never exists whole."""

    def read(a: int, b: int) -> Tensor:
        first, last = max(0, (a - 1) // 2), min(x_1CHW.shape[2], (b + 2) // 2)
        return upsampler(x_1CHW[:, :, first:last])[:, :, a - 2 * first : b - 2 * first]

    return read


def resnet_in_strips(block: Any, read: Rows, height: int, rows: int, out: Tensor | None = None) -> Tensor:
    """A `ResnetBlock2D` without time embedding over one frame, [1,C,H,W].

    out: where the result goes: the frame that is read itself, or nothing to make a new one.
    """
    device = block.norm1.weight.device
    norm1 = _statistics(block.norm1, read, height, rows).scale_and_shift(block.conv1.weight.dtype)
    statistics = GroupStatistics(block.norm2)
    inner: Tensor | None = None
    in_place = out is not None
    for a, b in spans(height, rows, device):
        x_1CRW, top = _with_halo(read, a, b, height)
        y_1IRW: Tensor = block.conv1(normalise_silu(x_1CRW, *norm1))[:, :, top : top + b - a]
        if inner is None:
            inner = y_1IRW.new_empty(*y_1IRW.shape[:2], height, y_1IRW.shape[3])
        inner[:, :, a:b] = y_1IRW
        statistics.add(y_1IRW, channel_axis=1)
        del y_1IRW
        if not in_place:
            residual = x_1CRW[:, :, top : top + b - a]
            residual = residual if block.conv_shortcut is None else block.conv_shortcut(residual)
            out = torch.empty_like(inner) if out is None else out
            out[:, :, a:b] = residual
            del residual
        del x_1CRW
    assert inner is not None
    assert out is not None
    norm2 = statistics.scale_and_shift(inner.dtype)
    for a, b in spans(height, rows, device):
        h_1IRW, top = _with_halo(rows_of(inner), a, b, height)
        out[:, :, a:b] += block.conv2(normalise_silu(h_1IRW, *norm2))[:, :, top : top + b - a]
        del h_1IRW
    return out


def norm_conv_in_strips(norm: nn.GroupNorm, conv: nn.Conv2d, x_1CHW: Tensor, rows: int) -> Tensor:
    """conv(silu(norm(x))), [1,I,H,W]."""
    height, device = x_1CHW.shape[2], x_1CHW.device
    read = rows_of(x_1CHW)
    scale_and_shift = _statistics(norm, read, height, rows).scale_and_shift(x_1CHW.dtype)
    out: Tensor = x_1CHW.new_empty(1, conv.out_channels, *x_1CHW.shape[2:])
    for a, b in spans(height, rows, device):
        x_1CRW, top = _with_halo(read, a, b, height)
        out[:, :, a:b] = conv(normalise_silu(x_1CRW, *scale_and_shift))[:, :, top : top + b - a]
        del x_1CRW
    return out


def _statistics(norm: nn.GroupNorm, read: Rows, height: int, rows: int) -> GroupStatistics:
    statistics, device = GroupStatistics(norm), norm.weight.device
    for a, b in spans(height, rows, device):
        statistics.add(read(a, b), channel_axis=1)
    return statistics


def _with_halo(read: Rows, a: int, b: int, height: int) -> tuple[Tensor, int]:
    """Rows a..b with one more on each side that is inside the frame, and where a is among them."""
    first = max(0, a - 1)
    return read(first, min(height, b + 1)), a - first
