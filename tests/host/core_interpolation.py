"""Run by a host's own Python, in the host's folder: ComfyUI core's RIFE over given weights and frames.

Arguments: the weights, the inputs (frames `a` and `b` [1,3,H,W], `times`) and the outputs, all safetensors. It prints nothing and imports nothing of ours.
"""

from __future__ import annotations

import sys
from pathlib import Path

weights, given, answers = sys.argv[1:]
sys.argv[1:] = ["--cpu"]  # read when comfy is imported
sys.path[0] = str(Path.cwd())  # instead of this folder, whose comfy.py is another

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import torch  # noqa: E402
from comfy_extras.nodes_frame_interpolation import FrameInterpolationModelLoader  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

network = FrameInterpolationModelLoader._detect_and_load(load_file(weights)).eval()
inputs = load_file(given)
with torch.no_grad():
    frames = [network(inputs["a"], inputs["b"], float(time)) for time in inputs["times"]]
save_file({"frames": torch.cat(frames)}, answers)
