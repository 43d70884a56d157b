"""What the page hears of a run: progress, previews, notes. And what it can ask: to stop."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger("lean_video")

PREVIEW_SIDE = 256
PREVIEW_FRAMES = 16


def throw_if_interrupted() -> None:
    import comfy.model_management

    comfy.model_management.throw_exception_if_processing_interrupted()


def progress(total: int | None = None) -> Callable[[int, int], None]:
    """A progress(done, total) callback: moves the node's bar and raises when the user has cancelled."""
    import comfy.utils

    bar: Any = None

    def update(done: int, whole: int) -> None:
        nonlocal bar
        throw_if_interrupted()
        if bar is None:
            bar = comfy.utils.ProgressBar(max(1, total or whole))
        bar.update_absolute(done, max(1, whole))

    return update


def sampling_progress(node_id: str | None, fps: float) -> Callable[[int, int, Any], None]:
    """An on_step(done, total, frames_THWC uint8) callback: bar, still preview, moving preview; raises when the user has cancelled."""
    import comfy.utils
    from PIL import Image

    bar: Any = None

    def update(done: int, total: int, frames_THWC: Any) -> None:
        nonlocal bar
        throw_if_interrupted()
        if bar is None:
            bar = comfy.utils.ProgressBar(total)
        picked = frames_THWC[:: max(1, -(-len(frames_THWC) // PREVIEW_FRAMES))]
        images = [Image.fromarray(frame) for frame in picked.numpy()]
        for image in images:
            image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
        bar.update_absolute(done, total, ("JPEG", images[0], PREVIEW_SIDE))
        if node_id is not None:
            data = io.BytesIO()
            images[0].save(data, "WEBP", save_all=True, append_images=images[1:], duration=round(1000 / max(1.0, fps)), loop=0, quality=70)
            encoded = "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode("ascii")
            send("lean_video.preview", {"node": node_id, "step": done, "steps": total, "image": encoded})

    return update


def send(event: str, data: dict[str, Any]) -> None:
    """Sends an event to the client whose prompt is running; nothing when there is none."""
    from server import PromptServer

    server = PromptServer.instance
    if server.client_id is not None:
        server.send_sync(event, data | {"prompt_id": getattr(server, "last_prompt_id", None)}, server.client_id)


def note(node_id: str | None, text: str) -> None:
    """Tells the user something that is not an error: in the log and on the page."""
    log.info(text)
    if node_id is not None:
        send("lean_video.note", {"node": node_id, "text": text})


def display_name(kind: str) -> str:
    """What the menu calls a node type."""
    import nodes

    return str(nodes.NODE_DISPLAY_NAME_MAPPINGS.get(kind, kind))


def metadata_disabled() -> bool:
    from comfy.cli_args import args

    return bool(getattr(args, "disable_metadata", False))
