"""Parallel prompt decoding: trained tokens, which the target itself reads."""

from dataclasses import dataclass, replace

from jaxspec.config import PromptTokensConfig, TransformerConfig
from jaxspec.drafters.riding_blocks import (
    RidingBlocks,
    prompt_tokens,
    with_extra_tokens,
)
from jaxspec.errors import ConfigError
from jaxspec.nn.layers import INIT
from jaxspec.spec.envelopes import Envelope
from jaxspec.spec.tree import Tree
from jaxspec.typing import Array, Params


@dataclass(frozen=True)
class PromptTokens:
    """Rows for a target's embedding, and the drafter that rides on them.

    Own parameters are one array, "rows" [count, D]. They go into the target's
    embedding, see `target_params`; the drafter itself then has none.
    """

    config: PromptTokensConfig
    target: TransformerConfig

    def __post_init__(self):
        if self.target.extra_tokens:
            raise ConfigError(
                f"the target has {self.target.extra_tokens} extra tokens already; "
                "prompt tokens are added to one that has none"
            )

    @property
    def taps(self) -> tuple[int, ...]:
        """None."""
        return ()

    @property
    def reach(self) -> int:
        """Most drafted tokens on a path."""
        return self.config.count

    @property
    def widened(self) -> TransformerConfig:
        """The target with its extra tokens."""
        return replace(self.target, extra_tokens=self.config.count)

    @property
    def drafter(self) -> RidingBlocks:
        """The drafter of the widened target."""
        return prompt_tokens(self.widened, self.config.count)

    def check_tree(self, tree: Tree | Envelope) -> None:
        """See `RidingBlocks.check_tree`."""
        self.drafter.check_tree(tree)

    def init_params(self, key: Array) -> Params:
        """Random float32 rows; consumes `key`."""
        return {"rows": INIT(key, (self.config.count, self.target.width))}

    def bind(self, own: Params, target_params: Params) -> None:
        """What the drafter takes: nothing."""

    def target_params(self, own: Params, target_params: Params) -> Params:
        """The target's parameters, widened."""
        return with_extra_tokens(target_params, own["rows"])
