"""Files written by lean_video.media, read back by FFmpeg's program where it is installed and by PyAV's decoders otherwise."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lean_video.media import PRESETS, Numbered, PingPong, VideoWriter, combine, exact_fps

FFMPEG = shutil.which("ffmpeg")
VIDEO = [name for name, preset in PRESETS.items() if preset.kind == "video"]
METADATA = {"prompt": '{"3": {"class_type": "KSampler"}}', "workflow": '{"nodes": [], "title": "caf\\u00e9"}'}


def moving(count: int, height: int = 72, width: int = 96, channels: int = 3) -> torch.Tensor:
    """A smooth moving picture [T,H,W,C] in 0.05..0.95."""
    t, y, x = torch.meshgrid(torch.arange(count), torch.arange(height), torch.arange(width), indexing="ij")
    waves = [torch.sin(x / 17 + t / 5 + c) + torch.cos(y / 13 - t / 7 + 2 * c) for c in range(channels)]
    return (torch.stack(waves, -1) * 0.225 + 0.5).float()


def probe(path: Path) -> tuple[av.container.InputContainer, av.VideoStream, list[av.VideoFrame]]:
    container = av.open(str(path))
    stream = container.streams.video[0]
    return container, stream, list(container.decode(stream))


def decode(path: Path, size: tuple[int, int], pixel_format: str = "rgb24", dtype: str = "u1", decoder: str = "") -> np.ndarray:
    """All frames as packed RGB or RGBA [T,H,W,C]; yuv is taken as BT.709 in limited range, whatever the file says."""
    channels = 4 if pixel_format.startswith("rgba") else 3
    if FFMPEG:
        matrix = "scale=in_color_matrix=bt709:flags=accurate_rnd+full_chroma_int+full_chroma_inp+bicubic"
        codec = ["-c:v", decoder] if decoder else []
        command = [FFMPEG, "-v", "error", *codec, "-i", str(path), "-vf", matrix, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", pixel_format, "-"]
        raw = subprocess.run(command, capture_output=True, check=True).stdout
        return np.frombuffer(raw, dtype).reshape(-1, size[1], size[0], channels)
    if decoder:
        pytest.skip("needs the ffmpeg program for this decoder")
    frames = probe(path)[2]
    return np.stack([frame.reformat(format=pixel_format, src_colorspace="ITU709").to_ndarray().astype(dtype) for frame in frames])


def psnr(got: np.ndarray, wanted: torch.Tensor) -> float:
    error = got.astype(np.float64) / np.iinfo(got.dtype).max - wanted.double().numpy()
    return float(-10 * np.log10((error**2).mean()))


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", VIDEO)
def test_every_video_format_holds_all_frames_at_the_rate_size_and_colours_asked_for(tmp_path: Path, name: str) -> None:
    clip = moving(11)
    written = combine(clip, tmp_path / f"clip{PRESETS[name].extension}", name, 24, quality=95)
    assert left_over(tmp_path) == [written.path.name]
    _, stream, frames = probe(written.path)
    assert len(frames) == written.frames == 11
    assert stream.average_rate == 24
    assert (frames[0].width, frames[0].height) == (96, 72)
    is_rgb = written.settings.pixel_format == "bgr0"
    assert (frames[0].color_primaries, frames[0].color_trc) == (1, 1)
    assert (int(frames[0].colorspace), int(frames[0].color_range)) == ((0, 2) if is_rgb else (1, 1))
    assert psnr(decode(written.path, (96, 72)), clip) > 36


@pytest.mark.parametrize(("name", "pixel_format"), [(name, pixel_format) for name in VIDEO for pixel_format in PRESETS[name].pixel_formats])
def test_every_pixel_format_is_what_the_file_holds_and_a_saturated_patch_keeps_its_colour(tmp_path: Path, name: str, pixel_format: str) -> None:
    colours = torch.tensor([[0.9, 0.1, 0.2], [0.1, 0.8, 0.15], [0.05, 0.1, 0.95], [1.0, 1.0, 1.0]])
    patches = colours.reshape(1, 1, 4, 1, 3).expand(3, 64, 4, 32, 3).reshape(3, 64, 128, 3)
    path = combine(patches, tmp_path / f"clip{PRESETS[name].extension}", name, 10, quality=100, pixel_format=pixel_format).path
    stored = probe(path)[2][0].format.name
    shown = {"yuva420p": "yuv420p", "yuv444p10le": "yuv444p", "yuva444p10le": "yuva444p"}  # VP9 keeps alpha apart; ProRes 4444 is decoded as 12 bits
    assert stored in (pixel_format, *([shown[pixel_format], shown[pixel_format] + "12le"] if name.startswith(("vp9", "prores")) and pixel_format in shown else []))
    got = decode(path, (128, 64))[:, 24:40].reshape(3, 16, 4, 32, 3)[:, :, :, 8:24]
    error = np.abs(got.astype(int) - (colours * 255).round().numpy().astype(int)[None, None, :, None])
    assert error.max() <= (4 if name == "av1 (mp4)" else 2)


@pytest.mark.parametrize(
    ("pixel_format", "decoded", "dtype", "top"),
    [("bgr0", "rgb24", "u1", 255), ("bgra", "rgba", "u1", 255), ("gbrp16le", "rgb48le", "<u2", 65535), ("gbrap16le", "rgba64le", "<u2", 65535)],
)
def test_ffv1_in_rgb_gives_back_every_bit(tmp_path: Path, pixel_format: str, decoded: str, dtype: str, top: int) -> None:
    clip = torch.rand(4, 33, 47, 4 if "a" in decoded else 3, generator=torch.Generator().manual_seed(1))
    path = combine(clip, tmp_path / "clip.mkv", "ffv1 (mkv)", 12, pixel_format=pixel_format).path
    assert np.array_equal(decode(path, (47, 33), decoded, dtype), (clip * top).round().numpy().astype(dtype))


def test_a_ten_bit_file_keeps_levels_that_eight_bits_merge(tmp_path: Path) -> None:
    ramp = torch.linspace(0, 1, 512).reshape(1, 1, 512, 1).expand(2, 64, 512, 3)
    levels = {}
    for pixel_format in ("yuv444p", "yuv444p10le"):
        path = combine(ramp, tmp_path / f"{pixel_format}.mkv", "ffv1 (mkv)", 5, pixel_format=pixel_format).path
        luma = np.frombuffer(memoryview(probe(path)[2][0].planes[0]), "<u2" if "10" in pixel_format else "u1")
        levels[pixel_format] = len(np.unique(luma[luma > 0]))
    assert levels["yuv444p"] == 220
    assert levels["yuv444p10le"] == 512


def test_eight_bits_are_rounded_not_truncated(tmp_path: Path) -> None:
    clip = torch.full((1, 8, 8, 3), 100.6 / 255)
    path = combine(clip, tmp_path / "clip.mkv", "ffv1 (mkv)", 5).path
    assert np.unique(decode(path, (8, 8))).tolist() == [101]
    luma = probe(combine(clip, tmp_path / "luma.mkv", "ffv1 (mkv)", 5, pixel_format="yuv444p").path)[2][0].to_ndarray()[0]
    assert np.unique(luma).tolist() == [round(16 + 219 * 100.6 / 255)]


@pytest.mark.parametrize(("pixel_format", "mode"), [("rgb24", "RGB"), ("rgba", "RGBA")])
def test_a_png_sequence_is_a_folder_of_exact_frames_with_the_workflow_in_each(tmp_path: Path, pixel_format: str, mode: str) -> None:
    clip = torch.rand(3, 21, 30, len(mode), generator=torch.Generator().manual_seed(2))
    folder = combine(clip, tmp_path / "frames", "png sequence", 12, pixel_format=pixel_format, metadata=METADATA).path
    assert left_over(folder) == ["frame_00001.png", "frame_00002.png", "frame_00003.png"]
    for i, path in enumerate(sorted(folder.iterdir())):
        with Image.open(path) as image:
            assert image.mode == mode
            assert np.array_equal(np.asarray(image), (clip[i] * 255).round().numpy().astype("u1"))
            assert image.text == METADATA


def test_a_sixteen_bit_png_keeps_sixteen_bits(tmp_path: Path) -> None:
    clip = torch.rand(2, 9, 14, 3, generator=torch.Generator().manual_seed(3))
    folder = combine(clip, tmp_path / "frames", "png sequence", 12, pixel_format="rgb48be").path
    got = decode(folder / "frame_00002.png", (14, 9), "rgb48le", "<u2")[0]
    assert np.array_equal(got, (clip[1] * 65535).round().numpy().astype("<u2"))


def test_text_beyond_latin_1_survives_in_a_png(tmp_path: Path) -> None:
    folder = combine(moving(1), tmp_path / "frames", "png sequence", 12, metadata={"note": "日本 ✓"}).path
    data = (folder / "frame_00001.png").read_bytes()
    at = data.index(b"iTXt")
    length, (crc,) = struct.unpack(">I", data[at - 4 : at])[0], struct.unpack(">I", data[at + 4 + struct.unpack(">I", data[at - 4 : at])[0] :][:4])
    assert crc == zlib.crc32(data[at : at + 4 + length])
    with Image.open(folder / "frame_00001.png") as image:
        assert image.text["note"] == "日本 ✓"


@pytest.mark.parametrize(("name", "decoder"), [("vp9 (webm)", "libvpx-vp9"), ("prores (mov)", ""), ("ffv1 (mkv)", "")])
def test_transparency_is_kept_where_the_pixel_format_asks_for_it(tmp_path: Path, name: str, decoder: str) -> None:
    clip = moving(3, channels=4)
    clip[..., 3] = torch.linspace(0, 1, 96)
    alpha = next(pixel_format for pixel_format in PRESETS[name].pixel_formats if "a" in pixel_format.replace("rgba64", "a"))
    path = combine(clip, tmp_path / f"clip{PRESETS[name].extension}", name, 12, pixel_format=alpha, quality=100).path
    got = decode(path, (96, 72), "rgba", decoder=decoder)
    assert np.abs(got[..., 3].astype(int) - (clip[..., 3] * 255).round().numpy()).max() <= 4


def test_transparency_goes_on_black_with_a_note_where_the_format_has_none(tmp_path: Path) -> None:
    clip = torch.rand(2, 16, 16, 4, generator=torch.Generator().manual_seed(4))
    written = combine(clip, tmp_path / "clip.mkv", "ffv1 (mkv)", 12)
    assert np.array_equal(decode(written.path, (16, 16)), (clip[..., :3] * clip[..., 3:] * 255).round().numpy().astype("u1"))
    assert "black" in written.notes[0]


@pytest.mark.parametrize(
    ("name", "keys"),
    [("h264 (mp4)", ("prompt", "workflow")), ("prores (mov)", ("prompt", "workflow")), ("vp9 (webm)", ("PROMPT", "WORKFLOW")), ("ffv1 (mkv)", ("PROMPT", "WORKFLOW"))],
)
def test_the_workflow_is_a_tag_of_the_container_near_its_front(tmp_path: Path, name: str, keys: tuple[str, str]) -> None:
    path = combine(moving(40), tmp_path / f"clip{PRESETS[name].extension}", name, 24, metadata=METADATA).path
    tags = probe(path)[0].metadata
    assert [tags[key] for key in keys] == list(METADATA.values())
    data = path.read_bytes()
    if path.suffix in (".mp4", ".mov"):
        assert data.index(b"moov") < data.index(b"mdat")
    else:
        assert data.index(keys[0].encode()) < data.index(b"\x1f\x43\xb6\x75")  # the first cluster


@pytest.mark.parametrize("name", ["animated webp", "animated webp (lossless)"])
def test_a_webp_plays_every_frame_for_its_time_and_carries_the_workflow_as_exif(tmp_path: Path, name: str) -> None:
    clip = moving(7)
    path = combine(clip, tmp_path / "clip.webp", name, 30, loop_count=3, metadata={**METADATA, "more": "1"}).path
    with Image.open(path) as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (7, (96, 72), 3)
        exif = image.getexif()
        assert [exif[tag] for tag in (0x0110, 0x010F, 0x010E)] == [f"prompt:{METADATA['prompt']}", f"workflow:{METADATA['workflow']}", "more:1"]
        frames, ends = [], []
        for i in range(7):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")))
            ends.append(image.info["timestamp"] + image.info["duration"])
    assert ends == [round((i + 1) * 1000 / 30) for i in range(7)]
    got = np.stack(frames)
    if name.endswith("(lossless)"):
        assert np.array_equal(got, (clip * 255).round().numpy().astype("u1"))
    else:
        assert psnr(got, clip) > 35


def test_a_lossless_webp_keeps_colour_under_full_transparency(tmp_path: Path) -> None:
    clip = torch.rand(2, 10, 11, 4, generator=torch.Generator().manual_seed(5))
    clip[..., :5, 3] = 0
    with Image.open(combine(clip, tmp_path / "clip.webp", "animated webp (lossless)", 10, pixel_format="rgba").path) as image:
        image.seek(1)
        assert np.array_equal(np.asarray(image.convert("RGBA"))[:, 5:], (clip[1, :, 5:] * 255).round().numpy().astype("u1"))
        assert np.array_equal(np.asarray(image.convert("RGBA"))[..., 3], (clip[1, ..., 3] * 255).round().numpy().astype("u1"))


@pytest.mark.parametrize(("loop_count", "stored"), [(0, 0), (1, None), (2, 1), (5, 4)])
def test_a_gif_plays_as_often_as_asked_and_holds_the_workflow_as_comments(tmp_path: Path, loop_count: int, stored: int | None) -> None:
    clip = moving(6)
    path = combine(clip, tmp_path / "clip.gif", "gif", 15, quality=100, loop_count=loop_count, metadata=METADATA).path
    with Image.open(path) as image:
        assert (image.n_frames, image.size, image.info.get("loop")) == (6, (96, 72), stored)
        frames, seconds = [], 0.0
        for i in range(6):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")))
            seconds += image.info["duration"] / 1000
    assert seconds == pytest.approx(6 / 15, abs=0.011)
    assert psnr(np.stack(frames), clip) > 28
    unblocked = path.read_bytes()
    assert unblocked.endswith(b";")
    for key, value in METADATA.items():
        text = f"{key}:{value}".encode()
        assert b"\x21\xfe" + bytes([len(text)]) + text + b"\0" in unblocked


def test_a_gif_keeps_transparent_pixels_transparent(tmp_path: Path) -> None:
    clip = moving(3, channels=4)
    clip[..., :40, 3] = 0
    clip[..., 40:, 3] = 1
    with Image.open(combine(clip, tmp_path / "clip.gif", "gif", 10, pixel_format="rgba").path) as image:
        image.seek(2)
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
    assert not alpha[:, :40].any()
    assert alpha[:, 40:].all()


@pytest.mark.parametrize("name", [name for name in VIDEO if PRESETS[name].audio_codec])
@pytest.mark.parametrize("seconds", [0.3, 5.0])
@pytest.mark.parametrize("rate", [44100, 50000])
def test_sound_lasts_as_long_as_the_clip_and_starts_with_it(tmp_path: Path, name: str, seconds: float, rate: int) -> None:
    count = int(rate * seconds)
    tone = 0.5 * torch.sin(torch.arange(count) * (2 * torch.pi * 440 / rate))
    audio = {"waveform": tone.expand(1, 2, count), "sample_rate": rate}
    path = combine(moving(24, 32, 64), tmp_path / f"clip{PRESETS[name].extension}", name, 24, quality=40, audio=audio).path
    container = av.open(str(path))
    stream = container.streams.audio[0]
    assert stream.layout.name == "stereo"
    frames = list(container.decode(stream))
    heard = np.concatenate([frame.to_ndarray() if frame.format.is_planar else frame.to_ndarray().reshape(-1, 2).T for frame in frames], axis=1)[0]
    heard = heard.astype(np.float64) / (np.iinfo(heard.dtype).max if heard.dtype.kind == "i" else 1)
    assert heard.size / stream.rate == pytest.approx(1.0, abs=1024 / stream.rate + 0.03)
    assert abs(float(frames[0].time or 0)) < 0.03
    loud = np.abs(heard) > 0.2
    assert np.flatnonzero(loud)[-1] / stream.rate == pytest.approx(min(seconds, 1.0), abs=0.04)
    crossings = np.diff(np.signbit(heard[int(0.05 * stream.rate) : int(0.25 * stream.rate)])).sum()
    assert crossings == pytest.approx(2 * 440 * 0.2, abs=3)


def test_ping_pong_goes_back_without_repeating_an_end(tmp_path: Path) -> None:
    clip = torch.arange(5).reshape(5, 1, 1, 1).expand(5, 8, 8, 3).to(torch.uint8)
    path = combine(PingPong(clip), tmp_path / "clip.mkv", "ffv1 (mkv)", 10).path
    assert decode(path, (8, 8))[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
    assert [[PingPong(range(n))[i] for i in range(len(PingPong(range(n))))] for n in (1, 2, 3)] == [[0], [0, 1], [0, 1, 2, 1]]


@pytest.mark.parametrize(
    ("fps", "exact"),
    [(29.97, Fraction(30000, 1001)), (23.976, Fraction(24000, 1001)), (24.0, Fraction(24)), (6.25, Fraction(25, 4)), (0.01, Fraction(1, 100)), (12.34, Fraction(617, 50))],
)
def test_rates_are_exact_fractions(fps: float, exact: Fraction) -> None:
    assert exact_fps(fps) == exact


@pytest.mark.parametrize("fps", [0.01, 29.97, None])
@pytest.mark.parametrize("name", VIDEO)
def test_the_slowest_and_fastest_rates_keep_every_frame(tmp_path: Path, name: str, fps: float | None) -> None:
    fps = fps or PRESETS[name].max_fps
    path = combine(moving(5), tmp_path / f"clip{PRESETS[name].extension}", name, fps, quality=30).path
    times = [float(frame.time) for frame in probe(path)[2]]
    assert len(times) == 5
    for before, after in pairwise(times):
        assert after - before == pytest.approx(1 / fps, rel=0.05, abs=0.0011)


def test_formats_that_a_browser_cannot_play_get_a_small_h264_preview_in_the_same_pass(tmp_path: Path) -> None:
    clip = moving(4, 400, 1001)
    written = combine(clip, tmp_path / "frames", "png sequence", 8, preview=Numbered(tmp_path, "preview"))
    assert written.preview == tmp_path / "preview_00001_.mp4"
    _, stream, frames = probe(written.preview)
    assert (stream.codec_context.name, len(frames), frames[0].width, frames[0].height) == ("h264", 4, 640, 256)
    assert combine(clip, tmp_path / "plays.mp4", "h264 (mp4)", 8, preview=Numbered(tmp_path, "preview")).preview is None
    assert left_over(tmp_path) == ["frames", "plays.mp4", "preview_00001_.mp4"]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", VIDEO)
def test_the_shortest_clips_start_at_zero_and_last_as_long_as_their_frames(tmp_path: Path, name: str, count: int) -> None:
    for _ in range(4):  # x265's uninitialised decoding times are only sometimes wild
        path = combine(moving(count), tmp_path / f"clip{PRESETS[name].extension}", name, 10, quality=30).path
        container, _, frames = probe(path)
        assert [float(frame.time) for frame in frames] == pytest.approx([i / 10 for i in range(count)])
        assert container.duration / 1e6 == pytest.approx(count / 10, abs=0.011)


def test_odd_sizes_in_yuv420_get_their_last_row_and_column_repeated_and_a_note(tmp_path: Path) -> None:
    clip = moving(2, 31, 45)
    written = combine(clip, tmp_path / "clip.mp4", "h264 (mp4)", 10, quality=100)
    got = decode(written.path, (46, 32))
    assert psnr(got[:, :31, :45], clip) > 36
    assert np.abs(got[:, :, 45].astype(int) - got[:, :, 44]).max() <= 12
    assert "45x31 became 46x32" in written.notes[0]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(width=st.integers(2, 70), height=st.integers(2, 70), count=st.integers(1, 5), ping_pong=st.booleans())
@pytest.mark.parametrize("name", ["h264 (mp4)", "ffv1 (mkv)", "vp9 (webm)", "animated webp"])
def test_any_size_and_length_is_written_whole(tmp_path: Path, name: str, width: int, height: int, count: int, ping_pong: bool) -> None:
    clip = moving(count, height, width)
    path = combine(PingPong(clip) if ping_pong else clip, Numbered(tmp_path, "clip"), name, 7, quality=100).path
    there_and_back = clip[[*range(count), *(range(count - 2, 0, -1) if ping_pong else ())]]
    if name == "animated webp":
        with Image.open(path) as image:
            assert (getattr(image, "n_frames", 1), image.size) == (len(there_and_back), (width, height))
        return
    even = name != "ffv1 (mkv)"
    got = decode(path, (width + width % 2, height + height % 2) if even else (width, height))
    assert len(got) == len(there_and_back)
    if even:
        assert psnr(got[:, :height, :width], there_and_back) > 24
    else:
        assert np.array_equal(got, (there_and_back * 255).round().numpy().astype("u1"))


def test_values_outside_0_to_1_are_clamped_and_uint8_is_taken_as_it_is(tmp_path: Path) -> None:
    clip = torch.tensor([-0.5, 0.5, 1.5]).reshape(1, 1, 3, 1).expand(1, 4, 3, 3)
    assert decode(combine(clip, tmp_path / "a.mkv", "ffv1 (mkv)", 5).path, (3, 4))[0, 0, :, 0].tolist() == [0, 128, 255]
    whole = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    assert np.array_equal(decode(combine(whole, tmp_path / "b.mkv", "ffv1 (mkv)", 5).path, (4, 4)), whole)


def test_numbers_are_taken_by_one_writer_each(tmp_path: Path) -> None:
    (tmp_path / "clip_00002_.mp4").write_bytes(b"theirs")
    first = VideoWriter(Numbered(tmp_path, "clip"), "h264 (mp4)", 5, (16, 16))
    second = VideoWriter(Numbered(tmp_path, "clip"), "h264 (mp4)", 5, (16, 16))
    assert [first.path.name, second.path.name] == ["clip_00001_.mp4", "clip_00003_.mp4"]
    for writer in (first, second):
        with writer:
            writer.write(torch.zeros(16, 16, 3))
    assert left_over(tmp_path) == ["clip_00001_.mp4", "clip_00002_.mp4", "clip_00003_.mp4"]
    assert (tmp_path / "clip_00002_.mp4").read_bytes() == b"theirs"


MEMORY = """
import sys, resource, torch
from pathlib import Path
from lean_video.media import combine
class Clip:
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, i): return torch.rand(4, 5, 3, generator=torch.Generator().manual_seed(i)).repeat_interleave(90, 0).repeat_interleave(128, 1)
folder, name, extension = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
combine(Clip(60), folder / f"short{extension}", name, 24, quality=30)
short = peak()
combine(Clip(int(sys.argv[4])), folder / f"long{extension}", name, 24, quality=30)
print(peak() - short)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read through the resource module")
@pytest.mark.parametrize(("name", "count"), [("h264 (mp4)", 300), ("gif", 150), ("animated webp", 150)])
def test_memory_does_not_grow_with_the_length_of_the_clip(tmp_path: Path, name: str, count: int) -> None:
    command = [sys.executable, "-c", MEMORY, str(tmp_path), name, PRESETS[name].extension, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    # The 90 frames more of the shorter ones would be 237 MiB in float32 and 59 MiB in 8 bits; the 240 of H.264 at least 79. Its lookahead fills a little differently from run to run.
    assert float(done.stdout) < 40
