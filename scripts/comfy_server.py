"""A ComfyUI server process of our own: a scratch folder, the pack linked in, a free port.

Nothing is written into the ComfyUI it runs. Releases that know `--base-directory` are pointed at
the scratch folder; for older ones the program itself (a few megabytes) is copied into it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from environment import ROOT, SetupError
from get_comfyui import Host

START_S = 300
PACK = "lean-video"
_FOLDERS = ("models/checkpoints", "models/diffusers", "custom_nodes", "input", "output", "temp", "user")
_NOT_PROGRAM = ("models", "custom_nodes", "input", "output", "temp", "user", "venv", ".venv", ".git")
_NOT_PACK = (".git", ".venv", ".work", "demo-output", "__pycache__")


class Server:
    """One ComfyUI process. `start` returns when it answers; `stop` ends it by its process id.

    Args:
        host: which ComfyUI.
        base: the scratch folder; made if need be. The log is `base/server.log`.
        packs: node packs to link in under the given names.
        env: further environment variables of the process.
        flags: further command-line flags, such as `--cpu`.
    """

    def __init__(
        self,
        host: Host,
        base: Path,
        packs: Mapping[str, Path] | None = None,
        env: Mapping[str, str] | None = None,
        flags: tuple[str, ...] = (),
    ) -> None:
        self.host = host
        self.base = base
        self.log = base / "server.log"
        self.port = 0
        self._packs = {PACK: ROOT} if packs is None else dict(packs)
        self._env = dict(env or {})
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the server was not started")
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def checkpoints(self) -> Path:
        return self.base / "models" / "checkpoints"

    @property
    def output(self) -> Path:
        return self.base / "output"

    @property
    def input(self) -> Path:
        return self.base / "input"

    def start(self) -> Server:
        """Start the process and wait until it answers.

        Raises:
            SetupError: it ended, did not answer, or could not import a pack; with its last words.
        """
        for folder in _FOLDERS:
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        for name, source in self._packs.items():
            link(source, self.base / "custom_nodes" / name)
        command = self._command()
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", **self._env}
        # A pip or pytest that runs us must not leak its import paths into the server.
        env.pop("PYTHONPATH", None)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self.base, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while not self._answers():
            if not self.alive or time.monotonic() > deadline:
                self.stop()
                raise SetupError(f"ComfyUI {self.host.version} did not start:\n{self.log_tail()}")
            time.sleep(0.2)
        failed = [line for line in self.log_text().splitlines() if "IMPORT FAILED" in line]
        if any(name in line for line in failed for name in self._packs):
            self.stop()
            raise SetupError(f"ComfyUI {self.host.version} cannot import the pack:\n{self.log_tail()}")
        return self

    def stop(self) -> None:
        """End the process; does nothing when it has ended."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log_text(self) -> str:
        """All that the process has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def log_tail(self, lines: int = 40) -> str:
        """The last lines that the process has printed."""
        return "\n".join(self.log_text().splitlines()[-lines:])

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _command(self) -> list[str]:
        known = _known_flags(self.host)
        self.port = _free_port()
        program = self.host.path
        flags = ["--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch"]
        if "--base-directory" in known:
            flags += ["--base-directory", str(self.base)]
        else:
            program = self.base
            _copy_program(self.host.path, self.base)
        if "--database-url" in known:
            flags += ["--database-url", f"sqlite:///{(self.base / 'user' / 'comfyui.db').as_posix()}"]
        if "--disable-api-nodes" in known:
            flags.append("--disable-api-nodes")
        return [str(self.host.python), str(program / "main.py"), *flags, *self._flags]

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/system_stats", timeout=5) as reply:
                return reply.status == 200
        except (urllib.error.URLError, OSError):
            return False


def link(source: Path, target: Path) -> None:
    """Make `target` show `source`: a link, or a copy where links are not allowed (Windows)."""
    if target.exists():
        return
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(*_NOT_PACK))
        else:
            shutil.copy2(source, target)


def needs_cpu(host: Host) -> bool:
    """Whether the interpreter of this ComfyUI sees no accelerator."""
    check = (
        "import sys, torch;"
        "xpu = getattr(torch, 'xpu', None);"
        "found = torch.cuda.is_available() or torch.backends.mps.is_available()"
        " or (xpu is not None and xpu.is_available());"
        "sys.exit(not found)"
    )
    return subprocess.run([host.python, "-c", check], capture_output=True).returncode != 0


def _known_flags(host: Host) -> str:
    command = [host.python, str(host.path / "main.py"), "--help"]
    return subprocess.run(command, cwd=host.path, capture_output=True, text=True).stdout


def _copy_program(source: Path, target: Path) -> None:
    def skip(folder: str, names: list[str]) -> list[str]:
        top = Path(folder) == source
        return [name for name in names if name == "__pycache__" or (top and name in _NOT_PROGRAM)]

    if not (target / "main.py").exists():
        shutil.copytree(source, target, ignore=skip, dirs_exist_ok=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
