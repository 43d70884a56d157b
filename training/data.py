"""Clips for training: rendered over free pictures, and cut out of free films; with what the two controls of SVD mean.

motion bucket  128 for three pixels a frame, at 6 frames a second and 128 pixels of height; linear in all of them, so it is a speed. Measured as the
               mean length of the optical flow (OpenCV's DIS) between neighbouring frames, whatever the clip shows.
fps            how densely the clip samples time.

`python training/data.py FOLDER` renders a cache of clips; the training does it by itself.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import sources

cv2.setNumThreads(1)  # a pool of threads would not survive the fork of the workers, which are what runs side by side here
Rng = np.random.Generator
FRAMES = 14
BUCKET_PER_PIXEL, REFERENCE_FPS, REFERENCE_HEIGHT = 128 / 3, 6, 128
RATES = (6, 7, 8, 10, 12, 16, 24)
_RATE_SHARES = (0.45, 0.15, 0.12, 0.1, 0.1, 0.04, 0.04)


def bucket_of(flow: float, fps: float, height: int) -> int:
    """Motion bucket, 0..255, of a clip whose pixels move `flow` pixels a frame."""
    return round(min(255.0, BUCKET_PER_PIXEL * flow * fps / REFERENCE_FPS * REFERENCE_HEIGHT / height))


def flow_of(bucket: float, fps: float, height: int) -> float:
    """Pixels a frame that a clip of this bucket moves."""
    return bucket / BUCKET_PER_PIXEL * REFERENCE_FPS / fps * height / REFERENCE_HEIGHT


def flow_lengths(frames_THW3: np.ndarray) -> np.ndarray:
    """Mean length of the optical flow from each frame to the next, in pixels, [T-1]."""
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames_THW3]
    return np.array([np.linalg.norm(dis.calc(before, after, None), axis=-1).mean() for before, after in pairwise(grey)], np.float32)


def sharpness(frames_NHW3: np.ndarray) -> float:
    """Mean length of the brightness gradient, of one frame or several."""
    grey = frames_NHW3.astype(np.float32).mean(-1)
    return float(np.hypot(np.diff(grey, axis=-1)[..., :-1, :], np.diff(grey, axis=-2)[..., :-1]).mean())


@dataclass(frozen=True)
class Clip:
    """frames [T,H,W,3] uint8, fps, and `flow_lengths`."""

    frames: np.ndarray
    fps: int
    flows: np.ndarray


@dataclass(frozen=True)
class Material:
    """What clips are made of: pictures as pyramids (each level half the one before), and shots of films."""

    pyramids: tuple[tuple[np.ndarray, ...], ...]
    shots: tuple[tuple[sources.Shot, np.ndarray], ...]


@functools.cache
def material(held_out: bool = False) -> Material:
    """What to train on, or what was held out. Cameras move over both ends of a training shot too, lest only what stays where it is, as the cameras
    of films do at low buckets, look like a film's."""
    shots = tuple(sources.shots(held_out))
    ends = () if held_out else tuple(frames[index] for _, frames in shots for index in (0, -1))
    return Material(tuple(_pyramid(picture) for picture in (*sources.pictures(held_out).values(), *ends)), shots)


def make(made_of: Material, width: int, height: int, rng: Rng) -> Clip:
    """A clip of any kind."""
    kind = rng.choice(len(_KINDS), p=[share for _, share in _KINDS])
    frames, fps = _KINDS[kind][0](made_of, width, height, rng)
    return Clip(frames, fps, flow_lengths(frames))


def flatly(made_of: Material, width: int, height: int, rng: Rng) -> np.ndarray:
    """A still [H,W,3]: as much of one of the pictures as has the shape asked for, or half of that."""
    pyramid = made_of.pyramids[rng.integers(len(made_of.pyramids))]
    tall, wide = pyramid[0].shape[:2]
    camera = _Camera(np.zeros(2), min(wide / width, tall / height) * rng.uniform(0.5, 1.0), 0.0, np.zeros(2), 0.0, 0.0)
    half = np.array([width, height]) * camera.scale / 2
    centre = half + rng.random(2) * (np.array([wide, tall]) - 2 * half)
    return replace(camera, centre=centre).frame(pyramid, 0, width, height)


# Films


def _film(made_of: Material, width: int, height: int, rng: Rng) -> tuple[np.ndarray, int]:
    lengths = np.array([len(frames) for _, frames in made_of.shots], float)
    shot, frames = made_of.shots[rng.choice(len(lengths), p=lengths / lengths.sum())]
    stride = int(rng.choice([s for s in (1, 2, 3, 4) if s * (FRAMES - 1) < len(frames)]))
    first = int(rng.integers(len(frames) - stride * (FRAMES - 1)))
    tall, wide = frames.shape[1:3]
    scale = float(rng.uniform(1, min(tall / height, wide / width)))
    h, w = int(height * scale), int(width * scale)
    y, x = int(rng.integers(tall - h + 1)), int(rng.integers(wide - w + 1))
    flip = -1 if rng.random() < 0.5 else 1
    taken = [cv2.resize(frame[y : y + h, x : x + w][:, ::flip], (width, height), interpolation=cv2.INTER_AREA) for frame in frames[first::stride][:FRAMES]]
    return np.stack(taken), round(shot.fps / stride)


# Pictures


@dataclass(frozen=True)
class _Camera:
    """How a picture is looked at: its centre (in pixels of the picture), how many of them one pixel shows, the angle; and how they change in a frame."""

    centre: np.ndarray
    scale: float
    angle: float
    pan: np.ndarray
    zoom: float
    turn: float

    def frame(self, pyramid: tuple[np.ndarray, ...], index: float, width: int, height: int) -> np.ndarray:
        centre, scale, angle = self.centre + index * self.pan, self.scale * math.exp(-self.zoom * index), self.angle + self.turn * index
        level = min(max(int(math.log2(max(scale, 1e-6))), 0), len(pyramid) - 1)
        step = scale / 2**level / 2  # twice as fine as the frame, and reduced then: no aliasing, and little blur
        cos, sin = step * math.cos(angle), step * math.sin(angle)
        middle = centre / 2**level - np.array([[cos, -sin], [sin, cos]]) @ np.array([width - 0.5, height - 0.5])
        matrix = np.array([[cos, -sin, middle[0]], [sin, cos, middle[1]]])
        fine = cv2.warpAffine(pyramid[level], matrix, (2 * width, 2 * height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT_101)
        return cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)


def _camera(pyramid: tuple[np.ndarray, ...], width: int, height: int, flow: float, rng: Rng) -> _Camera:
    """A steady move over a picture, by `flow` pixels a frame in the mean, that stays inside it where it is large enough.

    Nearly all cameras move straight to the right: from one picture a network as small as this makes the mean of all ways that clips go on,
    and that is a blur unless most go the same way.
    """
    tall, wide = pyramid[0].shape[:2]
    kind = rng.choice(4, p=(0.93, 0.04, 0.01, 0.02))  # pan, zoom, turn, pan and zoom
    radius = 0.3826 * (width + height) / 2  # mean distance of a pixel from the middle, of a square of this side
    heading = rng.uniform(0, 2 * math.pi) if rng.random() < 0.03 else 0.0
    share = {0: (1.0, 0.0, 0.0), 1: (0.0, 1.0, 0.0), 2: (0.0, 0.0, 1.0), 3: (0.6, 0.7, 0.0)}[int(kind)]
    direction = 1 if rng.random() < 0.92 else -1
    zoom, turn = direction * share[1] * flow / radius, direction * share[2] * flow / radius
    pan = share[0] * flow * np.array([math.cos(heading), math.sin(heading)])
    angle = rng.normal(0, 0.05) if rng.random() < 0.1 else 0.0
    grown = math.exp(max(0.0, -zoom) * (FRAMES - 1))  # zooming out ends on a larger window
    reach = np.array([width, height]) * (1.15 if kind == 2 else 1.0) * grown + np.abs(pan) * (FRAMES - 1)
    largest = float(min(wide / reach[0], tall / reach[1]))
    scale = math.exp(rng.uniform(math.log(min(1.0, largest)), math.log(largest))) if largest > 1 else largest
    window = reach * scale
    start = np.array([rng.uniform(0, max(wide - window[0], 0)), rng.uniform(0, max(tall - window[1], 0))]) + window / 2
    return _Camera(start - pan * scale * (FRAMES - 1) / 2, scale, angle, pan * scale, zoom, turn)


def _looked_at(made_of: Material, width: int, height: int, rng: Rng, slower: float = 1.0) -> tuple[list[np.ndarray], int, float]:
    """Frames of a steady camera over a picture, its fps, and the pixels a frame that were asked for."""
    pyramid = _varied(made_of.pyramids[rng.integers(len(made_of.pyramids))], rng)
    fps = int(rng.choice(RATES, p=_RATE_SHARES))
    flow = flow_of(255 * rng.uniform(0.0, 1.2), fps, height)  # not every kind of clip moves as far as it is asked to
    camera = _camera(pyramid, width, height, flow * slower, rng)
    return [camera.frame(pyramid, index, width, height) for index in range(FRAMES)], fps, flow


def _moved(made_of: Material, width: int, height: int, rng: Rng) -> tuple[np.ndarray, int]:
    frames, fps, _ = _looked_at(made_of, width, height, rng)
    return np.stack(frames), fps


def _parallax(made_of: Material, width: int, height: int, rng: Rng) -> tuple[np.ndarray, int]:
    """Shapes before a picture, that pass by faster the nearer they are."""
    frames, fps, flow = _looked_at(made_of, width, height, rng, slower=0.7)
    heading = math.pi if rng.random() < 0.85 else rng.uniform(0, 2 * math.pi)  # to the left, as before a camera that goes to the right
    for nearness in np.sort(rng.uniform(0.8, 2.0, int(rng.integers(1, 4)))):
        shape = _shape(made_of, height, rng)
        middle = rng.uniform(0.1, 0.9, 2) * (width, height)
        velocity = nearness * flow * np.array([math.cos(heading), math.sin(heading)])
        frames = [_pasted(frame, shape, middle + velocity * (index - FRAMES / 2), 0.0, 1.0, 1.0) for index, frame in enumerate(frames)]
    return np.stack(frames), fps


def _objects(made_of: Material, width: int, height: int, rng: Rng) -> tuple[np.ndarray, int]:
    """Shapes that fly, bounce, turn and swell before a picture that hardly moves."""
    frames, fps, flow = _looked_at(made_of, width, height, rng, slower=0.15)
    for _ in range(int(rng.integers(1, 4))):
        shape = _shape(made_of, height, rng)
        start, heading, speed = rng.uniform(0.15, 0.85, 2) * (width, height), rng.uniform(0, 2 * math.pi), min(3 * flow, 8.0)
        velocity = speed * np.array([math.cos(heading), math.sin(heading)])
        turn, swell, phase, hertz = rng.normal(0, 0.02 * speed), rng.uniform(0, 0.25) * (rng.random() < 0.5), rng.uniform(0, 6), rng.uniform(0.3, 1.5)
        for index in range(FRAMES):
            pulse = swell * math.sin(phase + 2 * math.pi * hertz * index / fps)
            frames[index] = _pasted(frames[index], shape, _bounced(start + velocity * index, width, height), turn * index, 1 + pulse, 1 - pulse)
    return np.stack(frames), fps


def _drifting(made_of: Material, width: int, height: int, rng: Rng) -> tuple[np.ndarray, int]:
    """Haze that drifts over a picture."""
    frames, fps, flow = _looked_at(made_of, width, height, rng, slower=0.15)
    haze, heading, colour = _noise(512, rng), rng.uniform(0, 2 * math.pi), rng.uniform(160, 255, 3)
    velocity, density = flow * np.array([math.cos(heading), math.sin(heading)]), rng.uniform(0.5, 0.95)
    for index in range(FRAMES):
        matrix = np.array([[1, 0, velocity[0] * index], [0, 1, velocity[1] * index]]) - np.array([[0, 0, 100.0]] * 2)
        alpha = density * cv2.warpAffine(haze, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)[..., None]
        frames[index] = (frames[index] * (1 - alpha) + colour * alpha).astype(np.uint8)
    return np.stack(frames), fps


def _lit(made_of: Material, width: int, height: int, rng: Rng) -> tuple[np.ndarray, int]:
    """A picture under light that comes, goes or wanders across it."""
    frames, fps, _ = _looked_at(made_of, width, height, rng, slower=0.5)
    heading, hertz, phase, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0.1, 0.6), rng.uniform(0, 2 * math.pi), rng.uniform(0.1, 0.35)
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    across = (math.cos(heading) * x + math.sin(heading) * y)[..., None] * rng.uniform(0, 2)
    gains = [1 + strength * np.sin(phase + across + 2 * math.pi * hertz * index / fps) for index in range(FRAMES)]
    return np.stack([np.clip(frame * gain, 0, 255).astype(np.uint8) for frame, gain in zip(frames, gains, strict=True)]), fps


_Kind = Callable[[Material, int, int, Rng], tuple[np.ndarray, int]]
_KINDS: tuple[tuple[_Kind, float], ...] = ((_moved, 0.88), (_film, 0.04), (_parallax, 0.03), (_objects, 0.02), (_lit, 0.02), (_drifting, 0.01))


def _pyramid(picture: np.ndarray) -> tuple[np.ndarray, ...]:
    levels = [picture]
    while min(levels[-1].shape[:2]) > 128:
        levels.append(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    return tuple(levels)


def _varied(pyramid: tuple[np.ndarray, ...], rng: Rng) -> tuple[np.ndarray, ...]:
    """The picture mirrored or not, in other light and colours."""
    flip = -1 if rng.random() < 0.5 else 1
    gain, gamma = rng.uniform(0.8, 1.15) * rng.uniform(0.92, 1.08, 3), math.exp(rng.normal(0, 0.2))
    curve = np.clip(255 * (np.linspace(0, 1, 256)[:, None] ** gamma) * gain, 0, 255).astype(np.uint8)[None]
    return tuple(cv2.LUT(np.ascontiguousarray(level[:, ::flip]), curve) for level in pyramid)


def _shape(made_of: Material, height: int, rng: Rng) -> np.ndarray:
    """A cut-out of a picture with soft edges, [S,S,4] float32, alpha 0..1."""
    side = int(height * rng.uniform(0.2, 0.6))
    pyramid = _varied(made_of.pyramids[rng.integers(len(made_of.pyramids))], rng)
    level = min(int(rng.integers(0, 3)), len(pyramid) - 1)
    picture = pyramid[level]
    side = min(side, *picture.shape[:2])
    y, x = (int(rng.integers(length - side + 1)) for length in picture.shape[:2])
    corners = int(rng.integers(3, 9))
    angles = np.sort(rng.uniform(0, 2 * math.pi, corners)) if rng.random() < 0.5 else np.linspace(0, 2 * math.pi, 40, endpoint=False)
    wave = 1 + rng.uniform(0, 0.25) * np.sin(int(rng.integers(2, 6)) * angles)
    radii = 0.38 * side * wave * (rng.uniform(0.7, 1.0, len(angles)) if len(angles) < 10 else 1.0)
    points = np.stack([side / 2 + radii * np.cos(angles), side / 2 + radii * np.sin(angles)], axis=-1)
    alpha = np.zeros((side, side), np.uint8)
    cv2.fillPoly(alpha, [points.round().astype(np.int32)], 255, cv2.LINE_AA)
    soft = cv2.GaussianBlur(alpha, (0, 0), 0.6).astype(np.float32) / 255
    return np.dstack([picture[y : y + side, x : x + side].astype(np.float32), soft])


def _pasted(frame: np.ndarray, shape: np.ndarray, middle: np.ndarray, angle: float, stretch_x: float, stretch_y: float) -> np.ndarray:
    half, (height, width) = shape.shape[0] / 2, frame.shape[:2]
    cos, sin = math.cos(angle), math.sin(angle)
    linear = np.array([[cos * stretch_x, -sin * stretch_y], [sin * stretch_x, cos * stretch_y]])
    matrix = np.column_stack([linear, middle - linear @ np.array([half, half])])
    layer = cv2.warpAffine(shape, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(0, 0, 0, 0))
    alpha = layer[..., 3:]
    return (frame * (1 - alpha) + layer[..., :3] * alpha).round().clip(0, 255).astype(np.uint8)


def _bounced(position: np.ndarray, width: int, height: int) -> np.ndarray:
    size = np.array([width, height], float)
    return size - np.abs(position % (2 * size) - size)


def _noise(side: int, rng: Rng) -> np.ndarray:
    """Smooth noise of several sizes, 0..1, that repeats without a seam, [side,side] float32."""
    total = np.zeros((side, side), np.float32)
    for octave in range(3, 7):
        cells = 2**octave
        coarse = rng.normal(size=(cells, cells)).astype(np.float32)
        wrapped = cv2.resize(np.pad(coarse, 2, mode="wrap"), None, fx=side / cells, fy=side / cells, interpolation=cv2.INTER_CUBIC)
        edge = 2 * side // cells
        total += wrapped[edge : edge + side, edge : edge + side] / cells
    return np.clip(0.5 + total / (3 * total.std()), 0, 1)


# The cache


@dataclass(frozen=True)
class Cache:
    """Clips on disk: frames [N,T,H,W,3], fps [N], flows [N,T-1]."""

    frames: np.ndarray
    fps: np.ndarray
    flows: np.ndarray

    def buckets(self) -> np.ndarray:
        return np.array([bucket_of(float(flow.mean()), float(fps), self.frames.shape[2]) for flow, fps in zip(self.flows, self.fps, strict=True)])

    @functools.cached_property
    def tellable(self) -> np.ndarray:
        """Indices of the clips that are not faster than the largest bucket says."""
        fastest = [flow_of(255, float(fps), self.frames.shape[2]) for fps in self.fps]
        return np.flatnonzero(self.flows.mean(1) <= fastest)

    @functools.cached_property
    def shares(self) -> np.ndarray:
        """How often each of the tellable clips is to be drawn: slow ones more, since their losses are small."""
        weights = 1 / np.sqrt(self.buckets()[self.tellable] + 32.0)
        return weights / weights.sum()

    def cut(self, indices: np.ndarray | slice) -> Cache:
        return Cache(self.frames[indices], self.fps[indices], self.flows[indices])


def cache(folder: Path, count: int, width: int, height: int, seed: int = 0, held_out: bool = False, workers: int = 2) -> Cache:
    """`count` clips under `folder`, rendered unless they are there. The same seed gives the same clips."""
    where = folder / f"{'held-out' if held_out else 'clips'}-{width}x{height}-{count}-{seed}-{BUCKET_PER_PIXEL:.0f}"
    if not (where / "controls.npz").exists():
        where.mkdir(parents=True, exist_ok=True)
        frames = np.lib.format.open_memmap(where / "frames.npy", mode="w+", dtype=np.uint8, shape=(count, FRAMES, height, width, 3))
        fps, flows = np.zeros(count, np.int32), np.zeros((count, FRAMES - 1), np.float32)
        material(held_out)  # fetched once, before the workers want it
        with ProcessPoolExecutor(workers) as pool:
            for index, clip in enumerate(pool.map(_one, [(held_out, width, height, seed, index) for index in range(count)], chunksize=8)):
                frames[index], fps[index], flows[index] = clip.frames, clip.fps, clip.flows
        frames.flush()
        np.savez(where / "partial.npz", fps=fps, flows=flows)
        (where / "partial.npz").rename(where / "controls.npz")
    with np.load(where / "controls.npz") as controls:
        return Cache(np.load(where / "frames.npy", mmap_mode="r"), controls["fps"], controls["flows"])


def _one(what: tuple[bool, int, int, int, int]) -> Clip:
    held_out, width, height, seed, index = what
    return make(material(held_out), width, height, np.random.default_rng((seed, int(held_out), width, height, index)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--size", type=int, nargs=2, default=(192, 128), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--sheet", type=Path, help="a PNG of some of them: each row the first, fourth, eighth and last frame")
    arguments = parser.parse_args()
    clips = cache(arguments.folder, arguments.count, *arguments.size, arguments.seed, arguments.held_out)
    print("quartiles of the motion buckets:", np.percentile(clips.buckets(), (0, 25, 50, 75, 100)).round().astype(int).tolist())
    if arguments.sheet:
        rows = [np.hstack([clips.frames[index][frame] for frame in (0, 4, 8, 13)]) for index in range(min(24, len(clips.fps)))]
        half = math.ceil(len(rows) / 2)
        cv2.imwrite(str(arguments.sheet), cv2.cvtColor(np.hstack([np.vstack(rows[:half]), np.vstack(rows[half : 2 * half])]), cv2.COLOR_RGB2BGR))


if __name__ == "__main__":
    main()
