"""Tokens that an autoregressive model agrees with."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp

from jaxspec.config import TransformerConfig
from jaxspec.errors import ConfigError
from jaxspec.masked.policy import View, check_params
from jaxspec.typing import Array, Bool, Float, Int, Params

Agreement = Literal["exact", "probability", "top", "near"]
# What the guide and the masked model must have in common, and with a condition.
SHARED = "vocab_size", "condition"
CONDITIONED = {
    "class": ("classes", "sequence_length", "order"),
    "caption": ("caption_length", "caption_width", "sequence_length", "order"),
    "none": (),
}


@dataclass(frozen=True)
class Guided:
    """Keeps tokens from the left as long as a small model agrees; implements `Policy`.

    A masked model proposes all tokens, and one pass of an autoregressive model scores
    them. The first masked token is always kept, so that each step keeps one at least.
    The number of steps follows from the tokens; a schedule only bounds it. Not
    lossless: the tokens are those of the masked model. Source: guided diffusion
    (FreeCache, arXiv 2505.21467).

    Parameters (`MaskedVariables.policy`): those of the autoregressive model.

    Attributes:
      guide: autoregressive `Transformer` over the same tokens and prompts.
      agreement: "exact": the token is its likeliest one. "probability": it has at least
        `least`. "top": it is among its `most` likeliest. "near": it is the likeliest
        one, or the second with at least `1 - within` of its probability.
      least: least probability.
      most: number of likeliest tokens.
      within: largest relative distance of the second likeliest token.

    Raises:
      ConfigError: a setting is impossible.
    """

    guide: Any
    agreement: Agreement = "probability"
    least: float = 0.1
    most: int = 5
    within: float = 0.5

    revises: ClassVar[bool] = False
    has_params: ClassVar[bool] = True

    def __post_init__(self):
        if self.agreement not in get_args(Agreement):
            known = ", ".join(get_args(Agreement))
            raise ConfigError(f"agreement={self.agreement!r}; choose one of {known}")
        if not 0 < self.least <= 1:
            raise ConfigError(f"least={self.least} is not above 0, up to 1")
        if not 0 <= self.within <= 1:
            raise ConfigError(f"within={self.within} is not from 0 to 1")
        if not 1 <= self.most <= self.guide.config.vocab_size:
            raise ConfigError(
                f"most={self.most}; choose 1 to {self.guide.config.vocab_size}"
            )

    def check_model(self, config: TransformerConfig) -> None:
        """See `Policy`.

        Raises:
          ConfigError: the guide has other tokens or prompts, or another order.
        """
        for name in (*SHARED, *CONDITIONED[config.condition]):
            own, other = getattr(self.guide.config, name), getattr(config, name)
            if own != other:
                hint = "; a masked model takes any order" if name == "order" else ""
                raise ConfigError(
                    f"the guide has {name}={own!r}, the masked model {other!r}{hint}"
                )

    def reveal(self, view: View) -> Bool[Array, "B T"]:
        """See `Policy`.

        Raises:
          ConfigError: there are no parameters.
        """
        check_params(self, view.params)
        logits = scores_of(self.guide, view.params, view.prompt, view.tokens)
        log_p = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(log_p, view.tokens[..., None], axis=-1)[..., 0]
        if self.agreement == "probability":
            agreed = chosen >= jnp.log(self.least)
        elif self.agreement == "near":
            best = jax.lax.top_k(log_p, min(2, log_p.shape[-1]))[0]
            near = best[..., 0] + jnp.log1p(-self.within)
            agreed = chosen >= jnp.maximum(best[..., -1], near)
        else:
            most = 1 if self.agreement == "exact" else self.most
            agreed = chosen >= jax.lax.top_k(log_p, most)[0][..., -1]
        masked = ~view.known
        first = masked & (jnp.cumsum(masked, axis=1) == 1)
        kept = jnp.cumprod((view.known | first | agreed).astype(jnp.int32), axis=1) > 0
        return view.known | kept


def scores_of(
    model: Any, params: Params, prompt: Any, tokens: Int[Array, "B T"]
) -> Float[Array, "B T V"]:
    """Logits of each token under an autoregressive model, float32.

    Without a prompt the first token has equal ones.

    Args:
      model: `Transformer`.
      params: its parameters.
      prompt: prompts, as the model takes them; without a condition tokens int32
        [B, P], with -1 after shorter ones, or None.
      tokens: tokens that follow the prompts.
    """
    batch, length = tokens.shape
    prefix = model.config.prefix_length
    if model.config.condition != "none":
        logits, _ = model.score(params, prompt, tokens)
        return logits[:, prefix - 1 : prefix - 1 + length]
    if prompt is None:
        logits, _ = model.score(params, None, tokens)
        return jnp.concatenate([jnp.zeros_like(logits[:, :1]), logits[:, :-1]], axis=1)
    lengths = jnp.sum(prompt >= 0, axis=1, dtype=jnp.int32)[:, None]
    place = jnp.arange(prompt.shape[1] + length)[None] - lengths
    given = jnp.pad(prompt, ((0, 0), (0, length)))
    after = jnp.take_along_axis(tokens, jnp.clip(place, 0, length - 1), axis=1)
    logits, _ = model.score(params, None, jnp.where(place < 0, given, after))
    index = lengths - 1 + jnp.arange(length)[None]
    return jnp.take_along_axis(logits, index[..., None], axis=1)
