"""A drafter whose logits are mixed with those of the target's last pass."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from jaxspec.core.numbers import within
from jaxspec.drafters.training_free.jacobi import Jacobi
from jaxspec.speculative.draft import (
    Draft,
    DraftContext,
    Drafter,
    InitContext,
    MixedLogits,
    RoundResult,
)
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Params


@dataclass(frozen=True)
class JacobiMix:
    """Mixes a drafter's logits with those of speculative Jacobi decoding.

    The target's last pass also scored positions behind the new root, after a prefix
    that is partly wrong (see `Jacobi`). In images these scores are close to the right
    ones after a few tokens, and the drafter's errors are others: interpolated logits
    agree with the target more often than either. It costs no pass and no parameters,
    and the mixed distribution is the one that the draft reports, so every verifier
    stays as exact as it is.

    The drafter has to make its trees with `grow`; others are not changed.

    Attributes:
      drafter: drafter whose logits are mixed.
      vocab_size: vocabulary size `V`.
      weight: share of the target's last logits, 0 to 1. Images: .35 to .5.

    Raises:
      ConfigError: the weight is out of range.
    """

    drafter: Drafter
    vocab_size: int
    weight: float = 0.4

    def __post_init__(self):
        within("weight", self.weight, 0.0, 1.0)

    @property
    def num_extra_queries(self) -> int:
        """Extra queries of the drafter."""
        return getattr(self.drafter, "num_extra_queries", 0)

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """Layers that the drafter reads; missing if the drafter names none."""
        return getattr(self.drafter, "feature_layers")  # noqa: B009

    @property
    def caption_padding(self) -> str:
        """Setting of `Transformer.as_target`; missing if the drafter has none."""
        return getattr(self.drafter, "caption_padding")  # noqa: B009

    @property
    def with_target_params(self) -> Callable[..., Params]:
        """The drafter's; missing if the drafter reads no parameters of the target."""
        return getattr(self.drafter, "with_target_params")  # noqa: B009

    @property
    def check_tree(self) -> Callable[[Tree | DynamicTree], None]:
        """The drafter's; missing if it fills every tree."""
        return getattr(self.drafter, "check_tree")  # noqa: B009

    @property
    def max_depth(self) -> int:
        """Largest number of drafted tokens on a path; missing if there is no bound."""
        return getattr(self.drafter, "max_depth")  # noqa: B009

    @property
    def _jacobi(self) -> Jacobi:
        return Jacobi(self.vocab_size)

    def init(self, params: Params, ctx: InitContext) -> Any:
        """See `Drafter`."""
        return self.drafter.init(params, ctx), self._jacobi.init(None, ctx)

    def propose(
        self, params: Params, state: Any, ctx: DraftContext
    ) -> tuple[Draft, Any]:
        """See `Drafter`."""
        own, last = state
        mixed = MixedLogits(last.logits, last.known, self.weight)
        draft, own = self.drafter.propose(params, own, replace(ctx, mixed=mixed))
        return draft, (own, last)

    def observe(self, params: Params, state: Any, result: RoundResult) -> Any:
        """See `Drafter`."""
        own = self.drafter.observe(params, state[0], result)
        return own, self._jacobi.observe(None, state[1], result)
