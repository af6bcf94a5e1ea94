"""Bootstrap intervals over clips and speakers."""

import math

import numpy as np
import pytest

from s3prl_varan.intervals import clip_interval


def test_the_difference_is_that_of_two_ratios():
    # Word error rates: 3 of 10 words against 5 of 10, over clips of 2 and 8 words.
    ours, theirs = [(1, 2), (2, 8)], [(2, 2), (3, 8)]
    difference, low, high = clip_interval(ours, theirs, [None, None])
    assert difference == pytest.approx(-20)
    # Draws of two clips of two: only the first (-50), only the second (-12.5), or both.
    assert (low, high) == (pytest.approx(-50), pytest.approx(-12.5))


def test_speakers_are_drawn_whole():
    rng = np.random.default_rng(1)
    speakers = [f"s{index // 50}" for index in range(400)]
    gain = np.repeat(rng.normal(0, 0.3, 8), 50)  # what a speaker gains, all clips alike
    ours = [(float(rng.random() < 0.5 + each), 1.0) for each in gain]
    theirs = [(float(rng.random() < 0.5), 1.0) for _ in gain]
    same, low, high = clip_interval(ours, theirs, speakers)
    also, clip_low, clip_high = clip_interval(ours, theirs, [None] * 400)
    assert same == also and clip_low < also < clip_high
    assert high - low > 1.5 * (clip_high - clip_low)
    # One clip without a speaker: clips are drawn.
    assert clip_interval(ours, theirs, [None, *speakers[1:]])[1:] == (clip_low, clip_high)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng, covered = np.random.default_rng(2), 0
    for _ in range(200):
        ours, theirs = rng.random(80) < 0.7, rng.random(80) < 0.6
        pairs = [[(float(each), 1.0) for each in one] for one in (ours, theirs)]
        _, low, high = clip_interval(*pairs, [None] * 80, draws=500)
        covered += low <= 10 <= high
    assert 180 <= covered <= 198


def test_one_speaker_says_nothing_of_others():
    difference, low, high = clip_interval([(1, 1), (1, 1)], [(0, 1), (1, 1)], ["a", "a"])
    assert difference == 50 and math.isnan(low) and math.isnan(high)
