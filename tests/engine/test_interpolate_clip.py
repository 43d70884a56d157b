"""Clips with frames between their frames: what passes, what is made, and what happens when something runs out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lean_video.errors import LeanVideoError
from lean_video.interpolation.clip import Handling, Report, interpolate_clip, interpolate_stream, one_between
from lean_video.interpolation.cost import choose_batch, peak_bytes
from lean_video.interpolation.flow import OpticalFlow
from lean_video.interpolation.interpolator import Interpolator, Prepared, as_batch
from lean_video.interpolation.rife import Rife, load
from lean_video.interpolation.scenes import CUT_THRESHOLD, change, look, repeats
from lean_video.interpolation.timeline import AtRate, Between
from tests.engine.test_interpolation import texture

PLAIN = Handling(at_cuts="ignore", repeats=False)


@dataclass(frozen=True)
class Blend(Interpolator):
    """The mix of both frames, so that every pixel of a result is known. `refuse` is asked before each batch."""

    refuse: Callable[[int], bool] = lambda size: False

    @property
    def name(self) -> str:
        return "blend"

    def prepare(self, frames_B3HW: Tensor) -> Prepared:
        x = as_batch(frames_B3HW)
        return Prepared(x, (x.shape[-2], x.shape[-1]))

    def _between(self, a: Prepared, b: Prepared, times: Sequence[float]) -> Tensor:
        if self.refuse(max(len(a), len(times))):
            raise torch.OutOfMemoryError("out of memory")
        return torch.lerp(a.x_BCHW, b.x_BCHW, torch.tensor(times).view(-1, 1, 1, 1))


def clip(frames: int, height: int = 20, width: int = 28, channels: int = 3) -> Tensor:
    return torch.rand(frames, height, width, channels, generator=torch.Generator().manual_seed(0))


def shot(frames: int, seed: int, height: int = 96, width: int = 128) -> Tensor:
    """A texture that moves two pixels a frame, [T,H,W,3]."""
    scene = texture(height, width + 2 * frames, seed)
    return torch.stack([scene[..., 2 * i : 2 * i + width] for i in range(frames)]).permute(0, 2, 3, 1).contiguous()


def stream(frames_THWC: Tensor, fps: Fraction = Fraction(1)) -> list[tuple[Fraction, Tensor]]:
    return [(i / fps, frame) for i, frame in enumerate(frames_THWC)]


# What passes and what is made


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_each_frame_is_the_clips_own_or_lies_between(channels: int, batch: int) -> None:
    given = clip(5, channels=channels)
    result, _ = interpolate_clip(given, Blend(), Between(3), handling=PLAIN, batch=batch)
    assert torch.equal(result[::4], given)
    for k in (1, 2, 3):
        assert torch.allclose(result[k::4], torch.lerp(given[:-1], given[1:], k / 4), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_originals_pass_bit_for_bit_also_out_of_range(dtype: torch.dtype) -> None:
    given = (clip(3) * 3 - 1).to(dtype)
    result, _ = interpolate_clip(given, OpticalFlow(), Between(1), handling=PLAIN)
    assert result.dtype == dtype
    assert torch.equal(result[::2], given)
    assert result[1::2].min() >= 0
    assert result[1::2].max() <= 1


def test_a_real_network_makes_the_same_frames_in_any_batch(models: Path) -> None:
    interpolator = load(models / "rife-4.6.safetensors")
    given = shot(4, 0)
    one, _ = interpolate_clip(given, interpolator, AtRate(Fraction(5, 2)), handling=PLAIN)
    many, _ = interpolate_clip(given, interpolator, AtRate(Fraction(5, 2)), handling=PLAIN, batch=8)
    assert torch.allclose(one, many, atol=1e-4)
    between = interpolator.between(given[0].permute(2, 0, 1), given[1].permute(2, 0, 1), [0.4])[0].permute(1, 2, 0)
    assert torch.allclose(one[1], between, atol=1e-4)


def test_a_loop_goes_back_to_its_first_frame() -> None:
    given = clip(3)
    result, _ = interpolate_clip(given, Blend(), Between(1), closed=True, handling=PLAIN)
    assert len(result) == 6
    assert torch.allclose(result[-1], torch.lerp(given[2], given[0], 0.5))


def test_a_stream_is_the_clip() -> None:
    given = clip(7)
    whole, _ = interpolate_clip(given, Blend(), AtRate(Fraction(13, 5)), handling=PLAIN)
    assert torch.equal(torch.stack(list(interpolate_stream(stream(given), Blend(), AtRate(Fraction(13, 5)), fps=Fraction(1), handling=PLAIN))), whole)


def test_a_stream_of_bytes_passes_them_and_makes_floats() -> None:
    given = (clip(3) * 255).byte()
    result = list(interpolate_stream(stream(given), Blend(), Between(1), fps=Fraction(1), handling=PLAIN))
    assert torch.equal(torch.stack(result[::2]), given)
    assert torch.allclose(result[1], (given[0].float() + given[1]) / 510, atol=1e-6)


def test_frames_of_variable_rate_move_at_their_own_times() -> None:
    given = clip(4)
    times = [Fraction(0), Fraction(1), Fraction(3, 2), Fraction(3)]
    result = list(interpolate_stream(zip(times, given, strict=True), Blend(), AtRate(Fraction(2)), fps=Fraction(1), handling=PLAIN))
    assert [round(float(frame[0, 0, 0]), 5) for frame in result] == [
        round(float(value), 5)
        for value in (
            given[0, 0, 0, 0],
            (given[0, 0, 0, 0] + given[1, 0, 0, 0]) / 2,
            given[1, 0, 0, 0],
            given[2, 0, 0, 0],
            torch.lerp(given[2, 0, 0, 0], given[3, 0, 0, 0], 1 / 3),
            torch.lerp(given[2, 0, 0, 0], given[3, 0, 0, 0], 2 / 3),
            given[3, 0, 0, 0],
        )
    ]


def test_a_picture_that_a_video_of_variable_rate_shows_for_long_stands_still() -> None:
    given = clip(2)
    result = list(interpolate_stream(zip([Fraction(0), Fraction(100)], given, strict=True), Blend(), AtRate(Fraction(2)), fps=Fraction(1), handling=PLAIN))
    assert len(result) == 201
    assert all(torch.equal(frame, given[0]) for frame in result[:199])
    assert torch.allclose(result[199], torch.lerp(given[0], given[1], 0.5))


def test_a_stream_holds_no_more_than_a_run_of_repeats_and_a_batch() -> None:
    alive: set[int] = set()
    most = 0

    class Counted(torch.Tensor):
        def __del__(self) -> None:
            alive.discard(id(self))

    def frames() -> object:
        nonlocal most
        for i in range(60):
            frame = torch.rand(64, 64, 3).as_subclass(Counted)
            alive.add(id(frame))
            most = max(most, len(alive))
            yield Fraction(i), frame

    for _ in interpolate_stream(frames(), Blend(), Between(1), fps=Fraction(1), batch=4):  # type: ignore[arg-type]
        pass
    assert most < 16


@pytest.mark.parametrize("time", [0, 0.25, 1])
def test_one_picture_between_two(time: float) -> None:
    a, b = clip(2, channels=4)
    assert torch.allclose(one_between(a, b, time, Blend()), torch.lerp(a, b, time), atol=1e-6)


# Cuts and repeats


def test_a_cut_is_found_and_motion_is_not_one() -> None:
    first, second = shot(4, 1), shot(4, 2)
    looks = [look(frame) for frame in (*first, *second)]
    changes = [change(a, b) for a, b in itertools.pairwise(looks)]
    assert changes[3] > CUT_THRESHOLD
    assert max(changes[:3] + changes[4:]) < CUT_THRESHOLD


@pytest.mark.parametrize(("at_cuts", "expected"), [("hold", 15), ("cut", 14), ("ignore", 15)])
def test_nothing_is_morphed_across_a_cut(at_cuts: str, expected: int) -> None:
    given = torch.cat((shot(4, 1), shot(4, 2)))
    result, report = interpolate_clip(given, Blend(), Between(1), handling=Handling(at_cuts=at_cuts, repeats=False))  # type: ignore[arg-type]
    assert len(result) == expected
    assert [index for index, _ in report.cuts] == ([] if at_cuts == "ignore" else [3])
    after = result[7]
    assert torch.equal(after, {"hold": given[3], "cut": given[4], "ignore": torch.lerp(given[3], given[4], 0.5)}[at_cuts])


def test_a_film_keeps_its_length_at_a_cut_also_when_nothing_is_put_there() -> None:
    given = torch.cat((shot(4, 1), shot(4, 2)))
    result, _ = interpolate_clip(given, Blend(), AtRate(Fraction(2)), handling=Handling(at_cuts="cut"))
    assert len(result) == 15
    assert torch.equal(result[7], given[3])


def test_the_report_says_where_the_cuts_are_and_how_sure_it_is() -> None:
    handling = Handling()
    _, report = interpolate_clip(torch.cat((shot(4, 1), shot(4, 2)[:1], shot(4, 2))), Blend(), Between(1), handling=handling)
    cuts, repeated = report.lines(handling)
    assert cuts.startswith("1 cut, after frame 4 (")
    assert "above 0.65" in cuts
    assert repeated == "1 frame repeated the one before."
    assert Report(highest=0.2).lines(handling) == ["No cuts; change counts as a cut above 0.65 and was at most 0.20 elsewhere."]


def test_motion_is_spread_over_frames_that_repeat() -> None:
    smooth = shot(9, 3)
    twos = smooth[::2].repeat_interleave(2, 0)[:-1]
    noise = torch.rand(twos.shape, generator=torch.Generator().manual_seed(1)) / 255
    result, report = interpolate_clip(twos + noise, OpticalFlow(), AtRate(Fraction(1)), handling=Handling())
    assert report.repeats == 4
    assert len(result) == len(smooth)
    inside = (slice(1, -1), slice(8, -8), slice(8, -8))
    assert (result[inside] - smooth[inside]).abs().mean() < 0.3 * (twos[inside] - smooth[inside]).abs().mean()


def test_a_small_thing_that_moves_is_no_repeat() -> None:
    still = texture(270, 480, 5).permute(1, 2, 0)
    moved = still.clone()
    moved[100:116, 100:116] = 1 - moved[100:116, 100:116]
    assert repeats(look(still), look(still + 1 / 255))
    assert not repeats(look(still), look(moved))


def test_skipped_pairs_keep_their_frames() -> None:
    given = clip(4)
    result, _ = interpolate_clip(given, Blend(), Between(1), handling=Handling(at_cuts="ignore", repeats=False, skipped=frozenset({1})))
    assert len(result) == 6
    assert all(any(torch.equal(frame, shown) for shown in result) for frame in given)
    assert torch.equal(result[3], given[2])


# What runs out


@pytest.mark.parametrize("largest", [1, 2, 3, 5])
def test_a_batch_is_halved_until_it_fits_and_stays_so(largest: int) -> None:
    asked: list[int] = []
    said: list[str] = []

    def refuse(size: int) -> bool:
        asked.append(size)
        return size > largest

    given = clip(12)
    result, _ = interpolate_clip(given, Blend(refuse), Between(2), handling=PLAIN, batch=8, say=said.append)
    assert torch.allclose(result[1::3], torch.lerp(given[:-1], given[1:], 1 / 3), atol=1e-6)
    first_fit = next(i for i, size in enumerate(asked) if size <= largest)
    assert max(asked[first_fit:]) <= largest
    assert said[-1].startswith(f"Memory ran out: going on with {asked[first_fit]} frame")


def test_not_even_one_frame_fits_gets_a_sentence() -> None:
    with pytest.raises(LeanVideoError, match=r"Not even one frame of 28x20 can be made .*smaller frames\.$"):
        interpolate_clip(clip(3), Blend(lambda size: True), Between(1), handling=PLAIN, batch=4)


def test_a_result_that_does_not_fit_is_refused_before_anything_is_made() -> None:
    asked: list[int] = []
    given = clip(10)
    with pytest.raises(LeanVideoError, match="from file to file"):
        interpolate_clip(given, Blend(lambda size: bool(asked.append(size))), Between(9), handling=PLAIN, limit=50 * given[0].nbytes)
    assert asked == []
    result, _ = interpolate_clip(given, Blend(), Between(4), handling=PLAIN, limit=46 * given[0].nbytes)
    assert len(result) == 46


def test_progress_counts_the_result_and_a_cancel_ends_the_work() -> None:
    seen: list[tuple[int, int]] = []
    interpolate_clip(clip(4), Blend(), Between(1), handling=PLAIN, progress=lambda done, total: seen.append((done, total)))
    assert seen[-7:] == [(i + 1, 7) for i in range(7)]

    class Cancelled(Exception):
        pass

    made: list[int] = []

    def cancel(done: int, total: int) -> None:
        if done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        interpolate_clip(clip(9), Blend(lambda size: bool(made.append(size))), Between(1), handling=PLAIN, progress=cancel)
    assert len(made) <= 2


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_frames_get_a_sentence(count: int) -> None:
    with pytest.raises(LeanVideoError, match=r"give two frames or more\.$"):
        interpolate_clip(clip(count), Blend(), Between(1))
    with pytest.raises(LeanVideoError, match=r"give two .*or more\.$"):
        list(interpolate_stream(stream(clip(count)), Blend(), Between(1), fps=Fraction(1)))


def test_frames_of_different_sizes_get_a_sentence() -> None:
    frames = [(Fraction(0), clip(1)[0]), (Fraction(1), clip(1, height=22)[0])]
    with pytest.raises(LeanVideoError, match=r"Frame 1 is 28x20 and frame 2 is 28x22"):
        list(interpolate_stream(frames, Blend(), Between(1), fps=Fraction(1)))
    with pytest.raises(LeanVideoError, match=r"Frame 1 has 3 channels and frame 2 has 4"):
        one_between(clip(1)[0], clip(1, channels=4)[0], 0.5, Blend())


@pytest.mark.parametrize(
    ("wrong", "words"), [({"at_cuts": "morph"}, "choose one of hold, cut, ignore"), ({"threshold": 1.5}, "choose 0 to 1"), ({"threshold": float("nan")}, "choose 0 to 1")]
)
def test_handling_that_is_none_gets_a_sentence(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(LeanVideoError, match=words):
        Handling(**wrong)  # type: ignore[arg-type]


# What it takes


def test_the_batch_is_the_largest_that_fits(models: Path) -> None:
    interpolator = load(models / "rife-4.6.safetensors")
    assert isinstance(interpolator, Rife)
    peaks = {batch: peak_bytes(interpolator, 320, 192, batch) for batch in (1, 2, 4, 8)}
    assert list(peaks.values()) == sorted(peaks.values())
    asked: list[int] = []

    def room(free: int | None) -> Callable[[int], int | None]:
        return lambda size: (asked.append(size), free)[1]

    assert [choose_batch(interpolator, 320, 192, room(free)) for free in (peaks[8], peaks[8] - 1, peaks[2], 1000)] == [8, 4, 2, 1]
    assert asked == [peaks[8]] * 4
    assert choose_batch(interpolator, 320, 192, room(None)) == 1
    assert choose_batch(OpticalFlow(), 320, 192, room(peaks[8])) == 1
