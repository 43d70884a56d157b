#!/usr/bin/env python3
"""Write an SVD checkpoint of random weights in the true layout of the published files, at any size.

The demo, the tests and the benches run on such files: the same 2,300 tensor names as `svd_xt.safetensors` at size "full", fewer and narrower at the others.
The layout is spelled out here on its own, not derived from the engine, so that a file from this script proves the engine's loader.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

Shapes = dict[str, tuple[int, ...]]

CLIP = "conditioner.embedders.0.open_clip.model.visual."
CONDITION_ENCODER = "conditioner.embedders.3.encoder."
UNET = "model.diffusion_model."
VAE = "first_stage_model."


@dataclass(frozen=True)
class Size:
    """Widths and depths. `attention` says for each UNet level whether it has transformers."""

    unet: int
    mult: tuple[int, ...] = (1, 2, 4, 4)
    attention: tuple[bool, ...] = (True, True, True, False)
    unet_blocks: int = 2
    vae: int = 32
    vae_mult: tuple[int, ...] = (1, 2, 4, 4)
    vae_blocks: int = 2
    clip_width: int = 160
    clip_layers: int = 2
    context: int = 64
    image_decoder: bool = False


SIZES = {
    "tiny": Size(unet=64, mult=(1, 1), attention=(True, False), unet_blocks=1, vae_mult=(1, 1, 1, 1), vae_blocks=1, clip_width=80, clip_layers=1),
    "small": Size(unet=64, mult=(1, 1, 2, 2), unet_blocks=1, vae_mult=(1, 1, 2, 2), vae_blocks=1),
    "mid": Size(unet=128, mult=(1, 2, 2, 2), vae=64, context=256, clip_width=320, clip_layers=4),
    "full": Size(unet=320, vae=128, clip_width=1280, clip_layers=32, context=1024),
}


def layout(size: Size) -> Shapes:
    """Every tensor name of a checkpoint of this size, with its shape."""
    shapes: Shapes = {}
    shapes.update(_prefixed(CLIP, _clip(size)))
    shapes.update(_prefixed(CONDITION_ENCODER, _encoder(size) | _conv("quant_conv", 8, 8, 1)))
    shapes.update(_prefixed(UNET, _unet(size)))
    shapes.update(_prefixed(VAE, _encoder(size) | _decoder(size)))
    if size.image_decoder:
        shapes.update(_prefixed(VAE, _conv("quant_conv", 8, 8, 1) | _conv("post_quant_conv", 4, 4, 1)))
    return shapes


def _prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def _conv(name: str, cin: int, cout: int, kernel: int, dims: int = 2) -> Shapes:
    taps = (kernel,) * dims if dims == 2 else (kernel, 1, 1)
    return {f"{name}.weight": (cout, cin, *taps), f"{name}.bias": (cout,)}


def _linear(name: str, cin: int, cout: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (cout, cin)} | ({f"{name}.bias": (cout,)} if bias else {})


def _norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _clip(size: Size) -> Shapes:
    width, patches = size.clip_width, (224 // 14) ** 2
    shapes: Shapes = {
        "class_embedding": (width,),
        "positional_embedding": (patches + 1, width),
        "proj": (width, size.context),
        "conv1.weight": (width, 3, 14, 14),
    }
    shapes |= _norm("ln_pre", width) | _norm("ln_post", width)
    for layer in range(size.clip_layers):
        name = f"transformer.resblocks.{layer}."
        shapes |= _norm(name + "ln_1", width) | _norm(name + "ln_2", width)
        shapes |= {name + "attn.in_proj_weight": (3 * width, width), name + "attn.in_proj_bias": (3 * width,)}
        shapes |= _linear(name + "attn.out_proj", width, width)
        shapes |= _linear(name + "mlp.c_fc", width, 4 * width) | _linear(name + "mlp.c_proj", 4 * width, width)
    return shapes


def _unet(size: Size) -> Shapes:
    base, emb = size.unet, 4 * size.unet
    shapes = _linear("time_embed.0", base, emb) | _linear("time_embed.2", emb, emb)
    shapes |= _linear("label_emb.0.0", 768, emb) | _linear("label_emb.0.2", emb, emb)
    shapes |= _conv("input_blocks.0.0", 8, base, 3)
    index, channels, skips = 1, base, [base]
    for level, mult in enumerate(size.mult):
        for _ in range(size.unet_blocks):
            shapes |= _unet_resnet(f"input_blocks.{index}.0", channels, mult * base, emb)
            channels = mult * base
            if size.attention[level]:
                shapes |= _transformer(f"input_blocks.{index}.1", channels, size.context)
            skips.append(channels)
            index += 1
        if level + 1 < len(size.mult):
            shapes |= _conv(f"input_blocks.{index}.0.op", channels, channels, 3)
            skips.append(channels)
            index += 1
    shapes |= _unet_resnet("middle_block.0", channels, channels, emb)
    shapes |= _transformer("middle_block.1", channels, size.context)
    shapes |= _unet_resnet("middle_block.2", channels, channels, emb)
    index = 0
    for level in reversed(range(len(size.mult))):
        for block in range(size.unet_blocks + 1):
            out = size.mult[level] * base
            shapes |= _unet_resnet(f"output_blocks.{index}.0", channels + skips.pop(), out, emb)
            channels = out
            if size.attention[level]:
                shapes |= _transformer(f"output_blocks.{index}.1", channels, size.context)
            if level > 0 and block == size.unet_blocks:
                shapes |= _conv(f"output_blocks.{index}.{2 if size.attention[level] else 1}.conv", channels, channels, 3)
            index += 1
    return shapes | _norm("out.0", base) | _conv("out.2", base, 4, 3)


def _unet_resnet(name: str, cin: int, cout: int, emb: int) -> Shapes:
    shapes = _norm(f"{name}.in_layers.0", cin) | _conv(f"{name}.in_layers.2", cin, cout, 3)
    shapes |= _linear(f"{name}.emb_layers.1", emb, cout)
    shapes |= _norm(f"{name}.out_layers.0", cout) | _conv(f"{name}.out_layers.3", cout, cout, 3)
    if cin != cout:
        shapes |= _conv(f"{name}.skip_connection", cin, cout, 1)
    shapes |= _time_stack(f"{name}.time_stack", cout) | _linear(f"{name}.time_stack.emb_layers.1", emb, cout)
    return shapes | {f"{name}.time_mixer.mix_factor": (1,)}


def _time_stack(name: str, channels: int) -> Shapes:
    shapes = _norm(f"{name}.in_layers.0", channels) | _conv(f"{name}.in_layers.2", channels, channels, 3, dims=3)
    return shapes | _norm(f"{name}.out_layers.0", channels) | _conv(f"{name}.out_layers.3", channels, channels, 3, dims=3)


def _transformer(name: str, channels: int, context: int) -> Shapes:
    shapes = _norm(f"{name}.norm", channels) | {f"{name}.time_mixer.mix_factor": (1,)}
    shapes |= _linear(f"{name}.proj_in", channels, channels) | _linear(f"{name}.proj_out", channels, channels)
    shapes |= _linear(f"{name}.time_pos_embed.0", channels, 4 * channels) | _linear(f"{name}.time_pos_embed.2", 4 * channels, channels)
    shapes |= _transformer_block(f"{name}.transformer_blocks.0", channels, context)
    temporal = f"{name}.time_stack.0"
    shapes |= _transformer_block(temporal, channels, context)
    return shapes | _norm(f"{temporal}.norm_in", channels) | _feed_forward(f"{temporal}.ff_in", channels)


def _transformer_block(name: str, channels: int, context: int) -> Shapes:
    shapes: Shapes = {}
    for attention, keys in (("attn1", channels), ("attn2", context)):
        shapes |= _linear(f"{name}.{attention}.to_q", channels, channels, bias=False)
        shapes |= _linear(f"{name}.{attention}.to_k", keys, channels, bias=False)
        shapes |= _linear(f"{name}.{attention}.to_v", keys, channels, bias=False)
        shapes |= _linear(f"{name}.{attention}.to_out.0", channels, channels)
    for norm in ("norm1", "norm2", "norm3"):
        shapes |= _norm(f"{name}.{norm}", channels)
    return shapes | _feed_forward(f"{name}.ff", channels)


def _feed_forward(name: str, channels: int) -> Shapes:
    return _linear(f"{name}.net.0.proj", channels, 8 * channels) | _linear(f"{name}.net.2", 4 * channels, channels)


def _vae_resnet(name: str, cin: int, cout: int, temporal: bool) -> Shapes:
    shapes = _norm(f"{name}.norm1", cin) | _conv(f"{name}.conv1", cin, cout, 3)
    shapes |= _norm(f"{name}.norm2", cout) | _conv(f"{name}.conv2", cout, cout, 3)
    if cin != cout:
        shapes |= _conv(f"{name}.nin_shortcut", cin, cout, 1)
    if temporal:
        shapes |= _time_stack(f"{name}.time_stack", cout) | {f"{name}.mix_factor": (1,)}
    return shapes


def _vae_middle(name: str, channels: int, temporal: bool) -> Shapes:
    shapes = _vae_resnet(f"{name}.block_1", channels, channels, temporal) | _vae_resnet(f"{name}.block_2", channels, channels, temporal)
    shapes |= _norm(f"{name}.attn_1.norm", channels)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= _conv(f"{name}.attn_1.{part}", channels, channels, 1)
    return shapes


def _encoder(size: Size) -> Shapes:
    widths = [size.vae * mult for mult in size.vae_mult]
    shapes, channels = _conv("encoder.conv_in", 3, widths[0], 3), widths[0]
    for level, width in enumerate(widths):
        for block in range(size.vae_blocks):
            shapes |= _vae_resnet(f"encoder.down.{level}.block.{block}", channels, width, temporal=False)
            channels = width
        if level + 1 < len(widths):
            shapes |= _conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
    shapes |= _vae_middle("encoder.mid", channels, temporal=False)
    return shapes | _norm("encoder.norm_out", channels) | _conv("encoder.conv_out", channels, 8, 3)


def _decoder(size: Size) -> Shapes:
    temporal = not size.image_decoder
    widths = [size.vae * mult for mult in size.vae_mult]
    channels = widths[-1]
    shapes = _conv("decoder.conv_in", 4, channels, 3) | _vae_middle("decoder.mid", channels, temporal)
    for level in reversed(range(len(widths))):
        for block in range(size.vae_blocks + 1):
            shapes |= _vae_resnet(f"decoder.up.{level}.block.{block}", channels, widths[level], temporal)
            channels = widths[level]
        if level > 0:
            shapes |= _conv(f"decoder.up.{level}.upsample.conv", channels, channels, 3)
    shapes |= _norm("decoder.norm_out", channels) | _conv("decoder.conv_out", channels, 3, 3)
    return shapes | (_conv("decoder.conv_out.time_mix_conv", 3, 3, 3, dims=3) if temporal else {})


def random_weights(shapes: Shapes, dtype_name: str = "float32", seed: int = 0):
    """Seeded random tensors whose activations stay near unit size: fan-in scaling, norms near one, every blend factor its own."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, dtype_name)
    weights = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("mix_factor"):
            pass
        elif len(shape) == 1:
            value = value * 0.1 + (1.0 if name.endswith("weight") else 0.0)
        else:
            value = value / math.sqrt(math.prod(shape[1:]))
        weights[name] = value.to(dtype)
    return weights


def write_hollow(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16") -> Path:
    """A real safetensors header whose data is a hole in the file: a checkpoint of any size for a few kilobytes of disk, to be planned for and not to be run."""
    entries: dict[str, object] = {}
    end = 0
    for tensor, shape in shapes.items():
        start, end = end, end + {"F32": 4, "F16": 2, "BF16": 2}[dtype] * math.prod(shape)
        entries[tensor] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)
    return path


def write_checkpoint(path: Path, size: Size, dtype_name: str = "float32", seed: int = 0) -> Path:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(random_weights(layout(size), dtype_name, seed), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-decoder", action="store_true", help="a plain image decoder, as in svd_xt_image_decoder.safetensors")
    arguments = parser.parse_args()
    size = replace(SIZES[arguments.size], image_decoder=arguments.image_decoder)
    path = write_checkpoint(arguments.out, size, arguments.dtype, arguments.seed)
    print(json.dumps({"file": str(path), "bytes": path.stat().st_size}))


if __name__ == "__main__":
    main()
