"""Medusa and Hydra: one prediction head per drafted token."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.core.branches import repeat_branches
from jaxspec.core.kv_cache import KVCache, causal_mask, init_cache
from jaxspec.core.logits import apply_cfg
from jaxspec.drafters.common.checks import check_width
from jaxspec.drafters.common.feature_target import DrafterTarget
from jaxspec.drafters.common.target_params import shared_target_params, target_norm
from jaxspec.drafters.medusa.network import HeadsNetwork, MedusaConfig
from jaxspec.drafters.tree_drafting import Step, grow, grow_by_depth
from jaxspec.errors import ConfigError
from jaxspec.nn.layers import head_scores
from jaxspec.nn.rope import angles_of
from jaxspec.speculative.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.speculative.trees.dynamic import BestFirst, DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Array, Float, Int, Params


@register_dataclass
@dataclass(frozen=True)
class MedusaState:
    """State of `Medusa` between rounds.

    Attributes:
      features: [R, A, E], the target's features of the last accepted path.
      counts: int32 [R], number of valid entries in `features`; the last one is the
        input of the heads.
      cache: keys and values of the prefix layer (Hydra++); None without one.
    """

    features: Float[Array, "R A E"]
    counts: Int[Array, "R"]
    cache: KVCache | None


@dataclass(frozen=True)
class Medusa:
    """Heads that each predict one of the next tokens from the target's last feature.

    Medusa (arXiv 2401.10774): each head ignores the tokens drafted before its own.
    Hydra (arXiv 2402.05109, `sequential`): head `i` also reads these tokens. Hydra++:
    one more decoder layer before the heads (`prefix_heads`).

    Parameters are a dict, see `with_target_params`: the drafter's "own", and the
    target's "embedding" [V, D], "head" [D, V] and "norm" [D].

    Attributes:
      config: configuration of the heads.
      target: configuration of the target, or a `FeatureTarget` for a model of one's
        own.
    """

    config: MedusaConfig
    target: DrafterTarget

    def __post_init__(self):
        check_width(self.config.width, self.target, "the heads read its features")

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """The target's last layer."""
        return (self.target.layers - 1,)

    @property
    def max_depth(self) -> int:
        """Most drafted tokens on a path: one for each head."""
        return self.config.heads

    def network(self, own: Params) -> HeadsNetwork:
        """Binds the Linen module to the drafter's own parameters."""
        return self._module.bind({"params": own})

    @property
    def _module(self) -> HeadsNetwork:
        return HeadsNetwork(self.config, self.target.vocab_size)

    def init_params(self, key: Array) -> Params:
        """Initializes float32 parameters; consumes `key`.

        At first the heads return their input, so with the target's output head they
        repeat its next-token prediction. With `own_output` the output maps are random:
        copy the target's head into them to start from it.
        """
        c = self.config
        h = jnp.zeros((1, 1, c.width))
        size = c.width // max(c.prefix_heads, 1)
        return self._module.init(key, h, jnp.zeros((1, 1, size // 2, 2)))["params"]

    def with_target_params(self, own: Params, target_params: Params) -> Params:
        """Joins the drafter's parameters with those it shares with the target."""
        return {
            "own": own,
            **shared_target_params(self.target, target_params, norm=True),
        }

    def scores(
        self, params: Params, index: int, h: Float[Array, "... D"]
    ) -> Float[Array, "... V"]:
        """Logits float32 of a head's hidden states.

        Args:
          params: parameters, see `with_target_params`.
          index: index of the head, as in `HeadsNetwork.head`.
          h: [..., D], hidden states of the head.
        """
        own = params["own"]
        if not self.config.own_output:
            return head_scores(params["head"], h)
        out = head_scores(own["output"][index], h)
        return out + own["output_bias"][index] if self.config.output_bias else out

    def check_tree(self, tree: Tree | DynamicTree) -> None:
        """Checks that the heads can fill a tree.

        Raises:
          ConfigError: the tree is deeper than there are heads, or it mixes depths in
            one step and the heads are sequential.
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

    def init(self, params: Params, ctx: InitContext) -> MedusaState:
        """See `Drafter`.

        Raises:
          ConfigError: see `check_tree`.
        """
        self.check_tree(ctx.tree)
        c, path = self.config, ctx.tree.depth + 1
        sequences, length, _ = ctx.features.shape
        features, last = ctx.features, jnp.maximum(ctx.lengths - 1, 0)
        cache = None
        if c.prefix_heads:
            size = c.width // c.prefix_heads
            capacity = length + ctx.extra + path
            dtype = features.dtype
            cache = init_cache(1, sequences, c.prefix_heads, capacity, size, dtype)
            cache, _ = self._prefix(params, cache, features)
            cache = replace(cache, lengths=cache.lengths + last)
        features = jnp.take_along_axis(features, last[:, None, None], axis=1)
        features = jnp.pad(features, ((0, 0), (0, path - 1), (0, 0)))
        return MedusaState(features, jnp.ones(sequences, jnp.int32), cache)

    def propose(
        self, params: Params, state: MedusaState, ctx: DraftContext
    ) -> tuple[Draft, MedusaState]:
        """See `Drafter`."""
        c, network = self.config, self.network(params["own"])
        depths = ctx.tree.depth
        h, cache = target_norm(self.target, params, state.features), state.cache
        if c.prefix_heads:
            cache, h = self._prefix(params, cache, state.features)
            cache = replace(cache, lengths=cache.lengths + state.counts)
        last = jnp.maximum(state.counts - 1, 0)
        h = jnp.take_along_axis(h, last[:, None, None], axis=1)  # [R, 1, D]

        if c.sequential:
            draft, _ = grow(ctx, self._sequential_step(params, h, ctx), [])
        else:  # Medusa's logits depend on a node's depth only
            heads = [self.scores(params, i, network.head(i, h)) for i in range(depths)]
            logits = jnp.concatenate(heads, axis=1)
            index = ctx.index[:, None] + jnp.arange(depths)[None]
            draft = grow_by_depth(ctx, apply_cfg(logits, ctx.sampling, index))
        return draft, replace(state, cache=cache)

    def _sequential_step(self, params: Params, h: Array, ctx: DraftContext) -> Step:
        """Makes Hydra's step: a node's state is the list of tokens on its path."""
        network = self.network(params["own"])
        branches = len(h) // len(ctx.root)

        def step(depth, tokens, path, carry):
            path = [*path, tokens]  # [B, M] each
            embedded = [params["embedding"][x] for x in path]
            embedded = repeat_branches(jnp.concatenate(embedded, -1), branches)
            node_h = jnp.broadcast_to(h, (*embedded.shape[:2], h.shape[-1]))
            out = self.scores(params, depth, network.head(depth, node_h, embedded))
            index = ctx.index[:, None] + jnp.full(tokens.shape, depth)
            return apply_cfg(out, ctx.sampling, index), path, carry

        return step

    def observe(
        self, params: Params, state: MedusaState, result: RoundResult
    ) -> MedusaState:
        """See `Drafter`."""
        branches = state.counts.shape[0] // result.counts.shape[0]
        counts = repeat_branches(result.counts, branches)
        features = result.on_path(result.features)
        return replace(state, features=features, counts=counts)

    def _prefix(self, params, cache, features):
        """Writes committed features behind the cache; its `lengths` stay."""
        count = features.shape[1]
        size = self.config.width // self.config.prefix_heads
        positions = cache.lengths[:, None] + jnp.arange(count)[None]
        h, layer = self.network(params["own"]).prefix(
            target_norm(self.target, params, features),
            angles_of(self.target, positions, size),
            causal_mask(cache, count),
            cache.layers[0],
            cache.lengths,
        )
        return replace(cache, layers=(layer,)), h
