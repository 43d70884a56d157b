"""What a clip will take, against what it takes, and the choice of a plan."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from make_checkpoint import SIZES, layout

from lean_video.checkpoints.open import svd_parts
from lean_video.checkpoints.published import published_parts
from lean_video.errors import LeanVideoError
from lean_video.lean.pieces import Pieces
from lean_video.lean.unet import UNetPlan
from lean_video.lean.vae import DecodePlan, decode
from lean_video.models import planning, svd
from lean_video.models.planning import MIB, SMALLEST, plan_clip
from lean_video.models.svd import Conditioning, SVDModel
from tests.engine.conftest import WriteHeader
from tests.engine.peaks import device_peak

GIB = 1024 * MIB
RESIDENT, SMALL = UNetPlan(Pieces(2**22)), UNetPlan(Pieces(2**20), streamed=True, parked=True)
SMALL_DECODE = DecodePlan(Pieces(2**22), streamed=True, parked=True, strips=Pieces(2**22))


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
    clip = planning.Clip(published_parts(), torch.float16, frames, width, height)
    assert clip.sample_peak(SMALL) <= small * GIB
    assert clip.sample_peak(RESIDENT) <= resident * GIB
    if decoded is not None:
        assert clip.decode_peak(SMALL_DECODE) <= decoded * GIB


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("parked", [True, False])
@pytest.mark.parametrize(("frames", "elements", "together"), [(5, 2**15, True), (4, 2**16, False), (3, 2**20, True)])
def test_what_is_predicted_of_sampling_is_what_is_held(streamed: bool, parked: bool, frames: int, elements: int, together: bool, small: SVDModel) -> None:
    width, height = 192, 128
    plan = UNetPlan(Pieces(elements), streamed, together, parked)
    predicted = planning.Clip(small.parts, torch.float32, frames, width, height).sample_peak(plan)
    embedding, concat = torch.randn(1, 1, 64), torch.randn(1, 4, height // 8, width // 8)
    conditioning = Conditioning(embedding, concat, fps=6, motion_bucket=127, augmentation=0.02)
    unet = small.unet

    def run(transfer: Any) -> None:
        x, *others = [torch.randn(frames, 4, height // 8, width // 8) for _ in range(4)]
        estimates = svd.estimator(unet, [conditioning, conditioning], frames, transfer, plan)
        for sigma in (30.0, 1.0):
            estimates(x, sigma)
        del others

    assert device_peak(run, "cpu") == pytest.approx(predicted, rel=0.05)


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("parked", [True, False])
@pytest.mark.parametrize(("frames", "elements"), [(5, 2**16), (3, 2**20)])
def test_what_is_predicted_of_decoding_is_what_is_held(streamed: bool, parked: bool, frames: int, elements: int, small: SVDModel) -> None:
    width, height = 192, 128
    plan = DecodePlan(Pieces(elements), streamed, parked, Pieces(elements) if parked else None)
    predicted = planning.Clip(small.parts, torch.float32, frames, width, height).decode_peak(plan)
    vae = small.vae
    latents, out = torch.randn(frames, 4, height // 8, width // 8), torch.empty(frames, height, width, 3)
    measured = device_peak(lambda transfer: decode(vae, latents, out_THW3=out, transfer=transfer, plan=plan), "cpu")
    assert measured == pytest.approx(predicted, rel=0.05)


def test_a_plan_keeps_its_budget_and_is_no_slower_than_it_must_be(small: SVDModel) -> None:
    size: Any = {"frames": 4, "width": 256, "height": 192}
    unlimited, smallest = plan_clip(small.parts, "fp32", **size), plan_clip(small.parts, "fp32", **size, budget=SMALLEST)
    assert not unlimited.sample.streamed
    assert not unlimited.encode_on_host
    assert smallest.sample.streamed
    assert smallest.encode_on_host
    for phase, peak in smallest.peak.items():
        assert peak < unlimited.peak[phase]
    least = max(smallest.peak.values())
    between = plan_clip(small.parts, "fp32", **size, budget=1.2 * least)
    assert max(between.peak.values()) <= 1.2 * least
    with pytest.raises(LeanVideoError, match=r"takes at least .* MiB more than the budget"):
        plan_clip(small.parts, "fp32", **size, budget=0.9 * least)
    lines = between.describe()
    assert [line.split()[0] for line in lines] == ["encode", "sample", "decode"]


@pytest.mark.parametrize("budget", [-1.0, float("nan")])
def test_a_budget_that_is_none_is_refused(budget: float, small: SVDModel) -> None:
    with pytest.raises(LeanVideoError, match="cannot be kept"):
        plan_clip(small.parts, "fp32", frames=4, width=64, height=64, budget=budget)
