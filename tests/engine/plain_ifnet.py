"""Files of every RIFE of the 4 line with random weights, and the network written down plainly, as the releases describe it: what ours is compared with.

Nothing here is derived from the engine. The files' own names are kept, every plane has the whole frame's size, and every step happens where it is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Release:
    """A design and how its files name things.

    encoder  (convolutions, inner channels, features), or None
    names    of the encoder's convolutions
    """

    versions: str
    widths: tuple[int, ...]
    body: str = "residual"
    outputs: int = 6
    groups: int = 1
    encoder: tuple[int, int, int] | None = None
    names: tuple[str, ...] = ("cnn0", "cnn1", "cnn2", "cnn3")
    scales: tuple[int, ...] = (8, 4, 2, 1)
    prefix: str = ""
    block: str = "block{}"

    @property
    def shuffled(self) -> bool:
        return self.body == "residual"


COUNTED = ("0", "2", "4", "6")
RELEASES = (
    Release("4.0, 4.1", (192, 128, 96, 64), "prelu", 5, prefix="module."),
    Release("4.2 to 4.4", (192, 128, 96, 64), "leaky", 5),
    Release("4.5", (192, 128, 96, 64), outputs=5),
    Release("4.6", (192, 128, 96, 64)),
    Release("4.7 to 4.9", (192, 128, 96, 64), encoder=(2, 16, 4), names=("0", "1"), prefix="module."),
    Release("4.10 to 4.19, 4.24", (192, 128, 96, 64), encoder=(4, 32, 8), names=COUNTED),
    Release("4.10 to 4.19, 4.24", (192, 128, 96, 64), encoder=(4, 32, 8)),
    Release("4.12 lite, 4.13 lite", (128, 96, 64, 48), encoder=(4, 32, 4), names=COUNTED),
    Release("4.14 lite", (192, 128, 96, 64), groups=2, encoder=(4, 32, 8)),
    Release("4.15 lite to 4.17 lite", (128, 96, 64, 48), encoder=(4, 16, 4)),
    Release("4.20", (384, 192, 96, 48), encoder=(4, 32, 8)),
    Release("4.21 to 4.23", (256, 192, 96, 48), outputs=13, encoder=(4, 32, 8)),
    Release("4.22 lite", (192, 128, 64, 32), outputs=13, encoder=(4, 16, 4)),
    Release("4.25, 4.26", (192, 128, 96, 64, 32), outputs=13, encoder=(4, 16, 4), scales=(16, 8, 4, 2, 1), prefix="flownet."),
    Release("4.25, 4.26", (192, 128, 96, 64, 32), outputs=13, encoder=(4, 16, 4), scales=(16, 8, 4, 2, 1), block="blocks.{}"),
    Release("4.25 lite", (192, 128, 96, 64, 24), outputs=13, encoder=(4, 16, 4), scales=(32, 16, 8, 4, 1)),
    Release("4.25 heavy", (384, 256, 192, 128, 64), outputs=13, encoder=(4, 16, 4), scales=(16, 8, 4, 2, 1)),
    Release("4.26 heavy", (192, 128, 96, 64, 32), outputs=13, encoder=(4, 16, 16), scales=(16, 8, 4, 2, 1)),
)


@cache
def random_file(release: Release, seed: int = 0) -> Weights:
    """The tensors of a file of this release: random, and such that flows of some pixels, masks of both signs and every weight have an effect. Not to be written to."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, size: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * size

    def convolution(name: str, inputs: int, outputs: int, kernel: int = 3, transposed: bool = False, gain: float = 1.0) -> Weights:
        shape = (inputs, outputs) if transposed else (outputs, inputs)
        size = gain * math.sqrt((8 if transposed else 2) / (inputs * kernel**2))
        return {f"{name}.weight": normal(*shape, kernel, kernel, size=size), f"{name}.bias": normal(outputs, size=0.1)}

    weights: Weights = {}
    features = 0
    if release.encoder:
        count, hidden, features = release.encoder
        for index, name in enumerate(release.names):
            last = index == count - 1
            inputs = hidden if index else 3
            weights |= convolution(f"encode.{name}", inputs, features if last else hidden, 4 if last else 3, transposed=last, gain=0.5)
    for index, width in enumerate(release.widths):
        block = release.block.format(index)
        inputs = 2 * (3 + features) + 1 + (0 if index == 0 else 1 + 4 + (8 if release.outputs == 13 else 0))
        for layer, (channels, outputs) in enumerate(((inputs, width // 2), (width // 2, width))):
            weights |= convolution(f"{block}.conv0.{layer}.0", channels, outputs)
            if release.body == "prelu":
                weights[f"{block}.conv0.{layer}.1.weight"] = torch.rand(outputs, generator=generator) / 2
        for layer in range(8):
            if release.body == "residual":
                weights |= convolution(f"{block}.convblock.{layer}.conv", width // release.groups, width)
                weights[f"{block}.convblock.{layer}.beta"] = normal(1, width, 1, 1, size=0.3)
            else:
                weights |= convolution(f"{block}.convblock.{layer}.0", width, width)
                if release.body == "prelu":
                    weights[f"{block}.convblock.{layer}.1.weight"] = torch.rand(width, generator=generator) / 2
        outputs = release.outputs * (4 if release.shuffled else 1)
        weights |= convolution(f"{block}.lastconv.0" if release.shuffled else f"{block}.lastconv", width, outputs, 4, transposed=True, gain=0.3)
    return {release.prefix + name: tensor for name, tensor in weights.items()}


def plain_forward(release: Release, file: Weights, a: Tensor, b: Tensor, time: float, scale: float = 1.0, ensemble: bool = False) -> Tensor:
    """The frame [3,H,W] at `time` between frames `a` and `b` [3,H,W]."""
    return _Plain(release, {name.removeprefix(release.prefix): tensor for name, tensor in file.items()}).forward(a, b, time, scale, ensemble)


class _Plain:
    def __init__(self, release: Release, weights: Weights) -> None:
        self.release, self.weights = release, weights

    def forward(self, a: Tensor, b: Tensor, time: float, scale: float, ensemble: bool) -> Tensor:
        release = self.release
        height, width = a.shape[-2:]
        multiple = int(max(1, 1 / scale) * release.scales[0] * 4)
        a, b = (F.pad(x[None], (0, -width % multiple, 0, -height % multiple)) for x in (a, b))
        fa, fb = self.encode(a), self.encode(b)
        t = torch.full_like(a[:, :1], time)
        wa, wb, wfa, wfb = a, b, fa, fb
        flow = mask = more = more_back = None
        for index, coarse in enumerate(release.scales):
            s = coarse / scale
            hints = [] if mask is None else [mask]
            seen = torch.cat([wa, wb, wfa, wfb, t, *hints, *([] if more is None else [more])], 1)
            step, new_mask, new_more = self.block(index, seen, flow, s)
            if ensemble:
                hints = [] if mask is None else [-mask]
                seen = torch.cat([wb, wa, wfb, wfa, 1 - t, *hints, *([] if more_back is None else [more_back])], 1)
                step_back, mask_back, more_back = self.block(index, seen, None if flow is None else flow[:, [2, 3, 0, 1]], s)
                step, new_mask = (step + step_back[:, [2, 3, 0, 1]]) / 2, (new_mask - mask_back) / 2
            more = new_more
            flow = step if flow is None else flow + step
            mask = new_mask if mask is None or release.encoder else mask + new_mask
            wa, wb, wfa, wfb = _shifted(a, flow[:, :2]), _shifted(b, flow[:, 2:]), _shifted(fa, flow[:, :2]), _shifted(fb, flow[:, 2:])
        share = torch.sigmoid(mask)
        return (wa * share + wb * (1 - share))[0, :, :height, :width]

    def encode(self, x: Tensor) -> Tensor:
        if self.release.encoder is None:
            return x[:, :0]
        *inner, last = (f"encode.{name}" for name in self.release.names)
        for index, name in enumerate(inner):
            x = self.convolution(name, x, stride=1 if index else 2)
            x = F.leaky_relu(x, 0.2) if len(inner) > 1 else x
        return self.transposed(last, x)

    def block(self, index: int, seen: Tensor, flow: Tensor | None, s: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """Flow and mask that the block adds or puts in place, and the features that it hands on."""
        name = self.release.block.format(index)
        x = F.interpolate(seen, scale_factor=1 / s, mode="bilinear")
        if flow is not None:
            x = torch.cat((x, F.interpolate(flow, scale_factor=1 / s, mode="bilinear") / s), 1)
        for layer in range(2):
            x = self.activated(f"{name}.conv0.{layer}", self.convolution(f"{name}.conv0.{layer}.0", x, stride=2))
        start = x
        for layer in range(8):
            inner = f"{name}.convblock.{layer}"
            if self.release.body == "residual":
                x = F.leaky_relu(self.convolution(f"{inner}.conv", x) * self.weights[f"{inner}.beta"] + x, 0.2)
            else:
                x = self.activated(inner, self.convolution(f"{inner}.0", x))
        if self.release.body == "prelu":
            x = x + start
        if self.release.shuffled:
            y, reach = F.pixel_shuffle(self.transposed(f"{name}.lastconv.0", x), 2), s
        else:
            y, reach = self.transposed(f"{name}.lastconv", x), 2 * s
        y = F.interpolate(y, scale_factor=reach, mode="bilinear")
        return y[:, :4] * reach, y[:, 4:5], y[:, 5:] if self.release.outputs == 13 else None

    def activated(self, name: str, x: Tensor) -> Tensor:
        return F.prelu(x, self.weights[f"{name}.1.weight"]) if self.release.body == "prelu" else F.leaky_relu(x, 0.2)

    def convolution(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x, weight, self.weights[f"{name}.bias"], stride, 1, groups=x.shape[1] // weight.shape[1])

    def transposed(self, name: str, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 2, 1)


def _shifted(x: Tensor, flow: Tensor) -> Tensor:
    """`x` read `flow` pixels away, bilinear, the border repeated: by indexing, without grid_sample."""
    height, width = x.shape[-2:]
    column = (torch.arange(width) + flow[0, 0]).clamp(0, width - 1)
    row = (torch.arange(height)[:, None] + flow[0, 1]).clamp(0, height - 1)
    left, top = column.floor().long(), row.floor().long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    x_share, y_share = column - left, row - top
    upper = x[0][:, top, left] * (1 - x_share) + x[0][:, top, right] * x_share
    lower = x[0][:, bottom, left] * (1 - x_share) + x[0][:, bottom, right] * x_share
    return (upper * (1 - y_share) + lower * y_share)[None]
