"""The only door to ComfyUI, which is imported inside the functions, so that the node classes can be read without it."""

from __future__ import annotations

from .devices import Kept, LeanVideoWeights, card, device, free_bytes, free_host_bytes, half_is_faster, host_bytes, make_room, reachable_bytes, room, weights_may_stay
from .events import follow, planned
from .folders import (
    check_prefix,
    input_file,
    input_videos,
    interpolation_weights,
    model_folders,
    model_names,
    model_path,
    output_path,
    register_interpolation_weights,
    temp_path,
    user_folder,
)
from .page import display_name, metadata_disabled, note, progress, sampling_progress, send, throw_if_interrupted
from .server import is_served, send_to_all, serve
from .video import has_video_type, video_file, video_frames, video_from_file, video_from_frames

__all__ = [
    "Kept",
    "LeanVideoWeights",
    "card",
    "check_prefix",
    "device",
    "display_name",
    "follow",
    "free_bytes",
    "free_host_bytes",
    "half_is_faster",
    "has_video_type",
    "host_bytes",
    "input_file",
    "input_videos",
    "interpolation_weights",
    "is_served",
    "make_room",
    "metadata_disabled",
    "model_folders",
    "model_names",
    "model_path",
    "note",
    "output_path",
    "planned",
    "progress",
    "reachable_bytes",
    "register_interpolation_weights",
    "room",
    "sampling_progress",
    "send",
    "send_to_all",
    "serve",
    "temp_path",
    "throw_if_interrupted",
    "user_folder",
    "video_file",
    "video_frames",
    "video_from_file",
    "video_from_frames",
    "weights_may_stay",
]
