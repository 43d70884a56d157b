#!/usr/bin/env python3
"""The mean of the weights of checkpoints that went on from the same one: nearer to the clips than they are in the runs of `README.md`, perhaps since what a short run gets wrong by chance
differs from run to run (model soups, Wortsman et al. 2022, arXiv:2203.05482).

    python training/mean.py OUT --of A.safetensors 0.3 --of B.safetensors 0.3 --of START.safetensors 0.4
    python training/mean.py OUT --of A.safetensors 1 --decoder A.safetensors 0.5 --decoder C.safetensors 0.5

The UNet's and the image encoder's weights are averaged, and the decoder's where files are named for it; else the VAE is the last file's. All files must have the same encoder, since it is its
latents that their UNets and decoders know.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import model
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
DECODER = model.VAE + "decoder."


def mean(of: Sequence[tuple[Tensors, float]], decoders: Sequence[tuple[Tensors, float]] = ()) -> Tensors:
    """The tensors of a checkpoint from files and their shares, which add up to one: UNet and image encoder the mean of `of`, the decoder that of `decoders` or else the last file's.
    ValueError where there is no such mean."""
    last, _ = of[-1]
    for tensors, _ in (*of, *decoders):
        if {name: tensor.shape for name, tensor in tensors.items()} != {name: tensor.shape for name, tensor in last.items()}:
            raise ValueError("these checkpoints are not of the same networks")
        if not all(torch.equal(tensor, last[name]) for name, tensor in tensors.items() if name.startswith(model.CONDITION_ENCODER)):
            raise ValueError("these checkpoints have different VAE encoders, so their UNets know different latents")
    averaged = _averaged(of, [name for name in last if not name.startswith((model.VAE, model.CONDITION_ENCODER))])
    if decoders:
        averaged |= _averaged(decoders, [name for name in last if name.startswith(DECODER)])
    return last | averaged


def _averaged(files: Sequence[tuple[Tensors, float]], names: Sequence[str]) -> Tensors:
    total = sum(share for _, share in files)
    if any(share < 0 for _, share in files) or not math.isclose(total, 1, abs_tol=1e-6):
        raise ValueError(f"the shares may not be negative and have to add up to 1, not to {total:g}")
    return {name: torch.stack([share * tensors[name].double() for tensors, share in files]).sum(0).to(files[-1][0][name].dtype) for name in names}


def _stages(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _newest(stages: dict[str, str]) -> str:
    """The stage that a checkpoint was made by, in brackets; `train.py` numbers them."""
    numbered = [name for name in stages if name.partition(" ")[0].isdecimal()]
    newest = max(numbered, key=lambda name: int(name.partition(" ")[0]), default=None)
    return f" ({newest}: {stages[newest]})" if newest else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--of", nargs=2, action="append", required=True, metavar=("FILE", "SHARE"), help="a checkpoint and its share; once for each")
    parser.add_argument("--decoder", nargs=2, action="append", default=[], metavar=("FILE", "SHARE"), help="the same for the VAE's decoder")
    arguments = parser.parse_args()
    of, decoders = ([(Path(path), float(share)) for path, share in pairs] for pairs in (arguments.of, arguments.decoder))
    files = {path: load_file(path) for path, _ in (*of, *decoders)}
    try:
        tensors = mean([(files[path], share) for path, share in of], [(files[path], share) for path, share in decoders])
    except ValueError as error:
        parser.error(str(error))
    stages = _stages(of[-1][0])
    told = _told(of) + (f"; decoder: {_told(decoders)}" if decoders else "")
    save_file(tensors, arguments.out, metadata=stages | {f"{len(stages)} mean": told})


def _told(files: Sequence[tuple[Path, float]]) -> str:
    return "; ".join(f"{share:g} of {path.name}{_newest(_stages(path))}" for path, share in files)


if __name__ == "__main__":
    main()
