"""Lean Video's engine: exact low-memory video diffusion, without ComfyUI."""

__version__ = "0.1.0"
