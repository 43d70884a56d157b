"""What everything that makes frames between frames offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import LeanVideoError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Prepared:
    """Frames as one interpolator needs them, made once and used for every pair and time they are part of.

    x_BCHW  RGB in 0..1, then whatever else that interpolator reads off one frame alone; float32 on its device, padded at the bottom and the right
    size    height and width before the padding
    """

    x_BCHW: Tensor
    size: tuple[int, int]

    def __len__(self) -> int:
        return self.x_BCHW.shape[0]

    def __getitem__(self, index: slice) -> Prepared:
        """Some of the frames, without a copy."""
        return Prepared(self.x_BCHW[index], self.size)


class Interpolator(ABC):
    """Makes the frames between two frames. It keeps no state between calls, and leaves what it is given as it is."""

    @property
    @abstractmethod
    def name(self) -> str:
        """For people: which method and version made the frames."""

    @abstractmethod
    def prepare(self, frames_B3HW: Tensor) -> Prepared:
        """The part of the work that a frame needs once, however many frames are made from it; the result fits this interpolator alone.

        frames_B3HW  one frame [3,H,W] or several, RGB in 0..1, any float type and device

        Raises LeanVideoError for another shape.
        """

    def between(self, a: Tensor | Prepared, b: Tensor | Prepared, times: Sequence[float]) -> Tensor:
        """The frames at `times` between `a` (time 0) and `b` (time 1): [N,3,H,W] float32 in 0..1, on the device of the weights.

        a, b   [3,H,W] or [B,3,H,W] in 0..1, or what `prepare` made of it
        times  above 0 and below 1, since the frame at 0 is `a` itself. N times for one pair, one time for each of N pairs, or one for them all

        The N frames are computed as one batch. Raises LeanVideoError for frames of different sizes, for times outside, and for numbers that do not match.
        """
        outside = next((time for time in times if not 0 < time < 1), None)
        if outside is not None:
            raise LeanVideoError(f"There is no frame to make at time {outside:g}: times lie between 0, the first frame of a pair, and 1, the second.")
        a, b = (frames if isinstance(frames, Prepared) else self.prepare(frames) for frames in (a, b))
        if a.size != b.size:
            first, second = (f"{width}x{height}" for height, width in (a.size, b.size))
            raise LeanVideoError(f"Frames of {first} and of {second} cannot be interpolated: bring them to one size first.")
        if len({len(a), len(b), len(times)} - {1}) > 1 or not (len(a) and len(b) and times):
            raise LeanVideoError(f"{len(a)} and {len(b)} frames do not make pairs for {len(times)} times: give as many of each, or one.")
        return self._between(a, b, times)

    @abstractmethod
    def _between(self, a: Prepared, b: Prepared, times: Sequence[float]) -> Tensor:
        """`between` for what has been checked: each of the three is of length N or 1."""


def as_batch(frames: Tensor) -> Tensor:
    """[B,3,H,W] of one frame or of several; raises LeanVideoError for what is neither."""
    if frames.ndim not in (3, 4) or frames.shape[-3] != 3 or not frames.is_floating_point() or 0 in frames.shape:
        raise LeanVideoError(f"A frame to interpolate has the shape [3,H,W] in floats, not {list(frames.shape)} in {str(frames.dtype).removeprefix('torch.')}.")
    return frames if frames.ndim == 4 else frames[None]
