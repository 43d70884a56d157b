"""The command line: the engine without ComfyUI.

Results go to stdout, progress and notes to stderr. A user's mistake is one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..errors import LeanVideoError
from . import interpolate, svd, vram
from .terminal import Parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 2 a mistake in what was asked, 130 interrupted."""
    try:
        options = _parser().parse_args(arguments)
        return options.run(options)
    except LeanVideoError as error:
        print(f"lean_video: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nlean_video: interrupted.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="lean_video", description="Video from an image with Stable Video Diffusion, and frames between frames, without ComfyUI.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    svd.add_commands(commands.add_parser)
    interpolate.add_commands(commands.add_parser)
    vram.add_commands(commands.add_parser)
    return parser
