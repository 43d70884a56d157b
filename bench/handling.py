"""A film with cuts, drawn on twos and threes, at twice its rate: the network alone against the network with cuts and repeats seen.

The films are real shots, of which each second true frame or fewer are kept, so that what belongs between is known.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import strips
import torch
from clips import SOURCES, fetch, frames, source
from lpips import Lpips
from turns import say

if TYPE_CHECKING:
    from interpolation import Options

    from lean_video.interpolation.rife import Rife

GOAL = 0.5
LENGTH = 36  # true frames of a shot
HOLDS = {1: "ones", 2: "twos", 3: "threes"}  # frames of the film that show one picture
CUT, REPEAT, DRAWN, MOTION = "cut", "repeat", "drawn", "motion"


@dataclass(frozen=True)
class Film:
    """LENGTH frames from each of `shots` on; the frame before each is of its shot too."""

    name: str
    source: str
    shots: tuple[int, ...]
    height: int = 0


FILMS = (
    Film("city", "city.mpg", (40, 130)),
    Film("bikes", "bikes.mp4", (32, 80, 140, 190)),
    Film("bunny", "bunny-1080p.mp4", (100, 300, 460, 560), 360),
)


@dataclass
class Result:
    """LPIPS of both sides at each frame that the film's cuts and repeats touch, by what touches it; and how many of the other made frames came out different."""

    plain: dict[str, list[float]] = field(default_factory=lambda: {CUT: [], REPEAT: []})
    handled: dict[str, list[float]] = field(default_factory=lambda: {CUT: [], REPEAT: []})
    others: int = 0
    others_changed: int = 0

    def means(self, *kinds: str) -> tuple[float, float] | None:
        sides = [[value for kind in kinds for value in side[kind]] for side in (self.plain, self.handled)]
        return (statistics.fmean(sides[0]), statistics.fmean(sides[1])) if sides[0] else None


def section(options: Options) -> list[str]:
    from lean_video.interpolation.rife import load

    rife, lpips = load(options.rife("4.6")), Lpips()
    results: dict[tuple[str, int], Result] = {}
    for film in FILMS[: 1 if options.quick else None]:
        shots = _shots(film, 12 if options.quick else LENGTH)
        for hold in HOLDS:
            results[film.name, hold] = found = _measured(film, shots, hold, rife, lpips, options)
            say(f"{film.name} on {HOLDS[hold]}: {found.means(CUT, REPEAT)}")
    return [*_table(results, options), "", *_cuts(options)]


def _shots(film: Film, length: int) -> list[np.ndarray]:
    """Each with the frame before it, [1+length,H,W,3]."""
    path = fetch(source(film.source))
    return [np.stack(list(frames(path, first - 1, length + 1, film.height))) for first in film.shots]


def _measured(film: Film, shots: list[np.ndarray], hold: int, rife: Rife, lpips: Lpips, options: Options) -> Result:
    from lean_video.interpolation.clip import Handling, interpolate_clip
    from lean_video.interpolation.timeline import Between

    length = len(shots[0]) - 1
    shown = [shot[1 + 2 * hold * (i // hold)] for shot in shots for i in range(length // 2)]
    clip_THWC = torch.from_numpy(np.stack(shown)).float() / 255
    plain, handled = (_eight_bits(interpolate_clip(clip_THWC, rife, Between(1), handling=handling)[0]) for handling in (Handling(at_cuts="ignore", repeats=False), Handling()))
    result = Result()
    strip: tuple[float, int] | None = None
    for n in range(len(plain)):
        shot, k = divmod(n, length)
        kind = _kind(k, length, hold)
        if kind == MOTION:
            result.others += 1
            result.others_changed += not np.array_equal(plain[n], handled[n])
        if kind not in (CUT, REPEAT):
            continue
        truths = [shots[shot][1 + k]] + ([shots[shot + 1][0]] if kind == CUT else [])
        features = [lpips.features(truth) for truth in truths]
        for side, made in ((result.plain, plain[n]), (result.handled, handled[n])):
            own = lpips.features(made)
            side[kind].append(min(lpips.distance(own, truth) for truth in features))
        gain = result.plain[kind][-1] - result.handled[kind][-1]
        if strip is None or gain > strip[0]:
            strip = gain, n
    if strip and options.pictures and source(film.source).free and hold in (1, 2):
        _strip(film, shots, hold, strip[1], plain, handled, options)
    return result


def _kind(k: int, length: int, hold: int) -> str:
    """Of true frame k of a shot: one that the film shows, one before the cut, one in the time of a picture that is repeated, or one between two frames."""
    if k % (2 * hold) == 0:
        return DRAWN
    if k == length - 1:
        return CUT
    return REPEAT if hold > 1 else MOTION


def _eight_bits(clip_THWC: torch.Tensor) -> np.ndarray:
    return (clip_THWC * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def _table(results: dict[tuple[str, int], Result], options: Options) -> list[str]:
    lines = [
        'RIFE 4.6 to twice the rate, LPIPS at the frames that cuts and repeats touch: the network alone (`at_cuts="ignore"`, no repeats) / with both seen, as the default is.',
        "",
        "| film | cuts | alone / seen | ratio | frames of repeats | alone / seen | ratio | other frames made, of them changed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (film, hold), found in results.items():
        cells = [cell for kind in (CUT, REPEAT) for cell in (str(len(found.plain[kind])), *_pair(found.means(kind)))]
        lines.append(f"| {film}, on {HOLDS[hold]} | {' | '.join(cells)} | {found.others}, {found.others_changed} |")
    every = Result()
    for found in results.values():
        for kind in (CUT, REPEAT):
            every.plain[kind] += found.plain[kind]
            every.handled[kind] += found.handled[kind]
    cells = [cell for kind in (CUT, REPEAT) for cell in (str(len(every.plain[kind])), *_pair(every.means(kind)))]
    lines.append(f"| **all** | {' | '.join(cells)} | |")
    lines += ["", "| | measured | goal | |", "|---|---|---|---|"]
    for title, kinds in (("at cuts", (CUT,)), ("at repeats", (REPEAT,)), ("at both", (CUT, REPEAT))):
        means = every.means(*kinds)
        assert means
        ratio = means[1] / means[0]
        lines.append(f"| LPIPS {title}, seen / alone | {ratio:.3f} | ≤ {GOAL} | {'met' if ratio <= GOAL else '**not met**'} |")
    length = 12 if options.quick else LENGTH
    lines += [
        "",
        f"- Each film is joined from {length} frames of each of its shots ({', '.join(f'{len(film.shots)} of {film.name}' for film in FILMS)}) at full rate. Of these the film shows each second (on ones), each fourth for two frames (on twos, what 12 frames a second are in a film of 24), each sixth for three (on threes); the true frames that it leaves out are what is made. The sizes are those of the sources, the bunny's reduced to 640x360.",
        "- *Frames of repeats* are all that are due while a repeated picture and the motion out of it last, the last picture of each shot too, out of which there is no motion: it stands until the cut with either.",
        "- Across a cut the truth is the better, for each side alike, of the next frame of the shot before and the frame before of the shot after: where the cut would be at full rate is not told by the film. What is held is so never its own truth.",
    ]
    if options.pictures:
        free = [film for film in FILMS if source(film.source).free]
        shown = [f"[{film.name} on {HOLDS[hold]}](interpolation/{_file(film, hold)})" for film in free for hold in (1, 2)]
        lines.append(f"- Pictures where seeing them gains most: {', '.join(shown)}.")
    return lines


def _pair(means: tuple[float, float] | None) -> tuple[str, str]:
    return (f"{means[0]:.4f} / {means[1]:.4f}", f"{means[1] / means[0]:.3f}") if means else ("–", "–")


def _file(film: Film, hold: int) -> str:
    return f"{film.name}-on-{HOLDS[hold]}.jpg"


def _strip(film: Film, shots: list[np.ndarray], hold: int, n: int, plain: np.ndarray, handled: np.ndarray, options: Options) -> None:
    shot, k = divmod(n, len(shots[0]) - 1)
    at = n // 2
    pictures = {"film": plain[2 * at], "film, next": plain[2 * at + 2], "truth": shots[shot][1 + k], "alone": plain[n], "seen": handled[n]}
    assert options.pictures
    caption = f"{film.name} on {HOLDS[hold]}, frame {n} at twice the rate. {source(film.source).free}"
    strips.save(options.pictures / _file(film, hold), pictures, strips.worst(plain[n], shots[shot][1 + k]), columns=5, caption=caption)


def _cuts(options: Options) -> list[str]:
    """How many of the cuts that are seen by eye are found, in whole sources."""
    from lean_video.interpolation.scenes import CUT_THRESHOLD, Look, change, look

    paths = [(path.name, path, None) for path in options.clips] or [(known.file, fetch(known), known.cuts) for known in SOURCES[: 2 if options.quick else None]]
    lines = [
        f"Cuts in the whole sources, of which each begins where `scenes.change` from the frame before is above {CUT_THRESHOLD}:",
        "",
        "| source | frames | cuts by eye | found | false alarms | least at a cut | most elsewhere |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, path, true in paths:
        before: Look | None = None
        changes: list[float] = [0.0]
        for picture in frames(path):
            now = look(torch.from_numpy(picture))
            if before is not None:
                changes.append(change(before, now))
            before = now
        alarms = {index for index, value in enumerate(changes) if value > CUT_THRESHOLD}
        cuts = alarms if true is None else set(true)
        least = min((changes[index] for index in cuts), default=None)
        most = max(value for index, value in enumerate(changes) if index not in cuts)
        seen = "not known" if true is None else len(cuts)
        lines.append(f"| {name} | {len(changes)} | {seen} | {len(alarms & cuts)} | {len(alarms - cuts)} | {'–' if least is None else f'{least:.2f}'} | {most:.2f} |")
        say(lines[-1])
    return lines
