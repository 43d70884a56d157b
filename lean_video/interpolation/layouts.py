"""Which RIFE of the 4 line a set of tensors is, told from their names and shapes.

The line's releases share one design and differ in widths, in what a block predicts and in how a frame is encoded. Everything that a release's behaviour
depends on is a field of `Layout`, all but the scales can be read off the tensors, and `LAYOUTS` lists the combinations that were ever released.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Shapes = Mapping[str, tuple[int, ...]]
Body = Literal["prelu", "leaky", "residual"]


@dataclass(frozen=True)
class Encoder:
    """The convolutions that make features of one frame: how many, the channels inside, the channels that come out."""

    convolutions: int
    hidden: int
    features: int


@dataclass(frozen=True)
class Layout:
    """One design of the network.

    versions     the releases that have it, for people
    widths       channels of each block, coarse to fine
    body         of a block's eight convolutions: "prelu" chain with one skip around all, "leaky" chain without, "residual" with a weighted skip around each
    outputs      channels that a block predicts: two flows and a mask (5), one that nothing reads (6), features for the next block (13)
    shuffled     whether the prediction is as large as the block's input (else half as large)
    groups       of the eight convolutions
    encoder      None where blocks see pictures alone
    scales       how many times smaller than the frame each block's input is
    """

    versions: str = field(compare=False)
    widths: tuple[int, ...]
    body: Body = "residual"
    outputs: int = 6
    shuffled: bool = True
    groups: int = 1
    encoder: Encoder | None = None
    scales: tuple[int, ...] = field(default=(8, 4, 2, 1), compare=False)

    @property
    def features(self) -> int:
        """Channels that the encoder adds to a frame."""
        return self.encoder.features if self.encoder else 0

    @property
    def carried(self) -> int:
        """Channels of features that a block hands to the next."""
        return self.outputs - 5 if self.outputs > 6 else 0

    @property
    def mask_adds_up(self) -> bool:
        """Whether a block corrects the mask so far; with an encoder it replaces it."""
        return self.encoder is None

    @property
    def looks_twice(self) -> bool:
        """Whether large motion makes the network start over on coarser scales: 4.0 and 4.1 do."""
        return self.body == "prelu"

    def inputs(self, block: int) -> int:
        """Channels that a block sees: two frames with their features, the time, and after the first block the mask, what is carried, and the flows."""
        return 2 * (3 + self.features) + 1 + (0 if block == 0 else 1 + self.carried + 4)


_FIRST = (192, 128, 96, 64)
_LITE = (128, 96, 64, 48)
_FIVE = (16, 8, 4, 2, 1)

LAYOUTS = (
    Layout("4.0, 4.1", _FIRST, body="prelu", outputs=5, shuffled=False),
    Layout("4.2 to 4.4", _FIRST, body="leaky", outputs=5, shuffled=False),
    Layout("4.5", _FIRST, outputs=5),
    Layout("4.6", _FIRST),
    Layout("4.7 to 4.9", _FIRST, encoder=Encoder(2, 16, 4)),
    Layout("4.10 to 4.19, 4.24", _FIRST, encoder=Encoder(4, 32, 8)),
    Layout("4.12 lite, 4.13 lite", _LITE, encoder=Encoder(4, 32, 4)),
    Layout("4.14 lite", _FIRST, groups=2, encoder=Encoder(4, 32, 8)),
    Layout("4.15 lite to 4.17 lite", _LITE, encoder=Encoder(4, 16, 4)),
    Layout("4.20", (384, 192, 96, 48), encoder=Encoder(4, 32, 8)),
    Layout("4.21 to 4.23", (256, 192, 96, 48), outputs=13, encoder=Encoder(4, 32, 8)),
    Layout("4.22 lite", (192, 128, 64, 32), outputs=13, encoder=Encoder(4, 16, 4)),
    Layout("4.25, 4.26", (192, 128, 96, 64, 32), outputs=13, encoder=Encoder(4, 16, 4), scales=_FIVE),
    Layout("4.25 lite", (192, 128, 96, 64, 24), outputs=13, encoder=Encoder(4, 16, 4), scales=(32, 16, 8, 4, 1)),
    Layout("4.25 heavy", (384, 256, 192, 128, 64), outputs=13, encoder=Encoder(4, 16, 4), scales=_FIVE),
    Layout("4.26 heavy", (192, 128, 96, 64, 32), outputs=13, encoder=Encoder(4, 16, 16), scales=_FIVE),
)


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Each name of a file → the name that `ifnet.IFNet` gives the same tensor; the files of the line differ in three habits of naming.

    What only training needs, and the refinement that the line left behind with 4.0, is left out.
    """
    bare = {name: _WRAPPERS.sub("", name) for name in names}
    # The encoder: numbered, or numbered with the activations counted, or called cnn0 to cnn3.
    step = 2 if any(name.startswith("encode.6.") for name in bare.values()) else 1
    canonical: dict[str, str] = {}
    for name, plain in bare.items():
        if _UNUSED.match(plain):
            continue
        plain = re.sub(r"^block(\d+)\.", r"blocks.\1.", plain)
        plain = re.sub(r"^(blocks\.\d+\.lastconv)\.0\.", r"\1.", plain)
        plain = re.sub(r"^encode\.(?:cnn(\d+)|(\d+))\.", lambda match: f"encode.{match[1] or int(match[2]) // step}.", plain)
        canonical[name] = plain
    return canonical


_WRAPPERS = re.compile(r"^(?:module\.|flownet\.)*")
_UNUSED = re.compile(r"block_tea\.|contextnet\.|unet\.|caltime\.|teacher\.")


def read_layout(shapes: Shapes) -> Layout | None:
    """The design that tensors of these (canonical) names and shapes have, released or not; None where they are no RIFE 4 at all."""
    body: Body | None = next((kind for name, kind in _BODIES if name in shapes), None)
    widths = tuple(itertools.takewhile(bool, (_size(shapes, f"blocks.{block}.conv0.1.0.weight", 0) for block in itertools.count())))
    last = _size(shapes, "blocks.0.lastconv.weight", 1)
    if body is None or not widths or not last:
        return None
    shuffled = body == "residual"
    inside = _size(shapes, "blocks.0.convblock.0.conv.weight", 1) or widths[0]
    return Layout(
        versions="",
        widths=widths,
        body=body,
        outputs=last // 4 if shuffled else last,
        shuffled=shuffled,
        groups=widths[0] // inside,
        encoder=_read_encoder(shapes),
    )


# In order: the first name that is there tells.
_BODIES: tuple[tuple[str, Body], ...] = (
    ("blocks.0.convblock.0.beta", "residual"),
    ("blocks.0.convblock.0.1.weight", "prelu"),
    ("blocks.0.convblock.0.0.weight", "leaky"),
)


def _read_encoder(shapes: Shapes) -> Encoder | None:
    count = sum(f"encode.{index}.weight" in shapes for index in range(4))
    # The last is a transposed convolution, whose weight is [in, out, …].
    return Encoder(count, _size(shapes, "encode.0.weight", 0), _size(shapes, f"encode.{count - 1}.weight", 1)) if count else None


def _size(shapes: Shapes, weight: str, axis: int) -> int:
    """The size of a convolution's weight along an axis; 0 where there is no such convolution."""
    shape = shapes.get(weight, ())
    return shape[axis] if len(shape) == 4 else 0
