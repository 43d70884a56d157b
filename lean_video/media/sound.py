"""The sound of a video file, decoded as it is asked for and never held whole."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Generator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from .audio import LAYOUT_OF_CHANNELS, Audio

if TYPE_CHECKING:
    from torch import Tensor

    from .demuxing import MediaFile, OpenMedia

# A codec's first packets after a search lean on earlier ones: Opus asks for 80 ms, MP3 for some frames.
_RUN_UP_SECONDS = Fraction(1, 4)
# Reading goes on rather than searching for what is this near, and what was read this lately is kept.
_NEAR_SECONDS, _KEPT_SECONDS = 10, 2
# Timestamps of some containers are whole milliseconds, so smaller jumps between pieces are rounding and not gaps.
_JITTER_SECONDS = Fraction(1, 50)
_RATES = (1000, 384000)


class AudioFile:
    """The first audio stream of a file as a Sound: sample 0 falls on the first frame of the video.

    Opened when first read and read on from there. Silence stands for what is before, after or missing. May be read from several threads.
    """

    def __init__(self, file: MediaFile, sample_rate: int, channels: int, origin: Fraction) -> None:
        self.sample_rate = sample_rate
        self.channels = channels
        self._file, self._origin = file, origin
        self._lock = threading.Lock()
        self._decoding: _Decoding | None = None

    def read(self, start: int, stop: int) -> Tensor:
        """Samples `start` to `stop` as float [channels, stop - start]."""
        with self._lock:
            decoding = self._decoding
            if decoding is None or not decoding.first <= start <= decoding.reached + _NEAR_SECONDS * self.sample_rate:
                self._close()
                decoding = self._decoding = _Decoding(self._file.open(), self.sample_rate, self.channels, self._origin, start)
            return decoding.read(start, stop)

    def part(self, start: Fraction, end: Fraction) -> Audio:
        """The sound from `start` to `end`, seconds after the first frame of the video."""
        return Audio(self.read(round(start * self.sample_rate), round(end * self.sample_rate)), self.sample_rate)

    def whole(self) -> Audio:
        """All of it from the first frame of the video on, in memory."""
        import torch

        pieces: list[Tensor] = []
        with self._file.open() as media:
            decoding = _Decoding(media, self.sample_rate, self.channels, self._origin, 0)
            at = 0
            while not decoding.ended:
                pieces.append(decoding.read(at, at + self.sample_rate))
                at += self.sample_rate
            length = max(1, min(at, decoding.reached))
        return Audio(torch.cat(pieces, 1)[:, :length], self.sample_rate)

    def close(self) -> None:
        """Let go of the file; a later read opens it again."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._decoding:
            self._decoding.close()
            self._decoding = None


class _Decoding:
    """Decodes from shortly before sample `start` on, and answers for what lies between `first` and the end."""

    def __init__(self, media: OpenMedia, sample_rate: int, channels: int, origin: Fraction, start: int) -> None:
        self._media, self._rate, self._channels, self._origin = media, sample_rate, channels, origin
        self._pieces = self._placed(start)
        self._held: deque[tuple[int, Tensor]] = deque()
        self.first = self.reached = start
        self.ended = self._begun = False

    def read(self, start: int, stop: int) -> Tensor:
        import torch

        while self.reached < stop and not self.ended:
            self._take()
        out_CS = torch.zeros(self._channels, max(0, stop - start))
        for position, piece_CS in self._held:
            begin, end = max(start, position), min(stop, position + piece_CS.shape[1])
            if begin < end:
                out_CS[:, begin - start : end - start] = piece_CS[:, begin - position : end - position]
        self._forget(stop - _KEPT_SECONDS * self._rate)
        return out_CS

    def close(self) -> None:
        self._pieces.close()
        self._media.close()

    def _take(self) -> None:
        placed = next(self._pieces, None)
        if placed is None:
            self.ended = True
        else:
            self._held.append(placed)
            self.reached = max(self.reached, placed[0] + placed[1].shape[1])

    def _forget(self, until: int) -> None:
        while self._held and (end := self._held[0][0] + self._held[0][1].shape[1]) <= until:
            self.first = max(self.first, end)
            self._held.popleft()

    def _placed(self, start: int) -> Generator[tuple[int, Tensor], None, None]:
        """Pieces of sound with the sample where each belongs. A small step between two is rounding, a large one back a broken clock: both go on without a gap."""
        target = Fraction(start, self._rate) - _RUN_UP_SECONDS
        pieces = self._decoded(target if target > 0 else None)
        piece = next(pieces, None)
        if target > 0 and (piece is None or piece[0] is None or piece[0] > start):
            pieces = self._decoded(None)
            piece = next(pieces, None)
        expected = 0
        is_first = True
        while piece is not None:
            position, piece_CS = piece
            jump = 0 if position is None else position - expected
            if is_first or jump > _JITTER_SECONDS * self._rate:
                expected += jump
            elif -self._rate < jump < -_JITTER_SECONDS * self._rate:
                piece_CS = piece_CS[:, -jump:]
            is_first = False
            if piece_CS.shape[1]:
                yield expected, piece_CS
            expected += piece_CS.shape[1]
            piece = next(pieces, None)

    def _decoded(self, target: Fraction | None) -> Generator[tuple[int | None, Tensor], None, None]:
        """Decoded pieces [channels, samples] with the samples that their timestamps name, from the start or from about `target` seconds."""
        import torch
        from av.error import FFmpegError

        stream = self._media.audio
        with contextlib.suppress(FFmpegError):
            if target is not None:
                self._media.container.seek(int((target + self._origin) // stream.time_base), stream=stream, backward=True)
            elif self._begun:
                self._media.container.seek(0, backward=True)
        self._begun = True
        resample = _Resampler(LAYOUT_OF_CHANNELS[self._channels], self._rate)
        for packet in self._media.packets(stream):
            try:
                frames = stream.codec_context.decode(packet)
            except FFmpegError:
                continue  # the timestamp after it leaves a gap, which is silence
            for frame in frames:
                position = None if frame.pts is None else round((frame.pts * stream.time_base - self._origin) * self._rate)
                for out in resample(frame):
                    yield position, torch.from_numpy(out.to_ndarray().copy())
                    position = None


class _Resampler:
    """Frames as planar float in one layout and rate, also where the stream changes its own on the way."""

    def __init__(self, layout: str, rate: int) -> None:
        self._layout, self._rate = layout, rate
        self._source: tuple[str, str, int] | None = None
        self._resampler: Any = None

    def __call__(self, frame: Any) -> list[Any]:
        from av.audio.resampler import AudioResampler

        source = (frame.format.name, frame.layout.name, frame.sample_rate)
        if source != self._source:
            self._source, self._resampler = source, AudioResampler(format="fltp", layout=self._layout, rate=self._rate)
        frame.pts = None  # its own would make the resampler fill gaps, which is done above
        return self._resampler.resample(frame)


def open_sound(file: MediaFile, media: OpenMedia, origin: Fraction, notes: list[str]) -> AudioFile | None:
    """The sound of `media`, or None with a note where there is some that cannot be read."""
    stream = media.audio
    if stream is None:
        if media.container.streams.audio:
            notes.append(f"The sound of {media.name} is in a format that cannot be decoded, so it was left out.")
        return None
    channels, rate = stream.codec_context.channels, stream.codec_context.sample_rate
    if not channels or not _RATES[0] <= rate <= _RATES[1]:
        notes.append(f"The sound of {media.name} does not say what it is (its rate is {rate} Hz), so it was left out.")
        return None
    if channels not in LAYOUT_OF_CHANNELS:
        notes.append(f"The sound of {media.name} has {channels} channels and was mixed down to stereo.")
        channels = 2
    return AudioFile(file, rate, channels, origin)
