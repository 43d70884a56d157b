"""Clips into memory: a part, at a rate, at a size, with its sound; folders of images; and clips that are in memory already."""

from __future__ import annotations

import gc
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lean_video.errors import LeanVideoError
from lean_video.media import Audio, ClipInMemory, FrameSource, ImageFolder, VideoReader, combine, load_clip
from lean_video.media.resize import fit

COUNT, FPS, RATE = 30, 10, 8000
WIDTH, HEIGHT = 34, 22


def numbered(count: int = COUNT, channels: int = 3) -> torch.Tensor:
    """[T,H,W,C] uint8, each frame of one grey of its own, which is 8 times its number."""
    return torch.arange(count, dtype=torch.uint8).mul(8).view(-1, 1, 1, 1).expand(count, HEIGHT, WIDTH, channels).contiguous()


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbered frames with a sound that is n/100 throughout frame n."""
    sound = (torch.arange(COUNT) / 100).repeat_interleave(RATE // FPS)[None]
    return combine(numbered(), tmp_path_factory.mktemp("film") / "film.mkv", "ffv1 (mkv)", FPS, audio=Audio(sound, RATE)).path


def numbers(frames_THWC: torch.Tensor) -> list[int]:
    assert frames_THWC.dtype == torch.float32
    return [round(float(frame.mean()) * 255 / 8) for frame in frames_THWC]


def heard(sound: Audio | None) -> list[float]:
    """A sound at the middle of each tenth of a second, times 100."""
    assert sound is not None
    at = sound.waveform_CS[0, RATE // FPS // 2 :: RATE // FPS]
    return [round(float(value) * 100, 1) for value in at]


def load(path: Path, **options: Any) -> Any:
    with VideoReader(path) as source:
        return load_clip(source, **options)


@settings(max_examples=25, deadline=None)
@given(start=st.integers(0, COUNT - 1), count=st.none() | st.integers(1, 40), stride=st.integers(1, 7))
def test_a_range_is_that_of_the_whole_clip_with_its_sound(film: Path, start: int, count: int | None, stride: int) -> None:
    clip = load(film, start_frame=start, count=count, stride=stride)
    expected = list(range(start, COUNT, stride))[:count]
    assert numbers(clip.frames_THWC) == expected
    assert clip.fps == Fraction(FPS, stride)
    covered = range(start, start + len(expected) * stride)
    assert heard(clip.sound) == [pytest.approx(n if n < COUNT else 0, abs=0.2) for n in covered]


@settings(max_examples=25, deadline=None)
@given(start=st.integers(0, COUNT - 1), fps=st.fractions(Fraction(1, 2), 40, max_denominator=3), stride=st.integers(1, 3))
def test_at_a_rate_each_frame_is_what_the_clip_shows_then(film: Path, start: int, fps: Fraction, stride: int) -> None:
    clip = load(film, start_frame=start, fps=fps, stride=stride)
    times = [Fraction(start, FPS) + k * stride / fps for k in range(1000)]
    assert numbers(clip.frames_THWC) == [int(time * FPS) for time in times if time < Fraction(COUNT, FPS)]
    assert clip.fps == fps / stride


@pytest.mark.parametrize(("size", "result"), [((17, 0), (17, 11)), ((0, 44), (68, 44)), ((40, 40), (40, 40)), ((0, 0), (WIDTH, HEIGHT)), (None, (WIDTH, HEIGHT))])
@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_frames_get_their_size_as_they_come(tmp_path: Path, size: tuple[int, int] | None, result: tuple[int, int], resize: str) -> None:
    frames = torch.rand(2, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
    path = combine(frames, tmp_path / "a.mkv", "ffv1 (mkv)", 5).path
    clip = load(path, size=size, resize=resize)
    assert tuple(clip.frames_THWC.shape[1:3]) == (result[1], result[0])
    eight_bits = (frames * 255).round() / 255
    assert torch.allclose(clip.frames_THWC[1], fit(eight_bits[1].permute(2, 0, 1)[None], *result, resize)[0].permute(1, 2, 0), atol=1e-6)


def test_transparency_stays(tmp_path: Path) -> None:
    frames = torch.rand(3, HEIGHT, WIDTH, 4)
    path = combine(frames, tmp_path / "a.mkv", "ffv1 (mkv)", 5, pixel_format="bgra").path
    assert torch.equal(load(path).frames_THWC, (frames * 255).round() / 255)


def test_what_does_not_fit_is_refused_before_anything_is_decoded(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    each = WIDTH * HEIGHT * 3 * 4
    assert len(load(film, limit_bytes=COUNT * each).frames_THWC) == COUNT
    with VideoReader(film) as source:
        monkeypatch.setattr(source, "frames_from", lambda start: pytest.fail("decoded"))
        with pytest.raises(LeanVideoError, match=r"30 frames of 34x22 take .* read at most 29 at a time"):
            load_clip(source, limit_bytes=COUNT * each - 1)


def test_progress_counts_frames_and_a_cancel_leaves_no_file_open(film: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    load(film, count=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]

    class Cancelled(Exception):
        pass

    def cancel(done: int, total: int) -> None:
        if done == 2:
            raise Cancelled

    copy = tmp_path / "copy.mkv"
    copy.write_bytes(film.read_bytes())
    with pytest.raises(Cancelled):
        load(copy, progress=cancel)
    copy.unlink()  # which Windows refuses for a file that is open


def test_a_damaged_end_gives_the_frames_before_it_and_a_note(film: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(film.read_bytes()[: int(film.stat().st_size * 0.6)])
    clip = load(cut)
    assert 5 < len(clip.frames_THWC) < COUNT
    assert numbers(clip.frames_THWC) == list(range(len(clip.frames_THWC)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start_frame": COUNT}, "has 30 frames, so there is none at 30: start at 29 or before"),
        ({"start_frame": -1}, "first frame is 0 or more"),
        ({"count": 0}, "1 or more"),
        ({"stride": 0}, "1 or more"),
        ({"size": (20000, 0)}, "give sides of 0"),
    ],
)
def test_what_cannot_be_asked_for_gets_a_sentence(film: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(LeanVideoError, match=words):
        load(film, **options)


# Images


def save(folder: Path, names: list[str], mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        Image.new(mode, size, (8 * i,) * len(mode)).save(folder / name)
    return [folder / name for name in names]


def all_numbers(source: FrameSource) -> list[int]:
    return [round(float(frame.frame_HWC[..., 0].float().mean()) / 8) for frame in source]


def test_images_of_a_folder_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    save(tmp_path / "frames", ["a1.png", "a2.png", "a10.png", "b1.webp"])
    (tmp_path / "frames" / "notes.txt").write_text("not an image")
    with ImageFolder(tmp_path / "frames", Fraction(6)) as source:
        assert all_numbers(source) == [0, 1, 2, 3]
        assert source.size == (WIDTH, HEIGHT)
        assert [frame.time for frame in source.frames_from(Fraction(1, 2))] == [Fraction(3, 6)]
        assert source.measure().times[3] == Fraction(3, 6)
        assert numbers(load_clip(source, stride=2).frames_THWC) == [0, 2]


def test_images_of_a_list_come_in_its_order(tmp_path: Path) -> None:
    files = save(tmp_path / "frames", ["a.png", "b.png"])
    assert all_numbers(ImageFolder(files[::-1], Fraction(1))) == [1, 0]


def test_images_with_and_without_transparency_are_one_clip(tmp_path: Path) -> None:
    save(tmp_path / "frames", ["a.png", "c.png"])
    save(tmp_path / "frames", ["b.png", "d.png"], "RGBA")
    source = ImageFolder(tmp_path / "frames", Fraction(1))
    assert source.channels == 4
    assert [int(frame.frame_HWC[0, 0, 3]) for frame in source] == [255, 0, 255, 8]


def test_sixteen_grey_bits_are_kept(tmp_path: Path) -> None:
    grey = np.arange(WIDTH * HEIGHT, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 50
    Image.fromarray(grey).save(tmp_path / "a.png")
    (frame,) = ImageFolder([tmp_path / "a.png"], Fraction(1))
    assert np.array_equal(np.rint(frame.frame_HWC[..., 1].numpy() * 65535), grey)


def test_images_that_are_no_clip_get_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(LeanVideoError, match="There are no images in"):
        ImageFolder(tmp_path / "none", Fraction(1))
    files = save(tmp_path / "sizes", ["a.png"]) + save(tmp_path / "sizes", ["b.png"], size=(WIDTH, HEIGHT + 1))
    with pytest.raises(LeanVideoError, match=r"b\.png is 34x23 and a\.png is 34x22"):
        list(ImageFolder(files, Fraction(1)))
    (tmp_path / "sizes" / "c.png").write_bytes(b"no image")
    with pytest.raises(LeanVideoError, match=r"c\.png is not an image"):
        ImageFolder(tmp_path / "sizes", Fraction(1))
    with pytest.raises(LeanVideoError, match="There is no image"):
        ImageFolder([tmp_path / "nothing.png"], Fraction(1))


def test_a_clip_in_memory_is_read_like_a_file() -> None:
    sound = torch.rand(1, 1, 4000)
    source = ClipInMemory(numbered().float() / 255, Fraction(FPS), {"waveform": sound, "sample_rate": RATE})
    clip = load_clip(source, start_frame=4, count=5, stride=2)
    assert numbers(clip.frames_THWC) == [4, 6, 8, 10, 12]
    assert clip.sound is not None
    assert torch.equal(clip.sound.waveform_CS[:, :800], sound[0, :, 3200:4000])
    with pytest.raises(LeanVideoError, match="has no frames"):
        ClipInMemory(torch.zeros(0, 4, 4, 3), Fraction(1))


def test_reading_leaves_no_frames_behind(film: Path) -> None:
    load(film)
    gc.collect()
    kept = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor) and thing.shape[-1:] == (3,) and HEIGHT in thing.shape]
    assert kept == []
