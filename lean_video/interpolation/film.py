"""A video to a file with frames between its frames. Frames go through one by one, so its length takes no memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

from torch import Tensor

from ..errors import LeanVideoError
from ..media import FrameSource, Sound, Stream, TimedFrame, Written
from .clip import Handling, Report, Say, interpolate_stream
from .interpolator import Interpolator
from .timeline import AtRate, check_rate

LONGEST_S = 48 * 3600
_ROUNDED = Fraction(1, 10)  # of a frame: what times in files are off by where they are counted in milliseconds


def interpolate_film(
    source: FrameSource,
    interpolator: Interpolator,
    rate: Fraction,
    write: Callable[[Stream, Sound | None], Written],
    *,
    handling: Handling,
    batch: int = 1,
    say: Say = lambda text: None,
) -> tuple[Written, Report]:
    """What was written of the clip of `source` at `rate` frames a second, and what was found in the clip.

    A frame of the clip that falls on a frame of the result is that one unchanged; a clip of variable rate becomes one of constant rate.

    write  gets the frames and the sound, as `media.combine` does, whose fps is `rate`

    Raises LeanVideoError for a clip of one frame and for a rate out of range, and what reading and writing raise.
    """
    check_rate(source.fps, rate)
    report = Report()
    made = interpolate_stream(_steady(source, source.fps), interpolator, AtRate(rate), fps=source.fps, handling=handling, batch=batch, report=report, say=say)
    last = source.measure().times[-1]
    if last > LONGEST_S:
        raise LeanVideoError(
            f"{source.name} says that it lasts {float(last) / 3600:.0f} hours: its timestamps are broken, so convert it first, or cut it to at most {LONGEST_S // 3600}."
        )
    total = math.floor(last * rate) + 1
    return write(Stream(made, source.size, total), source.sound), report


def _steady(frames: Iterable[TimedFrame], fps: Fraction) -> Iterator[tuple[Fraction, Tensor]]:
    """Times that the file has rounded are put back on the frames of its usual rate, so that those frames are shown and not made anew."""
    for frame in frames:
        place = frame.time * fps
        nearest = round(place)
        yield (nearest / fps if abs(place - nearest) <= _ROUNDED else frame.time), frame.frame_HWC
