"""The network of the RIFE 4 line: blocks that refine, coarse to fine, where each pixel of the frame between comes from.

Paper: Huang et al., Real-Time Intermediate Flow Estimation for Video Frame Interpolation, arXiv:2011.06294. The releases of the 4 line (Practical-RIFE)
differ from it and among each other as `layouts` lists.

The tensors' names: B pairs, H W pixels of the padded frame, h w pixels at a block's scale s (h = H/s), F features of a frame, C = 3 + F, I O channels into
and out of a block, K features carried from block to block. "moves" are the five planes that the blocks predict: the flow (x, y) to the first frame, the
flow to the second, both in pixels of the frame, and the mask that blends the two, before the sigmoid.

Where a straightforward forward would make planes of the whole frame only to shrink them for the next block, this one makes the pixels that the shrinking
reads. The results are the same up to rounding.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layouts import Body, Layout
from .warp import grid_of, warped

_FAR = 32  # pixels that a flow has to change by in the second block for 4.0 to start over
_SLOPE = 0.2


class IFNet(nn.Module):
    """RIFE of one layout. Weights may be half precision: frames, flows and masks stay float32, and the convolutions alone see halves."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.encode = _encoder(layout)
        self.blocks = nn.ModuleList(_Block(layout, index) for index in range(len(layout.widths)))

    def features(self, x_B3HW: Tensor) -> Tensor | None:
        """What the blocks see of a frame beside its pixels, [B,F,H,W] float32; None where the layout has no encoder. H and W are even."""
        if self.layout.encoder is None:
            return None
        *inner, last = self.encode
        x = x_B3HW.to(self.dtype)
        for layer in inner:
            x = layer(x)
            if len(inner) > 1:  # the encoder of two convolutions (4.7 to 4.9) has no activation
                F.leaky_relu_(x, _SLOPE)
        return last(x).float()

    def forward(self, a_BCHW: Tensor, b_BCHW: Tensor, t_B111: Tensor, scale: float = 1.0, ensemble: bool = False) -> Tensor:
        """The frames at times `t_B111` between frames `a_BCHW` and `b_BCHW` (pixels in 0..1, then features): [B,3,H,W] float32.

        scale     of the frames in which motion is looked for: 0.5 finds motion twice as large, 2 finer detail; a power of two
        ensemble  each block looks at the pair in both orders of time and the mean of what it sees counts

        H and W are multiples of `multiple_of(scale)`. With carried features (4.21 on) no release of RIFE knows an ensemble; here each order carries its own.
        """
        count = len(a_BCHW)
        if ensemble:
            a_BCHW, b_BCHW = torch.cat((a_BCHW, b_BCHW)), torch.cat((b_BCHW, a_BCHW))
            t_B111 = torch.cat((t_B111, 1 - t_B111))
        moves_B5HW = self._moves(a_BCHW, b_BCHW, t_B111, scale, ensemble, self.layout.looks_twice)[:count]
        grid_12HW = grid_of(a_BCHW)
        from_a_B3HW = warped(a_BCHW[:count, :3], moves_B5HW[:, :2], grid_12HW)
        from_b_B3HW = warped(b_BCHW[:count, :3], moves_B5HW[:, 2:4], grid_12HW)
        return torch.lerp(from_b_B3HW, from_a_B3HW, moves_B5HW[:, 4:].sigmoid_())

    def multiple_of(self, scale: float) -> int:
        """What height and width must be multiples of, so that the coarsest block, which halves its input twice, comes out even."""
        return int(4 * self.layout.scales[0] / min(scale, 1))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _moves(self, a_BCHW: Tensor, b_BCHW: Tensor, t_B111: Tensor, scale: float, ensemble: bool, looks_twice: bool) -> Tensor:
        """The moves of the whole frame; with `ensemble` the second half of the batch is the first in the other order, and so are its moves."""
        layout, grid_12HW = self.layout, grid_of(a_BCHW)
        scales = [s / scale for s in layout.scales]
        moves_B5HW: Tensor | None = None
        carried: list[Tensor] = []
        for index, (block, s) in enumerate(zip(self.blocks, scales, strict=True)):
            finer = scales[index + 1 :]
            x_BIhw = _seen(a_BCHW, b_BCHW, t_B111, grid_12HW, s, moves_B5HW, carried)
            y_BOhw = cast(Tensor, block(x_BIhw.to(self.dtype), 5 + (layout.carried if finer else 0))).float()
            if ensemble:
                y_BOhw[:, :5] = (y_BOhw[:, :5] + _other_order(y_BOhw[:, :5].roll(len(y_BOhw) // 2, 0))) / 2
            reach = s if layout.shuffled else 2 * s  # how many times smaller than the frame the prediction is
            step_B5HW = _resized(torch.cat((y_BOhw[:, :4] * reach, y_BOhw[:, 4:5]), 1), reach)
            if index == 1 and looks_twice and ((far_B := _far(step_B5HW)).is_meta or far_B.any()):
                return self._second_look(a_BCHW, b_BCHW, t_B111, scale, ensemble, far_B)
            if moves_B5HW is None:
                moves_B5HW = step_B5HW
            elif layout.mask_adds_up:
                moves_B5HW += step_B5HW
            else:
                moves_B5HW[:, :4] += step_B5HW[:, :4]
                moves_B5HW[:, 4:] = step_B5HW[:, 4:]
            if layout.carried and finer:
                # To grow to the whole frame and shrink for the next block comes to the same as growing by the ratio of the two.
                carried = [_resized(_resized(y_BOhw[:, 5:], reach / max(finer[0], 1)), max(1 / finer[0], 1))]
        assert moves_B5HW is not None
        return moves_B5HW

    def _second_look(self, a_BCHW: Tensor, b_BCHW: Tensor, t_B111: Tensor, scale: float, ensemble: bool, far_B: Tensor) -> Tensor:
        """The moves where those pairs of the batch that move far start over with every scale twice as coarse."""
        height, width = a_BCHW.shape[-2:]
        moves_B5HW = a_BCHW.new_empty(len(a_BCHW), 5, height, width)
        rows: Tensor | slice = slice(None) if far_B.is_meta or far_B.all() else far_B  # without numbers, what takes the most
        if rows is far_B:
            moves_B5HW[~far_B] = self._moves(a_BCHW[~far_B], b_BCHW[~far_B], t_B111[~far_B], scale, ensemble, False)
        multiple = self.multiple_of(scale / 2)
        padding = (0, -width % multiple, 0, -height % multiple)
        a, b = F.pad(a_BCHW[rows], padding), F.pad(b_BCHW[rows], padding)
        moves_B5HW[rows] = self._moves(a, b, t_B111[rows], scale / 2, ensemble, False)[..., :height, :width]
        return moves_B5HW


def _encoder(layout: Layout) -> nn.ModuleList:
    shape = layout.encoder
    if shape is None:
        return nn.ModuleList()
    inner = (nn.Conv2d(3 if index == 0 else shape.hidden, shape.hidden, 3, 2 if index == 0 else 1, 1) for index in range(shape.convolutions - 1))
    return nn.ModuleList((*inner, nn.ConvTranspose2d(shape.hidden, shape.features, 4, 2, 1)))


class _Block(nn.Module):
    def __init__(self, layout: Layout, index: int) -> None:
        super().__init__()
        width, body = layout.widths[index], layout.body
        self.shuffled = layout.shuffled
        self.skip = body == "prelu"
        self.conv0 = nn.Sequential(_convolution(layout.inputs(index), width // 2, 2, body), _convolution(width // 2, width, 2, body))
        layers = (_Residual(width, layout.groups) if body == "residual" else _convolution(width, width, 1, body) for _ in range(8))
        self.convblock = nn.Sequential(*layers)
        self.lastconv = nn.ConvTranspose2d(width, layout.outputs * (4 if layout.shuffled else 1), 4, 2, 1)

    def forward(self, x_BIhw: Tensor, outputs: int) -> Tensor:
        """The first `outputs` channels of the prediction, [B,O,h,w], or [B,O,h/2,w/2] where it is not shuffled; those that nobody reads are not computed."""
        x_BWhw = self.conv0(x_BIhw)
        y_BWhw = self.convblock(x_BWhw)
        if self.skip:
            y_BWhw += x_BWhw
        kept, bias = outputs * (4 if self.shuffled else 1), cast(Tensor, self.lastconv.bias)
        y_BOhw = F.conv_transpose2d(y_BWhw, self.lastconv.weight[:, :kept], bias[:kept], stride=2, padding=1)
        return F.pixel_shuffle(y_BOhw, 2) if self.shuffled else y_BOhw


class _Residual(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 1, 1, groups=groups)
        self.beta = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x_BWhw: Tensor) -> Tensor:
        return F.leaky_relu_(torch.addcmul(x_BWhw, self.conv(x_BWhw), self.beta), _SLOPE)


def _convolution(inputs: int, outputs: int, stride: int, body: Body) -> nn.Sequential:
    activation = nn.PReLU(outputs) if body == "prelu" else nn.LeakyReLU(_SLOPE, inplace=True)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), activation)


def _seen(a_BCHW: Tensor, b_BCHW: Tensor, t_B111: Tensor, grid_12HW: Tensor, s: float, moves_B5HW: Tensor | None, carried: list[Tensor]) -> Tensor:
    """What a block with scale `s` sees, [B,I,h,w]: both frames moved as far as is known, their features likewise, the time, and what the block before found."""
    hints: list[Tensor] = []
    if moves_B5HW is None:
        a_BCPQ, b_BCPQ = _read(a_BCHW, s), _read(b_BCHW, s)
    else:
        moves_B5PQ, grid_12PQ = _read(moves_B5HW, s), _read(grid_12HW, s)
        a_BCPQ, b_BCPQ = warped(a_BCHW, moves_B5PQ[:, :2], grid_12PQ), warped(b_BCHW, moves_B5PQ[:, 2:4], grid_12PQ)
        moves_B5hw = _shrunk(moves_B5PQ, s)
        hints = [moves_B5hw[:, 4:], *carried, moves_B5hw[:, :4] / s]
    a, b = _shrunk(a_BCPQ, s), _shrunk(b_BCPQ, s)
    return torch.cat([a[:, :3], b[:, :3], a[:, 3:], b[:, 3:], t_B111.expand(-1, 1, *a.shape[-2:]), *hints], 1)


def _read(x: Tensor, s: float) -> Tensor:
    """Of [B,C,H,W], the pixels that a bilinear shrinking by `s` reads: the middle 2x2 of every s x s, [B,C,2h,2w]; all of them where s is 2 or less."""
    if s <= 2:
        return x
    size, middle = int(s), slice(int(s) // 2 - 1, int(s) // 2 + 1)
    batch, channels, height, width = x.shape
    cells = x.unflatten(3, (width // size, size)).unflatten(2, (height // size, size))
    return cells[:, :, :, middle, :, middle].reshape(batch, channels, 2 * height // size, 2 * width // size)


def _shrunk(read: Tensor, s: float) -> Tensor:
    """What `_read` kept, made as small (or as large) as a block with scale `s` sees it."""
    return _resized(read, 1 / min(s, 2))


def _resized(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="bilinear")


def _other_order(moves_B5hw: Tensor) -> Tensor:
    """The same moves told with the frames exchanged."""
    return torch.cat((moves_B5hw[:, 2:4], moves_B5hw[:, :2], -moves_B5hw[:, 4:]), 1)


def _far(step_B5HW: Tensor) -> Tensor:
    """Which pairs changed both their flows by more than `_FAR` pixels somewhere: [B]."""
    return (step_B5HW[:, :4].abs().unflatten(1, (2, 2)).amax((2, 3, 4)) > _FAR).all(1)
