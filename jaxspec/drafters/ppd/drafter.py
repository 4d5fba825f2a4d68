"""Parallel prompt decoding (PPD): trained tokens that the target itself reads."""

from dataclasses import dataclass, replace

from jaxspec.config import TransformerConfig
from jaxspec.config.checks import positive
from jaxspec.drafters.common.feature_target import require_transformer
from jaxspec.drafters.inline_blocks.drafter import (
    InlineBlocks,
    ppd_blocks,
    with_extra_tokens,
)
from jaxspec.errors import ConfigError
from jaxspec.nn.layers import INIT
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Array, Params


@dataclass(frozen=True)
class PPDConfig:
    """Trained prompt tokens behind every node of a draft tree (PPD, arXiv 2405.18628).

    Attributes:
      count: number of prompt tokens; 3 in the paper.
    """

    count: int = 3

    def __post_init__(self):
        positive(self, "count")


@dataclass(frozen=True)
class PPD:
    """Trained embeddings of prompt tokens, and the drafter that uses them.

    The only parameters are the array "rows" [count, D]. They are appended to the
    target's embedding, see `target_params`; the drafter itself then needs none.

    Attributes:
      config: configuration of the drafter.
      target: configuration of the target, without extra tokens.
    """

    config: PPDConfig
    target: TransformerConfig

    def __post_init__(self):
        require_transformer("PPD", self.target)
        if self.target.extra_tokens:
            raise ConfigError(
                f"the target has {self.target.extra_tokens} extra tokens already; "
                "prompt tokens are added to one that has none"
            )

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """No layers: the drafter reads no features."""
        return ()

    @property
    def max_depth(self) -> int:
        """Most drafted tokens on a path."""
        return self.config.count

    @property
    def extended_target(self) -> TransformerConfig:
        """Configuration of the target with its extra tokens."""
        return replace(self.target, extra_tokens=self.config.count)

    @property
    def drafter(self) -> InlineBlocks:
        """Drafter of the target with its extra tokens."""
        return ppd_blocks(self.extended_target, self.config.count)

    def check_tree(self, tree: Tree | DynamicTree) -> None:
        """See `InlineBlocks.check_tree`."""
        self.drafter.check_tree(tree)

    def init_params(self, key: Array) -> Params:
        """Initializes float32 embeddings at random; consumes `key`."""
        return {"rows": INIT(key, (self.config.count, self.target.width))}

    def with_target_params(self, own: Params, target_params: Params) -> None:
        """Returns None: the drafter has no parameters beside the target's."""

    def extend_params(self, own: Params, target_params: Params) -> Params:
        """Appends the trained embeddings to the target's parameters."""
        return with_extra_tokens(target_params, own["rows"])
