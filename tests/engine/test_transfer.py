"""Weights on the device: how much of them, and what letting go of them does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from lean_video.lean.transfer import Arrival, Weights
from tests.engine.copies import Copies

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


class Counted(Copies):
    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def fetch(self, tensors: Sequence[Tensor]) -> Arrival:
        self.bytes += sum(tensor.nbytes for tensor in tensors)
        return super().fetch(tensors)


@pytest.fixture
def layers() -> list[nn.Linear]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [nn.Linear(8, 8).requires_grad_(False) for _ in range(3)]


def run(weights: Weights, layers: list[nn.Linear], between: Callable[[], object] = lambda: None, inside: Callable[[], object] = lambda: None) -> Tensor:
    x = X
    for layer in layers:
        with weights.stage((layer,)):
            inside()
            x = layer(x)
        between()
    return x


def expected(layers: list[nn.Linear]) -> Tensor:
    return layers[2](layers[1](layers[0](X)))


def size(*layers: nn.Linear) -> int:
    return sum(tensor.nbytes for layer in layers for tensor in layer.parameters())


def test_weights_that_stay_are_held_until_they_are_dropped_and_come_again(layers: list[nn.Linear]) -> None:
    transfer = Counted()
    weights = Weights(transfer, resident=True)
    assert weights.held_bytes == 0
    for _ in range(2):
        assert torch.equal(run(weights, layers), expected(layers))
    assert weights.held_bytes == transfer.bytes == size(*layers)
    weights.drop()
    assert weights.held_bytes == 0
    assert torch.equal(run(weights, layers), expected(layers))
    assert weights.held_bytes == size(*layers)
    assert transfer.bytes == 2 * size(*layers)


def test_of_streamed_weights_only_those_on_their_way_are_held(layers: list[nn.Linear]) -> None:
    weights = Weights(Counted(), resident=False)
    held: list[int] = []
    for _ in range(2):
        assert torch.equal(run(weights, layers, between=lambda: held.append(weights.held_bytes)), expected(layers))
    assert held == [0, 0, 0, *[size(layers[0])] * 3]  # they are of one size, and none is known to follow the first time
    weights.drop()
    assert weights.held_bytes == 0
    assert torch.equal(run(weights, layers), expected(layers))


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("when", ["between", "inside"])
def test_weights_may_be_dropped_at_any_time(resident: bool, when: str, layers: list[nn.Linear]) -> None:
    weights = Weights(Counted(), resident=resident)
    for _ in range(2):
        assert torch.equal(run(weights, layers, **{when: weights.drop}), expected(layers))
        assert all(isinstance(layer.weight, nn.Parameter) for layer in layers)
    if when == "between":
        assert weights.held_bytes == 0
