"""GroupNorm over a clip that is never seen whole: gather the statistics piece by piece, then apply them piece by piece.

Shape suffixes: C channels, T frames of the clip, P positions, G groups, R rows (one channel of one frame each).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pieces import Repeats

_AT_ONCE = 2**22  # elements, which are copied in higher precision


class GroupStatistics:
    """Mean and variance of each group of one GroupNorm, over everything that was given to `add`.

    A row is reduced in float32 (float64 for a float64 model) around its own mean, so nothing cancels.
    Rows and pieces are then merged in float64 (float32 on MPS, which has no float64) by the parallel update of
    Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979).
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        self._norm = norm
        self._count = 0
        self._mean_G: Tensor | None = None
        self._squares_G: Tensor | None = None  # sum of squared distances from the mean

    def add(self, x: Tensor, channel_axis: int = 0) -> None:
        """Takes in a piece: [C,T,...], or [T,C,...] with `channel_axis` 1. Any split of the clip will do."""
        x = x.flatten(2)
        repeats = Repeats(x.device, x.shape[2])
        for piece in x.split(max(1, _AT_ONCE // (x.shape[0] * x.shape[1])), dim=2):
            if not repeats(piece.shape[2]):
                self._add(piece, channel_axis)

    def _add(self, x: Tensor, channel_axis: int) -> None:
        rows = x.to(_at_least_float32(x.dtype))
        row_mean = rows.mean(-1, keepdim=True)
        # Not vector_norm: on the CPU it adds up float32 in one long chain and loses two digits; sum is pairwise.
        row_squares = rows.sub(row_mean).square_().sum(-1)
        self._merge(self._by_group(row_mean.squeeze(-1), channel_axis), self._by_group(row_squares, channel_axis), rows.shape[2])

    def passing(self, chunks: Iterable[Tensor], frames: int) -> Iterator[Tensor]:
        """The same chunks [F,C,H,W] of `frames` frames, each taken in on its way."""
        repeats = None
        for x_FCHW in chunks:
            repeats = repeats or Repeats(x_FCHW.device, frames)
            if not repeats(len(x_FCHW)):
                self.add(x_FCHW, channel_axis=1)
            yield x_FCHW
            del x_FCHW

    def scale_and_shift(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The norm as one multiply-add per channel: two [C,1,1] tensors for inputs of `dtype`, in at least float32."""
        if self._mean_G is None or self._squares_G is None:
            raise ValueError("no statistics were gathered")
        deviation_G = torch.sqrt(self._squares_G / self._count + self._norm.eps)
        channels_per_group = self._norm.num_channels // self._norm.num_groups
        scale_C = self._norm.weight.to(deviation_G.dtype) / deviation_G.repeat_interleave(channels_per_group)
        shift_C = self._norm.bias.to(scale_C.dtype) - self._mean_G.repeat_interleave(channels_per_group) * scale_C
        precision = _at_least_float32(dtype)
        return scale_C.to(precision)[:, None, None], shift_C.to(precision)[:, None, None]

    def _by_group(self, rows: Tensor, channel_axis: int) -> Tensor:
        wide = torch.float32 if rows.device.type == "mps" else torch.float64
        return rows.movedim(channel_axis, 0).reshape(self._norm.num_groups, -1).to(wide)

    def _merge(self, mean_GR: Tensor, squares_GR: Tensor, row_length: int) -> None:
        mean_G = mean_GR.mean(1)
        squares_G = squares_GR.sum(1) + row_length * (mean_GR - mean_G[:, None]).square().sum(1)
        count = row_length * mean_GR.shape[1]
        if self._mean_G is not None and self._squares_G is not None:
            total = self._count + count
            step_G = mean_G - self._mean_G
            mean_G = self._mean_G + step_G * (count / total)
            squares_G = self._squares_G + squares_G + step_G.square() * (self._count * count / total)
            count = total
        self._mean_G, self._squares_G, self._count = mean_G, squares_G, count


def normalise_silu(x_CTP: Tensor, scale_C11: Tensor, shift_C11: Tensor) -> Tensor:
    """SiLU of the normalised piece, in the dtype of the piece; half precision is rounded once, at the end."""
    y_CTP = torch.addcmul(shift_C11, x_CTP, scale_C11)
    return F.silu(y_CTP, inplace=True).to(x_CTP.dtype)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
