"""Falcon: a feature-based drafter that predicts a block of tokens per pass."""

import sys
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.core.branches import (
    merge_branches,
    repeat_branches,
    split_branches,
)
from jaxspec.core.kv_cache import KVCache, causal_mask, init_cache
from jaxspec.core.logits import apply_cfg
from jaxspec.drafters.common.checks import check_width
from jaxspec.drafters.common.feature_target import DrafterTarget
from jaxspec.drafters.common.history import following_tokens
from jaxspec.drafters.common.scratch import ScratchCache, insert_root
from jaxspec.drafters.common.target_params import shared_target_params, target_norm
from jaxspec.drafters.falcon.network import FalconConfig, FalconNetwork, windows_of
from jaxspec.drafters.tree_drafting import expansions, grow
from jaxspec.errors import ConfigError
from jaxspec.nn.layers import head_scores
from jaxspec.nn.rope import angles_of
from jaxspec.speculative.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.speculative.trees.dynamic import BestFirst, DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Array, Bool, Float, Int, Params


@register_dataclass
@dataclass(frozen=True)
class FalconState:
    """State of `Falcon` between rounds.

    The first `2 (G - 1)` pairs are those read last: the LSTM windows of new pairs
    reach back to them.

    Attributes:
      cache: keys and values of the (feature, token) pairs read so far.
      features: [R, 2 (G - 1) + A, E], the target's features of the pairs read last,
        then of committed positions not read yet.
      tokens: int32 [B, 2 (G - 1) + A], the token after each position; the root is last.
      counts: int32 [B], number of valid entries that were not read yet.
    """

    cache: KVCache
    features: Float[Array, "R T E"]
    tokens: Int[Array, "B T"]
    counts: Int[Array, "B"]


@dataclass(frozen=True)
class Falcon:
    """Predicts `G` features per pass from (feature, token) pairs (arXiv 2412.12639).

    A pair is a feature and the token after it. The last `G` pairs of a path attend to
    each other and to all pairs before. They predict the next `G` features and so, with
    the target's head, `G` levels of the tree; the later levels do not depend on the
    tokens of the earlier ones. Each query encodes its pair and the `G - 1` before it
    with an LSTM. (The release runs the LSTM over whole sequences, in an order that its
    code does not determine. A window needs no alignment, so the cache is exact wherever
    a round ends.)

    Parameters are a dict, see `with_target_params`: the drafter's "own", and the
    target's "embedding" [V, D], "head" [D, V] and "norm" [D].

    Attributes:
      config: configuration of the drafter.
      target: configuration of the target, or a `FeatureTarget` for a model of one's
        own.
    """

    config: FalconConfig
    target: DrafterTarget

    def __post_init__(self):
        check_width(self.config.width, self.target, "they share the embedding")

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """The target's last layer."""
        return (self.target.layers - 1,)

    @property
    def max_depth(self) -> int:
        """Unlimited: one block follows another."""
        return sys.maxsize

    def check_tree(self, tree: Tree | DynamicTree) -> None:
        """Checks that this drafter can fill a tree.

        Raises:
          ConfigError: the tree grows node by node, not level by level.
        """
        if isinstance(tree, BestFirst):
            raise ConfigError("Falcon drafts whole levels; use a static tree or a Beam")

    @property
    def network(self) -> FalconNetwork:
        """Linen module of the drafter."""
        return FalconNetwork(self.config)

    def init_params(self, key: Array) -> Params:
        """Initializes float32 parameters at random; consumes `key`."""
        c = self.config
        windows = jnp.zeros((1, 1, c.block, 2 * c.width))
        angles = jnp.zeros((1, 1, c.head_size // 2, 2))
        return self.network.init(key, windows, angles)["params"]

    def with_target_params(self, own: Params, target_params: Params) -> Params:
        """Joins the drafter's parameters with those it shares with the target."""
        return {
            "own": own,
            **shared_target_params(self.target, target_params, norm=True),
        }

    def pairs(
        self, params: Params, features: Float[Array, "R T E"], tokens: Int[Array, "R T"]
    ) -> Float[Array, "R T M"]:
        """Makes the LSTM's inputs [R, T, 2 D]; pairs without a token (-1) are 0."""
        h = target_norm(self.target, params, features)
        pairs = jnp.concatenate([params["embedding"][tokens], h], axis=-1)
        return jnp.where(tokens[..., None] >= 0, pairs, 0.0)

    def layer(
        self,
        params: Params,
        windows: Float[Array, "R T G M"],
        positions: Int[Array, "R T"],
        mask: Bool[Array, "R T S"],
        cache: tuple[Array, Array],
        starts: Int[Array, "R"],
    ) -> tuple[Float[Array, "R T D"], Any]:
        """Predicts the features after each window.

        Args:
          params: parameters, see `with_target_params`.
          windows: [R, T, G, 2 D], windows of pairs, see `windows_of`.
          positions: int32 [R, T], absolute positions; negative ones count as 0.
          mask: bool [R, T, S], cache slots that each query attends to.
          cache: keys and values of the layer.
          starts: int32 [R], first cache slot that is written.

        Returns:
          Features [R, T, D], and the cache with the new keys and values.
        """
        network = self.network.bind({"params": params["own"]})
        positions = jnp.maximum(positions, 0)
        angles = angles_of(self.target, positions, self.config.head_size)
        return network.layer(network.read(windows), angles, mask, cache, starts)

    def scores(self, params: Params, h: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Logits float32 of predicted features."""
        return head_scores(params["head"], h)

    def init(self, params: Params, ctx: InitContext) -> FalconState:
        """See `Drafter`; reads all pairs of the prompts but the last.

        Raises:
          ConfigError: see `check_tree`.
        """
        self.check_tree(ctx.tree)
        c, path = self.config, ctx.tree.depth + 1
        sequences, length, _ = ctx.features.shape
        before = 2 * (c.block - 1)
        scratch = c.block * (1 + expansions(ctx.tree)[0])
        capacity = length + ctx.extra + path + scratch
        dtype = ctx.features.dtype
        cache = init_cache(1, sequences, c.heads, capacity, c.head_size, dtype)
        tokens = following_tokens(ctx)
        pad = ((0, 0), (before, 0))
        features = jnp.pad(ctx.features, (*pad, (0, 0)))
        tokens = jnp.pad(tokens, pad, constant_values=-1)
        cache = self._commit(params, cache, self.pairs(params, features, tokens))
        last = jnp.maximum(ctx.lengths - 1, 0)
        cache = replace(cache, lengths=cache.lengths + last)
        index = last[:, None] + jnp.arange(before + 1)[None]
        features = jnp.take_along_axis(features, index[..., None], axis=1)
        tokens = jnp.take_along_axis(tokens[: ctx.batch], index[: ctx.batch], axis=1)
        pad = ((0, 0), (0, path - 1))
        return FalconState(
            cache,
            jnp.pad(features, (*pad, (0, 0))),
            jnp.pad(tokens, pad),
            jnp.ones(ctx.batch, jnp.int32),
        )

    def propose(
        self, params: Params, state: FalconState, ctx: DraftContext
    ) -> tuple[Draft, FalconState]:
        """See `Drafter`."""
        size, batch = self.config.block, len(ctx.root)
        before = 2 * (size - 1)
        branches = len(state.features) // batch
        counts = jnp.maximum(state.counts, 1)
        tokens = insert_root(state.tokens, ctx.root, before + counts - 1)
        pairs = self.pairs(params, state.features, repeat_branches(tokens, branches))
        cache = self._commit(params, state.cache, pairs)
        lengths = cache.lengths + repeat_branches(state.counts, branches)
        cache = replace(cache, lengths=lengths)
        index = jnp.arange(before + 1)[None]
        index = repeat_branches(counts, branches)[:, None] - 1 + index
        last_pairs = jnp.take_along_axis(pairs, index[..., None], axis=1)
        draft, cache = self._grow(params, cache, last_pairs, ctx)
        index = counts[:, None] + jnp.arange(before)[None]
        last_features = jnp.take_along_axis(
            state.features, repeat_branches(index, branches)[..., None], axis=1
        )
        last_tokens = jnp.take_along_axis(tokens, index, axis=1)
        return draft, FalconState(
            cache,
            state.features.at[:, :before].set(last_features),
            tokens.at[:, :before].set(last_tokens),
            jnp.zeros_like(state.counts),
        )

    def _grow(
        self,
        params: Params,
        cache: KVCache,
        last_pairs: Float[Array, "R T M"],
        ctx: DraftContext,
    ) -> tuple[Draft, KVCache]:
        """Drafts `G` levels per pass, the pairs of its nodes in scratch slots.

        Args:
          params: parameters, see `with_target_params`.
          cache: keys and values of all committed pairs, the root's included.
          last_pairs: [R, 2 G - 1, 2 D], the last of these pairs.
          ctx: the round.
        """
        size, batch = self.config.block, len(ctx.root)
        sequences = len(last_pairs)
        branches = sequences // batch
        root_h, layer = self._read_last_block(params, cache, last_pairs)
        slots = size * expansions(ctx.tree)[0]

        def step(depth, tokens, node_state, scratch):
            # Scratch slots of the ancestors; pairs of the last block; features
            # predicted for this block, and embeddings of the tokens drafted with them.
            ancestors, pairs, h, embedded = node_state
            count = tokens.shape[1]
            if depth:  # a node's token is paired with the feature predicted for it
                token_embedding = params["embedding"][repeat_branches(tokens, branches)]
                token_embedding = split_branches(token_embedding, batch)
                embedded = embedded.at[:, :, :, (depth - 1) % size].set(token_embedding)
            if depth and depth % size == 0:
                block = jnp.concatenate([embedded, h], axis=-1)
                run = jnp.concatenate([pairs, block], axis=-2)[..., 1:, :]
                run = merge_branches(run).reshape(sequences * count, -1, run.shape[-1])
                windows = windows_of(run, size)
                windows = windows.reshape(sequences, count * size, size, -1)
                ancestors, mask, at_slots = scratch.reserve(ancestors, size)
                offset = depth - size + jnp.tile(jnp.arange(size), count)[None]
                positions = scratch.cache.lengths[:, None] + offset
                layer, starts = at_slots.layers[0], at_slots.lengths
                out, layer = self.layer(params, windows, positions, mask, layer, starts)
                h = split_branches(out.reshape(sequences, count, size, -1), batch)
                pairs, scratch = block, scratch.store((layer,), count * size)
            predicted = merge_branches(h[:, :, :, depth % size])
            index = ctx.index[:, None] + depth
            logits = apply_cfg(self.scores(params, predicted), ctx.sampling, index)
            return logits, (ancestors, pairs, h, embedded), scratch

        no_ancestors = jnp.zeros((batch, 1, slots), bool)
        pairs = split_branches(last_pairs[:, None, size - 1 :], batch)
        h = split_branches(root_h[:, None], batch)
        root_state = no_ancestors, pairs, h, jnp.zeros_like(h)
        scratch = ScratchCache(replace(cache, layers=(layer,)), 0, slots)
        draft, scratch = grow(ctx, step, root_state, scratch)
        return draft, scratch.cache

    def _read_last_block(self, params, cache, last_pairs):
        """Features that follow the last `G` pairs, which now attend to each other.

        Their keys and values go to scratch slots, which no node reads.
        """
        size, sequences = self.config.block, len(last_pairs)
        mask = jnp.arange(cache.capacity)[None] < cache.lengths[:, None]
        mask &= cache.visible
        return self.layer(
            params,
            windows_of(last_pairs, size),
            cache.lengths[:, None] - size + jnp.arange(size)[None],
            jnp.broadcast_to(mask[:, None], (sequences, size, cache.capacity)),
            cache.layers[0],
            cache.lengths,
        )

    def observe(
        self, params: Params, state: FalconState, result: RoundResult
    ) -> FalconState:
        """See `Drafter`; the next `propose` reads the pairs."""
        before = 2 * (self.config.block - 1)
        return FalconState(
            state.cache,
            state.features.at[:, before:].set(result.on_path(result.features)),
            state.tokens.at[:, before:].set(result.tokens),
            result.counts,
        )

    def _commit(self, params, cache, pairs) -> KVCache:
        """Writes the pairs not read yet behind the cache; its `lengths` stay."""
        size = self.config.block
        windows = windows_of(pairs[:, size - 1 :], size)
        count = windows.shape[1]
        positions = cache.lengths[:, None] + jnp.arange(count)[None]
        mask, layer = causal_mask(cache, count), cache.layers[0]
        _, layer = self.layer(params, windows, positions, mask, layer, cache.lengths)
        return replace(cache, layers=(layer,))
