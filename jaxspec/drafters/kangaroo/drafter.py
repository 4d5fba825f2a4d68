"""Kangaroo: an adapter between the target's first layers and its head."""

import sys
from dataclasses import dataclass, replace

import flax.linen as nn
import jax.numpy as jnp

from jaxspec.config import TransformerConfig
from jaxspec.config.checks import positive
from jaxspec.core.kv_cache import KVCache
from jaxspec.drafters.common.feature_target import require_transformer
from jaxspec.drafters.draft_model.drafter import DraftModel, ModelState
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.models.transformer.parameters import head_of
from jaxspec.nn.attention import Attention
from jaxspec.nn.layers import RMSNorm, head_scores
from jaxspec.nn.rope import angles_of
from jaxspec.speculative.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.speculative.target import Prefill, Target
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Array, Bool, Float, Int, Mask, Params, PyTree


@dataclass(frozen=True)
class KangarooConfig:
    """An adapter over a target's first layers (Kangaroo, arXiv 2404.18911).

    Attributes:
      layers: layers of the target below the adapter; 2 in the paper.
      heads: heads of the adapter's attention.
      norm_eps: epsilon of the adapter's norms.
    """

    layers: int = 2
    heads: int = 12
    norm_eps: float = 1e-6

    def __post_init__(self):
        positive(self, "layers", "heads")


class AdapterNetwork(nn.Module):
    """Attention between two norms, without a feed-forward layer.

    Attributes:
      config: configuration of the adapter.
      size: head size `F`.
    """

    config: KangarooConfig
    size: int

    @nn.compact
    def __call__(self, h, angles, mask, cache=None, starts=None):
        """Returns inputs of the target's head, and the layer's cache."""
        c = self.config
        x = RMSNorm(c.norm_eps, name="input_norm")(h)
        out, cache = Attention(c.heads, c.heads, self.size, name="attention")(
            x, angles, mask, cache, starts
        )
        return RMSNorm(c.norm_eps, name="norm")(h + out), cache


@dataclass(frozen=True)
class Kangaroo:
    """Drafts with the target's first layers and a trained adapter (arXiv 2404.18911).

    It drafts level by level with its own KV cache, like any `DraftModel`. For the
    paper's early stopping at unlikely tokens use
    `Adaptive(kangaroo, ConfidenceCutoff(.6))`.

    Parameters are a dict, see `with_target_params`: the adapter's "own", and those of
    the "target".

    Attributes:
      config: configuration of the adapter.
      target: configuration of the target.
    """

    config: KangarooConfig
    target: TransformerConfig

    def __post_init__(self):
        c, t = self.config, self.target
        require_transformer("Kangaroo", t)
        if not 1 <= c.layers < t.layers:
            raise ConfigError(
                f"layers={c.layers}: keep 1 to {t.layers - 1} of the target's layers"
            )
        if t.width % c.heads or t.width // c.heads % 4:
            raise ConfigError(
                f"heads={c.heads} must divide the target's width {t.width} into head "
                "sizes that are multiples of 4"
            )

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """Layer of the target below the adapter; training reads its outputs."""
        return (self.config.layers - 1,)

    @property
    def max_depth(self) -> int:
        """Unlimited."""
        return sys.maxsize

    def check_tree(self, tree: Tree | DynamicTree) -> None:
        """Accepts every tree."""

    @property
    def head_size(self) -> int:
        """Head size `F` of the adapter."""
        return self.target.width // self.config.heads

    @property
    def network(self) -> AdapterNetwork:
        """Linen module of the adapter."""
        return AdapterNetwork(self.config, self.head_size)

    @property
    def drafter(self) -> DraftModel:
        """The same drafter as a `DraftModel`."""
        return DraftModel(adapted(self))

    def init_params(self, key: Array) -> Params:
        """Initializes the adapter's float32 parameters at random; consumes `key`."""
        h = jnp.zeros((1, 1, self.target.width))
        angles = jnp.zeros((1, 1, self.head_size // 2, 2))
        return self.network.init(key, h, angles, jnp.ones((1, 1, 1), bool))["params"]

    def with_target_params(self, own: Params, target_params: Params) -> Params:
        """Joins the adapter's parameters with the target's."""
        return {"own": own, "target": target_params}

    def adapt(
        self,
        params: Params,
        h: Float[Array, "R T D"],
        positions: Int[Array, "R T"],
        mask: Bool[Array, "R T S"],
        cache: tuple[Array, Array] | None = None,
        starts: Int[Array, "R"] | None = None,
    ) -> tuple[Float[Array, "R T V"], tuple[Array, Array] | None]:
        """Maps outputs of the layer below to float32 logits.

        Args:
          params: parameters, see `with_target_params`.
          h: [R, T, D], outputs of the target's layer below the adapter.
          positions: int32 [R, T], absolute positions.
          mask: bool [R, T, S], cache slots that each query attends to.
          cache: keys and values of the adapter's attention; None without a cache.
          starts: int32 [R], first cache slot that is written.

        Returns:
          Logits, and the cache with the new keys and values.
        """
        angles = angles_of(self.target, positions, self.head_size)
        bound = self.network.bind({"params": params["own"]})
        h, cache = bound(h, angles, mask, cache, starts)
        return head_scores(head_of(self.target, params["target"]), h), cache

    def init(self, params: Params, ctx: InitContext) -> ModelState:
        """See `Drafter`."""
        return self.drafter.init(params, ctx)

    def propose(
        self, params: Params, state: ModelState, ctx: DraftContext
    ) -> tuple[Draft, ModelState]:
        """See `Drafter`."""
        return self.drafter.propose(params, state, ctx)

    def observe(
        self, params: Params, state: ModelState, result: RoundResult
    ) -> ModelState:
        """See `Drafter`."""
        return self.drafter.observe(params, state, result)


def adapted(kangaroo: Kangaroo) -> Target:
    """Joins first layers, adapter and head; the adapter is the cache's last layer."""
    below = _first_layers(kangaroo)
    return Target(
        kangaroo.target.vocab_size,
        below.branches,
        _Prefill(kangaroo),
        _Forward(kangaroo),
    )


def _first_layers(kangaroo: Kangaroo) -> Target:
    """The target's layers below the adapter."""
    model = Transformer(replace(kangaroo.target, layers=kangaroo.config.layers))
    cfg = kangaroo.target.condition != "none"
    return model.as_target(cfg=cfg, feature_layers=kangaroo.feature_layers)


@dataclass(frozen=True)
class _Prefill:
    """`Target.prefill` of the adapted model."""

    kangaroo: Kangaroo

    def __call__(self, params: Params, prompt: PyTree, extra: int) -> Prefill:
        kangaroo = self.kangaroo
        _, h, cache = _first_layers(kangaroo).prefill(params["target"], prompt, extra)
        sequences, length = h.shape[:2]
        size = kangaroo.config.heads, cache.capacity, kangaroo.head_size
        zeros = jnp.zeros((sequences, *size), h.dtype)
        mask = jnp.tril(jnp.ones((length, cache.capacity), bool))
        diagonal = jnp.eye(length, cache.capacity, dtype=bool)
        mask = (mask[None] & cache.visible[:, None]) | diagonal[None]
        positions = jnp.broadcast_to(jnp.arange(length), (sequences, length))
        starts = jnp.zeros(sequences, jnp.int32)
        logits, layer = kangaroo.adapt(
            params, h, positions, mask, (zeros, jnp.copy(zeros)), starts
        )
        cache = replace(cache, layers=(*cache.layers, layer))
        last = jnp.maximum(cache.lengths - 1, 0)[:, None, None]
        logits = jnp.take_along_axis(logits, last, axis=1)[:, 0]
        return Prefill(logits, h, cache)


@dataclass(frozen=True)
class _Forward:
    """`Target.forward` of the adapted model."""

    kangaroo: Kangaroo

    def __call__(
        self,
        params: Params,
        cache: KVCache,
        tokens: Int[Array, "R T"],
        positions: Int[Array, "R T"],
        mask: Mask,
    ) -> tuple[Float[Array, "R T V"], Float[Array, "R T E"], KVCache]:
        kangaroo = self.kangaroo
        lower = replace(cache, layers=cache.layers[:-1])
        _, h, lower = _first_layers(kangaroo).forward(
            params["target"], lower, tokens, positions, mask
        )
        logits, layer = kangaroo.adapt(
            params, h, positions, mask, cache.layers[-1], cache.lengths
        )
        return logits, h, replace(lower, layers=(*lower.layers, layer))
