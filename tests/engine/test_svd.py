"""Image to clip against stock diffusers, and each promise of the model on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lean_video.checkpoints import open_svd
from lean_video.errors import LeanVideoError
from lean_video.lean.transfer import Arrival, Transfer, Weights
from lean_video.lean.unet import LeanUNet
from lean_video.models import render, svd
from lean_video.models.render import condition, decode_clip, encode_clip, sample_clip
from lean_video.models.svd import Conditioning, SVDModel
from tests.engine.conftest import CPU, relative

SCHEDULER = {  # as published with stabilityai/stable-video-diffusion-img2vid-xt
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}
CLIP_IMAGE = {
    "do_resize": False,
    "do_center_crop": False,
    "do_rescale": False,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}

FRAMES, WIDTH, HEIGHT, STEPS = 5, 192, 128, 6


def photo(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Tensor:
    """[H,W,3] of 8-bit values: smooth shapes and a little grain."""
    noise = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(seed))
    smooth = nn.functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0)
    return (smooth * 255).round() / 255


@pytest.fixture(scope="module")
def clip(small: SVDModel) -> tuple[Conditioning, Tensor]:
    """Conditioning and latents of a short clip."""
    conditioning = condition(small, photo(), WIDTH, HEIGHT, device=CPU, fps=7, motion_bucket=90, augmentation=0)
    return conditioning, sample_clip(small, conditioning, frames=FRAMES, steps=STEPS, device=CPU, guidance=(1.0, 3.0), seed=11)


# End to end


@pytest.fixture(scope="module")
def pipeline(small: SVDModel) -> Any:
    from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
    from transformers import CLIPImageProcessor

    pipe: Any = StableVideoDiffusionPipeline(
        vae=small.vae,
        image_encoder=small.image_encoder,
        unet=small.unet,
        scheduler=EulerDiscreteScheduler.from_config(SCHEDULER),
        feature_extractor=CLIPImageProcessor(**CLIP_IMAGE),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_clip_equals_stock_diffusers_pipeline_from_image_to_frames(clip: tuple[Conditioning, Tensor], pipeline: Any, small: SVDModel) -> None:
    from PIL import Image

    picture = Image.fromarray((photo() * 255).round().byte().numpy())
    noise = torch.randn(1, FRAMES, 4, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(11))
    options = {
        "width": WIDTH,
        "height": HEIGHT,
        "num_frames": FRAMES,
        "num_inference_steps": STEPS,
        "min_guidance_scale": 1.0,
        "max_guidance_scale": 3.0,
        "fps": 7,
        "motion_bucket_id": 90,
        "noise_aug_strength": 0.0,
        "latents": noise,
    }
    latents = pipeline(picture, output_type="latent", **options).frames[0]
    _, ours = clip
    assert ours.shape == (FRAMES, 4, HEIGHT // 8, WIDTH // 8)
    assert relative(ours * 0.18215, latents) < 2e-5  # ComfyUI's LATENT is divided by the scaling factor already
    frames = pipeline(picture, output_type="pt", **options).frames[0].permute(0, 2, 3, 1)
    decoded = decode_clip(small, ours, device=CPU)
    assert decoded.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert relative(decoded, frames) < 2e-5


def test_decode_equals_the_stock_decode_of_the_whole_clip(clip: tuple[Conditioning, Tensor], small: SVDModel) -> None:
    _, latents = clip
    with torch.no_grad():
        stock = small.vae.decode(latents, num_frames=FRAMES).sample.permute(0, 2, 3, 1)
    ours = decode_clip(small, latents, device=CPU)
    assert ours.dtype == torch.float32
    assert relative(ours, (stock / 2 + 0.5).clamp(0, 1)) < 1e-5
    with torch.no_grad():
        chunked = small.vae.decode(latents[:2], num_frames=2).sample.permute(0, 2, 3, 1)
    assert relative(ours[:2], (chunked / 2 + 0.5).clamp(0, 1)) > 1e-3  # a decode in chunks is another picture


# Conditioning


def test_concat_latents_are_the_mode_of_the_image_and_not_scaled(small: SVDModel, clip: tuple[Conditioning, Tensor]) -> None:
    conditioning, _ = clip
    with torch.no_grad():
        mode = small.vae.encode(photo().permute(2, 0, 1)[None] * 2 - 1).latent_dist.mode()
    assert conditioning.concat_latents.shape == (1, 4, HEIGHT // 8, WIDTH // 8)
    assert relative(conditioning.concat_latents, mode) < 1e-5


def test_clip_sees_the_whole_image_however_the_frame_is_cut(small: SVDModel) -> None:
    image = photo(64, 256)
    image[:, :32] = 1.0
    views = {mode: condition(small, image, 64, 64, device=CPU, resize=mode, augmentation=0) for mode in ("crop", "pad", "stretch")}
    assert views["crop"].image_embedding.shape == (1, 1, 64)
    assert torch.equal(views["crop"].image_embedding, views["pad"].image_embedding)
    assert relative(views["crop"].concat_latents, views["stretch"].concat_latents) > 0.01
    image[:, :32] = 0.0
    assert relative(condition(small, image, 64, 64, device=CPU, augmentation=0).image_embedding, views["crop"].image_embedding) > 1e-3


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What is given to the VAE's encoder."""
    seen: list[Tensor] = []
    original = render.lean_vae.encode_mode

    def spy(vae: Any, pixels: Tensor) -> Tensor:
        seen.append(pixels.clone())
        return original(vae, pixels)

    monkeypatch.setattr(render.lean_vae, "encode_mode", spy)
    return seen


@pytest.mark.parametrize("level", [0.02, 0.5])
def test_augmentation_noise_has_the_strength_of_its_label(level: float, small: SVDModel, encoded: list[Tensor]) -> None:
    """In the [-1,1] that the encoder sees; core's is twice as strong."""
    made = condition(small, photo(), WIDTH, HEIGHT, device=CPU, augmentation=level, augmentation_seed=3)
    noise = encoded[0] - (photo().permute(2, 0, 1)[None] * 2 - 1)
    assert abs(float(noise.std()) / level - 1) < 0.01
    assert abs(float(noise.mean())) < 0.01 * level * 2
    assert made.augmentation == level


def test_augmentation_is_reproduced_by_its_seed_and_by_nothing_else(small: SVDModel) -> None:
    def latents(seed: int) -> Tensor:
        return condition(small, photo(64, 64), 64, 64, device=CPU, augmentation=0.3, augmentation_seed=seed).concat_latents

    torch.manual_seed(1)
    first = latents(5)
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, latents(5))
    assert not torch.equal(first, latents(6))
    torch.random.set_rng_state(state)
    assert torch.equal(first, latents(5))
    assert torch.equal(state, torch.random.get_rng_state())


@dataclass(frozen=True)
class Call:
    """What the network was given: x [B,T,8,h,w], CLIP's embedding [B,1,D] and the added ids [B,3]."""

    x: Tensor
    embedding: Tensor
    added_ids: Tensor


@pytest.fixture
def unet_calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Each call of the network from here on."""
    calls: list[Call] = []

    class Recorded(LeanUNet):
        def __init__(self, unet: Any, embedding: Tensor, added_ids: Tensor, frames: int, **options: Any) -> None:
            super().__init__(unet, embedding, added_ids, frames, **options)
            self.told = embedding, added_ids

        def __call__(self, x: Tensor, timestep: Tensor) -> Tensor:
            calls.append(Call(x, *self.told))
            return super().__call__(x, timestep)

    monkeypatch.setattr("lean_video.lean.unet.LeanUNet", Recorded)
    return calls


def test_the_network_is_told_fps_less_one_and_the_unconditioned_twin_sees_no_image(small: SVDModel, unet_calls: list[Call]) -> None:
    conditioning = condition(small, photo(64, 64), 64, 64, device=CPU, fps=8, motion_bucket=200, augmentation=0.04)
    sample_clip(small, conditioning, frames=2, steps=1, device=CPU, guidance=(1.0, 3.0))
    (call,) = unet_calls
    (with_image, without), (embedding, blank) = call.x, call.embedding
    assert torch.equal(call.added_ids, torch.tensor([[7.0, 200.0, 0.04]] * 2))
    assert torch.equal(embedding, conditioning.image_embedding[0])
    assert torch.equal(with_image[:, 4:], conditioning.concat_latents.expand(2, -1, -1, -1))
    assert not blank.any()
    assert not without[:, 4:].any()
    assert torch.equal(with_image[:, :4], without[:, :4])


def test_each_frame_may_have_concat_latents_of_its_own(small: SVDModel, unet_calls: list[Call]) -> None:
    concat = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    conditioning = Conditioning(torch.zeros(1, 1, 64), concat, fps=7, motion_bucket=90, augmentation=0.0)
    sample_clip(small, conditioning, frames=3, steps=1, device=CPU, guidance=(1.0, 1.0))
    assert torch.equal(unet_calls[0].x[0, :, 4:], concat)


def test_without_guidance_half_the_network_is_run(small: SVDModel, clip: tuple[Conditioning, Tensor], unet_calls: list[Call]) -> None:
    sample_clip(small, clip[0], frames=2, steps=3, device=CPU, guidance=(1.0, 1.0))
    assert [len(call.x) for call in unet_calls] == [1, 1, 1]
    sample_clip(small, clip[0], frames=2, steps=3, device=CPU, guidance=(2.0, 1.0))
    assert [len(call.x) for call in unet_calls[3:]] == [2, 2, 2]


def test_a_cancel_in_the_middle_of_a_step_ends_it(small: SVDModel, clip: tuple[Conditioning, Tensor]) -> None:
    class Cancelled(Exception):
        pass

    ticks, steps = 0, []

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 20:
            raise Cancelled

    with pytest.raises(Cancelled):
        sample_clip(small, clip[0], frames=2, steps=3, device=CPU, tick=tick, on_step=lambda *step: steps.append(step))
    assert ticks == 20
    assert not steps


# Video to video


def test_a_clip_is_encoded_frame_by_frame_in_the_vae_s_own_scale_as_core_keeps_latents(small: SVDModel) -> None:
    frames = torch.stack([photo(64, 128, seed) for seed in range(3)])
    done: list[tuple[int, int]] = []
    ours = encode_clip(small, frames, device=CPU, progress=lambda i, n: done.append((i, n)))
    with torch.no_grad():
        stock = small.vae.encode(frames.permute(0, 3, 1, 2) * 2 - 1).latent_dist.mode()
    assert relative(ours, stock) < 1e-5
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_a_clip_of_odd_size_is_resized_to_the_nearest_that_fits(small: SVDModel) -> None:
    assert encode_clip(small, torch.rand(2, 70, 130, 4), device=CPU).shape == (2, 4, 8, 16)


def test_strength_zero_gives_the_start_clip_back(small: SVDModel, clip: tuple[Conditioning, Tensor]) -> None:
    conditioning, latents = clip
    kept = sample_clip(small, conditioning, frames=FRAMES, steps=4, device=CPU, start_T4hw=latents, strength=0.0)
    assert torch.equal(kept, latents)
    near, far = (relative(sample_clip(small, conditioning, frames=FRAMES, steps=2, device=CPU, start_T4hw=latents, strength=s), latents) for s in (0.1, 0.9))
    assert near < 0.2 * far


def test_start_latents_of_another_size_are_refused(small: SVDModel, clip: tuple[Conditioning, Tensor]) -> None:
    conditioning, latents = clip
    for wrong in (latents[:2], latents[..., :-1], latents[:, :3]):
        with pytest.raises(LeanVideoError, match=f"{FRAMES} frames of {WIDTH}x{HEIGHT} pixels"):
            sample_clip(small, conditioning, frames=FRAMES, steps=2, device=CPU, start_T4hw=wrong)


# What is refused, rounded and warned of


@pytest.mark.parametrize("frames", [0, -1, 1025, 10_000])
def test_absurd_frame_counts_are_refused(frames: int, small: SVDModel, clip: tuple[Conditioning, Tensor]) -> None:
    with pytest.raises(LeanVideoError, match=f"clip of {frames} frames"):
        sample_clip(small, clip[0], frames=frames, steps=1, device=CPU)


@pytest.mark.parametrize("shape", [(0, 4, 8, 8), (2, 16, 8, 8), (4, 8, 8), (1, 2, 4, 8, 8), (2, 4, 0, 8)])
def test_latents_of_another_kind_are_refused(shape: tuple[int, ...], small: SVDModel) -> None:
    with pytest.raises(LeanVideoError, match="are not an SVD clip"):
        decode_clip(small, torch.zeros(shape), device=CPU)


def test_latents_that_are_not_finite_are_refused(small: SVDModel) -> None:
    with pytest.raises(LeanVideoError, match="NaN or infinity"):
        decode_clip(small, torch.full((2, 4, 8, 8), math.nan), device=CPU)


def test_sizes_are_rounded_to_what_the_unet_takes(small: SVDModel) -> None:
    assert small.size_step == 64
    assert svd.round_size(small, 1024, 576) == (1024, 576)
    assert svd.round_size(small, 1000, 590) == (1024, 576)
    assert svd.round_size(small, 1, 4096) == (64, 4096)
    for width, height in ((0, 64), (64, 4097), (-8, 64)):
        with pytest.raises(LeanVideoError, match="cannot be made"):
            svd.round_size(small, width, height)


def test_settings_outside_training_are_warned_of() -> None:
    def made(fps: int, bucket: int) -> list[str]:
        return svd.warnings(Conditioning(torch.zeros(1, 1, 4), torch.zeros(1, 4, 8, 8), fps, bucket, 0.0))

    assert made(6, 127) == made(31, 255) == []
    assert len(made(5, 127)) == len(made(32, 127)) == len(made(6, 256)) == 1
    assert len(made(60, 400)) == 2


# Preview


def test_preview_shows_light_and_colour_where_the_latents_have_them() -> None:
    latents = torch.zeros(3, 4, 2, 2)
    latents[0, :2, 0, 0] = 5.0  # both channels brighten
    latents[1, 3, 1, 1] = 2.0  # darkens blue most
    latents[2, 0, 0, 0] = math.nan
    shown = svd.preview(latents).int()
    assert shown.shape == (3, 2, 2, 3)
    assert (shown[0, 0, 0] == 255).all()
    assert shown[1, 1, 1].tolist() == [round(255 * (0.5 - w)) for w in (0.2120, 0.2616)] + [0]
    assert ((shown[0, 1, 1] - 128).abs() <= 1).all()
    assert svd.preview(latents).dtype == torch.uint8


# Precision


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_runs_from_image_to_frames_and_stays_near_float32(precision: str, small: SVDModel) -> None:
    half = open_svd(small.path, precision)
    image = photo(64, 64)

    def run(model: SVDModel) -> tuple[Tensor, Tensor]:
        latents = sample_clip(model, condition(model, image, 64, 64, device=CPU), frames=3, steps=3, device=CPU)
        return latents, decode_clip(model, latents, device=CPU)

    for ours, exact in zip(run(half), run(small), strict=True):
        assert ours.dtype == torch.float32
        assert ours.isfinite().all()
        assert relative(ours, exact) < (0.02 if precision == "fp16" else 0.15)


def test_image_decoder_checkpoints_run_from_image_to_frames(image_decoder_file: Any) -> None:
    model = open_svd(image_decoder_file)
    conditioning = condition(model, photo(32, 48), 48, 32, device=CPU)
    latents = sample_clip(model, conditioning, frames=3, steps=2, device=CPU)
    with torch.no_grad():
        stock = model.vae.decode(latents).sample.permute(0, 2, 3, 1)
    assert relative(decode_clip(model, latents, device=CPU), (stock / 2 + 0.5).clamp(0, 1)) < 1e-5


# Where weights are


def resting(module: nn.Module) -> dict[str, tuple[int, str]]:
    return {name: (tensor.data_ptr(), tensor.device.type) for name, tensor in module.state_dict(keep_vars=True).items()}


def staged(*modules: nn.Module, device: str = "meta") -> AbstractContextManager[None]:
    return Weights(Transfer(torch.device(device)), resident=True).stage(modules)


def test_weights_are_on_the_device_only_while_they_are_used(small: SVDModel) -> None:
    encoder = small.image_encoder
    before = resting(encoder)
    buffers = {name: buffer.device.type for name, buffer in encoder.named_buffers()}
    with staged(small.vae.decoder):
        assert {p.device.type for p in small.vae.decoder.parameters()} == {"meta"}
        assert {p.device.type for p in small.vae.encoder.parameters()} == {"cpu"}
    with staged(encoder):
        assert {tensor.device.type for tensor in encoder.state_dict().values()} == {"meta"}
    with staged(encoder, device="cpu"):
        assert resting(encoder) == before
    assert resting(encoder) == before
    assert buffers == {name: buffer.device.type for name, buffer in encoder.named_buffers()}
    assert {p.device.type for p in small.vae.decoder.parameters()} == {"cpu"}


def test_weights_come_back_after_an_error(small: SVDModel) -> None:
    modules = (small.vae.decoder, small.unet)
    before = [resting(module) for module in modules]
    with pytest.raises(KeyboardInterrupt), staged(*modules):
        raise KeyboardInterrupt
    assert [resting(module) for module in modules] == before
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())


def test_weights_come_back_when_the_device_is_full(small: SVDModel) -> None:
    class Full(Transfer):
        def fetch(self, tensors: Sequence[Tensor]) -> Arrival:
            raise torch.OutOfMemoryError("full")

    before = resting(small.vae.decoder)
    with pytest.raises(torch.OutOfMemoryError), Weights(Full(torch.device("meta")), resident=True).stage((small.vae.decoder,)):
        pass
    assert resting(small.vae.decoder) == before


def test_results_are_ordinary_tensors(clip: tuple[Conditioning, Tensor], small: SVDModel) -> None:
    """Of inference mode they could not be changed by the node that comes next."""
    conditioning, latents = clip
    tensors = (conditioning.image_embedding, conditioning.concat_latents, latents, decode_clip(small, latents[:1], device=CPU))
    assert not any(tensor.is_inference() or tensor.requires_grad for tensor in tensors)


@pytest.mark.parametrize(("frames", "steps", "says"), [(FRAMES, 0, "0 steps"), (FRAMES, 10**6, "1000000 steps"), (10_000, 1, "10000 frames")])
def test_a_run_that_would_never_end_is_refused(frames: int, steps: int, says: str, small: SVDModel, clip: tuple[Conditioning, Tensor]) -> None:
    with pytest.raises(LeanVideoError, match=says):
        sample_clip(small, clip[0], frames=frames, steps=steps, device=CPU)


@pytest.mark.parametrize("strength", [-0.1, 1e-9, 7.0, math.nan])
def test_a_denoise_out_of_range_is_refused(strength: float, small: SVDModel, clip: tuple[Conditioning, Tensor]) -> None:
    with pytest.raises(LeanVideoError, match=r"choose 0, or 0\.001 to 1"):
        sample_clip(small, clip[0], frames=FRAMES, steps=1, device=CPU, strength=strength)


def test_a_clip_of_more_pixels_than_a_request_may_hold_is_refused(small: SVDModel) -> None:
    wide = Conditioning(torch.zeros(1, 1, 64), torch.zeros(1, 4, 512, 512), 6, 127, 0.0)
    with pytest.raises(LeanVideoError, match=r"1024 frames of 4096x4096 is too large: at this size ask for at most 36 frames\."):
        sample_clip(small, wide, frames=1024, steps=1, device=CPU)
