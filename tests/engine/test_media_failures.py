"""What lean_video.media refuses, and that a refusal, a cancel or a full disk leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lean_video.errors import LeanVideoError
from lean_video.media import PRESETS, Numbered, VideoWriter, check_settings, combine

ALL = list(PRESETS)
GRAY = torch.full((4, 32, 48, 3), 0.5)


def is_a_sentence(error: pytest.ExceptionInfo[LeanVideoError]) -> bool:
    text = str(error.value)
    return text.endswith(".") and "\n" not in text and "Errno" not in text


class Noise:
    """Frames that no codec makes small."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> torch.Tensor:
        return torch.rand(128, 192, 3, generator=torch.Generator().manual_seed(index))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_frame_with_nan_or_infinity_is_named_and_nothing_is_left(tmp_path: Path, name: str, bad: float) -> None:
    clip = GRAY.clone()
    clip[2, 5, 5, 1] = bad
    with pytest.raises(LeanVideoError, match="Frame 2 holds NaN or infinite") as error:
        combine(clip, Numbered(tmp_path, "clip"), name, 10, preview=Numbered(tmp_path, "preview"))
    assert is_a_sentence(error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("clip", "said"),
    [
        (torch.zeros(0, 8, 8, 3), "no frames"),
        (torch.zeros(2, 8, 8, 1), "1 channels"),
        (torch.zeros(2, 8, 8, 5), "5 channels"),
        (torch.zeros(2, 0, 8, 3), "at least one pixel"),
        (torch.zeros(2, 8, 8), "shape"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.int64), "int64"),
        ([torch.zeros(8, 8, 3), torch.zeros(8, 9, 3)], "9x8"),
        (["a.png"], "str"),
    ],
)
def test_what_is_no_clip_is_refused_in_a_sentence(tmp_path: Path, clip: Any, said: str) -> None:
    with pytest.raises(LeanVideoError, match=said) as error:
        combine(clip, tmp_path / "clip.mp4", "h264 (mp4)", 10)
    assert is_a_sentence(error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"preset": "betamax"}, "no format"),
        ({"fps": 0}, "frame rate is 0"),
        ({"fps": -5}, "frame rate"),
        ({"fps": float("nan")}, "frame rate is nan"),
        ({"fps": 1001}, "frame rate is 1001"),
        ({"preset": "gif", "fps": 60}, "faster than 50"),
        ({"preset": "animated webp", "fps": 120}, "faster than 90"),
        ({"pixel_format": "yuv999p"}, "auto or one of yuv420p"),
        ({"pixel_format": "rgba"}, "cannot hold"),
        ({"quality": 101}, "quality"),
        ({"loop_count": -1}, "loop count"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(LeanVideoError, match=said) as error:
        check_settings(**{"preset": "h264 (mp4)", "fps": 24, **settings})
    assert is_a_sentence(error)


@pytest.mark.parametrize(
    ("audio", "said"),
    [
        ({"waveform": torch.zeros(1, 2, 0), "sample_rate": 44100}, "no samples"),
        ({"waveform": torch.zeros(0, 2, 9), "sample_rate": 44100}, "no samples"),
        ({"waveform": torch.zeros(1, 3, 900), "sample_rate": 44100}, "3 channels"),
        ({"waveform": torch.zeros(1, 2, 900), "sample_rate": 0}, "sample rate is 0"),
        ({"waveform": torch.full((1, 1, 900), float("nan")), "sample_rate": 44100}, "NaN"),
        ({"samples": 1}, "without waveform"),
    ],
)
def test_audio_that_is_none_is_refused_in_a_sentence(tmp_path: Path, audio: Any, said: str) -> None:
    with pytest.raises(LeanVideoError, match=said) as error:
        combine(GRAY, tmp_path / "clip.mp4", "h264 (mp4)", 10, audio=audio)
    assert is_a_sentence(error)
    assert not list(tmp_path.iterdir())


def test_frames_too_large_for_the_format_are_refused_with_its_limit(tmp_path: Path) -> None:
    with pytest.raises(LeanVideoError, match="at most 16383") as error:
        combine(torch.zeros(1, 2, 16400, 3), tmp_path / "clip.webp", "animated webp", 10)
    assert is_a_sentence(error)
    assert not list(tmp_path.iterdir())


def test_frames_too_small_for_the_format_are_refused_with_its_limit(tmp_path: Path) -> None:
    with pytest.raises(LeanVideoError, match="at least 16 pixels") as error:
        combine(torch.zeros(1, 8, 64, 3), tmp_path / "clip.mp4", "h265 (mp4)", 10)
    assert is_a_sentence(error)
    assert not list(tmp_path.iterdir())


def test_what_the_encoder_itself_refuses_becomes_a_sentence_about_the_settings(tmp_path: Path) -> None:
    broken = replace(PRESETS["h264 (mp4)"], options={"preset": "nonsense"})
    with pytest.raises(LeanVideoError, match=r"encoder refused 48x32 at 10 fps in h264") as error:
        combine(GRAY, tmp_path / "clip.mp4", broken, 10)
    assert is_a_sentence(error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("at", [0, 3, 6])
def test_a_cancel_passes_through_and_leaves_nothing(tmp_path: Path, name: str, at: int) -> None:
    class Cancelled(BaseException):
        pass

    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        assert total == 6
        seen.append(done)
        if done == at:
            raise Cancelled

    with pytest.raises(Cancelled):
        combine(Noise(6), Numbered(tmp_path, "clip"), name, 10, preview=Numbered(tmp_path, "preview"), progress=progress)
    assert seen == list(range(at + 1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ALL)
def test_close_after_a_failed_write_does_nothing_and_writing_on_is_refused(tmp_path: Path, name: str) -> None:
    writer = VideoWriter(Numbered(tmp_path, "clip"), name, 10, (48, 32))
    writer.write(GRAY[0])
    with pytest.raises(LeanVideoError):
        writer.write(np.zeros((1, 1, 3), np.float32))
    writer.close()
    writer.abort()
    with pytest.raises(LeanVideoError, match="closed"):
        writer.write(GRAY[0])
    assert not list(tmp_path.iterdir())


def test_a_writer_without_frames_says_so(tmp_path: Path) -> None:
    with pytest.raises(LeanVideoError, match="no frames"), VideoWriter(tmp_path / "clip.mp4", "h264 (mp4)", 10, (48, 32)):
        pass
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(LeanVideoError, match="does not exist") as error:
        combine(GRAY, tmp_path / "nowhere" / "clip.mp4", "h264 (mp4)", 10)
    assert is_a_sentence(error)


def test_a_folder_with_files_is_not_mixed_with_new_frames(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    combine(GRAY, tmp_path / "frames", "png sequence", 10)
    with pytest.raises(LeanVideoError, match="already holds files"):
        combine(GRAY, tmp_path / "frames", "png sequence", 10)
    assert len(list((tmp_path / "frames").iterdir())) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]


def test_an_existing_file_survives_a_failed_rewrite_and_is_replaced_by_a_good_one(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"before")
    with pytest.raises(LeanVideoError):
        combine([GRAY[0], torch.full_like(GRAY[0], float("nan"))], path, "h264 (mp4)", 10)
    assert path.read_bytes() == b"before"
    combine(GRAY, path, "h264 (mp4)", 10)
    assert path.read_bytes()[4:8] == b"ftyp"


RUN_OUT = """
import resource, sys
from pathlib import Path
import torch
from lean_video.errors import LeanVideoError
from lean_video.media import Numbered, combine
from test_media_failures import GRAY, Noise
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
before = resource.getrlimit(resource.RLIMIT_FSIZE)
for name in sys.argv[3:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        combine(Noise(12), Numbered(folder, "clip"), name, 10, quality=95, metadata={"prompt": "{}"})
        print(name, "was written")
    except LeanVideoError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(folder.iterdir()), list(folder.iterdir())
    written = combine(GRAY, Numbered(folder, "clip"), name, 10)
    assert written.path.name.startswith("clip_00001_")
    import shutil
    shutil.rmtree(folder); folder.mkdir()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("limit", [200, 40000])
def test_a_disk_that_runs_out_is_a_sentence_leaves_nothing_and_the_next_file_is_fine(tmp_path: Path, limit: int) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])}
    command = [sys.executable, "-c", RUN_OUT, str(folder), str(limit), *ALL]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout.splitlines()
    assert len(said) == len(ALL)
    for line in said:
        assert "could not be written" in line
        assert "the file grew larger" in line


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX permissions")
@pytest.mark.parametrize("name", ["h264 (mp4)", "png sequence"])
def test_a_folder_without_write_permission_is_a_sentence(tmp_path: Path, name: str) -> None:
    tmp_path.chmod(0o500)
    was_root = os.geteuid() == 0
    try:
        if was_root:  # who may write anywhere
            os.seteuid(65534)
        with pytest.raises(LeanVideoError, match="not writable") as error:
            combine(GRAY, tmp_path / "clip", name, 10)
    finally:
        if was_root:
            os.seteuid(0)
        tmp_path.chmod(0o700)
    assert is_a_sentence(error)
    assert not list(tmp_path.iterdir())
