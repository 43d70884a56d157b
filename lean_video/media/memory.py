"""A clip in memory, read as if it were a file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from ..errors import LeanVideoError
from .audio import Audio
from .timing import EvenTimes, Measured, TimedFrame

if TYPE_CHECKING:
    from types import TracebackType

    from torch import Tensor

    from .audio import Sound


class ClipInMemory:
    """A `FrameSource` of frames [T,H,W,C] in 0..1 at `fps`, with the sound in what `Audio.of` accepts or none. Raises LeanVideoError for a clip of no frames."""

    def __init__(self, frames_THWC: Tensor, fps: Fraction, audio: object = None) -> None:
        if not len(frames_THWC):
            raise LeanVideoError("The clip has no frames: connect one that has some.")
        self.name = "the clip"
        self.size = int(frames_THWC.shape[2]), int(frames_THWC.shape[1])
        self.channels = int(frames_THWC.shape[3])
        self.fps = fps
        self.frames: int | None = len(frames_THWC)
        self.seconds: Fraction | None = len(frames_THWC) / fps
        self.sound: Sound | None = None if audio is None else Audio.of(audio)
        self.notes: list[str] = []
        self._frames_THWC = frames_THWC

    def frames_from(self, start: Fraction = Fraction(0)) -> Iterator[TimedFrame]:
        for index in range(math.floor(start * self.fps), len(self._frames_THWC)):
            yield TimedFrame(index / self.fps, self._frames_THWC[index])

    def __iter__(self) -> Iterator[TimedFrame]:
        return self.frames_from()

    def measure(self) -> Measured:
        count = len(self._frames_THWC)
        return Measured(EvenTimes(count, self.fps), count / self.fps)

    def close(self) -> None:
        """There is nothing to close."""

    def __enter__(self) -> ClipInMemory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass
