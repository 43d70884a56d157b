"""Video files to frames, one at a time."""

from __future__ import annotations

import contextlib
import re
import struct
from array import array
from collections.abc import Generator, Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, BinaryIO
from weakref import WeakSet

from ..errors import LeanVideoError
from .colours import colour_notes, has_alpha, to_rgb
from .demuxing import MAX_SIDE, MediaFile, OpenMedia
from .presets import FPS_MAX, FPS_MIN, exact_fps
from .resize import fit
from .sound import open_sound
from .timing import EvenTimes, Measured, TimedFrame, mended

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from torch import Tensor

_FALLBACK_FPS = Fraction(25)
# A search that lands behind the time wanted starts again from further in front; the last starts at the beginning of the file.
_RUN_UPS = (Fraction(0), Fraction(2), Fraction(15))
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_VP8_SHOWN = 0x10


class VideoReader:
    """Reads the first video stream of a file, given as a path or as a seekable binary file object; a FrameSource.

    Rotation is applied. Damaged frames are left out until the next intact one, wrong timestamps are put right, and `notes` says so.
    Between iterations no file is open. Raises LeanVideoError where there is no video or no frame of it can be read.
    """

    def __init__(self, source: str | Path | BinaryIO) -> None:
        self._file = MediaFile(source)
        self._reading: WeakSet[Generator[TimedFrame, None, None]] = WeakSet()
        self._measured: Measured | None = None
        self._is_damaged = False
        self.name = self._file.name
        self.notes: list[str] = []
        with self._file.open() as media:
            stream = media.video
            self.fps = _nominal_fps(stream)
            self.frames: int | None = stream.frames or None
            self._origin = Fraction(0)
            first = next(self._decoded(media, at_start=True), None)
            if first is None:
                raise LeanVideoError(f"No frame of {self.name} can be read: the file is damaged or incomplete, so copy or download it again.")
            self._origin = _seconds(_timestamp(first), stream) or Fraction(0)
            end = _promised_end(stream)
            self.seconds = end - self._origin if end is not None and end > self._origin else None
            self._can_seek = _timestamp(first) is not None
            self._turn = _turn(first)
            self._centred = stream.codec_context.name == "mjpeg"
            self._has_alpha = has_alpha(first)
            width, height = (first.height, first.width) if self._turn[0] else (first.width, first.height)
            self.size = (width, height)
            if stream.codec_context.name == "gif":  # FFmpeg decodes every GIF to RGBA
                self._has_alpha = bool((self._picture(first)[..., 3] < 255).any())
            self.channels = 4 if self._has_alpha else 3
            self._describe(stream, first)
            self.sound = open_sound(self._file, media, self._origin, self.notes)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[TimedFrame]:
        return self.frames_from()

    def close(self) -> None:
        """End what is being read, also the sound."""
        for reading in list(self._reading):
            reading.close()
        if self.sound:
            self.sound.close()

    def frames_from(self, start: Fraction = Fraction(0)) -> Iterator[TimedFrame]:
        """The frames from the one on show at `start` seconds; from a time after the end, the last one."""
        reading = self._frames_from(start)
        self._reading.add(reading)
        return reading

    def measure(self) -> Measured:
        """The exact count and times of the frames, from the timestamps of all packets; nothing is decoded. Sets `frames` and `seconds`."""
        if self._measured is None:
            with self._file.open() as media:
                self._measured = self._measure(media)
            self.frames, self.seconds = self._measured.frames, self._measured.seconds
        return self._measured

    def _frames_from(self, start: Fraction) -> Generator[TimedFrame, None, None]:
        held: tuple[Fraction, Any] | None = None
        with contextlib.closing(self._located(start)) as located:
            for time, frame in located:
                if time <= start:
                    held = time, frame
                    continue
                if held:
                    yield TimedFrame(held[0], self._picture(held[1]))
                    held = None
                yield TimedFrame(time, self._picture(frame))
            if held:
                yield TimedFrame(held[0], self._picture(held[1]))

    def _located(self, start: Fraction) -> Generator[tuple[Fraction, Any], None, None]:
        """Timed frames, undeveloped, from one that is not after `start`."""
        searches = [start - run_up for run_up in _RUN_UPS if start > run_up] if self._can_seek else []
        for target in [*searches, None]:
            with self._file.open() as media:
                if target is not None and not _seek(media, target + self._origin):
                    continue
                timed = mended(self._stamped(media, at_start=target is None), 1 / self.fps, self._note_mend)
                first = next(timed, None)
                if target is not None and (first is None or first[0] > start):
                    continue
                if first is not None:
                    yield first
                    yield from timed
                return

    def _stamped(self, media: OpenMedia, at_start: bool) -> Iterator[tuple[Fraction | None, Any]]:
        stream = media.video
        latest: Fraction | None = None
        for count, frame in enumerate(self._decoded(media, at_start)):
            time = _seconds(_timestamp(frame), stream)
            if time is None and not at_start and count == 0:
                return
            if time is not None:
                time -= self._origin
                latest = time if latest is None else max(latest, time)
            yield time, frame
        promised = _promised_end(stream)
        if at_start and latest is not None and promised is not None and latest + self._origin + 3 / self.fps < promised:
            self._note_damage(latest + 1 / self.fps)

    def _decoded(self, media: OpenMedia, at_start: bool) -> Iterator[Any]:
        """The intact frames in the order shown. After damage, or a search, they begin again at a frame that needs no other."""
        from av.error import FFmpegError

        stream = media.video
        decoder = _decoder(stream)
        waits, reached = not at_start, None
        for packet in media.packets(stream):
            try:
                frames = decoder.decode(packet)
                is_damaged = packet.is_corrupt
            except FFmpegError:
                frames, is_damaged = [], True
            for frame in frames:
                is_damaged |= frame.is_corrupt
                if frame.is_corrupt or (waits and not frame.key_frame):
                    continue
                if max(frame.width, frame.height) > MAX_SIDE:
                    raise LeanVideoError(f"{self.name} holds a picture of {frame.width}x{frame.height}: at most {MAX_SIDE} pixels a side can be read, so scale it down first.")
                waits = False
                reached = _timestamp(frame)
                yield frame
            if is_damaged and not (waits and not at_start):
                waits = True
                seconds = _seconds(reached, stream)
                self._note_damage(Fraction(0) if seconds is None else seconds - self._origin + 1 / self.fps)

    def _measure(self, media: OpenMedia) -> Measured:
        stream = media.video
        stamps: list[int | None] = []
        end = 0
        is_vp8 = stream.codec_context.name in ("vp8", "libvpx")
        for packet in media.packets(stream):
            if packet.size == 0 or packet.is_discard or (is_vp8 and not _is_shown(packet)):
                continue
            stamp = packet.dts if packet.pts is None else packet.pts
            stamps.append(stamp)
            if stamp is not None:
                end = max(end, stamp + (packet.duration or 0))
        known = array("q", (stamp for stamp in stamps if stamp is not None))
        if not known or len(known) < len(stamps):
            self._can_seek = False
            times: Sequence[Fraction] = EvenTimes(len(stamps), self.fps)
            return Measured(times, len(stamps) / self.fps)
        if stream.codec_context.has_b_frames:
            known = array("q", sorted(known))
        raw = [stamp * stream.time_base - self._origin for stamp in known]
        raw = raw[next((i for i, time in enumerate(raw) if time >= 0), 0) :]
        times = [time for time, _ in mended(((time, None) for time in raw), 1 / self.fps, self._note_mend)]
        end_time = end * stream.time_base - self._origin
        return Measured(times, end_time if end_time > times[-1] else times[-1] + 1 / self.fps)

    def _picture(self, frame: Any) -> Tensor:
        frame_HWC = _turned(to_rgb(frame, self._has_alpha, self._centred), self._turn)
        height, width = frame_HWC.shape[:2]
        if (width, height) != self.size:
            self._note(f"{self.name} changes its size on the way, to {width}x{height}: those frames were scaled to {self.size[0]}x{self.size[1]}.")
            return _scaled(frame_HWC, self.size)
        return frame_HWC

    def _describe(self, stream: Any, frame: Any) -> None:
        self.notes += colour_notes(frame, self.name)
        ratio = stream.sample_aspect_ratio
        if ratio and ratio != 1:
            self._note(
                f"{self.name} has pixels that are {ratio.numerator}:{ratio.denominator} and not square: the frames are given as stored, so stretch their width by {float(ratio):.4g} if they look wrong."
            )
        if frame.interlaced_frame:
            self._note(f"{self.name} is interlaced: each frame shows two moments in alternate lines, so deinterlace it first if that shows.")

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _note_damage(self, time: Fraction) -> None:
        if not self._is_damaged:
            self._is_damaged = True
            self._note(f"{self.name} is damaged or cut off from {float(time):.2f} s on: frames that could not be read there were left out.")

    def _note_mend(self) -> None:
        self._can_seek = False
        self._note(f"{self.name} has timestamps that repeat or go backwards: those frames were put between their neighbours.")


def _decoder(stream: Any) -> Any:
    """The stream's own decoder, or for VP8 and VP9 with transparency the one that knows of it."""
    from av.codec import CodecContext

    name = _ALPHA_DECODERS.get(stream.codec_context.name) if _says_alpha(stream) else None
    if name is None:
        decoder: Any = stream.codec_context
        decoder.thread_type = "AUTO"
        if decoder.name == "ffv1":
            decoder.options = {"err_detect": "crccheck+explode"}
        return decoder
    decoder = CodecContext.create(name, "r")
    decoder.extradata = stream.codec_context.extradata
    return decoder


def _says_alpha(stream: Any) -> bool:
    return {key.lower(): value for key, value in stream.metadata.items()}.get("alpha_mode") == "1"


def _seek(media: OpenMedia, seconds: Fraction) -> bool:
    from av.error import FFmpegError

    stream = media.video
    try:
        media.container.seek(int(seconds // stream.time_base), stream=stream, backward=True)
    except FFmpegError:
        return False
    return True


def _timestamp(frame: Any) -> int | None:
    return frame.dts if frame.pts is None else frame.pts


def _seconds(stamp: int | None, stream: Any) -> Fraction | None:
    return None if stamp is None else stamp * stream.time_base


def _promised_end(stream: Any) -> Fraction | None:
    """When the stream ends by its header, on the clock of its timestamps; Matroska says it in a tag "01:02:03.456000000"."""
    if stream.duration:
        return ((stream.start_time or 0) + stream.duration) * stream.time_base
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    return 3600 * int(match[1]) + 60 * int(match[2]) + Fraction(match[3]) if match else None


def _is_shown(vp8_packet: Any) -> bool:
    """RFC 6386, section 9.1: the fifth bit of a frame's tag."""
    return bool(bytes(vp8_packet)[0] & _VP8_SHOWN)


def _nominal_fps(stream: Any) -> Fraction:
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and FPS_MIN <= rate <= FPS_MAX:
            return exact_fps(rate if rate.denominator <= 1001 else float(rate))
    return _FALLBACK_FPS


def _turn(frame: Any) -> tuple[bool, bool, bool]:
    """Whether to exchange rows and columns, then mirror left and right, then top and bottom, as the display matrix says.

    The matrix is three rows of three 32-bit numbers; a point (x, y) is shown at (a*x + c*y, b*x + d*y) (ISO/IEC 14496-12, 8.3.2).
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    return (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)


def _turned(frame_HWC: Tensor, turn: tuple[bool, bool, bool]) -> Tensor:
    exchange, left_right, top_bottom = turn
    if exchange:
        frame_HWC = frame_HWC.transpose(0, 1)
    sides = [dim for dim, mirrored in ((1, left_right), (0, top_bottom)) if mirrored]
    return frame_HWC.flip(sides).contiguous() if sides or exchange else frame_HWC


def _scaled(frame_HWC: Tensor, size: tuple[int, int]) -> Tensor:
    import torch

    is_whole = frame_HWC.dtype == torch.uint8
    image = frame_HWC.movedim(-1, 0)[None].float() / (255 if is_whole else 1)
    scaled = fit(image, *size, "stretch")[0].movedim(0, -1)
    return (scaled * 255).round().byte() if is_whole else scaled.contiguous()
