"""The only door to ComfyUI: folders, devices, progress, interrupts, messages to the page, video type.

ComfyUI is imported inside the functions, so that the node classes can be read without it.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import weakref
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from ..lean_video.errors import LeanVideoError
from ..lean_video.interpolation.library import is_weights
from ..lean_video.lean.transfer import Weights

log = logging.getLogger("lean_video")

PREVIEW_SIDE = 256
PREVIEW_FRAMES = 16
PACK = Path(__file__).resolve().parent.parent
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv", ".3gp", ".gif")


# Folders


def model_names(kind: str) -> list[str]:
    """Names that ComfyUI lists for a kind of model, such as "checkpoints"."""
    import folder_paths

    return list(folder_paths.get_filename_list(kind))


def model_path(kind: str, name: str) -> Path:
    """Path of a listed model. Raises LeanVideoError when there is none of that name."""
    import folder_paths

    path = folder_paths.get_full_path(kind, name)
    if path is None:
        raise LeanVideoError(f"There is no {kind} file named {name}: refresh the list and choose again.")
    return Path(path)


def model_folders(kind: str) -> list[Path]:
    import folder_paths

    try:
        return [Path(folder) for folder in folder_paths.get_folder_paths(kind)]
    except KeyError:
        return []


def interpolation_weights() -> dict[str, Path]:
    """Files of weights for frame interpolation, by the name that the list shows: from ComfyUI's own folder, the pack's, and those that users of other packs have."""
    import folder_paths

    models = Path(folder_paths.models_dir)
    _also_in("frame_interpolation", models / "frame_interpolation", PACK / "models")
    elsewhere = [folder for custom in model_folders("custom_nodes") for folder in custom.glob("*[Ff]rame-[Ii]nterpolation/ckpts/rife")]
    _also_in("rife", models / "rife", *elsewhere)
    found: dict[str, Path] = {}
    for kind in ("frame_interpolation", "rife"):
        for name in model_names(kind):
            if is_weights(name) and name not in found and (path := folder_paths.get_full_path(kind, name)):
                found[name] = Path(path)
    return found


def _also_in(kind: str, *folders: Path) -> None:
    import folder_paths

    known = model_folders(kind)
    for folder in folders:
        if folder not in known:
            folder_paths.add_model_folder_path(kind, str(folder))


def input_videos() -> list[str]:
    """Names of the video files in ComfyUI's input folder."""
    import folder_paths

    folder = Path(folder_paths.get_input_directory())
    return sorted(file.name for file in folder.iterdir() if file.suffix.lower() in VIDEO_SUFFIXES) if folder.is_dir() else []


def input_file(name: str) -> Path:
    """The file of a name as ComfyUI writes it: in the input folder, or in the one that follows in brackets, as in `clip.mp4 [output]`. Raises LeanVideoError."""
    import folder_paths

    bare, bracket, where = name.rpartition(" [")
    folders = {"input]": folder_paths.get_input_directory(), "output]": folder_paths.get_output_directory(), "temp]": folder_paths.get_temp_directory()}
    if not bracket or where not in folders:
        bare, where = name, "input]"
    folder = os.path.abspath(folders[where])  # noqa: PTH100 - lexically, so that a user's link inside the folder is followed
    path = os.path.normpath(os.path.join(folder, bare))  # noqa: PTH118
    if "\0" in name or not path.startswith(folder + os.sep):
        raise LeanVideoError(f"The file {name!r} is not in ComfyUI's {where[:-1]} folder: choose one from the list.")
    if not Path(path).is_file():
        raise LeanVideoError(
            f"There is no file {bare} in ComfyUI's {where[:-1]} folder: refresh the list and choose again." if bare else "No video is chosen: upload one, or connect a VIDEO."
        )
    return Path(path)


def output_path(filename_prefix: str) -> tuple[Path, str, int, str]:
    """(folder, file name, first counter, subfolder) for a prefix in the output folder; makes the folder. Raises LeanVideoError."""
    import folder_paths

    return _save_path(filename_prefix, Path(folder_paths.get_output_directory()), "output")


def temp_path(filename_prefix: str) -> tuple[Path, str, int, str]:
    """As `output_path`, in the temporary folder."""
    import folder_paths

    return _save_path(filename_prefix, Path(folder_paths.get_temp_directory()), "temporary")


def _save_path(filename_prefix: str, root: Path, what: str) -> tuple[Path, str, int, str]:
    import folder_paths

    check_prefix(filename_prefix)
    root.mkdir(parents=True, exist_ok=True)
    wanted = (root / filename_prefix).resolve()
    if not wanted.is_relative_to(root.resolve()):
        raise LeanVideoError(f"The filename prefix {filename_prefix} leads out of the {what} folder: use a name inside it.")
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(filename_prefix, str(root))
    except OSError as error:
        raise LeanVideoError(f"The {what} folder cannot be written to ({error.strerror or error}): free space or change its permissions.") from None
    except Exception:  # the host raises a bare Exception for a prefix that its own check refuses
        raise LeanVideoError(f"The filename prefix {filename_prefix} leads out of the {what} folder: use a name inside it.") from None
    return Path(folder), name, int(counter), subfolder


def check_prefix(filename_prefix: str) -> None:
    """Raises LeanVideoError for a prefix that could name a file outside the folder it is meant for."""
    parts = filename_prefix.replace("\\", "/").split("/")
    if ".." in parts or filename_prefix.startswith(("/", "\\", "~")) or "\0" in filename_prefix or (len(filename_prefix) > 1 and filename_prefix[1] == ":"):
        raise LeanVideoError(f"The filename prefix {filename_prefix!r} leads out of the output folder: use a name inside it.")
    if not parts[-1].strip():
        raise LeanVideoError("The filename prefix has no file name: give it one, such as video/clip.")


# Devices and progress


def device() -> Any:
    """The torch device that ComfyUI computes on."""
    import comfy.model_management

    return comfy.model_management.get_torch_device()


def card() -> tuple[str, int | None]:
    """Name of the device that ComfyUI computes on, and its memory in bytes; None for a CPU, whose memory is the host's."""
    import comfy.model_management

    name = str(comfy.model_management.get_torch_device_name(device()))
    if device().type == "cpu":
        return "the CPU", None
    return name.removeprefix(f"{device()} ").partition(" : ")[0], int(comfy.model_management.get_total_memory(device()))


def free_bytes() -> int | None:
    """What a run may take of the device now: what is free, less what ComfyUI was told to leave to others. None for a CPU."""
    import comfy.model_management

    if device().type == "cpu":
        return None
    return int(comfy.model_management.get_free_memory(device())) - _reserved()


def _reserved() -> int:
    """Bytes of the device that ComfyUI leaves alone when it is told exactly how much a model takes."""
    import comfy.model_management as management
    from comfy.cli_args import args

    if not hasattr(management, "extra_reserved_memory"):  # the version of 2024 has no other margin, nor a flag for it
        return int(management.minimum_inference_memory())
    return int(management.extra_reserved_memory() + getattr(args, "vram_headroom", 0) * 2**30)


def room(size: int) -> int | None:
    """Has ComfyUI make room for `size` bytes, and tells what a run may then take, as `free_bytes` does."""
    make_room(size)
    return free_bytes()


def half_is_faster() -> bool:
    """Whether ComfyUI would run a network on this device in fp16."""
    import comfy.model_management

    return bool(comfy.model_management.should_use_fp16(device()))


def free_host_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def make_room(size: int, keep: Kept | None = None) -> None:
    """Asks ComfyUI to move other models than `keep` off the GPU until `size` bytes and its reserve are free; on a CPU there is nothing to move."""
    import comfy.model_management as management

    if device().type != "cpu":
        kept = [] if keep is None else keep.listed()
        management.free_memory(size + _reserved(), device(), keep_loaded=kept)
        management.soft_empty_cache()


def weights_may_stay() -> bool:
    """Whether weights may stay on the device between runs, until ComfyUI needs their place: not when the user asked for little to lie there."""
    import comfy.model_management as management

    smart = not getattr(management, "DISABLE_SMART_MEMORY", False)
    return device().type != "cpu" and smart and management.vram_state in (management.VRAMState.NORMAL_VRAM, management.VRAMState.HIGH_VRAM)


class Kept:
    """Weights of ours that stay on the device: to ComfyUI a loaded model like any other, which it counts, and unloads when it needs the place.

    It disappears from ComfyUI's list with this object; in the version of 2024, when the next prompt starts.
    """

    def __init__(self, weights: Weights, size: int) -> None:
        """`size` is what the weights will take, in bytes."""
        from comfy.model_patcher import ModelPatcher

        self.weights = weights
        self._size = size
        # They are unloaded to where they are, the host. What ComfyUI would name with --highvram is the GPU: nothing would ever leave it.
        self._patcher = ModelPatcher(LeanVideoWeights(weights), load_device=device(), offload_device=torch.device("cpu"), size=size)

    def load(self, beside: int) -> None:
        """Has ComfyUI make room for the weights and `beside` bytes more, and list them."""
        import comfy.model_management

        # The version of 2024 makes none for a model that it has listed, and ours may have been dropped since.
        make_room(self._size - self.weights.held_bytes + beside, keep=self)
        comfy.model_management.load_models_gpu([self._patcher], memory_required=beside)

    def listed(self) -> list[Any]:
        """ComfyUI's entries for these weights: one, or none when they are unloaded."""
        import comfy.model_management

        return [entry for entry in comfy.model_management.current_loaded_models if entry.model is self._patcher]


class LeanVideoWeights(torch.nn.Module):
    """What ComfyUI moves about in place of the weights, and names in its log. It does not hold them, so that they are gone with their model."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self._weights = weakref.ref(weights)

    @property
    def model_loaded_weight_memory(self) -> int:
        """What ComfyUI reads as the bytes on the device."""
        weights = self._weights()
        return 0 if weights is None else weights.held_bytes

    @model_loaded_weight_memory.setter
    def model_loaded_weight_memory(self, value: int) -> None:
        """ComfyUI's own count is that of modules inside, of which there are none."""

    def to(self, *args: Any, **keywords: Any) -> LeanVideoWeights:
        device = keywords.get("device", args[0] if args else None)
        weights = self._weights()
        if weights is not None and device is not None and torch.device(device) != weights.transfer.device:
            weights.drop()
        return self


def user_folder() -> Path:
    """Where the pack may keep what is worth keeping between runs."""
    import folder_paths

    return Path(folder_paths.user_directory) / "lean_video"


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


# Messages to the page


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


def metadata_disabled() -> bool:
    from comfy.cli_args import args

    return bool(getattr(args, "disable_metadata", False))


# The VIDEO type


def has_video_type() -> bool:
    return _video_classes() is not None


def _video_classes() -> tuple[Any, Any, Any] | None:
    try:
        from comfy_api.input_impl import VideoFromComponents, VideoFromFile
        from comfy_api.util import VideoComponents
    except ImportError:
        return None
    return VideoFromFile, VideoFromComponents, VideoComponents


def video_file(video: Any) -> Path | io.BytesIO | None:
    """What a VIDEO is read from; None where it is frames in memory, or a part of a file."""
    classes = _video_classes()
    if classes is None or not isinstance(video, classes[0]):
        return None
    window = video.get_active_trim_window() if hasattr(video, "get_active_trim_window") else (0, 0)
    source = video.get_stream_source()
    return None if any(window) else Path(source) if isinstance(source, str) else source


def video_frames(video: Any) -> tuple[Any, Any, Fraction]:
    """The frames [T,H,W,C] of a VIDEO, its AUDIO or None, and its rate. Raises LeanVideoError for what is no VIDEO."""
    if not hasattr(video, "get_components"):
        raise LeanVideoError(f"The input video is {type(video).__name__} {str(video)[:40]!r}, not a connection: connect it to a node that gives a VIDEO.")
    components = video.get_components()
    return components.images, components.audio, Fraction(components.frame_rate)


def video_from_file(path: Path) -> Any:
    """ComfyUI's VIDEO of a file, read only when somebody asks for it."""
    classes = _video_classes()
    return None if classes is None else classes[0](str(path))


def video_from_frames(images: Any, audio: Any, fps: float) -> Any:
    """ComfyUI's VIDEO of frames in memory, for formats that are no single video file."""
    classes = _video_classes()
    return None if classes is None else classes[1](classes[2](images=images, audio=audio, frame_rate=Fraction(fps).limit_denominator(100_000)))
