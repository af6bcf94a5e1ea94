"""Adapting experts: s3prl's own heads are kept where L = 1, several outputs share one KL, what does not fit is refused."""

import types
from collections import defaultdict

import pytest
import torch
from torch import nn

from s3prl_varan import UserError
from s3prl_varan.config.options import HeadOptions, VaranOptions
from s3prl_varan.features.stack import LayerFeatures
from s3prl_varan.layerwise.downstream import adapt_expert, softmax_probs

DIM, CLASSES = 12, 6


class EmotionLike(nn.Module):
    """The shape of s3prl's classification experts."""

    slots = ((0, CLASSES),)

    def __init__(self, model=None):
        super().__init__()
        from s3prl.downstream.model import UtteranceLevel

        self.projector = nn.Linear(DIM, 8)
        self.model = model or UtteranceLevel(8, CLASSES)
        self.objective = nn.CrossEntropyLoss()

    def forward(self, split, features, labels, records):
        lengths = torch.IntTensor([len(feature) for feature in features])
        padded = nn.utils.rnn.pad_sequence(features, batch_first=True)
        predicted, _ = self.model(self.projector(padded), lengths)
        records["predicted"].append(predicted)
        return sum(
            self.objective(predicted[:, start:end], label)
            for (start, end), label in zip(self.slots, labels, strict=True)
        )


class SeveralSlots(EmotionLike):
    """As in fluent_commands: slices of one output, a label for each."""

    slots = ((0, 2), (2, 6))


def features(layers, frames=5, batch=3):
    prior = torch.full((layers,), 1 / layers)
    lengths = torch.tensor([frames, 2, 1][:batch])
    logits = torch.randn(batch, layers)
    return LayerFeatures(
        torch.randn(batch, layers, frames, DIM), lengths, logits, prior, logits.softmax(-1)
    )


@pytest.mark.parametrize("head", ["expert", "linear"])
def test_one_layer_is_the_experts_own_head(head):
    torch.manual_seed(0)
    plain = EmotionLike()
    adapted = adapt_expert("emotion", EmotionLike(), DIM, 1, HeadOptions(head=head, head_dim=8))
    heads = adapted.expert.model.heads
    heads.projector.weight.data, heads.projector.bias.data = (
        plain.projector.weight.data[None],
        plain.projector.bias.data[None],
    )
    last = plain.model.post_net.linear
    heads.classifier.weight.data, heads.classifier.bias.data = (
        last.weight.data[None],
        last.bias.data[None],
    )
    inputs, labels = features(1), [torch.tensor([0, 3, 5])]
    sequences = [inputs.hidden[i, 0, :n] for i, n in enumerate(inputs.lengths)]
    theirs = plain("train", sequences, labels, defaultdict(list))
    ours = adapted("train", inputs, (labels,), defaultdict(list))
    torch.testing.assert_close(ours.loss, theirs)
    torch.testing.assert_close(ours.nll, theirs)
    assert ours.kl == 0


def test_slots_sum_their_losses_and_pay_the_kl_once():
    options = VaranOptions(kl_beta=0.5)
    adapted = adapt_expert("fluent_commands", SeveralSlots(), DIM, 4, options)
    inputs, labels = features(4), [torch.tensor([0, 1, 0]), torch.tensor([3, 0, 2])]
    result = adapted("train", inputs, (labels,), defaultdict(list))
    logits, _ = adapted.expert.model.heads(inputs.hidden, inputs.lengths)
    log_q = inputs.posterior_logits.log_softmax(-1)
    expected = 0.0
    for (start, end), label in zip(SeveralSlots.slots, labels, strict=True):
        log_probs = logits[..., start:end].log_softmax(-1)
        nll = -log_probs.gather(-1, label[:, None, None].expand(-1, 4, 1)).squeeze(-1)
        expected = expected + (log_q.exp() * nll).sum(-1).mean()
    kl = (log_q.exp() * (log_q - inputs.prior.log())).sum(-1).mean()
    torch.testing.assert_close(result.nll, expected)
    torch.testing.assert_close(result.kl, kl)
    torch.testing.assert_close(result.loss, expected + 0.5 * kl)


def test_prediction_without_labels_is_the_training_prediction():
    adapted = adapt_expert("emotion", EmotionLike(), DIM, 4, VaranOptions()).eval()
    inputs, records = features(4), defaultdict(list)
    adapted("test", inputs, ([torch.tensor([0, 1, 2])],), records)
    torch.testing.assert_close(adapted.predict(inputs).log_probs, records["predicted"][0])
    torch.testing.assert_close(softmax_probs(adapted.predict(inputs)).sum(-1), torch.ones(3))


def test_pooled_features_give_what_all_frames_give():
    from s3prl_varan.features.pooling import masked_mean

    adapted = adapt_expert("emotion", EmotionLike(), DIM, 4, VaranOptions()).eval()
    assert adapted.pooled
    inputs = features(4)
    mean = masked_mean(inputs.hidden, inputs.lengths)[:, :, None]
    pooled = LayerFeatures(
        mean,
        torch.ones(3, dtype=torch.long),
        inputs.posterior_logits,
        inputs.prior,
        inputs.layer_weights,
    )
    torch.testing.assert_close(adapted.predict(pooled).log_probs, adapted.predict(inputs).log_probs)


def test_what_cannot_be_adapted_is_refused():
    expert = EmotionLike()
    expert.objective = nn.MSELoss()
    with pytest.raises(
        UserError,
        match="'mine' cannot be adapted: its expert has no projector -> model -> objective",
    ):
        adapt_expert("mine", expert, DIM, 2, VaranOptions())
    with pytest.raises(UserError, match="cannot be adapted"):
        adapt_expert("mine", types.SimpleNamespace(projector=None), DIM, 2, VaranOptions())
    from s3prl.downstream.emotion.model import DeepModel

    deep = DeepModel(
        8, CLASSES, "CNNSelfAttention", 5, hidden_dim=4, kernel_size=5, padding=2, dropout=0.1
    )
    with pytest.raises(UserError, match="head_dropout applies to linear heads"):
        adapt_expert("emotion", EmotionLike(deep), DIM, 2, VaranOptions(head_dropout=0.1))
