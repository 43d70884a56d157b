"""When the frames of the result are, and from which frames of the clip each is made. No pixels here.

Times are exact: seconds since the first frame of the clip, as fractions.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from itertools import pairwise
from typing import Protocol

from ..errors import LeanVideoError

MAX_FACTOR = 64
LONGEST_RUN = 4  # frames that show one picture: animation is drawn on twos, threes and fours; what stands longer stands still


class Kind(Enum):
    """What happens between a frame of the clip and the next.

    MOTION  frames are made
    REPEAT  the next frame is this one once more, so the motion to the one after it takes longer
    HOLD    this frame is shown until the next: across a cut, or while nothing moves
    SKIP    nothing is put between
    """

    MOTION = "motion"
    REPEAT = "repeat"
    HOLD = "hold"
    SKIP = "skip"


@dataclass(frozen=True)
class Gap:
    """From frame `left` of the clip, shown from `start` on, to frame `right`, shown from `end` on; `index` counts them."""

    index: int
    left: int
    right: int
    start: Fraction
    end: Fraction
    kind: Kind = Kind.MOTION


@dataclass(frozen=True)
class Moment:
    """A frame of the result: frame `left` of the clip itself at time 0, else one at `time` (below 1) on the way to `right`."""

    left: int
    right: int
    time: float

    @property
    def is_original(self) -> bool:
        return self.time == 0


class Schedule(Protocol):
    """Where frames of the result lie."""

    @property
    def keeps_time(self) -> bool:
        """Whether the result is a film at a rate of its own, so that leaving a frame out would shift the rest."""
        ...

    def times(self, gap: Gap) -> Iterator[Fraction]:
        """The times of the result in this gap, from `gap.start` on and before `gap.end`, in order."""
        ...

    def shows_last(self, time: Fraction) -> bool:
        """Whether the result has the last frame of a clip that does not go round, which is shown from `time` on."""
        ...


@dataclass(frozen=True)
class Between:
    """So many frames between each frame and the next: one number for all gaps, or one for each. `lead` holds the first frame so many frames longer."""

    counts: int | tuple[int, ...]
    lead: int = 0

    @property
    def keeps_time(self) -> bool:
        return False

    def times(self, gap: Gap) -> Iterator[Fraction]:
        pieces = 1 + (self.counts if isinstance(self.counts, int) else self.counts[gap.index])
        yield from itertools.repeat(gap.start, self.lead if gap.index == 0 else 0)
        for k in range(pieces):
            yield gap.start + (gap.end - gap.start) * Fraction(k, pieces)

    def shows_last(self, time: Fraction) -> bool:
        return True


@dataclass(frozen=True)
class AtRate:
    """`fps` frames a second."""

    fps: Fraction

    @property
    def keeps_time(self) -> bool:
        return True

    def times(self, gap: Gap) -> Iterator[Fraction]:
        for k in range(math.ceil(gap.start * self.fps), math.ceil(gap.end * self.fps)):
            yield k / self.fps

    def shows_last(self, time: Fraction) -> bool:
        return (time * self.fps).denominator == 1


def lay_out(gaps: Iterable[Gap], schedule: Schedule, closed: bool = False) -> Iterator[Moment]:
    """The frames of the result, in order. Reads no further ahead than a run of repeats may be long.

    gaps    of the whole clip, in order; there is at least one
    closed  whether the last of them leads back to the first frame, which is then not shown again
    """
    run: list[Gap] = []
    still = False
    last: Gap | None = None
    for gap in gaps:
        last = gap
        if gap.kind is not Kind.REPEAT:
            yield from _moments([*run, gap], schedule)
            run, still = [], False
            continue
        run.append(gap)
        if still or len(run) >= LONGEST_RUN:
            yield from _held(run, schedule)
            run, still = [], True
    yield from _held(run, schedule)
    if last is not None and not closed and schedule.shows_last(last.end):
        yield Moment(last.right, last.right, 0)


def _moments(run: list[Gap], schedule: Schedule) -> Iterator[Moment]:
    """A gap, and before it those whose frames show what its first frame shows: motion is spread over all of them."""
    first, last = run[0], run[-1]
    if last.kind is not Kind.MOTION:
        yield from _held(run, schedule)
        return
    for gap in run:
        for time in schedule.times(gap):
            yield Moment(first.left, last.right, float((time - first.start) / (last.end - first.start)))


def _held(run: list[Gap], schedule: Schedule) -> Iterator[Moment]:
    for gap in run:
        for time in schedule.times(gap):
            if time == gap.start or gap.kind is not Kind.SKIP or schedule.keeps_time:
                yield Moment(gap.left, gap.right, 0)


def check_factor(factor: int) -> int:
    """Raises LeanVideoError for a number of times the frames a second that is out of range."""
    if not 2 <= factor <= MAX_FACTOR:
        raise LeanVideoError(f"{factor} times the frames cannot be made: choose 2 to {MAX_FACTOR}.")
    return factor


def check_rate(fps: Fraction, rate: Fraction) -> Fraction:
    """Raises LeanVideoError where a clip of `fps` is not to be shown at `rate`."""
    if not 0 < rate <= fps * MAX_FACTOR:
        raise LeanVideoError(
            f"{float(rate):g} frames a second cannot be made of {float(fps):g}: choose more than 0 and at most {MAX_FACTOR} times as many, {float(fps * MAX_FACTOR):g}."
        )
    return rate


def parse_counts(text: str, gaps: int) -> tuple[int, ...]:
    """`3, 0, 7`: how many frames to make in each of `gaps` gaps. Raises LeanVideoError."""
    counts = [_whole(word, "number of frames") for word in _words(text)]
    if len(counts) != gaps:
        raise LeanVideoError(f"The schedule has {len(counts)} numbers and the clip {gaps} pairs of frames: give one number for each pair, 0 for nothing between.")
    return tuple(counts)


def parse_times(text: str, frames: int, fps: Fraction, closed: bool) -> Between:
    """`0, 0.5, 2.25`: when each of `frames` keyframes is to be seen, in seconds; of a closed loop, also when the first is seen again.

    A keyframe is put on the nearest frame of a film at `fps`. Raises LeanVideoError.
    """
    places: list[int] = []
    for word in _words(text):
        if not re.fullmatch(r"\d{1,9}(\.\d{0,9})?", word, re.ASCII):
            raise LeanVideoError(f"{word[:40]!r} in the schedule is no time: give seconds such as 0, 0.5, 2.25.")
        time = Fraction(word)
        if time > 86400:
            raise LeanVideoError(f"The time {word} in the schedule is out of range: a timeline starts at 0 and ends within a day.")
        places.append(round(time * fps))
    wanted = frames + closed
    if len(places) != wanted:
        also = ", and when the first is seen again" if closed else ""
        raise LeanVideoError(f"The schedule has {len(places)} times and should have {wanted}: one for each of the {frames} keyframes{also}.")
    for before, after in pairwise(places):
        if after <= before:
            raise LeanVideoError(f"Times in the schedule must grow by a frame of {float(1 / fps):.3g} s at least; two keyframes fall on frame {after} of the result or behind it.")
    return Between(tuple(after - before - 1 for before, after in pairwise(places)), lead=places[0])


def parse_pairs(text: str, gaps: int) -> frozenset[int]:
    """`2, 5-8`: numbers of pairs, counted from 1, as indices of gaps. Raises LeanVideoError."""
    found: set[int] = set()
    for word in _words(text):
        first, dash, last = word.partition("-")
        low = _whole(first, "pair")
        high = _whole(last, "pair") if dash else low
        if not 1 <= low <= high <= gaps:
            raise LeanVideoError(f"There is no pair {word}: the clip has the pairs 1 to {gaps}, pair 1 being frames 1 and 2.")
        found.update(range(low - 1, high))
    return frozenset(found)


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,;]+", text) if word]


def _whole(word: str, what: str) -> int:
    if not re.fullmatch(r"\d{1,9}", word, re.ASCII):
        raise LeanVideoError(f"{word[:40]!r} is no {what}: give whole numbers, with commas between.")
    return int(word)
