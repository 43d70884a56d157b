"""A part of a clip into memory: put in place frame by frame, so that it never takes twice its size."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from ..errors import LeanVideoError
from .audio import Audio
from .demuxing import MAX_SIDE
from .resize import fit

if TYPE_CHECKING:
    from torch import Tensor

    from .audio import Sound
    from .timing import FrameSource


@dataclass(frozen=True)
class LoadedClip:
    """`frames_THWC` float32 0..1, RGB or RGBA, at `fps`, with the sound of the same span or none; `notes` are sentences for the user."""

    frames_THWC: Tensor
    fps: Fraction
    sound: Audio | None
    notes: tuple[str, ...]


def load_clip(
    source: FrameSource,
    *,
    start_frame: int = 0,
    count: int | None = None,
    stride: int = 1,
    fps: Fraction | None = None,
    size: tuple[int, int] | None = None,
    resize: str = "crop",
    limit_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LoadedClip:
    """Frames of `source` from `start_frame` on, at most `count` of them.

    stride       every so many frames; the rate falls with it
    fps          what the clip shows at so many times a second, in place of its own frames; `stride` then counts those
    size         (width, height) to bring frames to; 0 for one that follows the shape
    resize       to another shape: see `resize.fit`
    limit_bytes  that the frames may take
    progress     called with (done, total); what it raises ends the reading

    Raises LeanVideoError for a start after the end and for a clip beyond the limit, before anything is decoded, and as the source does.
    """
    import torch

    times = source.measure().times
    wanted = _wanted(source, times, start_frame, count, stride, fps)
    width, height = _size(source.size, size)
    needed = len(wanted) * width * height * source.channels * 4
    if limit_bytes is not None and needed > limit_bytes:
        fits = limit_bytes // (width * height * source.channels * 4)
        raise LeanVideoError(
            f"{len(wanted)} frames of {width}x{height} take {needed / 2**30:.1f} GiB and {limit_bytes / 2**30:.1f} GiB are free: read at most {fits} at a time, every second one, or smaller ones."
        )
    frames_THWC = torch.empty(len(wanted), height, width, source.channels)
    filled = 0
    if progress:
        progress(0, len(wanted))
    shown = _shown(source, wanted)
    try:
        for frame_HWC in shown:
            frames_THWC[filled] = _fitted(frame_HWC, width, height, resize)
            filled += 1
            if progress:
                progress(filled, len(wanted))
    finally:
        shown.close()
    rate = source.fps / stride if fps is None else fps / stride
    if filled < len(wanted):  # a damaged end, told in the notes
        frames_THWC = frames_THWC[:filled]
    sound = _sound(source.sound, wanted[0], filled / rate)
    return LoadedClip(frames_THWC, rate, sound, tuple(source.notes))


def _wanted(source: FrameSource, times: Sequence[Fraction], start_frame: int, count: int | None, stride: int, fps: Fraction | None) -> Sequence[Fraction]:
    """The times at which the clip is looked at."""
    if start_frame < 0 or stride < 1 or (count is not None and count < 1):
        raise LeanVideoError("The first frame is 0 or more, and the count and the stride are 1 or more.")
    if start_frame >= len(times):
        raise LeanVideoError(f"{source.name} has {len(times)} frames, so there is none at {start_frame}: start at {len(times) - 1} or before.")
    first = times[start_frame]
    if fps is None:
        picked = range(start_frame, len(times), stride)
        return [times[i] for i in (picked if count is None else picked[:count])]
    available = math.ceil((source.measure().seconds - first) * fps / stride)
    return [first + Fraction(k * stride) / fps for k in range(max(1, available if count is None else min(count, available)))]


def _shown(source: FrameSource, wanted: Sequence[Fraction]) -> Generator[Tensor, None, None]:
    """What the clip shows at each of the times; fewer where it cannot be read to its end."""
    frames = source.frames_from(wanted[0])
    before = next(frames, None)
    after = next(frames, None)
    ended = after is None
    last = source.measure().times[-1]
    for time in wanted:
        while after is not None and after.time <= time:
            before, after = after, next(frames, None)
            ended = after is None
        if before is None or (ended and before.time < last and before.time < time):
            return
        yield before.frame_HWC


def _sound(sound: Sound | None, start: Fraction, seconds: Fraction) -> Audio | None:
    if sound is None or not seconds:
        return None
    rate = sound.sample_rate
    return Audio(sound.read(round(start * rate), round((start + seconds) * rate)), rate)


def _size(own: tuple[int, int], size: tuple[int, int] | None) -> tuple[int, int]:
    width, height = size or (0, 0)
    if not (0 <= width <= MAX_SIDE and 0 <= height <= MAX_SIDE):
        raise LeanVideoError(f"Frames of {width}x{height} cannot be made: give sides of 0 (as the video has it) to {MAX_SIDE}.")
    if not width and not height:
        return own
    return width or max(1, round(own[0] * height / own[1])), height or max(1, round(own[1] * width / own[0]))


def _fitted(frame_HWC: Tensor, width: int, height: int, resize: str) -> Tensor:
    import torch

    floats_HWC = frame_HWC.float() / 255 if frame_HWC.dtype == torch.uint8 else frame_HWC.float()
    return fit(floats_HWC.permute(2, 0, 1)[None], width, height, resize)[0].permute(1, 2, 0)
