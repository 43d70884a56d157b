"""Run by a host's own Python, in the host's folder: ComfyUI core's SVD networks and sampling over given weights and inputs.

Arguments: the checkpoint, the inputs and the outputs, all safetensors. It prints nothing and imports nothing of ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

checkpoint, given, answers = sys.argv[1:]
sys.argv[1:] = ["--cpu", "--force-fp32", "--use-pytorch-cross-attention"]  # read when comfy is imported
sys.path[0] = str(Path.cwd())  # instead of this folder, whose comfy.py is another

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.clip_model  # noqa: E402
import comfy.clip_vision  # noqa: E402
import comfy.k_diffusion.sampling  # noqa: E402
import comfy.latent_formats  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.models.autoencoder import AutoencodingEngine  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep, UNetModel  # noqa: E402
from comfy_extras.nodes_video_model import VideoLinearCFGGuidance  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

weights, inputs, out = load_file(checkpoint), load_file(given), {}
SD = dict[str, torch.Tensor]


def of(prefix: str) -> SD:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def load(module: torch.nn.Module, state: SD) -> torch.nn.Module:
    missing, unknown = module.load_state_dict(state, strict=False)
    unknown = [name for name in unknown if not name.endswith("position_ids")]
    assert not missing, missing
    assert not unknown, unknown
    return module.eval()


def count(names: SD, start: str) -> int:
    return len({name[len(start) :].split(".")[0] for name in names if name.startswith(start)})


def make_unet() -> torch.nn.Module:
    config = comfy.model_detection.detect_unet_config(weights, "model.diffusion_model.") | {"num_heads": -1, "num_head_channels": 64, "dtype": torch.float32}
    return load(UNetModel(**config, operations=comfy.ops.disable_weight_init), of("model.diffusion_model."))


def make_vae() -> torch.nn.Module:
    state = of("first_stage_model.")
    levels = count(state, "encoder.down.")
    width = state["encoder.conv_in.weight"].shape[0]
    coder = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": width,
        "ch_mult": [state[f"encoder.down.{level}.block.0.conv2.weight"].shape[0] // width for level in range(levels)],
        "num_res_blocks": count(state, "encoder.down.0.block."),
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    engine = AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer", "params": {"sample": False}},
        encoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Encoder", "params": coder},
        decoder_config={"target": "comfy.ldm.modules.temporal_ae.VideoDecoder", "params": coder | {"video_kernel_size": [3, 1, 1], "alpha": 0.0}},
    )
    return load(engine, state)


def make_image_encoder() -> torch.nn.Module:
    state = comfy.clip_vision.convert_to_transformers(of("conditioner.embedders.0.open_clip.model."), "visual.")
    width = state["vision_model.embeddings.class_embedding"].shape[0]
    config = {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": count(state, "vision_model.encoder.layers."),
        "num_attention_heads": width // 80,
        "image_size": 224,
        "patch_size": 14,
        "num_channels": 3,
        "projection_dim": state["visual_projection.weight"].shape[0],
        "hidden_act": "gelu",
    }
    return load(comfy.clip_model.CLIPVisionModelProjection(config, torch.float32, None, comfy.ops.disable_weight_init), {k: v.contiguous() for k, v in state.items()})


def linear_guidance(low: float) -> Callable[[dict[str, object]], torch.Tensor]:
    """What core's VideoLinearCFGGuidance node sets on a model."""
    kept: list[Callable[[dict[str, object]], torch.Tensor]] = []

    class Model:
        def clone(self) -> Model:
            return self

        def set_model_sampler_cfg_function(self, function: Callable[[dict[str, object]], torch.Tensor]) -> None:
            kept.append(function)

    VideoLinearCFGGuidance().patch(Model(), low)
    return kept[0]


def main() -> None:
    settings = SimpleNamespace(sampling_settings={"sigma_max": 700.0, "sigma_min": 0.002})
    sampling = comfy.model_base.model_sampling(settings, comfy.model_base.ModelType.V_PREDICTION_EDM)
    steps, seed = int(inputs["steps"]), int(inputs["seed"])
    if hasattr(comfy.samplers, "calculate_sigmas"):
        sigmas = {n: comfy.samplers.calculate_sigmas(sampling, n, steps) for n in ("karras", "exponential", "sgm_uniform")}
    else:
        sigmas = {n: comfy.samplers.calculate_sigmas_scheduler(SimpleNamespace(model_sampling=sampling), n, steps) for n in ("karras", "exponential", "sgm_uniform")}
    out.update({f"sigmas_{name}": levels.float().clone() for name, levels in sigmas.items()})

    # KSampler: noise, EDM scaling, Euler, a guidance scale for each frame
    unet, frames = make_unet(), len(inputs["x"])
    embed = Timestep(256)
    vector = torch.cat([embed(inputs["ids"][i : i + 1]) for i in range(3)]).flatten()[None].expand(frames, -1)
    noise = comfy.sample.prepare_noise(torch.zeros_like(inputs["x"]), seed)
    out["noise"] = noise.clone()

    def call(x: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor, concat: torch.Tensor) -> torch.Tensor:
        xc = torch.cat([sampling.calculate_input(sigma, x), concat.expand(frames, -1, -1, -1)], 1)
        v = unet(xc, sampling.timestep(sigma).expand(frames), context=context.expand(frames, -1, -1), y=vector, num_video_frames=frames)
        return sampling.calculate_denoised(sigma, v, x)

    for i, sigma in enumerate(inputs["sigmas"]):
        out[f"denoised_{i}"] = call(inputs["x"] * sigma, sigma.reshape(1), inputs["embedding"], inputs["concat"])

    guidance = linear_guidance(1.0)

    def guided(x: torch.Tensor, sigma: torch.Tensor, **_: object) -> torch.Tensor:
        with_image = call(x, sigma[:1], inputs["embedding"], inputs["concat"])
        without = call(x, sigma[:1], torch.zeros_like(inputs["embedding"]), torch.zeros_like(inputs["concat"]))
        return guidance({"cond": with_image, "uncond": without, "cond_scale": 3.0})

    levels = sigmas["karras"]
    start = sampling.noise_scaling(levels[:1], noise.clone(), torch.zeros_like(noise), True)
    sampled = comfy.k_diffusion.sampling.sample_euler(guided, start, levels, disable=True)
    out["sampled"] = comfy.latent_formats.SD15().process_out(sampled)  # as it goes from KSampler to VAE Decode

    vae = make_vae()
    out["encoded"] = vae.encode(inputs["frame"])
    out["decoded"] = vae.decode(inputs["latents"])
    out["embedding"] = make_image_encoder()(pixel_values=inputs["pixels"])[2]


with torch.no_grad():
    main()
save_file({name: tensor.contiguous() for name, tensor in out.items()}, answers)
