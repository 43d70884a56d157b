"""A device for tests on a machine that has none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lean_video.lean.transfer import Arrival, Transfer


class Copies(Transfer):
    """A device that is the host itself, but whose tensors are copies: whatever is used before it came or after it left is NaN."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))

    def fetch(self, tensors: Sequence[Tensor]) -> Arrival:
        sources = [tensor.clone() for tensor in tensors]
        fetched = [torch.full_like(tensor, float("nan")) for tensor in tensors]

        def arrive() -> list[Tensor]:
            for target, source in zip(fetched, sources, strict=True):
                target.copy_(source)
            return fetched

        return arrive

    def park(self, x: Tensor) -> Tensor:
        return x.clone()
