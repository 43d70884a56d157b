"""RIFE as an `Interpolator`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import LeanVideoError
from .ifnet import IFNet
from .interpolator import Interpolator, Prepared, as_batch
from .weights import read_weights

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)


def load(path: Path, *, device: torch.device | str = "cpu", half: bool = False) -> Rife:
    """The RIFE in a .safetensors, .pth, .pt or .pkl file, of whichever 4.x its tensors tell it is, never its name.

    half  weights and convolutions in float16, for GPUs; frames and flows stay float32

    Raises LeanVideoError saying what is wrong with the file (see `weights.read_weights`).
    """
    layout, weights = read_weights(path)
    with torch.device("meta"):
        network = IFNet(layout)
    network.load_state_dict(weights, assign=True)
    network = network.requires_grad_(False).eval().to(device=device, dtype=torch.float16 if half else torch.float32)
    # oneDNN's and cuDNN's convolutions read pixels with their channels together; the activations follow the weights.
    return Rife(network.to(memory_format=torch.channels_last))


@dataclass(frozen=True)
class Rife(Interpolator):
    """A loaded network and how it is to be run; `dataclasses.replace` makes another way to run the same weights.

    scale     of the frames in which motion is looked for: below 1 for motion or frames too large for the network, one of `SCALES`
    ensemble  the mean of both orders of time in each block, for twice the work; a pair and its reverse then give the same frame

    It computes where `network` is, so a host may move that.
    """

    network: IFNet
    scale: float = 1.0
    ensemble: bool = False

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise LeanVideoError(f"The scale {self.scale:g} is not one that RIFE can run at: choose one of {', '.join(f'{scale:g}' for scale in SCALES)}.")

    @property
    def name(self) -> str:
        return f"RIFE {self.network.layout.versions}"

    @torch.no_grad()
    def prepare(self, frames_B3HW: Tensor) -> Prepared:
        x_B3HW = as_batch(frames_B3HW).to(self._device, torch.float32).clamp(0, 1)
        height, width = x_B3HW.shape[-2:]
        multiple = self.network.multiple_of(self.scale)
        x_B3HW = F.pad(x_B3HW, (0, -width % multiple, 0, -height % multiple))
        features_BFHW = self.network.features(x_B3HW)
        return Prepared(x_B3HW if features_BFHW is None else torch.cat((x_B3HW, features_BFHW), 1), (height, width))

    @torch.no_grad()
    def _between(self, a: Prepared, b: Prepared, times: Sequence[float]) -> Tensor:
        count = max(len(a), len(b), len(times))
        a_BCHW, b_BCHW = (frames.x_BCHW.expand(count, -1, -1, -1) for frames in (a, b))
        t_B111 = torch.tensor(times, dtype=torch.float32, device=self._device).view(-1, 1, 1, 1).expand(count, 1, 1, 1)
        height, width = a.size
        return self.network(a_BCHW, b_BCHW, t_B111, self.scale, self.ensemble)[..., :height, :width]

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device
