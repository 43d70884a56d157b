"""Memory that runs out: the run goes on with less of it and gives the same frames, or ends with a sentence; and it leaves nothing behind."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from lean_video.errors import LeanVideoError
from lean_video.lean.transfer import Weights
from lean_video.lean.unet import UNetPlan, sampling_plans
from lean_video.lean.vae import DecodePlan, decode_plans
from lean_video.models.render import condition, decode_clip, sample_clip
from lean_video.models.svd import Conditioning, SVDModel
from lean_video.vram.ladder import Ladder, OutOfPlansError, is_out_of_memory
from lean_video.vram.trace import LiveBytes, TracedTransfer
from tests.engine.conftest import CPU

FRAMES, WIDTH, HEIGHT, STEPS = 3, 128, 64, 3


class Card(LiveBytes):
    """A pretended device: it has room for so many bytes, and may refuse some requests whatever is free."""

    def __init__(self, size: float = float("inf"), refused: Callable[[int], bool] = lambda request: False, error: Callable[[], Exception] | None = None) -> None:
        super().__init__()
        self.size = size
        self.requests = 0
        self._refused = refused
        self._error = error or (lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."))

    def _born(self, storage: torch.UntypedStorage) -> None:
        before = self.now
        super()._born(storage)
        if self.now != before:
            self.requests += 1
            if self.now > self.size or self._refused(self.requests):
                raise self._error()


@dataclass
class Run:
    """A phase on a card."""

    model: SVDModel
    conditioning: Conditioning
    latents: Tensor
    said: list[str] = field(default_factory=list)

    def sample(self, card: Card, plan: UNetPlan | None = None, **keywords: Any) -> Tensor:
        transfer = TracedTransfer(card, CPU)
        return sample_clip(self.model, self.conditioning, frames=FRAMES, steps=STEPS, device=CPU, seed=5, transfer=transfer, plan=plan, say=self.said.append, **keywords)

    def decode(self, card: Card, plan: DecodePlan | None = None, **keywords: Any) -> Tensor:
        return decode_clip(self.model, self.latents, device=CPU, transfer=TracedTransfer(card, CPU), plan=plan, say=self.said.append, **keywords)


@pytest.fixture(scope="module")
def conditioning(small: SVDModel) -> Conditioning:
    return condition(small, torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(1)), WIDTH, HEIGHT, device=CPU)


@pytest.fixture(scope="module")
def expected(small: SVDModel, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
    latents = sample_clip(small, conditioning, frames=FRAMES, steps=STEPS, device=CPU, seed=5)
    return latents, decode_clip(small, latents, device=CPU)


@pytest.fixture
def run(small: SVDModel, conditioning: Conditioning, expected: tuple[Tensor, Tensor]) -> Iterator[Run]:
    before = {name: tensor.data_ptr() for name, tensor in small.unet.state_dict().items()} | {name: tensor.data_ptr() for name, tensor in small.vae.state_dict().items()}
    yield Run(small, conditioning, expected[0])
    after = {name: tensor.data_ptr() for name, tensor in small.unet.state_dict().items()} | {name: tensor.data_ptr() for name, tensor in small.vae.state_dict().items()}
    assert after == before, "the modules do not have their own weights back"


def assert_same(got: Tensor, want: Tensor) -> None:
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()


@pytest.mark.parametrize("phase", ["sample", "decode"])
def test_one_request_that_is_refused_changes_no_frame(phase: str, run: Run, expected: tuple[Tensor, Tensor]) -> None:
    """Whichever it is: a sample of all requests of a run, from the first to the last."""
    want = expected[0] if phase == "sample" else expected[1]
    work: Any = getattr(run, phase)
    whole = Card()
    assert_same(work(whole), want)
    assert not run.said
    total = whole.requests
    for nth in sorted({1, 2, 3, total, *range(5, total, max(1, total // 10))}):
        run.said.clear()
        card = Card(refused=lambda request, nth=nth: request == nth)
        assert_same(work(card), want)
        gc.collect()
        assert card.now == 0, "left on the device"
        assert len(run.said) == 1


@pytest.mark.parametrize("phase", ["sample", "decode"])
@pytest.mark.parametrize("first", [1, 40, 700])
def test_a_device_that_gives_nothing_more_ends_in_a_sentence(phase: str, first: int, run: Run) -> None:
    work: Any = getattr(run, phase)
    card = Card(refused=lambda request: request >= first)
    with pytest.raises(LeanVideoError, match=r"Memory ran out: A clip of 3 frames of 128x64 in fp32 takes at least \d+ MiB"):
        work(card)
    gc.collect()
    assert card.now == 0


@pytest.mark.parametrize("phase", ["sample", "decode"])
def test_a_card_of_any_size_is_kept_or_told_to_be_too_small(phase: str, run: Run, expected: tuple[Tensor, Tensor]) -> None:
    """Down the whole ladder: each plan's own peak is just enough for it, and one byte less is not."""
    want = expected[0] if phase == "sample" else expected[1]
    work: Any = getattr(run, phase)
    plans: Any = sampling_plans(CPU) if phase == "sample" else decode_plans(CPU)
    for index, plan in enumerate(plans):
        run.said.clear()
        whole = Card()
        work(whole, plan)
        card = Card(size=whole.peak)
        assert_same(work(card), want)
        assert len(run.said) <= index
        assert card.now == 0
    with pytest.raises(LeanVideoError, match="Memory ran out"):
        work(Card(size=0.9 * whole.peak))


def test_sampling_goes_on_from_the_step_it_was_at(run: Run, expected: tuple[Tensor, Tensor]) -> None:
    """Half of the way through, half of the card is gone."""
    card, steps = Card(), list[int]()

    def on_step(done: int, total: int, x0: Tensor) -> None:
        steps.append(done)
        if done == 2:
            card.size = 0.5 * card.peak

    assert_same(run.sample(card, on_step=on_step), expected[0])
    assert steps == [1, 2, 3]
    assert run.said
    assert all("going on from this step" in line for line in run.said)


def test_weights_that_were_to_stay_make_room_for_a_smaller_plan(run: Run, expected: tuple[Tensor, Tensor]) -> None:
    card = Card()
    transfer = TracedTransfer(card, CPU)
    weights = Weights(transfer, resident=True)

    def sample() -> Tensor:
        return sample_clip(run.model, run.conditioning, frames=FRAMES, steps=STEPS, device=CPU, seed=5, transfer=transfer, weights=weights, say=run.said.append)

    assert_same(sample(), expected[0])
    assert card.now == weights.held_bytes > 0
    card.size = 0.9 * weights.held_bytes
    assert_same(sample(), expected[0])
    assert weights.held_bytes == card.now == 0
    assert "weights streamed from the host" in "".join(run.said)


def test_an_image_that_does_not_fit_is_encoded_on_the_host(small: SVDModel) -> None:
    image, said = torch.rand(50, 70, 3), list[str]()
    want = condition(small, image, WIDTH, HEIGHT, device=CPU)

    for nth in (1, 30, 100):
        got = condition(small, image, WIDTH, HEIGHT, device=CPU, transfer=TracedTransfer(Card(refused=lambda request, nth=nth: request >= nth), CPU), say=said.append)
        assert torch.equal(got.image_embedding, want.image_embedding)
        assert torch.equal(got.concat_latents, want.concat_latents)
    assert said
    assert set(said) == {"Memory ran out while an image was encoded: it is encoded on the host."}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
)
def test_every_way_of_saying_that_memory_ran_out_is_understood(error: Exception, run: Run, expected: tuple[Tensor, Tensor]) -> None:
    assert is_out_of_memory(error)
    assert_same(run.sample(Card(refused=lambda request: request == 500, error=lambda: error)), expected[0])
    assert len(run.said) == 1


def test_another_error_is_not_taken_for_it(run: Run) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run.sample(Card(refused=lambda request: request == 500, error=lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
    assert not run.said


@pytest.mark.parametrize("phase", ["sample", "decode"])
def test_a_device_that_vanishes_ends_in_a_sentence(phase: str, run: Run) -> None:
    work: Any = getattr(run, phase)
    with pytest.raises(LeanVideoError, match=r"The device cpu stopped working \(CUDA error: unspecified launch failure\)"):
        work(Card(refused=lambda request: request >= 100, error=lambda: RuntimeError("CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA")))


def test_a_cancel_on_the_way_down_is_a_cancel(run: Run) -> None:
    class Cancelled(BaseException):
        pass

    def tick() -> None:
        if run.said:
            raise Cancelled

    card = Card(refused=lambda request: request == 300)
    with pytest.raises(Cancelled):
        run.sample(card, tick=tick)
    gc.collect()
    assert card.now == 0


def test_a_ladder_stays_where_it_went() -> None:
    tried = list[int]()

    def start(plan: int) -> Callable[[], int]:
        tried.append(plan)
        if plan > 1:
            raise torch.OutOfMemoryError
        return lambda: plan

    ladder = Ladder([3, 2, 1], start, lambda plan, smaller: None)
    assert [ladder(), ladder()] == [1, 1]
    assert tried == [3, 2, 1]
    with pytest.raises(OutOfPlansError):
        Ladder([3], start, lambda plan, smaller: None)()
