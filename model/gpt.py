"""The plain model: the list of layers (`layers/`), run one after the other in one process.

The pipeline over the same list is `pipeline.py`. Where the weights come from is `initialize.py`.
"""

from torch import Tensor, nn

from model.config import ModelConfig
from model.initialize import Weights
from model.layers import layers
from model.layers.head import project


class GPT(nn.Module):
    """The plain model. Parameters are named "<index in the list>.<name>"; a tied matrix is there once, as "0.weight"."""

    def __init__(self, config: ModelConfig, seed: int | None = None) -> None:
        """Build every layer on the CPU in fp32.

        Args:
            config: The model; its `initialize` says where weights come from.
            seed: Of the weights that are drawn. None leaves all weights unset, to be loaded.

        Raises:
            ValueError: If `initialize` names a folder that does not fit.
        """
        super().__init__()
        self.config = config
        entries = layers(config)
        weights = None if seed is None else Weights(config, seed)
        for entry in entries[:-1] if config.tie_embeddings else entries:
            self.add_module(str(entry.index), entry.build(config, weights))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) token ids -> (B, T, V) logits."""
        hidden = tokens
        for module in self.children():
            hidden = module(hidden)
        return project(self.get_parameter("0.weight"), hidden) if self.config.tie_embeddings else hidden
