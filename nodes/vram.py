"""Memory: what a clip will take, and the plan that fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ..lean_video.errors import LeanVideoError
from ..lean_video.lean.unet import UNetPlan
from ..lean_video.lean.vae import DecodePlan
from ..lean_video.models import planning, svd
from ..lean_video.models.planning import MIB, Budget, Clip, Fit, Plan
from ..lean_video.vram.chart import chart
from ..lean_video.vram.device import DeviceProfile, device_profile
from ..lean_video.vram.store import Store
from . import host
from .inputs import check_connected

CATEGORY = "Lean Video"
PLAN = "SVD_PLAN"
BUDGET_INPUT = (
    "INT",
    {
        "default": 0,
        "min": 0,
        "max": 2**20,
        "step": 64,
        "tooltip": "Device memory to stay within, in MiB, weights and everything included. 0 is what is free when the node runs. The frames are the same whatever it is.",
    },
)
PLAN_INPUT = (PLAN, {"tooltip": "From a VRAM Plan for this model and size; budget_mib is not used then."})

Candidate = TypeVar("Candidate", UNetPlan, DecodePlan)


def sampling_plan(model: svd.SVDModel, frames: int, width: int, height: int, budget_mib: int, plan: object) -> UNetPlan | None:
    """The plan to sample under, with room made for it; None on a CPU that was given no budget. Raises LeanVideoError when none fits."""
    if plan is not None:
        return _given(plan, model, frames, width, height, "sample").sample
    return _chosen(model, frames, width, height, budget_mib, lambda clip, budget: clip.fit_sampling(host.device(), budget))


def decode_plan(model: svd.SVDModel, frames: int, width: int, height: int, budget_mib: int, plan: object) -> DecodePlan | None:
    """The same for decoding."""
    if plan is not None:
        return _given(plan, model, frames, width, height, "decode").decode
    return _chosen(model, frames, width, height, budget_mib, lambda clip, budget: clip.fit_decoding(host.device(), budget))


def encode_on_host(model: svd.SVDModel, width: int, height: int, plan: object) -> bool:
    """Whether images are to be encoded on the host, since the device has no room for it; room is made where it has."""
    if plan is not None:
        check_connected(plan=(plan, Plan, "a VRAM Plan"))
        assert isinstance(plan, Plan)
        plan.check(model, plan.shape.frames, width, height)
        host.make_room(plan.peak["encode"])
        return plan.encode_on_host
    if host.device().type == "cpu":
        return False
    store, profile = _known(model)
    peak = Clip(model.parts, model.precision, 1, width, height, store, profile.workspace).encode_peak()
    host.make_room(peak)
    free = host.free_bytes()
    return free is not None and peak > free


def _given(plan: object, model: svd.SVDModel, frames: int, width: int, height: int, phase: str) -> Plan:
    check_connected(plan=(plan, Plan, "a VRAM Plan"))
    assert isinstance(plan, Plan)
    plan.check(model, frames, width, height)
    host.make_room(plan.peak[phase])
    return plan


def _chosen(model: svd.SVDModel, frames: int, width: int, height: int, budget_mib: int, fit: Callable[[Clip, Budget], Fit[Candidate]]) -> Candidate | None:
    _check_budget(budget_mib)
    if budget_mib == 0 and host.device().type == "cpu":
        return None
    svd.check_clip(frames, width, height)
    store, profile = _known(model)
    clip = Clip(model.parts, model.precision, frames, width, height, store, profile.workspace)
    chosen = fit(clip, budget_mib * MIB or _free(lambda: fit(clip, "max").peak))
    host.make_room(chosen.peak)
    return chosen.plan


def _known(model: svd.SVDModel) -> tuple[Store, DeviceProfile]:
    store = Store(host.user_folder() / "planning.json")
    return store, device_profile(host.device(), model.dtype, store)


def _free(wanted: Callable[[], int]) -> Budget:
    """What is free on the device once other models have made room for what is wanted; "max" where that is not limited."""
    if host.free_bytes() is None:
        return "max"
    host.make_room(wanted())
    return max(1, host.free_bytes() or 0)


def _check_budget(budget_mib: int) -> None:
    if budget_mib < 0:
        raise LeanVideoError(f"A budget of {budget_mib} MiB cannot be kept: give 0 for what is free, or more.")


class VRAMPlan:
    DESCRIPTION = (
        "What a clip will take before it is made: the most device memory in each phase, weights and everything included, and the fastest way that stays within the budget. "
        "Nothing is loaded for it. Connect the plan to the nodes that make the clip, or just read it."
    )
    CATEGORY = CATEGORY
    FUNCTION = "run"
    RETURN_TYPES = (PLAN, "STRING", "IMAGE")
    RETURN_NAMES = ("plan", "report", "chart")
    OUTPUT_TOOLTIPS = ("For SVD Conditioning, the Temporal Sampler and Temporal Decode.", "The plan in words.", "A bar for each phase, against the card and the budget.")
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        size = {"min": 64, "max": svd.MAX_SIDE, "step": 8}
        return {
            "required": {
                "model": ("SVD_MODEL", {"tooltip": "From the SVD Loader."}),
                "width": ("INT", {"default": 1024, **size, "tooltip": "Width of the clip, as at SVD Conditioning."}),
                "height": ("INT", {"default": 576, **size, "tooltip": "Height of the clip, as at SVD Conditioning."}),
                "frames": ("INT", {"default": 25, "min": 1, "max": svd.MAX_FRAMES, "tooltip": "Length of the clip, as at the Temporal Sampler."}),
                "budget_mib": BUDGET_INPUT,
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, frames: int | None = None, budget_mib: int | None = None) -> bool | str:
        try:
            if frames is not None:
                svd.check_frames(frames)
            if budget_mib is not None:
                _check_budget(budget_mib)
        except LeanVideoError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, budget_mib: int, **inputs: object) -> object:
        """What is free is another number at every run."""
        return float("nan") if budget_mib == 0 and host.free_bytes() is not None else budget_mib

    def run(self, model: svd.SVDModel, width: int, height: int, frames: int, budget_mib: int) -> dict[str, Any]:
        check_connected(model=(model, svd.SVDModel, "an SVD Loader"))
        _check_budget(budget_mib)
        svd.check_clip(frames, width, height)
        size = svd.round_size(model, width, height)
        device = host.device()
        store, profile = _known(model)

        def plan_within(budget: Budget) -> Plan:
            shape = {"frames": frames, "width": size[0], "height": size[1]}
            return planning.plan_clip(model.parts, model.precision, **shape, budget=budget, device=device, store=store, profile=profile)

        budget = budget_mib * MIB or _free(lambda: max(plan_within("max").peak.values()))
        plan = plan_within(budget)
        limit = None if budget == "max" else int(budget)
        name, card = host.card()
        lines = [f"{plan.shape} on {name}", *plan.describe()]
        if limit is not None:
            lines.append(f"{'budget' if budget_mib else 'free':<7} {limit / MIB:6.0f} MiB")
        picture = torch.from_numpy(chart(str(plan.shape), plan.peak, limit=limit, card=card, card_name=name))
        report = "\n".join(lines)
        return {"ui": {"text": lines}, "result": (plan, report, picture)}


NODE_CLASS_MAPPINGS = {"LeanVideoVRAMPlan": VRAMPlan}
NODE_DISPLAY_NAME_MAPPINGS = {"LeanVideoVRAMPlan": "VRAM Plan"}
