"""Judge decoding (arXiv 2501.19309): a learned head may accept what equality would not.

Lossy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxspec.core.noise import Noise
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft, Selection
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.base import (
    LossyVerifier,
    Verdict,
    checked_draft,
    survives,
)
from jaxspec.speculative.verify.coupled import coupled_choice, longest_match
from jaxspec.typing import Array, Float, Params


@dataclass(frozen=True)
class Judge(LossyVerifier):
    """Accepts a child if `Coupled` does, or if a head likes the target's reading of it.

    What the filters removed (a score of -inf) is never accepted.

    Attributes:
      head: `(params["head"], features [B, N, E]) -> scores [B, N]`, a pure function of
        the target's hidden state at the drafted token (conditional rows).
      threshold: a score above it accepts.
    """

    head: Callable[[Any, Array], Array]
    threshold: float = 0.0

    @property
    def selection(self) -> Selection:
        """As for `Coupled`."""
        return "coupled"

    @property
    def token_exact(self) -> bool:
        """Yes: the target's samples are those of plain decoding."""
        return True

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
            raise ConfigError("Judge reads the target's features; pass features=...")
        draft, shape = checked_draft(log_p, draft, tree, noise)
        choice, margin = coupled_choice(log_p, shape, noise)
        own = None if params is None else params.get("head")
        liked = self.head(own, features[: log_p.shape[0]]) > self.threshold
        liked &= survives(shape, log_p, draft)
        match = (draft.tokens == shape.gather_parents(choice)) | liked
        return longest_match(shape, match & draft.valid, choice, margin)
