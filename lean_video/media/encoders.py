"""The writers behind VideoWriter, one per kind of file. Each takes checked frames one at a time and keeps none of them."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

from .audio import Sound, Soundtrack
from .containers import GifComments, WebPFile, png_with_text
from .pixels import LAYOUTS, fill, padded_size, samples

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from .presets import Settings

# Code points of ITU-T H.273: BT.709 is 1 throughout, RGB's matrix is 0.
_BT709, _RGB = 1, 0
_LIMITED, _FULL = 1, 2


class Encoder(Protocol):
    def write(self, frame_HWC: torch.Tensor, index: int) -> None: ...

    def finish(self, count: int) -> None:
        """Write what is buffered and close the file; `count` frames were written."""
        ...

    def abort(self) -> None:
        """Let go of the file, whatever state it is in; never raises."""
        ...


def open_encoder(path: Path, settings: Settings, size: tuple[int, int], metadata: Mapping[str, str], sound: Sound | None) -> Encoder:
    """The encoder for `settings`, writing into the existing empty file or folder `path`; `size` is (width, height)."""
    if settings.preset.kind == "webp":
        return _WebP(path, settings, size, metadata)
    if settings.preset.kind == "png":
        return _PngSequence(path, settings, size, metadata)
    if settings.preset.kind == "gif":
        return _Gif(path, settings, size, metadata)
    return _Video(path, settings, size, metadata, sound)


class _Video:
    """A container written by FFmpeg."""

    def __init__(self, path: Path, settings: Settings, size: tuple[int, int], metadata: Mapping[str, str], sound: Sound | None) -> None:
        import av

        preset = settings.preset
        self._settings = settings
        self._layout = LAYOUTS[settings.pixel_format]
        self._size = padded_size(*size, self._layout)
        self._container: Any = av.open(str(path), "w", format=preset.container, options=dict(preset.container_options))
        self._container.metadata.update(metadata)
        stream: Any = self._container.add_stream(preset.codec, rate=settings.fps)
        stream.width, stream.height = self._size
        stream.pix_fmt = settings.pixel_format
        stream.options = preset.codec_options(settings.quality, settings.pixel_format)
        _tag_colours(stream.codec_context, self._layout.is_yuv)
        if preset.codec_tag:
            stream.codec_context.codec_tag = preset.codec_tag
        self._stream = stream
        self._packets = 0
        self._sound = Soundtrack(self._container, sound, preset.audio_codec, preset.audio_rates) if sound and preset.audio_codec else None

    def write(self, frame_HWC: torch.Tensor, index: int) -> None:
        frame = _video_frame(self._size, self._settings.pixel_format, samples(frame_HWC, self._layout))
        _tag_colours(frame, self._layout.is_yuv)
        frame.pts, frame.time_base = index, 1 / self._settings.fps
        self._mux(self._stream.encode(frame))
        if self._sound:
            self._sound.advance((index + 1) / self._settings.fps)

    def finish(self, count: int) -> None:
        self._mux(self._stream.encode(None))
        if self._sound:
            self._sound.finish(count / self._settings.fps)
        self._container.close()

    def abort(self) -> None:
        _let_go(self._container)

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            if self._settings.preset.reorder is not None:
                packet.dts = self._packets - self._settings.preset.reorder
            self._packets += 1
            self._container.mux(packet)


class _Gif:
    """A GIF with a palette of its own for each frame: one for the whole clip would need the whole clip first."""

    def __init__(self, path: Path, settings: Settings, size: tuple[int, int], metadata: Mapping[str, str]) -> None:
        import av
        from av.filter import Graph

        self._path, self._size, self._fps, self._format = path, size, settings.fps, settings.pixel_format
        self._layout = LAYOUTS[settings.pixel_format]
        self._comments = GifComments(metadata)
        colours = settings.preset.codec_options(settings.quality, settings.pixel_format)["max_colors"]

        graph: Any = Graph()
        source = graph.add_buffer(width=size[0], height=size[1], format=av.VideoFormat(settings.pixel_format, *size), time_base=Fraction(1, 100))
        split = graph.add("split")
        palette = graph.add("palettegen", f"stats_mode=single:max_colors={colours}:reserve_transparent={int(self._layout.has_alpha)}")
        use = graph.add("paletteuse", "new=1:dither=sierra2_4a")
        sink = graph.add("buffersink")
        for upstream, downstream, output, socket in ((source, split, 0, 0), (split, use, 0, 0), (split, palette, 1, 0), (palette, use, 0, 1), (use, sink, 0, 0)):
            upstream.link_to(downstream, output, socket)
        graph.configure()
        self._graph = graph

        # The file holds repeats after the first showing, with -1 for none; we count showings.
        loop = {0: 0, 1: -1}.get(settings.loop_count, settings.loop_count - 1)
        self._container: Any = av.open(str(path), "w", format="gif", options={"loop": str(loop)})
        stream: Any = self._container.add_stream("gif", rate=settings.fps)
        stream.width, stream.height = size
        stream.pix_fmt = "pal8"
        stream.codec_context.time_base = Fraction(1, 100)
        self._stream = stream

    def write(self, frame_HWC: torch.Tensor, index: int) -> None:
        frame = _video_frame(self._size, self._format, samples(frame_HWC, self._layout))
        frame.pts, frame.time_base = round(index * 100 / self._fps), Fraction(1, 100)
        self._graph.push(frame)
        self._drain()

    def finish(self, count: int) -> None:
        self._graph.push(None)
        self._drain()
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._comments.append_to(self._path)

    def abort(self) -> None:
        _let_go(self._container)

    def _drain(self) -> None:
        from av import error

        while True:
            try:
                frame = self._graph.pull()
            except (error.BlockingIOError, error.EOFError):
                return
            frame.time_base = Fraction(1, 100)
            self._container.mux(self._stream.encode(frame))


class _WebP:
    """An animated WebP, each frame encoded for itself. libwebp's own animation encoder keeps the whole file in memory."""

    def __init__(self, path: Path, settings: Settings, size: tuple[int, int], metadata: Mapping[str, str]) -> None:
        self._fps = settings.fps
        self._layout = LAYOUTS[settings.pixel_format]
        self._mode = "RGBA" if self._layout.has_alpha else "RGB"
        # For a lossless file "quality" is effort, of which 50 is a fair share.
        self._options: dict[str, Any] = {"lossless": True, "quality": 50} if settings.preset.lossless else {"quality": settings.quality}
        self._file = WebPFile(path, size, settings.loop_count, self._layout.has_alpha, metadata)

    def write(self, frame_HWC: torch.Tensor, index: int) -> None:
        import io

        from PIL import Image

        height, width = frame_HWC.shape[:2]
        pixels = samples(frame_HWC, self._layout)[0].reshape(height, width, -1)
        still = io.BytesIO()
        Image.fromarray(pixels).save(still, "WEBP", method=4, exact=True, **self._options)
        self._file.add(still.getvalue(), round((index + 1) * 1000 / self._fps) - round(index * 1000 / self._fps))

    def finish(self, count: int) -> None:
        self._file.finish()

    def abort(self) -> None:
        self._file.abort()


class _PngSequence:
    """A folder of frame_00001.png, frame_00002.png, ..., each with the metadata."""

    def __init__(self, path: Path, settings: Settings, size: tuple[int, int], metadata: Mapping[str, str]) -> None:
        from av.codec import CodecContext

        self._path, self._size, self._format, self._metadata = path, size, settings.pixel_format, metadata
        self._layout = LAYOUTS[settings.pixel_format]
        self._codec: Any = CodecContext.create("png", "w")
        self._codec.width, self._codec.height = size
        self._codec.pix_fmt = settings.pixel_format
        self._codec.time_base = 1 / settings.fps
        self._codec.options = settings.preset.codec_options(settings.quality, settings.pixel_format)
        self._written = 0

    def write(self, frame_HWC: torch.Tensor, index: int) -> None:
        frame = _video_frame(self._size, self._format, samples(frame_HWC, self._layout))
        frame.pts = index
        self._save(self._codec.encode(frame))

    def finish(self, count: int) -> None:
        self._save(self._codec.encode(None))

    def abort(self) -> None:
        pass

    def _save(self, packets: list[Any]) -> None:
        for packet in packets:
            self._written += 1
            (self._path / f"frame_{self._written:05}.png").write_bytes(png_with_text(bytes(packet), self._metadata))


def _video_frame(size: tuple[int, int], pixel_format: str, planes: list[Any]) -> Any:
    from av import VideoFrame

    frame = VideoFrame(*size, pixel_format)
    fill(frame, planes)
    return frame


def _tag_colours(target: Any, is_yuv: bool) -> None:
    target.color_primaries = target.color_trc = _BT709
    target.colorspace = _BT709 if is_yuv else _RGB
    target.color_range = _LIMITED if is_yuv else _FULL


def _let_go(container: Any) -> None:
    import contextlib

    # A container that failed fails again in its trailer, by then about a file that is being removed.
    with contextlib.suppress(Exception):
        container.close()
