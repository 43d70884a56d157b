"""Classifier-free guidance with a scale for each frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from .solvers import Denoiser

GUIDANCE_MODES = ("linear", "triangular", "constant")


def guidance_scale(mode: str, frames: int, low: float, high: float) -> Tensor:
    """Guidance scale of each frame [T,1,1,1], float32.

    linear      low at the first frame to high at the last (SVD; sgm `LinearPredictionGuider`)
    triangular  low at both ends, high in the middle (SV3D; sgm `TrianglePredictionGuider`)
    constant    high everywhere
    """
    import torch

    ramp = torch.linspace(0, 1, frames)
    if mode == "triangular":
        ramp = 2 * (ramp - (ramp + 0.5).floor()).abs()
    elif mode == "constant":
        ramp = torch.ones(frames)
    elif mode != "linear":
        raise ValueError(f"unknown guidance mode {mode}")
    return (low + ramp * (high - low)).reshape(frames, 1, 1, 1)


def is_guided(scale_T111: Tensor) -> bool:
    """Whether any frame needs the unconditioned estimate: the frames are mixed inside the network, so it is all or none."""
    return not bool((scale_T111 == 1).all())


def guide(both: Callable[[Tensor, float], Iterable[Tensor]], scale_T111: Tensor) -> Denoiser:
    """A denoiser that pushes away from the unconditioned estimate, frame by frame. `both` gives the conditioned and the unconditioned estimate."""

    def guided(x_T4hw: Tensor, sigma: float) -> Tensor:
        with_image, without = both(x_T4hw, sigma)
        return without + scale_T111.to(x_T4hw.device) * (with_image - without)

    return guided
