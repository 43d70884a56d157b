"""Where files are: models, input, output, and what the pack keeps."""

from __future__ import annotations

import os
from pathlib import Path

from ...lean_video.errors import LeanVideoError
from ...lean_video.interpolation.library import is_weights

PACK = Path(__file__).resolve().parents[2]
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv", ".3gp", ".gif")


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


def register_interpolation_weights() -> None:
    """Makes known where weights for frame interpolation are: ComfyUI's own folder, the pack's, and those of other packs. To be called when the pack is loaded,
    before ComfyUI has listed files; nothing happens outside ComfyUI."""
    try:
        import folder_paths
    except ImportError:
        return
    models = Path(folder_paths.models_dir)
    _also_in("frame_interpolation", models / "frame_interpolation", PACK / "models")
    elsewhere = [folder for custom in model_folders("custom_nodes") for folder in custom.glob("*[Ff]rame-[Ii]nterpolation/ckpts/rife")]
    _also_in("rife", models / "rife", *elsewhere)


def interpolation_weights() -> dict[str, Path]:
    """Files of weights for frame interpolation, by the name that the list shows."""
    import folder_paths

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


def user_folder() -> Path:
    """Where the pack may keep what is worth keeping between runs."""
    import folder_paths

    return Path(folder_paths.user_directory) / "lean_video"
