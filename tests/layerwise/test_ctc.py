"""`prediction: sequence`: the transcript of the largest weighted CTC likelihood; a plain loop."""

import pytest
import torch
import torch.nn.functional as F

from s3prl_varan.layerwise.ctc import (
    ctc_frames_needed,
    greedy_labels,
    layerwise_ctc,
    select_sequence,
)
from s3prl_varan.layerwise.objective import aggregate_log_probs

BLANK, A, B = 0, 1, 2


def spikes(units: list[int], sharpness: float = 4.0) -> torch.Tensor:
    """[T, 3] log-probabilities that favour `units[t]` at frame t."""
    return (sharpness * F.one_hot(torch.tensor(units), 3)).float().log_softmax(dim=-1)


def test_heads_that_agree_but_not_on_the_frame_keep_their_letter() -> None:
    """Frame by frame blank outvotes the letter at every frame; as a sequence both layers say A."""
    layers = torch.stack(
        [spikes([BLANK, A, BLANK, BLANK, BLANK]), spikes([BLANK, BLANK, BLANK, A, BLANK])]
    )[None]
    layers = layers + torch.tensor([0.2, 0.0, 0.0])  # a little more blank everywhere, as CTC has it
    layers, logits, lengths = layers.log_softmax(dim=-1), torch.zeros(1, 2), torch.tensor([5])
    for how in ("geometric", "mixture"):
        _, count = greedy_labels(aggregate_log_probs(layers, logits, how), lengths, BLANK)
        assert count.tolist() == [0]
    labels, count = greedy_labels(select_sequence(layers, logits, lengths, BLANK), lengths, BLANK)
    assert count.tolist() == [1] and labels[0, 0] == A


def test_the_posterior_decides_between_layers_that_disagree() -> None:
    layers = torch.stack([spikes([A, A, BLANK]), spikes([B, BLANK, BLANK])])[None]
    for logits, expected in ((torch.tensor([[3.0, 0.0]]), A), (torch.tensor([[0.0, 3.0]]), B)):
        labels, _ = greedy_labels(
            select_sequence(layers, logits, torch.tensor([3]), BLANK), torch.tensor([3]), BLANK
        )
        assert labels[0, 0] == expected


def test_equals_a_loop_over_utterances_layers_and_candidates() -> None:
    torch.manual_seed(0)
    batch, layers, frames, symbols = 5, 3, 11, 6
    log_probs = (3 * torch.randn(batch, layers, frames, symbols)).log_softmax(dim=-1)
    logits, lengths = torch.randn(batch, layers), torch.tensor([11, 7, 1, 9, 4])
    chosen = select_sequence(log_probs, logits, lengths, BLANK)
    for index, length in enumerate(lengths.tolist()):
        own, posterior = log_probs[index, :, :length], logits[index].softmax(dim=-1)
        sources = [
            *own,
            *(
                aggregate_log_probs(own[None], logits[index, None], how)[0]
                for how in ("geometric", "mixture")
            ),
        ]
        scores = []
        for source in sources:
            units = [
                int(unit)
                for unit in torch.unique_consecutive(source.argmax(dim=-1))
                if unit != BLANK
            ]
            nll = [
                F.ctc_loss(
                    layer[:, None],
                    torch.tensor([units]).long(),
                    [length],
                    [len(units)],
                    blank=BLANK,
                    reduction="sum",
                )
                for layer in own
            ]
            scores.append(-(posterior * torch.stack(nll)).sum())
        best = sources[int(torch.stack(scores).argmax())].log_softmax(dim=-1)
        torch.testing.assert_close(chosen[index, :length], best)


def test_greedy_labels_merges_repeats_and_ignores_padding() -> None:
    units = torch.tensor([[A, A, BLANK, A, B, B], [BLANK, BLANK, B, A, A, A]])
    labels, counts = greedy_labels(F.one_hot(units, 3).float(), torch.tensor([6, 3]), BLANK)
    assert counts.tolist() == [3, 1]
    assert labels[0].tolist() == [A, A, B] and labels[1, 0] == B


@pytest.mark.parametrize("blank", [0, 2])
def test_the_loss_of_all_layers_at_once_equals_a_loop(blank) -> None:
    torch.manual_seed(0)
    batch, layers, frames, symbols = 3, 4, 9, 5
    log_probs = torch.randn(batch, layers, frames, symbols).log_softmax(dim=-1)
    labels = torch.tensor([[1, 3, 3], [4, 1, 0], [3, 0, 0]])
    lengths, sizes = torch.tensor([9, 6, 2]), torch.tensor([3, 2, 1])
    found = layerwise_ctc(log_probs, labels, lengths, sizes, blank=blank, zero_infinity=True)
    for index in range(batch):
        for layer in range(layers):
            expected = F.ctc_loss(
                log_probs[index, layer, : lengths[index], None],
                labels[index : index + 1, : sizes[index]],
                lengths[index : index + 1],
                sizes[index : index + 1],
                blank=blank,
                reduction="sum",
            )
            torch.testing.assert_close(found[index, layer], expected)


def test_frames_that_a_target_needs() -> None:
    labels = torch.tensor([[4, 4, 5, 2], [4, 5, 2, 2], [4, 4, 4, 4]])
    assert ctc_frames_needed(labels, torch.tensor([4, 3, 4])).tolist() == [5, 3, 7]
