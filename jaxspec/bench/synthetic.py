"""Models with random weights, and drafts that are accepted as often as one says.

Speed depends on shapes and on how many tokens a round keeps, not on what they are: so
loops of published sizes can be timed without a checkpoint or a trained drafter.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from jaxspec.bundle import Bundle
from jaxspec.checkpoint import Checkpoint
from jaxspec.config import DFlashConfig, TransformerConfig
from jaxspec.drafters.kinds import make_drafter
from jaxspec.errors import ConfigError
from jaxspec.models.presets import preset
from jaxspec.models.transformer import Transformer
from jaxspec.nn.quantize import quantized
from jaxspec.spec.draft import Draft, Selection
from jaxspec.spec.envelopes import DynamicTree
from jaxspec.spec.noise import Noise
from jaxspec.spec.tree import Tree
from jaxspec.spec.verify import Coupled, Verifier
from jaxspec.spec.verify.base import LossyVerifier, Verdict
from jaxspec.spec.verify.coupled import longest_match
from jaxspec.typing import Array, Float, Params


@dataclass(frozen=True)
class Forced(LossyVerifier):
    """Does the work of a rule, then accepts as much as it is told to.

    The number of tokens that a round emits is one of the two whole numbers next to
    `tokens`, and `tokens` on average, as far as the tree is deep enough.

    Attributes:
      tokens: emitted by a round, at least 1.
      rule: whose work is done.
    """

    tokens: float
    verifier: Verifier = Coupled()

    def __post_init__(self):
        if not self.tokens >= 1:
            raise ConfigError(f"{self.tokens} tokens a round; each emits at least 1")

    @property
    def selection(self) -> Selection:
        """That of the rule."""
        return self.verifier.selection

    @property
    def token_exact(self) -> bool:
        """No: there is nothing to decide."""
        return False

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
        judged = self.verifier.verify(log_p, draft, tree, noise, params, features)
        shape = draft.topology(tree)
        uniform = jnp.exp(-jnp.exp(-noise.nodes[:, :1]))
        kept = jnp.floor(self.tokens - 1 + uniform)
        match = draft.valid & (shape.depths <= kept)
        choice = jnp.broadcast_to(judged.next_token[:, None], match.shape)
        return longest_match(shape, match, choice, jnp.full(match.shape, jnp.inf))


def synthetic_params(config: TransformerConfig, dtype, int8: bool = False) -> Params:
    """Random parameters, the output head included."""
    keys = jax.random.split(jax.random.key(0))

    def make():
        params = dict(Transformer(config).init(keys[0]))
        params["head"] = 0.02 * jax.random.normal(keys[1], params["head"].shape)
        params = jax.tree.map(lambda x: x.astype(dtype), params)
        return quantized(params) if int8 else params

    return jax.jit(make)()


def block_config(target: TransformerConfig) -> DFlashConfig:
    """A block drafter of three layers, as wide as its target."""
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
    """A published size with random weights, and a random block drafter.

    Args:
      name: see `models.presets.preset`.
      grid: tokens along a side.
      dtype: of weights and caches.
      int8: matrices of the target in eight bits.

    Raises:
      ConfigError: no such size.
    """
    config = preset(name, "class", grid)
    kind, drafter = make_drafter(block_config(config), config)
    own = jax.jit(drafter.init_params)(jax.random.key(2))
    own = jax.tree.map(lambda x: x.astype(dtype), own)
    prior = Checkpoint("prior", config, synthetic_params(config, dtype, int8), {})
    drafter = replace(drafter, target=config)
    return Bundle(
        f"{name}, random weights",
        image_tokenizer=None,
        prior=prior,
        drafter=Checkpoint(kind, drafter, own, {}),
        trained=config,
        int8=int8,
    )
