"""The lean forward of the UNet against the stock one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lean_video.lean.frames import regrouped
from lean_video.lean.pieces import Pieces
from lean_video.lean.transfer import Arrival, Transfer
from lean_video.lean.unet import LeanUNet, UNetPlan
from tests.engine.copies import Copies
from tests.engine.peaks import peak_bytes

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
DTYPES = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in TOLERANCE]


@cache
def unet(dtype: torch.dtype, layers: int = 1) -> Any:
    """All of SVD's kinds of blocks: with and without transformers, down, middle and up."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNetSpatioTemporalConditionModel(
            block_out_channels=(32, 64, 64),
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            num_attention_heads=(2, 4, 4),
            cross_attention_dim=24,
            addition_time_embed_dim=16,
            projection_class_embeddings_input_dim=48,
            layers_per_block=1,
            transformer_layers_per_block=layers,
        ).eval()
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:  # norms that scale, shifts that shift, and every blend its own
                nn.init.normal_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.5)
        return network.to(dtype).requires_grad_(False)


def inputs(dtype: torch.dtype, halves: int, frames: int, h: int, w: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return normal(halves, frames, 8, h, w), torch.tensor(0.7, dtype=dtype), normal(halves, 1, 24), normal(halves, 3).abs()


def stock(network: Any, x: Tensor, timestep: Tensor, embedding: Tensor, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return network(x, timestep, embedding, ids, return_dict=False)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    halves=st.integers(1, 2),
    frames=st.integers(1, 7),
    h=st.integers(4, 13),
    w=st.integers(4, 13),
    elements=st.integers(1, 2**17),
    streamed=st.booleans(),
    together=st.booleans(),
    parked=st.booleans(),
    layers=st.integers(1, 2),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=25)
def test_forward_is_that_of_stock_for_every_size_and_piece(
    dtype: torch.dtype, halves: int, frames: int, h: int, w: int, elements: int, streamed: bool, together: bool, parked: bool, layers: int, seed: int
) -> None:
    network = unet(dtype, layers)
    x, timestep, embedding, ids = inputs(dtype, halves, frames, h, w, seed)
    expected = stock(network, x, timestep, embedding, ids)
    ours = LeanUNet(network, embedding, ids, frames, plan=UNetPlan(Pieces(elements), streamed, together, parked), transfer=Copies())(x, timestep)
    assert ours.shape == expected.shape
    assert float((ours - expected).abs().max()) <= TOLERANCE[dtype]


def test_half_precision_is_no_further_from_float64_than_stock() -> None:
    exact = stock(unet(torch.float64), *inputs(torch.float64, 1, 5, 8, 12))
    x, timestep, embedding, ids = inputs(torch.bfloat16, 1, 5, 8, 12)
    theirs = stock(unet(torch.bfloat16), x, timestep, embedding, ids)
    ours = LeanUNet(unet(torch.bfloat16), embedding, ids, 5)(x, timestep)
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - exact).norm() <= 1.05 * (theirs.double() - exact).norm()


def test_one_network_serves_many_steps() -> None:
    """What is folded must not depend on the step."""
    network = unet(torch.float64)
    x, _, embedding, ids = inputs(torch.float64, 2, 3, 8, 8)
    lean = LeanUNet(network, embedding, ids, 3)
    for timestep in (torch.tensor(1.6, dtype=torch.float64), torch.tensor(-1.5, dtype=torch.float64)):
        assert float((lean(x, timestep) - stock(network, x, timestep, embedding, ids)).abs().max()) <= 1e-12


def test_a_step_needs_no_weight_of_what_is_folded() -> None:
    network = copy.deepcopy(unet(torch.float32))
    x, timestep, embedding, ids = inputs(torch.float32, 1, 3, 8, 8)
    expected = stock(network, x, timestep, embedding, ids)
    lean = LeanUNet(network, embedding, ids, 3)
    folded = 0
    for name, parameter in network.named_parameters():
        if "attn2" in name or ("norm2" in name and "transformer" in name) or "time_pos_embed" in name:
            parameter.fill_(float("nan"))
            folded += parameter.numel()
    assert folded > 0
    assert float((lean(x, timestep) - expected).abs().max()) <= 1e-5


@pytest.mark.parametrize("streamed", [True, False])
def test_weights_are_used_on_the_device_only_and_are_the_hosts_own_after(streamed: bool) -> None:
    """The host's are NaN here, the transfer knows the right ones."""
    network = copy.deepcopy(unet(torch.float32))
    x, timestep, embedding, ids = inputs(torch.float32, 2, 3, 8, 8)
    expected = stock(network, x, timestep, embedding, ids)
    right = {id(parameter): parameter.clone() for parameter in network.parameters()}
    fetches: list[int] = []

    class Elsewhere(Transfer):
        def fetch(self, tensors: Sequence[Tensor]) -> Arrival:
            fetched = [right[id(tensor)].clone() for tensor in tensors]
            fetches.append(len(fetched))
            return lambda: fetched

    lean = LeanUNet(network, embedding, ids, 3, plan=UNetPlan(Pieces(2**20), streamed), transfer=Elsewhere(torch.device("cpu")))
    before = {name: id(parameter) for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.fill_(float("nan"))
    for _ in range(2):
        assert float((lean(x, timestep) - expected).abs().max()) <= 1e-5
    assert {name: id(parameter) for name, parameter in network.named_parameters()} == before
    assert all(parameter.isnan().all() for parameter in network.parameters())
    stages = len(fetches) if not streamed else (len(fetches) - 1) // 4  # two steps of two halves; the last stage asks for the first once more
    assert 20 < stages < 100
    assert streamed or sum(fetches) < len(right)  # each once, and those that are folded not at all


def test_a_tick_that_raises_ends_the_call() -> None:
    class Cancelled(Exception):
        pass

    def tick() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Cancelled

    x, timestep, embedding, ids = inputs(torch.float32, 2, 3, 8, 8)
    for after in (1, 7, 30):
        left = after
        with pytest.raises(Cancelled):
            LeanUNet(unet(torch.float32), embedding, ids, 3, tick=tick)(x, timestep)


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), frames=st.integers(1, 7))
def test_regrouped_frames_are_the_same_frames(sizes: list[int], frames: int) -> None:
    clip = torch.arange(sum(sizes), dtype=torch.float32)[:, None, None, None]
    chunks = list(regrouped(clip.split(sizes), frames))
    assert torch.equal(torch.cat(chunks), clip)
    assert [len(chunk) for chunk in chunks[:-1]] == [frames] * (len(chunks) - 1)
    assert 1 <= len(chunks[-1]) <= frames


@pytest.mark.parametrize(("frames", "width", "height", "elements", "most"), [(24, 512, 512, 2**22, 380), (48, 512, 512, 2**24, 860), (25, 1024, 576, 2**24, 960)])
def test_peak_of_the_full_size_unet(frames: int, width: int, height: int, elements: int, most: int) -> None:
    """On the meta device, in fp16, activations only, in MiB. Stock: 3379, 6743 and 7918; half of that with one guidance half after the other."""
    with torch.device("meta"):
        network: Any = UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20), num_frames=frames)
        x = torch.empty(2, frames, 8, height // 8, width // 8, dtype=torch.float16)
        embedding, ids, timestep = torch.empty(2, 1, 1024, dtype=torch.float16), torch.empty(2, 3), torch.empty(())
    network = network.to("meta").half().eval().requires_grad_(False)  # diffusers makes some parameters on the CPU
    lean = LeanUNet(network, embedding, ids, frames, plan=UNetPlan(Pieces(elements)), transfer=Transfer(torch.device("meta")))
    assert peak_bytes(lambda: lean(x, timestep)) <= most * 2**20
