"""The demo model: how large it is, its networks with fresh weights, and the file they become.

The networks are those that the pack's own loader builds for such a file, so what is trained is what will run; the writer is the loader's mapping turned round.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "scripts", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from make_checkpoint import CLIP, CONDITION_ENCODER, VAE, Shapes, Size, layout  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from lean_video.checkpoints.open import svd_parts  # noqa: E402
from lean_video.models.parts import Part  # noqa: E402
from lean_video.models.svd import _LATENT_TO_RGB  # noqa: E402

# No width below 64: with 32 channels the 32 groups of a norm have one each, so the decoder's last norm would take the frame's colour and brightness away.
SIZE = Size(unet=64, mult=(1, 2), attention=(False, True), unet_blocks=1, vae=32, vae_mult=(2, 2, 3, 3), vae_blocks=1, clip_width=128, clip_layers=1, context=64)
SCALING_FACTOR = 0.18215  # the latents the UNet sees are the VAE's times this, as the loader has it: the VAE is brought to that scale, not the other way round
SIGMA_DATA = 1.0


def plan(folder: Path, size: Size = SIZE) -> dict[str, Part]:
    """The parts "unet", "vae" and "image_encoder" of an empty file in the published layout, which is put into `folder`."""
    path = folder / "layout.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.zeros(shape, dtype=torch.float16) for name, shape in layout(size).items()}, path)
    return svd_parts(path)[1]


@torch.no_grad()
def fresh(part: Part, seed: int) -> Any:
    """The part's network with weights to start from; blocks add nothing yet to what goes through them, so that a deep one trains well from the start."""
    torch.manual_seed(seed)
    module: Any = part.skeleton().to_empty(device="cpu")
    for name, child in module.named_modules():
        if hasattr(child, "reset_parameters"):
            child.reset_parameters()
        if name.endswith("position_embedding"):
            nn.init.normal_(child.weight, std=0.02)
    for name, parameter in module.named_parameters():
        if name.endswith("mix_factor"):
            nn.init.constant_(parameter, 0.0 if part.kind == "unet" else -1.0)
        elif name.endswith("class_embedding"):
            nn.init.normal_(parameter, std=0.02)
        elif part.kind in ("unet", "vae") and name.endswith(("conv2.weight", "conv2.bias", "proj_out.weight", "proj_out.bias")):
            nn.init.normal_(parameter, std=1e-3)
    if part.kind in ("unet", "vae"):
        _see_through(module)
    if part.kind == "unet":
        module.conv_in.weight[:, 4:] *= SCALING_FACTOR  # the image's latents come unscaled
        nn.init.zeros_(module.conv_out.weight)
        nn.init.zeros_(module.conv_out.bias)
    if part.kind == "vae":
        nn.init.dirac_(module.decoder.time_conv_out.weight)  # the taps of other frames learn nothing from stills, so they must be nothing
        nn.init.zeros_(module.decoder.time_conv_out.bias)
        nn.init.dirac_(module.quant_conv.weight)
        nn.init.zeros_(module.quant_conv.bias)
        nn.init.constant_(module.quant_conv.bias[4:], -8.0)  # little noise to begin with
    for name, buffer in module.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return module.train().requires_grad_()


def _see_through(module: nn.Module) -> None:
    """Has what changes the size or the width hand on what it gets, and a little of anything else: a network of blocks that add nothing yet is then one
    that sees a coarse picture of its input, colours and all, which random convolutions would have scattered."""
    for name, conv in module.named_modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        if name.endswith(("downsamplers.0.conv", "upsamplers.0.conv")):
            conv.weight *= 0.3
            nn.init.zeros_(conv.bias)
            diagonal = torch.arange(conv.in_channels)
            if "down" in name:
                conv.weight[diagonal, diagonal, :2, :2] += 0.25
            else:
                line = torch.tensor([1.0, 2.0, 1.0]) / 4
                conv.weight[diagonal, diagonal] += torch.outer(line, line)
        elif name.endswith("conv_shortcut"):
            nn.init.orthogonal_(conv.weight)
        elif name.endswith("conv_in"):
            conv.weight[:, :, 1, 1] += 0.5 * torch.randn(conv.weight.shape[:2])
        elif name.endswith("to_out.0"):
            nn.init.normal_(conv.weight, std=1e-3)


def critic(seed: int) -> nn.Module:
    """What tells pictures [N,3,H,W] from those that a decoder made, patch by patch of 22 pixels: [N,1,H/4-2,W/4-2], positive for pictures."""
    torch.manual_seed(seed)
    slope, wide = 0.2, 64
    layers = [nn.Conv2d(3, wide, 4, 2, 1), nn.LeakyReLU(slope), nn.Conv2d(wide, wide, 4, 2, 1), nn.LeakyReLU(slope), nn.Conv2d(wide, wide, 3), nn.LeakyReLU(slope)]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight, slope)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers, nn.Conv2d(wide, 1, 1))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def normalise_latents(vae: Any, mean_4: Tensor, std: float) -> None:
    """Shifts and scales the VAE's latents, and what its decoder expects, from this mean and standard deviation to 0 and that of SVD's latents, 1 / 0.18215."""
    scale = 1 / (SCALING_FACTOR * std)
    conv, latents = vae.quant_conv, len(mean_4)
    conv.bias[:latents] = (conv.bias[:latents] - mean_4.to(conv.bias.device)) * scale
    conv.weight[:latents] *= scale
    conv.bias[latents:] += 2 * math.log(scale)
    first = vae.decoder.conv_in
    # The decoder pads with zeros, which used to stand for a latent of 0 and now do for the mean: the same but for the frames' edges.
    first.bias += torch.einsum("oikl,i->o", first.weight, mean_4.to(first.weight.device))
    first.weight /= scale


@torch.no_grad()
def colour_rotation(latents_N4: Tensor, rgb_N3: Tensor) -> Tensor:
    """The rotation [4,4] of latents, in the UNet's scale, after which the previews' fixed map of SVD's latents comes nearest to their colours in -1..1."""
    seen_as = torch.tensor(_LATENT_TO_RGB, dtype=torch.float64)
    z, rgb = latents_N4.double(), rgb_N3.double()
    inverse = torch.linalg.pinv(seen_as)
    unseen = torch.eye(4, dtype=torch.float64) - seen_as @ inverse
    rotation = torch.eye(4, dtype=torch.float64)
    for _ in range(200):  # Procrustes, with what the map does not see left as it is
        u, _, v = torch.linalg.svd((rgb @ inverse + z @ rotation.T @ unseen).T @ z)
        rotation = u @ v
    return rotation.float()


@torch.no_grad()
def rotate_latents(rotation_44: Tensor, vae: Any, unet: Any = None) -> None:
    """Turns the latents of the VAE, and of a UNet that works on them. Nothing else changes: noise is the same in every direction."""
    turned = rotation_44.to(vae.quant_conv.weight.device)
    conv = vae.quant_conv
    conv.weight[:4] = torch.einsum("ij,jkyx->ikyx", turned, conv.weight[:4])
    conv.bias[:4] = turned @ conv.bias[:4]
    entries = [vae.decoder.conv_in.weight[:, :4]]
    if unet is not None:
        entries += [unet.conv_in.weight[:, :4], unet.conv_in.weight[:, 4:]]
        unet.conv_out.weight.copy_(torch.einsum("ij,jkyx->ikyx", turned, unet.conv_out.weight))
        unet.conv_out.bias.copy_(turned @ unet.conv_out.bias)
    for weight in entries:
        weight.copy_(torch.einsum("ojyx,ij->oiyx", weight, turned))


@torch.no_grad()
def rescale_buckets(unet: Any, ratio: float) -> None:
    """Has each motion bucket b mean to the UNet what `ratio` times b did, so that training on clips as many times faster starts from what it knows.

    By least squares over the buckets, with fast waves of their embedding discouraged, since those would not carry over between buckets. What lies beyond
    the 255 that it knew goes on straight, as a tenth of the weight of what it knew.
    """
    first = unet.add_embedding.linear_1
    width = first.in_features // 3
    buckets = torch.arange(256.0)
    waves = unet.add_time_proj(buckets).double()
    meant = waves @ first.weight[:, width : 2 * width].double().T
    asked = ratio * buckets.double()
    known = asked <= 255
    late = buckets[170:].double()
    level, slope = torch.linalg.lstsq(torch.stack([torch.ones_like(late), late - 255], 1), meant[170:]).solution
    target = level + slope * (asked - 255)[:, None]
    target[known] = unet.add_time_proj(asked[known].float()).double() @ first.weight[:, width : 2 * width].double().T
    weight = torch.where(known, 1.0, 0.1).double()
    speed = 10_000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    normal = waves.T @ (weight[:, None] * waves) + torch.diag(1e-4 * (1 + (30 * speed.repeat(2)) ** 2))
    first.weight[:, width : 2 * width] = torch.linalg.solve(normal, waves.T @ (weight[:, None] * target)).T


def file_tensors(modules: Mapping[str, nn.Module], parts: Mapping[str, Part], shapes: Shapes) -> dict[str, Tensor]:
    """The networks' weights under the published names and in the published shapes, fp16: the inverse of how `Part` reads them."""
    stored: dict[str, Tensor] = {}
    for key, part in parts.items():
        weights = {name: tensor.detach().cpu() for name, tensor in modules[key].state_dict().items()}
        (names,) = part.files.values()
        for target, source in names.items():
            fused, _, leaf = target.rpartition(".")
            if fused in part.split:
                tensor = torch.cat([weights[f"{piece}.{leaf}"] for piece in part.split[fused]])
            else:
                tensor = weights[target].T if target in part.transposed else weights[target]
            stored[source] = tensor.reshape(shapes[source])
    stored |= first_stage_encoder(stored)
    if stored.keys() != shapes.keys():
        raise RuntimeError(f"the layout and the networks differ in {sorted(stored.keys() ^ shapes.keys())[:5]}")
    return {name: stored[name].to(torch.float16).contiguous() for name in shapes}


def first_stage_encoder(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder once more, as the first stage has it: with quant_conv folded into its last convolution."""
    encoder = {VAE + name.removeprefix(CONDITION_ENCODER): tensor for name, tensor in stored.items() if name.startswith(CONDITION_ENCODER + "encoder.")}
    quant, last = stored[CONDITION_ENCODER + "quant_conv.weight"][:, :, 0, 0].double(), VAE + "encoder.conv_out."
    weight, bias = encoder[last + "weight"].double(), encoder[last + "bias"].double()
    encoder[last + "weight"] = torch.einsum("om,mikl->oikl", quant, weight).float()
    encoder[last + "bias"] = (quant @ bias + stored[CONDITION_ENCODER + "quant_conv.bias"].double()).float()
    return encoder


def save(path: Path, modules: Mapping[str, nn.Module], parts: Mapping[str, Part], metadata: Mapping[str, str], size: Size = SIZE) -> int:
    """Writes the checkpoint; its size in bytes."""
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(file_tensors(modules, parts, layout(size)), partial, metadata=dict(metadata))
    partial.replace(path)
    return path.stat().st_size


__all__ = ["CLIP", "SIZE", "colour_rotation", "count", "first_stage_encoder", "fresh", "normalise_latents", "plan", "rescale_buckets", "rotate_latents", "save"]
