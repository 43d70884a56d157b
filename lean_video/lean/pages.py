"""Memory of tensors that lie in a mapped file, given back to the system until it is read again."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

_DONT_NEED = 4  # madvise(2), Linux
_OF_A_FILE, _SWAPPED, _PRESENT = 1 << 61, 1 << 62, 1 << 63  # pagemap, Documentation/admin-guide/mm/pagemap.rst


def let_go(tensors: Sequence[Tensor]) -> None:
    """Has this process no longer hold the pages of these tensors that are still as they are in the mapped file: they are read from it again when needed,
    at first from the system's cache.

    A tensor that something was written to (a merged LoRA), or that lies in no file, is left alone: Linux tells of each page whether it is the file's own.
    Elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    for tensor in tensors:
        if type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" and tensor.numel():  # others keep their numbers where they like
            _let_go(tensor.data_ptr(), _extent(tensor))


def _extent(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last."""
    return (1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))) * tensor.element_size()


def _let_go(address: int, size: int) -> None:
    page = mmap.PAGESIZE
    first, end = -(-address // page), (address + size) // page  # pages that are shared with a neighbour stay
    if end <= first or not _is_as_in_file(first, end):
        return
    _libc().madvise(ctypes.c_void_p(first * page), ctypes.c_size_t((end - first) * page), _DONT_NEED)


def _is_as_in_file(first: int, end: int) -> bool:
    """Whether all pages of the range that are in memory are those of a file, and at least one is."""
    import numpy as np

    try:
        with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
            file.seek(8 * first)
            entries = np.frombuffer(file.read(8 * (end - first)), np.uint64)
    except OSError:
        return False
    if len(entries) != end - first:
        return False
    held = entries[(entries & np.uint64(_PRESENT | _SWAPPED)) != 0]
    return len(held) > 0 and bool(((held & np.uint64(_OF_A_FILE)) != 0).all() and ((held & np.uint64(_SWAPPED)) == 0).all())


@lru_cache(maxsize=1)
def _libc() -> Any:
    return ctypes.CDLL(None)
