"""What ComfyUI tells of its runs: which prompt, which node, how far. Listened to through what it offers for that; nothing of it is replaced."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol

from .page import log

_LOOK_S = 0.02  # between looks at the queue while there is something in it
_SOON_S = 0.001  # and just after a run has begun, until its nodes are listened to
_PATIENCE_S = 5.0  # for a prompt that was announced and may yet be refused


class Listener(Protocol):
    """Hears of runs, from any thread. `prompt` is the graph in API form; `status` is success, error or interrupted."""

    def nothing_runs(self) -> None:
        """A run is about to begin, and nothing of it has begun."""
        ...

    def run_started(self, run_id: str, prompt: Mapping[str, Any]) -> None: ...

    def node_started(self, run_id: str, node_id: str, is_late: bool) -> None:
        """`is_late` when it has been running for some milliseconds, as the first node of a run can have."""
        ...

    def step(self, run_id: str, node_id: str, done: int, total: int) -> None: ...

    def node_finished(self, run_id: str, node_id: str) -> None: ...

    def planned(self, peak: int) -> None:
        """What the node that runs now will take of the device, in bytes."""
        ...

    def run_ended(self, run_id: str, status: str, message: str | None) -> None: ...


_followers: list[_Follower] = []


def planned(peak: int) -> None:
    """For nodes of ours to say what they are about to take of the device, in bytes."""
    for follower in _followers:
        follower.planned(peak)


def follow(listener: Listener) -> None:
    """Has `listener` hear of every run from now on. The thread that looks sleeps while nothing is queued."""
    from server import PromptServer

    follower = _Follower(listener, PromptServer.instance)
    follower.attach()
    _followers.append(follower)
    PromptServer.instance.add_on_prompt_handler(follower.announced)


class _Follower:
    """Hears of a prompt when it arrives, of its beginning and end by looks at the queue, and of its nodes from the registry that the host makes for each prompt.

    The registry cannot be had before the run has begun, but the one before it is told that it is over: then, nothing of the new run has begun.
    """

    def __init__(self, listener: Listener, server: Any) -> None:
        self._listener = listener
        self._server = server
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._run: str | None = None
        self._node: str | None = None
        self._soon_until = 0.0

    def announced(self, data: Any) -> Any:
        """ComfyUI calls this with each prompt that arrives, and goes on with what it returns."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="lean_video.events", daemon=True)
            self._thread.start()
        self.about_to_run(is_certain=False)
        return data

    def about_to_run(self, is_certain: bool = True) -> None:
        """From the thread that runs prompts, just before one, or from the server's when one arrives that may have to wait."""
        try:
            with self._lock:
                self._end_what_ended()
                if self._run is None:
                    self._listener.nothing_runs()
                if is_certain:
                    self._soon_until = time.monotonic() + 0.1
        except Exception:
            log.exception("Following a run failed; the run itself is not affected.")
        self._wake.set()

    def planned(self, peak: int) -> None:
        """From a node that runs, so that an older host has named it by now."""
        try:
            with self._lock:
                if self._run is not None and not self.attach():
                    self._poll()
            self._listener.planned(peak)
        except Exception:
            log.exception("Following a run failed; the run itself is not affected.")

    def _follow(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            until = time.monotonic() + _PATIENCE_S
            while self._run is not None or time.monotonic() < until:
                try:
                    with self._lock:
                        if self._look():
                            until = time.monotonic() + _PATIENCE_S
                except Exception:
                    log.exception("Following a run failed; the run itself is not affected.")
                    self._run = None
                    time.sleep(1)
                if time.monotonic() < self._soon_until:
                    time.sleep(_SOON_S)
                else:
                    self._wake.wait(_LOOK_S)
                    self._wake.clear()

    def _running(self) -> dict[str, Any]:
        return {item[1]: item[2] for item in list(self._server.prompt_queue.currently_running.values())}

    def _look(self) -> bool:
        """Tells what has changed; whether there is anything in the queue."""
        self._end_what_ended()
        running = self._running()
        if self._run is None and running:
            self._run, prompt = next(iter(running.items()))
            self._node = None
            self._listener.run_started(self._run, prompt)
        if not self.attach() and self._run is not None:
            self._poll()
        return bool(running) or self._server.prompt_queue.get_tasks_remaining() > 0

    def attach(self) -> bool:
        """Has the registry of now tell our handler of its nodes; False where the host has none."""
        try:
            from comfy_execution.progress import get_progress_state
        except ImportError:
            return False
        registry = get_progress_state()
        kind = _handler_class()
        if kind.NAME in registry.handlers:
            return True
        if registry.prompt_id != self._run and (self._run is not None or registry.prompt_id in self._running()):
            return True  # that of the run that we know is still to come, or the run of that one is yet to be told of
        handler = kind(self._listener, self.about_to_run)
        # A run may be going through the handlers just now, so theirs is left as it is and another takes its place.
        registry.handlers = {**registry.handlers, handler.name: handler}
        if registry.prompt_id == self._run:
            self._soon_until = 0.0
            handler.catch_up(registry.prompt_id, {node_id: state["state"].value for node_id, state in list(registry.nodes.items())})
        return True

    def _poll(self) -> None:
        """Older hosts name the node that runs, to the client who queued the prompt; without one there is nothing to see."""
        node = self._server.last_node_id
        if node != self._node and node is not None and self._run is not None:
            self._listener.node_started(self._run, str(node), is_late=self._node is None)
        self._node = node

    def _end_what_ended(self) -> None:
        if self._run is None or self._run in self._running():
            return
        queue, run, self._run = self._server.prompt_queue, self._run, None
        status = (queue.get_history(prompt_id=run).get(run) or {}).get("status") or {}
        messages: dict[str, Any] = dict(status.get("messages", []))
        if "execution_interrupted" in messages:
            self._listener.run_ended(run, "interrupted", None)
        elif status.get("status_str") == "error":
            self._listener.run_ended(run, "error", messages.get("execution_error", {}).get("exception_message"))
        else:
            self._listener.run_ended(run, "success", None)


@lru_cache(maxsize=1)
def _handler_class() -> Any:
    from comfy_execution.progress import ProgressHandler

    class Handler(ProgressHandler):  # type: ignore[misc]
        """Passes on what the host tells of its nodes. What goes wrong here stays here: the host would end the run."""

        NAME = "lean_video"

        def __init__(self, listener: Listener, about_to_run: Callable[[], None]) -> None:
            super().__init__(self.NAME)
            self._listener, self._about_to_run = listener, about_to_run
            self._lock = threading.Lock()
            self._heard: set[str] = set()

        def catch_up(self, prompt_id: str, states: Mapping[str, str]) -> None:
            """Tells of what had begun before this handler was there, unless it has heard of something later by now."""
            with self._lock:
                for node_id, state in states.items():
                    if self._heard or state not in ("running", "finished", "error"):
                        continue
                    self._tell(self._listener.node_started, prompt_id, node_id, True)
                    if state != "running":
                        self._tell(self._listener.node_finished, prompt_id, node_id)
                self._heard.update(states)

        def start_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
            with self._lock:
                self._heard.add(node_id)
                self._tell(self._listener.node_started, prompt_id, node_id, False)

        def update_handler(self, node_id: str, value: float, max_value: float, state: Any, prompt_id: str, image: Any = None) -> None:
            with self._lock:
                self._tell(self._listener.step, prompt_id, node_id, int(value), int(max_value))

        def finish_handler(self, node_id: str, state: Any, prompt_id: str) -> None:
            with self._lock:
                self._tell(self._listener.node_finished, prompt_id, node_id)

        def reset(self) -> None:
            """The host calls this as it makes the registry of the next run."""
            self._about_to_run()

        def _tell(self, what: Any, *args: Any) -> None:
            try:
                what(*args)
            except Exception:
                log.exception("Following a run failed; the run itself is not affected.")

    return Handler
