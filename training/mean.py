#!/usr/bin/env python3
"""The mean of the weights of checkpoints that went on from the same one: nearer to the clips than they are in the runs of `README.md`, perhaps since what a short run gets wrong by chance
differs from run to run (model soups, Wortsman et al. 2022, arXiv:2203.05482).

    python training/mean.py OUT --of A.safetensors 0.3 --of B.safetensors 0.3 --of START.safetensors 0.4

The UNet's and the image encoder's weights are averaged. The VAE is the last file's; all files must have the same encoder, since it is its latents that their UNets know.
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


def mean(files: Sequence[dict[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose UNet and image encoder are the mean by shares, which add up to one. ValueError where there is no such mean."""
    if any(share < 0 for share in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ValueError(f"the shares may not be negative and have to add up to 1, not to {sum(shares):g}")
    last = files[-1]
    for tensors in files:
        if {name: tensor.shape for name, tensor in tensors.items()} != {name: tensor.shape for name, tensor in last.items()}:
            raise ValueError("these checkpoints are not of the same networks")
        if not all(torch.equal(tensor, last[name]) for name, tensor in tensors.items() if name.startswith(model.CONDITION_ENCODER)):
            raise ValueError("these checkpoints have different VAE encoders, so their UNets know different latents")
    found = dict(last)
    for name, tensor in last.items():
        if not name.startswith((model.VAE, model.CONDITION_ENCODER)):
            found[name] = torch.stack([share * tensors[name].double() for tensors, share in zip(files, shares, strict=True)]).sum(0).to(tensor.dtype)
    return found


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
    arguments = parser.parse_args()
    paths, shares = [Path(path) for path, _ in arguments.of], [float(share) for _, share in arguments.of]
    try:
        tensors = mean([load_file(path) for path in paths], shares)
    except ValueError as error:
        parser.error(str(error))
    stages = [_stages(path) for path in paths]
    of = "; ".join(f"{share:g} of {path.name}{_newest(stage)}" for path, share, stage in zip(paths, shares, stages, strict=True))
    save_file(tensors, arguments.out, metadata=stages[-1] | {f"{len(stages[-1])} mean": of})


if __name__ == "__main__":
    main()
