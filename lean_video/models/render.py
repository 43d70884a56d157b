"""The phases of making a clip: condition, sample, decode; and encode, for video to video.

Each runs under a plan. When memory runs out, it goes on under the next smaller one: sampling from the step it was at, since the latents between
two network calls wait on the host.
Shape letters: T frames, C channels, H W pixels, h w latent pixels (an eighth).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ..errors import LeanVideoError
from ..lean import vae as lean_vae
from ..lean.transfer import Transfer, Weights, transfer_to
from ..lean.unet import sampling_plans
from ..lean.vae import decode_plans
from ..media.resize import fit
from ..sampling import guidance_scale, guide, is_guided, sample
from ..vram.ladder import Ladder, OutOfPlansError, is_device_lost, is_out_of_memory
from . import planning
from .images import check_image, clip_pixels
from .svd import LATENT_CHANNELS, MIN_STRENGTH, SPATIAL_FACTOR, Conditioning, Progress, SVDModel, check_clip, check_latents, check_steps, estimator, round_size

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..lean.unet import UNetPlan
    from ..lean.vae import DecodePlan
    from ..sampling.solvers import Denoiser

Candidate = TypeVar("Candidate")
Say = Callable[[str], None]


def _silent(done: int, total: int) -> None:
    pass


def _mute(text: str) -> None:
    pass


def condition(
    model: SVDModel,
    image_HWC: Tensor,
    width: int,
    height: int,
    *,
    device: torch.device,
    resize: str = "crop",
    fps: int = 6,
    motion_bucket: int = 127,
    augmentation: float = 0.02,
    augmentation_seed: int = 0,
    transfer: Transfer | None = None,
    on_host: bool = False,
    progress: Progress = _silent,
    say: Say = _mute,
) -> Conditioning:
    """Conditioning of a clip of `width` x `height` pixels (multiples of `model.size_step`) on one image.

    image_HWC     [H,W,1, 3 or 4], 0..1; transparency is composited on black
    device        where CLIP and the VAE's encoder run; the host does, when memory runs out there
    transfer      how tensors reach the device; default, as suits it
    on_host       they run on the host whatever the device
    resize        "crop", "pad" or "stretch": how the image meets the clip's shape; CLIP always sees the whole image
    augmentation  standard deviation of the noise added to the image in [-1,1]; its seed makes it reproducible

    Raises LeanVideoError for an image that is empty or holds NaN.
    """
    import torch

    image_1CHW = check_image(image_HWC)
    progress(0, 2)
    frame = fit(image_1CHW, width, height, resize) * 2 - 1
    if augmentation > 0:
        frame = frame + augmentation * torch.randn(frame.shape, generator=torch.Generator().manual_seed(augmentation_seed))
    place = _place(device, transfer, on_host)
    embedding = _on(place, partial(_look, model, image_1CHW), say)
    progress(1, 2)
    latents = _on(place, partial(_encode, model, lambda _: frame, 1, _silent), say)
    progress(2, 2)
    return Conditioning(embedding, latents, fps, motion_bucket, augmentation)


def encode_clip(
    model: SVDModel, frames_THWC: Tensor, *, device: torch.device, transfer: Transfer | None = None, on_host: bool = False, progress: Progress = _silent, say: Say = _mute
) -> Tensor:
    """Latents [T,4,h,w], as ComfyUI's LATENT, of a clip [T,H,W,C] 0..1, resized to the nearest size the UNet can take.

    The start clip of video to video.
    """
    width, height = round_size(model, frames_THWC.shape[2], frames_THWC.shape[1])
    check_clip(len(frames_THWC), width, height)

    def picture(index: int) -> Tensor:
        return fit(check_image(frames_THWC[index]), width, height, "stretch") * 2 - 1

    return _on(_place(device, transfer, on_host), partial(_encode, model, picture, len(frames_THWC), progress), say)


def _place(device: torch.device, transfer: Transfer | None, on_host: bool) -> Transfer:
    import torch

    return Transfer(torch.device("cpu")) if on_host else transfer or transfer_to(device)


def _look(model: SVDModel, image_1CHW: Tensor, transfer: Transfer) -> Tensor:
    """CLIP's view of an image, [1,1,C]."""
    import torch

    encoder = model.image_encoder
    pixels = clip_pixels(image_1CHW, encoder.config.image_size)
    with torch.inference_mode(), transfer.computing(), Weights(transfer, resident=True).stage((encoder,)):
        embedding = encoder(pixels.to(transfer.device, model.dtype)).image_embeds
    return embedding.float().cpu()[:, None].clone()


def _encode(model: SVDModel, picture: Callable[[int], Tensor], count: int, progress: Progress, transfer: Transfer) -> Tensor:
    """Latents [T,4,h,w] of `count` pictures, each [1,3,H,W] in -1..1."""
    import torch

    latents: list[Tensor] = []
    vae = model.vae
    with torch.inference_mode(), transfer.computing(), Weights(transfer, resident=True).stage((vae.encoder, vae.quant_conv)):
        for index in range(count):
            latents.append(lean_vae.encode_mode(vae, picture(index).to(transfer.device)).float().cpu())
            progress(index + 1, count)
    return torch.cat(latents).clone()


def _on(transfer: Transfer, work: Callable[[Transfer], Tensor], say: Say) -> Tensor:
    """What the work gives on the device, or on the host when memory runs out."""
    import torch

    host = Transfer(torch.device("cpu"))
    on_host = type(transfer) is Transfer and transfer.device == host.device
    places = [host] if on_host else [transfer, host]
    ladder = Ladder(places, lambda place: partial(work, place), lambda *_: say("Memory ran out while an image was encoded: it is encoded on the host."))
    with _explained(transfer.device):
        try:
            return ladder()
        except OutOfPlansError:
            raise LeanVideoError("Memory ran out while an image was encoded: close other programs, or choose a smaller size.") from None


def sample_clip(
    model: SVDModel,
    conditioning: Conditioning,
    *,
    frames: int,
    steps: int,
    device: torch.device,
    solver: str = "euler",
    schedule: str = "karras",
    guidance: tuple[float, float] = (1.0, 3.0),
    guidance_mode: str = "linear",
    seed: int = 0,
    start_T4hw: Tensor | None = None,
    strength: float = 1.0,
    transfer: Transfer | None = None,
    plan: UNetPlan | None = None,
    weights: Weights | None = None,
    on_step: Callable[[int, int, Tensor], None] = lambda done, total, x0: None,
    tick: Callable[[], None] = lambda: None,
    say: Say = _mute,
) -> Tensor:
    """Latents [T,4,h,w] of a clip: float32 on the CPU, as ComfyUI's LATENT: in the VAE's own scale, which is the network's divided by `model.scaling_factor`.

    Keywords as in `sampling.sample` and `sampling.guidance_scale`.
    plan      what the network's run costs, never what it gives; default, the fastest. When memory runs out, the next smaller one is taken.
    transfer  how tensors reach the device; default, as suits it
    weights   of the UNet by that transfer, resident, when they are to stay on the device after the run; a plan that streams them drops them
    on_step   gets latents in the network's scale
    tick      is called many times a step; either may raise to cancel
    say       gets a line when a smaller plan is taken

    Raises LeanVideoError for a clip or step count that is too large, when the start clip has another size than the conditioning, and when the smallest plan does not fit.
    """
    height, width = conditioning.latent_size
    size = width * SPATIAL_FACTOR, height * SPATIAL_FACTOR
    check_clip(frames, *size)
    check_steps(steps)
    if not (strength == 0 or MIN_STRENGTH <= strength <= 1):
        raise LeanVideoError(f"A denoise of {strength} is out of range: choose 0, or {MIN_STRENGTH} to 1.")
    shape = (frames, LATENT_CHANNELS, height, width)
    if start_T4hw is not None and tuple(start_T4hw.shape) != shape:
        raise LeanVideoError(
            f"The start latents have the shape {list(start_T4hw.shape)}, this clip needs {list(shape)}: make them with {frames} frames of {size[0]}x{size[1]} pixels."
        )
    if start_T4hw is not None and strength <= 0:
        return start_T4hw.float()
    scale = guidance_scale(guidance_mode, frames, *guidance)
    guided = is_guided(scale)
    conditionings = [conditioning, _blank(conditioning)] if guided else [conditioning]
    carrier = transfer or transfer_to(device)

    def start(plan: UNetPlan) -> Callable[[Tensor, float], Tensor]:
        if plan.streamed and weights is not None:
            weights.drop()
        return estimator(model.unet, conditionings, frames, carrier, plan, tick, None if plan.streamed else weights)

    def descend(plan: UNetPlan, smaller: UNetPlan) -> None:
        say(f"Memory ran out while sampling: going on from this step {_difference(plan, smaller)}.")

    estimates = Ladder(_from(plan, sampling_plans(device)), start, descend)
    denoise: Denoiser = guide(estimates, scale) if guided else lambda x_T4hw, sigma: estimates(x_T4hw, sigma)[0]
    with _explained(device):
        try:
            latents = sample(
                denoise,
                shape,
                steps=steps,
                seed=seed,
                solver=solver,
                schedule=schedule,
                start_T4hw=None if start_T4hw is None else start_T4hw * model.scaling_factor,
                strength=strength,
                on_step=on_step,
            )
        except OutOfPlansError:
            raise planning.does_not_fit(model, frames, *size, device) from None
    return latents / model.scaling_factor


def decode_clip(
    model: SVDModel,
    latents_T4hw: Tensor,
    *,
    device: torch.device,
    transfer: Transfer | None = None,
    plan: DecodePlan | None = None,
    progress: Progress = _silent,
    say: Say = _mute,
) -> Tensor:
    """Frames [T,H,W,3], float32 0..1 on the CPU, of latents as in ComfyUI's LATENT. Time is mixed over the whole clip: no seams.

    plan, say  as of `sample_clip`

    Raises LeanVideoError for latents of another model's shape or holding NaN, and when the smallest plan does not fit.
    """
    import torch

    clip = check_latents(latents_T4hw)
    if not bool(torch.isfinite(latents_T4hw).all()):
        raise LeanVideoError("The latents hold NaN or infinity, so no frame can be decoded: sample again in fp32 or bf16.")
    carrier = transfer or transfer_to(device)

    def start(plan: DecodePlan) -> Callable[[], Tensor]:
        return partial(lean_vae.decode, model.vae, latents_T4hw, transfer=carrier, plan=plan, progress=progress)

    def descend(plan: DecodePlan, smaller: DecodePlan) -> None:
        say(f"Memory ran out while decoding: once more {_difference(plan, smaller)}.")

    with _explained(device):
        try:
            return Ladder(_from(plan, decode_plans(device)), start, descend)()
        except OutOfPlansError:
            raise planning.does_not_fit(model, *clip, device) from None


def _blank(conditioning: Conditioning) -> Conditioning:
    """The unconditioned twin: no image for CLIP nor for the VAE, the rest kept."""
    import torch

    return Conditioning(
        torch.zeros_like(conditioning.image_embedding),
        torch.zeros_like(conditioning.concat_latents),
        conditioning.fps,
        conditioning.motion_bucket,
        conditioning.augmentation,
    )


def _from(plan: Candidate | None, plans: Sequence[Candidate]) -> list[Candidate]:
    """A plan and those that are smaller."""
    if plan is None:
        return list(plans)
    return list(plans[plans.index(plan) :]) if plan in plans else [plan, *plans]


def _difference(plan: UNetPlan | DecodePlan, smaller: UNetPlan | DecodePlan) -> str:
    if smaller.streamed and not plan.streamed:
        return "with the weights streamed from the host"
    if smaller.parked and not plan.parked:
        return "with more of the clip waiting on the host"
    return "in smaller pieces"


@contextmanager
def _explained(device: torch.device) -> Generator[None]:
    """Sentences for what goes wrong below us: memory that runs out where no plan can help, a device that is lost."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise LeanVideoError("Memory ran out: close other programs, or ask for fewer frames or a smaller size.") from None
        if is_device_lost(error):
            raise LeanVideoError(f"The device {device} stopped working ({str(error).splitlines()[0]}): restart ComfyUI, and the computer if that does not help.") from None
        raise
