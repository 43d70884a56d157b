"""The demo model: found by its name, small enough for a repository, and quality that random weights cannot show.

The photograph, which ships with the workflows, was held out of the training. `bench/demo_model.py` measures on more.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from lean_video.checkpoints import demo, inspect, open_svd
from lean_video.cli import main
from lean_video.media.resize import fit
from lean_video.models.render import condition, decode_clip, encode_clip, sample_clip
from lean_video.models.svd import SVDModel
from tests.engine.conftest import CPU

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "workflows" / "input" / "photo.jpg"
WIDTH, HEIGHT = demo.SIZES[0]


@pytest.fixture(scope="module")
def svd() -> SVDModel:
    return open_svd(demo.FILE)


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """[128,192,3] in 0..1"""
    pixels = torch.from_numpy(np.array(Image.open(PHOTO).convert("RGB"))).float() / 255
    return fit(pixels.permute(2, 0, 1)[None], WIDTH, HEIGHT, "crop")[0].permute(1, 2, 0)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    monkeypatch.syspath_prepend(str(ROOT / "training"))
    return importlib.import_module("data")


@pytest.fixture(scope="module")
def clip_at(svd: SVDModel, photo: Tensor) -> Any:
    """Frames [14,128,192,3] in 0..1 for a motion bucket, each made once."""

    @functools.cache
    def make(bucket: int) -> Tensor:
        conditioning = condition(svd, photo, WIDTH, HEIGHT, device=CPU, motion_bucket=bucket)
        latents = sample_clip(svd, conditioning, frames=demo.FRAMES, steps=demo.STEPS, solver=demo.SOLVER, schedule=demo.SCHEDULE, guidance=demo.GUIDANCE, device=CPU)
        return decode_clip(svd, latents, device=CPU)

    return make


def decibels(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(float((a - b).square().mean()))


def eight_bits(frames: Tensor) -> np.ndarray:
    return (frames * 255).round().to(torch.uint8).numpy()


# The name


def test_inspect_knows_it_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "demo", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["version"], report["precision"], report["problems"]) == ("demo", "fp16", [])


def test_a_path_is_never_taken_for_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "./demo"]) == 2
    assert "There is no file" in capsys.readouterr().err


def test_render_makes_a_clip_of_the_size_it_was_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "demo", str(PHOTO), str(tmp_path / "clip.mp4"), "--steps", "1", "--device", "cpu"]) == 0
    assert "trained on" not in capsys.readouterr().err
    with av.open(tmp_path / "clip.mp4") as container:
        frames = list(container.decode(video=0))
    assert len(frames) == demo.FRAMES
    assert (frames[0].width, frames[0].height) == (WIDTH, HEIGHT)


def test_a_size_that_it_does_not_know_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "demo", str(PHOTO), str(tmp_path / "clip.mp4"), "--steps", "1", "--frames", "1", "--width", "320", "--height", "320", "--device", "cpu"]) == 0
    assert "trained on 192x128 or 128x128: 320x320 will look poor" in capsys.readouterr().err
    assert demo.unlikely(192, 144) == ""


def test_render_samples_as_suits_it(tmp_path: Path) -> None:
    def latents(name: str, *options: str) -> Tensor:
        short = ["--frames", "3", "--width", "64", "--height", "64", "--device", "cpu", "--save-latents", str(tmp_path / f"{name}.safetensors")]
        assert main(["render", "demo", str(PHOTO), str(tmp_path / f"{name}.mp4"), *short, *options]) == 0
        return load_file(tmp_path / f"{name}.safetensors")["samples"]

    asked = [
        "--guidance",
        *(str(scale) for scale in demo.GUIDANCE),
        "--schedule",
        demo.SCHEDULE,
        "--steps",
        str(demo.STEPS),
        "--solver",
        demo.SOLVER,
        "--motion-bucket",
        str(demo.MOTION_BUCKET),
    ]
    ours = latents("not-asked")
    torch.testing.assert_close(ours, latents("asked", *asked), rtol=0, atol=0)
    assert not torch.equal(ours, latents("usual-guidance", "--guidance", "1", "3"))
    assert not torch.equal(ours, latents("usual-schedule", "--schedule", "karras"))
    assert not torch.equal(ours, latents("more-steps", "--steps", str(demo.STEPS + 1)))
    assert not torch.equal(ours, latents("another-solver", "--solver", "lcm"))
    assert not torch.equal(ours, latents("usual-motion", "--motion-bucket", "127"))


def test_the_workflow_and_the_demo_run_it_at_what_suits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    small = importlib.import_module("demo").SMALL
    prompt = json.loads((ROOT / "workflows" / "api" / "demo.json").read_text(encoding="utf-8"))
    shipped = {name: value for node in prompt.values() for name, value in node["inputs"].items()}
    guidance = {"guidance_min": demo.GUIDANCE[0], "guidance_max": demo.GUIDANCE[1]}
    suited = {
        "checkpoint": demo.NAME,
        "frames": demo.FRAMES,
        "motion_bucket": demo.MOTION_BUCKET,
        "steps": demo.STEPS,
        "solver": demo.SOLVER,
        "schedule": demo.SCHEDULE,
        **guidance,
    }
    assert small == suited | {"width": WIDTH, "height": HEIGHT}
    assert shipped | small == shipped


def test_plan_is_for_its_own_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "demo", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert (plan["frames"], plan["width"], plan["height"]) == (demo.FRAMES, WIDTH, HEIGHT)


def test_the_loader_lists_it_and_needs_no_file_in_comfyuis_folders(nodes: dict[str, Any]) -> None:
    loader = nodes["LeanVideoSVDLoader"]
    choices = loader.INPUT_TYPES()["required"]["checkpoint"][0]
    assert choices[0] == "demo", "without files of the user's own it is what the node has to begin with"
    assert loader.VALIDATE_INPUTS(checkpoint="demo") is True


# The file


def test_it_is_at_most_24_megabytes_and_whole() -> None:
    assert demo.FILE.stat().st_size <= 24e6
    report = inspect(demo.FILE)
    assert report.problems == ()
    assert report.parameters.keys() == {"unet", "vae", "image_encoder"}


def test_its_card_names_everything_it_was_trained_on(data: Any) -> None:
    card = demo.FILE.with_name("README.md").read_text(encoding="utf-8")
    sources = data.sources
    for picture in sources.PICTURES:
        assert picture.file.rpartition(".")[0] in card
        assert picture.licence.partition(",")[0] in card
    assert "Big Buck Bunny" in card
    assert "city" in card


# Quality


def test_frames_come_back_from_the_vae(svd: SVDModel) -> None:
    """The photograph as a whole, and its quarters: 24 dB in the mean."""
    whole = torch.from_numpy(np.array(Image.open(PHOTO).convert("RGB"))).float().permute(2, 0, 1)[None] / 255
    half = whole.shape[-2] // 2
    parts = [whole] + [whole[..., y : y + half, x : x + half] for y in (0, half) for x in (0, whole.shape[-1] - half)]
    frames = torch.stack([fit(part, 128, 128, "crop")[0].permute(1, 2, 0) for part in parts])
    found = [decibels(decode_clip(svd, encode_clip(svd, frame[None], device=CPU), device=CPU)[0], frame) for frame in frames]
    assert sum(found) / len(found) > 24


def test_a_clip_begins_with_the_photograph(clip_at: Any, photo: Tensor) -> None:
    assert decibels(clip_at(127)[0], photo) > 22


def test_a_motion_bucket_moves_as_much_as_it_says(clip_at: Any, data: Any) -> None:
    flows = {bucket: float(data.flow_lengths(eight_bits(clip_at(bucket))).mean()) for bucket in (20, 60, 127, 200)}
    assert list(flows.values()) == sorted(flows.values())
    assert flows == {bucket: pytest.approx(data.flow_of(bucket, 6, HEIGHT), rel=0.3) for bucket in flows}


def test_a_clip_does_not_fade_or_fill_with_noise(clip_at: Any, photo: Tensor, data: Any) -> None:
    of_the_photo = data.sharpness(eight_bits(photo))
    for frame in eight_bits(clip_at(127)):
        assert 0.65 < data.sharpness(frame) / of_the_photo < 1.35


@pytest.fixture(scope="module")
def latents_of(svd: SVDModel, photo: Tensor) -> Any:
    """Latents by number of steps, solver, schedule and guidance, each made once."""
    conditioning = condition(svd, photo, WIDTH, HEIGHT, device=CPU)

    @functools.cache
    def make(steps: int, solver: str, schedule: str, guidance: tuple[float, float]) -> Tensor:
        return sample_clip(svd, conditioning, frames=demo.FRAMES, steps=steps, solver=solver, schedule=schedule, guidance=guidance, device=CPU)

    return make


GUIDED, UNGUIDED = demo.GUIDANCE, (1.0, 1.0)


@pytest.mark.parametrize(
    ("schedule", "guidance"),
    [
        ("karras", UNGUIDED),
        ("exponential", GUIDED),
        (demo.SCHEDULE, GUIDED),
        pytest.param("karras", GUIDED, marks=pytest.mark.xfail(strict=True, reason="With guidance and Karras' schedule Euler is nearer: see bench/demo_model.md.")),
    ],
)
def test_dpm_solver_gets_nearer_than_euler_in_twelve_steps(latents_of: Any, schedule: str, guidance: tuple[float, float]) -> None:
    best = latents_of(100, "euler", "karras", guidance)  # of fewer steps it would have enough of Euler's own error to favour Euler
    distance = {solver: float((latents_of(12, solver, schedule, guidance) - best).norm() / best.norm()) for solver in ("euler", "dpmpp_2m")}
    assert distance["dpmpp_2m"] < distance["euler"]
