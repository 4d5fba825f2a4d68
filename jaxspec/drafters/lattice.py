"""DiffuSpec: any masked-diffusion model, untrained for it, and a search for order."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.drafters.grow import at_depth, grow
from jaxspec.drafters.history import history
from jaxspec.drafters.ngram import NgramTable
from jaxspec.errors import ConfigError
from jaxspec.spec.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.spec.sampling import Sampling
from jaxspec.spec.vocabulary import vocab_top_k
from jaxspec.typing import Array, Float, Params


@dataclass(frozen=True)
class DiffuSpec:
    """Paths through a masked-diffusion model's candidates that make sense in order.

    One denoising step gives a law for each place on its own. Of each, the likeliest
    tokens are candidates; a path is scored by `weight * log q + (1 - weight) * log n`,
    the second being an n-gram model that knows what stands before. On a `Beam` this is
    DiffuSpec's causal-consistency search (arXiv 2510.02358), whose best path is one of
    the tree's; with coupled candidates the noise takes part. Its adaptive length is
    `Adaptive(lattice, LengthController(...))`.

    The model sees past and future, so nothing of it can be cached: it reads everything
    in each round.

    Parameters are a dict: "model", and "counts" of the n-gram model (None: empty).

    Attributes:
      denoise: `(params, prompt, tokens [B, T], sampling) -> logits [B, T, V]`, guidance
        merged, each row predicting its own place; such as a `MaskedDiffusion`.
      mask_token: id of a place that is not known.
      grams: the n-gram model; None leaves order out.
      weight: of the diffusion model; .5 in the paper.
      mass: of the candidates; .8.
      most: candidates; 15.
      length: `T`, places of the model; None: all that the engine has room for.
    """

    denoise: Callable[[Params, Any, Array, Sampling], Array]
    mask_token: int
    grams: NgramTable | None = None
    weight: float = 0.5
    mass: float = 0.8
    most: int = 15
    length: int | None = None

    def __post_init__(self):
        if not (0 <= self.weight <= 1 and 0 < self.mass <= 1 and self.most >= 1):
            raise ConfigError(f"{self}: use weights and masses in [0, 1], most >= 1")

    def init(self, params: Params, ctx: InitContext) -> Any:
        """See `spec.draft.Drafter`."""
        state = ()
        if self.grams is not None:
            state = self.grams.init(params["counts"], ctx)
        return jax.tree.map(jnp.copy, ctx.prompt), state

    def propose(
        self, params: Params, state: Any, ctx: DraftContext
    ) -> tuple[Draft, Any]:
        """See `spec.draft.Drafter`."""
        prompt, inner = state
        known = jnp.arange(ctx.tokens.shape[1])[None] < ctx.index[:, None]
        tokens = jnp.where(known, ctx.tokens, self.mask_token)
        tokens = tokens[:, : self.length]
        logits = self.denoise(params["model"], prompt, tokens, ctx.sampling)
        ahead = ctx.index[:, None] + jnp.arange(ctx.tree.depth)[None]
        ahead = jnp.minimum(ahead, logits.shape[1] - 1)
        log_q = jnp.take_along_axis(logits, ahead[..., None], axis=1)
        log_q = self._candidates(jax.nn.log_softmax(log_q, axis=-1))
        law, path = None, ()
        if self.grams is not None:
            counts, given, learned = inner
            read, length = history(given, ctx)
            counts = self.grams.learn(counts, read, learned, length)
            law, path = self.grams.reader(counts, read, length, ctx.tree.depth)
            inner = counts, given, length

        def step(depth, drafted, own, shared):
            scores = at_depth(log_q, depth)
            scores = jnp.broadcast_to(scores, (*drafted.shape, scores.shape[-1]))
            if law is not None:
                order, own = law(depth, drafted, own)
                mixed = self.weight * scores + (1 - self.weight) * order
                scores = jnp.where(jnp.isfinite(scores), mixed, -jnp.inf)
            return scores, own, shared

        return grow(ctx, step, path)[0], (prompt, inner)

    def observe(self, params: Params, state: Any, result: RoundResult) -> Any:
        """Nothing: the next `propose` reads all tokens anyway."""
        return state

    def _candidates(self, log_q: Float[Array, "B G V"]) -> Float[Array, "B G V"]:
        """The fewest tokens that hold `mass`, and at most `most`; -inf elsewhere."""
        best, ids = vocab_top_k(log_q, min(self.most, log_q.shape[-1]))
        before = jnp.cumsum(jnp.exp(best), axis=-1) - jnp.exp(best)
        kept = jnp.where(before < self.mass, best, -jnp.inf)
        row = jnp.arange(log_q.shape[0])[:, None, None]
        place = jnp.arange(log_q.shape[1])[:, None]
        none = jnp.full_like(log_q, -jnp.inf)
        return none.at[row, place, ids].set(kept)
