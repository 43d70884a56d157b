"""A graph in API form, as it is before it runs: unknown nodes, missing inputs and cycles are nothing unusual in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from ..lean_video.errors import LeanVideoError

MOST_NODES = 10_000
_NOT_SIZE = ("seed", "noise_seed", "steps", "start_at_step", "end_at_step", "text", "filename_prefix", "fps", "crf", "quality")


class Graph:
    """Raises LeanVideoError for what is no graph. Entries that are no nodes are left out."""

    def __init__(self, prompt: object, name_of: Callable[[str], str] = str) -> None:
        """`name_of` gives a node type's name for people, where a prompt has no title."""
        if not isinstance(prompt, dict) or len(prompt) > MOST_NODES:
            raise LeanVideoError(f"This is no graph in API form, or one of more than {MOST_NODES} nodes: send what Export (API) saves.")
        self._nodes: dict[str, dict[str, Any]] = {
            str(key): node for key, node in prompt.items() if isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs", {}), dict)
        }
        self._name_of = name_of
        self._signatures: dict[str, str] = {}
        self._entered: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._nodes

    def type_of(self, node_id: str) -> str:
        return self._nodes[node_id]["class_type"]

    def title_of(self, node_id: str) -> str:
        meta = self._nodes[node_id].get("_meta")
        title = meta.get("title") if isinstance(meta, dict) else None
        return title if isinstance(title, str) and title else self._name_of(self.type_of(node_id))

    def source(self, node_id: str, name: str) -> str | None:
        """The node that an input is connected to, if that is in the graph."""
        value = self._nodes[node_id].get("inputs", {}).get(name)
        return str(value[0]) if _is_link(value) and str(value[0]) in self._nodes else None

    def value(self, node_id: str, name: str, default: Any = None) -> Any:
        """What an input is set to: its own value, or that of a primitive it is connected to; None where only running would tell."""
        seen: set[str] = set()
        while node_id not in seen:
            seen.add(node_id)
            value = self._nodes[node_id].get("inputs", {}).get(name, default)
            if not _is_link(value):
                return value
            node_id = str(value[0])
            if node_id not in self._nodes or not self.type_of(node_id).startswith("Primitive"):
                return None
            name = "value"
        return None

    def upstream(self, node_id: str, kind: str) -> str | None:
        """The nearest node of a type among those that this one depends on, itself included."""
        seen: set[str] = set()
        front = [node_id]
        while front:
            found = [node for node in front if self.type_of(node) == kind]
            if found:
                return found[0]
            seen.update(front)
            front = list(dict.fromkeys(node for before in front for node in self._sources(before) if node not in seen))
        return None

    def signature(self, node_id: str) -> str:
        """The same for two nodes that do the same work on things of the same size: of one type, with one set of sizes and files, fed by nodes of which that holds too."""
        waiting = [node_id]
        while waiting:
            node = waiting[-1]
            if node in self._signatures:
                waiting.pop()
                continue
            new = [source for source in self._sources(node) if source not in self._signatures]
            if new and node not in self._entered:
                self._entered.add(node)
                waiting.extend(source for source in new if source not in self._entered)
                continue
            waiting.pop()
            inputs = self._nodes[node].get("inputs", {})
            plain = {name: value for name, value in inputs.items() if isinstance(value, (int, str)) and name not in _NOT_SIZE}
            links = {name: self._signatures.get(str(value[0]), "in a circle") for name, value in inputs.items() if _is_link(value)}
            text = json.dumps([self.type_of(node), plain, links], sort_keys=True)
            self._signatures[node] = hashlib.sha256(text.encode()).hexdigest()[:24]
        return self._signatures[node_id]

    def _sources(self, node_id: str) -> list[str]:
        return [str(value[0]) for value in self._nodes[node_id].get("inputs", {}).values() if _is_link(value) and str(value[0]) in self._nodes]


def _is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int)) and isinstance(value[1], int)
