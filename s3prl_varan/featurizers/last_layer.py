"""-f last_layer: the last hidden state."""

from typing import Any

from s3prl_varan.featurizers.base import Featurizer, refuse_layer_flag
from s3prl_varan.featurizers.layer import SingleLayer


class LastLayer(SingleLayer):
    """The last hidden state."""

    name = "last_layer"

    @classmethod
    def build(cls, num_hidden: int, dim: int, options: Any, layer: int | None) -> Featurizer:
        refuse_layer_flag(layer, cls.name, "reads the last one")
        return cls([num_hidden - 1])

    @classmethod
    def only_layer(cls, layer: int | None) -> int | None:
        return -1
