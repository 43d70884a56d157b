"""Video files opened safely: from a path or from memory, by content and never by name, and without following any reference to another file."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import LeanVideoError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

MAX_SIDE = 16384

# Containers whose demuxers read one file and nothing else: no playlists (hls, dash, concat), no numbered pictures (image2), no scripts.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif,apng,mxf,nut,ivf,rm,dv,yuv4mpegpipe"
_BARE_STREAMS = "h264,hevc,obu,m4v,mpegvideo,vc1,mjpeg"
_SOUND_ONLY = "mp3,wav,flac,aac"
_OPTIONS = {"format_whitelist": f"{_CONTAINERS},{_BARE_STREAMS},{_SOUND_ONLY}", "protocol_whitelist": "none"}


class MediaFile:
    """A file on disk, or a seekable binary file object, that may be opened several times at once.

    Raises LeanVideoError where there is no such file or nothing in it.
    """

    def __init__(self, source: str | Path | BinaryIO) -> None:
        self._source = Path(source) if isinstance(source, (str, Path)) else source
        self._lock = threading.Lock()
        self.name = self._source.name if isinstance(self._source, Path) else "the video in memory"
        if isinstance(self._source, Path) and self._source.is_dir():
            raise LeanVideoError(f"{self.name} is a folder: choose a video file, or load the folder as images.")
        with self._handle() as handle:
            if not handle.read(1):
                raise LeanVideoError(f"{self.name} is empty: copy or download it again.")

    def open(self) -> OpenMedia:
        """The file opened once more. Raises LeanVideoError where it is no video file."""
        return OpenMedia(self._handle(), self.name)

    def _handle(self) -> Any:
        if not isinstance(self._source, Path):
            return _View(self._source, self._lock)
        try:
            return self._source.open("rb")
        except FileNotFoundError as error:
            raise LeanVideoError(f"There is no file {self._source}: check the name and the folder.") from error
        except OSError as error:
            raise LeanVideoError(f"{self.name} could not be opened ({error.strerror or error}): check that you may read it.") from error


class OpenMedia:
    """A container open for reading; `video` is its video stream, `audio` its sound or None, as PyAV streams."""

    def __init__(self, handle: Any, name: str) -> None:
        import av
        from av.error import FFmpegError

        self.name = name
        self._handle = handle
        try:
            self.container: Any = av.open(handle, "r", options=dict(_OPTIONS), buffer_size=1 << 20, metadata_errors="replace")
        except FFmpegError as error:
            handle.close()
            raise LeanVideoError(f"{name} is not a video file that can be read, or is damaged at its very start: choose another, or convert it to mp4, mkv or webm.") from error
        except BaseException:
            handle.close()
            raise

    def __enter__(self) -> OpenMedia:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.container.close()
        self._handle.close()

    @property
    def video(self) -> Any:
        """Raises LeanVideoError where there is none or its pictures are too large."""
        stream = next((stream for stream in self.container.streams.video if "attached_pic" not in _dispositions(stream)), None)
        if stream is None:
            raise LeanVideoError(f"{self.name} has no video in it: choose a file with moving pictures.")
        if stream.codec_context is None:
            raise LeanVideoError(f"The video in {self.name} is in a format that this FFmpeg cannot decode: convert it to H.264.")
        width, height = stream.codec_context.width, stream.codec_context.height
        if max(width, height) > MAX_SIDE:
            raise LeanVideoError(f"{self.name} is {width}x{height}: pictures of at most {MAX_SIDE} pixels a side can be read, so scale it down first.")
        return stream

    @property
    def audio(self) -> Any:
        return next((stream for stream in self.container.streams.audio if stream.codec_context is not None), None)

    def packets(self, stream: Any) -> Iterator[Any]:
        """The packets of `stream` from here on, ending at the first place where the container cannot be followed any more; the last one is empty, to flush a decoder."""
        from av import Packet
        from av.error import FFmpegError

        try:
            yield from self.container.demux(stream)
        except FFmpegError:
            yield Packet()


class _View:
    """A place of its own in a file object that others read too."""

    def __init__(self, file: BinaryIO, lock: threading.Lock) -> None:
        self._file, self._lock, self._at = file, lock, 0

    def __enter__(self) -> _View:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, count: int = -1) -> bytes:
        with self._lock:
            self._file.seek(self._at)
            data = self._file.read(count)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        with self._lock:
            start = 0 if whence == 0 else self._at if whence == 1 else self._file.seek(0, 2)
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        """The file object stays its owner's."""


def _dispositions(stream: Any) -> str:
    return str(stream.disposition)
