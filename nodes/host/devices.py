"""The device that ComfyUI computes on, its memory, and weights of ours that stay there."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from ...lean_video.lean.transfer import Weights


def device() -> Any:
    """The torch device that ComfyUI computes on."""
    import comfy.model_management

    return comfy.model_management.get_torch_device()


def card() -> tuple[str, int | None]:
    """Name of the device that ComfyUI computes on, and its memory in bytes; None for a CPU, whose memory is the host's."""
    import comfy.model_management

    name = str(comfy.model_management.get_torch_device_name(device()))
    if device().type == "cpu":
        return "the CPU", None
    return name.removeprefix(f"{device()} ").partition(" : ")[0], int(comfy.model_management.get_total_memory(device()))


def free_bytes() -> int | None:
    """What a run may take of the device now: what is free, less what ComfyUI was told to leave to others. None for a CPU."""
    import comfy.model_management

    if device().type == "cpu":
        return None
    return int(comfy.model_management.get_free_memory(device())) - _reserved()


def _reserved() -> int:
    """Bytes of the device that ComfyUI leaves alone when it is told exactly how much a model takes."""
    import comfy.model_management as management
    from comfy.cli_args import args

    if not hasattr(management, "extra_reserved_memory"):  # the version of 2024 has no other margin, nor a flag for it
        return int(management.minimum_inference_memory())
    return int(management.extra_reserved_memory() + getattr(args, "vram_headroom", 0) * 2**30)


def room(size: int) -> int | None:
    """Has ComfyUI make room for `size` bytes, and tells what a run may then take, as `free_bytes` does."""
    make_room(size)
    return free_bytes()


def reachable_bytes() -> int:
    """What a run can have of the device, or on a CPU of RAM, once ComfyUI has moved every model away that it has there."""
    free = free_bytes()
    if free is None:
        return free_host_bytes()
    import comfy.model_management as management

    held = [getattr(entry, "model_loaded_memory", entry.model_memory) for entry in management.current_loaded_models if entry.device == device()]
    return free + sum(int(tell()) for tell in held)


def host_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def half_is_faster() -> bool:
    """Whether ComfyUI would run a network on this device in fp16."""
    import comfy.model_management

    return bool(comfy.model_management.should_use_fp16(device()))


def free_host_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def make_room(size: int, keep: Kept | None = None) -> None:
    """Asks ComfyUI to move other models than `keep` off the GPU until `size` bytes and its reserve are free; on a CPU there is nothing to move."""
    import comfy.model_management as management

    if device().type != "cpu":
        kept = [] if keep is None else keep.listed()
        management.free_memory(size + _reserved(), device(), keep_loaded=kept)
        management.soft_empty_cache()


def weights_may_stay() -> bool:
    """Whether weights may stay on the device between runs, until ComfyUI needs their place: not when the user asked for little to lie there."""
    import comfy.model_management as management

    smart = not getattr(management, "DISABLE_SMART_MEMORY", False)
    return device().type != "cpu" and smart and management.vram_state in (management.VRAMState.NORMAL_VRAM, management.VRAMState.HIGH_VRAM)


class Kept:
    """Weights of ours that stay on the device: to ComfyUI a loaded model like any other, which it counts, and unloads when it needs the place.

    It disappears from ComfyUI's list with this object; in the version of 2024, when the next prompt starts.
    """

    def __init__(self, weights: Weights, size: int) -> None:
        """`size` is what the weights will take, in bytes."""
        from comfy.model_patcher import ModelPatcher

        self.weights = weights
        self._size = size
        # They are unloaded to where they are, the host. What ComfyUI would name with --highvram is the GPU: nothing would ever leave it.
        self._patcher = ModelPatcher(LeanVideoWeights(weights), load_device=device(), offload_device=torch.device("cpu"), size=size)

    def load(self, beside: int) -> None:
        """Has ComfyUI make room for the weights and `beside` bytes more, and list them."""
        import comfy.model_management

        # The version of 2024 makes none for a model that it has listed, and ours may have been dropped since.
        make_room(self._size - self.weights.held_bytes + beside, keep=self)
        comfy.model_management.load_models_gpu([self._patcher], memory_required=beside)

    def listed(self) -> list[Any]:
        """ComfyUI's entries for these weights: one, or none when they are unloaded."""
        import comfy.model_management

        return [entry for entry in comfy.model_management.current_loaded_models if entry.model is self._patcher]


class LeanVideoWeights(torch.nn.Module):
    """What ComfyUI moves about in place of the weights, and names in its log. It does not hold them, so that they are gone with their model."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self._weights = weakref.ref(weights)

    @property
    def model_loaded_weight_memory(self) -> int:
        """What ComfyUI reads as the bytes on the device."""
        weights = self._weights()
        return 0 if weights is None else weights.held_bytes

    @model_loaded_weight_memory.setter
    def model_loaded_weight_memory(self, value: int) -> None:
        """ComfyUI's own count is that of modules inside, of which there are none."""

    def to(self, *args: Any, **keywords: Any) -> LeanVideoWeights:
        device = keywords.get("device", args[0] if args else None)
        weights = self._weights()
        if weights is not None and device is not None and torch.device(device) != weights.transfer.device:
            weights.drop()
        return self
