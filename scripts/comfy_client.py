"""A client of ComfyUI's HTTP API and websocket, for the demo and the tests."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket

Prompt = dict[str, dict[str, Any]]
Event = tuple[str, dict[str, Any]]


class Rejected(Exception):
    """ComfyUI refused a prompt. `body` is its answer, with `error` and `node_errors`."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body
        super().__init__(json.dumps(body, indent=1)[:4000])

    def messages(self) -> list[str]:
        """The sentences of the answer: the `details` and `message` of every node's errors."""
        nodes = self.body.get("node_errors") or {}
        errors = [error for node in nodes.values() for error in node["errors"]]
        return [f"{error['message']}: {error['details']}" for error in errors]


@dataclass
class Run:
    """What one queued prompt did.

    Attributes:
        status: "success", "error" or "interrupted".
        outputs: what each output node showed: node id → its `ui` dict.
        events: the JSON messages of the websocket, in order, as (type, data).
        previews: the image bytes of the binary preview messages, in order.
        error: of a failed run, the host's report: `exception_message`, `exception_type`, `node_id`…
    """

    prompt_id: str
    status: str = "success"
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    error: dict[str, Any] | None = None

    @property
    def message(self) -> str:
        """The error shown on the node, or the empty string."""
        return str((self.error or {}).get("exception_message", "")).strip()

    def named(self, kind: str) -> list[dict[str, Any]]:
        """The data of every event of one type."""
        return [data for name, data in self.events if name == kind]

    def executed(self) -> list[str]:
        """The ids of the nodes that ran, in order; cached ones are not among them."""
        return [data["node"] for data in self.named("executing") if data.get("node")]


class Client:
    """One client of one server, with its own websocket, opened on first use."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.id = uuid.uuid4().hex
        self._socket: websocket.WebSocket | None = None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def get(self, path: str, **query: str) -> Any:
        """The JSON answer to a GET."""
        return json.loads(self.get_bytes(path, **query))

    def get_bytes(self, path: str, **query: str) -> bytes:
        """The body of the answer to a GET."""
        suffix = "?" + urllib.parse.urlencode(query) if query else ""
        return self._open(urllib.request.Request(self.url + path + suffix))

    def post(self, path: str, body: Any) -> Any:
        """The JSON answer to a POST of JSON, None when it is empty."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        text = self._open(request)
        return json.loads(text) if text.strip() else None

    def upload(self, file: Path, name: str | None = None) -> str:
        """Put a file into the input folder; returns the name that LoadImage takes."""
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; '
            f'filename="{name or file.name}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        )
        body = head.encode() + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        answer = json.loads(self._open(urllib.request.Request(self.url + "/upload/image", body, headers)))
        return "/".join(filter(None, [answer.get("subfolder"), answer["name"]]))

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """The host's description of every node, or of one."""
        return self.get("/object_info" + (f"/{node}" if node else ""))

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """What the host remembers of a finished prompt, None while it is not finished."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def view(self, file: dict[str, str]) -> bytes:
        """The bytes of a file that an output node showed: {filename, subfolder, type}."""
        return self.get_bytes("/view", **{key: file[key] for key in ("filename", "subfolder", "type")})

    def interrupt(self) -> None:
        """Cancel what is running."""
        self.post("/interrupt", {})

    def free(self) -> None:
        """Ask the host to drop models and cached outputs; done between two prompts, soon after."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def queue(self, prompt: Prompt, workflow: dict[str, Any] | None = None) -> str:
        """Queue a prompt and return its id; `workflow` is the canvas form to embed in files.

        Raises:
            Rejected: the host found a fault in the prompt.
        """
        self._connect()
        body: dict[str, Any] = {"prompt": prompt, "client_id": self.id}
        if workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        try:
            answer = self.post("/prompt", body)
        except urllib.error.HTTPError as error:
            raise Rejected(json.loads(error.read())) from error
        if answer.get("node_errors"):
            raise Rejected(answer)
        return answer["prompt_id"]

    def run(
        self,
        prompt: Prompt,
        workflow: dict[str, Any] | None = None,
        timeout_s: float = 300,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> Run:
        """Queue a prompt and follow it to its end; see `queue` and `wait`."""
        return self.wait(self.queue(prompt, workflow), timeout_s, on_event)

    def wait(
        self,
        prompt_id: str,
        timeout_s: float = 300,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> Run:
        """Follow a queued prompt to its end.

        Args:
            on_event: called with each JSON event of this prompt as it comes.

        Raises:
            TimeoutError: it took longer than `timeout_s`.
        """
        run = Run(prompt_id)
        deadline = time.monotonic() + timeout_s
        while True:
            message = self._receive(deadline)
            if isinstance(message, bytes):
                # Eight bytes say what it is (1: a preview) and how the image is coded.
                if int.from_bytes(message[:4], "big") == 1:
                    run.previews.append(message[8:])
                continue
            event = json.loads(message)
            kind, data = event["type"], event.get("data") or {}
            if data.get("prompt_id", prompt_id) != prompt_id:
                continue
            run.events.append((kind, data))
            if on_event is not None:
                on_event(kind, data)
            if data.get("prompt_id") == prompt_id and _is_end(kind, data):
                break
        self._conclude(run, deadline)
        return run

    def _conclude(self, run: Run, deadline: float) -> None:
        """Fill in the outcome from the host's history, which some hosts write after the last event."""
        while (entry := self.history(run.prompt_id)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"prompt {run.prompt_id} ended but is not in the history")
            time.sleep(0.05)
        run.outputs = entry["outputs"]
        for kind, data in entry["status"]["messages"]:
            if kind in ("execution_error", "execution_interrupted"):
                run.status = kind.removeprefix("execution_")
                run.error = data

    def _connect(self) -> websocket.WebSocket:
        if self._socket is None or not self._socket.connected:
            address = self.url.replace("http", "ws", 1) + f"/ws?clientId={self.id}"
            self._socket = websocket.create_connection(address, timeout=30)
        return self._socket

    def _receive(self, deadline: float) -> str | bytes:
        socket = self._connect()
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the prompt did not end in time")
        socket.settimeout(left)
        try:
            return socket.recv()
        except websocket.WebSocketTimeoutException as error:
            raise TimeoutError("the prompt did not end in time") from error

    def _open(self, request: urllib.request.Request) -> bytes:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.read()


def _is_end(kind: str, data: dict[str, Any]) -> bool:
    done = ("execution_success", "execution_error", "execution_interrupted")
    return kind in done or (kind == "executing" and data.get("node") is None)
