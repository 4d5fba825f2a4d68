"""Models with random weights, and a verifier with a chosen acceptance.

Decoding speed depends on shapes and on the number of accepted tokens, not on which
tokens they are. Loops of published sizes can therefore be timed without a checkpoint or
a trained drafter.
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import TransformerConfig
from jaxspec.core.noise import Noise
from jaxspec.drafters.dflash.network import DFlashConfig
from jaxspec.drafters.registry import make_drafter
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.models.transformer.presets import preset
from jaxspec.nn.quantize import quantized
from jaxspec.pipeline.bundle import Bundle
from jaxspec.speculative.draft import Draft, Selection
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Coupled, Verifier
from jaxspec.speculative.verify.base import Verdict
from jaxspec.speculative.verify.coupled import longest_match
from jaxspec.typing import Array, Float, Params


@dataclass(frozen=True)
class Forced(Verifier):
    """Runs a verifier, then replaces the number of accepted tokens.

    Each round emits `floor(tokens)` or `ceil(tokens)` tokens, `tokens` on average, as
    far as the tree is deep enough.

    Attributes:
      tokens: Mean number of emitted tokens per round, at least 1.
      verifier: Verifier that runs.
      selection: Selection of candidates, that of the verifier.

    Raises:
      ConfigError: `tokens` is below 1.
    """

    tokens: float
    verifier: Verifier = Coupled()
    selection: Selection = field(init=False)

    def __post_init__(self):
        if not self.tokens >= 1:
            raise ConfigError(f"{self.tokens} tokens per round; choose at least 1")
        object.__setattr__(self, "selection", self.verifier.selection)

    def verify(
        self,
        log_p: Float[Array, "B N V"],
        draft: Draft,
        tree: Tree | DynamicTree,
        noise: Noise,
        params: Params = None,
        features: Float[Array, "R N E"] | None = None,
    ) -> Verdict:
        """See `Verifier.verify`."""
        verdict = self.verifier.verify(log_p, draft, tree, noise, params, features)
        shape = draft.topology(tree)
        uniform = jnp.exp(-jnp.exp(-noise.nodes[:, :1]))
        accepted = jnp.floor(self.tokens - 1 + uniform)
        match = draft.valid & (shape.depths <= accepted)
        choice = jnp.broadcast_to(verdict.next_token[:, None], match.shape)
        return longest_match(shape, match, choice, jnp.full(match.shape, jnp.inf))


def synthetic_params(config: TransformerConfig, dtype, int8: bool = False) -> Params:
    """Random parameters, with a nonzero output head."""
    keys = jax.random.split(jax.random.key(0))

    def make():
        params = dict(Transformer(config).init(keys[0]))
        params["head"] = 0.02 * jax.random.normal(keys[1], params["head"].shape)
        params = jax.tree.map(lambda x: x.astype(dtype), params)
        return quantized(params) if int8 else params

    return jax.jit(make)()


def block_config(target: TransformerConfig) -> DFlashConfig:
    """Config of a block drafter of three layers, as wide as its target."""
    last = target.layers - 1
    return DFlashConfig(
        block_size=8,
        layers=3,
        width=target.width,
        heads=target.heads,
        ffn_width=target.ffn_size,
        feature_layers=tuple(sorted({min(1, last), last // 2, max(last - 1, 0)})),
    )


def synthetic_bundle(
    name: str, grid: int, dtype="float32", int8: bool = False
) -> Bundle:
    """Makes a target of a published size and a block drafter, both with random weights.

    Args:
      name: Name of the size, see `models.transformer.presets.preset`.
      grid: Tokens along a side.
      dtype: Dtype of weights and caches.
      int8: Whether the target's weight matrices are quantized to int8.

    Raises:
      ConfigError: The size is unknown.
    """
    config = preset(name, "class", grid)
    drafter = make_drafter(block_config(config), config)
    drafter_params = jax.jit(drafter.init_params)(jax.random.key(2))
    drafter_params = jax.tree.map(lambda x: x.astype(dtype), drafter_params)
    prior = Checkpoint("prior", config, synthetic_params(config, dtype, int8), {})
    drafter = replace(drafter, target=config)
    return Bundle(
        f"{name}, random weights",
        image_tokenizer=None,
        prior=prior,
        drafter=Checkpoint(
            "dflash", drafter.config, drafter_params, {}, target=drafter.target
        ),
        trained=config,
        int8=int8,
    )
