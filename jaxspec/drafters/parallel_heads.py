"""Medusa and Hydra: one small head for each place ahead."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.config import MedusaConfig, TransformerConfig
from jaxspec.drafters.grow import Step, at_depth, grow
from jaxspec.drafters.heads_network import HeadsNetwork
from jaxspec.drafters.shared import shared_target_params, target_norm
from jaxspec.errors import ConfigError
from jaxspec.nn.layers import head_scores
from jaxspec.nn.rope import angles_of
from jaxspec.spec.cache import KVCache, init_cache, tree_mask
from jaxspec.spec.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.spec.envelopes import BestFirst, DynamicTree
from jaxspec.spec.sampling import apply_cfg
from jaxspec.spec.tree import Tree
from jaxspec.typing import Array, Float, Int, Params


@register_dataclass
@dataclass(frozen=True)
class HeadsState:
    """What the drafter carries between rounds.

    Attributes:
      features: [R, A, E], the target's, of the last committed path.
      counts: int32 [R], how many of them are real; the last one is drafted from.
      cache: of the prefix layer; None without one.
    """

    features: Float[Array, "R A E"]
    counts: Int[Array, "R"]
    cache: KVCache | None


@dataclass(frozen=True)
class Medusa:
    """Heads that each guess one place ahead, from the target's last feature.

    Medusa (arXiv 2401.10774): independent of what is drafted in between. Hydra (arXiv
    2402.05109, `sequential`): head `i` reads the tokens drafted before it, too;
    Hydra++: behind one more decoder layer (`prefix_heads`).

    Parameters are a dict, see `with_target_params`: "own", and of the target
    "embedding" [V, D], "head" [D, V] and "norm" [D].
    """

    config: MedusaConfig
    target: TransformerConfig

    def __post_init__(self):
        if self.config.width != self.target.width:
            raise ConfigError(
                f"the heads' width {self.config.width} is not the target's "
                f"{self.target.width}; they read its features"
            )

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """The target's last layer."""
        return (self.target.layers - 1,)

    @property
    def max_depth(self) -> int:
        """Most drafted tokens on a path: one for each head."""
        return self.config.heads

    def network(self, own: Params) -> HeadsNetwork:
        """The Linen module bound to the drafter's own parameters."""
        return self._module.bind({"params": own})

    @property
    def _module(self) -> HeadsNetwork:
        return HeadsNetwork(self.config, self.target.vocab_size)

    def init_params(self, key: Array) -> Params:
        """Float32 parameters whose heads repeat the target's own guess; consumes `key`.

        Own outputs are random: copy the target's head into them to start from it.
        """
        c = self.config
        one = jnp.zeros((1, 1, c.width))
        size = c.width // max(c.prefix_heads, 1)
        return self._module.init(key, one, jnp.zeros((1, 1, size // 2, 2)))["params"]

    def with_target_params(self, own: Params, target_params: Params) -> Params:
        """Joins the drafter's parameters with what it shares with the target."""
        return {
            "own": own,
            **shared_target_params(self.target, target_params, norm=True),
        }

    def scores(
        self, params: Params, place: int, h: Float[Array, "... D"]
    ) -> Float[Array, "... V"]:
        """Logits float32 of a head's hidden states; `place` as in `HeadsNetwork`."""
        own = params["own"]
        if not self.config.own_output:
            return head_scores(params["head"], h)
        out = head_scores(own["output"][place], h)
        return out + own["output_bias"][place] if self.config.output_bias else out

    def check_tree(self, tree: Tree | DynamicTree) -> None:
        """Refuses trees that the heads cannot fill.

        Raises:
          ConfigError: the tree is deeper than there are heads, or Hydra's heads are
            asked for nodes of several depths at once.
        """
        if tree.depth > self.max_depth:
            raise ConfigError(
                f"the tree is {tree.depth} deep, but there are {self.config.heads} "
                "heads; choose a shallower tree"
            )
        if self.config.sequential and isinstance(tree, BestFirst):
            raise ConfigError(
                "sequential heads are evaluated depth by depth; a BestFirst tree mixes "
                "depths. Use a Beam or a static tree"
            )

    def init(self, params: Params, ctx: InitContext) -> HeadsState:
        """See `spec.draft.Drafter`.

        Raises:
          ConfigError: see `check_tree`.
        """
        self.check_tree(ctx.tree)
        c, path = self.config, ctx.tree.depth + 1
        streams, length, _ = ctx.features.shape
        features, last = ctx.features, jnp.maximum(ctx.lengths - 1, 0)
        cache = None
        if c.prefix_heads:
            size = c.width // c.prefix_heads
            room = length + ctx.extra + path
            dtype = features.dtype
            cache = init_cache(1, streams, c.prefix_heads, room, size, dtype)
            cache, _ = self._prefix(params, cache, features)
            cache = replace(cache, lengths=cache.lengths + last)
        features = jnp.take_along_axis(features, last[:, None, None], axis=1)
        features = jnp.pad(features, ((0, 0), (0, path - 1), (0, 0)))
        return HeadsState(features, jnp.ones(streams, jnp.int32), cache)

    def propose(
        self, params: Params, state: HeadsState, ctx: DraftContext
    ) -> tuple[Draft, HeadsState]:
        """See `spec.draft.Drafter`."""
        c, network = self.config, self.network(params["own"])
        depths = ctx.tree.depth
        h, cache = target_norm(self.target, params, state.features), state.cache
        if c.prefix_heads:
            cache, h = self._prefix(params, cache, state.features)
            cache = replace(cache, lengths=cache.lengths + state.counts)
        last = jnp.maximum(state.counts - 1, 0)
        h = jnp.take_along_axis(h, last[:, None, None], axis=1)  # [R, 1, D]

        if c.sequential:
            step = self._reading(params, h, ctx)
        else:
            guesses = [
                self.scores(params, i, network.head(i, h)) for i in range(depths)
            ]
            step = self._marginal(jnp.concatenate(guesses, axis=1), ctx)
        draft, _ = grow(ctx, step, [])
        return draft, replace(state, cache=cache)

    def _marginal(self, guesses: Float[Array, "R G V"], ctx: DraftContext) -> Step:
        """Medusa: a place's guess is the same after every token."""
        index = ctx.index[:, None] + jnp.arange(guesses.shape[1])[None]
        marginals = apply_cfg(guesses, ctx.sampling, index)

        def step(depth, tokens, own, shared):
            wide = (*tokens.shape, marginals.shape[-1])
            return jnp.broadcast_to(at_depth(marginals, depth), wide), own, shared

        return step

    def _reading(self, params: Params, h: Array, ctx: DraftContext) -> Step:
        """Hydra: a node's `own` are the tokens of its path."""
        network = self.network(params["own"])
        streams = len(h) // len(ctx.root)

        def step(depth, tokens, own, shared):
            path = [*own, tokens]  # [B, M] each
            seen = [params["embedding"][x] for x in path]
            seen = jnp.concatenate([jnp.concatenate(seen, -1)] * streams)
            wide = jnp.broadcast_to(h, (*seen.shape[:2], h.shape[-1]))
            out = self.scores(params, depth, network.head(depth, wide, seen))
            index = ctx.index[:, None] + jnp.full(tokens.shape, depth)
            return apply_cfg(out, ctx.sampling, index), path, shared

        return step

    def observe(
        self, params: Params, state: HeadsState, result: RoundResult
    ) -> HeadsState:
        """See `spec.draft.Drafter`."""
        streams = state.counts.shape[0] // result.counts.shape[0]
        counts = jnp.concatenate([result.counts] * streams)
        features = result.on_path(result.features)
        return replace(state, features=features, counts=counts)

    def _prefix(self, params, cache, features):
        """Writes committed features behind the cache's; the lengths stay."""
        count = features.shape[1]
        size = self.config.width // self.config.prefix_heads
        positions = cache.lengths[:, None] + jnp.arange(count)[None]
        h, layer = self.network(params["own"]).prefix(
            target_norm(self.target, params, features),
            angles_of(self.target, positions, size),
            tree_mask(cache, jnp.tril(jnp.ones((count, count), bool))),
            cache.layers[0],
            cache.lengths,
        )
        return replace(cache, layers=(layer,)), h
