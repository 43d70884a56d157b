"""Addresses of ours at ComfyUI's web server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from ...lean_video.errors import LeanVideoError
from .page import log

LARGEST_REQUEST = 8 * 2**20  # bytes of JSON

Answer = Callable[[Mapping[str, str], Any], Any]


def is_served() -> bool:
    """Whether there is a server to add addresses to: the pack may be imported by something else."""
    try:
        from server import PromptServer
    except ImportError:
        return False
    return getattr(PromptServer, "instance", None) is not None


def serve(method: str, path: str, answer: Answer) -> None:
    """Answers `path` with JSON: `answer(values, body)`, run in a thread of its own, gets what is in the address and in the query, and the JSON that was posted.

    None is answered with 404, a LeanVideoError with 400 and its sentence.
    """
    from aiohttp import web
    from server import PromptServer

    async def handle(request: Any) -> Any:
        try:
            body = None
            if method == "POST":
                if (request.content_length or 0) > LARGEST_REQUEST:
                    raise LeanVideoError("The request is too large.")
                body = await request.json()
            values = {**request.query, **request.match_info}
            found = await asyncio.get_running_loop().run_in_executor(None, answer, values, body)
        except LeanVideoError as error:
            return web.json_response({"error": str(error)}, status=400)
        except ValueError:
            return web.json_response({"error": "The request is not JSON."}, status=400)
        except Exception:
            log.exception("A request to %s failed.", path)
            return web.json_response({"error": "This failed; the server's log says how."}, status=500)
        return web.json_response({"error": "There is no such thing."}, status=404) if found is None else web.json_response(found)

    PromptServer.instance.routes.route(method, path)(handle)


def send_to_all(event: str, data: dict[str, Any]) -> None:
    """Sends an event to every page that is open."""
    from server import PromptServer

    PromptServer.instance.send_sync(event, data, None)
