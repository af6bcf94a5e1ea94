"""-f layer -l N: one hidden state, as it is."""

from dataclasses import dataclass
from typing import Any

from s3prl_varan.errors import UserError
from s3prl_varan.features.stack import LayerFeatures, LayerStack
from s3prl_varan.featurizers.base import Featurizer, checked_layers


class SingleLayer(Featurizer):
    """The hidden state that -l names."""

    name = "layer"

    @dataclass(frozen=True)
    class Options(Featurizer.Options):
        """It has none."""

        def learns(self) -> bool:
            return False

    @classmethod
    def build(cls, num_hidden: int, dim: int, options: Any, layer: int | None) -> Featurizer:
        if layer is None:
            raise UserError(
                "-f layer needs -l, the hidden state to read: "
                f"0 (encoder input) to {num_hidden - 1}."
            )
        return cls(checked_layers([layer], num_hidden, "-l"))

    @classmethod
    def only_layer(cls, layer: int | None) -> int | None:
        return layer

    def forward(self, stack: LayerStack) -> LayerFeatures:
        return self.one_stream(stack.hidden[:, 0], stack, self.prior)
