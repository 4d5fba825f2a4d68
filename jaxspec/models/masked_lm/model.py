"""Masked-diffusion transformer, which fills in masked tokens in any order."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxspec.core.logits import apply_cfg
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.typing import Array, Bool, Float, Int, Params, PyTree

# Training objectives of such models, as their checkpoints record them.
MASKED_OBJECTIVES = ("masked", "maskgit")


@dataclass(frozen=True)
class MaskedDiffusion:
    """Pure functions of a masked-diffusion model; static and hashable.

    The network is a `Transformer` without a causal mask. It predicts each masked token
    from all tokens that are not masked; the mask is its first extra token. A model
    trained with the objective of MDLM or MaskGIT (`masked_loss`) generates by itself,
    see `jaxspec.masked`, and `DiffuSpec` uses it as a drafter. Sources: MDLM
    (arXiv 2406.07524), LLaDA (arXiv 2502.09992), Dream (arXiv 2508.15487).

    Attributes:
      model: network. Without a condition its prompts are tokens, int32 [B, P] with -1
        after shorter ones, or None.
      shifted: whether a position predicts the next token, as in the autoregressive
        model that the network was fine-tuned from (Dream), instead of its own token.

    Raises:
      ConfigError: the network has no extra token.
    """

    model: Transformer
    shifted: bool = False

    def __post_init__(self):
        if self.model.config.extra_tokens < 1:
            raise ConfigError("a masked-diffusion model needs extra_tokens=1, its mask")

    @property
    def mask_token(self) -> int:
        """Token id of the mask."""
        return self.model.config.vocab_size

    def score(
        self,
        params: Params,
        prompt: PyTree,
        tokens: Int[Array, "B T"],
        *,
        null: Bool[Array, "B"] | None = None,
        dropout_key: Array | None = None,
        lengths: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Float32 logits of the token at each position.

        Args:
          params: parameters.
          prompt: prompts of the network.
          tokens: token ids, int32, with `mask_token` at masked positions.
          null: sequences that get the null condition instead of `prompt`.
          dropout_key: random key that enables dropout; consumed.
          lengths: number of tokens of each text, int32; those after them are not read.
            None for all.

        Raises:
          ConfigError: `lengths` of a model with a condition.
        """
        condition = self.model.config.condition
        if lengths is not None and condition != "none":
            raise ConfigError("lengths are for models of texts")
        if condition == "none" and (prompt is not None or lengths is not None):
            if prompt is None:
                prompt = jnp.zeros((len(tokens), 0), jnp.int32)
            return self._score_after_prompts(params, prompt, tokens, lengths)
        logits, _ = self.model.score(
            params, prompt, tokens, null=null, dropout_key=dropout_key, causal=False
        )
        first = self.model.config.prefix_length
        if not self.shifted:
            return logits[:, first:]
        position = jnp.maximum(first - 1 + jnp.arange(tokens.shape[1]), 0)
        return logits[:, position]

    def _score_after_prompts(
        self,
        params: Params,
        prompt: Int[Array, "B P"],
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"] | None,
    ) -> Float[Array, "B T V"]:
        """Logits of tokens that directly follow prompts of different lengths."""
        batch, length = tokens.shape
        read = jnp.full((batch, 1), length) if lengths is None else lengths[:, None]
        total = prompt.shape[1] + length
        prompt_lengths = jnp.sum(prompt >= 0, axis=1, dtype=jnp.int32)[:, None]
        token_index = jnp.arange(total)[None] - prompt_lengths
        padded = jnp.pad(prompt, ((0, 0), (0, length)))
        clipped = jnp.clip(token_index, 0, length - 1)
        generated = jnp.take_along_axis(tokens, clipped, axis=1)
        ids = jnp.where(token_index < 0, padded, generated)
        mask = (token_index < read)[:, None]
        mask = jnp.broadcast_to(mask, (batch, total, total))
        logits, _ = self.model.score(params, None, ids, causal=mask)
        position = prompt_lengths + jnp.arange(length)[None] - self.shifted
        position = jnp.maximum(position, 0)
        return jnp.take_along_axis(logits, position[..., None], axis=1)

    def __call__(
        self,
        params: Params,
        prompt: PyTree,
        tokens: Int[Array, "B T"],
        sampling: Sampling,
    ) -> Float[Array, "B T V"]:
        """Logits as from `score`, after classifier-free guidance.

        Args:
          params: parameters.
          prompt: prompts of `B` sequences.
          tokens: token ids, int32, with `mask_token` at masked positions.
          sampling: sampling settings, of which the CFG scale of each sequence is used.
        """
        batch, length = tokens.shape
        if self.model.config.condition == "none":
            return self.score(params, prompt, tokens)
        branches = jax.tree.map(lambda x: jnp.concatenate([x] * 2), prompt)
        null = jnp.repeat(jnp.arange(2) > 0, batch)
        logits = self.score(params, branches, jnp.concatenate([tokens] * 2), null=null)
        positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
        return apply_cfg(logits, sampling, positions)
