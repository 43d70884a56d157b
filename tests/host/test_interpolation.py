"""Frames between frames and video files in a real ComfyUI: what comes out, what is told, and what bad input gets."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from comfy_client import Prompt, Run
from safetensors.torch import save_file

from lean_video.media import Audio, VideoReader, combine
from tests.host.comfy import Comfy, probe_image
from tests.host.comfy import combine as combine_node
from tests.host.test_bad_input import files, one_sentence, refusal

FLOW = "optical flow"
FPS, FRAMES, WIDTH, HEIGHT = 10, 12, 96, 64


def keyframes(given: Any, **changes: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "images": given,
        "model": FLOW,
        "mode": "multiplier",
        "multiplier": 2,
        "source_fps": 6.0,
        "target_fps": 24.0,
        "schedule": "",
        "skip_pairs": "",
        "loop": False,
        "at_cuts": "hold",
        "cut_threshold": 0.65,
        "smooth_repeats": True,
        "scale": "1",
        "ensemble": False,
        "precision": "auto",
    }
    return {"class_type": "LeanVideoKeyframeInterpolation", "inputs": {**inputs, **changes}}


def interpolate_file(file: str, **changes: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "file": file,
        "model": FLOW,
        "mode": "multiplier",
        "multiplier": 2,
        "target_fps": 60.0,
        "at_cuts": "hold",
        "cut_threshold": 0.65,
        "smooth_repeats": True,
        "scale": "1",
        "ensemble": False,
        "precision": "auto",
        "format": "ffv1 (mkv)",
        "filename_prefix": "video/smooth",
        "quality": 80,
        "pixel_format": "auto",
    }
    return {"class_type": "LeanVideoInterpolateFile", "inputs": {**inputs, **changes}}


def load_frames(file: str, **changes: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {"file": file, "start_frame": 0, "count": 0, "every_nth": 1, "fps": 0.0, "width": 0, "height": 0, "resize": "crop"}
    return {"class_type": "LeanVideoLoadFrames", "inputs": {**inputs, **changes}}


def stats(images: list[Any]) -> dict[str, Any]:
    return {"class_type": "LeanVideoProbeStats", "inputs": {"images": images}}


def report(run: Run, node: str) -> str:
    return "\n".join(run.outputs[node]["text"])


@pytest.fixture(scope="session")
def scene() -> torch.Tensor:
    """A texture that moves two pixels a frame, [T,H,W,3]."""
    from tests.engine.test_interpolate_clip import shot

    return shot(FRAMES, 7, HEIGHT, WIDTH)


@pytest.fixture
def video(comfy: Comfy, scene: torch.Tensor) -> Path:
    """The scene as a lossless file with a tone, in the input folder."""
    tone = torch.sin(torch.arange(FRAMES * 4800) * 0.06).expand(2, -1) / 2
    path = comfy.server.base / "input" / "scene.mkv"
    if not path.exists():
        combine(scene, path, "ffv1 (mkv)", FPS, audio=Audio(tone.contiguous(), 48000))
    return path


def written(comfy: Comfy, run: Run, node: str) -> Path:
    file = run.outputs[node]["lean_video_files"][0]
    return comfy.server.base / "output" / file["subfolder"] / file["filename"]


def frames_of(path: Path) -> list[torch.Tensor]:
    with VideoReader(path) as reader:
        return [frame.frame_HWC for frame in reader]


# Keyframe Interpolation


def tensors(comfy: Comfy, node: dict[str, Any], frames: int = 4) -> tuple[np.ndarray, np.ndarray, Run]:
    """What went in, what came out, and the run."""
    prompt: Prompt = {"1": probe_image(frames=frames), "2": node, "3": stats(["1", 0]), "4": stats(["2", 0])}
    run = comfy.run(prompt)
    assert run.status == "success", run.message
    given, made = (comfy.tensor(comfy.stats(run, number)[0]) for number in ("3", "4"))
    return given, made, run


@pytest.mark.parametrize(
    ("changes", "count", "kept"),
    [
        ({"multiplier": 3}, 10, [0, 3, 6, 9]),
        ({"multiplier": 3, "loop": True}, 12, [0, 3, 6, 9]),
        ({"multiplier": 3, "skip_pairs": "2"}, 8, [0, 3, 4, 7]),
        ({"mode": "target fps", "source_fps": 6.0, "target_fps": 9.0}, 5, [0, None, None, 3 * 9 // 6]),
        ({"mode": "target fps", "source_fps": 24.0, "target_fps": 12.0}, 2, [0, None, 1, None]),
        ({"mode": "frames per pair", "schedule": "2, 0, 1"}, 7, [0, 3, 4, 6]),
        ({"mode": "keyframe times", "schedule": "0, 0.5, 1, 1.25", "target_fps": 8.0}, 11, [0, 4, 8, 10]),
    ],
    ids=str,
)
def test_the_given_frames_come_out_unchanged_at_their_places(comfy: Comfy, changes: dict[str, Any], count: int, kept: list[int | None]) -> None:
    given, made, run = tensors(comfy, keyframes(["1", 0], **{"at_cuts": "ignore", "smooth_repeats": False, **changes}))
    assert len(made) == count
    places = [at for at in kept if at is not None]
    if changes.get("target_fps") == 9.0:
        places = [0, 3]
        assert np.array_equal(made[places], given[[0, 2]])
    else:
        assert np.array_equal(made[places], given[[i for i, at in enumerate(kept) if at is not None]])
    assert f"4 frames at {changes.get('source_fps', 6.0):g} became {count} at" in report(run, "2")


def test_auto_takes_rife_4_6_and_says_so(comfy: Comfy) -> None:
    _, made, run = tensors(comfy, keyframes(["1", 0], model="auto", at_cuts="ignore"))
    assert len(made) == 7
    assert "made by RIFE 4.6." in report(run, "2")


def test_the_rate_it_gives_lets_the_clip_last_as_long(comfy: Comfy) -> None:
    movie = combine_node(["2", 0], fps=["2", 1], format="ffv1 (mkv)")
    for changes, count, rate in (({"multiplier": 4}, 13, 24), ({"mode": "frames per pair", "schedule": "1, 3, 2"}, 10, 18), ({"mode": "target fps"}, 13, 24)):
        run = comfy.run({"1": probe_image(frames=4), "2": keyframes(["1", 0], at_cuts="ignore", **changes), "3": movie})
        assert run.status == "success", run.message
        with av.open(str(written(comfy, run, "3"))) as container:
            assert container.streams.video[0].average_rate == rate
            assert sum(1 for _ in container.decode(video=0)) == count


def test_cuts_are_told_on_the_node(comfy: Comfy) -> None:
    # The clip, and then noise.
    prompt: Prompt = {
        "1": probe_image(frames=3),
        "2": probe_image("noise", frames=2),
        "3": {"class_type": "ImageBatch", "inputs": {"image1": ["1", 0], "image2": ["2", 0]}},
        "4": keyframes(["3", 0]),
        "5": stats(["4", 0]),
        "6": stats(["3", 0]),
    }
    run = comfy.run(prompt)
    assert re.search(r"cuts?, after frame .*3 \(\d\.\d\d\)", report(run, "4"))
    made, given = comfy.tensor(comfy.stats(run, "5")[0]), comfy.tensor(comfy.stats(run, "6")[0])
    assert np.array_equal(made[5], given[2])


def test_transparency_is_interpolated_too(comfy: Comfy) -> None:
    run = comfy.run({"1": probe_image("rgba", frames=2), "2": keyframes(["1", 0]), "4": stats(["2", 0])})
    assert comfy.stats(run, "4")[0]["shape"] == [3, 64, 128, 4]


# Load Video Frames


def test_a_video_comes_in_as_images_with_its_sound_and_rate(comfy: Comfy, video: Path, scene: torch.Tensor) -> None:
    run = comfy.run({"1": load_frames(video.name), "2": stats(["1", 0]), "3": combine_node(["1", 0], fps=["1", 2], audio=["1", 1], format="ffv1 (mkv)")})
    assert run.status == "success", run.message
    images = comfy.tensor(comfy.stats(run, "2")[0])
    assert images.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert np.array_equal(np.rint(images * 255), np.rint(scene.numpy() * 255))
    with VideoReader(written(comfy, run, "3")) as back, VideoReader(video) as first:
        assert back.fps == FPS
        assert back.sound is not None
        assert first.sound is not None
        assert (back.sound.whole().waveform_CS - first.sound.whole().waveform_CS).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("changes", "picked", "rate"),
    [
        ({"start_frame": 4, "count": 3}, [4, 5, 6], 10),
        ({"every_nth": 5}, [0, 5, 10], 2),
        ({"start_frame": 2, "every_nth": 3, "count": 2}, [2, 5], Fraction(10, 3)),
        ({"fps": 5.0}, [0, 2, 4, 6, 8, 10], 5),
    ],
    ids=str,
)
def test_a_part_of_a_video(comfy: Comfy, video: Path, scene: torch.Tensor, changes: dict[str, Any], picked: list[int], rate: Fraction) -> None:
    run = comfy.run({"1": load_frames(video.name, **changes), "2": stats(["1", 0]), "3": combine_node(["1", 0], fps=["1", 2], format="ffv1 (mkv)")})
    images = comfy.tensor(comfy.stats(run, "2")[0])
    assert np.array_equal(np.rint(images * 255), np.rint(scene[picked].numpy() * 255))
    with VideoReader(written(comfy, run, "3")) as reader:
        assert abs(reader.fps - rate) < Fraction(1, 100)


def test_frames_are_resized_as_they_are_read(comfy: Comfy, video: Path) -> None:
    run = comfy.run({"1": load_frames(video.name, width=48, count=2), "2": stats(["1", 0])})
    assert comfy.stats(run, "2")[0]["shape"] == [2, 32, 48, 3]


# Interpolate Video File


def test_a_file_becomes_smoother_with_its_sound(comfy: Comfy, video: Path, scene: torch.Tensor) -> None:
    run = comfy.run({"1": interpolate_file(video.name)})
    assert run.status == "success", run.message
    path = written(comfy, run, "1")
    frames = frames_of(path)
    assert len(frames) == 2 * FRAMES - 1
    assert torch.equal(torch.stack(frames[::2]), (scene * 255).round().byte())
    with VideoReader(path) as made, VideoReader(video) as first:
        assert made.fps == 2 * FPS
        assert made.sound is not None
        assert first.sound is not None
        ours, theirs = made.sound.whole().waveform_CS, first.sound.whole().waveform_CS
        assert (ours - theirs[:, : ours.shape[1]]).abs().max() < 1e-3
        assert ours.shape[1] == pytest.approx(48000 * len(frames) / (2 * FPS), abs=1)
    assert "12 frames at 10 became 23 at 20 a second" in report(run, "1")


def test_a_video_goes_from_one_of_comfyuis_nodes_to_another(comfy: Comfy, video: Path) -> None:
    if "LoadVideo" not in comfy.object_info():
        pytest.skip("This ComfyUI has no VIDEO type.")
    run = comfy.run(
        {
            "1": {"class_type": "LoadVideo", "inputs": {"file": video.name}},
            "2": interpolate_file("", video=["1", 0]),
            "3": load_frames("", video=["2", 2], count=3),
            "4": {"class_type": "CreateVideo", "inputs": {"images": ["3", 0], "fps": 5.0}},
            "5": interpolate_file("", video=["4", 0], mode="target fps", target_fps=20.0),
        }
    )
    assert run.status == "success", run.message
    assert len(frames_of(written(comfy, run, "2"))) == 2 * FRAMES - 1
    assert len(frames_of(written(comfy, run, "5"))) == 9


def test_a_cancelled_file_leaves_nothing(comfy: Comfy, video: Path) -> None:
    before = files(comfy)
    cancelled = False

    def cancel(kind: str, data: dict[str, Any]) -> None:
        nonlocal cancelled
        if kind == "progress" and data["value"] >= 5 and not cancelled:
            comfy.interrupt()
            cancelled = True

    run = comfy.run({"1": interpolate_file(video.name, model="auto", multiplier=64)}, on_event=cancel)
    assert run.status == "interrupted"
    assert files(comfy) == before


# Bad input


def write_weights(comfy: Comfy, name: str, content: bytes | dict[str, torch.Tensor]) -> str:
    folder = comfy.server.base / "models" / "rife"
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        save_file(content, folder / name)
    comfy.object_info("LeanVideoKeyframeInterpolation")
    return name


BAD_KEYFRAMES: list[tuple[dict[str, Any], str]] = [
    ({"mode": "frames per pair", "schedule": "1, 2"}, "has 2 numbers and the clip 3 pairs"),
    ({"mode": "frames per pair", "schedule": "a b c"}, "is no number of frames"),
    ({"mode": "frames per pair", "schedule": "99999999, 1, 1"}, "from file to file"),
    ({"mode": "keyframe times", "schedule": "0, 1"}, "has 2 times and should have 4"),
    ({"mode": "keyframe times", "schedule": "0, 2, 1, 3"}, "must grow"),
    ({"mode": "target fps", "source_fps": 1.0, "target_fps": 65.0}, "at most 64 times"),
    ({"mode": "morph"}, "There is no mode morph"),
    ({"mode": 5}, "is no name"),
    ({"skip_pairs": "9"}, "There is no pair 9"),
    ({"model": "rife99.pth"}, "There are no weights named rife99.pth"),
    ({"model": "../../secret.pth"}, "There are no weights named"),
    ({"model": 7}, "is no name"),
    ({"images": "nothing"}, "connect it to"),
]


@pytest.mark.parametrize(("changes", "says"), BAD_KEYFRAMES, ids=[says for _, says in BAD_KEYFRAMES])
def test_a_schedule_or_model_that_cannot_be(comfy: Comfy, changes: dict[str, Any], says: str) -> None:
    refused = refusal(comfy, {"1": probe_image(frames=4), "2": keyframes(["1", 0], **changes), "3": combine_node(["2", 0])})
    assert refused.node == "2"
    assert says in refused.sentence
    assert one_sentence(refused.sentence)


def test_one_frame_has_nothing_between(comfy: Comfy) -> None:
    refused = refusal(comfy, {"1": probe_image(frames=1), "2": keyframes(["1", 0]), "3": combine_node(["2", 0])})
    assert refused == type(refused)("2", "One frame has nothing between: give two frames or more.")


def test_weights_that_are_of_no_rife(comfy: Comfy) -> None:
    for name, content, says in (
        ("other.safetensors", {"film.weight": torch.zeros(2)}, "other.safetensors"),
        ("garbage.pth", b"garbage", "garbage.pth"),
    ):
        write_weights(comfy, name, content)
        refused = refusal(comfy, {"1": probe_image(frames=2), "2": keyframes(["1", 0], model=name), "3": combine_node(["2", 0])})
        assert says in refused.sentence
        assert one_sentence(refused.sentence)
    _, _, run = tensors(comfy, keyframes(["1", 0], model="auto"), frames=3)  # which passes over them
    assert "RIFE 4.6" in report(run, "2")


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no video" * 100)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def sound_only(path: Path) -> None:
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def playlist(path: Path) -> None:
    path.write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", encoding="utf-8")


BAD_FILES: list[tuple[Any, str]] = [
    ("nothing.mp4", "There is no file nothing.mp4"),
    ("../../models/checkpoints/small_svd.safetensors", "is not in ComfyUI's input folder"),
    ("/etc/passwd", "is not in ComfyUI's input folder"),
    ("../input.mp4 [output]", "is not in ComfyUI's output folder"),
    ("", "input folder"),
    (3, "is no name"),
    (garbage, "not a video"),
    (empty, "is empty"),
    (sound_only, ""),
    (playlist, "not a video"),
]


@pytest.mark.parametrize("node", [load_frames, interpolate_file])
@pytest.mark.parametrize(("file", "says"), BAD_FILES, ids=[getattr(file, "__name__", repr(file)) for file, _ in BAD_FILES])
def test_a_file_that_is_no_video(comfy: Comfy, node: Callable[..., dict[str, Any]], file: Any, says: str) -> None:
    before = files(comfy)
    if callable(file):
        path = comfy.server.base / "input" / f"{file.__name__}.mp4"
        file(path)
        file = path.name
    prompt = {"1": node(file)} | ({"2": combine_node(["1", 0])} if node is load_frames else {})
    refused = refusal(comfy, prompt)
    assert refused.node == "1"
    assert says in refused.sentence
    assert one_sentence(refused.sentence)
    assert files(comfy) == before


def test_a_video_that_is_cut_off_is_read_as_far_as_it_goes(comfy: Comfy, video: Path) -> None:
    cut = video.with_name("cut_off.mkv")
    cut.write_bytes(video.read_bytes()[: int(video.stat().st_size * 0.6)])
    run = comfy.run({"1": interpolate_file(cut.name)})
    assert run.status == "success", run.message
    assert "damaged" in report(run, "1")
    assert 3 <= len(frames_of(written(comfy, run, "1"))) < 2 * FRAMES - 1


def test_a_range_beyond_the_end(comfy: Comfy, video: Path) -> None:
    refused = refusal(comfy, {"1": load_frames(video.name, start_frame=50), "2": combine_node(["1", 0])})
    assert "12 frames" in refused.sentence
    assert one_sentence(refused.sentence)
