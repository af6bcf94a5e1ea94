"""SpecAugment: the same for all layers, inside the valid frames, with torch's bicubic warp."""

import pytest
import torch
import torch.nn.functional as F

from s3prl_varan.errors import UserError
from s3prl_varan.features.specaug import (
    SpecAugment,
    SpecAugOptions,
    draw_masks,
    draw_warps,
    warp_time,
)
from s3prl_varan.features.stack import LayerFeatures
from s3prl_varan.options import read_options

MASKS_ONLY = {"apply_time_warp": False}


def features(lengths=(60, 33, 5), layers=3, frames=60, dim=80):
    hidden = torch.rand(len(lengths), layers, frames, dim) + 1.0
    flat = torch.zeros(len(lengths), layers)
    return LayerFeatures(hidden, torch.tensor(lengths), flat, torch.ones(layers) / layers, flat)


def test_all_layers_lose_the_same_cells_and_padding_is_untouched():
    torch.manual_seed(0)
    given = features()
    hidden = SpecAugment(
        **MASKS_ONLY, time_mask_width_range=[1, 20], freq_mask_width_range=[1, 20]
    )(given).hidden
    gone = hidden == 0
    assert gone.any() and not gone.all()
    assert torch.equal(gone, gone[:, :1].expand_as(gone))
    time_only = SpecAugment(**MASKS_ONLY, apply_freq_mask=False, time_mask_width_range=[1, 40])(
        given
    ).hidden
    for row, length in enumerate(given.lengths):
        assert torch.equal(time_only[row, :, length:], given.hidden[row, :, length:])
    assert not torch.equal(gone[0], gone[1]), "utterances have masks of their own"


def test_given_features_are_not_written_to_and_other_fields_stay():
    given = features()
    before = given.hidden.clone()
    result = SpecAugment()(given)
    assert torch.equal(given.hidden, before)
    assert (
        result.lengths is given.lengths
        and result.prior is given.prior
        and result.layer_weights is given.layer_weights
    )


def test_same_seed_same_masks():
    given, augment, results = features(), SpecAugment(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augment(given).hidden)
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_warp_equals_interpolate_of_each_side():
    torch.manual_seed(0)
    hidden = torch.randn(3, 2, 40, 6)
    lengths, centers, targets = (
        torch.tensor([40, 30, 8]),
        torch.tensor([12, 20, 0]),
        torch.tensor([9, 24, 0]),
    )
    warped = warp_time(hidden, lengths, centers, targets)
    for row, (length, center, target) in enumerate(
        zip(lengths.tolist(), centers.tolist(), targets.tolist(), strict=True)
    ):
        expected = hidden[row, :, :length]
        if center:
            halves = (expected[:, :center], target), (expected[:, center:], length - target)
            sides = [
                F.interpolate(part[:, None], (size, 6), mode="bicubic", align_corners=False)[:, 0]
                for part, size in halves
            ]
            expected = torch.cat(sides, dim=1)
        torch.testing.assert_close(warped[row, :, :length], expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(warped[row, :, length:], hidden[row, :, length:])


def test_warp_equals_s3prls_for_the_same_draw(monkeypatch):
    from s3prl.downstream.specaug import TimeWarp

    drawn = iter([torch.tensor([17]), torch.tensor([19])])
    hidden = torch.randn(1, 1, 50, 4)
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: next(drawn))
    theirs, _ = TimeWarp(window=5)(hidden[:, 0].clone(), torch.tensor([50]))
    ours = warp_time(hidden, torch.tensor([50]), torch.tensor([17]), torch.tensor([20]))[:, 0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_warps_stay_within_the_window():
    torch.manual_seed(0)
    lengths = torch.tensor([11, 10, 50] * 200)
    _, centers, targets = draw_warps(lengths, 5)
    moved = lengths > 10
    assert ((centers - targets).abs() <= 5).all() and (centers[~moved] == targets[~moved]).all()
    assert (targets[moved] >= 1).all() and (targets < lengths).all()
    assert set((targets - centers)[lengths == 50].tolist()) == set(range(-4, 6))  # s3prl's range


def test_mask_widths_are_those_of_the_range():
    torch.manual_seed(0)
    sizes = torch.full((3000,), 100)
    widths = draw_masks(sizes, 100, torch.ones_like(sizes), 2, torch.full_like(sizes, 7)).sum(dim=1)
    assert set(widths.tolist()) == {2, 3, 4, 5, 6}
    assert not draw_masks(sizes, 100, torch.zeros_like(sizes), 2, torch.full_like(sizes, 7)).any()


def test_adaptive_masks_grow_with_the_utterance():
    torch.manual_seed(0)
    given = features(lengths=(1000, 100), frames=1000, dim=2)
    options = {"adaptive": True, "time_mask_width_range": [0, 40], "apply_freq_mask": False}
    counts = torch.zeros(2)
    for _ in range(50):
        counts += (SpecAugment(**MASKS_ONLY, **options)(given).hidden == 0)[:, 0, :, 0].sum(dim=1)
    assert counts[0] / 50 > 200  # 20 masks of 20 frames on average, some overlapping
    assert counts[1] / 50 < 4 * 4  # at most 4 masks of up to 3 frames


def test_gradients_pass_through_what_is_kept():
    given = features()
    given.hidden.requires_grad_(True)
    result = SpecAugment(**MASKS_ONLY)(given).hidden
    result.sum().backward()
    assert torch.equal(given.hidden.grad == 0, result == 0)


def test_bad_options_are_named():
    values = {
        "time_warp_windw": 3,
        "num_time_mask": "two",
        "time_warp_window": 0,
        "num_freq_mask": -1,
        "max_n_time_masks": -1,
    }
    problems: list[str] = []
    assert read_options(SpecAugOptions, values, "specaug", problems) is None
    assert "time_warp_windw: unknown key. Did you mean 'time_warp_window'?" in problems[0]
    expected = ["expected int >= 0, found 'two'", "expected int >= 1, found 0"]
    expected += ["num_freq_mask: expected int >= 0", "max_n_time_masks: expected int >= 0"]
    for problem, said in zip(problems[1:], expected, strict=True):
        assert said in problem
    with pytest.raises(UserError, match=r"time_mask_width_range: expected \[low, high\]"):
        SpecAugment(time_mask_width_range=[40, 0])
    with pytest.raises(UserError, match="leave the section out"):
        SpecAugment(apply_time_warp=False, apply_freq_mask=False, apply_time_mask=False)
