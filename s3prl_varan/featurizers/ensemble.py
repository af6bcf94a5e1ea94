"""-f ensemble: a head on every layer, all with the same weight."""

from dataclasses import dataclass
from typing import Any

import torch

from s3prl_varan.features.stack import LayerFeatures, LayerStack
from s3prl_varan.featurizers.base import Featurizer, LayersOption, several_layers
from s3prl_varan.layerwise.objective import NllReduction, Objective


class Ensemble(Featurizer):
    """What -f varan is with q and p uniform: the mean of the heads' losses, one prediction."""

    name = "ensemble"
    several_streams = True

    @dataclass(frozen=True)
    class Options(Featurizer.Options):
        """Section `ensemble:`."""

        layers: LayersOption = "transformer"
        prediction: str = "geometric"  # one of the task's rules

        def objective(self, released_nll: NllReduction) -> Objective:
            return Objective(rule=self.prediction)

        def learns(self) -> bool:
            return False

    @classmethod
    def build(cls, num_hidden: int, dim: int, options: Any, layer: int | None) -> Featurizer:
        layers = several_layers(options.layers, num_hidden, cls.name, layer)
        return cls(layers, len(layers), torch.full((len(layers),), 1 / len(layers)))

    def forward(self, stack: LayerStack) -> LayerFeatures:
        return self.all_streams(stack, self.prior.log().expand(stack.hidden.size(0), -1))
