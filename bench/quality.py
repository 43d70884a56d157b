"""The middle frame of three, made from the two outer ones and compared with what was there."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import strips
from clips import CLIPS, all_clips, source
from lpips import Lpips, psnr, ssim, tensor_of
from turns import say

if TYPE_CHECKING:
    from interpolation import Options

    from lean_video.interpolation.interpolator import Interpolator

DISTANCES = (1, 4)
TRIPLETS = 8
Method = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Means over ten clips of the same sources from frames 1 apart that were measured before, PSNR and LPIPS. How those clips were cut was not written down.
EXPECTED = {"blend": (30.97, 0.0352), "DIS": (34.99, 0.0208), "RIFE 4.0": (34.64, 0.0135), "RIFE 4.6": (35.03, 0.0132), "4.6 + ensemble": (35.53, 0.0137)}


@dataclass(frozen=True)
class Score:
    psnr: float
    ssim: float
    lpips: float

    def __str__(self) -> str:
        return f"{self.psnr:.2f} / {self.ssim:.4f} / {self.lpips:.4f}"


def mean(scores: list[Score]) -> Score:
    return Score(*(statistics.fmean(getattr(score, key) for score in scores) for key in ("psnr", "ssim", "lpips")))


def methods(options: Options) -> dict[str, Method]:
    from lean_video.interpolation.flow import OpticalFlow
    from lean_video.interpolation.rife import load

    newer = load(options.rife("4.6"))
    return {
        "blend": lambda a, b: eight_bits((a.astype(np.float32) + b) / 510),
        "DIS": middle_by(OpticalFlow()),
        "RIFE 4.0": middle_by(load(options.rife("4.0"))),
        "RIFE 4.6": middle_by(newer),
        "4.6 + ensemble": middle_by(replace(newer, ensemble=True)),
    }


def middle_by(interpolator: Interpolator) -> Method:
    return lambda a, b: eight_bits(interpolator.between(tensor_of(a), tensor_of(b), [0.5])[0].permute(1, 2, 0).numpy())


def eight_bits(picture_HWC: np.ndarray) -> np.ndarray:
    return (picture_HWC * 255).round().clip(0, 255).astype(np.uint8)


def section(options: Options) -> list[str]:
    lpips, by = Lpips(), methods(options)
    found: dict[int, dict[str, dict[str, Score]]] = {distance: {} for distance in DISTANCES}
    sizes: dict[str, str] = {}
    for name, read in all_clips(list(options.clips))[: 2 if options.quick else None]:
        frames_THWC = read()
        sizes[name] = f"{name} ({frames_THWC.shape[2]}x{frames_THWC.shape[1]})"
        for distance in DISTANCES:
            found[distance][name] = scores = _scored(frames_THWC, distance, by, lpips, 2 if options.quick else TRIPLETS)
            say(f"{name}, {distance} apart: " + ", ".join(f"{method} {score}" for method, score in scores.items()))
        if options.pictures and (free := _licence(name)):
            _strip(options, name, free, frames_THWC, by, lpips)
    return [line for distance in DISTANCES for line in _table(distance, found[distance], sizes, options)] + _notes(found, options)


def _scored(frames_THWC: np.ndarray, distance: int, by: dict[str, Method], lpips: Lpips, triplets: int) -> dict[str, Score]:
    scores: dict[str, list[Score]] = {method: [] for method in by}
    for centre in _centres(len(frames_THWC), triplets):
        truth = frames_THWC[centre]
        features = lpips.features(truth)
        for method, middle in by.items():
            made = middle(frames_THWC[centre - distance], frames_THWC[centre + distance])
            scores[method].append(Score(psnr(made, truth), ssim(made, truth), lpips.distance(lpips.features(made), features)))
    return {method: mean(of) for method, of in scores.items()}


def _centres(count: int, triplets: int) -> list[int]:
    """Spread evenly, and the same for each distance."""
    reach = max(DISTANCES)
    return [round(place) for place in np.linspace(reach, count - 1 - reach, triplets)]


def _table(distance: int, found: dict[str, dict[str, Score]], sizes: dict[str, str], options: Options) -> list[str]:
    names = list(EXPECTED)
    means = {method: mean([scores[method] for scores in found.values()]) for method in names}
    lines = [
        f"From the frames {distance} before and {distance} after: PSNR, dB / SSIM / **LPIPS**.",
        "",
        f"| clip | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
        *(f"| {sizes[clip]} | {' | '.join(str(scores[method]) for method in names)} |" for clip, scores in found.items()),
        f"| **mean** | {' | '.join(f'**{means[method]}**' for method in names)} |",
    ]
    if distance == 1 and not options.clips:
        lines.append(f"| expected | {' | '.join(f'{decibels:.2f} / – / {distance:.4f}' for decibels, distance in EXPECTED.values())} |")
    return [*lines, ""]


def _notes(found: dict[int, dict[str, dict[str, Score]]], options: Options) -> list[str]:
    losses = [
        f"{clip}, {distance} apart ({scores['RIFE 4.6'].lpips:.4f} against {other} {scores[other].lpips:.4f})"
        for distance, of in found.items()
        for clip, scores in of.items()
        for other in ("blend", "DIS", "RIFE 4.0")
        if scores["RIFE 4.6"].lpips > scores[other].lpips
    ]
    lines = [
        f"- {2 if options.quick else TRIPLETS} triplets a clip, spread evenly, the same middle frames at both distances. Frames are RGB as PyAV decodes them; what is made is rounded to 8 bits first. SSIM is the mean over R, G and B with a Gaussian of 11x11, sigma 1.5; means are over triplets, then over clips.",
        "- LPIPS is AlexNet's, v0.1, in `lpips.py`: its heads equal those of the original repository bit for bit, and that repository's example pictures come out at 0.722 (`ex_ref`, `ex_p0`) and 0.138 (`ex_ref`, `ex_p1`).",
        f"- RIFE 4.6 has a worse LPIPS than another: {'; '.join(losses)}." if losses else "- RIFE 4.6 has the best LPIPS of blend, DIS and both RIFEs on every clip.",
    ]
    if not options.clips:
        lines.append(
            "- *Expected* are means over ten clips of the same sources that were measured before; how those were cut is not written down, so that they are near, not the same."
        )
    if options.pictures:
        lines.append(
            f"- Pictures, {max(DISTANCES)} apart, where blending goes wrong most: "
            + ", ".join(f"[{clip.name}](interpolation/{_file(clip.name)})" for clip in CLIPS if _licence(clip.name))
            + "."
        )
    return lines


def _licence(name: str) -> str | None:
    return next((source(clip.source).free for clip in CLIPS if clip.name == name), None)


def _file(name: str) -> str:
    return name.replace(", ", "-") + ".jpg"


def _strip(options: Options, name: str, licence: str, frames_THWC: np.ndarray, by: dict[str, Method], lpips: Lpips) -> None:
    """The triplet whose blend is worst, around where it is worst."""
    reach = max(DISTANCES)

    def blend_at(centre: int) -> np.ndarray:
        return by["blend"](frames_THWC[centre - reach], frames_THWC[centre + reach])

    centre = max(_centres(len(frames_THWC), TRIPLETS), key=lambda at: lpips.distance(lpips.features(blend_at(at)), lpips.features(frames_THWC[at])))
    before, truth, after = (frames_THWC[centre + offset] for offset in (-reach, 0, reach))
    pictures = {"before": before, "truth": truth, "after": after} | {method: middle(before, after) for method, middle in by.items()}
    assert options.pictures
    strips.save(
        options.pictures / _file(name), pictures, strips.worst(pictures["blend"], truth), columns=4, caption=f"{name}, frame {centre} from {reach} before and after. {licence}"
    )
