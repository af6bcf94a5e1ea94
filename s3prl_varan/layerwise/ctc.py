"""CTC over many layers at once: the loss, what it needs, and one transcript out of L layers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from s3prl_varan.layerwise.objective import aggregate_log_probs, layer_log_posterior


def ctc_frames_needed(labels: Tensor, target_lengths: Tensor) -> Tensor:
    """Frames a CTC path needs at least: labels [B, S] padded, lengths [B] -> [B].

    One per symbol, and one more, a blank, between equal neighbours.
    """
    within = torch.arange(1, labels.size(1), device=labels.device) < target_lengths[:, None]
    return target_lengths + ((labels[:, 1:] == labels[:, :-1]) & within).sum(dim=1)


def layerwise_ctc(
    log_probs: Tensor,
    labels: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    *,
    blank: int,
    zero_infinity: bool,
) -> Tensor:
    """CTC loss of every layer, in one call over B x L sequences.

    log_probs [B, L, T, V], labels [B, S] padded, lengths [B] each -> [B, L] in nats.
    """
    batch, layers, frames, symbols = log_probs.shape

    def repeat(tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(layers, dim=0).long()

    nll = F.ctc_loss(
        log_probs.permute(2, 0, 1, 3).reshape(frames, batch * layers, symbols),
        repeat(labels),
        repeat(input_lengths),
        repeat(target_lengths),
        blank=blank,
        reduction="none",
        zero_infinity=zero_infinity,
    )
    return nll.view(batch, layers)


def select_sequence(
    layer_log_probs: Tensor, posterior_logits: Tensor, lengths: Tensor, blank: int
) -> Tensor:
    """The log-probabilities [B, T, V] of the source whose transcript wins, float32.

    layer_log_probs [B, L, T, V], posterior_logits [B, L], lengths [B] frames.

    The objective weighs the likelihoods of sequences, log p(y | x, l), but "geometric" and
    "mixture" average the layers frame by frame, and CTC heads that were trained apart put the same
    letter on different frames: what one says, the others call blank. Here each layer's greedy
    transcript, and that of either average, is a candidate y; the one with the largest
    sum_l q(l | x) log p(y | x, l) wins.
    """
    layers = layer_log_probs.float()
    averages = [
        aggregate_log_probs(layers, posterior_logits, how).log_softmax(dim=-1)
        for how in ("geometric", "mixture")
    ]
    sources = torch.stack([*layers.unbind(1), *averages], dim=1)  # [B, S, T, V]
    posterior = layer_log_posterior(posterior_logits).exp()
    lengths = lengths.to(layers.device)
    scores = []
    for source in sources.unbind(1):
        labels, sizes = greedy_labels(source, lengths, blank)
        nll = layerwise_ctc(
            layers, labels, lengths, sizes, blank=blank, zero_infinity=False
        )  # [B, L]
        scores.append(-(posterior * nll).sum(dim=1))
    best = torch.stack(scores, dim=1).argmax(dim=1)
    return sources[torch.arange(len(best), device=best.device), best]


def greedy_labels(log_probs: Tensor, lengths: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """Best unit of each frame, repeats merged, blanks dropped.

    log_probs [B, T, V], lengths [B] frames -> units [B, U] padded, counts [B].
    """
    best = log_probs.argmax(dim=-1)
    keep = best != blank
    keep[:, 1:] &= best[:, 1:] != best[:, :-1]
    keep &= torch.arange(best.size(1), device=best.device) < lengths[:, None]
    counts = keep.sum(dim=1)
    order = (~keep).int().argsort(dim=1, stable=True)  # the kept ones first, in their order
    return best.gather(1, order)[:, : max(1, int(counts.max()))], counts
