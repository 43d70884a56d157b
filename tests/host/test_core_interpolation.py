"""Our RIFE against ComfyUI core's own, which reads the five-block releases, on the same random weights in float32."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from get_comfyui import Host
from safetensors.torch import load_file, save_file

from lean_video.interpolation.rife import load
from tests.engine.plain_ifnet import RELEASES, Release, random_file

SCRIPT = Path(__file__).with_name("core_interpolation.py")
# Core runs 4.25 lite at the scales of the others.
FIVE_BLOCKS = [release for release in RELEASES if release.scales == (16, 8, 4, 2, 1)]
TIMES = [0.2, 0.5, 0.9]


@pytest.mark.parametrize("release", FIVE_BLOCKS, ids=lambda release: f"{release.versions} as {release.prefix}{release.block}")
def test_our_frames_are_cores(host: Host, release: Release, tmp_path: Path) -> None:
    if not (host.path / "comfy_extras" / "nodes_frame_interpolation.py").is_file():
        pytest.skip(f"ComfyUI {host.version} has no frame interpolation of its own.")
    weights, given, answers = (tmp_path / f"{name}.safetensors" for name in ("rife", "given", "answers"))
    save_file(random_file(release), weights)
    a, b = torch.rand(2, 1, 3, 64, 128, generator=torch.Generator().manual_seed(0))  # a size that core needs not pad, which it does with other pixels
    save_file({"a": a, "b": b, "times": torch.tensor(TIMES)}, given)
    done = subprocess.run([host.python, SCRIPT, weights, given, answers], cwd=host.path, env={**os.environ, "OMP_NUM_THREADS": "2"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = load(weights).between(a, b, TIMES)
    assert (ours - load_file(answers)["frames"]).abs().max() < 1e-4
