"""The networks of the published SVD checkpoints, for plans that need no file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..models.parts import Kind, Part

PUBLISHED = ("svd", "svd_xt")

_CONFIGS: Mapping[Kind, Mapping[str, Any]] = {
    "unet": {
        "sample_size": 96,
        "in_channels": 8,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal",) * 3 + ("DownBlockSpatioTemporal",),
        "up_block_types": ("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * 3,
        "block_out_channels": (320, 640, 1280, 1280),
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 768,
        "layers_per_block": 2,
        "cross_attention_dim": 1024,
        "transformer_layers_per_block": (1, 1, 1, 1),
        "num_attention_heads": (5, 10, 20, 20),
        "num_frames": 25,
    },
    "vae": {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
        "scaling_factor": 0.18215,
        "mid_block_layers": 2,
    },
    "image_encoder": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 1024,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-05,
    },
}


def published_parts() -> dict[str, Part]:
    """The components of svd and svd_xt, whose networks are alike, without weights: `skeleton` is all that can be made of them."""
    return {kind: Part(kind, config, files={}) for kind, config in _CONFIGS.items()}
