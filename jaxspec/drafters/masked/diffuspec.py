"""DiffuSpec: untuned masked-diffusion drafts, made consistent by an n-gram model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.core.sampling import Sampling
from jaxspec.core.vocab_parallel import vocab_top_k
from jaxspec.drafters.common.history import history
from jaxspec.drafters.training_free.ngram import NgramTable
from jaxspec.drafters.tree_drafting import at_depth, grow
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.speculative.prefix import without_prefix
from jaxspec.typing import Array, Float, Params


@dataclass(frozen=True)
class DiffuSpec:
    """Causally consistent paths through the candidates of a masked-diffusion model.

    One denoising step gives an independent distribution for each position. The
    likeliest tokens of each are its candidates. A path is scored by
    `weight * log q + (1 - weight) * log n`, where `n` is an n-gram model that reads the
    tokens before. On a `Beam` this is DiffuSpec's causal-consistency path search (arXiv
    2510.02358), whose best path is one of the tree's; with the selection "coupled" the
    noise is added to the score. For the paper's adaptive length use
    `Adaptive(diffuspec, LengthController(...))`.

    The model attends in both directions, so nothing can be cached: each round reads
    all tokens.

    Parameters are a dict: "model", and "counts" of the n-gram model (None: empty).

    Attributes:
      denoise: `(params, prompt, tokens [B, T], sampling) -> logits [B, T, V]` with
        guidance merged, where each query predicts the token at its own position; such
        as a `MaskedDiffusion`.
      mask_token: id of an unknown token.
      grams: n-gram model; None for none.
      weight: weight of the diffusion model's score; .5 in the paper.
      mass: probability that a position's candidates hold; .8 in the paper.
      most: most candidates of a position; 15 in the paper.
      length: number of tokens that the model reads, `T`; None for the engine's length.
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
        """See `Drafter`."""
        state = ()
        if self.grams is not None:
            state = self.grams.init(params["counts"], ctx)
        return jax.tree.map(jnp.copy, without_prefix(ctx.prompt)), state

    def propose(
        self, params: Params, state: Any, ctx: DraftContext
    ) -> tuple[Draft, Any]:
        """See `Drafter`."""
        prompt, gram_state = state
        generated = jnp.arange(ctx.tokens.shape[1])[None] < ctx.index[:, None]
        tokens = jnp.where(generated, ctx.tokens, self.mask_token)
        tokens = tokens[:, : self.length]
        logits = self.denoise(params["model"], prompt, tokens, ctx.sampling)
        index = ctx.index[:, None] + jnp.arange(ctx.tree.depth)[None]
        index = jnp.minimum(index, logits.shape[1] - 1)
        log_q = jnp.take_along_axis(logits, index[..., None], axis=1)
        log_q = self._candidates(jax.nn.log_softmax(log_q, axis=-1))
        gram_log_probs, path = None, ()
        if self.grams is not None:
            counts, prompt_tokens, counted = gram_state
            tokens, length = history(prompt_tokens, ctx)
            counts = self.grams.count(counts, tokens, counted, length)
            gram_log_probs, path = self.grams.node_log_probs(
                counts, tokens, length, ctx.tree.depth
            )
            gram_state = counts, prompt_tokens, length

        def step(depth, drafted, path, carry):
            scores = at_depth(log_q, depth)
            scores = jnp.broadcast_to(scores, (*drafted.shape, scores.shape[-1]))
            if gram_log_probs is not None:
                log_n, path = gram_log_probs(depth, drafted, path)
                mixed = self.weight * scores + (1 - self.weight) * log_n
                scores = jnp.where(jnp.isfinite(scores), mixed, -jnp.inf)
            return scores, path, carry

        return grow(ctx, step, path)[0], (prompt, gram_state)

    def observe(self, params: Params, state: Any, result: RoundResult) -> Any:
        """Returns the state unchanged: the next `propose` reads all tokens."""
        return state

    def _candidates(self, log_q: Float[Array, "B G V"]) -> Float[Array, "B G V"]:
        """Keeps the fewest tokens that hold `mass`, at most `most`; others get -inf."""
        best, ids = vocab_top_k(log_q, min(self.most, log_q.shape[-1]))
        before = jnp.cumsum(jnp.exp(best), axis=-1) - jnp.exp(best)
        best = jnp.where(before < self.mass, best, -jnp.inf)
        sequence = jnp.arange(log_q.shape[0])[:, None, None]
        position = jnp.arange(log_q.shape[1])[:, None]
        return jnp.full_like(log_q, -jnp.inf).at[sequence, position, ids].set(best)
