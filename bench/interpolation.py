#!/usr/bin/env python3
"""Frames between frames: how good, how much better for seeing cuts and repeats, how fast, and in how much memory.

Prints the sections of `interpolation.md`, one a part, and with --write puts them into that file in the place of what it had. Pictures go beside it.
Clips, LPIPS and RIFE come out of packages into `.work` and are checked by SHA-256. OMP_NUM_THREADS is taken as given.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_suffix(".md")
PICTURES = Path(__file__).with_suffix("")
for folder in (ROOT / "scripts", ROOT / "tests" / "engine", ROOT):
    sys.path.insert(0, str(folder))

from turns import cores, other_load, versions  # noqa: E402


@dataclass(frozen=True)
class Options:
    """What is asked for on the command line.

    weights   folder of rife-4.6.safetensors and rife-4.0.safetensors; they are put there where they are missing
    clips     clips of others instead of ours
    pictures  where pictures go, or None for none
    """

    weights: Path
    clips: tuple[Path, ...]
    quick: bool
    memory_model: str
    pictures: Path | None

    def rife(self, version: str) -> Path:
        from fetch_models import ALL, fetch

        return fetch(next(found for found in ALL if found.file == f"rife-{version}.safetensors"), self.weights)


def _quality(options: Options) -> list[str]:
    from quality import section

    return section(options)


def _handling(options: Options) -> list[str]:
    from handling import section

    return section(options)


def _speed(options: Options) -> list[str]:
    from speed import section

    return section(options)


def _memory(options: Options) -> list[str]:
    from streaming import section

    return section(options)


PARTS: dict[str, tuple[str, Callable[[Options], list[str]]]] = {
    "quality": ("Middle frames", _quality),
    "handling": ("Cuts and repeats", _handling),
    "speed": ("Speed", _speed),
    "memory": ("Memory, and what a killed run leaves", _memory),
}
HEAD = "# Frames between frames\n\nMade by `bench/interpolation.py`, a section at a time."


def measured(part: str, options: Options, command: str) -> str:
    load = os.getloadavg()[0]
    title, section = PARTS[part]
    lines = section(options)
    made = f"{date.today().isoformat()}, {cores()}, {os.environ.get('OMP_NUM_THREADS', 'all')} OMP thread(s). Python {platform.python_version()}, {versions('torch', 'opencv-python-headless', 'av')}. Made by `{command}`."
    return "\n".join([f"## {title}", "", made, other_load(load), "", *lines]).rstrip()


def put(sections: dict[str, str]) -> None:
    """Into the table, in the place of those it has."""
    before = TABLE.read_text(encoding="utf-8").split("\n## ")[1:] if TABLE.exists() else []
    kept = {text.splitlines()[0]: f"## {text.rstrip()}" for text in before}
    kept |= {PARTS[part][0]: text for part, text in sections.items()}
    titles = [title for title, _ in PARTS.values()]
    TABLE.write_text("\n\n".join([HEAD, *(kept.get(title, f"## {title}\n\nNot run yet.") for title in titles)]) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all of them")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name} and the pictures; else the sections are printed only")
    parser.add_argument("--quick", action="store_true", help="few frames, to try the script")
    parser.add_argument(
        "--clip", type=Path, action="append", default=[], metavar="FILE", help="another clip to measure quality on and to look for cuts in, instead of ours; may be given often"
    )
    parser.add_argument("--weights", type=Path, default=ROOT / ".work" / "models", metavar="FOLDER", help="of the RIFE files (default: .work/models)")
    parser.add_argument("--memory-model", default="optical flow", metavar="NAME", help='what the memory part runs (default: "optical flow")')
    given = parser.parse_args()
    if given.write and given.clip:
        parser.error("the table is of our clips: leave out --write or --clip")
    options = Options(given.weights, tuple(given.clip), given.quick, given.memory_model, PICTURES if given.write else None)
    command = " ".join(["python bench/interpolation.py", *(f'"{word}"' if " " in word else word for word in sys.argv[1:])])
    for part in given.part or list(PARTS):
        text = measured(part, options, command)
        if given.write:
            put({part: text})
        print(text, flush=True)


if __name__ == "__main__":
    main()
