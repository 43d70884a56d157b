"""`python -m lean_video`: results on stdout, progress on stderr, mistakes in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from lean_video.checkpoints import inspect, open_svd
from lean_video.cli import main
from lean_video.models import planning, render
from lean_video.models.render import condition, decode_clip, sample_clip
from tests.engine.conftest import CPU, relative

ROOT = Path(__file__).parents[2]
WIDTH, HEIGHT, FRAMES = 48, 32, 3
QUICK = ["--width", str(WIDTH), "--height", str(HEIGHT), "--frames", str(FRAMES), "--steps", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def expected(tiny_file: Path, image: Path) -> tuple[Tensor, Tensor]:
    """Latents and frames of the engine itself for the command line's defaults."""
    model = open_svd(tiny_file)
    pixels = torch.from_numpy(np.array(Image.open(image))).float() / 255
    latents = sample_clip(model, condition(model, pixels, WIDTH, HEIGHT, device=CPU), frames=FRAMES, steps=2, device=CPU)
    return latents, decode_clip(model, latents, device=CPU)


# plan

SMALL_CLIP = ["--width", "64", "--height", "64", "--frames", "2"]


def test_plan_prints_what_each_phase_takes(tiny_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = {}
    for budget in ("min", "max"):
        assert main(["plan", str(tiny_file), *SMALL_CLIP, "--budget", budget, "--json"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        reports[budget] = json.loads(out)
    least, most = reports["min"], reports["max"]
    assert list(least["peak_mib"]) == ["encode", "sample", "decode"]
    assert least["plan"] | {"sample": 0, "decode": 0} == {"frames": 2, "width": 64, "height": 64, "precision": "fp16", "encode_on_host": True, "sample": 0, "decode": 0}
    assert least["plan"]["sample"]["streamed"]
    assert not most["plan"]["sample"]["streamed"]
    assert all(least["peak_mib"][phase] < most["peak_mib"][phase] for phase in most["peak_mib"])

    assert main(["plan", str(tiny_file), *SMALL_CLIP, "--budget", "4GiB"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("2 frames of 64x64, fp16")
    assert lines[2].split()[:3] == ["sample", f"{most['peak_mib']['sample']:.0f}", "MiB"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--budget", "1KiB"], "more than the budget"),
        (["--budget", "-4GiB"], "expected one argument"),
        (["--budget", "0MiB"], "no budget"),
        (["--budget", "lots"], "no budget"),
        (["--frames", "0"], "0 frames"),
        (["--width", "0"], "size"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_one_line(arguments: list[str], says: str, tiny_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny_file), *SMALL_CLIP, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert says in err


def test_what_was_planned_is_kept_in_the_users_cache_folder(tiny_file: Path, cache_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["plan", str(tiny_file), "--width", "64", "--height", "128", "--frames", "3"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert list(cache_folder.rglob("planning.json"))
    monkeypatch.setattr(planning, "_peak", lambda run: pytest.fail("traced again"))
    assert main(arguments) == 0
    assert capsys.readouterr().out == first


# inspect


def test_inspect_prints_json_of_the_engines_report(tiny_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_file), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == json.loads(json.dumps(asdict(inspect(tiny_file))))
    assert json.loads(out) | {"file": 0, "parameters": 0} == {
        "file": 0,
        "family": "Stable Video Diffusion",
        "version": "svd",
        "layout": "single file",
        "precision": "fp32",
        "parameters": 0,
        "problems": [],
    }


def test_inspect_prints_text_for_people(tiny_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_file)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    count = inspect(tiny_file).parameters["unet"]
    assert out.splitlines()[0] == "tiny_svd.safetensors: Stable Video Diffusion"
    assert any(line.split() == ["unet", f"{count:,}", "parameters"] for line in out.splitlines())


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_inspect_of_a_bad_file_reports_it_and_exits_with_2(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"lora_unet_down_blocks_0.lora_up.weight": torch.zeros(2)}, path)
    assert main(["inspect", str(path), *flags]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "not a Stable Video Diffusion checkpoint but a LoRA" in err
    if flags:
        report = json.loads(out)
        assert report["family"] == "a LoRA"
        assert report["problems"][0] in err
    else:
        assert out.splitlines() == ["lora.safetensors: a LoRA"]


# render


def test_render_writes_the_engines_own_clip(tiny_file: Path, image: Path, expected: tuple[Tensor, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "clip.safetensors"
    assert main(["render", str(tiny_file), str(image), str(tmp_path / "clip"), *QUICK, "--save-latents", str(saved)]) == 0
    out, err = capsys.readouterr()
    latents, frames = expected
    stored = load_file(saved)
    assert stored.keys() == {"samples"}
    assert torch.equal(stored["samples"], latents)
    assert out.splitlines() == [str(tmp_path / "clip")]
    pictures = sorted((tmp_path / "clip").glob("*.png"))
    shown = torch.stack([torch.from_numpy(np.array(Image.open(picture))) for picture in pictures])
    assert torch.equal(shown, (frames * 255).round().byte())
    assert [line.split("[")[0].strip() for line in err.splitlines()] == ["encode", "sample", "decode", "write"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "clip.safetensors"]


def test_render_writes_a_video_of_the_asked_rate(tiny_file: Path, image: Path, expected: tuple[Tensor, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "clip.mp4"
    assert main(["render", str(tiny_file), str(image), str(out), *QUICK]) == 0
    assert capsys.readouterr().out.splitlines() == [str(out)]
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 6
        shown = [torch.from_numpy(frame.to_ndarray(format="rgb24")).float() / 255 for frame in container.decode(stream)]
    assert len(shown) == FRAMES
    assert relative(torch.stack(shown), expected[1]) < 0.25  # colour at half resolution, on noise


def test_every_option_reaches_the_engine(tiny_file: Path, image: Path, tmp_path: Path) -> None:
    options = ["--resize", "pad", "--solver", "heun", "--schedule", "exponential", "--guidance", "1.5", "2.5", "--guidance-mode", "triangular", "--fps", "9"]
    options += ["--motion-bucket", "40", "--augmentation", "0.3", "--augmentation-seed", "4", "--seed", "5", "--precision", "bf16"]
    saved = tmp_path / "latents.safetensors"
    assert main(["render", str(tiny_file), str(image), str(tmp_path / "clip"), *QUICK, *options, "--save-latents", str(saved)]) == 0
    model = open_svd(tiny_file, "bf16")
    pixels = torch.from_numpy(np.array(Image.open(image))).float() / 255
    conditioning = condition(model, pixels, WIDTH, HEIGHT, device=CPU, resize="pad", fps=9, motion_bucket=40, augmentation=0.3, augmentation_seed=4)
    guidance = {"guidance": (1.5, 2.5), "guidance_mode": "triangular"}
    latents = sample_clip(model, conditioning, frames=FRAMES, steps=2, device=CPU, solver="heun", schedule="exponential", seed=5, **guidance)  # type: ignore[arg-type]
    assert torch.equal(load_file(saved)["samples"], latents)


def test_a_size_that_does_not_fit_is_rounded_and_said(tiny_file: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "latents.safetensors"
    assert main(["render", str(tiny_file), str(image), str(tmp_path / "clip"), *QUICK, "--width", "50", "--save-latents", str(saved)]) == 0
    assert "Size rounded from 50x32 to 48x32" in capsys.readouterr().err
    assert load_file(saved)["samples"].shape == (FRAMES, 4, 4, 6)


# Mistakes


def mistakes(tiny_file: Path, image: Path, folder: Path) -> dict[str, tuple[list[str], str]]:
    text, full = folder / "text.txt", folder / "full"
    text.write_text("no image", encoding="utf-8")
    full.mkdir()
    (full / "kept.txt").touch()
    out, checkpoint, picture = str(folder / "clip.mp4"), str(tiny_file), str(image)

    def render(*flags: str, checkpoint: str = checkpoint, image: str = picture, out: str = out) -> list[str]:
        return ["render", checkpoint, image, out, *QUICK, *flags]

    return {
        "no command": ([], "required"),
        "unknown command": (["dance"], "invalid choice"),
        "missing argument": (["render", checkpoint], "required"),
        "unknown option": (render("--speed", "3"), "unrecognized arguments"),
        "a word for a number": (render("--steps", "many"), "invalid int value"),
        "unknown solver": (render("--solver", "magic"), "invalid choice"),
        "no checkpoint": (render(checkpoint=str(folder / "none.safetensors")), "There is no file none.safetensors"),
        "checkpoint that is none": (render(checkpoint=str(text)), "text.txt is not a safetensors file"),
        "inspect of nothing": (["inspect", str(folder / "none.safetensors")], "There is no file"),
        "no image": (render(image=str(folder / "none.png")), "There is no image"),
        "image that is none": (render(image=str(text)), "text.txt is not an image"),
        "image that is a folder": (render(image=str(folder)), "is not an image"),
        "no steps": (render("--steps", "0"), "0 steps cannot be taken"),
        "no frames": (render("--frames", "0"), "A clip of 0 frames"),
        "10,000 frames": (render("--frames", "10000"), "A clip of 10000 frames"),
        "no width": (render("--width", "0"), "The size 0x32 cannot be made"),
        "huge height": (render("--height", "100000"), "The size 48x100000 cannot be made"),
        "no fps": (render("--fps", "0"), "0 fps"),
        "motion bucket out of range": (render("--motion-bucket", "5000"), "motion bucket 5000"),
        "negative augmentation": (render("--augmentation", "-1"), "augmentation -1.0"),
        "augmentation that is no number": (render("--augmentation", "nan"), "augmentation nan"),
        "guidance that is no number": (render("--guidance", "1", "nan"), "guidance"),
        "negative seed": (render("--seed", "-1"), "The seed -1"),
        "huge seed": (render("--seed", str(2**64)), "The seed"),
        "unknown device": (render("--device", "abacus"), "The device abacus"),
        "unknown ending": (render(out=str(folder / "clip.doc")), "an ending that no format here has"),
        "full folder": (render(out=str(full)), "is there already"),
        "no folder for the clip": (render(out=str(folder / "nowhere" / "clip.mp4")), "does not exist"),
        "no folder for the latents": (render("--save-latents", str(folder / "nowhere" / "x.safetensors")), "does not exist"),
        "a folder in the latents' place": (render("--save-latents", str(full)), "full"),
    }


@pytest.mark.parametrize(
    "mistake",
    [
        "no command",
        "unknown command",
        "missing argument",
        "unknown option",
        "a word for a number",
        "unknown solver",
        "no checkpoint",
        "checkpoint that is none",
        "inspect of nothing",
        "no image",
        "image that is none",
        "image that is a folder",
        "no steps",
        "no frames",
        "10,000 frames",
        "no width",
        "huge height",
        "no fps",
        "motion bucket out of range",
        "negative augmentation",
        "augmentation that is no number",
        "guidance that is no number",
        "negative seed",
        "huge seed",
        "unknown device",
        "unknown ending",
        "full folder",
        "no folder for the clip",
        "no folder for the latents",
        "a folder in the latents' place",
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(mistake: str, tiny_file: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = mistakes(tiny_file, image, tmp_path)[mistake]
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith(("encode", "sample"))]
    assert len(lines) == 1
    assert lines[0].startswith("lean_video: ")
    assert message in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("budget", ["min", "6MiB", "max"])
def test_a_render_keeps_its_budget_and_tells_what_it_held(
    budget: str, tiny_file: Path, image: Path, tmp_path: Path, expected: tuple[Tensor, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "latents.safetensors"
    assert main(["render", str(tiny_file), str(image), str(tmp_path / "clip.mp4"), *QUICK, "--budget", budget, "--save-latents", str(saved)]) == 0
    assert relative(load_file(saved)["samples"], expected[0]) < 1e-5
    told = re.findall(r"(\w+) +predicted +([\d.]+) MiB, measured +([\d.]+) MiB", capsys.readouterr().err)
    assert [phase for phase, *_ in told] == ["encode", "sample", "decode"]
    for _, predicted, measured in told:
        assert float(measured) == pytest.approx(float(predicted), rel=0.05, abs=0.1)
        if budget == "6MiB":
            assert float(measured) <= 6


def test_a_render_within_too_small_a_budget_is_refused_before_anything_is_made(tiny_file: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", str(tiny_file), str(image), str(tmp_path / "clip.mp4"), *QUICK, "--budget", "1KiB"]) == 2
    assert "more than the budget of 0 MiB" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_ends_quietly_with_130(tiny_file: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:

    def interrupt(*args: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(render, "sample_clip", interrupt)
    assert main(["render", str(tiny_file), str(image), str(tmp_path / "clip.mp4"), *QUICK]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_option_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["render", "--help"])
    assert done.value.code == 0
    assert "--augmentation-seed" in capsys.readouterr().out


# As a program


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "lean_video", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_the_program_renders_with_progress_on_stderr_only(tiny_file: Path, image: Path, tmp_path: Path) -> None:
    done = run("render", str(tiny_file), str(image), str(tmp_path / "clip.mp4"), *QUICK)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'clip.mp4'}\n")
    assert "sample" in done.stderr
    assert (tmp_path / "clip.mp4").stat().st_size > 0


def test_the_program_ends_a_mistake_with_one_line_and_no_traceback(tmp_path: Path) -> None:
    done = run("inspect", str(tmp_path / "none.safetensors"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
