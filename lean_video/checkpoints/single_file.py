"""The published single-file SVD checkpoints: configuration from shapes, names as diffusers has them.

Layout: Stability-AI/generative-models, `configs/inference/svd*.yaml` and `sgm/modules`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import LeanVideoError
from ..models.parts import Kind, Part
from .families import CLIP, CONDITION_ENCODER, UNET, VAE
from .header import Header

_HEAD_CHANNELS = 64  # of the UNet; a head's width cannot be read from a shape
_CLIP_HEAD_CHANNELS = (80, 64)  # ViT-H, then the other OpenCLIP vision towers
SCALING_FACTOR = 0.18215

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def parts(header: Header) -> dict[str, Part]:
    """The components of a single-file SVD checkpoint: "unet", "vae" and "image_encoder".

    Raises LeanVideoError when a component is missing or its shapes make no SVD network.
    """
    for what, prefix in (("UNet", UNET), ("image encoder", CLIP), ("VAE", VAE + "decoder.")):
        if not header.has(prefix):
            raise LeanVideoError(f"{header.path.name} has no {what}: use a complete Stable Video Diffusion checkpoint.")
    return {"unet": _unet(header), "vae": _vae(header), "image_encoder": _image_encoder(header)}


def _part(header: Header, kind: Kind, config: Mapping[str, Any], rename: Callable[[str], str | None], prefix: str) -> Part:
    names: dict[str, str] = {}
    for name in header.tensors:
        if name.startswith(prefix):
            target = rename(name[len(prefix) :])
            if target is not None:
                names[target] = name
    return Part(kind=kind, config=config, files={header.path: names})


# UNet


def _unet(header: Header) -> Part:
    width = header.shape(UNET + "input_blocks.0.0.weight")
    adm = header.shape(UNET + "label_emb.0.0.weight")[1]
    if adm != 768:
        raise LeanVideoError(f"{header.path.name} is conditioned on a vector of {adm} numbers, SVD on 768: SV3D and other relatives are not supported.")
    table: dict[str, str] = {"input_blocks.0.0": "conv_in"}
    channels: list[int] = []
    attention: list[bool] = []
    depth: list[int] = []
    blocks: list[int] = []
    index, level, block = 1, 0, 0
    while header.has(f"{UNET}input_blocks.{index}."):
        name = f"input_blocks.{index}"
        if f"{UNET}{name}.0.op.weight" in header.tensors:
            table[f"{name}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            level, block = level + 1, 0
        else:
            out = header.shape(f"{UNET}{name}.0.in_layers.2.weight")[0]
            has_attention = header.has(f"{UNET}{name}.1.")
            if block == 0:
                channels.append(out)
                attention.append(has_attention)
                depth.append(_count(header, f"{UNET}{name if has_attention else 'middle_block'}.1.transformer_blocks."))
                blocks.append(0)
            table[f"{name}.0"] = f"down_blocks.{level}.resnets.{block}"
            table[f"{name}.1"] = f"down_blocks.{level}.attentions.{block}"
            block += 1
            blocks[level] = block
        index += 1
    if not channels or len(set(blocks)) != 1:
        raise LeanVideoError(f"{header.path.name} is incomplete: its UNet has blocks missing, so download it again.")
    table |= {"middle_block.0": "mid_block.resnets.0", "middle_block.1": "mid_block.attentions.0", "middle_block.2": "mid_block.resnets.1"}
    index = 0
    for up in range(len(channels)):
        has_attention = attention[-1 - up]
        for block in range(blocks[0] + 1):
            table[f"output_blocks.{index}.0"] = f"up_blocks.{up}.resnets.{block}"
            if has_attention:
                table[f"output_blocks.{index}.1"] = f"up_blocks.{up}.attentions.{block}"
            table[f"output_blocks.{index}.{2 if has_attention else 1}.conv"] = f"up_blocks.{up}.upsamplers.0.conv"
            index += 1
    context = header.shape(UNET + "middle_block.1.transformer_blocks.0.attn2.to_k.weight")[1]
    config = {
        "sample_size": 96,
        "in_channels": width[1],
        "out_channels": header.shape(UNET + "out.2.weight")[0],
        "down_block_types": tuple("CrossAttnDownBlockSpatioTemporal" if has else "DownBlockSpatioTemporal" for has in attention),
        "up_block_types": tuple("CrossAttnUpBlockSpatioTemporal" if has else "UpBlockSpatioTemporal" for has in reversed(attention)),
        "block_out_channels": tuple(channels),
        "addition_time_embed_dim": adm // 3,
        "projection_class_embeddings_input_dim": adm,
        "layers_per_block": blocks[0],
        "cross_attention_dim": context,
        "transformer_layers_per_block": tuple(depth),
        "num_attention_heads": tuple(max(1, n // _HEAD_CHANNELS) for n in channels),
        "num_frames": 25,
    }
    return _part(header, "unet", config, lambda name: _unet_name(name, table), UNET)


def _count(header: Header, prefix: str) -> int:
    found = {match[1] for name in header.tensors if (match := re.match(re.escape(prefix) + r"(\d+)\.", name))}
    return len(found)


_UNET_SIMPLE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def _unet_name(name: str, table: Mapping[str, str]) -> str:
    module, leaf = name.rsplit(".", 1)
    if module in _UNET_SIMPLE:
        return f"{_UNET_SIMPLE[module]}.{leaf}"
    if module in table:
        return f"{table[module]}.{leaf}"
    match = re.match(r"((?:input_blocks|output_blocks)\.\d+\.\d+|middle_block\.\d+)\.(.+)", name)
    if match is None or match[1] not in table:
        return name
    target, rest = table[match[1]], match[2]
    return f"{target}.{_resnet_name(rest) if '.resnets.' in target else _transformer_name(rest)}"


def _resnet_name(rest: str) -> str:
    if rest.startswith("time_mixer."):
        return rest
    block, rest = ("temporal_res_block", rest.removeprefix("time_stack.")) if rest.startswith("time_stack.") else ("spatial_res_block", rest)
    module, leaf = rest.rsplit(".", 1)
    return f"{block}.{_RESNET.get(module, module)}.{leaf}"


def _transformer_name(rest: str) -> str:
    if rest.startswith("time_stack."):
        return "temporal_transformer_blocks." + rest.removeprefix("time_stack.")
    return rest.replace("time_pos_embed.0.", "time_pos_embed.linear_1.").replace("time_pos_embed.2.", "time_pos_embed.linear_2.")


# VAE


def _vae(header: Header) -> Part:
    temporal = VAE + "decoder.mid.block_1.mix_factor" in header.tensors
    # What sgm conditions with; the first stage's own encoder is taken where a file leaves it out.
    encoder = CONDITION_ENCODER if header.has(CONDITION_ENCODER + "encoder.") else VAE
    levels = 0
    while header.has(f"{encoder}encoder.down.{levels}."):
        levels += 1
    widths = tuple(header.shape(f"{encoder}encoder.down.{level}.block.0.conv2.weight")[0] for level in range(levels))
    config: dict[str, Any] = {
        "in_channels": header.shape(encoder + "encoder.conv_in.weight")[1],
        "out_channels": header.shape(VAE + "decoder.conv_out.weight")[0],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "block_out_channels": widths,
        "layers_per_block": _count(header, f"{encoder}encoder.down.0.block."),
        "latent_channels": header.shape(VAE + "decoder.conv_in.weight")[1],
        "scaling_factor": SCALING_FACTOR,
    }
    post_quant = VAE + "post_quant_conv.weight" in header.tensors
    if temporal:
        config |= {"mid_block_layers": 2}
    else:
        config |= {"up_block_types": ("UpDecoderBlock2D",) * levels, "use_quant_conv": True, "use_post_quant_conv": post_quant}
    names: dict[str, str] = {}
    for name in header.tensors:
        if name.startswith(encoder + "encoder."):
            names["encoder." + _vae_name(name.removeprefix(encoder + "encoder."), levels, temporal=False)] = name
        elif name.startswith(encoder + "quant_conv."):
            names[name.removeprefix(encoder)] = name
        elif name.startswith(VAE + "decoder."):
            names["decoder." + _vae_name(name.removeprefix(VAE + "decoder."), levels, temporal)] = name
        elif name.startswith(VAE + "post_quant_conv.") and not temporal:
            names[name.removeprefix(VAE)] = name
    return Part(kind="vae" if temporal else "image_vae", config=config, files={header.path: names}, identity_convs=_missing_quant_conv(names))


def _missing_quant_conv(names: Mapping[str, str]) -> tuple[str, ...]:
    """Files without a quant_conv have it folded into the encoder's last convolution: the module's own is then the identity."""
    return () if "quant_conv.weight" in names else ("quant_conv",)


def _vae_name(rest: str, levels: int, temporal: bool) -> str:
    if rest.startswith("conv_out.time_mix_conv."):
        return rest.replace("conv_out.time_mix_conv.", "time_conv_out.")
    rest = re.sub(r"^norm_out\.", "conv_norm_out.", rest)
    rest = re.sub(r"^mid\.attn_1\.(\w+)\.", lambda m: f"mid_block.attentions.0.{_ATTENTION.get(m[1], m[1])}.", rest)
    rest = re.sub(r"^mid\.block_(\d)\.", lambda m: f"mid_block.resnets.{int(m[1]) - 1}.", rest)
    rest = re.sub(r"^down\.(\d+)\.block\.(\d+)\.", r"down_blocks.\1.resnets.\2.", rest)
    rest = re.sub(r"^down\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0.", rest)
    rest = re.sub(r"^up\.(\d+)\.block\.(\d+)\.", lambda m: f"up_blocks.{levels - 1 - int(m[1])}.resnets.{m[2]}.", rest)
    rest = re.sub(r"^up\.(\d+)\.upsample\.", lambda m: f"up_blocks.{levels - 1 - int(m[1])}.upsamplers.0.", rest)
    match = re.match(r"(.*\.resnets\.\d+)\.(.+)", rest)
    if match is None:
        return rest
    block, leaf = match[1], match[2].replace("nin_shortcut", "conv_shortcut")
    if not temporal:
        return f"{block}.{leaf}"
    if leaf == "mix_factor":
        return f"{block}.time_mixer.mix_factor"
    return f"{block}.{_resnet_name(leaf)}"


# Image encoder


def _image_encoder(header: Header) -> Part:
    width = header.shape(CLIP + "class_embedding")[0]
    head = next((size for size in _CLIP_HEAD_CHANNELS if width % size == 0), width)
    patch = header.shape(CLIP + "conv1.weight")[-1]
    positions = header.shape(CLIP + "positional_embedding")[0]
    layers = _count(header, CLIP + "transformer.resblocks.")
    config = {
        "hidden_size": width,
        "intermediate_size": header.shape(CLIP + "transformer.resblocks.0.mlp.c_fc.weight")[0],
        "num_hidden_layers": layers,
        "num_attention_heads": width // head,
        "image_size": round((positions - 1) ** 0.5) * patch,
        "patch_size": patch,
        "projection_dim": header.shape(CLIP + "proj")[1],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }
    part = _part(header, "image_encoder", config, _clip_name, CLIP)
    split = {f"vision_model.encoder.layers.{layer}.self_attn.in_proj": tuple(f"vision_model.encoder.layers.{layer}.self_attn.{p}_proj" for p in "qkv") for layer in range(layers)}
    return Part(kind=part.kind, config=config, files=part.files, split=split, transposed=("visual_projection.weight",))


_CLIP = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "proj": "visual_projection.weight",
}
_CLIP_LAYER = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2", "attn.out_proj": "self_attn.out_proj"}


def _clip_name(name: str) -> str:
    if name in _CLIP:
        return _CLIP[name]
    if name.startswith("ln_pre."):
        return name.replace("ln_pre.", "vision_model.pre_layrnorm.")  # sic, transformers' spelling
    if name.startswith("ln_post."):
        return name.replace("ln_post.", "vision_model.post_layernorm.")
    match = re.match(r"transformer\.resblocks\.(\d+)\.(.+)", name)
    if match is None:
        return name
    layer = f"vision_model.encoder.layers.{match[1]}"
    rest = match[2]
    if rest.startswith("attn.in_proj_"):
        return f"{layer}.self_attn.in_proj.{rest.removeprefix('attn.in_proj_')}"
    module, leaf = rest.rsplit(".", 1)
    return f"{layer}.{_CLIP_LAYER.get(module, module)}.{leaf}"
