"""EAGLE: a decoder layer that predicts the target's next features."""

import sys
from dataclasses import dataclass, replace

import jax.numpy as jnp
from jax.tree_util import register_dataclass

from jaxspec.core.branches import (
    merge_branches,
    repeat_branches,
    split_branches,
)
from jaxspec.core.kv_cache import KVCache, causal_mask, init_cache
from jaxspec.core.logits import apply_cfg
from jaxspec.drafters.common.checks import (
    check_children,
    check_feature_layers,
    check_width,
)
from jaxspec.drafters.common.feature_target import DrafterTarget
from jaxspec.drafters.common.history import following_tokens
from jaxspec.drafters.common.scratch import ScratchCache, insert_root
from jaxspec.drafters.common.target_params import shared_target_params, target_norm
from jaxspec.drafters.eagle.draft_vocabulary import widened
from jaxspec.drafters.eagle.network import EagleConfig, EagleNetwork
from jaxspec.drafters.tree_drafting import expansions, grow
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.prompts import CaptionPadding
from jaxspec.nn.layers import head_scores
from jaxspec.nn.rope import angles_of, sequence_angles
from jaxspec.speculative.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Array, Float, Int, Params


@register_dataclass
@dataclass(frozen=True)
class EagleState:
    """State of `Eagle` between rounds.

    Attributes:
      cache: keys and values of the (feature, token) pairs read so far.
      features: [R, A, E], the target's features of committed positions not read yet.
      tokens: int32 [B, A], the token after each of these positions; the root is last.
      counts: int32 [B], number of valid entries in `tokens`.
    """

    cache: KVCache
    features: Float[Array, "R A E"]
    tokens: Int[Array, "B A"]
    counts: Int[Array, "B"]


@dataclass(frozen=True)
class Eagle:
    """Predicts the next feature from a feature and the token after it, repeatedly.

    With `version=1` this is EAGLE's head (arXiv 2401.15077), as LANTERN uses it: it
    reads the last layer's features and drafts a static tree or, as EAGLE-2 (arXiv
    2406.16858), a `Beam`. With `version=3` it is EAGLE-3's head (arXiv 2503.01840): it
    reads features of several layers, has its own output norm, and may draft from a
    reduced vocabulary.

    Parameters are a dict, see `with_target_params`: the drafter's "own", and the
    target's "embedding" [V, D], "head" [D, V] and "norm" [D].

    Attributes:
      config: configuration of the drafter.
      target: configuration of the target, or a `FeatureTarget` for a model of one's
        own.
    """

    config: EagleConfig
    target: DrafterTarget

    def __post_init__(self):
        c, t = self.config, self.target
        shares_nothing = c.version == 3 and c.own_embedding and c.draft_vocab
        if not shares_nothing:
            check_width(
                c.width,
                t,
                "they share the embedding or the head, unless version 3 has its own: "
                "own_embedding=True and a draft_vocab",
            )
        if c.version == 1 and c.feature_layers != (t.layers - 1,):
            raise ConfigError(
                f"EAGLE-1 reads the last layer alone: feature_layers=({t.layers - 1},)"
            )
        check_feature_layers(c.feature_layers, t)

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """Layers of the target whose outputs are read."""
        return self.config.feature_layers

    @property
    def caption_padding(self) -> CaptionPadding:
        """Attention of padded caption positions in the target."""
        return self.config.caption_padding

    @property
    def max_depth(self) -> int:
        """Unlimited: the head continues from its own features."""
        return sys.maxsize

    def check_tree(self, tree: Tree | DynamicTree) -> None:
        """Checks that this drafter can fill a tree.

        Raises:
          ConfigError: a node has more children than there are tokens.
        """
        check_children(tree, self.config.draft_vocab or self.target.vocab_size)

    def network(self, own: Params) -> EagleNetwork:
        """Binds the Linen module to the drafter's own parameters."""
        return self._module.bind({"params": own})

    @property
    def _module(self) -> EagleNetwork:
        return EagleNetwork(self.config, self.target.vocab_size)

    def init_params(self, key: Array) -> Params:
        """Initializes float32 parameters at random; consumes `key`."""
        c, t = self.config, self.target
        embedding = jnp.zeros((1, 1, c.width))
        features = jnp.zeros((1, 1, t.width * len(c.feature_layers)))
        angles = jnp.zeros((1, 1, c.head_size // 2, 2))
        return self._module.init(key, features, embedding, angles)["params"]

    def with_target_params(self, own: Params, target_params: Params) -> Params:
        """Joins the drafter's parameters with those it shares with the target."""
        shared = shared_target_params(self.target, target_params, norm=True)
        if self.config.own_embedding:
            shared["embedding"] = own["embedding"]
        return {"own": own, **shared}

    def angles(self, positions: Int[Array, "R T"]) -> Float[Array, "R T f 2"]:
        """Rotary angles of pairs whose features are at `positions`.

        A pair uses the rotary position of its token, one after that of its feature, as
        in LANTERN. On a grid the pair that begins an image then has the position of the
        first grid cell, not the zero angles of the condition. With one-dimensional
        positions this makes no difference: only distances count.
        """
        c, token_positions = self.config, positions + 1
        if c.rope_base is not None:
            return sequence_angles(
                token_positions, c.head_size, c.rope_base, c.rope_scaling
            )
        return angles_of(self.target, token_positions, c.head_size)

    def inputs(
        self, params: Params, features: Float[Array, "... E"]
    ) -> Float[Array, "... D"]:
        """Maps the target's features to the head's input."""
        if self.config.version == 3:
            return self.network(params["own"]).join(features)
        return target_norm(self.target, params, features)

    def scores(self, params: Params, h: Float[Array, "... D"]) -> Float[Array, "... M"]:
        """Logits float32 of predicted features; `M` is the draft vocabulary's size."""
        own, head = params["own"], params["head"]
        if self.config.version == 3:
            h = self.network(own).normed(h)
            head = own["head"] if self.config.draft_vocab else head
        return head_scores(head, h)

    def init(self, params: Params, ctx: InitContext) -> EagleState:
        """See `Drafter`; reads all pairs of the prompts but the last.

        Raises:
          ConfigError: see `check_tree`.
        """
        self.check_tree(ctx.tree)
        c, path = self.config, ctx.tree.depth + 1
        sequences, length, _ = ctx.features.shape
        capacity = length + ctx.extra + path + expansions(ctx.tree)[0]
        cache = init_cache(
            1, sequences, c.num_kv_heads, capacity, c.head_size, ctx.features.dtype
        )
        tokens = following_tokens(ctx)
        last = jnp.maximum(ctx.lengths - 1, 0)
        cache, _ = self._read(params, cache, ctx.features, tokens)
        cache = replace(cache, lengths=cache.lengths + last)
        features = jnp.take_along_axis(ctx.features, last[:, None, None], axis=1)
        return EagleState(
            cache,
            jnp.pad(features, ((0, 0), (0, path - 1), (0, 0))),
            jnp.zeros((ctx.batch, path), jnp.int32),
            jnp.ones(ctx.batch, jnp.int32),
        )

    def propose(
        self, params: Params, state: EagleState, ctx: DraftContext
    ) -> tuple[Draft, EagleState]:
        """See `Drafter`."""
        batch = len(state.tokens)
        branches = state.features.shape[0] // batch
        last = jnp.maximum(state.counts - 1, 0)
        tokens = insert_root(state.tokens, ctx.root, last)
        cache, h = self._read(
            params, state.cache, state.features, repeat_branches(tokens, branches)
        )
        last = repeat_branches(last, branches)[:, None, None]
        root_h = jnp.take_along_axis(h, last, axis=1)
        lengths = cache.lengths + repeat_branches(state.counts, branches)
        cache, slots = replace(cache, lengths=lengths), expansions(ctx.tree)[0]

        def step(depth, tokens, node_state, scratch):
            ancestors, parent_h = node_state
            offset = jnp.broadcast_to(jnp.reshape(depth, (-1, 1)), tokens.shape)
            if scratch.used is None:  # the root's pair was read with the committed ones
                h, scratch = root_h, replace(scratch, used=0)
            else:
                ancestors, mask, at_slots = scratch.reserve(ancestors)
                positions = lengths[:, None] - 1 + repeat_branches(offset, branches)
                h, layer = self.network(params["own"]).layer(
                    params["embedding"][repeat_branches(tokens, branches)],
                    merge_branches(parent_h),
                    self.angles(positions),
                    mask,
                    at_slots.layers[0],
                    at_slots.lengths,
                )
                scratch = scratch.store((layer,), tokens.shape[1])
            logits = self.scores(params, h)
            logits = apply_cfg(logits, ctx.sampling, ctx.index[:, None] + offset)
            if self.config.draft_vocab:  # after guidance: -inf less -inf is NaN
                ids = params["own"]["ids"]
                logits = widened(logits, ids, self.target.vocab_size)
            return logits, (ancestors, split_branches(h, batch)), scratch

        no_ancestors = jnp.zeros((batch, 1, slots), bool)
        root_state = no_ancestors, split_branches(jnp.zeros_like(root_h), batch)
        scratch = ScratchCache(cache, None, slots)
        draft, scratch = grow(ctx, step, root_state, scratch)
        counts = jnp.zeros_like(state.counts)
        return draft, replace(state, cache=scratch.cache, counts=counts)

    def observe(
        self, params: Params, state: EagleState, result: RoundResult
    ) -> EagleState:
        """See `Drafter`; the next `propose` reads the pairs."""
        return replace(
            state,
            features=result.on_path(result.features),
            tokens=result.tokens,
            counts=result.counts,
        )

    def _read(self, params, cache, features, tokens):
        """Writes committed pairs behind the cache; its `lengths` stay."""
        count = features.shape[1]
        positions = cache.lengths[:, None] + jnp.arange(count)[None]
        h, layer = self.network(params["own"]).layer(
            params["embedding"][tokens],
            self.inputs(params, features),
            self.angles(positions),
            causal_mask(cache, count),
            cache.layers[0],
            cache.lengths,
        )
        return replace(cache, layers=(layer,)), h
