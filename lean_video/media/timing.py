"""When each frame is shown: a clip's timestamps, put in order where a file has them wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from types import TracebackType

    from torch import Tensor

    from .audio import Sound

T = TypeVar("T")


@dataclass(frozen=True)
class TimedFrame:
    """`frame_HWC` RGB or RGBA, uint8 or float32 0..1, first shown `time` seconds after the first frame of the clip."""

    time: Fraction
    frame_HWC: Tensor


@dataclass(frozen=True)
class Measured:
    """When each frame of a clip is first shown, in seconds after the first, and how long the whole lasts."""

    times: Sequence[Fraction]
    seconds: Fraction

    @property
    def frames(self) -> int:
        return len(self.times)


class FrameSource(Protocol):
    """A clip, read frame by frame: nothing is kept of a frame once it was given.

    `size` is (width, height) as shown; `channels` 3, or 4 with transparency; `fps` the nominal rate; `frames` and `seconds` what the header
    says, exact after `measure`; `notes` sentences for the user, which may become more while reading.
    """

    name: str
    size: tuple[int, int]
    channels: int
    fps: Fraction
    frames: int | None
    seconds: Fraction | None
    notes: list[str]

    @property
    def sound(self) -> Sound | None: ...

    def frames_from(self, start: Fraction = Fraction(0)) -> Iterator[TimedFrame]:
        """The frames from the one on show at `start` seconds."""
        ...

    def __iter__(self) -> Iterator[TimedFrame]: ...

    def measure(self) -> Measured:
        """Exact count and times, from the timestamps alone."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> FrameSource: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class EvenTimes(Sequence[Fraction]):
    """The times of `count` frames at a constant rate."""

    def __init__(self, count: int, fps: Fraction) -> None:
        self._range, self._step = range(count), 1 / fps

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: int) -> Fraction:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._range[index] * self._step


def mended(stamped: Iterable[tuple[Fraction | None, T]], step: Fraction, on_mend: Callable[[], None]) -> Iterator[tuple[Fraction, T]]:
    """The items with times that only ever rise, calling `on_mend` for each time that was not usable.

    A missing time is one `step` after the last. A time that does not rise, or stands out above its neighbours, is put between them, at most
    a step after the last, so that one wrong time does not move the frames after it. Holds one item ahead.
    """
    items = iter(stamped)
    item = next(items, None)
    last: Fraction | None = None
    while item is not None:
        following = next(items, None)
        time, next_time = item[0], following[0] if following else None
        expected = Fraction(0) if last is None else last + step
        if time is None:
            time = expected
        elif last is not None:
            upcoming = next_time if next_time is not None and next_time > last else None
            stands_out = upcoming is not None and time > upcoming and abs(time - expected) > abs(upcoming - expected)
            if time <= last or stands_out:
                on_mend()
                time = expected if upcoming is None else min(expected, (last + upcoming) / 2)
        yield time, item[1]
        last, item = time, following
