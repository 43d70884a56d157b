"""Files → SVD: recognised, checked and read exactly; everything else refused with a sentence."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import threading
import time
import weakref
import zipfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from make_checkpoint import SIZES, layout, random_weights
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lean_video.checkpoints import inspect, open_svd
from lean_video.errors import LeanVideoError
from lean_video.models import parts
from lean_video.models.svd import SVDModel
from tests.engine.conftest import relative

ROOT = Path(__file__).parents[2]
KEYS = ROOT / "tests" / "data" / "svd_checkpoint_keys.json"
UNET, CLIP = "model.diffusion_model.", "conditioner.embedders.0.open_clip.model.visual."
LEFTOVERS = {
    "conditioner.embedders.0.open_clip.model.token_embedding.weight": (49408, 64),
    "conditioner.embedders.0.open_clip.model.positional_embedding": (77, 64),
    "conditioner.embedders.0.open_clip.model.ln_final.weight": (64,),
    "conditioner.embedders.0.open_clip.model.text_projection": (64, 64),
    "conditioner.embedders.0.open_clip.model.logit_scale": (),
    "conditioner.embedders.3.encoder.decoder.conv_in.weight": (64, 4, 3, 3),
    "conditioner.embedders.3.encoder.post_quant_conv.weight": (4, 4, 1, 1),
}

WriteHeader = Callable[..., Path]


def refusal(path: Path) -> str:
    """The sentence with which a file is refused, the same one from both doors."""
    with pytest.raises(LeanVideoError) as caught:
        open_svd(path)
    message = str(caught.value)
    assert inspect(path).problems == (message,)
    assert "\n" not in message
    assert path.name in message
    assert len(message) < 250
    return message


# The published layout


def test_full_size_layout_is_that_of_the_published_files() -> None:
    published = json.loads(KEYS.read_text(encoding="utf-8"))
    assert {name: list(shape) for name, shape in layout(SIZES["full"]).items()} == published


def test_full_size_header_is_recognised_with_every_parameter_in_its_place(write_header: WriteHeader) -> None:
    shapes = {name: tuple(shape) for name, shape in json.loads(KEYS.read_text(encoding="utf-8")).items()} | LEFTOVERS
    report = inspect(write_header(shapes, "svd_xt_1_1.safetensors", "F16"))
    assert report.problems == ()
    assert (report.family, report.version, report.layout, report.precision) == ("Stable Video Diffusion", "svd_xt_1_1", "single file", "fp16")
    assert {name: round(count / 1e6, 1) for name, count in report.parameters.items()} == {"unet": 1524.6, "vae": 97.7, "image_encoder": 632.1}


@pytest.mark.parametrize(
    ("name", "version"),
    [("svd.safetensors", "svd"), ("svd-xt.safetensors", "svd_xt"), ("SVD_XT-1.1_fp16.safetensors", "svd_xt_1_1")],
)
def test_version_is_told_from_the_file_name(name: str, version: str, write_header: WriteHeader) -> None:
    assert inspect(write_header(layout(SIZES["tiny"]), name)).version == version


def test_full_size_image_decoder_file_is_recognised(write_header: WriteHeader) -> None:
    report = inspect(write_header(layout(replace(SIZES["full"], image_decoder=True)), "svd_xt_image_decoder.safetensors"))
    assert (report.version, report.problems) == ("svd_xt_image_decoder", ())
    assert round(report.parameters["vae"] / 1e6, 1) == 83.7  # AutoencoderKL as SD 1 has it


@pytest.mark.parametrize("size", ["tiny", "small", "mid"])
def test_smaller_checkpoints_of_the_same_layout_fit(size: str, write_header: WriteHeader) -> None:
    report = inspect(write_header(layout(SIZES[size])))
    assert report.problems == ()
    assert sum(report.parameters.values()) == sum(torch.Size(shape).numel() for name, shape in layout(SIZES[size]).items() if not name.startswith("first_stage_model.encoder."))


def test_leftovers_of_training_do_not_matter(small_weights: dict[str, Tensor], small: SVDModel, tmp_path: Path) -> None:
    path = tmp_path / "svd_xt.safetensors"
    save_file(small_weights | random_weights(LEFTOVERS), path)
    assert inspect(path).problems == ()
    for name in ("unet", "vae", "image_encoder"):
        assert_same_weights(getattr(open_svd(path), name), getattr(small, name))


def assert_same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    one, two = ours.state_dict(), theirs.state_dict()
    assert one.keys() == two.keys()
    assert [name for name in one if one[name].dtype != two[name].dtype or not torch.equal(one[name], two[name])] == []


# Precision


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("F32", {"cpu": "fp32", "cuda": "fp16", "mps": "fp16"}),
        ("F16", {"cpu": "fp32", "cuda": "fp16", "mps": "fp16"}),
        ("BF16", {"cpu": "fp32", "cuda": "bf16", "mps": "bf16"}),
    ],
)
def test_automatic_precision_is_float32_on_a_cpu_and_the_files_own_half_elsewhere(stored: str, expected: dict[str, str], write_header: WriteHeader) -> None:
    path = write_header(layout(SIZES["tiny"]), dtype=stored)
    assert {device: open_svd(path, device_type=device).precision for device in expected} == expected


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_weights_are_in_the_chosen_precision_and_the_encoder_in_float32(precision: str, stored: str, tmp_path: Path) -> None:
    weights = random_weights(layout(SIZES["tiny"]), stored)
    save_file(weights, tmp_path / "svd.safetensors")
    model = open_svd(tmp_path / "svd.safetensors", precision)
    name = f"{UNET}input_blocks.1.0.in_layers.2.weight"
    assert torch.equal(model.unet.down_blocks[0].resnets[0].spatial_res_block.conv1.weight, weights[name].to(model.dtype))
    assert {p.dtype for p in model.unet.parameters()} == {p.dtype for p in model.vae.decoder.parameters()} == {model.dtype}
    assert {p.dtype for p in [*model.vae.encoder.parameters(), *model.vae.quant_conv.parameters()]} == {torch.float32}


def test_unknown_precision_is_refused(tiny_file: Path) -> None:
    with pytest.raises(LeanVideoError, match="Precision int8 is unknown"):
        open_svd(tiny_file, "int8")


# Where each tensor lands


def test_fused_projections_and_transposed_matrices_land_where_openclip_means_them(small: SVDModel, small_weights: dict[str, Tensor]) -> None:
    layer = small.image_encoder.vision_model.encoder.layers[1].self_attn
    fused = small_weights[f"{CLIP}transformer.resblocks.1.attn.in_proj_weight"]
    width = fused.shape[1]
    for i, projection in enumerate((layer.q_proj, layer.k_proj, layer.v_proj)):
        assert torch.equal(projection.weight, fused[i * width : (i + 1) * width])
    assert torch.equal(small.image_encoder.visual_projection.weight, small_weights[f"{CLIP}proj"].T)


def test_image_encoder_equals_openclips_own_arithmetic(small: SVDModel, small_weights: dict[str, Tensor]) -> None:
    """OpenCLIP's vision tower spelled out over the file's own tensors."""
    from torch.nn import functional as F

    w = {name.removeprefix(CLIP): tensor for name, tensor in small_weights.items() if name.startswith(CLIP)}
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    x = F.conv2d(pixels, w["conv1.weight"], stride=14).flatten(2).transpose(1, 2)
    x = norm(torch.cat([w["class_embedding"].expand(1, 1, -1), x], 1) + w["positional_embedding"], "ln_pre")
    for i in range(2):
        name = f"transformer.resblocks.{i}."
        q, k, v = F.linear(norm(x, name + "ln_1"), w[name + "attn.in_proj_weight"], w[name + "attn.in_proj_bias"]).unflatten(-1, (3, 2, 80)).permute(2, 0, 3, 1, 4)
        mixed = (torch.softmax(q @ k.transpose(-1, -2) / 80**0.5, -1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(mixed, w[name + "attn.out_proj.weight"], w[name + "attn.out_proj.bias"])
        hidden = F.gelu(F.linear(norm(x, name + "ln_2"), w[name + "mlp.c_fc.weight"], w[name + "mlp.c_fc.bias"]))
        x = x + F.linear(hidden, w[name + "mlp.c_proj.weight"], w[name + "mlp.c_proj.bias"])
    expected = norm(x[:, 0], "ln_post") @ w["proj"]
    torch.testing.assert_close(small.image_encoder(pixels).image_embeds, expected, rtol=1e-5, atol=1e-5)


def test_conditioning_encoder_is_embedder_3_and_not_the_first_stage(small: SVDModel, small_weights: dict[str, Tensor]) -> None:
    assert torch.equal(small.vae.encoder.conv_in.weight, small_weights["conditioner.embedders.3.encoder.encoder.conv_in.weight"])
    assert torch.equal(small.vae.quant_conv.weight, small_weights["conditioner.embedders.3.encoder.quant_conv.weight"])


def test_without_embedder_3_the_first_stage_encodes_with_an_identity_quant_conv(small_weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "svd.safetensors"
    save_file({name: tensor for name, tensor in small_weights.items() if ".embedders.3." not in name}, path)
    assert inspect(path).problems == ()
    vae = open_svd(path).vae
    assert torch.equal(vae.encoder.conv_in.weight, small_weights["first_stage_model.encoder.conv_in.weight"])
    moments = torch.randn(1, 8, 5, 7)
    assert torch.equal(vae.quant_conv(moments), moments)


def test_image_decoder_files_decode_frame_by_frame_with_their_post_quant_conv(image_decoder_file: Path) -> None:
    model = open_svd(image_decoder_file)
    weights = load_file(image_decoder_file)
    assert type(model.vae).__name__ == "AutoencoderKL"
    assert torch.equal(model.vae.post_quant_conv.weight, weights["first_stage_model.post_quant_conv.weight"])
    assert torch.equal(model.vae.quant_conv.weight, weights["conditioner.embedders.3.encoder.quant_conv.weight"])


# Norm epsilons


def test_every_norm_has_the_references_eps(small: SVDModel) -> None:
    eps: dict[str, set[float]] = {}
    for where, module in (("unet", small.unet), ("vae", small.vae)):
        for name, norm in module.named_modules():
            if isinstance(norm, nn.LayerNorm):
                eps.setdefault(f"{where} layer norm", set()).add(norm.eps)
            elif isinstance(norm, nn.GroupNorm):
                kind = (
                    "resnet"
                    if ".resnets." in name and where == "unet"
                    else "temporal"
                    if "temporal_res_block" in name
                    else "transformer"
                    if where == "unet" and ".attentions." in name
                    else "other"
                )
                eps.setdefault(f"{where} {kind}", set()).add(norm.eps)
    assert eps == {
        "unet resnet": {1e-5},
        "unet transformer": {1e-6},
        "unet layer norm": {1e-5},
        "unet other": {1e-5},  # conv_norm_out
        "vae temporal": {1e-5},
        "vae other": {1e-6},
    }


def test_full_size_unet_differs_from_stock_diffusers_in_exactly_72_norms(write_header: WriteHeader) -> None:
    from diffusers import UNetSpatioTemporalConditionModel

    part = open_svd(write_header(layout(SIZES["full"]))).parts["unet"]
    with torch.device("meta"):
        stock = UNetSpatioTemporalConditionModel(**part.config)
    ours = dict(part.skeleton().named_modules())
    different = {name: (getattr(module, "eps", None), ours[name].eps) for name, module in stock.named_modules() if getattr(module, "eps", None) != getattr(ours[name], "eps", None)}
    assert len(different) == 72
    assert set(different.values()) == {(1e-6, 1e-5)}
    assert all("res_block.norm" in name for name in different)


# diffusers folders


@pytest.fixture(scope="module")
def published(folder: Path) -> SVDModel:
    """Two resnets to a level in the VAE, as in the published files: a diffusers configuration cannot say one with two in the middle."""
    path = folder / "published_svd_xt.safetensors"
    save_file(random_weights(layout(replace(SIZES["tiny"], vae_blocks=2)), seed=3), path)
    return open_svd(path)


@pytest.fixture(scope="module")
def diffusers_folder(published: SVDModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusers") / "stable-video-diffusion-img2vid-xt"
    for name in ("unet", "vae", "image_encoder"):
        getattr(published, name).save_pretrained(folder / name)
    (folder / "model_index.json").write_text('{"_class_name": "StableVideoDiffusionPipeline"}', encoding="utf-8")
    return folder


def test_a_diffusers_folder_loads_to_the_same_weights_and_norms(diffusers_folder: Path, published: SVDModel) -> None:
    model = open_svd(diffusers_folder)
    assert (model.layout, model.version, inspect(diffusers_folder).problems) == ("diffusers folder", "svd_xt", ())
    for name in ("unet", "vae", "image_encoder"):
        ours, theirs = getattr(model, name), getattr(published, name)
        assert_same_weights(ours, theirs)
        assert {n: m.eps for n, m in ours.named_modules() if hasattr(m, "eps")} == {n: m.eps for n, m in theirs.named_modules() if hasattr(m, "eps")}


def test_a_diffusers_folder_gives_the_same_outputs(diffusers_folder: Path, published: SVDModel) -> None:
    model = open_svd(diffusers_folder)
    rng = torch.Generator().manual_seed(4)
    x, embedding, z, pixels = (torch.randn(shape, generator=rng).double() for shape in ((1, 2, 8, 8, 16), (1, 1, 64), (3, 4, 4, 8), (1, 3, 224, 224)))
    ids = torch.tensor([[5.0, 127.0, 0.02]]).double()

    def outputs(of: SVDModel) -> tuple[Tensor, ...]:
        unet, vae, image_encoder = (deepcopy(network).double() for network in (of.unet, of.vae, of.image_encoder))
        return unet(x, 0.5, embedding, ids)[0], vae.decode(z, num_frames=3).sample, image_encoder(pixels).image_embeds

    with torch.inference_mode():
        for ours, theirs in zip(outputs(model), outputs(published), strict=True):
            assert relative(ours, theirs) < 1e-12  # in float64, since where a weight lies in memory picks the kernel, and with it the rounding


@pytest.mark.parametrize(
    "missing",
    [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "image_encoder/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "image_encoder/model.safetensors",
    ],
)
def test_a_diffusers_folder_with_a_part_missing_is_refused_by_name(missing: str, diffusers_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "svd"
    shutil.copytree(diffusers_folder, folder, ignore=lambda where, names: [n for n in names if (Path(where) / n).relative_to(diffusers_folder).as_posix() == missing])
    message = refusal(folder)
    assert Path(missing).name in message


def test_another_pipelines_folder_and_another_networks_config_are_refused(diffusers_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}', encoding="utf-8")
    assert "holds a StableDiffusionXLPipeline" in refusal(tmp_path)
    (tmp_path / "model_index.json").write_text("not json", encoding="utf-8")
    assert "cannot be read" in refusal(tmp_path)
    folder = tmp_path / "svd"
    shutil.copytree(diffusers_folder, folder)
    (folder / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}', encoding="utf-8")
    assert "unet is a UNet2DConditionModel" in refusal(folder)


def test_the_fp16_variant_is_read_when_half_precision_is_wanted(diffusers_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "svd"
    shutil.copytree(diffusers_folder, folder)
    for stem in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "image_encoder/model"):
        half = {name: tensor.half() for name, tensor in load_file(folder / f"{stem}.safetensors").items()}
        save_file(half, folder / f"{stem}.fp16.safetensors")
    chosen = {p: {f.name for f in open_svd(folder, p).parts["unet"].files} for p in ("fp32", "fp16")}
    assert chosen == {"fp32": {"diffusion_pytorch_model.safetensors"}, "fp16": {"diffusion_pytorch_model.fp16.safetensors"}}
    assert open_svd(folder, "fp16").unet.conv_in.weight.dtype == torch.float16
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert {f.name for f in open_svd(folder, "fp32").parts["unet"].files} == {"diffusion_pytorch_model.fp16.safetensors"}


def test_sharded_weights_of_a_diffusers_folder_are_read(diffusers_folder: Path, published: SVDModel, tmp_path: Path) -> None:
    folder = tmp_path / "svd"
    shutil.copytree(diffusers_folder, folder, ignore=lambda where, names: [n for n in names if Path(where).name == "unet" and n.endswith(".safetensors")])
    published.unet.save_pretrained(folder / "unet", max_shard_size="4MB")
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    assert_same_weights(open_svd(folder).unet, published.unet)


# What is not SVD


FAMILIES: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "SD 1": ({f"{UNET}input_blocks.1.1.norm.weight": (4,), "cond_stage_model.transformer.text_model.final_layer_norm.weight": (4,)}, "an SD 1"),
    "SD 2": ({f"{UNET}input_blocks.1.1.norm.weight": (4,), "cond_stage_model.model.transformer.resblocks.0.ln_1.weight": (4,)}, "an SD 2"),
    "SDXL": ({f"{UNET}label_emb.0.0.weight": (4,), f"{UNET}input_blocks.0.0.weight": (4,), "conditioner.embedders.1.model.ln_final.weight": (4,)}, "an SDXL"),
    "SD 3": ({f"{UNET}joint_blocks.0.x_block.attn.proj.weight": (4,)}, "an SD 3"),
    "Flux": ({"double_blocks.0.img_attn.proj.weight": (4,), "single_blocks.0.linear1.weight": (4,)}, "a Flux"),
    "AnimateDiff": ({"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (4,)}, "an AnimateDiff motion module"),
    "ModelScope": ({f"{UNET}input_blocks.1.2.norm.weight": (4,), f"{UNET}input_blocks.0.0.weight": (4,)}, "a ModelScope text-to-video"),
    "LoRA": ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": (4,)}, "a LoRA"),
    "VAE": ({"decoder.conv_in.weight": (4,), "encoder.conv_in.weight": (4,)}, "a VAE"),
    "ControlNet": ({"control_model.input_blocks.0.0.weight": (4,)}, "a ControlNet"),
    "CLIP vision": ({"vision_model.post_layernorm.weight": (4,)}, "a CLIP vision model"),
    "SVD UNet in diffusers layout": ({"down_blocks.0.resnets.0.temporal_res_block.norm1.weight": (4,)}, "part of Stable Video Diffusion in diffusers layout"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_another_family_is_refused_by_its_name(family: str, write_header: WriteHeader) -> None:
    shapes, name = FAMILIES[family]
    assert f"but {name}:" in refusal(write_header(shapes))


def test_an_unknown_model_is_refused(write_header: WriteHeader) -> None:
    assert "of no model this pack knows" in refusal(write_header({"layers.0.weight": (4,)}))


def test_sv3d_is_refused_as_a_relative(write_header: WriteHeader) -> None:
    shapes = layout(SIZES["tiny"])
    shapes[f"{UNET}label_emb.0.0.weight"] = (256, 256)
    assert "SV3D" in refusal(write_header(shapes))


@pytest.mark.parametrize(("prefix", "named"), [(CLIP, "image encoder"), ("first_stage_model.", "VAE")])
def test_a_checkpoint_without_a_component_is_refused_by_its_name(prefix: str, named: str, write_header: WriteHeader) -> None:
    assert f"has no {named}" in refusal(write_header({name: shape for name, shape in layout(SIZES["tiny"]).items() if not name.startswith(prefix)}))


@pytest.mark.parametrize("broken", ["missing", "unknown", "of the wrong shape"])
def test_a_tensor_that_does_not_fit_is_named(broken: str, write_header: WriteHeader) -> None:
    shapes, name = layout(SIZES["tiny"]), f"{UNET}middle_block.1.time_stack.0.ff.net.2.bias"
    if broken == "missing":
        del shapes[name]
    elif broken == "unknown":
        shapes[f"{UNET}middle_block.1.surplus.bias"] = (3,)
    else:
        shapes[name] = (7,)
    path = write_header(shapes)
    (problem,) = inspect(path).problems
    assert f"1 tensors are {broken}" in problem
    with pytest.raises(LeanVideoError, match=f"UNet of {path.name}"):
        _ = open_svd(path).unet


# Broken files


def test_a_file_cut_short_anywhere_is_called_truncated(tiny_file: Path, tmp_path: Path) -> None:
    whole = tiny_file.read_bytes()
    header_end = 8 + int.from_bytes(whole[:8], "little")
    for length in (12, header_end // 2, header_end, header_end + 1000, len(whole) - 1):
        path = tmp_path / f"svd_{length}.safetensors"
        path.write_bytes(whole[:length])
        assert "is truncated" in refusal(path)


def test_a_file_with_bytes_after_its_last_tensor_is_refused(tiny_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "svd.safetensors"
    path.write_bytes(tiny_file.read_bytes() + b"\0" * 100)
    assert "goes on after its last tensor" in refusal(path)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}',
        b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"a": [',
        b'{"a\xff": {}}',
    ],
)
def test_a_header_that_lies_is_called_corrupt(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "svd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    assert "is corrupt" in refusal(path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is empty"),
        (b"\x80\x02}q\x00.", "Python pickle"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "web page"),
        (b"<html><body>Sign in</body></html>", "web page"),
        (b"GGUF\x03\x00\x00\x00" + b"\0" * 64, "GGUF"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "PNG image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"\xff" * 100, "not a safetensors file"),
        (b"short", "not a safetensors file"),
    ],
)
def test_other_files_are_refused_by_what_they_are(content: bytes, named: str, tmp_path: Path) -> None:
    path = tmp_path / "svd.safetensors"
    path.write_bytes(content)
    assert named in refusal(path)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / "svd.ckpt"
    torch.save({"state_dict": Bomb()}, path)
    assert zipfile.is_zipfile(path)
    assert "pickle archive" in refusal(path)
    assert not (tmp_path / "ran").exists()


def test_a_path_with_nothing_there_is_refused(tmp_path: Path) -> None:
    for door in (open_svd, inspect):
        with pytest.raises(LeanVideoError, match="There is no file"):
            door(tmp_path / "svd.safetensors")
    assert "no model_index.json" in refusal(tmp_path)


# Memory and life


MEASURE = """
import re, sys
from pathlib import Path
from lean_video.checkpoints import inspect, open_svd

def resident():
    status = Path("/proc/self/status").read_text()
    return 1024 * sum(int(re.search(kind + r":\\s+(\\d+)", status)[1]) for kind in ("RssAnon", "RssFile"))

path, warm = (Path(name) for name in sys.argv[1:])
for precision in ("fp32", "bf16"):
    open_svd(warm, precision).unet  # the imports
at = [resident()]
inspect(path)
model = open_svd(path, "fp32")
at.append(resident())
unet = model.unet
at.append(resident())
converted = open_svd(path, "bf16").unet
at.append(resident())
print(*(after - before for before, after in zip(at, at[1:])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_in_their_own_precision_take_no_memory_until_they_are_used(write_header: WriteHeader, tiny_file: Path) -> None:
    """On a UNet of 380 MB: reading the header reads no weights, building it maps them."""
    path = write_header(layout(SIZES["mid"]))
    size = 4 * inspect(path).parameters["unet"]
    command = [sys.executable, "-c", MEASURE, str(path), str(tiny_file)]
    header, mapped, converted = (int(n) for n in subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split())
    assert header < 0.1 * size
    assert mapped < 0.2 * size  # pages beside the tensors' first bytes
    assert converted > 0.45 * size  # the measure sees weights that are copied


def test_nothing_keeps_a_model_alive(tiny_file: Path) -> None:
    model = open_svd(tiny_file)
    alive = [weakref.ref(model), *(weakref.ref(module) for module in (model.unet, model.vae, model.image_encoder))]
    assert all(ref() is not None for ref in alive)
    del model
    gc.collect()
    assert [ref() for ref in alive] == [None] * 4


def test_components_are_opened_once_and_only_when_used(tiny_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "svd.safetensors"
    shutil.copy(tiny_file, path)
    model = open_svd(path)
    assert model._modules == {}
    assert model.unet is model.unet
    assert set(model._modules) == {"unet"}


def test_components_are_constructed_one_at_a_time(small_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that import diffusers for the first time at once, each find half of it."""
    inside, most = 0, 0

    def slowly(*args: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.05)
        inside -= 1
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(parts, "_constructed", slowly)
    threads = [threading.Thread(target=part.skeleton) for part in open_svd(small_file).parts.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(threads) == 3
    assert most == 1
