"""Frames to a file, one at a time: memory does not grow with the length of the clip, and a failure leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import itertools
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import LeanVideoError
from .audio import sound_of
from .encoders import Encoder, open_encoder
from .pixels import LAYOUTS, frame_tensor, padded_size
from .presets import AUTO, Preset, Settings, check_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping
    from fractions import Fraction
    from types import TracebackType

PREVIEW_SIDE = 640


class Frames(Protocol):
    """What a clip is read from: a tensor [T,H,W,C], a list of frames, or anything that makes frame `i` when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Stream:
    """Frames that come one after the other and are not kept: about `total` of them, of `size` (width, height)."""

    frames: Iterable[object]
    size: tuple[int, int]
    total: int


class PingPong:
    """The frames there and back again, 0..n-1 and n-2..1, so that the loop repeats neither end. Holds no copy."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._count = len(frames)

    def __len__(self) -> int:
        return max(self._count, 2 * self._count - 2)

    def __getitem__(self, index: int, /) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._frames[index if index < self._count else 2 * self._count - 2 - index]


@dataclass(frozen=True)
class Numbered:
    """The next free `{prefix}_{counter:05}_{extension}` in `folder`, from `counter` on, also when several processes write there."""

    folder: Path
    prefix: str
    counter: int = 1


@dataclass(frozen=True)
class Written:
    """A finished file: for a PNG sequence `path` is its folder. `seconds` is how long it plays; `notes` are sentences for the user."""

    path: Path
    settings: Settings
    frames: int
    seconds: float
    preview: Path | None
    notes: tuple[str, ...]


class VideoWriter:
    """Writes frames of (width, height) = `size` to `path` as `preset` says.

    Use it as a context manager: leaving normally finishes the file and puts it in place under its name, leaving by an exception removes it.
    `metadata` becomes container tags, PNG text, EXIF (WebP) or comments (GIF). `audio` is a Sound or ComfyUI's dictionary, cut or
    filled with silence to the length of the clip. `loop_count` is how often a GIF or WebP plays, 0 for ever.
    After it, `path` is the final file and `notes` holds sentences for the user.
    Raises LeanVideoError for settings that the format cannot hold, frames that are no images, and everything that the disk or the encoder refuses.
    """

    def __init__(
        self,
        path: str | Path | Numbered,
        preset: Preset | str,
        fps: Fraction | float,
        size: tuple[int, int],
        *,
        quality: int = 80,
        pixel_format: str = AUTO,
        loop_count: int = 0,
        metadata: Mapping[str, str] | None = None,
        audio: object = None,
    ) -> None:
        self.settings = check_settings(preset, fps, quality=quality, pixel_format=pixel_format, loop_count=loop_count)
        self.notes: list[str] = []
        self.frames = 0
        self._size = size
        self._finished = self._failed = False
        self._check_size()
        sound = sound_of(audio) if audio is not None else None
        if sound and not self.settings.preset.audio_codec:
            self.notes.append(f"{self.settings.preset.name} has no sound, so the audio was left out.")
        with _sentences(path.folder if isinstance(path, Numbered) else Path(path)):
            self.path, self._partial = _claim(path, self.settings.preset)
        self._encoder: Encoder | None = None
        try:
            with self._mapped():
                self._encoder = open_encoder(self._partial, self.settings, size, dict(metadata or {}), sound)
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write(self, frame: object) -> None:
        """Append a frame [H,W,3 or 4], float 0..1 (clamped) or uint8, tensor or array. A frame that is refused ends the file."""
        if self._encoder is None or self._failed or self._finished:
            raise LeanVideoError(f"{self.path.name} is closed: start a new file.")
        try:
            frame_HWC = frame_tensor(frame, self.frames)
            height, width, channels = frame_HWC.shape
            if (width, height) != self._size:
                raise LeanVideoError(f"Frame {self.frames} is {width}x{height} and the clip is {self._size[0]}x{self._size[1]}: give all frames one size.")
            if channels == 4 and self.frames == 0 and not LAYOUTS[self.settings.pixel_format].has_alpha:
                self.notes.append(f"The images have transparency and {self.settings.pixel_format} has none, so they were put on black.")
            with self._mapped():
                self._encoder.write(frame_HWC, self.frames)
        except BaseException:
            self.abort()
            raise
        self.frames += 1

    def close(self) -> None:
        """Finish the file and put it in place; after a failure or a second time it does nothing. Raises LeanVideoError without frames."""
        if self._finished or self._failed or self._encoder is None:
            return
        try:
            if self.frames == 0:
                raise LeanVideoError(f"There are no frames to write to {self.path.name}: connect at least one image.")
            with self._mapped():
                self._encoder.finish(self.frames)
                _publish(self._partial, self.path)
        except BaseException:
            self.abort()
            raise
        self._finished = True

    def abort(self) -> None:
        """Remove what was written so far; never raises."""
        if self._finished or self._failed:
            return
        self._failed = True
        if self._encoder is not None:
            self._encoder.abort()
        _remove(self._partial)

    def _check_size(self) -> None:
        width, height = self._size
        preset = self.settings.preset
        if width < 1 or height < 1:
            raise LeanVideoError(f"The frames are {width}x{height}: give images with at least one pixel.")
        if min(width, height) < preset.min_side:
            raise LeanVideoError(f"The frames are {width}x{height} and {preset.name} needs at least {preset.min_side} pixels a side: scale them up or choose another format.")
        if max(width, height) > preset.max_side:
            raise LeanVideoError(f"The frames are {width}x{height} and {preset.name} holds at most {preset.max_side} pixels a side: scale them down or choose another format.")
        wide, high = padded_size(width, height, LAYOUTS[self.settings.pixel_format])
        if (wide, high) != (width, height):
            self.notes.append(f"{self.settings.pixel_format} needs even sizes, so the last row or column was repeated: {width}x{height} became {wide}x{high}.")

    def _mapped(self) -> contextlib.AbstractContextManager[None]:
        settings = self.settings
        return _sentences(self.path, f"{self._size[0]}x{self._size[1]} at {float(settings.fps):g} fps in {settings.preset.name}, {settings.pixel_format}")


def combine(
    frames: Frames | Stream,
    path: str | Path | Numbered,
    preset: Preset | str,
    fps: Fraction | float,
    *,
    quality: int = 80,
    pixel_format: str = AUTO,
    loop_count: int = 0,
    metadata: Mapping[str, str] | None = None,
    audio: object = None,
    preview: Path | Numbered | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write a clip and return what became of it.

    `frames` are [T,H,W,C], or a Stream of [H,W,C].
    `preview` asks for a second small H.264 file in the same pass, made only where a browser cannot play the first.
    `progress(done, total)` is called before the first frame and after each; what it raises cancels, and no file is left.
    The rest is VideoWriter's, including what is raised.
    """
    clip = frames if isinstance(frames, Stream) else _stream_of(frames)
    sound = sound_of(audio) if audio is not None else None
    small: VideoWriter | None = None
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: _remove(small.path) if small and not writer.path.exists() else None)
        writer = VideoWriter(path, preset, fps, clip.size, quality=quality, pixel_format=pixel_format, loop_count=loop_count, metadata=metadata, audio=sound)
        stack.enter_context(writer)
        if preview is not None and not writer.settings.plays_in_browser:
            small = VideoWriter(preview, "h264 (mp4)", fps, _preview_size(*clip.size), quality=70, audio=sound)
            stack.enter_context(small)
        if progress:
            progress(0, clip.total)
        for frame in clip.frames:
            writer.write(frame)
            if small:
                small.write(_shrunk(frame_tensor(frame, writer.frames - 1), _preview_size(*clip.size)))
            if progress:
                progress(writer.frames, max(writer.frames, clip.total))
    return Written(writer.path, writer.settings, writer.frames, float(writer.frames / writer.settings.fps), small.path if small else None, tuple(writer.notes))


def _stream_of(frames: Frames) -> Stream:
    count = len(frames)
    if count == 0:
        raise LeanVideoError("There are no frames to write: connect at least one image.")
    height, width = frame_tensor(frames[0], 0).shape[:2]
    return Stream((frames[i] for i in range(count)), (width, height), count)


def _preview_size(width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, PREVIEW_SIDE / max(width, height))
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def _shrunk(frame_HWC: Any, size: tuple[int, int]) -> Any:
    import torch
    from torch.nn.functional import interpolate

    frame_HWC = frame_HWC.float() / 255 if frame_HWC.dtype == torch.uint8 else frame_HWC
    return interpolate(frame_HWC.permute(2, 0, 1)[None], size=(size[1], size[0]), mode="area")[0].permute(1, 2, 0)


def _claim(path: str | Path | Numbered, preset: Preset) -> tuple[Path, Path]:
    """The final path and the hidden one beside it, now existing and ours, to write to until then."""
    if isinstance(path, Numbered):
        return next(claimed for counter in itertools.count(path.counter) if (claimed := _claim_number(path, counter, preset)))
    final = Path(path)
    if preset.is_folder and final.is_dir() and any(final.iterdir()):
        raise LeanVideoError(f"The folder {final.name} already holds files: choose a new name for the frames.")
    partial = final.with_name(f".{final.name}.{secrets.token_hex(4)}.part")
    _create(partial, preset)
    return final, partial


def _claim_number(numbered: Numbered, counter: int, preset: Preset) -> tuple[Path, Path] | None:
    final = numbered.folder / f"{numbered.prefix}_{counter:05}_{preset.extension}"
    partial = final.with_name(f".{final.name}.part")
    if final.exists():
        return None
    try:
        _create(partial, preset)
    except FileExistsError:
        return None
    # The hidden name is taken exclusively and turns into the final one in one step, so if another writer had this number between the
    # two lines above, its file is there by now.
    if final.exists():
        _remove(partial)
        return None
    return final, partial


def _create(partial: Path, preset: Preset) -> None:
    if preset.is_folder:
        partial.mkdir()
    else:
        partial.open("xb").close()


def _publish(partial: Path, final: Path) -> None:
    if partial.is_dir() and final.is_dir():
        final.rmdir()  # it was empty; Windows renames over nothing
    partial.replace(final)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full, so free some space or write elsewhere",
    getattr(errno, "EDQUOT", -1): "your disk quota is used up, so free some space or write elsewhere",
    errno.EFBIG: "the file grew larger than the file system or a limit allows, so make a shorter clip or lower the quality",
    errno.EACCES: "the folder is not writable, so give it write permission or choose another",
    errno.EPERM: "the folder is not writable, so give it write permission or choose another",
    errno.EROFS: "the disk is read-only, so choose another folder",
    errno.ENOENT: "the folder does not exist, so create it or choose another",
    errno.ENOTDIR: "a part of the path is a file and not a folder, so choose another name",
    errno.EISDIR: "a folder of that name exists, so choose another name",
    errno.ENAMETOOLONG: "the name is too long, so choose a shorter one",
    errno.ENOTEMPTY: "a folder of that name exists and is not empty, so choose another name",
    errno.EEXIST: "something of that name exists, so choose another name",
}


@contextlib.contextmanager
def _sentences(path: Path, what: str = "") -> Generator[None, None, None]:
    """Turns what the disk and FFmpeg raise into a LeanVideoError about `path`."""
    try:
        yield
    except LeanVideoError:
        raise
    except OSError as error:
        reason = _DISK_ERRORS.get(error.errno or 0) or f"the system says: {error.strerror or error}"
        raise LeanVideoError(f"{path.name} could not be written in {path.parent}: {reason}.") from error
    except Exception as error:
        from av.error import FFmpegError

        if not isinstance(error, FFmpegError):
            raise
        raise LeanVideoError(f"The encoder refused {what} ({error.strerror}): choose another size, frame rate, format or pixel format.") from error
