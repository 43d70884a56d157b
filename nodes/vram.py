"""Memory: what a clip will take, and the plan that fits."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ..lean_video.errors import LeanVideoError
from ..lean_video.lean.transfer import Transfer, Weights, transfer_to
from ..lean_video.lean.unet import UNetPlan, step_weights
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


@dataclass(frozen=True)
class Sampling:
    """How to sample: the plan, and the weights that stay on the device after the run, if they do."""

    plan: UNetPlan | None
    kept: host.Kept | None

    @property
    def weights(self) -> Weights | None:
        return None if self.kept is None else self.kept.weights

    @property
    def transfer(self) -> Transfer | None:
        return None if self.kept is None else self.kept.weights.transfer


@contextmanager
def sampling(model: svd.SVDModel, frames: int, width: int, height: int, budget_mib: int, plan: object) -> Generator[Sampling]:
    """How to sample, with room made for it; on a CPU that was given no budget, there is nothing to plan. Raises LeanVideoError when no plan fits."""
    kept: host.Kept | None = model.kept.get("unet")
    if plan is not None:
        given = _given(plan, model, frames, width, height)
        chosen = Fit(given.sample, given.peak["sample"], 0)
    else:
        chosen = _chosen(model, frames, width, height, budget_mib, lambda clip, budget: clip.fit_sampling(host.device(), budget), kept)
    if chosen is None:
        yield Sampling(None, None)
        return
    host.planned(chosen.peak)
    if chosen.plan.streamed or not host.weights_may_stay():
        kept = None
        model.kept.pop("unet", None)
        host.make_room(chosen.peak)
        yield Sampling(chosen.plan, None)
        return
    size = sum(tensor.nbytes for tensor in step_weights(model.unet))
    if kept is None:
        kept = model.kept["unet"] = host.Kept(Weights(transfer_to(host.device()), resident=True), size)
    kept.load(beside=chosen.peak - size)
    yield Sampling(chosen.plan, kept)


def decode_plan(model: svd.SVDModel, frames: int, width: int, height: int, budget_mib: int, plan: object) -> DecodePlan | None:
    """The plan to decode under, with room made for it; None on a CPU that was given no budget. Raises LeanVideoError when none fits."""
    if plan is not None:
        given = _given(plan, model, frames, width, height)
        host.planned(given.peak["decode"])
        host.make_room(given.peak["decode"])
        return given.decode
    chosen = _chosen(model, frames, width, height, budget_mib, lambda clip, budget: clip.fit_decoding(host.device(), budget))
    if chosen is None:
        return None
    host.planned(chosen.peak)
    host.make_room(chosen.peak)
    return chosen.plan


def encode_on_host(model: svd.SVDModel, width: int, height: int, plan: object) -> bool:
    """Whether images are to be encoded on the host, since the device has no room for it; room is made where it has."""
    if plan is not None:
        check_connected(plan=(plan, Plan, "a VRAM Plan"))
        assert isinstance(plan, Plan)
        plan.check(model, plan.shape.frames, width, height)
        host.planned(plan.peak["encode"])
        host.make_room(plan.peak["encode"])
        return plan.encode_on_host
    if host.device().type == "cpu":
        return False
    store, profile = _known(model)
    peak = Clip(model.parts, model.precision, 1, width, height, store, profile.workspace).encode_peak()
    host.planned(peak)
    host.make_room(peak)
    free = host.free_bytes()
    return free is not None and peak > free


def _given(plan: object, model: svd.SVDModel, frames: int, width: int, height: int) -> Plan:
    check_connected(plan=(plan, Plan, "a VRAM Plan"))
    assert isinstance(plan, Plan)
    plan.check(model, frames, width, height)
    return plan


def _chosen(
    model: svd.SVDModel, frames: int, width: int, height: int, budget_mib: int, fit: Callable[[Clip, Budget], Fit[Candidate]], kept: host.Kept | None = None
) -> Fit[Candidate] | None:
    """`kept` are weights of the phase that may lie on the device already."""
    _check_budget(budget_mib)
    if budget_mib == 0 and host.device().type == "cpu":
        return None
    svd.check_clip(frames, width, height)
    store, profile = _known(model)
    clip = Clip(model.parts, model.precision, frames, width, height, store, profile.workspace)
    return fit(clip, budget_mib * MIB or _free(lambda: fit(clip, "max").peak, kept))


def _known(model: svd.SVDModel) -> tuple[Store, DeviceProfile]:
    store = Store(host.user_folder() / "planning.json")
    return store, device_profile(host.device(), model.dtype, store)


def _free(wanted: Callable[[], int], kept: host.Kept | None = None) -> Budget:
    """What a run may take of the device, what it has kept there included, once other models have made room for what is wanted; "max" where that is not limited."""
    free = host.free_bytes()
    if free is None:
        return "max"
    held = 0 if kept is None else kept.weights.held_bytes
    if free + held < (size := wanted()):
        host.make_room(size - held, keep=kept)
        free = host.free_bytes() or 0
    return max(1, free + held)


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
