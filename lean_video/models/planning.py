"""What a clip will take, and the fastest way to make it within a budget.

The very functions that make a clip are run on the meta device, where tensors have shapes and no contents, while live bytes are counted.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from ..errors import LeanVideoError
from ..lean.pieces import Pieces
from ..lean.unet import UNetPlan, sampling_plans, step_weights
from ..lean.vae import DecodePlan, decode_plans
from ..vram.store import Store
from . import svd

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..lean.transfer import Transfer, Weights
    from ..vram.device import DeviceProfile
    from .parts import Part

MIB = 2**20

Budget = float | Literal["min", "max"]
"""Bytes; "max" for the fastest plan, "min" for the smallest; 0 for what is free on the device now."""

Candidate = TypeVar("Candidate", UNetPlan, DecodePlan)


@dataclass(frozen=True)
class Shape:
    """What a plan is for: a clip of one size by one network in one precision."""

    network: str
    precision: svd.Precision
    frames: int
    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.width}x{self.height} in {self.precision}"


@dataclass(frozen=True)
class Step:
    """A guided step of sampling.

    work     floating-point operations
    moved    bytes between host and device
    seconds  what that takes on the device that the plan is for; None when it was not measured
    """

    work: float
    moved: int
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """How a clip is made, and the most device memory, in bytes, that each phase holds: weights and everything else.

    encode_on_host  CLIP and the VAE's encoder, which see one image, run on the host: slower, and no device memory
    """

    shape: Shape
    encode_on_host: bool
    sample: UNetPlan
    decode: DecodePlan
    peak: Mapping[str, int]
    step: Step

    def check(self, model: svd.SVDModel, frames: int, width: int, height: int) -> None:
        """Raises LeanVideoError when the plan is for another network or another clip."""
        wanted = Shape(network_id(model.parts), model.precision, frames, width, height)
        if wanted.network != self.shape.network:
            raise LeanVideoError("The plan was made for another model: connect a VRAM Plan to which the same SVD Loader is connected.")
        if wanted != self.shape:
            raise LeanVideoError(f"The plan was made for {self.shape}, this clip has {wanted}: give the VRAM Plan the same numbers.")

    def describe(self) -> list[str]:
        """A line for each phase: what it trades for memory. And one for a step, where its time is known."""

        def line(phase: str, *trades: str) -> str:
            return f"{phase:<7} {self.peak[phase] / MIB:6.0f} MiB  {', '.join(trade for trade in trades if trade)}"

        lines = [
            line("encode", "on the host" if self.encode_on_host else "on the device"),
            line(
                "sample",
                "weights streamed from the host" if self.sample.streamed else "weights on the device",
                "guidance halves layer by layer" if self.sample.together else "one guidance half after the other",
                "skip connections wait on the host" if self.sample.parked else "",
            ),
            line(
                "decode",
                "weights streamed from the host" if self.decode.streamed else "weights on the device",
                "the clip waits on the host between layers" if self.decode.parked else "",
                "frames in strips" if self.decode.strips else "",
            ),
        ]
        moved = f", {self.step.moved / MIB:.0f} MiB between host and device" if self.step.moved else ""
        time = "" if self.step.seconds is None else f"about {self.step.seconds:.2g} s: "
        return [*lines, f"step    {time}{self.step.work / 1e12:.3g} TFLOP{moved}"]


def plan_clip(
    parts: Mapping[str, Part],
    precision: svd.Precision,
    *,
    frames: int,
    width: int,
    height: int,
    budget: Budget = "max",
    device: torch.device | None = None,
    store: Store | None = None,
    profile: DeviceProfile | None = None,
) -> Plan:
    """The fastest plan whose every phase stays within `budget`.

    parts    of a checkpoint, or `published_parts`; no weights are read
    device   where it will run; default, a GPU
    store    where peaks are kept: a clip that was planned once is planned at once
    profile  of the device: its workspace counts, and the time of a step is told

    Raises LeanVideoError for a negative budget, a clip that no run should be asked for, and a budget smaller than any plan, saying how much is missing and what would fit.
    """
    import torch

    from ..vram.device import free_bytes

    if not isinstance(budget, str) and (math.isnan(budget) or budget < 0):
        raise LeanVideoError(f"A budget of {budget / MIB:.0f} MiB cannot be kept: give 0 or more.")
    svd.check_clip(frames, width, height)
    device = device or torch.device("cuda")
    if budget == 0:
        free = free_bytes(device)
        budget = "max" if free is None else max(1, free)
    clip = Clip(parts, precision, frames, width, height, store or Store(), 0 if profile is None else profile.workspace)
    sample, decode = clip.fit_sampling(device, budget), clip.fit_decoding(device, budget)
    encode_peak = clip.encode_peak()
    encode_on_host = budget == "min" or (budget != "max" and encode_peak > float(budget))
    peak = {"encode": 0 if encode_on_host else encode_peak, "sample": sample.peak, "decode": decode.peak}
    work = clip.work()
    seconds = None if profile is None else max(work / profile.flops, sample.moved / profile.copied)
    return Plan(clip.shape, encode_on_host, sample.plan, decode.plan, peak, Step(work, sample.moved, seconds))


def does_not_fit(model: svd.SVDModel, frames: int, width: int, height: int, device: torch.device, store: Store | None = None) -> LeanVideoError:
    """What to tell when the smallest plan ran out of memory."""
    from ..vram.device import free_bytes

    clip = Clip(model.parts, model.precision, frames, width, height, store or Store())
    least = max(clip.sample(sampling_plans(device)[-1])[0], clip.decode(decode_plans(device)[-1])[0])
    free = free_bytes(device)
    if free is None or free >= least:
        return LeanVideoError(
            f"Memory ran out: {clip} takes at least {least / MIB:.0f} MiB on the device, and less was to be had. Close other programs, or ask for fewer frames or a smaller size."
        )
    return LeanVideoError(
        f"Memory ran out: {clip} takes at least {least / MIB:.0f} MiB, {_more(least - free)} than the {free / MIB:.0f} MiB that are free: {clip.what_fits(device, free)}."
    )


def network_id(parts: Mapping[str, Part]) -> str:
    """Tells networks apart: the same for all checkpoints of one architecture, which take the same memory."""
    return _digest({name: [part.kind, dict(part.config)] for name, part in parts.items()})


@dataclass(frozen=True)
class Fit(Generic[Candidate]):
    """A plan of one phase, bytes that it holds at most, and bytes that it moves: in a step of sampling, or in all of a decode."""

    plan: Candidate
    peak: int
    moved: int


class _TooLargeError(Exception):
    def __init__(self, least: int, budget: float) -> None:
        super().__init__()
        self.least, self.budget = least, budget


def _fastest(plans: Sequence[Candidate], cost: Callable[[Candidate], tuple[int, int]], least: Callable[[Candidate], int], budget: Budget) -> Fit[Candidate]:
    """The first plan within the budget. Each takes less than the one before it, so they are bisected.

    least: bytes that a plan cannot do without; what they rule out need not be traced.
    """
    if budget == "min":
        return Fit(plans[-1], *cost(plans[-1]))
    limit = math.inf if budget == "max" else float(budget)
    possible = [plan for plan in plans if least(plan) <= limit] or [plans[-1]]
    costs: dict[int, tuple[int, int]] = {}
    low, high, middle = 0, len(possible), 0  # the first is what most budgets are large enough for
    while low < high:
        costs[middle] = cost(possible[middle])
        low, high = (low, middle) if costs[middle][0] <= limit else (middle + 1, high)
        middle = (low + high - 1) // 2
    if low == len(possible):
        raise _TooLargeError(costs[low - 1][0], limit)
    return Fit(possible[low], *costs[low])


class Clip:
    """A clip to be made, on the meta device. What it costs is taken from `store` where it is known."""

    def __init__(self, parts: Mapping[str, Part], precision: svd.Precision, frames: int, width: int, height: int, store: Store | None = None, workspace: int = 0) -> None:
        self.shape = Shape(network_id(parts), precision, frames, width, height)
        self._parts, self._store, self._workspace = parts, store or Store(), workspace
        self._skeletons: dict[tuple[str, svd.Precision], nn.Module] = {}
        self._latents = frames, svd.LATENT_CHANNELS, height // svd.SPATIAL_FACTOR, width // svd.SPATIAL_FACTOR

    def __str__(self) -> str:
        return f"A clip of {self.shape}"

    def fit_sampling(self, device: torch.device, budget: Budget) -> Fit[UNetPlan]:
        """The fastest way to sample within a budget. Raises LeanVideoError when there is none, saying how much is missing and what would fit."""
        return self._fit(device, budget, lambda: _fastest(sampling_plans(device), self.sample, self._least_of_sampling, budget))

    def fit_decoding(self, device: torch.device, budget: Budget) -> Fit[DecodePlan]:
        """The same for decoding."""
        return self._fit(device, budget, lambda: _fastest(decode_plans(device), self.decode, self._least_of_decoding, budget))

    def _fit(self, device: torch.device, budget: Budget, choose: Callable[[], Fit[Candidate]]) -> Fit[Candidate]:
        try:
            return choose()
        except _TooLargeError as error:
            raise LeanVideoError(
                f"{self} takes at least {error.least / MIB:.0f} MiB, {_more(error.least - error.budget)} than the budget of {error.budget / MIB:.0f} MiB: {self.what_fits(device, error.budget)}."
            ) from None

    def sample(self, plan: UNetPlan) -> tuple[int, int]:
        """Bytes that sampling holds at most, and bytes that a guided step moves between host and device."""
        peak, moved = self._stored(plan, lambda: self._trace_sampling(plan))
        return int(peak) + self._workspace, int(moved)

    def decode(self, plan: DecodePlan) -> tuple[int, int]:
        """Bytes that decoding holds at most, and bytes that it moves."""
        peak, moved = self._stored(plan, lambda: self._trace_decoding(plan))
        return int(peak) + self._workspace, int(moved)

    def encode_peak(self) -> int:
        (peak,) = self._stored("encode", lambda: [self._trace_encoding()])
        return int(peak) + self._workspace

    def work(self) -> float:
        """Floating-point operations of a guided step."""
        (work,) = self._stored("work", lambda: [self._count_work()])
        return work

    def _least_of_sampling(self, plan: UNetPlan) -> int:
        """The weights, and the skip connections of the halves that go abreast."""
        return (0 if plan.streamed else self._unet_bytes) + (0 if plan.parked else self._skip_bytes * (2 if plan.together else 1))

    def _least_of_decoding(self, plan: DecodePlan) -> int:
        """The clip at full size, in the decoder's narrowest layer."""
        elements = self.shape.frames * self.shape.width * self.shape.height * int(self._parts["vae"].config["block_out_channels"][0])
        return 0 if plan.parked else elements * svd.dtype_of(self.shape.precision).itemsize

    @property
    def _skip_bytes(self) -> int:
        config, (frames, _, height, width) = self._parts["unet"].config, self._latents
        widths = config["block_out_channels"]
        levels = [[widths[0]] + [widths[0]] * config["layers_per_block"]]  # the first convolution's, then each level's: its resnets', and what halved it
        levels += [[previous] + [width] * config["layers_per_block"] for previous, width in pairwise(widths)]
        elements = sum(channels * (height >> level) * (width >> level) for level, skips in enumerate(levels) for channels in skips)
        return frames * elements * svd.dtype_of(self.shape.precision).itemsize

    @property
    def _unet_bytes(self) -> int:
        (size,) = self._stored("unet", lambda: [sum(tensor.nbytes for tensor in step_weights(self._skeleton("unet")))])
        return int(size)

    def what_fits(self, device: torch.device, budget: float) -> str:
        """Which shorter clip, and which smaller one, would keep a budget that this one does not."""
        frames, size = self.alternatives(device, budget)
        would = [f"{frames} frames of this size"] if frames else []
        would += ["{} frames of {}x{}".format(self.shape.frames, *size)] if size else []
        return f"{' or '.join(would)} would fit" if would else "nothing of this length or of this size fits"

    def alternatives(self, device: torch.device, budget: float) -> tuple[int, tuple[int, int] | None]:
        """The most frames of this size, and the largest size of about this shape for as many frames, that keep a budget which this clip does not; 0 and None where none does."""

        def peak(frames: int, width: int, height: int) -> float:
            clip = Clip(self._parts, self.shape.precision, frames, width, height, self._store, self._workspace)
            clip._skeletons = self._skeletons
            sampling = clip.sample(sampling_plans(device)[-1])[0]
            return sampling if sampling > budget else max(sampling, clip.decode(decode_plans(device)[-1])[0])

        frames, width, height = self.shape.frames, self.shape.width, self.shape.height
        step = svd.size_step(self._parts)
        most = _last(frames, budget, lambda count: peak(count, width, height))
        ratio = max(width, height) / min(width, height)

        def of_shape(units: int) -> tuple[int, int]:
            sides = units * step, max(units, round(units * ratio)) * step
            return sides if width <= height else (sides[1], sides[0])

        units = _last(min(width, height) // step, budget, lambda count: peak(frames, *of_shape(count)))
        return most, of_shape(units) if units else None

    def _stored(self, what: object, measure: Callable[[], Sequence[float]]) -> Sequence[float]:
        return self._store.get(_digest([_code(), repr(self.shape), repr(what)]), measure)

    def _trace_sampling(self, plan: UNetPlan) -> tuple[int, int]:

        from ..lean.transfer import Weights
        from ..vram.trace import TracedTransfer

        unet: Any = self._skeleton("unet")
        halves = 2 if plan.together else 1  # in turn, the second takes what the first has left

        def run(transfer: TracedTransfer) -> int:
            weights = Weights(transfer, resident=not plan.streamed)
            # First on a clip as small as can be: from the second step on, weights that stay are there, and the next ones of those that do not are known.
            side = svd.size_step(self._parts) // svd.SPATIAL_FACTOR
            self._estimate(unet, (1, svd.LATENT_CHANNELS, side, side), halves, transfer, plan, weights)
            before = transfer.moved
            self._estimate(unet, self._latents, halves, transfer, plan, weights)
            return transfer.moved - before

        peak, moved = _peak(run)
        return peak, moved * 2 // halves if plan.streamed or plan.parked else 0

    def _estimate(self, unet: Any, latents: tuple[int, ...], halves: int, transfer: Transfer, plan: UNetPlan, weights: Weights | None = None) -> None:
        """A step of sampling."""
        import torch

        with torch.device("meta"):
            embedding, concat = torch.empty(1, 1, unet.config["cross_attention_dim"]), torch.empty(1, *latents[1:])
        conditioning = svd.Conditioning(embedding, concat, fps=6, motion_bucket=127, augmentation=0.02)
        svd.estimator(unet, [conditioning] * halves, latents[0], transfer, plan, weights=weights)(torch.empty(latents, device="meta"), 1.0)

    def _count_work(self) -> float:
        import torch

        from ..lean.transfer import Transfer
        from ..vram.trace import Work

        with torch.no_grad(), Work() as work:
            self._estimate(self._skeleton("unet"), self._latents, 1, Transfer(torch.device("meta")), UNetPlan(Pieces(2**62)))
        return 2.0 * work.operations

    def _trace_decoding(self, plan: DecodePlan) -> tuple[int, int]:
        import torch

        from ..lean.vae import decode
        from ..vram.trace import TracedTransfer

        vae: Any = self._skeleton("vae")
        with torch.device("meta"):
            latents, frames = torch.empty(self._latents), torch.empty(self._latents[0], self.shape.height, self.shape.width, 3)

        def run(transfer: TracedTransfer) -> int:
            decode(vae, latents, out_THW3=frames, transfer=transfer, plan=plan)
            return transfer.moved

        return _peak(run)

    def _trace_encoding(self) -> int:
        import torch

        from ..lean.transfer import Weights
        from ..lean.vae import encode_mode
        from ..vram.trace import AttentionKernels

        encoder: Any = self._skeleton("image_encoder")
        vae: Any = self._skeleton("vae", "fp32")
        with torch.device("meta"):
            pixels = torch.empty(1, 3, encoder.config.image_size, encoder.config.image_size, dtype=svd.dtype_of(self.shape.precision))
            frame = torch.empty(1, 3, self.shape.height, self.shape.width)

        def look(transfer: Transfer) -> None:
            with transfer.computing(), Weights(transfer, resident=True).stage((encoder,)):
                _ = encoder(pixels).image_embeds

        def encode(transfer: Transfer) -> None:
            with transfer.computing(), Weights(transfer, resident=True).stage((vae.encoder, vae.quant_conv)):
                encode_mode(vae, frame)

        with AttentionKernels():
            return max(_peak(look)[0], _peak(encode)[0])

    def _skeleton(self, name: str, precision: svd.Precision | None = None) -> nn.Module:
        import torch

        key = name, precision or self.shape.precision
        if key not in self._skeletons:
            # Not diffusers' own `to`, which warns of what it leaves undone.
            self._skeletons[key] = torch.nn.Module.to(self._parts[name].skeleton(), dtype=svd.dtype_of(key[1])).requires_grad_(False)
        return self._skeletons[key]


Result = TypeVar("Result")


def _peak(run: Callable[[Any], Result]) -> tuple[int, Result]:
    import torch

    from ..vram.trace import LiveBytes, TracedTransfer

    live = LiveBytes()
    with torch.no_grad():
        result = run(TracedTransfer(live, torch.device("meta")))
    return live.peak, result


def _last(too_many: int, budget: float, size: Callable[[int], float]) -> int:
    """The largest count below `too_many` whose size keeps the budget, given that sizes grow; 0 when none does.

    They grow about as a line does, so the line through the nearest known sizes on both sides says where to look next: half as many looks as halving takes.
    """
    low, high = 0, too_many
    low_size, high_size = 0.0, size(too_many)
    looks = 0
    while high - low > 1:
        share = (budget - low_size) / max(1.0, high_size - low_size)
        guess = low + int(share * (high - low)) if looks % 4 < 3 else (low + high) // 2  # a curve can keep the line on one side
        guess = min(max(guess, low + 1), high - 1)
        looks += 1
        if (found := size(guess)) <= budget:
            low, low_size = guess, found
        else:
            high, high_size = guess, found
    return low


def _more(size: float) -> str:
    return f"{max(1, math.ceil(size / MIB))} MiB more"


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


@functools.lru_cache(maxsize=1)
def _code() -> str:
    """Changes with everything that a peak depends on beside the clip: the code that runs and the libraries under it."""
    package = Path(__file__).parents[1]
    sources = [*sorted((package / "lean").glob("*.py")), *sorted((package / "vram").glob("*.py")), *sorted((package / "models").glob("*.py"))]
    digest = hashlib.sha256(" ".join(version(library) for library in ("torch", "diffusers", "transformers")).encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
