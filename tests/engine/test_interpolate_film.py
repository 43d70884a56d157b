"""From file to file, and `python -m lean_video interpolate`: frames, times and sound of what is written."""

from __future__ import annotations

import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from lean_video.cli import main
from lean_video.errors import LeanVideoError
from lean_video.interpolation import library
from lean_video.interpolation.clip import Handling
from lean_video.interpolation.film import interpolate_film
from lean_video.media import Audio, ClipInMemory, Measured, Sound, Stream, VideoReader, Written, combine
from tests.engine.test_interpolate_clip import PLAIN, Blend, shot

ROOT = Path(__file__).parents[2]
FLOW = ["--model", library.OPTICAL_FLOW]
FPS, RATE, FRAMES = 10, 48000, 8


@pytest.fixture(scope="module")
def scene() -> torch.Tensor:
    """[T,H,W,3] in steps of 1/255."""
    return (shot(FRAMES, 4) * 255).round() / 255


@pytest.fixture(scope="module")
def film(scene: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scene, lossless, with a click at 0.5 s."""
    sound = torch.zeros(1, FRAMES * RATE // FPS)
    sound[0, RATE // 2] = 1
    return combine(scene, tmp_path_factory.mktemp("film") / "film.mkv", "ffv1 (mkv)", FPS, audio=Audio(sound, RATE)).path


def read(path: Path) -> tuple[torch.Tensor, list[Fraction], Audio | None]:
    """Frames as bytes [T,H,W,3], their times, and the sound."""
    with VideoReader(path) as source:
        frames = list(source)
        return torch.stack([frame.frame_HWC for frame in frames]), [frame.time for frame in frames], source.sound.whole() if source.sound else None  # type: ignore[union-attr]


def bytes_of(frames_THWC: torch.Tensor) -> torch.Tensor:
    return (frames_THWC * 255).round().byte()


def run(*arguments: object) -> int:
    return main(["interpolate", *map(str, arguments), "--device", "cpu"])


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a mistake gets."""
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.strip().splitlines()
    assert lines[-1].startswith("lean_video: ")
    assert lines[-1].endswith(".")
    return lines[-1]


# Files


def test_factor_2_makes_2t_minus_1_frames_and_leaves_the_others_as_they_are(film: Path, scene: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.mkv"
    assert run(film, out, *FLOW) == 0
    frames, times, sound = read(out)
    assert torch.equal(frames[::2], bytes_of(scene))
    assert times == [Fraction(k, 2 * FPS) for k in range(2 * FRAMES - 1)]
    assert sound is not None
    assert int(sound.waveform_CS[0].abs().argmax()) == RATE // 2
    said = capsys.readouterr()
    assert said.out.strip() == str(out)
    assert "8 frames at 10 became 15 at 20 a second, made by optical flow" in said.err


def test_any_rate_keeps_length_and_sound(film: Path, tmp_path: Path) -> None:
    assert run(film, tmp_path / "out.mkv", "--fps", "23.976", *FLOW) == 0
    frames, times, sound = read(tmp_path / "out.mkv")
    assert len(frames) == int(Fraction(FRAMES - 1, FPS) * Fraction(24000, 1001)) + 1
    assert abs(times[-1] - (len(frames) - 1) * Fraction(1001, 24000)) < Fraction(1, 500)  # Matroska counts milliseconds
    assert sound is not None
    assert int(sound.waveform_CS[0].abs().argmax()) == RATE // 2


def test_a_video_of_variable_rate_becomes_an_even_one_in_step_with_its_sound(scene: torch.Tensor, tmp_path: Path) -> None:
    stamps = [0, 100, 200, 500, 550, 600, 700, 1000]  # milliseconds; 300 is longer than most, no pause
    path = tmp_path / "variable.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = scene.shape[2], scene.shape[1], "bgr0"
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, stamp in zip(bytes_of(scene).numpy(), stamps, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="bgr0")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert run(path, tmp_path / "out.mkv", "--fps", "20", "--no-scene-cuts", *FLOW) == 0
    frames, times, _ = read(tmp_path / "out.mkv")
    assert len(frames) == 21
    assert times == [Fraction(k, 20) for k in range(21)]
    for picture, stamp in zip(bytes_of(scene), stamps, strict=True):
        assert torch.equal(frames[stamp // 50], picture)


def test_times_that_a_file_rounds_are_no_motion_of_their_own(scene: torch.Tensor) -> None:
    source = ClipInMemory(scene, Fraction(24000, 1001))
    rounded = [round(1000 * k * Fraction(1001, 24000)) for k in range(FRAMES)]
    source.frames_from = lambda start=Fraction(0): iter(
        [type(frame)(Fraction(ms, 1000), frame.frame_HWC) for ms, frame in zip(rounded, ClipInMemory.frames_from(source), strict=True)]
    )  # type: ignore[method-assign]
    made: list[torch.Tensor] = []

    def write(stream: Stream, sound: Sound | None) -> Any:
        made.extend(stream.frames)  # type: ignore[arg-type]

    interpolate_film(source, Blend(), Fraction(48000, 1001), write, handling=PLAIN)
    assert torch.equal(torch.stack(made[::2]), scene)


def test_ten_bits_and_odd_sizes_pass_through(tmp_path: Path) -> None:
    frames = torch.rand(3, 65, 67, 3, generator=torch.Generator().manual_seed(0))
    path = combine(frames, tmp_path / "in.mkv", "ffv1 (mkv)", 5, pixel_format="gbrp10le").path
    with VideoReader(path) as source:

        def write(stream: Stream, sound: Sound | None) -> Written:
            return combine(stream, tmp_path / "out.mkv", "ffv1 (mkv)", 10, pixel_format="gbrp10le")

        written, _ = interpolate_film(source, Blend(), Fraction(10), write, handling=PLAIN)
    with VideoReader(written.path) as made, VideoReader(path) as first:
        for a, b in zip(list(made)[::2], first, strict=True):
            assert torch.equal(a.frame_HWC, b.frame_HWC)


def test_timestamps_that_cannot_be_are_refused(scene: torch.Tensor) -> None:
    source = ClipInMemory(scene, Fraction(1))
    source.measure = lambda: Measured([Fraction(0), Fraction(10**9)], Fraction(10**9 + 1))  # type: ignore[method-assign]
    with pytest.raises(LeanVideoError, match="277778 hours: its timestamps are broken"):
        interpolate_film(source, Blend(), Fraction(2), lambda stream, sound: pytest.fail("written"), handling=Handling())


def test_a_killed_run_leaves_no_broken_file(film: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    command = [sys.executable, "-m", "lean_video", "interpolate", str(film), str(out), "--factor", "64", "--fps", "640", *FLOW]
    command = [part for part in command if part not in ("--fps", "640")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(path.stat().st_size for path in tmp_path.iterdir()):
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it was killed"
    process.kill()
    process.wait()
    assert not out.exists()


# Images


@pytest.fixture
def pictures(scene: torch.Tensor, tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, picture in enumerate(bytes_of(scene)[:4].numpy()):
        Image.fromarray(picture).save(folder / f"{i}.png")
    return folder


def test_a_folder_of_images_becomes_a_film(pictures: Path, scene: torch.Tensor, tmp_path: Path) -> None:
    assert run(pictures, tmp_path / "out.mkv", "--source-fps", "6", "--fps", "24", *FLOW) == 0
    frames, times, _ = read(tmp_path / "out.mkv")
    assert len(frames) == 13
    assert torch.equal(frames[::4], bytes_of(scene)[:4])
    assert float(times[1]) == pytest.approx(1 / 24, abs=1e-3)


def test_a_film_becomes_a_folder_of_images(film: Path, scene: torch.Tensor, tmp_path: Path) -> None:
    assert run(film, tmp_path / "out", *FLOW) == 0
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == 2 * FRAMES - 1
    assert np.array_equal(np.array(Image.open(files[2]).convert("RGB")), bytes_of(scene)[1].numpy())


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp"])
def test_one_image_between_two(pictures: Path, scene: torch.Tensor, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / f"between{ending}"
    assert run(pictures / "0.png", pictures / "2.png", out, "--at", "0.5", *FLOW) == 0
    assert capsys.readouterr().out.strip() == str(out)
    made = torch.tensor(np.array(Image.open(out).convert("RGB")), dtype=torch.float32) / 255
    inside = (slice(8, -8), slice(8, -8))
    assert (made - scene[1])[inside].abs().mean() < 0.4 * (scene[0] - scene[1])[inside].abs().mean()
    assert run(pictures / "0.png", pictures / "2.png", tmp_path / "first.png", "--at", "0", *FLOW) == 0
    assert np.array_equal(np.array(Image.open(tmp_path / "first.png")), bytes_of(scene)[0].numpy())


def test_two_images_become_a_film(pictures: Path, tmp_path: Path) -> None:
    assert run(pictures / "0.png", pictures / "1.png", tmp_path / "out.mkv", "--factor", "4", *FLOW) == 0
    assert len(read(tmp_path / "out.mkv")[0]) == 5


# Models


def test_weights_are_found_by_name_or_file(models: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "folders", lambda: [models])
    for name, version in (("rife-4.6", "4.6"), ("rife-4.0.safetensors", "4.0"), (str(models / "rife-4.0.safetensors"), "4.0"), (None, "4.6")):
        given = [] if name is None else ["--model", name]
        assert run(pictures / "0.png", pictures / "1.png", tmp_path / "out.png", *given) == 0
        assert f"Made by RIFE {version}" in capsys.readouterr().err


def test_without_weights_optical_flow_does_it_and_says_so(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "folders", lambda: [tmp_path])
    assert run(pictures / "0.png", pictures / "1.png", tmp_path / "out.png") == 0
    assert "optical flow makes the frames, a fallback" in capsys.readouterr().err


def test_the_best_weights_are_a_rife_whatever_else_lies_there(models: Path, tmp_path: Path) -> None:
    for name in ("a_film.safetensors", "rife46_broken.pth"):
        (tmp_path / name).write_bytes(b"nothing")
    assert library.best(library.weights_in([tmp_path])) is None
    (tmp_path / "older.safetensors").write_bytes((models / "rife-4.0.safetensors").read_bytes())
    assert library.best(library.weights_in([tmp_path])) == tmp_path / "older.safetensors"
    assert library.best(library.weights_in([tmp_path, models])) == models / "rife-4.6.safetensors"
    assert library.best([]) is None


# Mistakes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--factor", "1"], "choose 2 to 64"),
        (["--factor", "65"], "choose 2 to 64"),
        (["--fps", "1000"], "at most 64 times"),
        (["--fps", "0"], "frame rate"),
        (["--fps", "nan"], "frame rate"),
        (["--factor", "2", "--fps", "24"], "not allowed with"),
        (["--at", "0.5"], "between two images"),
        (["--cut-threshold", "2"], "choose 0 to 1"),
        (["--source-fps", "6"], "--source-fps is for images"),
        (["--model", "rife-9"], "There are no weights rife-9"),
        (["--scale", "3"], "scale 3"),
        (["--device", "warp"], "cannot be used here"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line(film: Path, tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = [] if {"--model", "--scale"} & set(options) else FLOW
    arguments = [film, tmp_path / "out.mp4", *options, *model]
    if "--device" in options:
        assert main(["interpolate", *map(str, arguments)]) == 2
        assert words in capsys.readouterr().err
    else:
        assert words in mistake(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_get_one_line(film: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no file" in mistake(capsys, tmp_path / "nothing.mp4", tmp_path / "out.mp4", *FLOW)
    assert "no format here has" in mistake(capsys, film, tmp_path / "out.xyz", *FLOW)
    assert "does not exist: make it first" in mistake(capsys, film, tmp_path / "no" / "out.mp4", *FLOW)
    assert "Give what to read" in mistake(capsys, film)
    assert "is there already" in mistake(capsys, film, pictures, *FLOW)
    assert "is to be an image" in mistake(capsys, pictures / "0.png", pictures / "1.png", tmp_path / "out.mp4", "--at", "0.5", *FLOW)
    assert "is no time between" in mistake(capsys, pictures / "0.png", pictures / "1.png", tmp_path / "out.png", "--at", "2", *FLOW)
    Image.new("RGB", (5, 5)).save(tmp_path / "small.png")
    assert "5x5" in mistake(capsys, pictures / "0.png", tmp_path / "small.png", tmp_path / "out.png", *FLOW)
    one = combine(torch.rand(1, 16, 16, 3), tmp_path / "one.mkv", "ffv1 (mkv)", 5).path
    assert "One frame has nothing between" in mistake(capsys, one, tmp_path / "out.mp4", *FLOW)
    (tmp_path / "garbage.mp4").write_bytes(b"garbage" * 999)
    assert "not a video" in mistake(capsys, tmp_path / "garbage.mp4", tmp_path / "out.mp4", *FLOW)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "out"))]
