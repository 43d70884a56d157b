"""When the frames of an interpolated clip are, and what is said of a schedule that cannot be."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lean_video.errors import LeanVideoError
from lean_video.interpolation.timeline import (
    LONGEST_RUN,
    MAX_FACTOR,
    AtRate,
    Between,
    Gap,
    Kind,
    Moment,
    check_factor,
    check_rate,
    lay_out,
    parse_counts,
    parse_pairs,
    parse_times,
)

rates = st.fractions(min_value=Fraction(1, 2), max_value=120, max_denominator=1001)
kinds = st.lists(st.sampled_from(Kind), min_size=1, max_size=12)


def gaps_of(kinds: list[Kind], fps: Fraction = Fraction(1)) -> list[Gap]:
    return [Gap(i, i, i + 1, i / fps, (i + 1) / fps, kind) for i, kind in enumerate(kinds)]


def moving(frames: int, fps: Fraction = Fraction(1)) -> list[Gap]:
    return gaps_of([Kind.MOTION] * (frames - 1), fps)


def originals(moments: list[Moment]) -> list[int]:
    return [moment.left for moment in moments if moment.is_original]


@given(frames=st.integers(2, 30), count=st.integers(0, 9))
def test_so_many_between_each_pair(frames: int, count: int) -> None:
    moments = list(lay_out(moving(frames), Between(count)))
    assert len(moments) == (frames - 1) * (count + 1) + 1
    assert [moment.left + moment.time for moment in moments] == pytest.approx([k / (count + 1) for k in range(len(moments))])
    assert originals(moments) == list(range(frames))


def test_a_number_for_each_pair() -> None:
    moments = list(lay_out(moving(4), Between((1, 0, 3))))
    assert [moment.left + moment.time for moment in moments] == [0, 0.5, 1, 2, 2.25, 2.5, 2.75, 3]


@given(frames=st.integers(2, 12), count=st.integers(0, 5))
def test_a_loop_ends_one_step_before_its_first_frame(frames: int, count: int) -> None:
    back = Gap(frames - 1, frames - 1, 0, Fraction(frames - 1), Fraction(frames))
    moments = list(lay_out([*moving(frames), back], Between(count), closed=True))
    assert len(moments) == frames * (count + 1)
    assert all((moment.left, moment.right) == (frames - 1, 0) for moment in moments[-count:] if count)
    assert originals(moments) == list(range(frames))


@given(frames=st.integers(2, 20), fps=rates, rate=rates)
def test_at_a_rate_every_frame_lies_where_its_time_says(frames: int, fps: Fraction, rate: Fraction) -> None:
    moments = list(lay_out(moving(frames, fps), AtRate(rate)))
    places = [k * fps / rate for k in range(math.floor((frames - 1) * rate / fps) + 1)]
    assert [(moment.left, moment.time) for moment in moments] == [(math.floor(place), pytest.approx(float(place % 1))) for place in places]


@given(frames=st.integers(2, 12), fps=rates, factor=st.integers(2, 8))
def test_a_rate_that_is_a_multiple_is_so_many_between(frames: int, fps: Fraction, factor: int) -> None:
    assert list(lay_out(moving(frames, fps), AtRate(fps * factor))) == list(lay_out(moving(frames, fps), Between(factor - 1)))


@given(kinds=kinds, count=st.integers(0, 4))
def test_no_frame_of_the_clip_is_lost_whatever_is_between(kinds: list[Kind], count: int) -> None:
    moments = list(lay_out(gaps_of(kinds), Between(count)))
    shown = {moment.left for moment in moments if moment.is_original}
    within_runs = {i + 1 for i, kind in enumerate(kinds) if kind is Kind.REPEAT}
    assert set(range(len(kinds) + 1)) - within_runs <= shown


@given(kinds=kinds, fps=rates, rate=rates)
def test_a_film_has_its_length_whatever_is_between(kinds: list[Kind], fps: Fraction, rate: Fraction) -> None:
    moments = list(lay_out(gaps_of(kinds, fps), AtRate(rate)))
    assert len(moments) == math.floor(len(kinds) * rate / fps) + 1


@given(kinds=kinds, count=st.integers(0, 4))
def test_time_never_goes_back(kinds: list[Kind], count: int) -> None:
    moments = list(lay_out(gaps_of(kinds), Between(count)))
    places = [moment.left + moment.time * (moment.right - moment.left) for moment in moments]
    assert places == sorted(places)


def test_nothing_is_put_into_a_gap_that_is_skipped() -> None:
    moments = list(lay_out(gaps_of([Kind.MOTION, Kind.SKIP, Kind.MOTION]), Between(1)))
    assert [moment.left + moment.time for moment in moments] == [0, 0.5, 1, 2, 2.5, 3]


def test_a_held_frame_is_shown_until_the_next() -> None:
    moments = list(lay_out(gaps_of([Kind.MOTION, Kind.HOLD]), Between(2)))
    assert [(moment.left, moment.time) for moment in moments] == [(0, 0), (0, pytest.approx(1 / 3)), (0, pytest.approx(2 / 3)), (1, 0), (1, 0), (1, 0), (2, 0)]


def test_motion_is_spread_over_repeats() -> None:
    moments = list(lay_out(gaps_of([Kind.REPEAT, Kind.MOTION, Kind.MOTION]), Between(1)))
    assert [(moment.left, moment.right, moment.time) for moment in moments] == [(0, 2, 0), (0, 2, 0.25), (0, 2, 0.5), (0, 2, 0.75), (2, 3, 0), (2, 3, 0.5), (3, 3, 0)]


def test_what_stands_longer_than_a_run_stands_still() -> None:
    moments = list(lay_out(gaps_of([Kind.REPEAT] * (LONGEST_RUN + 2) + [Kind.MOTION]), Between(1)))
    assert all(moment.is_original for moment in moments[: 2 * (LONGEST_RUN + 2)])
    assert moments[-2].time == 0.5


def test_the_plan_reads_no_further_ahead_than_a_run_of_repeats() -> None:
    read = 0

    def watched() -> object:
        nonlocal read
        for gap in gaps_of([Kind.REPEAT, Kind.MOTION] * 50):
            read = gap.index
            yield gap

    for moment in lay_out(watched(), Between(1)):  # type: ignore[arg-type]
        assert read - moment.left <= LONGEST_RUN + 1


def test_a_schedule_is_read_with_commas_spaces_or_lines() -> None:
    assert parse_counts("3, 0\n7;2", 4) == (3, 0, 7, 2)
    assert parse_pairs("2, 5-8", 9) == frozenset({1, 4, 5, 6, 7})
    assert parse_pairs(" ", 9) == frozenset()
    assert parse_times("0, 0.5, 2.25", 3, Fraction(24), closed=False) == Between((11, 41))
    assert parse_times("0.5 1 2", 2, Fraction(10), closed=True) == Between((4, 9), lead=5)


def test_keyframes_lie_on_their_times() -> None:
    schedule = parse_times("0.25, 1, 1.5", 3, Fraction(8), closed=False)
    moments = list(lay_out(moving(3), schedule))
    assert [moments.index(next(m for m in moments if m.is_original and m.left == i)) for i in (1, 2)] == [8, 12]
    assert originals(moments)[:3] == [0, 0, 0]  # the first is held until its time has passed


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda: parse_counts("1, 2", 3), "has 2 numbers and the clip 3 pairs"),
        (lambda: parse_counts("1, x, 2", 3), "'x' is no number of frames"),
        (lambda: parse_counts("1, -2, 2", 3), "'-2' is no number of frames"),
        (lambda: parse_pairs("0", 3), "There is no pair 0"),
        (lambda: parse_pairs("3-2", 3), "There is no pair 3-2"),
        (lambda: parse_pairs("4", 3), "the pairs 1 to 3"),
        (lambda: parse_times("0, 1", 3, Fraction(24), closed=False), "has 2 times and should have 3"),
        (lambda: parse_times("0, 1, 2", 3, Fraction(24), closed=True), "when the first is seen again"),
        (lambda: parse_times("0, 1, 1.01", 3, Fraction(24), closed=False), "must grow by a frame"),
        (lambda: parse_times("0, soon", 2, Fraction(24), closed=False), "'soon' in the schedule is no time"),
        (lambda: parse_times("0, 1/0", 2, Fraction(24), closed=False), "is no time"),
        (lambda: parse_times("0, 99999999", 2, Fraction(24), closed=False), "out of range"),
        (lambda: parse_times("0, 1e999999999", 2, Fraction(24), closed=False), "is no time"),
        (lambda: check_factor(1), "choose 2 to 64"),
        (lambda: check_factor(MAX_FACTOR + 1), "choose 2 to 64"),
        (lambda: check_rate(Fraction(6), Fraction(6 * MAX_FACTOR + 1)), "at most 64 times"),
        (lambda: check_rate(Fraction(6), Fraction(0)), "more than 0"),
    ],
)
def test_what_a_schedule_cannot_be_gets_a_sentence(bad: Callable[[], object], words: str) -> None:
    with pytest.raises(LeanVideoError) as caught:
        bad()
    assert words in str(caught.value)
    assert str(caught.value).endswith(".")
