"""Weights that lie in a mapped file leave memory when they are let go of, and come back as they were."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lean_video.checkpoints import open_svd
from lean_video.lean.pages import let_go
from lean_video.lean.unet import LeanUNet, UNetPlan, sampling_plans

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Other systems keep such pages as they see fit.")
CPU, MIB = torch.device("cpu"), 2**20


def held_of(path: Path) -> int:
    """Bytes of a mapped file that this process holds."""
    held, is_ours = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split(" ", 1)[0]:
            is_ours = line.endswith(str(path))
        elif is_ours and line.startswith("Rss:"):
            held += 1024 * int(line.split()[1])
    return held


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[tuple[Path, dict[str, Tensor]]]:
    path = tmp_path / "weights.safetensors"
    save_file({name: torch.full((4, MIB), float(value)) for value, name in enumerate("abc")}, path)
    with safe_open(path, framework="pt", device="cpu") as file:
        yield path, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_what_was_only_read_leaves_memory_and_comes_back(mapped: tuple[Path, dict[str, Tensor]]) -> None:
    path, tensors = mapped
    assert [float(tensor.sum()) for tensor in tensors.values()] == [0, 4 * MIB, 8 * MIB]
    assert held_of(path) > 47 * MIB
    let_go([tensors["b"], tensors["c"].T])
    assert held_of(path) < 17 * MIB
    assert [float(tensor.sum()) for tensor in tensors.values()] == [0, 4 * MIB, 8 * MIB]


def test_what_was_written_to_stays(mapped: tuple[Path, dict[str, Tensor]]) -> None:
    """As a LoRA does that is merged in place: the file does not know of it."""
    _, tensors = mapped
    tensors["b"][2, 5] = 100
    let_go([tensors["b"]])
    assert float(tensors["b"][2, 5]) == 100
    assert float(tensors["b"].sum()) == 4 * MIB + 99


def test_what_lies_in_no_file_stays() -> None:
    weights = [torch.arange(MIB), torch.ones(0), torch.ones(1), torch.empty(5, device="meta"), torch.nn.Parameter(torch.full((MIB,), 2.0))]
    let_go(weights)
    assert torch.equal(weights[0], torch.arange(MIB))
    assert float(weights[4].detach().sum()) == 2 * MIB


def test_a_streamed_run_holds_less_of_the_file_and_gives_the_same(tmp_path: Path, small_weights: dict[str, Tensor]) -> None:
    path = tmp_path / "svd.safetensors"
    save_file(small_weights, path)
    unet: Any = open_svd(path).unet
    embedding_B1D, x_BT8hw = torch.randn(1, 1, 64), torch.randn(1, 4, 8, 8, 8)

    def run(plan: UNetPlan) -> Tensor:
        return LeanUNet(unet, embedding_B1D, torch.tensor([[5.0, 127.0, 0.02]]), 4, plan=plan)(x_BT8hw, torch.tensor(1.0))

    plan = sampling_plans(CPU)[0]
    resident = run(plan)
    held = held_of(path)
    assert held > 0.9 * sum(tensor.nbytes for tensor in unet.state_dict().values())
    assert torch.equal(run(replace(plan, streamed=True)), resident)
    assert held_of(path) < held / 2
