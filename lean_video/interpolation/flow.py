"""Frames between frames from optical flow, where no weights are at hand.

Dense Inverse Search (Kroeger et al., arXiv:1603.03590), as OpenCV has it, finds the motion in both directions. The two flows of the frame between are
composed from them as in Super SloMo (Jiang et al., arXiv:1712.00080, eq. 4), and each frame counts where its motion and the way back agree.

B frames, N frames to make, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import LeanVideoError
from .interpolator import Interpolator, Prepared, as_batch
from .warp import grid_of, warped

if TYPE_CHECKING:
    from collections.abc import Sequence

_SMALLEST = 64  # pixels of height and width that DIS needs for its pyramid
_TOLERANCE = 1.0  # pixels by which the way back may miss before it counts for little


@dataclass(frozen=True)
class OpticalFlow(Interpolator):
    """Interpolates on the CPU, without a network. Making one raises LeanVideoError where OpenCV is not installed."""

    def __post_init__(self) -> None:
        opencv()

    @property
    def name(self) -> str:
        return "optical flow (OpenCV DIS), the fallback without a network"

    @torch.no_grad()
    def prepare(self, frames_B3HW: Tensor) -> Prepared:
        x_B3HW = as_batch(frames_B3HW).to("cpu", torch.float32).clamp(0, 1)
        height, width = x_B3HW.shape[-2:]
        x_B3HW = F.pad(x_B3HW, (0, max(_SMALLEST - width, 0), 0, max(_SMALLEST - height, 0)), mode="replicate")
        grey_B1HW = (x_B3HW * x_B3HW.new_tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)).sum(1, keepdim=True)
        return Prepared(torch.cat((x_B3HW, grey_B1HW), 1), (height, width))

    @torch.no_grad()
    def _between(self, a: Prepared, b: Prepared, times: Sequence[float]) -> Tensor:
        pairs = max(len(a), len(b))
        a_B4HW, b_B4HW = (frames.x_BCHW.expand(pairs, -1, -1, -1) for frames in (a, b))
        ahead_B2HW, back_B2HW = _flows(a_B4HW[:, 3], b_B4HW[:, 3]), _flows(b_B4HW[:, 3], a_B4HW[:, 3])
        grid_12HW = grid_of(a_B4HW)
        trust_a_B1HW, trust_b_B1HW = _agreement(ahead_B2HW, back_B2HW, grid_12HW), _agreement(back_B2HW, ahead_B2HW, grid_12HW)
        t = torch.tensor(times, dtype=torch.float32).view(-1, 1, 1, 1)
        to_a_N2HW = t * t * back_B2HW - t * (1 - t) * ahead_B2HW
        to_b_N2HW = (1 - t) ** 2 * ahead_B2HW - t * (1 - t) * back_B2HW
        from_a_N4HW = _taken(torch.cat((a_B4HW[:, :3], trust_a_B1HW), 1), to_a_N2HW, grid_12HW)
        from_b_N4HW = _taken(torch.cat((b_B4HW[:, :3], trust_b_B1HW), 1), to_b_N2HW, grid_12HW)
        weight_a_N1HW, weight_b_N1HW = (1 - t) * from_a_N4HW[:, 3:], t * from_b_N4HW[:, 3:]
        share_N1HW = weight_a_N1HW / (weight_a_N1HW + weight_b_N1HW)
        height, width = a.size
        return torch.lerp(from_b_N4HW[:, :3], from_a_N4HW[:, :3], share_N1HW)[..., :height, :width]


def _taken(x_BCHW: Tensor, flow_N2HW: Tensor, grid_12HW: Tensor) -> Tensor:
    return warped(x_BCHW.expand(len(flow_N2HW), -1, -1, -1), flow_N2HW, grid_12HW)


def _flows(from_BHW: Tensor, to_BHW: Tensor) -> Tensor:
    """For each pixel of the first pictures (grey, 0..1), how far away (x, y) the second show it: [B,2,H,W], in pixels."""
    search = opencv().DISOpticalFlow_create(opencv().DISOPTICAL_FLOW_PRESET_MEDIUM)
    pairs = zip(_eight_bits(from_BHW), _eight_bits(to_BHW), strict=True)
    return torch.stack([torch.from_numpy(search.calc(first, second, None)) for first, second in pairs]).permute(0, 3, 1, 2)


def _eight_bits(grey_BHW: Tensor) -> Any:
    return (grey_BHW * 255).round().to(torch.uint8).numpy()


def _agreement(there_B2HW: Tensor, back_B2HW: Tensor, grid_12HW: Tensor) -> Tensor:
    """How much a pixel's motion is to be trusted, above 0 to 1: the less, the farther from where it started the way there and back ends."""
    miss_B2HW = there_B2HW + warped(back_B2HW, there_B2HW, grid_12HW)
    return 1e-3 + (miss_B2HW.square().sum(1, keepdim=True) / -(_TOLERANCE**2)).exp()


def opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise LeanVideoError("Finding motion and cuts without a network needs OpenCV: install opencv-python-headless.") from None
    return cv2
