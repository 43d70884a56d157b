"""The help pages that ComfyUI shows beside a node."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "js" / "docs"
NAMES = sorted(page.stem for page in DOCS.glob("*.md"))


def test_every_node_has_a_help_page_and_every_page_a_node(nodes: dict[str, Any]) -> None:
    assert set(NAMES) == set(nodes)


@pytest.mark.parametrize("node_id", NAMES)
def test_a_help_page_names_every_input_and_output(node_id: str, nodes: dict[str, Any]) -> None:
    inputs = nodes[node_id].INPUT_TYPES()
    wanted = {*inputs.get("required", {}), *inputs.get("optional", {}), *nodes[node_id].RETURN_NAMES}
    page = (DOCS / f"{node_id}.md").read_text(encoding="utf-8")
    named = re.findall(r"\*\*(\w+)\*\*|`(\w+)`|^\| *(\w+) *\|", page, re.MULTILINE)
    assert wanted - {word for words in named for word in words} == set()


@pytest.mark.parametrize("node_id", NAMES)
def test_a_help_page_names_every_choice_of_a_short_list(node_id: str, nodes: dict[str, Any]) -> None:
    page = (DOCS / f"{node_id}.md").read_text(encoding="utf-8")
    inputs = nodes[node_id].INPUT_TYPES()
    for name, (kind, *_) in {**inputs.get("required", {}), **inputs.get("optional", {})}.items():
        if isinstance(kind, list) and name not in ("checkpoint", "format", "pixel_format"):
            assert [choice for choice in kind if f"`{choice}`" not in page] == []
