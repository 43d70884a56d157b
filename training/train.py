#!/usr/bin/env python3
"""Train the demo model, a small Stable Video Diffusion: the VAE first, then the UNet together with the image encoder; and write it as a checkpoint.

    python training/train.py --stage all --minutes 30 60             # two CPU cores
    python training/train.py --stage all --steps 8000 30000 --device cuda --batch 8

Everything goes into --folder: the clips, the state to resume from (--resume), loss curves as CSV and PNG, sample strips, and the model: demo.safetensors.
A run is seeded: what a step sees depends on the seed, its number and the number of workers alone.
On a CPU each worker is a process of one thread with a share of the batch: threads that wait for each other inside every layer lose most of their
time as soon as something else runs beside them.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT / "training", ROOT / "bench", ROOT / "scripts", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import data  # noqa: E402
import model  # noqa: E402
import sources  # noqa: E402
from lpips import Lpips  # noqa: E402
from muon import Muon, quickest  # noqa: E402
from safetensors import safe_open  # noqa: E402

from lean_video.checkpoints import demo, open_svd  # noqa: E402
from lean_video.models import render  # noqa: E402
from lean_video.models.images import clip_pixels  # noqa: E402

SIZES = ((192, 128, 0.65), (128, 128, 0.35))  # width, height, share of the clips
SAVE_EVERY, STRIP_EVERY, LOG_EVERY = 180.0, 720.0, 20  # seconds, seconds, steps
LONGEST_STEP = 30.0  # seconds that a step counts for at most: in a longer one the machine slept or the process was stopped
SIGMA_MIN, SIGMA_MAX = 0.002, 700.0
SAMPLED_CLIPS = 128  # that `remake` makes
REFINED_SHARE, REFINED = 0.5, (0.2, 40.0)  # of the UNet's steps in which the noise is on its own guess, and how much noise
SEEN_SHARE, SEEN_TEXTURE = 0.4, 0.03  # times LPIPS and times texture are in the UNet's loss
LATE = 0.6  # less than one has both look at late frames more than at early ones
STILL = (0.5, 0.1)  # a clip's error in the UNet's loss is multiplied by the first over the second plus what a still would err by
LPIPS_SHARE = 0.5
TEXTURE_SHARE = 0.3
DECODERS_SHARE = 4.0  # times that, when the decoder goes on alone, with a critic beside it
CRITIC_SHARE, CRITIC_RATE = 0.05, 3.0  # how much of the gradient is the critic's, against the rest's; and how fast it learns, against the decoder
PALE_SHARE, PALE, GRAIN = 0.2, (0.03, 0.5), 0.015  # of the clips that the VAE sees have little contrast; how much of it; and up to this much noise, of -1..1
MOVED_SHARE = 0.6  # of the steps in which the VAE's latents are moved by less than one
LATENT_ERROR = 0.1  # at most this much noise on the latents, whose standard deviation is 1, that the decoder learns to take; in half of the clips


@dataclass
class Run:
    """One stage: how long it is to be, what it works on, and how far it is.

    minutes, steps  which of them ends it; the other is None
    best            weights averaged over the steps, which is what is saved and shown
    seed            of what the steps draw, and of fresh weights
    clips_seed      of the clips, and of what is made of each of them and kept
    """

    name: str
    folder: Path
    device: torch.device
    seed: int
    batch: int
    minutes: float | None
    steps: int | None
    rate: float
    decay: float
    networks: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    best: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    seconds: float = 0.0
    scaled: bool = False  # the VAE's latents have been brought to scale
    start: Path | None = None  # a checkpoint to begin with, instead of fresh weights
    clips_seed: int = 0
    muon: bool = False  # Muon for the hidden layers' weights, AdamW for the rest; else AdamW for all

    def begin(self, networks: dict[str, nn.Module], resume: bool) -> None:
        self.networks = nn.ModuleDict(networks).to(self.device).train()
        _in_two_dimensions(self.networks)
        critic = {name: tensor for name, tensor in self.networks.named_parameters() if name.startswith("critic.")}
        hidden = {name: tensor for name, tensor in self.networks.named_parameters() if self.muon and name not in critic and _is_hidden(name, tensor)}
        others = [tensor for name, tensor in self.networks.named_parameters() if name not in hidden and name not in critic]
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=self.rate, betas=(0.9, 0.99), weight_decay=0.01)]
        if hidden:
            self.optimizers.append(Muon(hidden.values(), lr=self.rate))
        if critic:
            self.optimizers.append(torch.optim.AdamW([{"params": [*critic.values()], "times": CRITIC_RATE}], lr=self.rate, betas=(0.5, 0.99), weight_decay=0.0))
        self.best = {name: tensor.detach().clone() for name, tensor in self.networks.state_dict().items()}
        if resume and self.state_file.exists():
            state = torch.load(self.state_file, map_location=self.device, weights_only=True)
            self.networks.load_state_dict(state["networks"])
            for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
            self.best, self.step, self.seconds, self.scaled = state["best"], state["step"], state["seconds"], state["scaled"]
            say(f"{self.name}: going on from step {self.step}, {self.seconds / 60:.1f} minutes")

    @property
    def rank(self) -> int:
        """Which worker this is; the first speaks and writes."""
        return distributed.get_rank() if distributed.is_initialized() else 0

    @property
    def state_file(self) -> Path:
        return self.folder / f"{self.name}.state.pt"

    @property
    def progress(self) -> float:
        return self.step / self.steps if self.steps else self.seconds / 60 / (self.minutes or 1)

    def save(self) -> None:
        partial = self.state_file.with_suffix(".partial")
        state = {
            "networks": self.networks.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "best": self.best,
            "step": self.step,
            "seconds": self.seconds,
            "scaled": self.scaled,
        }
        torch.save(state, partial)
        partial.replace(self.state_file)

    def learn(self, loss_of: Callable[[np.random.Generator, torch.Generator, float], dict[str, Tensor]], show: Callable[[], None]) -> None:
        """Steps until the end. `loss_of` gives the losses of a step by name, "loss" being what is descended; `show` makes strips."""
        curve, sums, since, saved, shown = _Curve(self.folder, self.name, self.step), {}, 0, time.monotonic(), time.monotonic()
        while (progress := self._agreed_progress()) < 1:
            began = time.monotonic()
            warm = min(1.0, (self.step + 1) / 100)
            for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
                group["lr"] = group.get("times", 1.0) * self.rate * warm * (0.04 + 0.96 * (0.5 + 0.5 * math.cos(math.pi * progress)))
            torch_rng = torch.Generator().manual_seed((self.seed * 1_000_003 + self.step) * 16 + self.rank)
            losses = loss_of(np.random.default_rng((self.seed, self.step, self.rank)), torch_rng, progress)
            self.networks.zero_grad(set_to_none=True)
            losses["loss"].backward()
            self._share_gradients()
            norm = nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
            if bool(torch.isfinite(norm)):
                for optimizer in self.optimizers:
                    optimizer.step()
            self._average()
            self.step += 1
            self.seconds += min(time.monotonic() - began, LONGEST_STEP)
            since += 1
            if self.rank:
                continue
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            if self.step % LOG_EVERY == 0:
                curve.add(self.step, self.seconds, {name: value / since for name, value in sums.items()})
                sums, since = {}, 0
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                curve.draw()
                saved = time.monotonic()
            if time.monotonic() - shown > STRIP_EVERY:
                show()
                shown = time.monotonic()
        if not self.rank:
            self.save()
            curve.draw()
            show()

    def _agreed_progress(self) -> float:
        if distributed.is_initialized():
            seconds = torch.tensor(self.seconds, dtype=torch.float64)
            distributed.broadcast(seconds, 0)
            self.seconds = float(seconds)
        return self.progress

    @torch.no_grad()
    def _share_gradients(self) -> None:
        if distributed.is_initialized():
            gradients = [parameter.grad for parameter in self.networks.parameters() if parameter.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            distributed.all_reduce(flat)
            for gradient, mean in zip(gradients, (flat / distributed.get_world_size()).split([gradient.numel() for gradient in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for name, tensor in self.networks.state_dict().items():
            self.best[name].lerp_(tensor, 1 - decay) if tensor.is_floating_point() else self.best[name].copy_(tensor)

    def averaged(self, key: str) -> dict[str, Tensor]:
        return {name.removeprefix(key + "."): tensor for name, tensor in self.best.items() if name.startswith(key + ".")}


def _is_hidden(name: str, tensor: Tensor) -> bool:
    """Whether this is the weight of a layer between layers; Muon is not for what reads the input, makes the output, or looks something up."""
    ends = ("conv_in", "conv_out", "embedding", "visual_projection", "image_encoder")
    return tensor.ndim >= 2 and min(tensor.shape[0], tensor[0].numel()) > 4 and not any(end in name for end in ends)


class _Curve:
    """The losses of a stage, as CSV and as a picture."""

    def __init__(self, folder: Path, name: str, step: int) -> None:
        self.csv, self.png, self.rows = folder / f"{name}.csv", folder / f"{name}.png", []
        if step and self.csv.exists():
            with self.csv.open() as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        self.began = time.monotonic()

    def add(self, step: int, seconds: float, losses: dict[str, float]) -> None:
        self.rows.append({"step": step, "minutes": f"{seconds / 60:.2f}"} | {name: f"{value:.5f}" for name, value in losses.items()})
        with self.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[-1]))
            writer.writeheader()
            writer.writerows(self.rows)
        if step % (5 * LOG_EVERY) == 0:
            say(" ".join(f"{name} {value}" for name, value in self.rows[-1].items()))

    def draw(self) -> None:
        """The loss over the steps: grey as it was, black as the mean of ten."""
        if len(self.rows) < 2:
            return
        values = np.array([float(row["loss"]) for row in self.rows])
        width, height, edge = 900, 420, 40
        low, high = float(values.min()), float(np.percentile(values, 98)) + 1e-9
        picture = np.full((height, width, 3), 255, np.uint8)
        smooth = np.convolve(np.pad(values, (9, 0), mode="edge"), np.ones(10) / 10, mode="valid")
        for line, colour in ((values, (190, 190, 190)), (smooth, (0, 0, 0))):
            x = np.linspace(edge, width - edge, len(line))
            y = height - edge - (height - 2 * edge) * (np.clip(line, low, high) - low) / (high - low)
            cv2.polylines(picture, [np.stack([x, y], -1).round().astype(np.int32)], False, colour, 1, cv2.LINE_AA)
        first, last = self.rows[0]["step"], self.rows[-1]["step"]
        for text, place in ((f"loss {high:.4f}", (4, 20)), (f"{low:.4f}", (4, height - 8)), (f"steps {first} to {last}", (width - 220, height - 8))):
            cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        cv2.imwrite(str(self.png), picture)


def say(text: str) -> None:
    if not (distributed.is_initialized() and distributed.get_rank()):
        print(text, flush=True)


def _quick(device: torch.device) -> AbstractContextManager[Any]:
    """Computing in bfloat16, where that is quick."""
    kind = quickest(device)
    return torch.autocast(device.type, kind) if kind is torch.bfloat16 else nullcontext()


def _in_two_dimensions(network: nn.Module) -> None:
    """Has convolutions over time alone work as 2-D ones, [T,H*W]: the same numbers without torch's slow path for 3-D ones on a CPU, where a VAE's step takes a quarter less."""
    for conv in network.modules():
        if isinstance(conv, nn.Conv3d) and conv.kernel_size[1:] == (1, 1):
            conv.forward = functools.partial(_over_time, conv)


def _over_time(conv: nn.Conv3d, x_BCTHW: Tensor) -> Tensor:
    y = F.conv2d(x_BCTHW.flatten(3), conv.weight.flatten(3), conv.bias, padding=(int(conv.padding[0]), 0))
    return y.unflatten(3, x_BCTHW.shape[3:])


# The VAE


def train_vae(run: Run, parts: dict[str, Any], caches: Sequence[data.Cache], resume: bool, only_decoder: bool = False) -> Any:
    """The trained VAE: absolute error and LPIPS against the clips' own frames, whole short clips at a time so that the temporal layers learn too;
    and the same for the latents of one picture moved by parts of one from frame to frame, against the picture moved as far (after EQ-VAE,
    arXiv:2502.09509): a UNet that has a camera pan can then move what it sees, instead of having to know what each latent turns into on the way to the next.

    only_decoder  goes on with a VAE that is trained, and leaves its latents as they are: a UNet that was trained on them stays valid. With a checkpoint to
                  start from, half of the steps have latents that its UNet made. A critic that learns to tell its pictures from others is part of the loss
    """
    begins = run.start is None and not only_decoder
    vae: Any = model.fresh(parts["vae"], run.seed) if begins else load_vae(run, parts)
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_(not only_decoder or name.startswith("decoder."))
    run.begin({"vae": vae} | ({"critic": model.critic(run.seed)} if only_decoder else {}), resume)
    vae = run.networks["vae"]
    look = Lpips().to(run.device)
    held_out = _held_out_frames()
    sampled = remake(run, run.start, vae, caches) if only_decoder and run.start else []

    def loss_of(rng: np.random.Generator, torch_rng: torch.Generator, progress: float) -> dict[str, Tensor]:
        if progress > 0.4 and not run.scaled:
            run.scaled = True
            _to_scale(run, vae, caches, shift=True)
        # Stills first: they differ more than the frames of a clip do, and cost less without the layers that mix frames.
        still = progress < 0.6 if begins else bool(rng.random() < 0.3)
        _mix_time(vae, not (begins and still))
        side = 64 if progress < 0.85 else 112
        frames, count = (1, 5 if side == 64 else 2) if still else (3, 3 if side == 64 else 1)
        kl = torch.zeros(())
        if sampled and rng.random() < 0.5:
            x, latents = _cut(sampled, rng, side, frames, run.batch * count)
            x = x.to(run.device)
            with _quick(run.device):
                y = vae.decode(latents.to(run.device), num_frames=frames).sample.float()
        else:
            moved = run.scaled and rng.random() < MOVED_SHARE
            crops = _crops(caches, rng, side + 8, 1 if moved else frames, run.batch * count)
            crops = _paled(crops, 1 if moved else frames, rng, torch_rng).to(run.device)
            moves = _moves(rng, frames, run.batch * count) if moved else np.zeros((len(crops), 2), int)
            with _quick(run.device):
                moments = vae.encode(crops[..., 4:-4, 4:-4]).latent_dist
                each = len(moves) // len(crops)
                mean, std = (of.repeat_interleave(each, dim=0) for of in (moments.mean, moments.std))
                noise = torch.randn(mean.shape, generator=torch_rng).to(run.device)
                if run.scaled:  # what a UNet makes is not exact either
                    wrong = (torch.rand(len(moves) // frames, generator=torch_rng) * 2 - 1).clamp(min=0)
                    std = std + wrong.repeat_interleave(frames).view(-1, 1, 1, 1).to(run.device) * (LATENT_ERROR / model.SCALING_FACTOR)
                y = vae.decode(_moved(mean, moves) + std * noise, num_frames=frames).sample.float()
            x = torch.stack([crops[index // each, :, 4 + dy : 4 + dy + side, 4 + dx : 4 + dx + side] for index, (dy, dx) in enumerate(moves)])
            if moved:  # what came in at the edges is not known
                x, y = x[..., 8:-8, 8:-8], y[..., 8:-8, 8:-8]
            unit = model.SCALING_FACTOR**2 if run.scaled else 1.0
            mean, log_variance = moments.mean.float(), moments.logvar.float() + math.log(unit)
            kl = 0.5 * (mean.square() * unit + log_variance.exp() - 1 - log_variance).mean()
        with _quick(run.device):
            distance = _distance(look, x, y, rng)
        # Coarse errors too: means of patches are what a VAE learns last and what is seen first, its colours.
        error, spread = (x - y).abs().mean(), (x - y).square().mean()
        coarse = F.avg_pool2d(x - y, 4).abs().mean() + F.avg_pool2d(x - y, 8).abs().mean()
        share = LPIPS_SHARE * (DECODERS_SHARE if only_decoder else 1.0 if not begins else min(1.0, max(0.0, progress - 0.2) / 0.3))
        total = 0.3 * error + 4 * spread + coarse + share * distance + 1e-6 * kl
        texture = TEXTURE_SHARE * (_texture(x) / _texture(y)).log().abs().mean()
        # Errors that stay where they are while the picture moves under them; optical flow takes them for a picture that moves less.
        change = (x - y).unflatten(0, (-1, frames)).diff(dim=1).abs().mean() if frames > 1 else torch.zeros(())
        if not begins:
            total = total + texture + change
        found = {"loss": total, "error": error, "lpips": distance, "texture": texture, "change": change, "kl": kl, "psnr": 10 * torch.log10(4 / spread)}
        if only_decoder:
            found["critic"], found["loss"] = _criticised(run.networks["critic"], x, y, total, CRITIC_SHARE * min(1.0, progress / 0.2))
        return found

    def show() -> None:
        y = _through(run, vae, held_out)
        say(f"VAE on held-out frames at step {run.step}: {_report(held_out, y)}")
        rows = [np.hstack([*eight]) for eight in (held_out[:8], y[:8], held_out[8:16], y[8:16])]
        _picture(run.folder / f"vae-{run.step:06d}.png", np.vstack(rows))

    run.scaled = run.scaled or not begins
    run.learn(loss_of, show)
    _mix_time(vae, True)
    vae.load_state_dict(run.averaged("vae"))
    vae.eval()
    if not only_decoder:
        _to_scale(run, vae, caches, shift=False)
    if begins:  # else there is a UNet that works on them as they are
        model.rotate_latents(_colours(run, vae, caches), vae)
    if not run.rank:
        torch.save({name: tensor.cpu() for name, tensor in vae.state_dict().items()}, run.folder / "vae.pt")
        say(f"VAE when done: {_report(held_out, _through(run, vae, held_out))}")
        if run.start:
            write(run, parts, vae)
    _together()
    return vae


def _criticised(critic: nn.Module, x_N3HW: Tensor, y_N3HW: Tensor, total: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The critic's own loss; and what to descend, which is worth `total`: its gradients are the critic's loss's for the critic, and for what made y
    those of `total`, which is of y alone, with the critic's opinion of y added at `share` of their norm.

    An adversarial loss as VQGAN has it (Esser et al. 2021, arXiv:2012.09841), by hinges: for patterns that LPIPS hardly sees, such as grids.
    """
    (by_total,) = torch.autograd.grad(total, y_N3HW)
    (by_critic,) = torch.autograd.grad(-critic(y_N3HW).mean(), y_N3HW)
    towards = by_total + share * by_total.norm() / by_critic.norm().clamp(min=1e-12) * by_critic
    real, made = critic(x_N3HW), critic(y_N3HW.detach())
    loss = (F.relu(1 - real) + F.relu(1 + made)).mean()
    slopes = loss + (y_N3HW * towards).sum()
    return loss, total.detach() + (slopes - slopes.detach())


def _moves(rng: np.random.Generator, frames: int, count: int) -> np.ndarray:
    """How far the pictures of clips have moved since their first, (dy, dx) in whole pixels, at most half of a latent, [count * frames,2]; more than half of
    the clips straight to a side. A clip of one picture is on its way already."""
    ends = rng.integers(-4, 5, (count, 1, 2)) * np.stack([rng.random((count, 1)) < 0.4, np.ones((count, 1))], -1)
    return (ends * np.linspace(0.0 if frames > 1 else 1.0, 1.0, frames)[:, None]).round().astype(int).reshape(-1, 2)


def _moved(latents_N4hw: Tensor, moves_N2: np.ndarray) -> Tensor:
    """Latents as of pictures whose pixels at (dy, dx) come to (0, 0), cubic between them."""
    if not moves_N2.any():
        return latents_N4hw
    height, width = latents_N4hw.shape[-2:]
    matrices = torch.tensor([[[1.0, 0.0, dx / (4 * width)], [0.0, 1.0, dy / (4 * height)]] for dy, dx in moves_N2.tolist()], device=latents_N4hw.device)
    grid = F.affine_grid(matrices, list(latents_N4hw.shape), align_corners=False)
    return F.grid_sample(latents_N4hw.float(), grid, mode="bicubic", padding_mode="border", align_corners=False)


def _distance(look: Lpips, x_N3HW: Tensor, y_N3HW: Tensor, rng: np.random.Generator) -> Tensor:
    """LPIPS, in half of the steps of pictures twice as large, and from any offset: its first layer looks at each fourth pixel, and a decoder would find
    patterns of four pixels that it does not see."""
    top, left = rng.integers(0, 4, 2)
    pair = [(z[..., top:, left:] + 1) / 2 for z in (x_N3HW, y_N3HW)]
    if rng.random() < 0.5:
        pair = [F.interpolate(z, scale_factor=2, mode="bilinear", align_corners=False) for z in pair]
    return look.difference(look.activations(pair[0]), look.activations(pair[1])).float()


def _texture(x_N3HW: Tensor) -> Tensor:
    """How busy each patch of 8x8 is: its mean slope. An error's mean is smallest for a blurred picture, which this tells from a sharp one. To be compared
    by its ratio: a weave that is lost in grass is all that is seen in a sky. Slopes of a hundredth and less, grain, are as good as none."""
    grey = x_N3HW.mean(1, keepdim=True)
    slope = (grey.diff(dim=-1)[..., 1:, :].square() + grey.diff(dim=-2)[..., 1:].square() + 1e-4).sqrt()
    return F.avg_pool2d(slope, 8, ceil_mode=True)


def _mix_time(vae: Any, mixed: bool) -> None:
    """Has the decoder's temporal blocks work, or pass on what they get, as they nearly do to begin with."""
    for name, block in vae.decoder.named_modules():
        if name.endswith("temporal_res_block"):
            block.__dict__.pop("forward", None)
            if not mixed:
                block.forward = lambda x, temb=None: x


def _to_scale(run: Run, vae: Any, caches: Sequence[data.Cache], shift: bool) -> None:
    """Brings the latents to the scale that the UNet expects; their means too while the decoder can still learn what that changes at the edges."""
    frames = torch.cat([_crops(caches, np.random.default_rng(index), 128, 1, 16) for index in range(4)])
    states = [vae.state_dict()] if not shift else [vae.state_dict(), run.averaged("vae")]
    kept = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    with torch.no_grad():
        latents = torch.cat([vae.encode(few.to(run.device)).latent_dist.mode() for few in frames.split(8)]).float()
        mean = latents.mean((0, 2, 3)) if shift else torch.zeros(4)
        std = float((latents - latents.mean((0, 2, 3), keepdim=True)).std())
        say(f"latents had means {latents.mean((0, 2, 3)).tolist()} and a standard deviation of {std:.3f}")
        for state in reversed(states):  # the running weights last, so that they stay in the network
            vae.load_state_dict(state if state is not states[0] else kept)
            model.normalise_latents(vae, mean, std)
            if state is not states[0]:
                for name, tensor in vae.state_dict().items():
                    run.best["vae." + name].copy_(tensor)
    for parameter in (vae.quant_conv.weight, vae.quant_conv.bias, vae.decoder.conv_in.weight, vae.decoder.conv_in.bias):
        run.optimizers[0].state.pop(parameter, None)  # what it had gathered is of another scale


@torch.no_grad()
def _colours(run: Run, vae: Any, caches: Sequence[data.Cache]) -> Tensor:
    """The rotation of the latents that makes previews show the right colours."""
    frames = torch.cat([_crops(caches, np.random.default_rng(index), 128, 1, 16) for index in range(4)])
    latents = torch.cat([vae.encode(few.to(run.device)).latent_dist.mode() for few in frames.split(8)]).float().cpu()
    rows = [x.movedim(1, -1).flatten(0, 2) for x in (latents * model.SCALING_FACTOR, F.avg_pool2d(frames, 8))]
    return model.colour_rotation(*rows)


@torch.no_grad()
def _through(run: Run, vae: Any, frames_NHW3: np.ndarray) -> np.ndarray:
    """The frames after encoding and decoding each alone, by the averaged weights."""
    kept = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    if vae.training:
        vae.load_state_dict(run.averaged("vae"))
    x = _to_network(frames_NHW3).to(run.device)
    y = torch.cat([vae.decode(vae.encode(one).latent_dist.mode(), num_frames=1).sample for one in x.split(1)])
    vae.load_state_dict(kept)
    return _to_pixels(y)


def _held_out_frames() -> np.ndarray:
    """Frames at 128x128 that nothing was trained on: 12 of films, 12 of pictures, [24,128,128,3]."""
    found: list[np.ndarray] = []
    shots = sources.shots(held_out=True)
    for index in range(12):
        frames = shots[index % len(shots)][1]
        frame = frames[(index // len(shots)) * (len(frames) // 3)]
        found.append(cv2.resize(frame[:, 100:356], (128, 128), interpolation=cv2.INTER_AREA))
    rng = np.random.default_rng(0)
    made_of = data.Material(data.material(True).pyramids, ())
    found += [data.flatly(made_of, 128, 128, rng) for _ in range(12)]
    return np.stack([found[i // 2 + 12 * (i % 2)] for i in range(24)])


def _report(truth: np.ndarray, made: np.ndarray) -> str:
    errors = np.square(truth.astype(np.float32) - made).mean((1, 2, 3))
    decibels = 10 * np.log10(255**2 / errors)
    films, stills = decibels[0::2].mean(), decibels[1::2].mean()
    return f"PSNR {decibels.mean():.2f} dB (films {films:.2f}, pictures {stills:.2f}), sharpness {data.sharpness(made) / data.sharpness(truth):.2f} of the frames'"


@dataclass(frozen=True)
class Sampled:
    """Clips, and latents like theirs that a UNet made.

    latents  [N,T,4,h,w] float16, in the VAE's scale
    frames   [N,T,H,W,3] uint8
    """

    latents: Tensor
    frames: np.ndarray


@torch.no_grad()
def remake(run: Run, start: Path, vae: Any, caches: Sequence[data.Cache]) -> list[Sampled]:
    """Some of the clips, pale ones among them, as the UNet of the checkpoint makes them: with noise on them as from the middle of sampling, and sampled from there, so that
    they are softened and textured as its own are, and things are still where they were."""
    svd, found = open_svd(start), []
    for cache, (width, height, share) in zip(caches, SIZES, strict=True):
        few = cache.cut(cache.tellable[: round(SAMPLED_CLIPS * share)])
        rng, torch_rng = np.random.default_rng(run.clips_seed), torch.Generator().manual_seed(run.clips_seed)
        few = replace(few, frames=np.stack([_to_pixels(_paled(_to_network(clip), data.FRAMES, rng, torch_rng)) for clip in few.frames]))
        latents = encode(run, vae, few, f"few-{width}x{height}-{len(few.fps)}-{run.clips_seed}")
        buckets = latents.cache.buckets()

        def one(index: int, few: data.Cache = few, latents: Latents = latents, buckets: np.ndarray = buckets) -> tuple[Tensor, ...]:
            rng = np.random.default_rng((run.clips_seed, index))
            picture = torch.from_numpy(np.array(few.frames[index][0])).float() / 255
            tall, wide = picture.shape[:2]
            conditioning = render.condition(svd, picture, wide, tall, device=run.device, fps=int(few.fps[index]), motion_bucket=int(buckets[index]))
            made = render.sample_clip(
                svd,
                conditioning,
                frames=data.FRAMES,
                steps=8,
                solver="euler_ancestral",
                schedule=demo.SCHEDULE,
                guidance=demo.GUIDANCE,
                seed=index,
                device=run.device,
                start_T4hw=latents.clips[index].float(),
                strength=float(rng.uniform(0.4, 1.0)),
            )
            return (made.half(),)

        (made,) = _divided(run, f"sampled-{width}x{height}-{len(few.fps)}-{run.clips_seed}", len(few.fps), one)
        found.append(Sampled(made, few.frames))
    return found


def _cut(sampled: Sequence[Sampled], rng: np.random.Generator, side: int, frames: int, count: int) -> tuple[Tensor, Tensor]:
    """[count * frames,3,side,side] in -1..1 and the latents to be decoded to them, out of clips at random."""
    pictures, latents = [], []
    for _ in range(count):
        clips = sampled[rng.integers(len(sampled))]
        index, first = int(rng.integers(len(clips.latents))), int(rng.integers(clips.latents.shape[1] - frames + 1))
        h, w = clips.latents.shape[-2:]
        y, x = int(rng.integers(h - side // 8 + 1)), int(rng.integers(w - side // 8 + 1))
        pictures.append(clips.frames[index, first : first + frames, 8 * y : 8 * y + side, 8 * x : 8 * x + side])
        latents.append(clips.latents[index, first : first + frames, :, y : y + side // 8, x : x + side // 8].float())
    return _to_network(np.concatenate(pictures)), torch.cat(latents)


def _crops(caches: Sequence[data.Cache], rng: np.random.Generator, side: int, frames: int, count: int) -> Tensor:
    """[count * frames,3,side,side] in -1..1, out of clips at random."""
    found: list[np.ndarray] = []
    for _ in range(count):
        clips = caches[rng.integers(len(caches))]
        _, length, height, width, _ = clips.frames.shape
        stride = int(rng.integers(1, 4))
        first = int(rng.integers(length - stride * (frames - 1)))
        y, x = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        clip = clips.frames[rng.integers(len(clips.frames))]
        found.append(clip[first::stride][:frames, y : y + side, x : x + side])
    return _to_network(np.concatenate(found))


def _paled(x_N3HW: Tensor, frames: int, rng: np.random.Generator, torch_rng: torch.Generator) -> Tensor:
    """The same, with some clips of so many frames as bare skies are: nearly of one colour, with grain. What a decoder adds to those is all that is seen."""
    clips = x_N3HW.unflatten(0, (-1, frames)).clone()
    for index in np.flatnonzero(rng.random(len(clips)) < PALE_SHARE):
        contrast, grain = math.exp(rng.uniform(*np.log(PALE))), rng.uniform(0, GRAIN)
        colour = clips[index].mean((0, 2, 3), keepdim=True)
        clips[index] = (colour + contrast * (clips[index] - colour) + grain * torch.randn(clips[index].shape, generator=torch_rng)).clamp(-1, 1)
    return clips.flatten(0, 1)


def _to_network(frames_NHW3: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(frames_NHW3)).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def _to_pixels(x_N3HW: Tensor) -> np.ndarray:
    return x_N3HW.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def _picture(path: Path, rgb_HW3: np.ndarray) -> None:
    cv2.imwrite(str(path), cv2.cvtColor(rgb_HW3, cv2.COLOR_RGB2BGR))


# The UNet


@dataclass(frozen=True)
class Latents:
    """A cache as the UNet sees it.

    clips     [N,T,4,h,w] float16, the VAE's modes, not scaled
    noised    [N,2,4,h,w] float16: the modes of the first and the last frame with noise of `augmentation` on them
    """

    clips: Tensor
    noised: Tensor
    augmentation: Tensor
    cache: data.Cache


@torch.no_grad()
def encode(run: Run, vae: Any, cache: data.Cache, name: str) -> Latents:
    vae.encoder.to(memory_format=torch.channels_last)  # a third less time on a CPU

    def one(index: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(int(np.random.default_rng((run.clips_seed, index)).integers(2**32)))  # a generator looks at 32 bits of its seed alone
        augmentation = (torch.randn(2, generator=generator) * 0.7 - 3.5).exp().clamp(max=0.3)
        x = _to_network(cache.frames[index])
        ends = x[[0, -1]] + augmentation.view(2, 1, 1, 1) * torch.randn(x[:2].shape, generator=generator)
        with _quick(run.device):
            each = torch.cat([x, ends]).to(run.device, memory_format=torch.channels_last).split(1)  # one by one they stay in a CPU's caches, which halves the time
            modes = [vae.encode(picture).latent_dist.mode().half().cpu() for picture in each]
        z = torch.cat(modes)  # not under autocast, which on a CPU refuses to join float16
        return z[:-2], z[-2:], augmentation

    clips, noised, augmentation = _divided(run, f"latents-{name}", len(cache.fps), one)
    return Latents(clips, noised, augmentation, cache)


def _divided(run: Run, name: str, count: int, one: Callable[[int], tuple[Tensor, ...]]) -> list[Tensor]:
    """What `one` gives for 0 to count - 1, stacked: made by all workers, each its part, and kept in the run's folder."""
    rank, workers = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    path, shares = run.folder / f"{name}.pt", [run.folder / f"{name}.{rank}.pt" for rank in range(workers)]
    if not path.exists():
        found: list[tuple[Tensor, ...]] = []
        for index in range(rank, count, workers):
            found.append(one(index))
            if index % 200 == 0:
                say(f"{name}: {index} of {count}")
        torch.save([torch.stack(tensors) for tensors in zip(*found, strict=True)], shares[rank])
        _together()
        if rank == 0:
            parts = [torch.load(share, weights_only=True) for share in shares]
            order = torch.cat([torch.arange(start, count, workers) for start in range(workers)]).argsort()
            torch.save([torch.cat(tensors)[order] for tensors in zip(*parts, strict=True)], path)
            for share in shares:
                share.unlink()
        _together()
    return torch.load(path, weights_only=True)


def _together() -> None:
    """Workers wait for each other here."""
    if distributed.is_initialized():
        distributed.barrier()


@dataclass(frozen=True)
class Batch:
    """x0_BT4hw in the UNet's scale, concat_B4hw, pixels_B3HW for the image encoder, ids_B3 (fps - 1, bucket, augmentation); and the clips, [B,T,H,W,3] uint8."""

    x0_BT4hw: Tensor
    concat_B4hw: Tensor
    pixels_B3HW: Tensor
    ids_B3: Tensor
    frames_BTHW3: np.ndarray


def draw(latents: Latents, rng: np.random.Generator, count: int, frames: int, rows: int | None, only: Sequence[int] | None = None) -> Batch:
    """Some clips of `frames` frames, played forwards or backwards, a strip of `rows` rows of latents cut out of them or whole."""
    x0, concat, pixels, ids, shown = [], [], [], [], []
    for _ in range(count):
        index = int(rng.choice(latents.cache.tellable, p=latents.cache.shares) if only is None else rng.choice(only))
        length, height = latents.clips.shape[1], latents.clips.shape[3]
        backwards = bool(rng.random() < 0.03)
        noised = bool(rng.random() < 0.6)
        first = 0 if noised else int(rng.integers(length - frames + 1))
        order = list(range(length - 1, -1, -1) if backwards else range(length))[first : first + frames]
        h = rows or height
        y = int(rng.integers(height - h + 1))
        clip = latents.clips[index][order].float()
        image = latents.noised[index, int(backwards)].float() if noised else clip[0]
        x0.append(clip[..., y : y + h, :] * model.SCALING_FACTOR)
        concat.append(image[..., y : y + h, :])
        shown.append(latents.cache.frames[index][order, 8 * y : 8 * (y + h)])
        pixels.append(clip_pixels((_to_network(shown[-1][:1]) + 1) / 2, 224)[0])
        steps = [min(a, b) for a, b in pairwise(order)]
        fps = int(latents.cache.fps[index])
        bucket = data.bucket_of(float(latents.cache.flows[index][steps].mean()), fps, latents.cache.frames.shape[2])
        ids.append([fps - 1, bucket, float(latents.augmentation[index, int(backwards)]) if noised else 0.0])
    return Batch(torch.stack(x0), torch.stack(concat), torch.stack(pixels), torch.tensor(ids), np.stack(shown))


def _evenly(count: int, generator: torch.Generator) -> Tensor:
    """Numbers in 0..1 at random, one in each of as many equal parts, [count]."""
    even = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return (even + torch.rand(1, generator=generator)) % 1


def noise_levels(count: int, generator: torch.Generator, high_share: float) -> Tensor:
    """Log-normal, as SVD was trained; but for a share that is uniform in the logarithm up to the level that sampling starts from, since it is
    there that how a clip moves is decided. Spread evenly over a batch."""
    even = _evenly(count, generator)
    usual = torch.special.ndtri(((even - high_share) / (1 - high_share)).clamp(1e-4, 1 - 1e-4)) * 1.6 + 1.0
    high = math.log(10) + even / high_share * math.log(SIGMA_MAX / 10)
    return torch.where(even < high_share, high, usual).exp().clamp(SIGMA_MIN, SIGMA_MAX)


def unet_loss(unet: Any, encoder: Any, batch: Batch, generator: torch.Generator, device: torch.device, high_share: float, refines: bool = False) -> tuple[Tensor, Tensor]:
    """Squared error of v for each clip, [B]: sgm's VScalingWithEDMcNoise, whose weighting is one on the network's own output. And the guess at x0, [B,T,4,h,w].

    refines  the noise is on what the network guesses from more of it, as in sampling with noise added anew in each step: it then learns to mend what it
             gets wrong, with the image beside it, instead of taking it for the clip's own detail. The squared error of x0
    """
    count, frames = batch.x0_BT4hw.shape[:2]
    x0 = batch.x0_BT4hw.to(device)
    blind = torch.rand(count, generator=generator)
    sees = (blind >= 0.06).float()  # the twin for guidance: neither image
    looks = (blind >= 0.09).float()  # now and then the concatenated image alone
    concat = (batch.concat_B4hw * sees.view(-1, 1, 1, 1))[:, None].expand(-1, frames, -1, -1, -1).to(device)
    with _quick(device):
        embedding = encoder(batch.pixels_B3HW.to(device)).image_embeds * looks.to(device)[:, None]

    def guess(clip: Tensor, sigma_B: Tensor) -> tuple[Tensor, Tensor]:
        """x0 of the clip with noise, and what v is multiplied by in it."""
        sigma = sigma_B.view(-1, 1, 1, 1, 1).to(device)
        scale = (sigma**2 + 1).sqrt()
        x = clip + sigma * torch.randn(x0.shape, generator=generator).to(device)
        with _quick(device):
            v = unet(
                torch.cat([x / scale, concat], dim=2),
                (0.25 * sigma_B.log()).to(device),
                encoder_hidden_states=embedding[:, None],
                added_time_ids=batch.ids_B3.to(device),
            ).sample
        return x / scale**2 - sigma / scale * v.float(), -sigma / scale

    if not refines:
        x0_guess, times = guess(x0, noise_levels(count, generator, high_share))
        return ((x0_guess - x0) / times).square().mean((1, 2, 3, 4)), x0_guess
    sigma_B = (math.log(REFINED[0]) + _evenly(count, generator) * math.log(REFINED[1] / REFINED[0])).exp()
    before_B = sigma_B * (0.7 + 2.8 * torch.rand(count, generator=generator)).exp()  # twice to 33 times as much: one step of sampling, or two
    with torch.no_grad():
        first, _ = guess(x0, before_B.clamp(max=SIGMA_MAX))
    clip = torch.where(sees.view(-1, 1, 1, 1, 1).to(device) > 0, first, x0)
    x0_guess, _ = guess(clip, sigma_B)
    return (x0_guess - x0).square().mean((1, 2, 3, 4)), x0_guess


def by_motion(x0_BT4hw: Tensor) -> Tensor:
    """What each clip's error is to be multiplied by, [B]: little where much changes. As it is, a slow clip or a smooth picture that stays where it is
    costs less than a fast one that is slightly blurred."""
    times, least = STILL
    return times / (least + (x0_BT4hw - x0_BT4hw[:, :1]).square().mean((1, 2, 3, 4)))


def seen_loss(vae: Any, look: Lpips, x0_guess_BT4hw: Tensor, batch: Batch, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """LPIPS, and how much busier or less busy each patch is, of two neighbouring frames of one of the guesses, decoded, against the clip's own: most of what
    is seen lies in little of the latents' variance, and what comes into sight fades where the mean of all that may come costs least."""
    index, first = int(rng.integers(len(x0_guess_BT4hw))), int(rng.random() ** LATE * (x0_guess_BT4hw.shape[1] - 1))
    x = _to_network(batch.frames_BTHW3[index, first : first + 2]).to(x0_guess_BT4hw.device)
    with _quick(x.device):
        y = vae.decode(x0_guess_BT4hw[index, first : first + 2] / model.SCALING_FACTOR, num_frames=2).sample.float()
        x, y = x[..., 8:-8, :], y[..., 8:-8, :]  # above and below a strip the decoder sees nothing, where a clip has more
        return _distance(look, x, y, rng), (_texture(x) / _texture(y)).log().abs().mean()


def train_unet(run: Run, parts: dict[str, Any], vae: Any, caches: Sequence[data.Cache], resume: bool, only: Sequence[int] | None = None) -> None:
    """The UNet and the image encoder together, on strips out of clips first, and on whole ones more and more. Strips are as wide as the clip,
    so that most of what a camera that goes to the right will show is in the first frame."""
    latents = [encode(run, vae, clips, f"{clips.frames.shape[3]}x{clips.frames.shape[2]}-{len(clips.fps)}-{run.clips_seed}") for clips in caches]
    run.begin({key: begun(run, parts, key, run.seed + number) for number, key in enumerate(("unet", "image_encoder"), start=1)}, resume)
    unet, encoder, look = run.networks["unet"], run.networks["image_encoder"], Lpips().to(run.device)
    _in_two_dimensions(vae)
    say(f"UNet {model.count(unet) / 1e6:.2f}M, image encoder {model.count(encoder) / 1e6:.2f}M parameters")

    def loss_of(rng: np.random.Generator, torch_rng: torch.Generator, progress: float) -> dict[str, Tensor]:
        same = np.random.default_rng((run.seed, run.step))  # for all workers, which wait for the slowest
        pool = latents[same.choice(len(latents), p=[share for *_, share in SIZES[: len(latents)]] if len(latents) == len(SIZES) else None)]
        whole = same.random() < 0.15 + 0.6 * progress
        rows = None if whole else 8
        tokens = data.FRAMES * pool.clips.shape[-1] * (rows or pool.clips.shape[-2])
        count = run.batch * max(1, round(4 * 8 * 256 / tokens))
        high_share = 0.4 - 0.15 * progress  # where things go before how they look
        refines = bool(same.random() < REFINED_SHARE)
        batch = draw(pool, rng, count, data.FRAMES, rows, only)
        each, x0_guess = unet_loss(unet, encoder, batch, torch_rng, run.device, high_share, refines)
        seen, texture = seen_loss(vae, look, x0_guess, batch, rng)
        counted = (each * by_motion(batch.x0_BT4hw).to(run.device)).mean()
        return {"loss": counted + SEEN_SHARE * seen + SEEN_TEXTURE * texture, "error": each.mean(), "lpips": seen, "texture": texture}

    def show() -> None:
        path = write(run, parts, vae)
        _strips(run, path, only, caches)

    with sdpa_kernel(SDPBackend.MATH) if run.device.type == "cpu" else nullcontext():  # so short are the sequences that a CPU's fused attention takes longer
        run.learn(loss_of, show)


def write(run: Run, parts: dict[str, Any], vae: Any) -> Path:
    """The checkpoint of the averaged weights; what this stage did not train is the start's. Its metadata has a line for each stage."""
    path = run.folder / "demo.safetensors"
    modules: dict[str, nn.Module] = {"vae": vae}
    for key in ("unet", "image_encoder"):
        modules[key] = begun(run, parts, key, 0)
        if key in run.networks:
            modules[key].load_state_dict(run.averaged(key))
    before = safe_open(run.start, "pt").metadata() or {} if run.start else {}
    stages = before | {f"{len(before)} {run.name}": f"{run.step} steps, {run.seconds / 60:.0f} minutes on {run.device.type}, seed {run.seed}, clips of seed {run.clips_seed}"}
    size = model.save(path, modules, parts, stages)
    say(f"{path.name}: {size / 1e6:.2f} MB")
    return path


def change(run: Run, parts: dict[str, Any], how: Callable[[Any, Any], None]) -> None:
    """The checkpoint to start from with its VAE and UNet changed by hand."""
    vae, unet = load_vae(run, parts), begun(run, parts, "unet", 0)
    how(vae, unet)
    run.best = {f"unet.{name}": tensor for name, tensor in unet.state_dict().items()}
    run.networks = nn.ModuleDict({"unet": unet})
    if not run.rank:
        write(run, parts, vae)


def _strips(run: Run, path: Path, only: Sequence[int] | None, caches: Sequence[data.Cache]) -> None:
    """Clips by the pack's own sampling, from held-out pictures (or from the only clips trained on): a row each, and how much they move."""
    svd, device = open_svd(path), torch.device("cpu")
    rows: list[np.ndarray] = []
    if only is not None:
        images = [(caches[0].frames[index][0], int(caches[0].buckets()[index]), int(caches[0].fps[index])) for index in only[:2]]
    else:
        held_out = data.Material(data.material(True).pyramids, ())
        rng = np.random.default_rng(5)
        images = [(data.flatly(held_out, 192, 128, rng), bucket, 6) for bucket in (40, 127, 200)]
    for index, (image, bucket, fps) in enumerate(images):
        picture = torch.from_numpy(np.array(image)).float() / 255
        conditioning = render.condition(svd, picture, image.shape[1], image.shape[0], device=device, fps=fps, motion_bucket=bucket)
        latents = render.sample_clip(svd, conditioning, frames=data.FRAMES, steps=12, solver="dpmpp_2m", schedule=demo.SCHEDULE, guidance=demo.GUIDANCE, seed=index, device=device)
        frames = (render.decode_clip(svd, latents, device=device) * 255).round().to(torch.uint8).numpy()
        flow, decibels = float(data.flow_lengths(frames).mean()), 10 * math.log10(255**2 / np.square(frames[0].astype(np.float32) - image).mean())
        asked = data.flow_of(bucket, fps, image.shape[0])
        sharp = [data.sharpness(frames[i : i + 1]) / data.sharpness(image[None]) for i in (0, 7, 13)]
        say(f"strip {index}: bucket {bucket}, flow {flow:.2f} for {asked:.2f}, first frame {decibels:.1f} dB, sharpness {' '.join(f'{s:.2f}' for s in sharp)}")
        rows.append(np.hstack([image, *frames[[0, 3, 6, 9, 13]]]))
    _picture(run.folder / f"unet-{run.step:06d}.png", np.vstack(rows))


def begun(run: Run, parts: dict[str, Any], key: str, seed: int) -> Any:
    """A network to train: fresh, or as the checkpoint to start from has it."""
    network: Any = model.fresh(parts[key], seed)
    if run.start is not None:
        network.load_state_dict(getattr(open_svd(run.start), key).state_dict())
    return network


def load_vae(run: Run, parts: dict[str, Any]) -> Any:
    """The VAE of the stage before, or of the checkpoint to start from."""
    vae = begun(run, parts, "vae", 0)
    if run.start is None:
        vae.load_state_dict(torch.load(run.folder / "vae.pt", weights_only=True))
    return vae.eval().requires_grad_(False)


def _each(values: Iterable[float] | None) -> tuple[float | None, float | None, float | None]:
    """The VAE's, the UNet's and the decoder's; one number stands for all."""
    found = list(values or ())
    return (found[0], found[-1], found[0]) if found else (None, None, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stage",
        choices=("vae", "unet", "all", "decoder", "colours", "buckets"),
        default="all",
        help="decoder: the VAE's decoder once more, for latents as they are; colours: turn the latents of --start so that previews show the right ones; "
        "buckets: have a motion bucket mean --ratio times what it does in --start",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--minutes", type=float, nargs="+", metavar="M", help="how long to train, rendering and encoding apart: one number, or the VAE's and the UNet's (default 30 60)"
    )
    length.add_argument("--steps", type=int, nargs="+", metavar="N", help="the same in steps")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1, help="how many times the batch of a CPU's worker")
    parser.add_argument("--clips", type=int, default=4000, help="clips to render and train on")
    parser.add_argument("--unet-clips", type=int, help="how many of them the UNet trains on, since encoding them takes a CPU long; all, if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips-seed", type=int, help="of the clips, for a run that draws anew from those of another; --seed, if not given")
    parser.add_argument("--resume", action="store_true", help="go on from the state in the folder")
    parser.add_argument("--start", type=Path, metavar="FILE", help="begin with the weights of this checkpoint; with one stage, not with all")
    parser.add_argument("--rate", type=float, default=1.0, metavar="R", help="times the usual learning rate; less than one for a short run that goes on from --start")
    parser.add_argument("--ratio", type=float, metavar="R", help="for --stage buckets")
    parser.add_argument("--folder", type=Path, default=ROOT / ".work" / "training")
    parser.add_argument("--overfit", type=int, metavar="N", help="train the UNet on the first N clips alone, to see that it can")
    parser.add_argument("--workers", type=int, help="processes that share a CPU's work; as many as it has cores, if not given")
    arguments = parser.parse_args()
    if arguments.clips_seed is None:
        arguments.clips_seed = arguments.seed
    if arguments.start and arguments.stage == "all":
        parser.error("--start goes with one stage: the UNet's would take the VAE of FILE, not the one trained before it")
    if arguments.stage == "buckets" and not (arguments.start and arguments.ratio):
        parser.error("--stage buckets needs --start and --ratio")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    _caches(arguments)
    workers = arguments.workers or (len(os.sched_getaffinity(0)) if arguments.device == "cpu" else 1)
    if workers == 1:
        work(0, arguments, 1)
    else:
        try:
            multiprocessing.start_processes(work, (arguments, workers), nprocs=workers, start_method="spawn")
        finally:
            _meeting(arguments.folder, os.getpid()).unlink(missing_ok=True)


def _meeting(folder: Path, parent: int) -> Path:
    """The file by which the workers of this process find each other."""
    return folder.absolute() / f"meeting-{parent}"


def _caches(arguments: argparse.Namespace) -> list[data.Cache]:
    """The clips of each size, which are rendered unless they are there; none for the stage that looks at none."""
    sizes = () if arguments.stage == "buckets" else SIZES
    return [data.cache(arguments.folder / "cache", round(arguments.clips * share), width, height, arguments.clips_seed) for width, height, share in sizes]


def work(rank: int, arguments: argparse.Namespace, workers: int) -> None:
    """One worker, from the caches to the checkpoint."""
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    if workers > 1:
        meeting = _meeting(arguments.folder, os.getppid())
        distributed.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=workers)
    minutes, steps = _each(arguments.minutes or (None if arguments.steps else (30, 60))), _each(arguments.steps)
    parts = model.plan(arguments.folder / f"worker-{rank}")
    caches = _caches(arguments)
    runs = [
        Run(
            name,
            arguments.folder,
            torch.device(arguments.device),
            arguments.seed,
            arguments.batch,
            minutes[i],
            None if steps[i] is None else int(steps[i] or 0),
            rate * arguments.rate,
            decay,
            start=arguments.start,
            clips_seed=arguments.clips_seed,
            muon=name == "unet" or arguments.start is not None,
        )
        for i, (name, rate, decay) in enumerate((("vae", 8e-4 if arguments.start else 1.5e-3, 0.998), ("unet", 8e-4, 0.998), ("decoder", 6e-4, 0.998)))
    ]
    if arguments.stage == "colours":
        change(replace(runs[1], name="colours"), parts, lambda vae, unet: model.rotate_latents(_colours(runs[1], vae, caches), vae, unet))
    if arguments.stage == "buckets":
        change(replace(runs[1], name="buckets"), parts, lambda vae, unet: model.rescale_buckets(unet, arguments.ratio))
    if arguments.stage in ("vae", "all"):
        train_vae(runs[0], parts, caches, arguments.resume)
    if arguments.stage == "decoder":
        train_vae(runs[2], parts, caches, arguments.resume, only_decoder=True)
    if arguments.stage in ("unet", "all"):
        vae = load_vae(runs[1], parts).to(arguments.device)
        if arguments.overfit:
            caches = [caches[0].cut(slice(arguments.overfit))]
        elif arguments.unet_clips:
            caches = [clips.cut(slice(round(arguments.unet_clips * share))) for clips, (*_, share) in zip(caches, SIZES, strict=True)]
        train_unet(runs[1], parts, vae, caches, arguments.resume, None if not arguments.overfit else range(arguments.overfit))
    if workers > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
