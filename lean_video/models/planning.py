"""What a clip will take, and the fastest way to make it within a budget.

The very functions that make a clip are run on the meta device, where tensors have shapes and no contents, while live bytes are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import LeanVideoError
from ..lean.pieces import Pieces, default_pieces
from ..lean.unet import UNetPlan
from ..lean.vae import DecodePlan
from . import svd

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .parts import Part

MIB = 2**20
SMALLEST, UNLIMITED = 0.0, math.inf  # budgets

Candidate = TypeVar("Candidate")


@dataclass(frozen=True)
class Plan:
    """How a clip is made, and the most device memory, in bytes, that each phase holds: weights and everything else.

    encode_on_host  CLIP and the VAE's encoder, which see one image, run on the host: slower, and no device memory
    """

    encode_on_host: bool
    sample: UNetPlan
    decode: DecodePlan
    peak: Mapping[str, int]

    def describe(self) -> list[str]:
        """A line for each phase: what it trades for memory."""

        def line(phase: str, *trades: str) -> str:
            return f"{phase:<7} {self.peak[phase] / MIB:6.0f} MiB  {', '.join(trade for trade in trades if trade) or 'everything on the device'}"

        return [
            line("encode", "on the host" if self.encode_on_host else ""),
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


def plan_clip(
    parts: Mapping[str, Part],
    precision: svd.Precision,
    *,
    frames: int,
    width: int,
    height: int,
    budget: float = UNLIMITED,
    device: torch.device | None = None,
) -> Plan:
    """The fastest plan whose every phase stays within `budget` bytes; SMALLEST gives the smallest plan there is.

    parts  of a checkpoint, or `published_parts`; no weights are read
    device where it will run; default, a GPU

    Raises LeanVideoError for a negative budget, a clip that no run should be asked for, and a budget smaller than any plan, saying how much is missing.
    """
    import torch

    if math.isnan(budget) or budget < 0:
        raise LeanVideoError(f"A budget of {budget / MIB:.0f} MiB cannot be kept: give 0 or more.")
    svd.check_clip(frames, width, height)
    dtype = svd.dtype_of(precision)
    clip = Clip(parts, dtype, frames, width, height)
    widest = default_pieces(device or torch.device("cuda")).elements
    fine = Pieces(min(widest, 2**22))
    finest = Pieces(2**20)
    sample, sample_peak = _fastest(
        (
            UNetPlan(Pieces(widest)),
            UNetPlan(fine),
            UNetPlan(fine, parked=True),
            UNetPlan(fine, streamed=True, together=True),
            UNetPlan(fine, streamed=True, together=True, parked=True),
            UNetPlan(fine, streamed=True, parked=True),
            UNetPlan(finest, streamed=True, parked=True),
        ),
        clip.sample_peak,
        budget,
        f"Sampling {frames} frames of {width}x{height}",
    )
    decode, decode_peak = _fastest(
        (
            DecodePlan(Pieces(widest)),
            DecodePlan(fine, strips=fine),
            DecodePlan(fine, parked=True, strips=fine),
            DecodePlan(fine, streamed=True, parked=True, strips=fine),
            DecodePlan(finest, streamed=True, parked=True, strips=fine),
        ),
        clip.decode_peak,
        budget,
        f"Decoding {frames} frames of {width}x{height}",
    )
    encode_on_host, encode_peak = _fastest((False, True), clip.encode_peak, budget, "Encoding")
    return Plan(encode_on_host, sample, decode, {"encode": encode_peak, "sample": sample_peak, "decode": decode_peak})


def _fastest(candidates: Sequence[Candidate], peak_of: Callable[[Candidate], int], budget: float, what: str) -> tuple[Candidate, int]:
    """The first candidate within the budget, and its peak. Each takes less than the one before it, so they are bisected."""
    if budget == UNLIMITED:
        return candidates[0], peak_of(candidates[0])
    last = len(candidates) - 1
    peaks = {last: peak_of(candidates[last])}
    if budget == SMALLEST:
        return candidates[last], peaks[last]
    if peaks[last] > budget:
        raise LeanVideoError(
            f"{what} takes at least {peaks[last] / MIB:.0f} MiB, {(peaks[last] - budget) / MIB:.0f} MiB more than the budget of {budget / MIB:.0f} MiB: give it more, or ask for fewer frames or a smaller size."
        )
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        peaks[middle] = peak_of(candidates[middle])
        low, high = (low, middle) if peaks[middle] <= budget else (middle + 1, high)
    return candidates[high], peaks[high]


class Clip:
    """A clip to be made, on the meta device."""

    def __init__(self, parts: Mapping[str, Part], dtype: torch.dtype, frames: int, width: int, height: int) -> None:
        self._parts, self._dtype = parts, dtype
        self._size = width, height
        self._latents = frames, svd.LATENT_CHANNELS, height // svd.SPATIAL_FACTOR, width // svd.SPATIAL_FACTOR

    def sample_peak(self, plan: UNetPlan) -> int:
        import torch

        unet: Any = self._skeleton("unet", self._dtype)
        with torch.device("meta"):
            embedding, concat = torch.empty(1, 1, unet.config["cross_attention_dim"]), torch.empty(1, *self._latents[1:])
        conditioning = svd.Conditioning(embedding, concat, fps=6, motion_bucket=127, augmentation=0.02)

        def run(transfer: Any) -> None:
            x, *others = [torch.empty(self._latents, device="meta") for _ in range(4)]  # a solver holds the latents, their noise and what it remembers
            halves = [conditioning] * (2 if plan.together else 1)  # in turn, the second takes what the first has left
            estimates = svd.estimator(unet, halves, self._latents[0], transfer, plan)
            for _ in range(2):  # from the second step on, the next weights are on their way meanwhile
                estimates(x, 1.0)
            del others

        return _peak(run)

    def decode_peak(self, plan: DecodePlan) -> int:
        import torch

        from ..lean.vae import decode

        vae: Any = self._skeleton("vae", self._dtype)
        with torch.device("meta"):
            latents, frames = torch.empty(self._latents), torch.empty(self._latents[0], self._size[1], self._size[0], 3)
        return _peak(lambda transfer: decode(vae, latents, out_THW3=frames, transfer=transfer, plan=plan))

    def encode_peak(self, on_host: bool) -> int:
        import torch

        from ..lean.vae import encode_mode

        if on_host:
            return 0
        encoder: Any = self._skeleton("image_encoder", self._dtype)
        vae: Any = self._skeleton("vae", torch.float32)
        with torch.device("meta"):
            pixels = torch.empty(1, 3, encoder.config.image_size, encoder.config.image_size, dtype=self._dtype)
            frame = torch.empty(1, 3, *reversed(self._size))
        return max(
            _bytes(encoder) + _peak(lambda _: encoder(pixels).image_embeds),
            _bytes(vae.encoder) + _bytes(vae.quant_conv) + _peak(lambda _: encode_mode(vae, frame)),
        )

    def _skeleton(self, name: str, dtype: torch.dtype) -> nn.Module:
        import torch

        # Not diffusers' own `to`, which warns of what it leaves undone.
        return torch.nn.Module.to(self._parts[name].skeleton(), dtype=dtype).requires_grad_(False)


def _peak(run: Callable[[Any], object]) -> int:
    import torch

    from ..vram.trace import LiveBytes, TracedTransfer

    live = LiveBytes()
    with torch.no_grad(), live:
        run(TracedTransfer(live, torch.device("meta")))
    return live.peak


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())
