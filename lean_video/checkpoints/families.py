"""Which model family a file holds, told from tensor names."""

from __future__ import annotations

from dataclasses import dataclass

from .header import Header

UNET = "model.diffusion_model."
CLIP = "conditioner.embedders.0.open_clip.model.visual."
CONDITION_ENCODER = "conditioner.embedders.3.encoder."
VAE = "first_stage_model."

SVD = "Stable Video Diffusion"


@dataclass(frozen=True)
class Family:
    """A family is recognised by name prefixes that must all be there."""

    name: str
    prefixes: tuple[str, ...]


# In order: the first match names the file.
_FAMILIES = (
    Family(SVD, (UNET + "input_blocks.1.0.time_stack.", UNET + "label_emb.")),
    Family("AnimateDiff motion module", ("down_blocks.0.motion_modules.",)),
    Family("ModelScope text-to-video", (UNET + "input_blocks.1.2.",)),
    Family("a LoRA", ("lora_unet_",)),
    Family("a LoRA", ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora",)),
    Family("SDXL", ("conditioner.embedders.1.", UNET + "label_emb.")),
    Family("SD 2", ("cond_stage_model.model.transformer.", UNET)),
    Family("SD 1", ("cond_stage_model.transformer.", UNET)),
    Family("SD 3", (UNET + "joint_blocks.",)),
    Family("Flux", (UNET + "double_blocks.",)),
    Family("Flux", ("double_blocks.", "single_blocks.")),
    Family("Wan", ("blocks.0.self_attn.", "patch_embedding.")),
    Family("ControlNet", ("control_model.",)),
    Family("VAE", ("decoder.conv_in.", "encoder.conv_in.")),
    Family("part of Stable Video Diffusion in diffusers layout", ("down_blocks.0.resnets.0.temporal_res_block.",)),
    Family("CLIP vision model", ("vision_model.",)),
    Family("CLIP text model", ("text_model.",)),
    Family("a diffusion UNet of another family", (UNET + "input_blocks.",)),
)


def family(header: Header) -> str | None:
    """Name of the family whose tensors the file holds, or None when it is none that we know."""
    return next((candidate.name for candidate in _FAMILIES if header.has(*candidate.prefixes)), None)
