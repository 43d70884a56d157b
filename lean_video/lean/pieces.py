"""How much of a clip is worked on at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pieces:
    """As many frames, rows of a frame, positions or tokens at a time as have `elements` elements, at least one. The results do not depend on it."""

    elements: int

    def frames(self, channels: int, height: int, width: int) -> int:
        return max(1, self.elements // (channels * height * width))

    def rows(self, channels: int, width: int) -> int:
        """Of one frame that is worked on in strips: there a piece is copied in float32 and may have twice the channels."""
        return max(1, self.elements // (4 * channels * width))

    def positions(self, channels: int, clip_frames: int) -> int:
        return max(1, self.elements // (channels * clip_frames))

    def tokens(self, channels: int) -> int:
        """In a feed-forward, whose inner width is 8 channels."""
        return max(1, self.elements // (4 * channels))


class Repeats:
    """Tells a loop over pieces which of them need not be run.

    On the meta device nothing is computed, and all that a run can show is what memory it takes. Equal pieces take equal memory, on top of
    what the pieces before them left: so the first two and the last stand for all. Elsewhere every piece is run.

    total: the sizes of all pieces together.
    """

    def __init__(self, device: torch.device, total: int) -> None:
        self._off = device.type != "meta"
        self._left = total
        self._runs: dict[int, int] = {}

    def __call__(self, size: int) -> bool:
        """Whether the next piece, of this size, need not be run."""
        if self._off:
            return False
        self._left -= size
        self._runs[size] = self._runs.get(size, 0) + 1
        return self._runs[size] > 2 and self._left > 0


def default_pieces(device: torch.device) -> Pieces:
    """Pieces that fit the cache of a CPU core, or keep an accelerator busy; 32 MiB in fp16.

    A fixed size and never free memory, so that nothing else that runs can change a result.
    """
    return Pieces(2**20 if device.type == "cpu" else 2**24)
