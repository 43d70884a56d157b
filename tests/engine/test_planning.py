"""What a clip will take, against what it takes, and the choice of a plan."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from make_checkpoint import SIZES, layout

from lean_video.checkpoints.open import svd_parts
from lean_video.checkpoints.published import published_parts
from lean_video.errors import LeanVideoError
from lean_video.lean.pieces import Pieces
from lean_video.lean.transfer import Transfer, Weights
from lean_video.lean.unet import UNetPlan, sampling_plans, step_weights
from lean_video.lean.vae import DecodePlan, decode, decode_plans
from lean_video.models import planning, render, svd
from lean_video.models.planning import MIB, Budget, Plan, plan_clip
from lean_video.models.svd import Conditioning, SVDModel
from lean_video.vram.device import device_profile
from lean_video.vram.store import Store
from tests.engine.conftest import CPU, WriteHeader
from tests.engine.peaks import device_peak

GIB = 1024 * MIB
GPU = torch.device("cuda")


def test_published_networks_are_those_of_a_published_file(write_header: WriteHeader) -> None:
    _, parts = svd_parts(write_header(layout(SIZES["full"]), "svd_xt.safetensors", "F16"))
    ours = published_parts()
    assert ours.keys() == parts.keys()
    for name, part in parts.items():
        assert dict(ours[name].config) == dict(part.config)
        assert ours[name].kind == part.kind


@pytest.mark.parametrize(
    ("frames", "width", "height", "small", "resident", "decoded"),
    [(24, 512, 512, 0.4, 3.0, 0.4), (48, 512, 512, 0.6, 3.3, None), (25, 1024, 576, 0.7, 3.4, 0.6)],
)
def test_full_size_clips_fit_where_they_should(frames: int, width: int, height: int, small: float, resident: float, decoded: float | None) -> None:
    """In GiB, fp16, weights and everything included."""
    clip = planning.Clip(published_parts(), "fp16", frames, width, height)
    assert clip.sample(sampling_plans(GPU)[-1])[0] <= small * GIB
    assert clip.sample(UNetPlan(Pieces(2**22)))[0] <= resident * GIB
    if decoded is not None:
        assert clip.decode(decode_plans(GPU)[-1])[0] <= decoded * GIB


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("parked", [True, False])
@pytest.mark.parametrize(("frames", "elements", "together"), [(5, 2**15, True), (4, 2**16, False), (3, 2**20, True)])
def test_what_is_predicted_of_sampling_is_what_is_held(streamed: bool, parked: bool, frames: int, elements: int, together: bool, small: SVDModel) -> None:
    width, height = 192, 128
    plan = UNetPlan(Pieces(elements), streamed, together, parked)
    predicted, _ = planning.Clip(small.parts, "fp32", frames, width, height).sample(plan)
    embedding, concat = torch.randn(1, 1, 64), torch.randn(1, 4, height // 8, width // 8)
    conditioning = Conditioning(embedding, concat, fps=6, motion_bucket=127, augmentation=0.02)
    unet = small.unet

    def run(transfer: Any) -> None:
        x = torch.randn(frames, 4, height // 8, width // 8)
        estimates = svd.estimator(unet, [conditioning, conditioning], frames, transfer, plan)
        for sigma in (30.0, 1.0):
            estimates(x, sigma)

    assert device_peak(run, "cpu") == pytest.approx(predicted, rel=0.05)


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("parked", [True, False])
@pytest.mark.parametrize(("frames", "elements"), [(5, 2**16), (3, 2**20)])
def test_what_is_predicted_of_decoding_is_what_is_held(streamed: bool, parked: bool, frames: int, elements: int, small: SVDModel) -> None:
    width, height = 192, 128
    plan = DecodePlan(Pieces(elements), streamed, parked, Pieces(elements) if parked else None)
    predicted, _ = planning.Clip(small.parts, "fp32", frames, width, height).decode(plan)
    vae = small.vae
    latents, out = torch.randn(frames, 4, height // 8, width // 8), torch.empty(frames, height, width, 3)
    measured = device_peak(lambda transfer: decode(vae, latents, out_THW3=out, transfer=transfer, plan=plan), "cpu")
    assert measured == pytest.approx(predicted, rel=0.05)


def test_what_is_predicted_of_encoding_is_what_is_held(small: SVDModel) -> None:
    predicted = planning.Clip(small.parts, "fp32", 4, 192, 128).encode_peak()
    image = torch.rand(100, 150, 3)
    measured = device_peak(lambda transfer: render.condition(small, image, 192, 128, device=CPU, transfer=transfer), "cpu")
    assert measured == pytest.approx(predicted, rel=0.05)


def test_a_plan_keeps_its_budget_and_is_no_slower_than_it_must_be(small: SVDModel) -> None:
    store = Store()

    def plan(budget: Budget) -> Plan:
        return plan_clip(small.parts, "fp32", frames=4, width=256, height=192, budget=budget, store=store)

    unlimited, smallest = plan("max"), plan("min")
    assert (unlimited.sample, unlimited.decode) == (sampling_plans(GPU)[0], decode_plans(GPU)[0])
    assert not unlimited.encode_on_host
    assert (smallest.sample, smallest.decode) == (sampling_plans(GPU)[-1], decode_plans(GPU)[-1])
    assert smallest.encode_on_host
    for phase, peak in smallest.peak.items():
        assert peak < unlimited.peak[phase]
    clip = planning.Clip(small.parts, "fp32", 4, 256, 192, store)
    least = max(smallest.peak.values())
    for budget in (least, 1.1 * least, 1.5 * least, 2.0 * least, 1.01 * max(unlimited.peak.values())):
        chosen = plan(budget)
        assert max(chosen.peak.values()) <= budget
        # Everything that is faster is too large.
        assert all(clip.sample(faster)[0] > budget for faster in sampling_plans(GPU)[: sampling_plans(GPU).index(chosen.sample)])
        assert all(clip.decode(faster)[0] > budget for faster in decode_plans(GPU)[: decode_plans(GPU).index(chosen.decode)])
    assert [line.split()[0] for line in smallest.describe()] == ["encode", "sample", "decode", "step"]


def test_each_plan_takes_less_than_the_one_before_it() -> None:
    """The choice relies on it."""
    for size in ((24, 512, 512), (4, 1024, 576)):
        clip = planning.Clip(published_parts(), "fp16", *size)
        assert all(clip._least_of_sampling(plan) < clip.sample(plan)[0] for plan in sampling_plans(GPU))
        assert all(clip._least_of_decoding(plan) < clip.decode(plan)[0] for plan in decode_plans(GPU))
        for peaks in ([clip.sample(plan)[0] for plan in sampling_plans(GPU)], [clip.decode(plan)[0] for plan in decode_plans(GPU)]):
            assert peaks == sorted(peaks, reverse=True)


def test_too_small_a_budget_is_told_what_is_missing_and_what_would_fit(small: SVDModel) -> None:
    size = {"width": 256, "height": 192}
    smallest = plan_clip(small.parts, "fp32", frames=16, **size, budget="min")
    budget = 0.7 * max(smallest.peak.values())
    with pytest.raises(LeanVideoError) as refused:
        plan_clip(small.parts, "fp32", frames=16, **size, budget=budget)
    found = re.search(r"takes at least (\d+) MiB, (\d+) MiB more than the budget of (\d+) MiB: (\d+) frames of this size or 16 frames of (\d+)x(\d+) would fit", str(refused.value))
    assert found is not None, refused.value
    frames, width, height = map(int, found.groups()[3:])
    plan_clip(small.parts, "fp32", frames=frames, **size, budget=budget)
    plan_clip(small.parts, "fp32", frames=16, width=width, height=height, budget=budget)
    with pytest.raises(LeanVideoError):
        plan_clip(small.parts, "fp32", frames=frames + 1, **size, budget=budget)
    with pytest.raises(LeanVideoError, match="nothing of this length or of this size fits"):
        plan_clip(small.parts, "fp32", frames=16, **size, budget=1000)


@pytest.mark.parametrize("budget", [-1.0, float("nan"), -math.inf])
def test_a_budget_that_is_none_is_refused(budget: float, small: SVDModel) -> None:
    with pytest.raises(LeanVideoError, match="cannot be kept"):
        plan_clip(small.parts, "fp32", frames=4, width=64, height=64, budget=budget)


def test_a_plan_is_for_one_network_and_one_clip(small: SVDModel) -> None:
    plan = plan_clip(small.parts, "fp32", frames=4, width=128, height=64)
    plan.check(small, 4, 128, 64)
    for frames, width, height in ((5, 128, 64), (4, 64, 128)):
        with pytest.raises(LeanVideoError, match=f"made for 4 frames of 128x64 in fp32, this clip has {frames} frames of {width}x{height}"):
            plan.check(small, frames, width, height)
    other = SVDModel(small.path, small.version, small.layout, small.precision, published_parts())
    with pytest.raises(LeanVideoError, match="another model"):
        plan.check(other, 4, 128, 64)


def test_what_a_step_needs_on_the_device_is_what_it_fetches(small: SVDModel) -> None:
    weights = Weights(Transfer(CPU), resident=True)
    conditioning = Conditioning(torch.randn(1, 1, 64), torch.randn(1, 4, 8, 8), fps=6, motion_bucket=127, augmentation=0.02)
    svd.estimator(small.unet, [conditioning], 2, Transfer(CPU), weights=weights)(torch.randn(2, 4, 8, 8), 1.0)
    assert weights.held_bytes == sum(tensor.nbytes for tensor in step_weights(small.unet))


def test_the_work_of_a_step_is_that_of_the_published_network() -> None:
    """30.4 TFLOP of the stock forward, less the 4.2 % that are folded; twice, for guidance."""
    assert planning.Clip(published_parts(), "fp16", 24, 512, 512).work() == pytest.approx(2 * 30.4e12 * (1 - 0.042), rel=0.005)


def test_a_streamed_step_moves_the_weights_once_or_twice(small: SVDModel) -> None:
    clip = planning.Clip(small.parts, "fp32", 2, 64, 64)
    weights = sum(tensor.nbytes for tensor in step_weights(small.unet))
    pieces = Pieces(2**20)
    assert clip.sample(UNetPlan(pieces))[1] == 0
    together, in_turn = (clip.sample(UNetPlan(pieces, streamed=True, together=together))[1] for together in (True, False))
    assert together == pytest.approx(weights, rel=0.05)
    assert in_turn == pytest.approx(2 * weights, rel=0.05)
    assert clip.sample(UNetPlan(pieces, parked=True))[1] > 0


# Measurements that are kept


def test_what_was_planned_once_is_not_traced_again(small: SVDModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size: Any = {"frames": 4, "width": 128, "height": 64, "budget": "min"}
    path = tmp_path / "cache" / "planned.json"
    first = plan_clip(small.parts, "fp32", **size, store=Store(path))
    monkeypatch.setattr(planning, "_peak", lambda run: pytest.fail("traced again"))
    assert plan_clip(small.parts, "fp32", **size, store=Store(path)) == first
    assert [file.name for file in path.parent.iterdir()] == ["planned.json"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": "b"}', "\x00"])
def test_a_spoilt_store_costs_time_only(text: str, tmp_path: Path) -> None:
    path = tmp_path / "planned.json"
    path.write_text(text, encoding="utf-8")
    store = Store(path)
    assert list(store.get("a", lambda: [1, 2.5])) == [1, 2.5]
    assert list(Store(path).get("a", lambda: pytest.fail("measured again"))) == [1, 2.5]


def test_a_store_that_cannot_be_written_lives_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "planned.json")
    assert list(store.get("a", lambda: [1])) == [1]
    assert list(store.get("a", lambda: pytest.fail("measured again"))) == [1]


def test_a_device_is_measured_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "planned.json")
    profile = device_profile(CPU, torch.float32, store)
    assert profile.workspace == 0
    assert profile.flops > 1e8
    assert device_profile(CPU, torch.float32, store) == profile
