"""Run by a host's own Python, in the host's folder: our pack beside core's models, on a device that is pretended.

The device is torch's meta device, whose free memory is told by `Card`; everything that decides who has to go is ComfyUI's own.
Arguments: the pack's folder, then ComfyUI's own. Prints one line of JSON: what happened.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

pack, *flags = sys.argv[1:]
sys.argv[1:] = ["--cpu", *flags]
sys.path[0] = str(Path.cwd())

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management as management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import torch  # noqa: E402

spec = importlib.util.spec_from_file_location("lean_video_pack", Path(pack) / "__init__.py", submodule_search_locations=[pack])
assert spec is not None
assert spec.loader is not None
module = importlib.util.module_from_spec(spec)
sys.modules["lean_video_pack"] = module
spec.loader.exec_module(module)
host: Any = sys.modules["lean_video_pack.nodes.host"]
transfer: Any = sys.modules["lean_video_pack.lean_video.lean.transfer"]

META, GIB = torch.device("meta"), 2**30


class Core(torch.nn.Module):
    """A model of core's, of a size that is pretended."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.on_device = size, False
        self.patcher = comfy.model_patcher.ModelPatcher(self, load_device=META, offload_device=torch.device("cpu"), size=size)

    def to(self, device: torch.device, *args: object) -> Core:
        self.on_device = torch.device(device) == META
        return self


class Ours:
    def __init__(self) -> None:
        self.network = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(4))).requires_grad_(False)
        self.size = sum(tensor.nbytes for tensor in self.network.parameters())
        self.weights = transfer.Weights(transfer.Transfer(META), resident=True)
        self.kept = host.Kept(self.weights, self.size)

    def run(self, beside: int = 0) -> None:
        self.kept.load(beside=beside)
        with self.weights.stage((self.network,)):
            pass
        self.kept.settle()

    @property
    def held(self) -> int:
        return self.weights.held_bytes


class Card:
    """Free memory of the device: its size less what models hold there."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.models: list[Any] = []

    def free(self, device: object = None, torch_free_too: bool = False) -> Any:
        held = sum(model.held if isinstance(model, Ours) else model.size if model.on_device else 0 for model in self.models)
        return (self.size - held, self.size - held) if torch_free_too else self.size - held


card = Card(64 * GIB)
management.get_torch_device = lambda: META
management.get_free_memory = card.free
management.vram_state = management.VRAMState.NORMAL_VRAM
management.unet_offload_device = lambda: torch.device("cpu")
management.soft_empty_cache = lambda *_: None
report: dict[str, Any] = {}


def listed(model: Ours) -> bool:
    return any(entry.model is model.kept._patcher for entry in management.current_loaded_models)


def load_core(size: int) -> Core:
    core = Core(size)
    card.models.append(core)
    management.load_models_gpu([core.patcher])
    return core


ours = Ours()
card.models.append(ours)
ours.run()
report["listed after a run"] = listed(ours)
report["held after a run"] = ours.held == ours.size
ours.run()
report["listed once after two runs"] = sum(entry.model is ours.kept._patcher for entry in management.current_loaded_models)
report["held after two runs"] = ours.held == ours.size
management.unload_all_models()
report["held after unload"] = ours.held
report["listed after unload"] = listed(ours)
ours.run()
management.free_memory(1e30, META)
report["held after free_memory"] = ours.held

ours.run()
small = load_core(GIB)
report["held beside a core model that fits"] = ours.held == ours.size
card.size = 8 * GIB
large = load_core(6 * GIB)
report["core loaded"] = large.on_device
report["held beside a core model that needs the room"] = ours.held

report["core on device before ours"] = large.on_device
ours.run(beside=4 * GIB)
report["core on device beside ours"] = large.on_device
report["held in its place"] = ours.held == ours.size
large = load_core(5 * GIB)
report["core back"] = large.on_device
host.make_room(6 * GIB)
report["core on device after make_room"] = large.on_device
report["free"] = host.free_bytes()
report["free without a reserve"] = card.free()

states = management.VRAMState
report["may stay"] = {}
for name in ("NORMAL_VRAM", "HIGH_VRAM", "LOW_VRAM", "NO_VRAM", "SHARED", "DISABLED"):
    management.vram_state = getattr(states, name)
    report["may stay"][name] = host.weights_may_stay()
management.vram_state = states.NORMAL_VRAM
smart, management.DISABLE_SMART_MEMORY = management.DISABLE_SMART_MEMORY, True
report["may stay"]["--disable-smart-memory"] = host.weights_may_stay()
management.DISABLE_SMART_MEMORY = smart

management.unload_all_models()
ours.run()
card.models.clear()
del ours, small, large
gc.collect()
management.cleanup_models()
gc.collect()
report["listed after it died"] = len(management.current_loaded_models)
print(json.dumps(report))
