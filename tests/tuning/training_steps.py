"""What the tests of tuning share: hidden states, a loss of them, optimizer steps."""

import torch
from tiny_families import noise

from s3prl_varan.tuning.lora import (
    LoraDelta,
    check_lora_gradients,
)


def hidden_states(upstream, wavs=None):
    with torch.no_grad():
        return upstream(wavs or noise(8000, 6000)).layers


def loss_of(upstream, wavs=None):
    """Every hidden state against its own fixed target."""
    layers = upstream(wavs or noise(8000, 6000)).layers
    generator = torch.Generator().manual_seed(2)
    return sum(
        (layer.float() - torch.randn(layer.shape, generator=generator)).square().mean()
        for layer in layers
    )


def steps(upstream, count=2, lr=0.01):
    """Optimizer steps on what trains; the gradient check runs after the first backward."""
    trainable = [parameter for parameter in upstream.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=lr)
    for step in range(count):
        optimizer.zero_grad()
        loss_of(upstream).backward()
        if step == 0 and any(isinstance(module, LoraDelta) for module in upstream.modules()):
            assert check_lora_gradients(upstream) == []
        optimizer.step()


def snapshot(upstream):
    return {
        name: value.clone()
        for name, value in upstream.state_dict().items()
        if isinstance(value, torch.Tensor)
    }
