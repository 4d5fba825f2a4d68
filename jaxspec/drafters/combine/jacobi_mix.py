"""A drafter whose logits are mixed with those of the target's last pass."""

from dataclasses import dataclass, replace
from typing import Any

from jaxspec.core.numbers import within
from jaxspec.drafters.combine.wrapper import DrafterWrapper
from jaxspec.drafters.training_free.jacobi import Jacobi
from jaxspec.speculative.draft import (
    Draft,
    DraftContext,
    InitContext,
    MixedLogits,
    RoundResult,
)
from jaxspec.typing import Params


@dataclass(frozen=True)
class JacobiMix(DrafterWrapper):
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

    vocab_size: int
    weight: float = 0.4

    def __post_init__(self):
        within("weight", self.weight, 0.0, 1.0)

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
