"""What the demo model is trained by: clips whose controls mean what they say, and a writer whose files the pack's own loader opens."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lean_video.checkpoints import open_svd

ROOT = Path(__file__).parents[2]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    monkeypatch.syspath_prepend(str(ROOT / "training"))
    return importlib.import_module


def texture(data: Any, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([(255 * data._noise(512, rng)).astype(np.uint8) for _ in range(3)], axis=-1)


def test_a_motion_bucket_is_128_for_three_pixels_a_frame_at_6_fps_and_128_pixels(training: Any) -> None:
    data = training("data")
    assert data.bucket_of(3.0, 6, 128) == 128
    assert data.bucket_of(1.5, 12, 128) == 128  # as far in half the time
    assert data.bucket_of(6.0, 6, 256) == 128  # as far of a picture twice as high
    assert data.bucket_of(100.0, 6, 128) == 255
    assert data.bucket_of(data.flow_of(127, 10, 192), 10, 192) == 127


def test_clips_too_fast_for_any_bucket_are_not_trained_on(training: Any) -> None:
    data = training("data")
    flows = np.array([[0.0], [5.7], [6.3], [2.7], [3.3]], np.float32).repeat(data.FRAMES - 1, 1)
    clips = data.Cache(np.zeros((5, data.FRAMES, 128, 192, 3), np.uint8), np.array([6, 6, 6, 12, 12]), flows)
    assert clips.tellable.tolist() == [0, 1, 3]


def test_the_unet_is_told_the_speed_of_the_clip_itself_and_its_rate(training: Any, tmp_path: Path) -> None:
    data, train = training("data"), training("train")
    clips = data.Cache(np.zeros((2, data.FRAMES, 64, 96, 3), np.uint8), np.array([6, 12]), np.array([[0.25], [0.25]], np.float32).repeat(data.FRAMES - 1, 1))
    vae = SimpleNamespace(encoder=torch.nn.Identity(), encode=lambda x: SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: torch.zeros(len(x), 4, 8, 12))))
    latents = train.encode(train.Run("unet", tmp_path, torch.device("cpu"), 0, 1, None, 1, 1e-3, 0.9), vae, clips, "test")
    ids = train.draw(latents, np.random.default_rng(0), 32, data.FRAMES, None).ids_B3
    assert {(fps, bucket) for fps, bucket, _ in ids.tolist()} == {(6 - 1, data.bucket_of(0.25, 6, 64)), (12 - 1, data.bucket_of(0.25, 12, 64))}


@pytest.mark.parametrize("speed", [0.5, 1.5, 3.0])
def test_measured_flow_is_the_speed_of_a_picture_that_is_pushed(training: Any, speed: float) -> None:
    data = training("data")
    pyramid = data._pyramid(texture(data))
    camera = data._Camera(np.array([200.0, 200.0]), 1.0, 0.0, np.array([speed, 0.0]), 0.0, 0.0)
    frames = np.stack([camera.frame(pyramid, index, 128, 96) for index in range(6)])
    assert frames.shape == (6, 96, 128, 3)
    np.testing.assert_allclose(data.flow_lengths(frames), speed, rtol=0.1)


def test_every_kind_of_clip_moves_and_the_same_seed_gives_the_same_clip(training: Any) -> None:
    data, sources = training("data"), training("sources")
    film = np.stack([np.roll(texture(data, 2)[:256, :456], 2 * index, axis=1) for index in range(60)])
    made_of = data.Material((data._pyramid(texture(data)), data._pyramid(texture(data, 1))), ((sources.Shot("film", 0, 60, 24), film),))
    for kind, _ in data._KINDS:
        frames, fps = kind(made_of, 128, 128, np.random.default_rng(3))
        again, _ = kind(made_of, 128, 128, np.random.default_rng(3))
        assert frames.shape == (data.FRAMES, 128, 128, 3)
        assert frames.dtype == np.uint8
        assert 6 <= fps <= 24
        assert np.array_equal(frames, again)
        assert data.flow_lengths(frames).mean() > 0


def test_cameras_move_over_films_too_but_not_where_clips_are_held_out(training: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data, sources = training("data"), training("sources")
    picture, film = texture(data, 1)[:256], np.stack([np.full((256, 456, 3), level, np.uint8) for level in (10, 20, 30)])
    monkeypatch.setattr(sources, "pictures", lambda held_out: {"one": picture})
    monkeypatch.setattr(sources, "shots", lambda held_out: [(sources.Shot("film", 0, 3, 24, held_out), film)])
    of = {held_out: [pyramid[0] for pyramid in data.material.__wrapped__(held_out).pyramids] for held_out in (False, True)}
    assert [level.mean() for level in of[False]] == [picture.mean(), 10, 30]
    assert len(of[True]) == 1
    assert np.array_equal(of[True][0], picture)


def test_held_out_frames_of_a_film_are_not_trained_on(training: Any) -> None:
    sources = training("sources")
    for held in (shot for shot in sources.SHOTS if shot.held_out):
        assert not [shot for shot in sources.SHOTS if not shot.held_out and shot.source == held.source and shot.first < held.last and held.first < shot.last]
    assert all(picture.licence for picture in sources.PICTURES)
    assert all(sources.CLIP_LICENCES.values())


def test_the_loader_opens_what_the_writer_wrote_and_finds_the_same_weights(training: Any, tmp_path: Path) -> None:
    model = training("model")
    parts = model.plan(tmp_path)
    networks = {key: model.fresh(part, index) for index, (key, part) in enumerate(parts.items())}
    with torch.no_grad():
        networks["vae"].quant_conv.weight.normal_(0, 0.3)
    size = model.save(tmp_path / "demo.safetensors", networks, parts, {"seed": "0"})
    assert size <= 24e6
    opened = open_svd(tmp_path / "demo.safetensors")
    for key, network in (("unet", opened.unet), ("vae", opened.vae), ("image_encoder", opened.image_encoder)):
        want = networks[key].state_dict()
        assert network.state_dict().keys() == want.keys()
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor.float(), want[name].half().float()), name


def test_a_mean_of_checkpoints_is_of_the_unet_and_the_image_encoder_and_knows_one_vae(training: Any, tmp_path: Path) -> None:
    model, mean = training("model"), training("mean")
    parts = model.plan(tmp_path)
    first, second = ({key: model.fresh(part, seed + index) for index, (key, part) in enumerate(parts.items())} for seed in (0, 10))
    second["vae"].encoder.load_state_dict(first["vae"].encoder.state_dict())
    second["vae"].quant_conv.load_state_dict(first["vae"].quant_conv.state_dict())
    files = [model.file_tensors(networks, parts, model.layout(model.SIZE)) for networks in (first, second)]
    opened = mean.mean([(files[0], 0.25), (files[1], 0.75)])
    assert opened.keys() == files[0].keys()
    averaged = [name for name in opened if name.startswith(("model.diffusion_model.", "conditioner.embedders.0."))]
    assert averaged
    for name, tensor in opened.items():
        want = 0.25 * files[0][name].double() + 0.75 * files[1][name].double() if name in averaged else files[1][name]
        assert torch.equal(tensor, want.to(tensor.dtype)), name
    decoded = mean.mean([(files[0], 1)], [(files[0], 0.25), (files[1], 0.75)])
    for name, tensor in decoded.items():
        want = 0.25 * files[0][name].double() + 0.75 * files[1][name].double() if name.startswith("first_stage_model.decoder.") else files[0][name]
        assert torch.equal(tensor, want.to(tensor.dtype)), name
    for shares in ((0.5, 0.6), (1.5, -0.5)):
        with pytest.raises(ValueError, match="add up"):
            mean.mean(list(zip(files, shares, strict=True)))
        with pytest.raises(ValueError, match="add up"):
            mean.mean([(files[0], 1)], list(zip(files, shares, strict=True)))
    other = {name: tensor + 1 if name.startswith(model.CONDITION_ENCODER) else tensor for name, tensor in files[1].items()}
    with pytest.raises(ValueError, match="different VAE encoders"):
        mean.mean([(files[0], 0.5), (other, 0.5)])
    with pytest.raises(ValueError, match="different VAE encoders"):
        mean.mean([(files[0], 1)], [(other, 1)])


def test_slow_clips_are_drawn_more_often_and_too_fast_ones_never(training: Any) -> None:
    data, train = training("data"), training("train")
    flows = np.array([[0.3], [5.7], [9.0]], np.float32).repeat(data.FRAMES - 1, 1)
    clips = data.Cache(np.zeros((3, data.FRAMES, 64, 96, 3), np.uint8), np.array([6, 6, 6]), flows / 2)
    latents = train.Latents(torch.zeros(3, data.FRAMES, 4, 8, 12), torch.zeros(3, 2, 4, 8, 12), torch.zeros(3, 2), clips)
    buckets = train.draw(latents, np.random.default_rng(0), 200, data.FRAMES, None).ids_B3[:, 1].tolist()
    slow, fast = (data.bucket_of(float(flow.mean()), 6, 64) for flow in clips.flows[:2])
    assert set(buckets) == {slow, fast}
    assert buckets.count(slow) > 1.5 * buckets.count(fast)


def test_the_first_stages_encoder_has_the_last_convolution_folded_in(training: Any, tmp_path: Path) -> None:
    """Programs that condition with the first stage, as ComfyUI's core does, get the same latents."""
    model = training("model")
    parts = model.plan(tmp_path)
    networks = {key: model.fresh(part, 0) for key, part in parts.items()}
    vae, x = networks["vae"].eval(), torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        vae.quant_conv.weight.normal_(0, 0.3)
        want = vae.encode(x).latent_dist.mode()
        stored = model.file_tensors(networks, parts, model.layout(model.SIZE))
        vae.encoder.conv_out.weight.copy_(stored["first_stage_model.encoder.conv_out.weight"])
        vae.encoder.conv_out.bias.copy_(stored["first_stage_model.encoder.conv_out.bias"])
        got = vae.encoder(x)[:, :4]
    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2)


def test_normalised_latents_have_the_scale_that_the_unet_is_told(training: Any, tmp_path: Path) -> None:
    model = training("model")
    vae = model.fresh(model.plan(tmp_path)["vae"], 0).eval()
    x = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = vae.encode(x).latent_dist
        pictures = vae.decode(before.mode(), num_frames=4).sample
        model.normalise_latents(vae, torch.zeros(4), float(before.mode().std()))
        after = vae.encode(x).latent_dist
        assert math.isclose(float(after.mode().std()) * 0.18215, 1.0, rel_tol=1e-3)
        torch.testing.assert_close(vae.decode(after.mode(), num_frames=4).sample, pictures, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(after.std / after.mode().std(), before.std / before.mode().std(), rtol=1e-3, atol=1e-4)


def test_turned_latents_change_nothing_but_the_previews_colours(training: Any, tmp_path: Path) -> None:
    model, svd = training("model"), importlib.import_module("lean_video.models.svd")
    parts = model.plan(tmp_path)
    vae, unet = (model.fresh(parts[key], 0).eval() for key in ("vae", "unet"))
    for network in (vae.quant_conv, unet.conv_out):
        torch.nn.init.normal_(network.weight, std=0.3)
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    noise, times = torch.randn(1, 2, 4, 8, 8), {"encoder_hidden_states": torch.randn(1, 1, 64), "added_time_ids": torch.tensor([[5.0, 127, 0.02]])}
    with torch.no_grad():
        latents = vae.encode(x).latent_dist.mode()
        pictures = vae.decode(latents, num_frames=2).sample
        v = unet(torch.cat([noise, latents[None]], 2), 0.3, **times).sample
        rotation = model.colour_rotation(torch.randn(500, 4), torch.randn(500, 3))
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(4), rtol=0, atol=1e-5)
        model.rotate_latents(rotation, vae, unet)
        turned = vae.encode(x).latent_dist.mode()
        torch.testing.assert_close(turned, torch.einsum("ij,njyx->niyx", rotation, latents), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(vae.decode(turned, num_frames=2).sample, pictures, rtol=1e-3, atol=1e-3)
        again = unet(torch.cat([torch.einsum("ij,ntjyx->ntiyx", rotation, noise), turned[None]], 2), 0.3, **times).sample
        torch.testing.assert_close(again, torch.einsum("ij,ntjyx->ntiyx", rotation, v), rtol=1e-3, atol=1e-3)
    # Latents that show colours through another map are found back.
    true, hidden = torch.tensor(svd._LATENT_TO_RGB), torch.linalg.qr(torch.randn(4, 4)).Q
    z = torch.randn(2000, 4)
    found = model.colour_rotation(z @ hidden, z @ true)
    torch.testing.assert_close(z @ hidden @ found.T @ true, z @ true, rtol=0, atol=1e-2)


def test_a_rescaled_bucket_means_what_as_many_times_more_did(training: Any, tmp_path: Path) -> None:
    model = training("model")
    unet = model.fresh(model.plan(tmp_path)["unet"], 0).eval()
    first, width = unet.add_embedding.linear_1, 256
    speed = 10_000.0 ** (-torch.arange(128) / 128)
    with torch.no_grad():
        first.weight[:, width : 2 * width] *= (speed.repeat(2) < 0.02).float()  # a trained one is smooth over the buckets, too
    before = first.weight.clone()

    def meant(buckets: torch.Tensor) -> torch.Tensor:
        return unet.add_time_proj(buckets) @ first.weight[:, width : 2 * width].T

    buckets = torch.arange(0.0, 86.0)
    expected = meant(3 * buckets).detach()
    assert (meant(buckets) - expected).norm() > 0.5 * (expected - expected.mean(0)).norm()
    model.rescale_buckets(unet, 3.0)
    assert (meant(buckets) - expected).norm() < 0.05 * (expected - expected.mean(0)).norm()
    torch.testing.assert_close(first.weight[:, :width], before[:, :width])
    torch.testing.assert_close(first.weight[:, 2 * width :], before[:, 2 * width :])


class _Predicting(torch.nn.Module):
    """A UNet whose guess at the clip is always the same, whatever it gets, which it keeps: without its noise's scale."""

    def __init__(self, x0_BT4hw: torch.Tensor) -> None:
        super().__init__()
        self.x0, self.seen = x0_BT4hw, list[torch.Tensor]()

    def forward(self, x_BT8hw: torch.Tensor, c_noise_B: torch.Tensor, **_: Any) -> Any:
        sigma = (4 * c_noise_B).exp().view(-1, 1, 1, 1, 1)
        x = x_BT8hw[:, :, :4].float() * (sigma**2 + 1).sqrt()
        self.seen.append(x / sigma)
        v = (self.x0 - x / (sigma**2 + 1)) / (-sigma / (sigma**2 + 1).sqrt())
        return type("Output", (), {"sample": v})


class _Blind(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> Any:
        return type("Output", (), {"image_embeds": torch.zeros(len(pixels), 8)})


def _loss(train: Any, unet: _Predicting, x0: torch.Tensor, refines: bool) -> torch.Tensor:
    batch = train.Batch(x0, torch.zeros(2, 4, 8, 8), torch.zeros(2, 3, 224, 224), torch.tensor([[5.0, 127, 0.02]] * 2), np.zeros((2, 3, 64, 64, 3), np.uint8))
    losses, guess = train.unet_loss(unet, _Blind(), batch, torch.Generator().manual_seed(0), torch.device("cpu"), high_share=0.3, refines=refines)
    torch.testing.assert_close(guess, unet.x0, rtol=1e-3, atol=1e-3)
    return losses


@pytest.mark.parametrize("refines", [False, True])
def test_the_loss_is_nothing_for_a_network_that_knows_the_clip(training: Any, refines: bool) -> None:
    """Sampling turns the network's output into the clip by c_skip and c_out: what it is trained to give is what makes that exact."""
    x0 = torch.randn(2, 3, 4, 8, 8)
    losses = _loss(training("train"), _Predicting(x0), x0, refines)
    assert losses.shape == (2,)
    assert float(losses.max()) < 1e-4


def test_a_network_that_refines_sees_its_own_guess_with_noise_and_not_the_clip(training: Any) -> None:
    x0 = torch.full((2, 3, 4, 8, 8), 1e4)
    unet = _Predicting(torch.zeros_like(x0))
    losses = _loss(training("train"), unet, x0, refines=True)
    before, after = unet.seen
    assert float(before.mean()) > 10  # the clip's
    assert float(after.mean()) == pytest.approx(0, abs=0.1)  # noise alone, as of a guess of nothing
    assert float(after.std()) == pytest.approx(1, abs=0.1)
    assert losses.tolist() == pytest.approx([1e8, 1e8], rel=1e-3)


def test_staying_where_it_is_costs_about_as_much_whatever_a_clip_shows(training: Any) -> None:
    train = training("train")
    picture = torch.randn(1, 1, 4, 16, 32, generator=torch.Generator().manual_seed(0))
    fast = torch.cat([picture.roll(2 * step, -1) for step in range(14)], dim=1)
    clips = torch.cat([fast, 0.5 * fast])  # the second as of a picture half as rich
    stills = (clips[:, :1] - clips).square().mean((1, 2, 3, 4))
    assert stills[0] > 3.9 * stills[1]
    costs = stills * train.by_motion(clips)
    assert 0.8 * costs[0] < costs[1] < costs[0]
    assert train.by_motion(clips[:, :1]).tolist() == pytest.approx([5.0, 5.0])


def test_guesses_are_looked_at_beside_the_frames_that_they_are_of(training: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train = training("train")
    latents = torch.rand(3, 5, 4, 4, 6) * 2 - 1
    shown = latents[:, :, :3].repeat_interleave(8, 3).repeat_interleave(8, 4)
    frames = ((shown + 1) * 127.5).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()
    batch = train.Batch(latents, latents[:, 0], torch.zeros(3, 3, 224, 224), torch.zeros(3, 3), frames)
    vae = SimpleNamespace(decode=lambda z, num_frames: SimpleNamespace(sample=z[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3) * train.model.SCALING_FACTOR))
    monkeypatch.setattr(train, "_distance", lambda look, x, y, rng: (x - y).abs().mean())
    for seed in range(20):
        distance, texture = train.seen_loss(vae, None, latents, batch, np.random.default_rng(seed))
        assert float(distance) < 0.005
        assert float(texture) < 0.02
        _, faded = train.seen_loss(vae, None, latents * 0.5, batch, np.random.default_rng(seed))
        assert float(faded) > 0.2
    guess = latents.clone().requires_grad_(True)
    for seed in range(200):
        distance, _ = train.seen_loss(vae, None, guess + 0.1, batch, np.random.default_rng(seed))
        distance.backward()
    by_frame = guess.grad.abs().sum((2, 3, 4))
    assert bool((by_frame > 0).all())  # of every clip, every frame
    assert float(by_frame[:, -2:].sum()) > float(by_frame[:, :2].sum())  # and late ones more often


@pytest.mark.parametrize("quick", [torch.bfloat16, torch.float32])
def test_a_cpu_computes_in_what_takes_it_less_time(training: Any, monkeypatch: pytest.MonkeyPatch, quick: torch.dtype) -> None:
    muon, train = training("muon"), training("train")
    seconds, multiply = [0.0], torch.mm

    def timed(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        seconds[0] += 1.0 if left.dtype == quick else 2.0
        return multiply(left, right)

    monkeypatch.setattr(torch, "mm", timed)
    monkeypatch.setattr(muon.time, "perf_counter", lambda: seconds[0])
    muon.quickest.cache_clear()
    try:
        layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
        with train._quick(torch.device("cpu")):
            assert layer(x).dtype == quick
    finally:
        muon.quickest.cache_clear()


def test_a_rate_is_times_the_usual_one(training: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    train = training("train")
    monkeypatch.setattr(train, "_caches", lambda arguments: [])
    monkeypatch.setattr(train, "load_vae", lambda run, parts: torch.nn.Identity())
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    rates: list[float] = []
    monkeypatch.setattr(train, "train_unet", lambda run, *others: rates.append(run.rate))
    for options in ((), ("--rate", "0.25")):
        monkeypatch.setattr("sys.argv", ["train.py", "--stage", "unet", "--steps", "1", "--workers", "1", "--folder", str(tmp_path), *options])
        train.main()
    assert rates[1] == pytest.approx(rates[0] / 4)


def test_a_run_can_draw_anew_from_the_clips_of_another(training: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data, train = training("data"), training("train")
    monkeypatch.setattr(train, "load_vae", lambda run, parts: torch.nn.Identity())
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    clips, runs = [], []
    monkeypatch.setattr(data, "cache", lambda folder, count, width, height, seed: clips.append(seed))
    monkeypatch.setattr(train, "train_unet", lambda run, *others: runs.append((run.seed, run.clips_seed)))
    for options in (("--seed", "3"), ("--seed", "4", "--clips-seed", "3")):
        monkeypatch.setattr("sys.argv", ["train.py", "--stage", "unet", "--steps", "1", "--workers", "1", "--folder", str(tmp_path), *options])
        train.main()
    assert runs == [(3, 3), (4, 3)]
    assert set(clips) == {3}


def test_what_is_made_of_clips_is_of_their_seed_and_not_of_the_steps(training: Any, tmp_path: Path) -> None:
    data, train = training("data"), training("train")
    clips = data.Cache(np.zeros((2, data.FRAMES, 64, 96, 3), np.uint8), np.array([6, 12]), np.ones((2, data.FRAMES - 1), np.float32))
    vae = SimpleNamespace(encoder=torch.nn.Identity(), encode=lambda x: SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: x[:, :1, ::8, ::8].expand(-1, 4, -1, -1))))

    def noised(name: str, seed: int, clips_seed: int) -> torch.Tensor:
        run = train.Run("unet", tmp_path, torch.device("cpu"), seed, 1, None, 1, 1e-3, 0.9, clips_seed=clips_seed)
        return train.encode(run, vae, clips, name).noised

    assert torch.equal(noised("a", 1, 5), noised("b", 2, 5))
    assert not torch.equal(noised("a", 1, 5), noised("c", 1, 6))


def test_sampled_latents_are_cut_where_their_frames_are(training: Any) -> None:
    train = training("train")
    small = np.random.default_rng(0).integers(0, 256, (2, 5, 16, 24, 3), np.uint8)
    latents = torch.from_numpy(small).permute(0, 1, 4, 2, 3).half()
    sampled = [train.Sampled(latents, small.repeat(8, 2).repeat(8, 3))]
    pictures, cut = train._cut(sampled, np.random.default_rng(1), 64, 3, 4)
    assert pictures.shape == (12, 3, 64, 64)
    torch.testing.assert_close((torch.nn.functional.avg_pool2d(pictures, 8) + 1) * 127.5, cut, rtol=0, atol=0.01)


def test_some_clips_are_as_pale_as_skies_and_keep_their_colour(training: Any) -> None:
    train = training("train")
    clips = torch.rand(200, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5 + torch.linspace(-0.4, 0.4, 3).view(3, 1, 1)
    paled = train._paled(clips.flatten(0, 1), 3, np.random.default_rng(0), torch.Generator().manual_seed(1)).unflatten(0, (-1, 3))
    changed = [index for index in range(200) if not torch.equal(paled[index], clips[index])]
    assert 20 < len(changed) < 60
    colours = clips.mean((1, 3, 4), keepdim=True)
    for index in changed:
        torch.testing.assert_close(paled[index].mean((0, 2, 3)), colours[index].flatten(), rtol=0, atol=0.005)
    contrasts = [float((paled[index] - colours[index]).std() / (clips[index] - colours[index]).std()) for index in changed]
    assert min(contrasts) < 0.08
    assert 0.35 < max(contrasts) < 0.55


def test_a_weave_in_a_sky_is_told_from_the_sky_and_grain_is_not(training: Any) -> None:
    train = training("train")
    sky = torch.full((1, 3, 32, 32), 0.2)
    weave = sky + 0.05 * torch.tensor([1.0, -1.0]).repeat(16)
    grain = sky + 0.003 * torch.randn(sky.shape, generator=torch.Generator().manual_seed(0))
    of_weave, of_grain = ((train._texture(other) / train._texture(sky)).log().abs().mean() for other in (weave, grain))
    assert of_weave > 1 > 0.2 > of_grain


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has none to compare with")
def test_muon_moves_convolutions_as_torchs_moves_their_matrices(training: Any) -> None:
    muon = training("muon")
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(20, 3, 3, 3, generator=generator)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.flatten(1).clone())
    optimizers = [muon.Muon([ours], lr=0.01), torch.optim.Muon([theirs], lr=0.01, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")]
    for _ in range(3):
        ours.grad = torch.randn(start.shape, generator=generator)
        theirs.grad = ours.grad.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    moved = (ours - start).abs().mean()
    assert (ours.flatten(1) - theirs).abs().mean() < 0.05 * moved  # torch's rounds to bfloat16


def test_convolutions_over_time_are_the_same_in_two_dimensions(training: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train = training("train")
    torch.manual_seed(0)
    conv = torch.nn.Conv3d(6, 5, (3, 1, 1), padding=(1, 0, 0))
    x = torch.randn(2, 6, 4, 3, 7)
    expected = conv(x)
    (by_torch,) = torch.autograd.grad(expected.square().sum(), conv.weight)
    train._in_two_dimensions(torch.nn.Sequential(conv))
    monkeypatch.delattr(torch.nn.Conv3d, "forward")
    made = conv(x)
    (by_ours,) = torch.autograd.grad(made.square().sum(), conv.weight)
    assert torch.allclose(made, expected, atol=1e-6)
    assert torch.allclose(by_ours, by_torch, atol=1e-4)


def test_a_decoder_descends_its_losses_and_what_its_critic_thinks_and_the_critic_its_own(training: Any) -> None:
    train = training("train")
    torch.manual_seed(0)
    critic = torch.nn.Conv2d(3, 1, 1)
    made = torch.randn(2, 3, 4, 4, requires_grad=True)
    pictures, downhill = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    still = made * 1
    of_critic, _ = train._criticised(critic, pictures, still, (still * 0).sum(), 0.5)
    of_critic.backward()
    alone = [parameter.grad.clone() for parameter in critic.parameters()]
    critic.zero_grad()
    y = made * 1
    total = (y * downhill).sum()
    _, loss = train._criticised(critic, pictures, y, total, 0.5)
    torch.testing.assert_close(loss, total)  # what the curve shows
    loss.backward()
    liked = critic.weight.detach().expand(2, 3, 4, 4)  # the same at each pixel
    assert made.grad is not None
    torch.testing.assert_close(made.grad, downhill - 0.5 * downhill.norm() * liked / liked.norm())
    for parameter, gradient in zip(critic.parameters(), alone, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_the_critic_learns_to_tell_a_grid(training: Any, tmp_path: Path) -> None:
    model, train = training("model"), training("train")
    going = train.Run("decoder", tmp_path, torch.device("cpu"), 0, 1, None, 60, 1e-3, 0.9, muon=True)
    going.begin({"vae": torch.nn.Conv2d(1, 1, 1), "critic": model.critic(0)}, resume=False)
    assert [len(optimizer.param_groups[0]["params"]) for optimizer in going.optimizers] == [2, 8]
    grid = torch.zeros(1, 1, 32, 32)
    grid[..., ::4, :] = 0.5
    losses: list[float] = []

    def loss_of(_: np.random.Generator, generator: torch.Generator, progress: float) -> dict[str, torch.Tensor]:
        x = torch.randn(4, 3, 32, 32, generator=generator)
        y = (torch.randn(4, 3, 32, 32, generator=generator) + grid).requires_grad_()
        of_critic, loss = train._criticised(going.networks["critic"], x, y, y.square().sum(), 0.5)
        losses.append(float(of_critic.detach()))
        return {"loss": loss}

    going.learn(loss_of, lambda: None)
    assert losses[0] > 1.5
    assert losses[-1] < 0.5


def test_latents_are_moved_as_their_pictures_are(training: Any) -> None:
    train = training("train")
    moves = train._moves(np.random.default_rng(0), 3, 200).reshape(200, 3, 2)
    assert not moves[:, 0].any()
    assert np.abs(moves).max() == 4  # half of a latent
    assert (np.abs(moves[:, 1]) <= np.abs(moves[:, 2])).all()
    assert 0.5 < (moves[:, 2, 0] == 0).mean() < 0.8  # most straight to a side
    latents = torch.randn(3, 4, 6, 8)
    moved = train._moved(latents, np.array([[0, 0], [0, 8], [-8, 0]]))
    torch.testing.assert_close(moved[0], latents[0])
    torch.testing.assert_close(moved[1, :, :, :-1], latents[1, :, :, 1:])
    torch.testing.assert_close(moved[2, :, 1:], latents[2, :, :-1])


def test_a_run_that_was_cut_short_goes_on_as_if_it_had_not_been(training: Any, tmp_path: Path) -> None:
    train = training("train")

    def run(folder: Path, resume: bool, stop: int | None = None) -> tuple[Any, Any]:
        torch.manual_seed(0)
        network = torch.nn.Sequential()
        for name, wide in (("conv_in", 2), ("hidden", 8), ("conv_out", 8)):
            network.add_module(name, torch.nn.Conv2d(wide, 8, 3, padding=1))
        before = network.hidden.weight.detach().clone()
        going = train.Run("unet", folder, torch.device("cpu"), 0, 1, None, 4, 1e-2, 0.9, muon=True)
        going.begin({"unet": network}, resume)

        def loss_of(_: np.random.Generator, generator: torch.Generator, progress: float) -> dict[str, torch.Tensor]:
            if going.step == stop:
                going.save()
                raise KeyboardInterrupt
            return {"loss": (network(torch.randn(1, 2, 8, 8, generator=generator)) - 1).square().mean()}

        try:
            going.learn(loss_of, lambda: None)
        except KeyboardInterrupt:
            assert stop is not None
        return going, network.hidden.weight - before

    folders = [tmp_path / name for name in ("whole", "cut")]
    for folder in folders:
        folder.mkdir()
    whole, moved = run(folders[0], resume=False)
    run(folders[1], resume=False, stop=2)
    rest, _ = run(folders[1], resume=True)
    assert rest.step == whole.step == 4
    for name, tensor in whole.networks.state_dict().items():
        torch.testing.assert_close(rest.networks.state_dict()[name], tensor, rtol=0, atol=0)
    # Muon moves a matrix in all its directions alike.
    spread = torch.linalg.svdvals(moved.detach().flatten(1))
    assert spread[0] < 10 * spread[-1]
