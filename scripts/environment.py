"""Python environments for the two commands: made once, checked in a moment on every later run.

Plain Python, standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
WORK = ROOT / ".work"
OLDEST_PYTHON = (3, 10)

# What pip is given for torch. LEAN_VIDEO_TORCH replaces it, for another build or index.
TORCH = "torch==2.14.1 torchvision==0.29.1"


class SetupError(Exception):
    """A set-up step that failed, in one sentence for the person at the terminal."""


def say(text: str) -> None:
    """Tell the person at the terminal; standard output is kept for results."""
    print(text, file=sys.stderr, flush=True)


def python_in(venv: Path) -> Path:
    """The interpreter of a virtual environment, there or not."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_venv(venv: Path) -> Path:
    """Make a virtual environment unless its interpreter runs already, and return that interpreter."""
    python = python_in(venv)
    if python.exists() and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0:
        return python
    say(f"Making {venv}")
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True)
    if made.returncode:
        raise SetupError(
            f"Python could not make the virtual environment {venv}; on Debian or Ubuntu run "
            f"'apt-get install python3-venv' first. It said: {(made.stdout + made.stderr).strip()[-300:]}"
        )
    return python


def pip_install(python: Path, arguments: list[str], what: str) -> None:
    """Run `pip install` in the environment of `python`; raises SetupError with pip's last lines."""
    say(f"Installing {what} into {python.parent.parent}")
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise SetupError(f"pip could not install {what}:\n{tail}")


def has_packages(python: Path, names: list[str]) -> bool:
    """Whether distributions of these names are installed for `python`."""
    check = "import sys, importlib.metadata as m; [m.version(name) for name in sys.argv[1:]]"
    return subprocess.run([python, "-c", check, *names], capture_output=True).returncode == 0


def requirement_lines(file: Path) -> list[str]:
    """The requirements in a requirements file, without comments, markers kept."""
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("-")]


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]


def install_requirements(python: Path, requirements: list[str], what: str) -> None:
    """Install requirements once: a stamp remembers what was installed, and a look at what is there
    catches an environment that was made anew since."""
    if not requirements:
        return
    key = hashlib.sha256("\n".join([str(python), *requirements]).encode()).hexdigest()[:24]
    stamp = WORK / "stamps" / key
    present = [_name(line) for line in requirements if ";" not in line]
    if stamp.exists() and has_packages(python, present):
        return
    pip_install(python, requirements, what)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(what, encoding="utf-8")


def install_torch(python: Path) -> None:
    """Install torch and torchvision unless some version of both is there."""
    if not has_packages(python, ["torch", "torchvision"]):
        pip_install(python, shlex.split(os.environ.get("LEAN_VIDEO_TORCH", TORCH)), "torch")


def install_pack(python: Path) -> None:
    """Install what the node pack itself needs, as a user of ComfyUI would."""
    install_requirements(python, requirement_lines(ROOT / "requirements.txt"), "the pack's requirements")


def set_up(extra: str | None = None) -> Path:
    """Make the project's own environment and return its interpreter; `extra` names a further
    requirements file."""
    python = make_venv(VENV)
    install_torch(python)
    install_pack(python)
    if extra:
        install_requirements(python, requirement_lines(ROOT / extra), extra)
    return python


def main() -> int:
    """Command line: make `.venv`, with what `--also FILE` asks for."""
    parser = argparse.ArgumentParser(description="Make the project's .venv.")
    parser.add_argument("--also", metavar="FILE", help="a further requirements file")
    arguments = parser.parse_args()
    if sys.version_info < OLDEST_PYTHON:
        say(f"Python {'.'.join(map(str, OLDEST_PYTHON))} or newer is needed; this is {sys.version.split()[0]}.")
        return 2
    try:
        set_up(arguments.also)
    except SetupError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
