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
# Frames of the film that show one picture, and true frames that lie between two of its own.
VARIANTS = {"on ones": (1, 2), "on twos": (2, 2), "on threes": (3, 2), "each second frame a repeat": (2, 1)}
CUT, REPEAT, STANDS, DRAWN, MOTION = "cut", "repeat", "stands", "drawn", "motion"
TOUCHED = (CUT, REPEAT, STANDS)
PICTURED = ("on ones", "on twos")


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
    """LPIPS of both sides at each frame that the film's cuts and repeats touch, by what touches it.

    others, others_changed  other frames that were made, and those of them that came out different
    repeats, found          frames of the film that repeat the one before, and those that were found to
    """

    plain: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in TOUCHED})
    handled: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in TOUCHED})
    others: int = 0
    others_changed: int = 0
    repeats: int = 0
    found: int = 0

    def add(self, other: Result) -> None:
        for kind in TOUCHED:
            self.plain[kind] += other.plain[kind]
            self.handled[kind] += other.handled[kind]
        self.others, self.others_changed = self.others + other.others, self.others_changed + other.others_changed
        self.repeats, self.found = self.repeats + other.repeats, self.found + other.found

    def means(self, *kinds: str) -> tuple[float, float] | None:
        sides = [[value for kind in kinds for value in side[kind]] for side in (self.plain, self.handled)]
        return (statistics.fmean(sides[0]), statistics.fmean(sides[1])) if sides[0] else None


def section(options: Options) -> list[str]:
    from lean_video.interpolation.rife import load

    rife, lpips = load(options.rife("4.6")), Lpips()
    results: dict[tuple[str, str], Result] = {}
    for film in FILMS[: 1 if options.quick else None]:
        shots = _shots(film, 12 if options.quick else LENGTH)
        for variant in VARIANTS:
            results[film.name, variant] = found = _measured(film, shots, variant, rife, lpips, options)
            say(f"{film.name}, {variant}: {found.means(*TOUCHED)}")
    return [*_table(results, options), "", *_cuts(options)]


def _shots(film: Film, length: int) -> list[np.ndarray]:
    """Each with the frame before it, [1+length,H,W,3]."""
    path = fetch(source(film.source))
    return [np.stack(list(frames(path, first - 1, length + 1, film.height))) for first in film.shots]


def _measured(film: Film, shots: list[np.ndarray], variant: str, rife: Rife, lpips: Lpips, options: Options) -> Result:
    from lean_video.interpolation.clip import Handling, interpolate_clip
    from lean_video.interpolation.timeline import Between

    hold, step = VARIANTS[variant]
    length = len(shots[0]) - 1
    shown = [shot[1 + step * hold * (i // hold)] for shot in shots for i in range(length // step)]
    clip_THWC = torch.from_numpy(np.stack(shown)).float() / 255
    alone, _ = interpolate_clip(clip_THWC, rife, Between(1), handling=Handling(at_cuts="ignore", repeats=False))
    seen, report = interpolate_clip(clip_THWC, rife, Between(1))
    plain, handled = (_eight_bits(clip[:: 3 - step]) for clip in (alone, seen))  # those of which the truth is known
    result = Result(repeats=len(shown) * (hold - 1) // hold, found=report.repeats)
    strip: tuple[float, int] | None = None
    for n in range(len(plain)):
        shot, k = divmod(n, length)
        kind = _kind(k, length, hold, step)
        if kind == MOTION:
            result.others += 1
            result.others_changed += not np.array_equal(plain[n], handled[n])
        if kind not in TOUCHED:
            continue
        truths = [shots[shot][1 + k]] + ([shots[shot + 1][0]] if kind == CUT else [])
        features = [lpips.features(truth) for truth in truths]
        for side, made in ((result.plain, plain[n]), (result.handled, handled[n])):
            own = lpips.features(made)
            side[kind].append(min(lpips.distance(own, truth) for truth in features))
        gain = result.plain[kind][-1] - result.handled[kind][-1]
        if kind == (CUT if hold == 1 else REPEAT) and (strip is None or gain > strip[0]):
            strip = gain, n
    if strip and options.pictures and source(film.source).free and variant in PICTURED:
        _strip(film, shots, variant, strip[1], plain, handled, options)
    return result


def _kind(k: int, length: int, hold: int, step: int) -> str:
    """Of true frame k of a shot: what the film shows, what lies across the cut, while the shot's last picture is repeated (out of which there is no motion),
    while another is and in the motion out of it, or between two frames of which neither is repeated."""
    if k % (step * hold) == 0:
        return DRAWN
    if k == length - 1 and step == 2:
        return CUT
    if hold == 1:
        return MOTION
    return STANDS if k > length - step * hold else REPEAT


def _eight_bits(clip_THWC: torch.Tensor) -> np.ndarray:
    return (clip_THWC * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def _table(results: dict[tuple[str, str], Result], options: Options) -> list[str]:
    lines = [
        'RIFE 4.6 to twice the rate, LPIPS at the frames that cuts and repeats touch: the network alone (`at_cuts="ignore"`, no repeats) / with both seen, as the default is.',
        "",
        "| film | cuts | alone / seen | ratio | repeats, found | frames of them | alone / seen | ratio | that stand | alone / seen | ratio | other frames made, changed |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    every = Result()
    for (film, variant), found in results.items():
        lines.append(_row(f"{film}, {variant}", found))
        every.add(found)
    lines += [_row("**all**", every), "", "| LPIPS, seen / alone | measured | goal | |", "|---|---|---|---|"]
    for title, kinds in (("at cuts", (CUT,)), ("at repeats and in the motion out of them", (REPEAT,)), ("at all frames touched", TOUCHED)):
        means = every.means(*kinds)
        assert means
        ratio = means[1] / means[0]
        lines.append(f"| {title} | {ratio:.3f} | ≤ {GOAL} | {'met' if ratio <= GOAL else '**not met**'} |")
    length = 12 if options.quick else LENGTH
    lines += [
        "",
        f"- Each film is joined from {length} frames of each of its shots ({', '.join(f'{len(film.shots)} of {film.name}' for film in FILMS)}) at full rate. Of these the film shows each second (on ones), each fourth for two frames (on twos, what 12 frames a second are in a film of 24), each sixth for three (on threes); the true frames that it leaves out are what is made. *Each second frame a repeat*: the film shows each second true frame for two, so at full rate; what is looked at is what comes out in the place of the repeats. The sizes are those of the sources, the bunny's reduced to 640x360.",
        "- *Frames of repeats* are those that are due while a picture is repeated and in the motion out of it, without the picture's first showing. *That stand*: the same of each shot's last picture, out of which there is no motion, so that it stands until the cut with either.",
        "- Alone, the network shows a repeated picture again where the motion should have gone on, and all of the motion within the last gap. The repeats being known, what is left is what the network itself makes of pictures 4, 6 or 2 true frames apart.",
        "- Across a cut the truth is the better, for each side alike, of the next frame of the shot before and the frame before of the shot after: where the cut would be at full rate is not told by the film. What is held is so never its own truth.",
    ]
    if options.pictures:
        free = [film for film in FILMS if source(film.source).free]
        shown = [f"[{film.name} {variant}](interpolation/{_file(film, variant)})" for film in free for variant in PICTURED]
        lines.append(f"- Pictures where seeing them gains most, cut to a part: {', '.join(shown)}.")
    return lines


def _row(title: str, found: Result) -> str:
    cuts, repeats, stands = ([str(len(found.plain[kind])), *_pair(found.means(kind))] for kind in TOUCHED)
    return f"| {title} | {' | '.join([*cuts, f'{found.repeats}, {found.found}', *repeats, *stands])} | {found.others}, {found.others_changed} |"


def _pair(means: tuple[float, float] | None) -> tuple[str, str]:
    return (f"{means[0]:.4f} / {means[1]:.4f}", f"{means[1] / means[0]:.3f}") if means else ("–", "–")


def _file(film: Film, variant: str) -> str:
    return f"{film.name}-{variant.replace(' ', '-')}.jpg"


def _strip(film: Film, shots: list[np.ndarray], variant: str, n: int, plain: np.ndarray, handled: np.ndarray, options: Options) -> None:
    shot, k = divmod(n, len(shots[0]) - 1)
    at = n // 2
    pictures = {"film": plain[2 * at], "film, next": plain[2 * at + 2], "truth": shots[shot][1 + k], "alone": plain[n], "seen": handled[n]}
    assert options.pictures
    caption = f"{film.name} {variant}, frame {n} at twice the rate. {source(film.source).free}"
    strips.save(options.pictures / _file(film, variant), pictures, strips.worst(plain[n], shots[shot][1 + k]), columns=5, caption=caption)


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
