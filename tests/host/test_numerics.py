"""Our numbers against ComfyUI core's own SVD, on the same random weights in the published layout, in float32."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from get_comfyui import Host
from make_checkpoint import SIZES, layout, random_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from lean_video.checkpoints import open_svd
from lean_video.lean.transfer import Transfer
from lean_video.models.render import decode_clip, encode_clip, sample_clip
from lean_video.models.svd import Conditioning, SVDModel, denoiser
from lean_video.sampling import sigmas

SCRIPT = Path(__file__).with_name("core_reference.py")
CPU = torch.device("cpu")
FRAMES, STEPS, SEED = 5, 6, 1234567
SIGMAS = (700.0, 30.0, 1.0, 0.05)


@dataclass(frozen=True)
class Core:
    """What core answered to what, and our model of the same file."""

    inputs: dict[str, Tensor]
    answers: dict[str, Tensor]
    model: SVDModel

    @property
    def conditioning(self) -> Conditioning:
        return Conditioning(self.inputs["embedding"], self.inputs["concat"], fps=8, motion_bucket=90, augmentation=0.02)


@pytest.fixture(scope="module")
def weights_and_inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint without sgm's second encoder, since core conditions with the first stage's, and inputs."""
    path = tmp_path_factory.mktemp("numerics") / "svd.safetensors"
    weights = random_weights(layout(SIZES["small"]))
    save_file({name: tensor for name, tensor in weights.items() if ".embedders.3." not in name}, path)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    inputs = {
        "x": normal(FRAMES, 4, 8, 16),
        "embedding": normal(1, 1, 64),
        "concat": normal(1, 4, 8, 16),
        "ids": torch.tensor([7.0, 90.0, 0.02]),
        "sigmas": torch.tensor(SIGMAS),
        "steps": torch.tensor(STEPS),
        "seed": torch.tensor(SEED),
        "frame": torch.rand(1, 3, 64, 128, generator=generator) * 2 - 1,
        "latents": normal(FRAMES, 4, 8, 16),
        "pixels": normal(1, 3, 224, 224),
    }
    return path, inputs


@pytest.fixture(scope="module")
def core(host: Host, weights_and_inputs: tuple[Path, dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> Core:
    checkpoint, inputs = weights_and_inputs
    scratch = tmp_path_factory.mktemp(f"core-{host.version}-")
    save_file(inputs, scratch / "inputs.safetensors")
    command = [str(host.python), str(SCRIPT), str(checkpoint), str(scratch / "inputs.safetensors"), str(scratch / "answers.safetensors")]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=host.path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return Core(inputs, load_file(scratch / "answers.safetensors"), open_svd(checkpoint))


def assert_near(record: pytest.FixtureRequest, ours: Tensor, core: Tensor, bound: float) -> None:
    """Relative L2 distance within `bound`; the measured one is in the report (pytest -rP)."""
    assert ours.shape == core.shape
    distance = float((ours.double() - core.double()).norm() / core.double().norm())
    print(f"{record.node.name}: {distance:.1e}")
    assert distance <= bound


@pytest.mark.parametrize("index", range(len(SIGMAS)))
def test_one_call_of_the_unet_is_that_of_core(index: int, core: Core, request: pytest.FixtureRequest) -> None:
    """c_skip hides the network at small sigmas and c_out at large: the network's own output is compared."""
    x, s = core.inputs["x"] * SIGMAS[index], SIGMAS[index]
    with torch.inference_mode():
        ours = denoiser(core.model.unet, core.conditioning, FRAMES, Transfer(CPU))(x, s)

    def network(x0: Tensor) -> Tensor:
        return (x0.double() - x.double() / (s**2 + 1)) * -((s**2 + 1) ** 0.5) / s

    assert_near(request, ours, core.answers[f"denoised_{index}"], 5e-6)
    assert_near(request, network(ours), network(core.answers[f"denoised_{index}"]), 5e-6 if s >= 1 else 2e-5)


@pytest.mark.parametrize(("ours", "theirs"), [("karras", "karras"), ("exponential", "exponential"), ("uniform", "sgm_uniform")])
def test_noise_levels_are_those_of_core(ours: str, theirs: str, core: Core) -> None:
    levels, expected = sigmas(ours, STEPS), core.answers[f"sigmas_{theirs}"]
    torch.testing.assert_close(levels, expected, rtol=1e-6, atol=0)
    print(ours, "bit-identical" if torch.equal(levels, expected) else f"{float(((levels - expected) / expected).nan_to_num().abs().max()):.1e}")


def test_a_seed_is_the_noise_of_cores_ksampler(core: Core, request: pytest.FixtureRequest) -> None:
    first: list[Tensor] = []
    first_layer = core.model.unet.conv_in

    class Stop(Exception):
        pass

    def record(module: object, args: tuple[Tensor, ...]) -> None:
        first.append(args[0][:, :4])
        raise Stop

    handle = first_layer.register_forward_pre_hook(record)
    try:
        with pytest.raises(Stop):
            sample_clip(core.model, core.conditioning, frames=FRAMES, steps=STEPS, device=CPU, seed=SEED)
    finally:
        handle.remove()
    assert torch.equal(core.answers["noise"], torch.randn(core.answers["noise"].shape, generator=torch.Generator().manual_seed(SEED)))
    assert_near(request, first[0], core.answers["noise"], 2e-7)  # scaled by sqrt(1 + 700²) and back


def test_a_whole_run_with_guidance_is_that_of_cores_ksampler(core: Core, request: pytest.FixtureRequest) -> None:
    ours = sample_clip(core.model, core.conditioning, frames=FRAMES, steps=STEPS, device=CPU, seed=SEED, guidance=(1.0, 3.0))
    assert_near(request, ours, core.answers["sampled"], 2e-5)


def test_encoding_is_that_of_core(core: Core, request: pytest.FixtureRequest) -> None:
    frame = (core.inputs["frame"].permute(0, 2, 3, 1) + 1) / 2
    assert_near(request, encode_clip(core.model, frame, device=CPU), core.answers["encoded"], 5e-5)


def test_decoding_is_that_of_core_over_the_whole_clip(core: Core, request: pytest.FixtureRequest) -> None:
    ours = decode_clip(core.model, core.inputs["latents"], device=CPU)
    assert_near(request, ours, (core.answers["decoded"].permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1), 5e-5)


def test_the_image_embedding_is_that_of_core_for_the_same_pixels(core: Core, request: pytest.FixtureRequest) -> None:
    with torch.inference_mode():
        ours = core.model.image_encoder(core.inputs["pixels"]).image_embeds
    assert_near(request, ours, core.answers["embedding"], 5e-6)
