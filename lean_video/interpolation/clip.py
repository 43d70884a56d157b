"""A whole clip to another one with frames between its frames: in memory, or as a stream of frames.

T frames of the clip, N of the result, H W pixels, C channels: grey, RGB or RGBA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from ..errors import LeanVideoError
from ..vram.ladder import is_out_of_memory, release
from .interpolator import Interpolator, Prepared
from .scenes import CUT_THRESHOLD, Look, change, look, repeats
from .timeline import LONGEST_RUN, Gap, Kind, Moment, Schedule, lay_out

AtCuts = Literal["hold", "cut", "ignore"]
AT_CUTS: tuple[AtCuts, ...] = ("hold", "cut", "ignore")

Progress = Callable[[int, int], None]
Say = Callable[[str], None]


def _ignored(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Handling:
    """Where frames are not made as the schedule alone would have it.

    at_cuts    across a cut: "hold" shows the frame before it until the next, "cut" puts nothing between (where the result keeps time, that is hold too),
               "ignore" looks for no cuts
    threshold  of `scenes.change`, above which two frames are a cut
    repeats    whether up to LONGEST_RUN frames of one picture are taken as that picture shown longer, with the motion spread over them
    skipped    gaps in which nothing is to be made
    """

    at_cuts: AtCuts = "hold"
    threshold: float = CUT_THRESHOLD
    repeats: bool = True
    skipped: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.at_cuts not in AT_CUTS:
            raise LeanVideoError(f"{self.at_cuts!r} is nothing to do at cuts: choose one of {', '.join(AT_CUTS)}.")
        if not 0 <= self.threshold <= 1:
            raise LeanVideoError(f"The threshold {self.threshold:g} for cuts is out of range: choose 0 to 1.")


@dataclass
class Report:
    """What was found: cuts as (index of the frame before, change), the highest change that was none, and how many frames repeat the one before."""

    cuts: list[tuple[int, float]] = field(default_factory=lambda: [])
    highest: float = 0.0
    repeats: int = 0
    frames: int = 0

    def lines(self, handling: Handling) -> list[str]:
        found: list[str] = []
        if handling.at_cuts != "ignore":
            shown = ", ".join(f"{index + 1} ({value:.2f})" for index, value in self.cuts[:20]) + (" and more" if len(self.cuts) > 20 else "")
            cuts = f"{len(self.cuts)} cut{'s' * (len(self.cuts) != 1)}, after frame {shown}" if self.cuts else "No cuts"
            found.append(f"{cuts}; change counts as a cut above {handling.threshold:.2f} and was at most {self.highest:.2f} elsewhere.")
        if handling.repeats and self.repeats:
            found.append(f"{self.repeats} frame{'s' * (self.repeats != 1)} repeated the one before.")
        return found


def interpolate_clip(
    frames_THWC: Tensor,
    interpolator: Interpolator,
    schedule: Schedule,
    *,
    fps: Fraction = Fraction(1),
    closed: bool = False,
    handling: Handling = Handling(),
    batch: int = 1,
    limit: int | None = None,
    progress: Progress = _ignored,
    say: Say = _ignored,
) -> tuple[Tensor, Report]:
    """The result [N,H,W,C], on the CPU and of the type of `frames_THWC`, and what was found in the clip. Frames that are shown as they are pass bit for bit.

    frames_THWC  in 0..1, on the CPU
    fps          at which the clip is shown, for schedules at a rate
    closed       whether the last frame leads back to the first
    batch        frames made at once; halved for good when memory runs out
    limit        bytes that the result may have
    progress     called with (done, total) frames of the result, and what it raises ends the work

    Raises LeanVideoError for a clip of one frame, for a result beyond `limit`, and where memory runs out with one frame at a time.
    """
    count = len(frames_THWC)
    if count < 2:
        raise LeanVideoError(f"{'One frame has' if count else 'There are no frames: a clip without any has'} nothing between: give two frames or more.")
    report = Report(frames=count)

    def frames() -> Iterator[tuple[Fraction, Tensor]]:
        for i in range(count):
            progress(0, count)  # nothing is made yet, but the user may cancel
            yield Fraction(i) / fps, frames_THWC[i]

    gaps: Iterable[Gap] = _watched(frames(), handling, report, {})
    if closed:
        back = Gap(count - 1, count - 1, 0, Fraction(count - 1) / fps, Fraction(count) / fps)
        gaps = _and_then(gaps, lambda: _judged(back, handling, report, look(frames_THWC[-1]), look(frames_THWC[0])))
    moments = list(_counted(lay_out(gaps, schedule, closed), limit, frames_THWC[0].nbytes))
    result_NHWC = frames_THWC.new_empty((len(moments), *frames_THWC.shape[1:]))
    progress(0, len(moments))
    pictures = _shown(moments, lambda index: frames_THWC[index], interpolator, batch, say)
    for i, picture_HWC in enumerate(pictures):
        result_NHWC[i] = picture_HWC
        progress(i + 1, len(moments))
    return result_NHWC, report


def interpolate_stream(
    frames: Iterable[tuple[Fraction, Tensor]],
    interpolator: Interpolator,
    schedule: Schedule,
    *,
    fps: Fraction,
    handling: Handling = Handling(),
    batch: int = 1,
    report: Report | None = None,
    say: Say = _ignored,
) -> Iterator[Tensor]:
    """The frames of the result one after the other, [H,W,C]: those of the clip as they are, the others float32 in 0..1.

    frames  (seconds since the first, uint8 or float [H,W,C]), one after the other; never more of them are held than a run of repeats and a batch are long
    fps     their usual rate: where a frame is shown for longer than a run of repeats may be, motion starts one such step before the next

    Raises as `interpolate_clip`, but only when it comes to it.
    """
    held: dict[int, Tensor] = {}
    report = report or Report()
    gaps = _paused(_watched(frames, handling, report, held), 1 / fps)
    yield from _shown(lay_out(gaps, schedule), held.__getitem__, interpolator, batch, say)


def one_between(a_HWC: Tensor, b_HWC: Tensor, time: float, interpolator: Interpolator) -> Tensor:
    """The frame at `time` between two pictures, [H,W,C]; at 0 and 1 it is one of them. Raises as `interpolate_clip`, and for a time outside."""
    if not 0 <= time <= 1:
        raise LeanVideoError(f"{time:g} is no time between two images: choose one from 0, the first, to 1, the second.")
    if a_HWC.shape != b_HWC.shape:
        raise LeanVideoError(_two_sizes(a_HWC, b_HWC, 1))
    if time == 1:
        return b_HWC
    return next(_Maker(interpolator, 1, _ignored).pictures([(Moment(0, 1, time), a_HWC, b_HWC)]))


def _counted(moments: Iterator[Moment], limit: int | None, each: int) -> Iterator[Moment]:
    for i, moment in enumerate(moments):
        if limit is not None and (i + 1) * each > limit:
            raise LeanVideoError(
                f"The result would take more than the {limit / 2**30:.1f} GiB of memory that are free ({i} frames): "
                "make fewer frames, or interpolate from file to file, which holds no clip in memory."
            )
        yield moment


def _and_then(gaps: Iterable[Gap], last: Callable[[], Gap]) -> Iterator[Gap]:
    yield from gaps
    yield last()


def _watched(frames: Iterable[tuple[Fraction, Tensor]], handling: Handling, report: Report, held: dict[int, Tensor]) -> Iterator[Gap]:
    """The gaps between frames as they come. `held` gets the frames and keeps those that the gap and the run of repeats it may belong to are made of."""
    watches = handling.at_cuts != "ignore" or handling.repeats
    start, run = Fraction(0), 0
    before: Look | None = None  # at the frame before
    first: Look | None = None  # at the one that the run of repeats began with
    index = -1
    for index, (time, frame_HWC) in enumerate(frames):
        if index and frame_HWC.shape != held[index - 1].shape:
            raise LeanVideoError(_two_sizes(held[index - 1], frame_HWC, index))
        held[index] = frame_HWC
        now = look(frame_HWC) if watches else None
        if index == 0:
            start, first = time, now
        else:
            gap = Gap(index - 1, index - 1, index, start, time)
            if handling.repeats and first is not None and now is not None and gap.index not in handling.skipped and repeats(first, now):
                gap = replace(gap, kind=Kind.REPEAT)
                report.repeats += 1
            else:
                gap = _judged(gap, handling, report, before, now)
                run, first = index, now
            yield gap
            start = time
        before = now
        oldest = max(run, index - LONGEST_RUN)
        for old in [key for key in held if key < oldest]:
            del held[old]
    report.frames = index + 1
    if index < 1:
        raise LeanVideoError("One frame has nothing between: give two frames or more." if index == 0 else "There are no frames: give two or more.")


def _judged(gap: Gap, handling: Handling, report: Report, before: Look | None, after: Look | None) -> Gap:
    """The gap as what it is, where it is no repeat."""
    kind = Kind.MOTION
    if gap.index in handling.skipped:
        kind = Kind.SKIP
    elif handling.at_cuts != "ignore" and before is not None and after is not None:
        amount = change(before, after)
        if amount > handling.threshold:
            report.cuts.append((gap.left, amount))
            kind = Kind.SKIP if handling.at_cuts == "cut" else Kind.HOLD
        else:
            report.highest = max(report.highest, amount)
    return replace(gap, kind=kind)


def _paused(gaps: Iterable[Gap], step: Fraction) -> Iterator[Gap]:
    """Frames of variable rate that are shown for long stand still until a step before the next."""
    for gap in gaps:
        if gap.kind in (Kind.MOTION, Kind.REPEAT) and gap.end - gap.start > LONGEST_RUN * step:
            moves = gap.end - step
            yield replace(gap, end=moves, kind=Kind.HOLD)
            gap = replace(gap, start=moves)
        yield gap


def _shown(moments: Iterable[Moment], frame: Callable[[int], Tensor], interpolator: Interpolator, batch: int, say: Say) -> Iterator[Tensor]:
    """The picture of each moment, in order. Frames that are to be made wait for each other until they fill a batch."""
    maker = _Maker(interpolator, batch, say)
    waiting: list[tuple[Moment, Tensor, Tensor]] = []
    to_make = 0
    for moment in moments:
        left_HWC = frame(moment.left)
        if moment.is_original and not to_make:
            yield left_HWC
            continue
        waiting.append((moment, left_HWC, left_HWC if moment.is_original else frame(moment.right)))
        to_make += not moment.is_original
        if to_make >= maker.batch:
            yield from maker.pictures(waiting)
            waiting, to_make = [], 0
    yield from maker.pictures(waiting)


class _Maker:
    """Makes frames in batches, and remembers what a frame needs once for as long as frames are made from it."""

    def __init__(self, interpolator: Interpolator, batch: int, say: Say) -> None:
        self.batch = batch
        self._interpolator = interpolator
        self._say = say
        self._prepared: dict[tuple[int, int], Prepared] = {}

    def pictures(self, moments: Sequence[tuple[Moment, Tensor, Tensor]]) -> Iterator[Tensor]:
        to_make = [entry for entry in moments if not entry[0].is_original]
        made = iter(self._made(to_make))
        for moment, left_HWC, _ in moments:
            yield left_HWC if moment.is_original else next(made)

    def _made(self, entries: Sequence[tuple[Moment, Tensor, Tensor]]) -> list[Tensor]:
        done: list[Tensor] = []
        while len(done) < len(entries):
            some = entries[len(done) : len(done) + self.batch]
            try:
                done += self._batch(some)
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Out here the error is gone, and with it the frames that hold what was on the device.
            self._prepared.clear()
            release()
            if self.batch == 1:
                height, width = some[0][1].shape[:2]
                raise LeanVideoError(f"Not even one frame of {width}x{height} can be made in the memory that is free: close what else uses it, or choose smaller frames.")
            self.batch = min(self.batch, len(some)) // 2 or 1
            self._say(f"Memory ran out: going on with {self.batch} frame{'s' * (self.batch > 1)} at a time.")
        return done

    def _batch(self, entries: Sequence[tuple[Moment, Tensor, Tensor]]) -> list[Tensor]:
        channels = entries[0][1].shape[-1]
        parts: list[Tensor] = []
        for part in range(2 if channels == 4 else 1):  # colours, then transparency as a picture of its own
            a = [self._one_prepared(moment.left, frame, part) for moment, frame, _ in entries]
            b = [self._one_prepared(moment.right, frame, part) for moment, _, frame in entries]
            made_N3HW = between_pairs(self._interpolator, a, b, [moment.time for moment, _, _ in entries]).cpu()
            parts.append(made_N3HW.permute(0, 2, 3, 1)[..., : 3 if channels >= 3 and part == 0 else 1])
        last = entries[-1][0]
        self._prepared = {key: kept for key, kept in self._prepared.items() if key[0] >= min(last.left, last.right)}
        return list(torch.cat(parts, -1))

    def _one_prepared(self, index: int, frame_HWC: Tensor, part: int) -> Prepared:
        key = index, part
        if key not in self._prepared:
            shown_HWC = frame_HWC[..., 3:] if part else frame_HWC[..., :3]
            floats_HWC = shown_HWC.float() / 255 if shown_HWC.dtype == torch.uint8 else shown_HWC.float()
            self._prepared[key] = self._interpolator.prepare(floats_HWC.expand(-1, -1, 3).permute(2, 0, 1))
        return self._prepared[key]


def between_pairs(interpolator: Interpolator, a: Sequence[Prepared], b: Sequence[Prepared], times: Sequence[float]) -> Tensor:
    """A frame for each pair and time, [N,3,H,W]; of one pair alone its frames are not copied."""

    def together(frames: Sequence[Prepared]) -> Prepared:
        if all(frame is frames[0] for frame in frames):
            return frames[0]
        return Prepared(torch.cat([frame.x_BCHW for frame in frames]), frames[0].size)

    return interpolator.between(together(a), together(b), times)


def _two_sizes(before_HWC: Tensor, after_HWC: Tensor, index: int) -> str:
    (h, w, c), (height, width, channels) = before_HWC.shape, after_HWC.shape
    if (h, w) == (height, width):
        return f"Frame {index} has {c} channels and frame {index + 1} has {channels}: give all frames transparency, or none."
    return f"Frame {index} is {w}x{h} and frame {index + 1} is {width}x{height}: frames of one clip have one size, so bring them to one first."
