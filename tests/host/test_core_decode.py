"""Our latents in core's own VAE Decode, at SVD's own VAE size: the only one that core knows how to open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comfy_server import link
from make_checkpoint import SIZES, VAE, layout, random_weights
from safetensors.torch import save_file

from tests.conftest import MakeServer
from tests.host.comfy import Comfy, image_to_video

NAME = "full_vae.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint with a small UNet and the whole VAE, and that VAE once more as a file for core's Load VAE."""
    folder = tmp_path_factory.mktemp("full-vae")
    full = SIZES["full"]
    weights = random_weights(layout(replace(SIZES["small"], vae=full.vae, vae_mult=full.vae_mult, vae_blocks=full.vae_blocks)), "float16")
    save_file(weights, folder / NAME)
    save_file({name.removeprefix(VAE): tensor for name, tensor in weights.items() if name.startswith(VAE)}, folder / "vae.safetensors")
    return folder / NAME, folder / "vae.safetensors"


@pytest.fixture
def comfy(make_server: MakeServer, files: tuple[Path, Path]) -> Iterator[Comfy]:
    def prepare(base: Path) -> None:
        (base / "models" / "vae").mkdir()
        link(files[0], base / "models" / "checkpoints" / NAME)
        link(files[1], base / "models" / "vae" / NAME)

    server = make_server(prepare=prepare)
    client = Comfy(server)
    yield client
    client.close()
    server.stop()


def test_cores_vae_decode_and_ours_make_the_same_frames_of_our_latents(comfy: Comfy) -> None:
    prompt = image_to_video(checkpoint=NAME, frames=3)
    prompt["10"] = {"class_type": "VAELoader", "inputs": {"vae_name": NAME}}
    prompt["11"] = {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["10", 0]}}
    prompt["12"] = {"class_type": "LeanVideoProbeStats", "inputs": {"images": ["11", 0]}}
    run = comfy.run(prompt)
    assert run.status == "success", run.message
    ours, cores = (comfy.tensor(comfy.stats(run, node)[0]).astype(np.float64) for node in ("7", "12"))
    assert ours.shape == cores.shape == (3, 64, 128, 3)
    assert ours.std() > 0.01
    distance = float(np.linalg.norm(ours - cores) / np.linalg.norm(cores))
    print(f"frames by core's VAE Decode and by ours: {distance:.1e}")
    assert distance <= 5e-5
