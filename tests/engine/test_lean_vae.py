"""The exact decode against stock diffusers: same pictures for every chunk size, in a fraction of the memory."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lean_video.errors import LeanVideoError
from lean_video.lean.group_norm import GroupStatistics, normalise_silu
from lean_video.lean.pieces import Pieces
from lean_video.lean.vae import DecodePlan, decode, encode_mode
from tests.engine.copies import Copies
from tests.engine.peaks import peak_bytes

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
DTYPES = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in TOLERANCE]


@cache
def temporal_vae(dtype: torch.dtype) -> AutoencoderKLTemporalDecoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # An upsampler before a resnet that keeps its channels, and before one that does not.
        vae = AutoencoderKLTemporalDecoder(down_block_types=("DownEncoderBlock2D",) * 3, block_out_channels=(32, 32, 64), layers_per_block=1)
        return randomise(vae).to(dtype)


@cache
def plain_vae(dtype: torch.dtype, quant_convs: bool = True) -> AutoencoderKL:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(32, 64),
            layers_per_block=1,
            use_quant_conv=quant_convs,
            use_post_quant_conv=quant_convs,
        )
        return randomise(vae).to(dtype)


def randomise(vae: Any) -> Any:
    """Norms, biases and mix factors start as constants, which would hide a wrong one; the pictures stay inside 0..1."""
    for name, parameter in vae.named_parameters():
        if "mix_factor" in name or "norm" in name:
            nn.init.normal_(parameter, mean=0.5)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    last = vae.decoder.conv_out if isinstance(vae, AutoencoderKL) else vae.decoder.time_conv_out
    nn.init.normal_(last.weight, std=0.05)
    nn.init.zeros_(last.bias)
    return vae.eval().requires_grad_(False)


def latents(frames: int, h: int, w: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, 4, h, w, generator=generator, dtype=torch.float64).to(dtype)


def as_pictures(sample_T3HW: Tensor) -> Tensor:
    return (sample_T3HW / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def new_output(frames: int, h: int, w: int, dtype: torch.dtype, factor: int) -> Tensor:
    return torch.full((frames, factor * h, factor * w, 3), torch.nan, dtype=dtype)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(list(TOLERANCE)),
    clip_frames=st.sampled_from([1, 2, 5]),
    h=st.integers(1, 6),
    w=st.integers(1, 6),
    elements=st.integers(1, 2**16),
    strips=st.none() | st.builds(Pieces, st.integers(1, 2**16)),
    streamed=st.booleans(),
    parked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_clip_decodes_as_stock_does_whole_for_every_plan(
    dtype: torch.dtype, clip_frames: int, h: int, w: int, elements: int, strips: Pieces | None, streamed: bool, parked: bool, seed: int
) -> None:
    # Norms over so few positions magnify rounding: stock's own float32 is 3e-4 from float64 on 1x1 latents, 3e-7 on 2x3.
    assume(dtype == torch.float64 or h * w >= 4)
    vae = temporal_vae(dtype)
    z = latents(clip_frames, h, w, dtype, seed)
    expected = as_pictures(vae.decode(z, num_frames=clip_frames).sample)
    assert expected.min() > 0, "clamped pictures would hide a difference"
    assert expected.max() < 1, "clamped pictures would hide a difference"

    out = new_output(clip_frames, h, w, dtype, factor=4)
    returned = decode(vae, z, out_THW3=out, plan=DecodePlan(Pieces(elements), streamed, parked, strips), transfer=Copies())

    assert returned is out
    assert (out - expected).abs().max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_default_chunks_and_output_decode_as_stock_does(dtype: torch.dtype) -> None:
    z = latents(5, 6, 4, dtype)
    pictures = decode(temporal_vae(dtype), z)
    expected = as_pictures(temporal_vae(dtype).decode(z, num_frames=5).sample)
    assert pictures.dtype == torch.float32
    assert pictures.device.type == "cpu"
    assert (pictures - expected).abs().max() <= 1e-5


def test_half_precision_is_no_further_from_float64_than_stock() -> None:
    z = latents(3, 6, 4, torch.bfloat16)
    vae = temporal_vae(torch.bfloat16)
    expected = as_pictures(temporal_vae(torch.float64).decode(z.double(), num_frames=3).sample)
    stock = as_pictures(vae.decode(z, num_frames=3).sample.double())
    ours = decode(vae, z, plan=DecodePlan(Pieces(5000), strips=Pieces(5000))).double()
    assert (ours - expected).norm() <= 1.1 * (stock - expected).norm()


def test_every_frame_depends_on_the_whole_clip() -> None:
    z = latents(5, 4, 4, torch.float64)
    changed = z.clone()
    changed[4] += 1
    before, after = (decode(temporal_vae(torch.float64), clip, plan=DecodePlan(Pieces(1000))) for clip in (z, changed))
    assert ((before - after).abs().amax(dim=(1, 2, 3)) > 1e-6).all()


def test_decode_needs_nothing_of_the_encoder() -> None:
    """The encoder may be in another dtype and on another device."""
    vae = copy.deepcopy(temporal_vae(torch.float64))
    z = latents(2, 4, 4, torch.float64)
    expected = decode(vae, z)
    vae.encoder.to("meta", torch.float32)
    assert torch.equal(decode(vae, z), expected)


@pytest.mark.parametrize("quant_convs", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_image_decoder_decodes_as_stock_does(dtype: torch.dtype, quant_convs: bool) -> None:
    vae = plain_vae(dtype, quant_convs)
    z = latents(5, 6, 4, dtype)
    out = decode(vae, z, out_THW3=new_output(5, 6, 4, dtype, factor=2))
    assert (out - as_pictures(vae.decode(z).sample)).abs().max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [temporal_vae, plain_vae])
def test_encoded_mode_is_that_of_stock(make: Any, dtype: torch.dtype) -> None:
    vae = make(dtype)
    images = latents(3, 12, 20, dtype)[:, :3].clamp(-1, 1)
    mode = encode_mode(vae, images)
    assert (mode - vae.encode(images).latent_dist.mode()).abs().max() <= TOLERANCE[dtype] * mode.abs().max()


def test_encoding_skips_a_quant_conv_that_is_not_there() -> None:
    vae = plain_vae(torch.float64, quant_convs=False)
    images = latents(1, 8, 8, torch.float64)[:, :3]
    torch.testing.assert_close(encode_mode(vae, images), vae.encode(images).latent_dist.mode())


@pytest.mark.parametrize("make", [temporal_vae, plain_vae])
@pytest.mark.parametrize("elements", [300, 4000, 2**20])
def test_progress_counts_every_step_up_to_its_total(make: Any, elements: int) -> None:
    seen: list[tuple[int, int]] = []
    decode(make(torch.float32), latents(3, 4, 4, torch.float32), plan=DecodePlan(Pieces(elements)), progress=lambda *at: seen.append(at))
    total = seen[0][1]
    assert seen == [(done, total) for done in range(1, total + 1)]
    assert total > 20


def test_progress_of_encoding_counts_every_step_up_to_its_total() -> None:
    seen: list[tuple[int, int]] = []
    encode_mode(plain_vae(torch.float32), torch.zeros(2, 3, 8, 8), progress=lambda *at: seen.append(at))
    assert seen == [(done, len(seen)) for done in range(1, len(seen) + 1)]
    assert len(seen) >= 16


def test_cancel_from_progress_stops_at_once() -> None:
    calls: list[int] = []

    def cancel(done: int, total: int) -> None:
        calls.append(done)
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(temporal_vae(torch.float32), latents(2, 4, 4, torch.float32), progress=cancel)
    assert calls == list(range(1, 8))


@pytest.mark.parametrize("shape", [(2, 16, 4, 4), (4, 4, 4), (0, 4, 4, 4)])
def test_latents_of_another_kind_are_refused_in_one_sentence(shape: tuple[int, ...]) -> None:
    with pytest.raises(LeanVideoError, match="latents"):
        decode(temporal_vae(torch.float32), torch.zeros(shape))


@pytest.mark.parametrize("dtype", DTYPES)
def test_pieced_statistics_survive_a_mean_far_from_zero(dtype: torch.dtype) -> None:
    """Sums of squares would lose all digits here: the mean is 1000 deviations away."""
    x_CTP = latents(1, 64, 30, torch.float64).reshape(64, 4, 30) + 1000
    norm = randomise_norm(nn.GroupNorm(32, 64)).to(torch.float64)
    expected = torch.nn.functional.silu(norm(x_CTP[None])[0])
    x_CTP = x_CTP.to(dtype)
    statistics = GroupStatistics(norm)
    for piece in x_CTP.split([7, 1, 22], dim=2):
        statistics.add(piece)
    y_CTP = normalise_silu(x_CTP, *statistics.scale_and_shift(dtype))
    assert (y_CTP - expected).abs().max() <= {torch.float64: 1e-10, torch.float32: 2e-3}[dtype]


def randomise_norm(norm: nn.GroupNorm) -> nn.GroupNorm:
    generator = torch.Generator().manual_seed(3)
    norm.weight.data.normal_(generator=generator)
    norm.bias.data.normal_(generator=generator)
    return norm.requires_grad_(False)


def test_peak_of_the_full_size_decoder_is_a_sixth_of_stock() -> None:
    """On the meta device, in fp16, activations only. The floor without recomputing is the widest layer: 128 channels."""
    frames, size = 12, 512
    with torch.device("meta"):
        vae = AutoencoderKLTemporalDecoder(down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(128, 256, 512, 512), layers_per_block=2)
    vae = vae.to("meta").half().eval().requires_grad_(False)
    z = torch.empty(frames, 4, size // 8, size // 8, dtype=torch.float16, device="meta")
    out = torch.empty(frames, size, size, 3, device="meta")
    widest_layer = frames * 128 * size * size * 2
    one_frame_of_it = widest_layer // frames

    stock = peak_bytes(lambda: vae.decode(z, num_frames=frames).sample)
    lean = peak_bytes(lambda: decode(vae, z, out_THW3=out))

    assert stock >= 8 * widest_layer
    assert lean <= widest_layer + 5 * one_frame_of_it
    assert lean <= stock / 5.5
