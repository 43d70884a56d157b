"""What ComfyUI tells of its runs: which prompt, which node, how far. Listened to through what it offers for that; nothing of it is replaced."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol

from .page import log

_LOOK_S = 0.02  # between looks at the queue while there is something in it
_PATIENCE_S = 5.0  # for a prompt that was announced and may yet be refused


class Listener(Protocol):
    """Hears of runs, from any thread. `prompt` is the graph in API form; `status` is success, error or interrupted."""

    def announced(self) -> None:
        """A prompt has arrived; it may be refused yet, or wait."""
        ...

    def run_started(self, run_id: str, prompt: Mapping[str, Any]) -> None: ...

    def node_started(self, run_id: str, node_id: str) -> None: ...

    def step(self, run_id: str, node_id: str, done: int, total: int) -> None: ...

    def node_finished(self, run_id: str, node_id: str) -> None: ...

    def run_ended(self, run_id: str, status: str, message: str | None) -> None: ...


def follow(listener: Listener) -> None:
    """Has `listener` hear of every run from now on. The thread that looks sleeps while nothing is queued."""
    from server import PromptServer

    follower = _Follower(listener, PromptServer.instance)
    PromptServer.instance.add_on_prompt_handler(follower.announced)


class _Follower:
    def __init__(self, listener: Listener, server: Any) -> None:
        self._listener = listener
        self._server = server
        self._announced = threading.Event()
        self._thread: threading.Thread | None = None
        self._run: str | None = None
        self._node: str | None = None

    def announced(self, data: Any) -> Any:
        """ComfyUI calls this with each prompt that arrives, and goes on with what it returns."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="lean_video.events", daemon=True)
            self._thread.start()
        try:
            self._listener.announced()
        except Exception:
            log.exception("Following a run failed; the run itself is not affected.")
        self._announced.set()
        return data

    def _follow(self) -> None:
        while True:
            self._announced.wait()
            self._announced.clear()
            until = time.monotonic() + _PATIENCE_S
            while self._run is not None or time.monotonic() < until:
                try:
                    if self._look():
                        until = time.monotonic() + _PATIENCE_S
                except Exception:
                    log.exception("Following a run failed; the run itself is not affected.")
                    self._run = None
                    time.sleep(1)
                time.sleep(_LOOK_S)

    def _look(self) -> bool:
        """Tells what has changed; whether there is anything in the queue."""
        queue = self._server.prompt_queue
        running = {item[1]: item[2] for item in list(queue.currently_running.values())}
        if self._run is not None and self._run not in running:
            self._end(queue)
        if self._run is None and running:
            self._run, prompt = next(iter(running.items()))
            self._node = None
            self._listener.run_started(self._run, prompt)
        if self._run is not None and not self._listens():
            self._poll()
        return bool(running) or queue.get_tasks_remaining() > 0

    def _listens(self) -> bool:
        """Whether the host tells of its nodes itself, and our handler has been given to the registry that it makes for each prompt."""
        try:
            from comfy_execution.progress import get_progress_state
        except ImportError:
            return False
        registry = get_progress_state()
        if registry.prompt_id != self._run or not registry.handlers or _handler_class().NAME in registry.handlers:
            return True
        handler = _handler_class()(self._listener)
        # A run may be going through the handlers just now, so theirs is left as it is and another takes its place.
        registry.handlers = {**registry.handlers, handler.name: handler}
        handler.catch_up(registry.prompt_id, {node_id: state["state"].value for node_id, state in list(registry.nodes.items())})
        return True

    def _poll(self) -> None:
        """Older hosts name the node that runs, to the client who queued the prompt; without one there is nothing to see."""
        node = self._server.last_node_id
        if node != self._node and node is not None and self._run is not None:
            self._listener.node_started(self._run, str(node))
        self._node = node

    def _end(self, queue: Any) -> None:
        run, self._run = self._run, None
        assert run is not None
        status = (queue.get_history(prompt_id=run).get(run) or {}).get("status") or {}
        messages: dict[str, Any] = dict(status.get("messages", []))
        if "execution_interrupted" in messages:
            self._listener.run_ended(run, "interrupted", None)
        elif status.get("status_str") == "error":
            self._listener.run_ended(run, "error", messages.get("execution_error", {}).get("exception_message"))
        else:
            self._listener.run_ended(run, "success", None)


def _handler_class() -> Any:
    from comfy_execution.progress import ProgressHandler

    class Handler(ProgressHandler):  # type: ignore[misc]
        """Passes on what the host tells of its nodes. What goes wrong here stays here: the host would end the run."""

        NAME = "lean_video"

        def __init__(self, listener: Listener) -> None:
            super().__init__(self.NAME)
            self._listener = listener
            self._lock = threading.Lock()
            self._heard: set[str] = set()

        def catch_up(self, prompt_id: str, states: Mapping[str, str]) -> None:
            """Tells of what had begun before this handler was there, unless it has heard of something later by now."""
            with self._lock:
                for node_id, state in states.items():
                    if self._heard or state not in ("running", "finished", "error"):
                        continue
                    self._tell(self._listener.node_started, prompt_id, node_id)
                    if state != "running":
                        self._tell(self._listener.node_finished, prompt_id, node_id)
                self._heard.update(states)

        def start_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
            with self._lock:
                self._heard.add(node_id)
                self._tell(self._listener.node_started, prompt_id, node_id)

        def update_handler(self, node_id: str, value: float, max_value: float, state: Any, prompt_id: str, image: Any = None) -> None:
            with self._lock:
                self._tell(self._listener.step, prompt_id, node_id, int(value), int(max_value))

        def finish_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
            with self._lock:
                self._tell(self._listener.node_finished, prompt_id, node_id)

        def _tell(self, what: Any, *args: Any) -> None:
            try:
                what(*args)
            except Exception:
                log.exception("Following a run failed; the run itself is not affected.")

    return Handler
