"""Files read by VideoReader: against the frames that were written, formulae, and FFmpeg's own conversion."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from lean_video.errors import LeanVideoError
from lean_video.media import PRESETS, VideoReader, combine


def noise(count: int, height: int, width: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, height, width, channels), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def numbered(count: int, height: int = 48, width: int = 64) -> torch.Tensor:
    """Grey frames whose level is 5 times their number."""
    return (torch.arange(count) * 5).to(torch.uint8).reshape(-1, 1, 1, 1).expand(count, height, width, 3)


def number_of(frame_HWC: torch.Tensor) -> int:
    whole = frame_HWC.float() * (1 if frame_HWC.dtype == torch.uint8 else 255)
    return round(float(whole[..., 0].mean()) / 5)


def frames(reader: VideoReader, start: Fraction = Fraction(0)) -> torch.Tensor:
    return torch.stack([timed.frame_HWC for timed in reader.frames_from(start)])


def swscaled(frame: Any) -> np.ndarray:
    """The frame in 8 bits RGB by FFmpeg's own conversion at its most careful."""
    graph: Any = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 10))
    scale = graph.add("scale", "in_color_matrix=bt709:flags=accurate_rnd+full_chroma_int+full_chroma_inp+bilinear")
    target = graph.add("format", "rgb24")
    sink = graph.add("buffersink")
    graph.link_nodes(source, scale, target, sink).configure()
    graph.push(frame)
    return graph.pull().to_ndarray()


def write(path: Path, planes: list[list[np.ndarray]], pixel_format: str, stamps: list[int] | None = None, codec: str = "ffv1", aspect: Fraction = Fraction(1), **tags: Any) -> Path:
    """A file of raw frames, each a list of planes, with timestamps in milliseconds where given and colour tags."""
    height, width = planes[0][0].shape[:2]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.sample_aspect_ratio = aspect
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        packets: list[Any] = []
        for i, arrays in enumerate(planes):
            frame = av.VideoFrame(width, height, pixel_format)
            for target, source in zip(frame.planes, arrays, strict=True):
                lines = np.frombuffer(memoryview(target), source.dtype).reshape(-1, target.line_size // source.dtype.itemsize)
                lines[: source.shape[0], : source.shape[1]] = source
            for name, value in tags.items():
                setattr(frame, name, value)
            frame.pts, frame.time_base = i * 100, Fraction(1, 1000)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for i, packet in enumerate(packets):
            if stamps:
                packet.pts, packet.dts, packet.time_base = stamps[i], i, Fraction(1, 1000)
            container.mux(packet)
    return path


@pytest.mark.parametrize("pixel_format", ["bgr0", "bgra"])
def test_eight_bit_rgb_comes_back_bit_for_bit(tmp_path: Path, pixel_format: str) -> None:
    clip = noise(4, 33, 47, 4 if pixel_format == "bgra" else 3)
    with VideoReader(combine(clip, tmp_path / "a.mkv", "ffv1 (mkv)", 12, pixel_format=pixel_format).path) as reader:
        assert (reader.size, reader.fps, reader.channels, reader.notes) == ((47, 33), 12, clip.shape[3], [])
        assert [timed.time for timed in reader] == [0, Fraction(83, 1000), Fraction(167, 1000), Fraction(250, 1000)]
        assert torch.equal(frames(reader), clip)


@pytest.mark.parametrize(("pixel_format", "top"), [("gbrp10le", 1023), ("gbrp16le", 65535), ("gbrap16le", 65535)])
def test_deeper_rgb_comes_back_bit_for_bit_as_float(tmp_path: Path, pixel_format: str, top: int) -> None:
    clip = torch.rand(3, 21, 30, 4 if "a" in pixel_format else 3, generator=torch.Generator().manual_seed(1))
    with VideoReader(combine(clip, tmp_path / "a.mkv", "ffv1 (mkv)", 12, pixel_format=pixel_format).path) as reader:
        got = frames(reader)
    assert got.dtype == torch.float32
    assert torch.equal((got.double() * top).round(), (clip * top).round().double())
    again = combine(got, tmp_path / "b.mkv", "ffv1 (mkv)", 12, pixel_format=pixel_format).path
    with VideoReader(again) as reader:
        assert torch.equal(frames(reader), got)


def test_ten_bit_yuv_holds_eight_bit_rgb_exactly(tmp_path: Path) -> None:
    clip = noise(2, 40, 50)
    with VideoReader(combine(clip, tmp_path / "a.mkv", "ffv1 (mkv)", 12, pixel_format="yuv444p10le").path) as reader:
        assert torch.equal((frames(reader) * 255).round().byte(), clip)


@pytest.mark.parametrize(("code", "kr", "kb"), [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (6, 0.299, 0.114), (9, 0.2627, 0.0593)])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("bits", [8, 10])
def test_the_matrix_and_range_that_the_file_names_are_used(tmp_path: Path, code: int, kr: float, kb: float, full: bool, bits: int) -> None:
    rgb = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.8, 0.15], [0.05, 0.1, 0.95], [1.0, 1.0, 1.0], [0.5, 0.4, 0.3]], dtype=torch.float64)
    luma = kr * rgb[:, 0] + (1 - kr - kb) * rgb[:, 1] + kb * rgb[:, 2]
    chroma = [(rgb[:, 2] - luma) / (2 - 2 * kb), (rgb[:, 0] - luma) / (2 - 2 * kr)]
    unit, top = 1 << (bits - 8), (1 << bits) - 1
    levels = [luma * top, *(c * top + 128 * unit for c in chroma)] if full else [unit * (16 + 219 * luma), *(unit * (128 + 224 * c) for c in chroma)]
    planes = [np.tile(level.round().numpy().astype("u1" if bits == 8 else "<u2"), (8, 1)) for level in levels]
    path = write(tmp_path / "a.mkv", [planes], f"yuv444p{'10le' if bits == 10 else ''}", colorspace=code, color_range=2 if full else 1)
    with VideoReader(path) as reader:
        got = next(iter(reader)).frame_HWC
        assert reader.notes == []
    got = got.double() / (255 if bits == 8 else 1)
    assert (got[3] - rgb).abs().max() < 1.6 / (255 if bits == 8 else 1023)


@pytest.mark.parametrize(("height", "name", "weight"), [(480, "BT.601", 0.299), (720, "BT.709", 0.2126)])
def test_without_a_tag_the_matrix_goes_by_the_size_and_a_note_says_so(tmp_path: Path, height: int, name: str, weight: float) -> None:
    red = [np.full((height, 16), value, "u1") for value in (round(16 + 219 * weight), round(128 - 224 * weight / (2 * (1 - (0.114 if weight == 0.299 else 0.0722)))), 240)]
    with VideoReader(write(tmp_path / "a.mkv", [red], "yuv444p")) as reader:
        assert (next(iter(reader)).frame_HWC.int() - torch.tensor([255, 0, 0])).abs().max() <= 2
        assert name in reader.notes[0]


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
def test_smooth_pictures_agree_with_swscale(tmp_path: Path, pixel_format: str) -> None:
    y, x = torch.meshgrid(torch.arange(70), torch.arange(102), indexing="ij")
    clip = torch.stack([torch.sin(x / 17 + c) * torch.cos(y / 13 + 2 * c) for c in range(3)], -1)[None] * 0.4 + 0.5
    planes = av.VideoFrame.from_ndarray((clip[0] * 255).byte().numpy(), "rgb24").reformat(format=pixel_format, dst_colorspace="ITU709")
    arrays = []
    for plane in planes.planes:
        dtype = "<u2" if "10" in pixel_format else "u1"
        arrays.append(np.frombuffer(memoryview(plane), dtype).reshape(plane.height, -1)[:, : plane.width].copy())
    path = write(tmp_path / "a.mkv", [arrays], pixel_format, colorspace=1, color_range=1)
    with av.open(str(path)) as container:
        wanted = swscaled(next(container.decode(video=0)))
    with VideoReader(path) as reader:
        got = frames(reader)[0]
    got = got.numpy().astype(int) if got.dtype == torch.uint8 else (got * 255).round().int().numpy()
    assert np.abs(got - wanted).mean() < 1.2
    assert np.abs(got - wanted).max() <= 8


def test_chroma_lies_on_the_left_column_and_between_the_rows(tmp_path: Path) -> None:
    chroma = np.array([[100, 120, 160], [140, 120, 190]], "u1")
    planes = [np.full((4, 6), 126, "u1"), np.full((2, 3), 128, "u1"), chroma]
    with VideoReader(write(tmp_path / "a.mkv", [planes], "yuv420p", colorspace=1, color_range=1)) as reader:
        red = next(iter(reader)).frame_HWC[..., 0].double()
    rows = np.stack([chroma[0], 0.75 * chroma[0] + 0.25 * chroma[1], 0.25 * chroma[0] + 0.75 * chroma[1], chroma[1]])
    columns = np.stack([rows[:, 0], (rows[:, 0] + rows[:, 1]) / 2, rows[:, 1], (rows[:, 1] + rows[:, 2]) / 2, rows[:, 2], rows[:, 2]], 1)
    wanted = 255 * ((126 - 16) / 219 + 2 * (1 - 0.2126) * (columns - 128) / 224)
    assert np.abs(red.numpy() - wanted).max() <= 0.51


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.kind == "video" and preset.codec != "prores_ks"])
def test_every_video_format_is_read_back_with_its_times_and_colours(tmp_path: Path, name: str) -> None:
    colours = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.8, 0.15], [0.05, 0.1, 0.95], [1.0, 1.0, 1.0]])
    clip = colours.reshape(1, 1, 4, 1, 3).expand(7, 64, 4, 32, 3).reshape(7, 64, 128, 3)
    with VideoReader(combine(clip, tmp_path / f"a{PRESETS[name].extension}", name, 25, quality=100).path) as reader:
        assert (reader.size, reader.fps, reader.measure().frames, reader.seconds) == ((128, 64), 25, 7, Fraction(7, 25))
        assert [timed.time for timed in reader] == list(reader.measure().times) == [Fraction(i, 25) for i in range(7)]
        got = frames(reader).float() / (255 if frames(reader).dtype == torch.uint8 else 1)
    patches = got[:, 24:40].reshape(7, 16, 4, 32, 3)[:, :, :, 8:24]
    assert (patches - colours[None, None, :, None]).abs().max() <= 4 / 255


@pytest.mark.parametrize(("name", "pixel_format"), [("vp9 (webm)", "yuva420p"), ("prores (mov)", "yuva444p10le"), ("ffv1 (mkv)", "bgra"), ("gif", "rgba")])
def test_transparency_is_read_where_the_file_has_it(tmp_path: Path, name: str, pixel_format: str) -> None:
    clip = torch.full((3, 48, 96, 4), 0.6)
    clip[..., 3] = (torch.arange(96) >= 40).float()
    path = combine(clip, tmp_path / f"a{PRESETS[name].extension}", name, 10, pixel_format=pixel_format, quality=100).path
    with VideoReader(path) as reader:
        got = frames(reader)
        assert (reader.channels, got.shape) == (4, (3, 48, 96, 4))
    alpha = got[..., 3].float() / (255 if got.dtype == torch.uint8 else 1)
    assert float(alpha[..., :36].max()) < 0.05
    assert float(alpha[..., 44:].min()) > 0.95


def test_an_opaque_gif_has_no_alpha(tmp_path: Path) -> None:
    with VideoReader(combine(numbered(4), tmp_path / "a.gif", "gif", 10).path) as reader:
        assert (reader.channels, [number_of(timed.frame_HWC) for timed in reader]) == (3, [0, 1, 2, 3])


def test_a_variable_frame_rate_is_kept_to_the_millisecond(tmp_path: Path) -> None:
    stamps = [500, 540, 700, 701, 1500]
    path = write(tmp_path / "a.mkv", [[np.full((16, 16), 5 * i, "u1")] for i in range(5)], "gray", stamps)
    wanted = [Fraction(stamp - 500, 1000) for stamp in stamps]
    with VideoReader(path) as reader:
        assert [timed.time for timed in reader] == wanted
        assert list(reader.measure().times) == wanted
        assert [number_of(timed.frame_HWC) for timed in reader.frames_from(Fraction(9, 10))] == [3, 4]


@pytest.mark.parametrize(
    ("stamps", "wanted"),
    [
        ([0, 100, 200, 200, 300, 400], [0, 100, 200, 250, 300, 400]),
        ([0, 100, 50, 300, 400, 500], [0, 100, 200, 300, 400, 500]),
        ([0, 100, 900, 300, 400, 500], [0, 100, 200, 300, 400, 500]),
        ([5000, 5100, 5200, 10, 110, 210], [0, 100, 200, 300, 400, 500]),
    ],
)
def test_wrong_timestamps_are_put_between_their_neighbours_and_move_no_other_frame(tmp_path: Path, stamps: list[int], wanted: list[int]) -> None:
    path = write(tmp_path / "a.mkv", [[np.full((16, 16), 5 * i, "u1")] for i in range(6)], "gray", stamps)
    with VideoReader(path) as reader:
        reader.fps = Fraction(10)
        got = [(timed.time * 1000, number_of(timed.frame_HWC)) for timed in reader]
        assert got == list(zip(wanted, range(6), strict=True))
        assert "timestamps" in reader.notes[-1]
        assert [time * 1000 for time in reader.measure().times] == wanted
        assert [number_of(timed.frame_HWC) for timed in reader.frames_from(Fraction(3, 10))] == [wanted.index(300) + i for i in range(6 - wanted.index(300))]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_is_applied(tmp_path: Path, degrees: int) -> None:
    picture = np.zeros((32, 48, 3), "u1")
    picture[:8, :8] = 255  # a white corner at the top left
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264rgb", rate=10, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "rgb24"
        stream.set_display_rotation(degrees)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    with VideoReader(tmp_path / "a.mp4") as reader:
        got = next(iter(reader)).frame_HWC
        assert reader.size == ((32, 48) if degrees % 180 else (48, 32))
    assert np.array_equal(got.numpy(), np.rot90(picture, degrees // 90))


@pytest.mark.parametrize("size", [(33, 47), (1, 1), (2, 3), (31, 16)])
def test_odd_sizes_are_exact_in_halved_chroma(tmp_path: Path, size: tuple[int, int]) -> None:
    height, width = size
    planes = [np.full((height, width), 126, "u1"), *(np.full(((height + 1) // 2, (width + 1) // 2), 128, "u1") for _ in range(2))]
    path = write(tmp_path / "a.mkv", [planes], "yuv420p", codec="rawvideo", colorspace=1, color_range=1)
    with VideoReader(path) as reader:
        assert reader.size == (width, height)
        assert torch.equal(next(iter(reader)).frame_HWC, torch.full((height, width, 3), 128, dtype=torch.uint8))


@pytest.fixture
def long_clip(tmp_path: Path) -> Path:
    return combine(numbered(50), tmp_path / "long.mp4", "h264 (mp4)", 25, quality=90).path


@pytest.mark.parametrize("name", ["h264 (mp4)", "h265 (mp4)", "vp9 (webm)", "ffv1 (mkv)"])
def test_reading_from_a_time_gives_the_same_frames_as_reading_from_the_start(tmp_path: Path, name: str) -> None:
    clip = torch.cat([numbered(50), noise(1, 48, 64).expand(2, -1, -1, -1), numbered(50)])
    path = combine(clip, tmp_path / f"a{PRESETS[name].extension}", name, 25, quality=70).path
    with VideoReader(path) as reader:
        all_frames = list(reader)
        assert len(all_frames) == 102
        for start in (0, 1, 37, 50, 51, 77, 101):
            got = list(reader.frames_from(all_frames[start].time))
            assert [timed.time for timed in got] == [timed.time for timed in all_frames[start:]]
            assert all(torch.equal(a.frame_HWC, b.frame_HWC) for a, b in zip(got, all_frames[start:], strict=True))
        assert next(iter(reader.frames_from(all_frames[40].time + Fraction(1, 100)))).time == all_frames[40].time
        assert [timed.time for timed in reader.frames_from(Fraction(1000))] == [all_frames[-1].time]


def test_a_truncated_file_gives_its_frames_up_to_the_cut_and_a_note_where_that_is(tmp_path: Path, long_clip: Path) -> None:
    data = long_clip.read_bytes()
    start = data.index(b"mdat")
    (tmp_path / "cut.mp4").write_bytes(data[: start + (len(data) - start) * 2 // 3])
    with VideoReader(tmp_path / "cut.mp4") as reader:
        got = list(reader)
        assert [number_of(timed.frame_HWC) for timed in got] == list(range(len(got)))
        assert 2 < len(got) < 50
        assert f"cut.mp4 is damaged or cut off from {len(got) / 25:.2f} s on" in reader.notes[-1]


def test_a_truncated_matroska_gives_its_frames_and_a_note(tmp_path: Path) -> None:
    path = combine(noise(30, 48, 64), tmp_path / "a.mkv", "ffv1 (mkv)", 10).path
    (tmp_path / "cut.mkv").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with VideoReader(tmp_path / "cut.mkv") as reader:
        got = frames(reader)
        assert torch.equal(got, noise(30, 48, 64)[: len(got)])
        assert 10 < len(got) < 20
        assert "damaged or cut off" in reader.notes[-1]


def test_damage_in_the_middle_leaves_frames_out_but_moves_none(tmp_path: Path) -> None:
    clip = noise(30, 48, 64)
    path = combine(clip, tmp_path / "a.mkv", "ffv1 (mkv)", 10).path
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 100] = bytes(100)
    with VideoReader(io.BytesIO(bytes(data))) as reader:
        got = list(reader)
        assert 25 < len(got) < 30
        assert all(torch.equal(timed.frame_HWC, clip[round(timed.time * 10)]) for timed in got)
        assert "damaged" in reader.notes[-1]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("junk.mp4", np.random.default_rng(0).integers(0, 256, 5000, "u1").tobytes(), "not a video file"),
        ("empty.mp4", b"", "is empty"),
        ("text.mp4", b"hello there\n" * 100, "not a video file"),
        ("list.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\na.mp4\n#EXT-X-ENDLIST\n", "not a video file"),
        ("list.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\na.mp4\n#EXT-X-ENDLIST\n", "not a video file"),
        ("list.ffconcat", b"ffconcat version 1.0\nfile a.mp4\n", "not a video file"),
        ("a.mpd", b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"></MPD>', "not a video file"),
        ("a.sdp", b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n", "not a video file"),
    ],
)
def test_what_is_no_video_is_refused_with_a_sentence(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    combine(numbered(3), tmp_path / "a.mp4", "h264 (mp4)", 10)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(LeanVideoError, match=says) as caught:
        VideoReader(tmp_path / name)
    assert name in str(caught.value)


def test_a_missing_file_a_folder_a_url_and_sound_alone_are_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 100), "<i2"), "s16", "mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
    for source, says in (
        (tmp_path / "none.mp4", "no file"),
        (tmp_path, "is a folder"),
        ("http://127.0.0.1:1/a.mp4", "no file"),
        ("concat:a.mp4|b.mp4", "no file"),
        (tmp_path / "a.wav", "no video in it"),
    ):
        with pytest.raises(LeanVideoError, match=says):
            VideoReader(source)


def test_a_file_of_which_no_frame_can_be_read_is_refused(tmp_path: Path, long_clip: Path) -> None:
    data = bytearray(long_clip.read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    with pytest.raises(LeanVideoError, match="No frame of the video in memory can be read"):
        VideoReader(io.BytesIO(bytes(data)))


def test_a_file_in_memory_is_read_like_one_on_disk_and_left_open(long_clip: Path) -> None:
    memory = io.BytesIO(long_clip.read_bytes())
    with VideoReader(memory) as reader, VideoReader(long_clip) as on_disk:
        one, other = iter(reader), iter(reader)
        for a, b, c in zip(one, other, on_disk, strict=True):
            assert torch.equal(a.frame_HWC, b.frame_HWC)
            assert torch.equal(a.frame_HWC, c.frame_HWC)
    assert memory.seek(0) == 0


def test_closing_ends_what_is_being_read(long_clip: Path) -> None:
    reader = VideoReader(long_clip)
    going: Iterator[Any] = iter(reader)
    next(going)
    reader.close()
    assert list(going) == []
    long_clip.unlink()


def test_hdr_and_pixels_that_are_not_square_are_named_in_the_notes(tmp_path: Path) -> None:
    grey = [np.full((16, 16), 512, "<u2") for _ in range(3)]
    path = write(tmp_path / "a.mp4", [grey], "yuv444p10le", colorspace=9, color_range=1, color_trc=16, color_primaries=9, aspect=Fraction(4, 3))
    with VideoReader(path) as reader:
        assert "HDR (PQ)" in reader.notes[0]
        assert "4:3" in reader.notes[1]
        grey_level = (512 / 4 - 16) / 219
        assert (next(iter(reader)).frame_HWC - grey_level).abs().max() < 1e-5


def test_frames_are_not_kept_after_they_were_given(long_clip: Path) -> None:
    import gc
    import weakref

    with VideoReader(long_clip) as reader:
        seen = []
        for timed in reader:
            seen.append(weakref.ref(timed.frame_HWC))
            gc.collect(0)
            assert sum(ref() is not None for ref in seen) <= 2
