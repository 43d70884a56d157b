"""One component of a checkpoint: how to build its module and where its weights lie."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import LeanVideoError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Kind = Literal["unet", "vae", "image_vae", "image_encoder"]
_CONSTRUCTING = threading.Lock()  # two threads that import diffusers for the first time at once, each find half of it
_TITLES: Mapping[Kind, str] = {"unet": "UNet", "vae": "VAE", "image_vae": "VAE", "image_encoder": "image encoder"}


@dataclass(frozen=True)
class Part:
    """A component that is not loaded yet.

    kind            which module class it is
    config          keyword arguments of that class
    files           file → {name in the module: name in the file}
    split           module name of a fused projection → the modules its rows are divided among, in order
    transposed      module names whose matrix lies transposed in the file
    identity_convs  1x1 convolutions that the file leaves out because they do nothing
    """

    kind: Kind
    config: Mapping[str, Any]
    files: Mapping[Path, Mapping[str, str]]
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    transposed: tuple[str, ...] = ()
    identity_convs: tuple[str, ...] = ()

    def build(self, dtype: torch.dtype, float32_prefixes: tuple[str, ...] = ()) -> nn.Module:
        """The module with its weights, on the CPU, in evaluation mode.

        Weights already in `dtype` stay memory-mapped: they take no RAM until they are read.
        Tensors whose name starts with one of `float32_prefixes` are kept in float32.
        Raises LeanVideoError when the file's tensors are not exactly those the module needs.
        """
        import torch

        for problem in self.problems():
            raise LeanVideoError(problem)
        module = self.skeleton()
        weights = self._read(dtype, float32_prefixes)
        for name in self.identity_convs:
            conv: Any = module.get_submodule(name)
            weights[f"{name}.weight"] = torch.eye(conv.out_channels)[:, :, None, None]
            weights[f"{name}.bias"] = torch.zeros(conv.out_channels)
        module.load_state_dict(weights, assign=True)
        _fill_index_buffers(module)
        return module.requires_grad_(False).eval()

    def problems(self) -> list[str]:
        """A sentence for each way in which the files' tensors are not exactly those the module needs; reads headers only."""
        import torch
        from safetensors import safe_open

        with torch.device("meta"):
            stored: dict[str, Tensor] = {}
            for path, names in self.files.items():
                with safe_open(path, framework="pt", device="cpu") as file:
                    for target, source in names.items():
                        stored[target] = torch.empty(file.get_slice(source).get_shape())
            needed = self.skeleton().state_dict()
        have = {name: tensor.shape for name, tensor in self._arrange(stored).items()}
        want = {name: tensor.shape for name, tensor in needed.items() if name.rpartition(".")[0] not in self.identity_convs}
        kinds = (
            (sorted(want.keys() - have.keys()), "missing"),
            (sorted(have.keys() - want.keys()), "unknown"),
            (sorted(name for name in want.keys() & have.keys() if want[name] != have[name]), "of the wrong shape"),
        )
        where = next(iter(self.files)).name
        return [
            f"The {_TITLES[self.kind]} of {where} does not fit Stable Video Diffusion: {len(names)} tensors are {what}, first {names[0]}; download the file again."
            for names, what in kinds
            if names
        ]

    def skeleton(self) -> nn.Module:
        """The module on the meta device: every shape, no weights."""
        import torch

        with torch.device("meta"):
            module = _construct(self.kind, self.config).eval()
        return torch.nn.Module.to(module, "meta")  # diffusers makes some parameters on the CPU whatever the device

    def _read(self, dtype: torch.dtype, float32_prefixes: tuple[str, ...]) -> dict[str, Tensor]:
        import torch
        from safetensors import SafetensorError, safe_open

        stored: dict[str, Tensor] = {}
        for path, names in self.files.items():
            try:
                with safe_open(path, framework="pt", device="cpu") as file:
                    stored |= {target: file.get_tensor(source) for target, source in names.items()}
            except (OSError, SafetensorError) as error:
                raise LeanVideoError(f"{path.name} cannot be read ({error}): download it again.") from None
        return {name: tensor.to(torch.float32 if name.startswith(float32_prefixes or ("\0",)) else dtype) for name, tensor in self._arrange(stored).items()}

    def _arrange(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        """The file's tensors in the module's shapes; views, no copies."""
        weights: dict[str, Tensor] = {}
        for name, tensor in stored.items():
            fused, _, leaf = name.rpartition(".")
            if fused in self.split:
                targets = self.split[fused]
                weights |= {f"{target}.{leaf}": piece for target, piece in zip(targets, tensor.chunk(len(targets)), strict=False)}
            elif name in self.transposed:
                weights[name] = tensor.T
            elif tensor.ndim == 4 and ".attentions." in name and self.kind in ("vae", "image_vae"):
                weights[name] = tensor[:, :, 0, 0]  # a 1x1 convolution there, a linear layer here
            else:
                weights[name] = tensor
        return weights


def _construct(kind: Kind, config: Mapping[str, Any]) -> nn.Module:
    with _CONSTRUCTING:
        return _constructed(kind, config)


def _constructed(kind: Kind, config: Mapping[str, Any]) -> nn.Module:
    if kind == "image_encoder":
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        return CLIPVisionModelWithProjection(CLIPVisionConfig(**config))
    if kind == "unet":
        from diffusers import UNetSpatioTemporalConditionModel

        return correct_norm_eps(UNetSpatioTemporalConditionModel(**config))
    if kind == "vae":
        return _temporal_vae(dict(config))
    from diffusers import AutoencoderKL

    return AutoencoderKL(**config)


def _temporal_vae(config: dict[str, Any]) -> nn.Module:
    from diffusers import AutoencoderKLTemporalDecoder
    from diffusers.models.unets.unet_3d_blocks import MidBlockTemporalDecoder

    mid_block_layers = config.pop("mid_block_layers", config.get("layers_per_block"))
    vae: Any = AutoencoderKLTemporalDecoder(**config)
    if len(vae.decoder.mid_block.resnets) != mid_block_layers:
        # diffusers ties the middle's depth to layers_per_block, the published layout has two whatever that is
        width = config["block_out_channels"][-1]
        vae.decoder.mid_block = MidBlockTemporalDecoder(num_layers=mid_block_layers, in_channels=width, out_channels=width, attention_head_dim=width)
    return vae


def correct_norm_eps(unet: nn.Module) -> nn.Module:
    """Sets the reference's 1e-5 in every resnet norm of the UNet, spatial and temporal; diffusers has 1e-6 in most of them.

    Source: sgm `modules/diffusionmodules/util.py`, `normalization` (GroupNorm32 with torch's default eps).
    """
    from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock

    for block in unet.modules():
        if isinstance(block, (ResnetBlock2D, TemporalResnetBlock)):
            block.norm1.eps = block.norm2.eps = 1e-5
    return unet


def _fill_index_buffers(module: nn.Module) -> None:
    """Gives a value to the position indices that CLIP computes at construction and no file holds."""
    import torch

    for name, buffer in module.named_buffers():
        if buffer.is_meta:
            if not name.endswith("position_ids"):
                raise RuntimeError(f"{type(module).__name__} has a buffer {name} that no checkpoint fills")
            owner, leaf = module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            owner.register_buffer(leaf, torch.arange(buffer.shape[-1]).expand(buffer.shape).clone(), persistent=False)
