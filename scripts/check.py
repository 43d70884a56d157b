"""Everything that must hold before a change lands: lint, types, import arrows, tests.

Arguments are handed to pytest, and then only pytest runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fetch_models
import get_comfyui
from environment import ROOT, SetupError, say

BIN = Path(sys.executable).parent
CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("pyright",),
    ("lint-imports",),
)


def main() -> int:
    """Run every check, also after a failure, and return the exit code."""
    try:
        for host in get_comfyui.find("all"):
            say(f"Testing in ComfyUI {host.version}: {host.path}")
        _need_chromium()
        fetch_models.fetch_all()
    except SetupError as error:
        say(str(error))
        return 1
    given = sys.argv[1:]
    failed = [] if given else [check for check in CHECKS if _run(str(BIN / check[0]), *check[1:])]
    if not given and (node := shutil.which("node")):  # the page's parsers; not everybody has node, the browser tests cover what users see
        failed += [("node", "--test")] if _run(node, "--test", *map(str, sorted((ROOT / "tests" / "js").glob("*.test.mjs")))) else []
    if _run(sys.executable, "-m", "pytest", *given):
        failed.append(("pytest",))
    for check in failed:
        say(f"FAILED: {' '.join(check)}")
    return 1 if failed else 0


def _run(*command: str) -> int:
    say("$ " + " ".join([Path(command[0]).name, *command[1:]]))
    # Several threads per process on a small machine slow small tensors down.
    env = {"OMP_NUM_THREADS": "2", "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", **os.environ}
    return subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL).returncode


def _need_chromium() -> None:
    if shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome"):
        return
    how = "apt-get install -y --no-install-recommends chromium"
    if shutil.which("apt-get") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise SetupError(f"The browser tests need Chromium on the PATH; on Debian, as root: {how}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in ("apt-get update", how):
        if subprocess.run(command.split(), env=env, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode:
            raise SetupError(f"Chromium could not be installed; '{command}' failed.")


if __name__ == "__main__":
    sys.exit(main())
