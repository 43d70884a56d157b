#!/usr/bin/env python3
"""A checkpoint that is on its way, in half the bytes: to keep in the repository what hours of training have reached, where the model in the pack is not replaced yet.

    python training/start.py pack CHECKPOINT training/start.safetensors
    python training/start.py unpack training/start.safetensors CHECKPOINT    # for train.py --start

Weights have 8 bits and a scale for each output channel; the VAE's encoder keeps its 16, since the UNet knows the latents that it makes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import model
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

SCALE = ":scale"


def packed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, large ones as int8 beside the scale of each row; without the encoder's second copy."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(model.VAE + "encoder."):
            continue
        if tensor.ndim < 2 or tensor.numel() < 1024 or name.startswith(model.CONDITION_ENCODER):
            found[name] = tensor
            continue
        rows = tensor.float().flatten(1)
        scale = (rows.abs().amax(1) / 127).clamp(min=1e-8)
        found[name] = (rows / scale[:, None]).round().to(torch.int8).view(tensor.shape)
        found[name + SCALE] = scale
    return found


def unpacked(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, float16."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in found.items():
        if name + SCALE in found:
            tensors[name] = (tensor.float().flatten(1) * found[name + SCALE][:, None]).view(tensor.shape)
        elif not name.endswith(SCALE):
            tensors[name] = tensor
    tensors |= model.first_stage_encoder(tensors)
    # A copy each: the encoder's two share memory, which safetensors refuses.
    return {name: tensors[name].to(torch.float16).clone(memory_format=torch.contiguous_format) for name in model.layout(model.SIZE)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    with safe_open(arguments.file, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(arguments.file)
    save_file(packed(tensors) if arguments.what == "pack" else unpacked(tensors), arguments.out, metadata=metadata)


if __name__ == "__main__":
    main()
