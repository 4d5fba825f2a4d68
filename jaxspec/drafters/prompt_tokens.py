"""Parallel prompt decoding: trained tokens, which the target itself reads."""

from dataclasses import dataclass, replace

from jaxspec.config import PPDConfig, TransformerConfig
from jaxspec.drafters.riding_blocks import (
    InlineBlocks,
    ppd,
    with_extra_tokens,
)
from jaxspec.errors import ConfigError
from jaxspec.nn.layers import INIT
from jaxspec.spec.envelopes import DynamicTree
from jaxspec.spec.tree import Tree
from jaxspec.typing import Array, Params


@dataclass(frozen=True)
class PPD:
    """Rows for a target's embedding, and the drafter that rides on them.

    Own parameters are one array, "rows" [count, D]. They go into the target's
    embedding, see `target_params`; the drafter itself then has none.
    """

    config: PPDConfig
    target: TransformerConfig

    def __post_init__(self):
        if self.target.extra_tokens:
            raise ConfigError(
                f"the target has {self.target.extra_tokens} extra tokens already; "
                "prompt tokens are added to one that has none"
            )

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """None."""
        return ()

    @property
    def max_depth(self) -> int:
        """Most drafted tokens on a path."""
        return self.config.count

    @property
    def widened(self) -> TransformerConfig:
        """The target with its extra tokens."""
        return replace(self.target, extra_tokens=self.config.count)

    @property
    def drafter(self) -> InlineBlocks:
        """The drafter of the widened target."""
        return ppd(self.widened, self.config.count)

    def check_tree(self, tree: Tree | DynamicTree) -> None:
        """See `InlineBlocks.check_tree`."""
        self.drafter.check_tree(tree)

    def init_params(self, key: Array) -> Params:
        """Random float32 rows; consumes `key`."""
        return {"rows": INIT(key, (self.config.count, self.target.width))}

    def with_target_params(self, own: Params, target_params: Params) -> None:
        """What the drafter takes: nothing."""

    def target_params(self, own: Params, target_params: Params) -> Params:
        """The target's parameters, widened."""
        return with_extra_tokens(target_params, own["rows"])
