"""From file to file: what the command holds while it writes frames, and what it leaves when it is killed.

Runs `python -m lean_video interpolate` on a clip of 1,000 frames of 720p that is made here, so it needs Linux and some minutes.
"""

from __future__ import annotations

import hashlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from turns import MIB, say

if TYPE_CHECKING:
    from interpolation import Options

FRAMES, WIDTH, HEIGHT = 1000, 1280, 720
KILLED_AT = (0.1, 0.5, 1, 2, 4, 8, 16, 32)  # seconds after the start
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Sample:
    """seconds since the start, RSS of the process and of what it started, and bytes of the result so far"""

    seconds: float
    rss: int
    written: int


def section(options: Options) -> list[str]:
    frames = 60 if options.quick else FRAMES
    with tempfile.TemporaryDirectory(prefix="lean-video-bench-") as name:
        given, result = Path(name, "given.mp4"), Path(name, "result.mp4")
        say(f"making a clip of {frames} frames")
        make_clip(given, frames)
        return [*_memory(given, result, frames, options), "", *_killed(given, Path(name, "killed.mp4"), options)]


def make_clip(path: Path, frames: int) -> None:
    """A window that wanders over a picture of soft blobs: motion everywhere, no cut, no frame twice."""
    import av
    import cv2

    noise = np.random.default_rng(0).integers(0, 256, (2 * HEIGHT // 8, 2 * WIDTH // 8, 3), np.uint8)
    ground = cv2.resize(noise, (2 * WIDTH, 2 * HEIGHT), interpolation=cv2.INTER_CUBIC)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(frames):
            left, top = round(WIDTH / 2 * (1 + np.cos(i / 60))), round(HEIGHT / 2 * (1 + np.sin(i / 60)))
            picture = np.ascontiguousarray(ground[top : top + HEIGHT, left : left + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _command(given: Path, result: Path, options: Options) -> list[str]:
    model = options.memory_model
    known = re.fullmatch(r"rife-(4\.\d)", model)
    return [sys.executable, "-m", "lean_video", "interpolate", str(given), str(result), "--factor", "2", "--model", str(options.rife(known[1])) if known else model]


def _memory(given: Path, result: Path, frames: int, options: Options) -> list[str]:
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(_command(given, result, options), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        began, samples = time.monotonic(), [Sample(0, 0, 0)]
        while process.poll() is None:
            time.sleep(1)
            samples.append(Sample(time.monotonic() - began, _rss(process.pid), _written(result)))
        log.seek(0)
        if process.returncode:
            raise SystemExit(f"The command failed: {log.read()[-2000:]}")
    taken = time.monotonic() - began
    made, final = _count(result), result.stat().st_size
    assert made == 2 * frames - 1, f"{made} frames came out of {frames}"
    # Bytes of the result stand for frames: the clip is alike throughout.
    curve = [(sample.written / final * made, sample.rss / MIB) for sample in samples if sample.rss and sample.written]
    if options.pictures:
        plot(options.pictures / "memory.png", curve, made)
    marks = [_near(curve, made * share) for share in (0.1, 0.25, 0.5, 0.75, 0.95)]
    late = [(x, y) for x, y in curve if x >= made * 0.1]
    slope = 1000 * float(np.polyfit(*zip(*late, strict=True), 1)[0]) if len(late) > 2 else float("nan")
    return [
        f'`interpolate IN OUT --factor 2 --model "{options.memory_model}"`: {frames} frames of {WIDTH}x{HEIGHT} to {made}, all there, in {taken:.0f} s.',
        "",
        "| | a tenth written | a quarter | half | three quarters | near the end | most | **growth over 1,000 frames, after a tenth** |",
        "|---|---|---|---|---|---|---|---|",
        f"| RSS, MiB | {' | '.join(f'{mark:.0f}' for mark in marks)} | {max(y for _, y in curve):.0f} | **{slope:+.1f} MiB** |",
        "",
        f"- RSS is that of the process and of those that it starts, each second. One frame of {WIDTH}x{HEIGHT} is {WIDTH * HEIGHT * 3 / MIB:.1f} MiB in 8 bits, so that a command that kept what it reads and makes would grow by {1.5 * 1000 * WIDTH * HEIGHT * 3 / MIB:.0f} MiB over 1,000 frames of the result.",
        *(["", "![RSS against frames written](interpolation/memory.png)"] if options.pictures else []),
    ]


def _killed(given: Path, result: Path, options: Options) -> list[str]:
    moments = KILLED_AT[:4] if options.quick else KILLED_AT
    before = hashlib.sha256(given.read_bytes()).hexdigest()
    lines = ["Killed (SIGKILL) after", "", "| s | still running | file under the final name | input as it was | bytes left under other names |", "|---|---|---|---|---|"]
    right = True
    for seconds in moments:
        present = set(given.parent.iterdir())
        process = subprocess.Popen(_command(given, result, options), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        running = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        there, same = result.exists(), hashlib.sha256(given.read_bytes()).hexdigest() == before
        new = set(given.parent.iterdir()) - present - {result}
        left = sum(path.stat().st_size for path in new)
        if running:
            right = right and same and not there
        lines.append(f"| {seconds:g} | {_word(running)} | {_word(there)} | {_word(same)} | {left} |")
        for path in (*new, result):
            path.unlink(missing_ok=True)
    return [*lines, "", "No file under the final name each time, and the input untouched: " + ("met." if right else "**not met**.")]


def _word(value: bool) -> str:
    return "yes" if value else "no"


def _rss(pid: int) -> int:
    """Bytes of a process and of those that it started; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    except OSError:
        return 0
    own = re.search(r"VmRSS:\s+(\d+) kB", status)
    return (int(own[1]) * 1024 if own else 0) + sum(_rss(int(child)) for child in children)


def _written(result: Path) -> int:
    """Bytes of the unfinished file, which has the result's name inside its own."""
    sizes = [path.stat().st_size for path in result.parent.glob(f"*{result.name}*") if path.exists()]
    return max(sizes, default=0)


def _count(path: Path) -> int:
    import av

    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def _near(curve: list[tuple[float, float]], frames: float) -> float:
    """RSS around so many frames, the median of the three nearest samples."""
    return statistics.median(y for _, y in sorted(curve, key=lambda point: abs(point[0] - frames))[:3])


def plot(path: Path, curve: list[tuple[float, float]], frames: int) -> None:
    from PIL import Image, ImageDraw

    width, height, left, bottom, top, right = 900, 360, 70, 40, 20, 20
    most = 100 * (int(max(y for _, y in curve) / 100) + 1)
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x / frames * (width - left - right), height - bottom - y / most * (height - bottom - top)

    for i in range(5):
        value = most * i / 4
        draw.line((at(0, value), at(frames, value)), fill="#dddddd")
        draw.text((8, at(0, value)[1] - 6), f"{value:.0f} MiB", fill="black")
        draw.text((at(frames * i / 4, 0)[0] - 12, height - bottom + 8), f"{frames * i / 4:.0f}", fill="black")
    draw.text((width / 2 - 90, height - 16), "frames of the result written", fill="black")
    draw.line([at(x, y) for x, y in curve], fill="#1f5fbf", width=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)
