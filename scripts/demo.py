"""Makes a video from a photograph in a real ComfyUI, over its HTTP API and websocket.

`CHECKPOINT=file` runs a real checkpoint, `PHOTO=file` another photograph. Without a checkpoint the
demo model makes the clip: it comes with the pack, is small, and moves the camera over any picture.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fetch_models
import get_comfyui
from comfy_client import Client, Prompt, Rejected, Run
from comfy_server import Server, link, needs_cpu
from environment import ROOT, SetupError, say

sys.path.insert(0, str(ROOT))

from lean_video.checkpoints import demo

WORKFLOWS = ROOT / "workflows"
WORKFLOW = "keyframes_to_video"
RESULTS = ROOT / "demo-output"
SMALL: dict[str, Any] = {
    "checkpoint": demo.NAME,
    "width": demo.SIZES[0][0],
    "height": demo.SIZES[0][1],
    "frames": demo.FRAMES,
    "motion_bucket": demo.MOTION_BUCKET,
    "steps": demo.STEPS,
    "solver": demo.SOLVER,
    "schedule": demo.SCHEDULE,
    "guidance_min": demo.GUIDANCE[0],
    "guidance_max": demo.GUIDANCE[1],
}
BAR = 30


def main() -> int:
    """Run the demo; returns the exit code."""
    try:
        host = get_comfyui.find("one")[0]
        own, photo = _named("CHECKPOINT"), _named("PHOTO")
    except SetupError as error:
        say(str(error))
        return 1
    say(f"ComfyUI {host.version} in {host.path}")
    try:
        fetch_models.fetch_all()
    except SetupError as error:
        say(f"{error}\nGoing on without: optical flow makes the frames between the keyframes.")
    with tempfile.TemporaryDirectory(prefix="lean-video-demo-", ignore_cleanup_errors=True) as scratch:
        server = Server(host, Path(scratch), flags=_flags(host))
        RESULTS.mkdir(exist_ok=True)
        link(RESULTS, server.output)
        server.checkpoints.mkdir(parents=True)
        if own:
            link(own, server.checkpoints / own.name)
        try:
            with server:
                run = _run(Client(server.url), photo or WORKFLOWS / "input" / "photo.jpg", {"checkpoint": own.name} if own else SMALL)
        except (SetupError, Rejected, OSError) as error:
            say(f"{error}\n{server.log_tail()}")
            return 1
        if run.status != "success":
            say(f"\nThe run ended with: {run.message or run.status}\n{server.log_tail()}")
            return 1
    _report(run)
    return 0


def _named(variable: str) -> Path | None:
    """The file that an environment variable names."""
    named = os.environ.get(variable)
    if not named:
        return None
    file = Path(named).expanduser().resolve()
    if not file.is_file():
        raise SetupError(f"{variable} is {file}, but there is no such file.")
    return file


def _flags(host: get_comfyui.Host) -> tuple[str, ...]:
    if needs_cpu(host):
        say("No accelerator found: running on the CPU.")
        return ("--cpu",)
    return ()


def _run(client: Client, photo: Path, changes: dict[str, Any]) -> Run:
    """Upload the photograph, queue the shipped workflow and follow it."""
    changes = {**changes, "image": client.upload(photo)}
    canvas = json.loads((WORKFLOWS / f"{WORKFLOW}.json").read_text(encoding="utf-8"))
    prompt: Prompt = json.loads((WORKFLOWS / "api" / f"{WORKFLOW}.json").read_text(encoding="utf-8"))
    for node in prompt.values():
        inputs = node["inputs"]
        typed_in = (name for name, value in inputs.items() if not isinstance(value, list))
        inputs.update({name: changes[name] for name in typed_in if name in changes})
    follow = _Follower(prompt)
    began = time.monotonic()
    prompt_id = client.queue(prompt, canvas)
    say(f"Queued workflows/api/{WORKFLOW}.json as {prompt_id}")
    # A real checkpoint on a slow machine may take hours; Ctrl+C ends it.
    run = client.wait(prompt_id, 24 * 3600, follow)
    client.close()
    follow.end()
    say(f"{time.monotonic() - began:.0f} s from the queue to the file")
    return run


class _Follower:
    """A progress bar on stderr: one line for each node, drawn once where there is no terminal."""

    def __init__(self, prompt: Prompt) -> None:
        self._titles = {number: node["_meta"]["title"] for number, node in prompt.items()}
        self._node = ""
        self._start = time.monotonic()

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        if kind == "executing" and data.get("node"):
            self.end()
            self._node, self._start = data["node"], time.monotonic()
        elif kind == "progress" and self._node and sys.stderr.isatty():
            self._draw(data["value"], data["max"])

    def end(self) -> None:
        if self._node:
            self._draw(1, 1)
            print(file=sys.stderr)
            self._node = ""

    def _draw(self, done: int, total: int) -> None:
        filled = round(BAR * done / max(total, 1))
        bar = "#" * filled + "." * (BAR - filled)
        seconds = time.monotonic() - self._start
        title = self._titles.get(self._node, self._node)
        print(f"\r{title:18} [{bar}] {seconds:5.1f} s", end="", file=sys.stderr, flush=True)


def _report(run: Run) -> None:
    for output in run.outputs.values():
        for file in output.get("lean_video_files", []):
            print(f"{file['format']}: {RESULTS / file['subfolder'] / file['filename']}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
