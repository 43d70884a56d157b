"""The rules of docs/design.md that a linter can check from the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOST_MODULES = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "latent_preview", "nodes", "server"}
HEAVY = ("diffusers", "transformers", "kornia", "av", "cv2", "huggingface_hub", "safetensors", "PIL")


def imported(file: Path) -> Iterator[tuple[str, int]]:
    """(top-level module, level) of every import statement; level 0 is absolute."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0], node.level


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("file", sources("nodes") + sources("lean_video"), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_only_the_host_adapter_imports_comfyui(file: Path) -> None:
    found = {module for module, level in imported(file) if level == 0} & HOST_MODULES
    assert not found or file.parent == ROOT / "nodes" / "host"


@pytest.mark.parametrize("file", sources("lean_video"), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_the_engine_imports_itself_relatively(file: Path) -> None:
    assert "lean_video" not in {module for module, level in imported(file) if level == 0}


def test_what_comfyui_loads_at_start_up_leaves_the_heavy_libraries_alone() -> None:
    code = (
        "import sys, types, torch; before = set(sys.modules)\n"
        "import importlib.util as u\n"
        "spec = u.spec_from_file_location('lean-video', 'ROOT/__init__.py', submodule_search_locations=['ROOT'])\n"
        "pack = u.module_from_spec(spec); sys.modules['lean-video'] = pack; spec.loader.exec_module(pack)\n"
        "print(sorted(pack.NODE_CLASS_MAPPINGS)); print(sorted(m for m in set(sys.modules) - before if '.' not in m))"
    ).replace("ROOT", ROOT.as_posix())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    nodes, modules = (ast.literal_eval(line) for line in done.stdout.splitlines())
    assert "LeanVideoSVDLoader" in nodes
    assert not set(modules) & set(HEAVY)


def test_no_node_pins_the_hosts_torch() -> None:
    names = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()]
    assert not [name for name in names if re.match(r"(torch|triton|nvidia-(cu|nccl|nv|cublas))", name)]  # nvidia-ml-py is plain Python
    assert not [name for name in names if "==" in name]


def test_looking_at_the_interpolators_imports_no_torch() -> None:
    code = "import sys, lean_video.interpolation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
