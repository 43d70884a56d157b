"""How much of a clip is worked on at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pieces:
    """As many frames, positions or tokens at a time as have `elements` elements, at least one. The results do not depend on it."""

    elements: int

    def frames(self, channels: int, height: int, width: int) -> int:
        return max(1, self.elements // (channels * height * width))

    def positions(self, channels: int, clip_frames: int) -> int:
        return max(1, self.elements // (channels * clip_frames))

    def tokens(self, channels: int) -> int:
        """In a feed-forward, whose inner width is 8 channels."""
        return max(1, self.elements // (4 * channels))


def default_pieces(device: torch.device) -> Pieces:
    """Pieces that fit the cache of a CPU core, or keep an accelerator busy; 32 MiB in fp16.

    A fixed size and never free memory, so that nothing else that runs can change a result.
    """
    return Pieces(2**20 if device.type == "cpu" else 2**24)
