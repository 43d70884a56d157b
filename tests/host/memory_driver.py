"""Run by a host's own Python, in the host's folder: our pack beside core's models, on a card that is pretended.

What torch tells of CUDA comes from `Card`; everything that is decided with it is ComfyUI's own, flags included.
Arguments: the pack's folder, a small checkpoint, then ComfyUI's own. Prints one line of JSON: what happened.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

pack, checkpoint, *flags = sys.argv[1:]
sys.argv[1:] = flags
sys.path[0] = str(Path.cwd())

GIB, CUDA = 2**30, torch.device("cuda", 0)
CACHED = GIB // 4  # what torch's allocator holds without using it


class Card:
    """A card of 8 GiB, and the models that lie on it."""

    def __init__(self) -> None:
        self.size = 8 * GIB
        self.models: list[Any] = []

    @property
    def used(self) -> int:
        return sum(model.held for model in self.models)

    def answer(self) -> None:
        """In place of the driver."""
        properties = SimpleNamespace(name="Pretended", major=8, minor=6, total_memory=self.size, multi_processor_count=1, gcnArchName="")
        torch.version.cuda = torch.version.cuda or "12.8"
        for name, value in {
            "is_available": True,
            "is_bf16_supported": True,
            "current_device": 0,
            "device_count": 1,
            "get_device_properties": properties,
            "get_device_name": properties.name,
            "get_device_capability": (properties.major, properties.minor),
            "get_allocator_backend": "native",
            "empty_cache": None,
            "ipc_collect": None,
            "synchronize": None,
        }.items():
            setattr(torch.cuda, name, lambda *_, value=value, **__: value)
        torch.cuda.mem_get_info = lambda *_: (self.size - self.used - CACHED, self.size)
        torch.cuda.memory_stats = lambda *_: {f"{kind}_bytes.all.current": self.used + more for kind, more in (("active", 0), ("allocated", 0), ("reserved", CACHED))}


card = Card()
card.answer()

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management as management  # noqa: E402
from comfy.model_patcher import ModelPatcher  # noqa: E402

spec = importlib.util.spec_from_file_location("lean_video_pack", Path(pack) / "__init__.py", submodule_search_locations=[pack])
assert spec is not None
assert spec.loader is not None
module = importlib.util.module_from_spec(spec)
sys.modules["lean_video_pack"] = module
spec.loader.exec_module(module)
host: Any = sys.modules["lean_video_pack.nodes.host"]
vram: Any = sys.modules["lean_video_pack.nodes.vram"]
checkpoints: Any = sys.modules["lean_video_pack.lean_video.checkpoints"]
planning: Any = sys.modules["lean_video_pack.lean_video.models.planning"]
transfers: Any = sys.modules["lean_video_pack.lean_video.lean.transfer"]


class ToCard(transfers.Transfer):
    """Copies that are said to lie on the card."""

    def __init__(self) -> None:
        super().__init__(CUDA)
        self.fetches = 0

    def fetch(self, tensors: Sequence[Tensor]) -> Any:
        self.fetches += 1
        copies = [tensor.clone() for tensor in tensors]
        return lambda: copies


class Core(torch.nn.Module):
    """A model of core's, of a size that is pretended. It is put on the card."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.held = size, 0
        self.patcher = ModelPatcher(self, load_device=CUDA, offload_device=torch.device("cpu"), size=size)
        card.models.append(self)

    def load(self, dynamic: bool = False) -> Core:
        if dynamic:
            self.patcher.is_dynamic = lambda: True
        management.load_models_gpu([self.patcher])
        return self

    def to(self, device: torch.device, *_: object) -> Core:
        self.held = self.size if device == CUDA else 0
        return self


class Ours:
    """Weights of a network of ours."""

    def __init__(self) -> None:
        self.network = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(4))).requires_grad_(False)
        self.size = sum(tensor.nbytes for tensor in self.network.parameters())
        self.weights = transfers.Weights(ToCard(), resident=True)
        self.kept = host.Kept(self.weights, self.size)
        card.models.append(self)

    def run(self, beside: int = 0) -> Ours:
        self.kept.load(beside=beside)
        with self.weights.stage((self.network,)):
            pass
        return self

    @property
    def held(self) -> int:
        return self.weights.held_bytes

    @property
    def state(self) -> dict[str, Any]:
        return {"listed": len(self.kept.listed()), "held": self.held / self.size}


class OfModel:
    """What a model of ours has kept on the card."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def held(self) -> int:
        return sum(kept.weights.held_bytes for kept in self.model.kept.values())


def listed() -> int:
    """How many models of ours ComfyUI knows."""
    management.cleanup_models()  # as the version of 2024 does when a prompt starts
    return sum(not isinstance(entry.model.model, Core) for entry in management.current_loaded_models)


def evictions() -> dict[str, Any]:
    """Everything that may drive ours away, or be driven away by ours."""
    seen: dict[str, Any] = {}
    ours = Ours()
    seen["a run"] = ours.run().state
    seen["told"] = (ours.kept._patcher.loaded_size() == ours.size) if hasattr(ModelPatcher, "loaded_size") else True
    seen["two runs"] = ours.run().state | {"fetches": ours.weights.transfer.fetches}
    management.unload_all_models()
    seen["unload"] = ours.state
    seen["a run after unload"] = ours.run().state
    management.free_memory(1e30, CUDA)
    seen["free_memory"] = ours.state

    ours.run()
    small = Core(GIB).load()
    seen["a core model that fits"] = ours.state | {"core": small.held > 0}
    large = Core(6 * GIB).load()
    seen["a core model that needs the room"] = ours.state | {"core": large.held > 0}
    large.load()
    ours.run(beside=4 * GIB)
    seen["ours, which needs the room"] = ours.state | {"core": large.held > 0}
    management.unload_all_models()
    ours.run()
    Core(7 * GIB).load(dynamic=True)
    seen["a core model of the dynamic kind"] = ours.state
    card.models[:] = [ours]
    management.current_loaded_models.clear()

    ours.run()
    ours.weights.drop()  # as when memory runs out in the middle of a run
    large = Core(4 * GIB).load()
    card.size = large.held + 2 * GIB + host.devices._reserved() + ours.size // 2  # room beside core's for what ours has beside it, but not for ours
    ours.run(beside=2 * GIB)
    seen["ours, dropped and back"] = ours.state | {"core": large.held > 0}
    card.size = 8 * GIB

    management.unload_all_models()
    ours.run()
    large = Core(4 * GIB).load()
    host.make_room(5 * GIB, keep=ours.kept)
    seen["room made, but ours kept"] = ours.state | {"core": large.held > 0}
    host.make_room(int(7.99 * GIB) - host.devices._reserved())
    seen["room made"] = ours.state
    seen["reserved beside models"] = card.size - card.used - host.free_bytes()

    ours.run()
    card.models.clear()
    weights = weakref.ref(ours.weights)
    del ours
    seen["gone when it died"] = weights() is None
    seen["listed after it died"] = listed()
    return seen


def sampling() -> dict[str, Any]:
    """The sampler's own way, with a plan that keeps the weights and one that streams them: what is held after it, and how many models of ours are listed."""
    seen: dict[str, Any] = {}
    vram.transfer_to = lambda _: ToCard()
    model = checkpoints.open_svd(Path(checkpoint), "fp32", device_type="cuda")
    card.models[:] = [OfModel(model)]
    clip = {"frames": 2, "width": 64, "height": 64}
    plans = {budget: planning.plan_clip(model.parts, model.precision, **clip, budget=budget, device=CUDA) for budget in ("max", "min")}

    def run(model: Any, budget: str) -> dict[str, Any]:
        with vram.sampling(model, *clip.values(), 0, plans[budget]) as how:
            if how.weights is not None:
                with how.weights.stage((model.unet.conv_in,)):
                    pass
        return {"stay": how.weights is not None, "held": card.used > 0, "listed": listed()}

    seen["fastest"] = run(model, "max")
    seen["again"] = run(model, "max")
    seen["smallest"] = run(model, "min")
    seen["and back"] = run(model, "max")
    card.models.clear()
    del model
    seen["listed after the model"] = listed()
    return seen


report: dict[str, Any] = {"state": management.vram_state.name, "may stay": host.weights_may_stay(), "reserved": card.size - host.free_bytes(), "sampling": sampling()}
if report["may stay"]:
    report["evictions"] = evictions()
print(json.dumps(report))
