"""Judge decoding (arXiv 2501.19309): acceptance by a learned head. Lossy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxspec.core.noise import Noise
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import (
    Verdict,
    Verifier,
    checked_draft,
    survives,
)
from jaxspec.speculative.verify.coupled import coupled_choice, longest_match
from jaxspec.typing import Array, Float, Params


@dataclass(frozen=True)
class Judge(Verifier):
    """Accepts a child if `Coupled` does, or if a learned head accepts it.

    Filtered tokens (score -inf) are never accepted.

    Attributes:
      head: pure function `(params["head"], features [B, N, E]) -> scores [B, N]` of the
        target's hidden state at each drafted token (conditional branch).
      threshold: score above which the head accepts.
    """

    token_exact = True
    selection = "coupled"

    head: Callable[[Any, Array], Array]
    threshold: float = 0.0

    def verify(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | DynamicTree,
        noise: Noise,
        params: Params = None,
        features: Float[Array, "R N E"] | None = None,
    ) -> Verdict:
        """See `Verifier.verify`.

        Raises:
          ConfigError: there are no features.
        """
        if features is None:
            raise ConfigError("Judge needs the target's features; pass features=...")
        draft, shape = checked_draft(log_p, draft, tree, noise)
        choice, margin = coupled_choice(log_p, shape, noise)
        head_params = None if params is None else params.get("head")
        scores = self.head(head_params, features[: log_p.shape[0]])
        accepted = (scores > self.threshold) & survives(shape, log_p, draft)
        match = (draft.tokens == shape.gather_parents(choice)) | accepted
        return longest_match(shape, match & draft.valid, choice, margin)
