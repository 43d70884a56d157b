"""What to do when memory runs out: the same work again, on a plan that takes less."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

Plan = TypeVar("Plan")
Result = TypeVar("Result")

_ALLOCATION_FAILED = ("out of memory", "ALLOC_FAILED", "can't allocate memory", "not enough memory", "NOT_ENOUGH_RESOURCES")


class OutOfPlansError(Exception):
    """Memory ran out on the smallest plan there is."""


class Ladder(Generic[Plan, Result]):
    """Does a piece of work on the first of `plans`, from the fastest to the smallest; when memory runs out, again on the next, and stays there.

    start:   makes the work ready under a plan and gives the function that does it; both may run out of memory
    descend: called with the plan that did not fit and the one that follows
    """

    def __init__(self, plans: Sequence[Plan], start: Callable[[Plan], Callable[..., Result]], descend: Callable[[Plan, Plan], None]) -> None:
        self._plans = list(plans)
        self._start = start
        self._descend = descend
        self._work: Callable[..., Result] | None = None

    @property
    def plan(self) -> Plan:
        """The plan that is in use."""
        return self._plans[0]

    def __call__(self, *args: object) -> Result:
        """Raises OutOfPlansError when the last plan does not fit either."""
        while True:
            try:
                if self._work is None:
                    self._work = self._start(self._plans[0])
                return self._work(*args)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # Out here the error is gone, and with it the frames that hold what the work had on the device.
            self._work = None
            release()
            if len(self._plans) == 1:
                raise OutOfPlansError
            self._descend(self._plans[0], self._plans[1])
            del self._plans[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocator had no more to give. Libraries below torch say so in words only."""
    kinds = tuple(kind for kind in (getattr(torch, "OutOfMemoryError", None), torch.cuda.OutOfMemoryError, MemoryError) if kind is not None)
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATION_FAILED))


def is_device_lost(error: BaseException) -> bool:
    """Whether an error says that the device does not answer any more."""
    lost = getattr(torch, "AcceleratorError", None)
    return (lost is not None and isinstance(error, lost)) or (isinstance(error, RuntimeError) and str(error).startswith(("CUDA error", "HIP error", "CUDA driver error")))


def release() -> None:
    """Gives back what nothing refers to any more, so that the next plan finds it free."""
    gc.collect()
    for backend in (torch.cuda, getattr(torch, "xpu", None), torch.mps if torch.backends.mps.is_available() else None):
        if backend is not None and (backend is torch.mps or backend.is_available()):
            backend.empty_cache()
