"""A masked-diffusion transformer: it fills in what is hidden, in any order."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxspec.errors import ConfigError
from jaxspec.models.transformer import Transformer
from jaxspec.spec.noise import position_noise
from jaxspec.spec.sampling import Sampling, apply_cfg, process_logits
from jaxspec.typing import Array, BatchKeys, Bool, Float, Int, Params, PyTree


@dataclass(frozen=True)
class MaskedDiffusion:
    """Predicts every hidden token from all that are known; static and hashable.

    The network is the same transformer without causality; its first extra token is the
    mask. A row predicts the token in its own place. Trained by MDLM's objective
    (`masked_loss`), it generates on its own, and `DiffuSpec` makes any such
    model a drafter. Sources: MDLM (arXiv 2406.07524), LLaDA (arXiv 2502.09992), Dream
    (arXiv 2508.15487), first-hitting sampler and precise noise (arXiv 2409.02908).

    Attributes:
      model: the network. Without a condition its prompts are tokens, int32 [B, P] with
        -1 behind shorter ones, or None.
      shifted: a row predicts the token in the next place, as in the autoregressive
        model it was made from (Dream).
    """

    model: Transformer
    shifted: bool = False

    def __post_init__(self):
        if self.model.config.extra_tokens < 1:
            raise ConfigError("a masked-diffusion model needs extra_tokens=1, its mask")

    @property
    def mask_token(self) -> int:
        """Id of a hidden place."""
        return self.model.config.vocab_size

    def score(
        self,
        params: Params,
        prompt: PyTree,
        tokens: Int[Array, "B T"],
        *,
        null: Bool[Array, "B"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits float32 of the token in each place; hidden ones hold `mask_token`."""
        if self.model.config.condition == "none" and prompt is not None:
            return self._behind(params, prompt, tokens)
        logits, _ = self.model.score(
            params, prompt, tokens, null=null, dropout_key=dropout_key, causal=False
        )
        first = self.model.config.prefix_length
        if not self.shifted:
            return logits[:, first:]
        place = jnp.maximum(first - 1 + jnp.arange(tokens.shape[1]), 0)
        return logits[:, place]

    def _behind(
        self, params: Params, prompt: Int[Array, "B P"], tokens: Int[Array, "B T"]
    ) -> Float[Array, "B T V"]:
        """Logits of tokens that stand right behind prompts of different lengths."""
        (rows, most), length = prompt.shape, tokens.shape[1]
        sizes = jnp.sum(prompt >= 0, axis=1, dtype=jnp.int32)[:, None]
        behind = jnp.arange(most + length) - sizes
        given = jnp.pad(prompt, ((0, 0), (0, length)))
        place = jnp.clip(behind, 0, length - 1)
        drawn = jnp.take_along_axis(tokens, place, axis=1)
        stream = jnp.where(behind < 0, given, drawn)
        seen = jnp.broadcast_to(
            (behind < length)[:, None], (rows, most + length, most + length)
        )
        logits, _ = self.model.score(params, None, stream, causal=seen)
        at = jnp.maximum(sizes + jnp.arange(length) - self.shifted, 0)
        return jnp.take_along_axis(logits, at[..., None], axis=1)

    def __call__(
        self,
        params: Params,
        prompt: PyTree,
        tokens: Int[Array, "B T"],
        sampling: Sampling,
    ) -> Float[Array, "B T V"]:
        """`score` with guidance merged, each row at its own scale."""
        rows, length = tokens.shape
        if self.model.config.condition == "none":
            return self.score(params, prompt, tokens)
        doubled = jax.tree.map(lambda x: jnp.concatenate([x] * 2), prompt)
        null = jnp.repeat(jnp.arange(2) > 0, rows)
        logits = self.score(params, doubled, jnp.concatenate([tokens] * 2), null=null)
        places = jnp.broadcast_to(jnp.arange(length), (rows, length))
        return apply_cfg(logits, sampling, places)

    def sample(
        self,
        params: Params,
        prompt: PyTree,
        keys: BatchKeys,
        sampling: Sampling,
        length: int,
        steps: int | None = None,
    ) -> Int[Array, "B T"]:
        """Generates from nothing but masks, in a random order.

        The first-hitting sampler: the time at which the next place is revealed need
        not be known to a network that is not told the time, so each step reveals a
        place at random. With fewer `steps` than places a step reveals several, drawn
        independently. Both the order and the tokens come from the rows' keys, with the
        engine's noise: exact far into the tail.

        Args:
          params: parameters.
          prompt: `B` rows.
          keys: see `batch_keys`.
          sampling: settings of the rows.
          length: `T`.
          steps: forward passes; by default one a token.
        """
        steps = length if steps is None else steps
        if not 1 <= steps <= length:
            raise ConfigError(f"steps={steps} is not between 1 and {length}")
        rows, vocabulary = keys.shape[0], self.model.config.vocab_size
        places = jnp.broadcast_to(jnp.arange(length), (rows, length))
        turn = jax.vmap(lambda key: jax.random.permutation(key, length))(
            jax.vmap(lambda key: jax.random.fold_in(key, 0x8D1F))(keys)
        )

        def reveal(i, tokens):
            logits = self(params, prompt, tokens, sampling)
            scores = process_logits(logits, sampling)
            noise = position_noise(keys, places, vocabulary)
            noise = jnp.where(sampling.temperature[:, None, None] > 0, noise, 0.0)
            drawn = jnp.argmax(scores + noise, axis=-1).astype(jnp.int32)
            now = (turn >= i * length // steps) & (turn < (i + 1) * length // steps)
            return jnp.where(now, drawn, tokens)

        hidden = jnp.full((rows, length), self.mask_token, jnp.int32)
        return jax.lax.fori_loop(0, steps, reveal, hidden)
