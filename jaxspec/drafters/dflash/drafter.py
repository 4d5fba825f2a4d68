"""DFlash: a block-diffusion drafter that fills a draft tree in one denoising step."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from jaxspec.core.branches import repeat_branches
from jaxspec.core.kv_cache import KVCache, init_cache, write
from jaxspec.core.logits import apply_cfg
from jaxspec.drafters.common.checks import (
    check_children,
    check_feature_layers,
    check_width,
)
from jaxspec.drafters.common.feature_target import DrafterTarget
from jaxspec.drafters.common.target_params import shared_target_params
from jaxspec.drafters.dflash.acceptance_head import AcceptanceHead
from jaxspec.drafters.dflash.grid_context import row_above
from jaxspec.drafters.dflash.network import DFlashConfig, DFlashNetwork, KeysValues
from jaxspec.drafters.tree_drafting import at_depth, grow
from jaxspec.drafters.tree_drafting.select import drafter_log_probs
from jaxspec.errors import ConfigError
from jaxspec.nn.layers import head_scores
from jaxspec.nn.rope import angles_of
from jaxspec.speculative.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.topology import gather_nodes
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Array, Bool, Float, Int, Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DFlashState:
    """State of `DFlash` between rounds.

    Attributes:
      cache: keys and values of the context; a slot's index is its absolute position.
      pending: [R, A, E], features of the last accepted path, not in the cache yet.
      counts: int32 [R], number of valid entries in `pending`.
    """

    cache: KVCache
    pending: Float[Array, "R A E"]
    counts: Int[Array, "R"]


@dataclass(frozen=True)
class DFlash:
    """DFlash's drafter for a given target; static and hashable.

    A block is the root (the *anchor*) followed by mask tokens. Its queries attend to
    the target's features of all committed positions, injected as keys and values, and
    to each other. Each query predicts one of the next tokens.

    Sources: DFlash (arXiv 2602.06036) for the injected context, DSpark (arXiv
    2607.05147) for drafting from the anchor's own query and for the Markov head,
    JetSpec (arXiv 2606.18394) for causal blocks. New here: ranking children by
    `log q + noise`, and CFG over both branches of the drafter.

    Parameters are a dict, see `with_target_params`: the drafter's "own", the target's
    "embedding" [V, D] and "head" [D, V], which are shared and frozen, and the
    acceptance head's "stop".

    Attributes:
      config: configuration of the network.
      target: configuration of the target, or a `FeatureTarget` for a model of one's
        own.
      stop: acceptance head over `stop_states`, which `ConfidenceCutoff(source="head")`
        uses; None for none.
    """

    config: DFlashConfig
    target: DrafterTarget
    stop: AcceptanceHead | None = None

    def __post_init__(self):
        if self.stop is not None and self.stop.width != self.config.width:
            raise ConfigError(
                f"the acceptance head's width {self.stop.width} is not the drafter's "
                f"{self.config.width}"
            )
        if self.stop is not None and self.config.confidence:
            raise ConfigError(
                "confidence=True and an acceptance head predict the same; use one"
            )
        check_width(self.config.width, self.target, "they share embedding and head")
        if self.config.above and (
            self.target.rope != "grid"
            or self.target.order != "raster"
            or self.config.block_size >= self.target.grid
        ):
            raise ConfigError(
                "above=True needs a target on a grid in raster order, and a block "
                "shorter than an image row"
            )
        check_feature_layers(self.config.feature_layers, self.target)

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """Layers of the target whose outputs are read."""
        return self.config.feature_layers

    @property
    def max_depth(self) -> int:
        """Most drafted tokens on a path: the queries of a block that predict."""
        return self.config.block_size - self._first

    @property
    def _first(self) -> int:
        """Index of the query that predicts the token behind the anchor."""
        return int(self.config.same_place)

    def network(self, own: Params) -> DFlashNetwork:
        """Binds the Linen module to the drafter's own parameters."""
        return self._module.bind({"params": own})

    @property
    def _module(self) -> DFlashNetwork:
        return DFlashNetwork(self.config, self.target.vocab_size)

    def init_params(self, key: Array) -> Params:
        """Initializes the network's float32 parameters at random; consumes `key`."""
        c, t = self.config, self.target
        features = jnp.zeros((1, 1, t.width * len(c.feature_layers)))
        angles = jnp.zeros((1, 1, c.head_size // 2, 2))
        anchor = jnp.zeros((1, c.width))
        return self._module.init(key, features, angles, anchor)["params"]

    def with_target_params(
        self, own: Params, target_params: Params, stop: Params = None
    ) -> Params:
        """Joins the drafter's parameters with those it shares with the target."""
        shared = shared_target_params(self.target, target_params, norm=False)
        return {"own": own, **shared, "stop": stop}

    def stop_states(
        self,
        params: Params,
        h: Float[Array, "... D"],
        tokens: Int[Array, "..."],
    ) -> Float[Array, "... D"]:
        """Inputs of the acceptance head: a query's output and the drafted token.

        Args:
          params: parameters, see `with_target_params`.
          h: [..., D], outputs of the queries that predicted the tokens, in the
            conditional branch.
          tokens: int32 [...], drafted tokens.
        """
        return h + params["embedding"][tokens]

    def embed_above(
        self, params: Params, tokens: Int[Array, "B T"], index: Int[Array, "B ..."]
    ) -> Float[Array, "B ... E"]:
        """Embeddings of the nearest tokens in the image row above.

        Args:
          params: parameters, see `with_target_params`.
          tokens: int32 [B, T], tokens generated so far, in raster order.
          index: int32 [B, ...], image positions that the queries predict.

        Returns:
          Concatenated embeddings [..., 3 D]; 0 for tokens outside the image.
        """
        above, inside = row_above(tokens, index, self.target.grid)
        embedded = jnp.where(inside[..., None], params["embedding"][above], 0.0)
        return embedded.reshape(*index.shape, -1)

    def angles(self, positions: Int[Array, "R T"]) -> Float[Array, "R T f 2"]:
        """Rotary angles of absolute positions, as the target's at this head size."""
        return angles_of(self.target, positions, self.config.head_size)

    def check_tree(self, tree: Tree | DynamicTree) -> None:
        """Checks that this drafter can fill a tree.

        Raises:
          ConfigError: the tree is deeper than the block, or a node has more children
            than there are tokens.
        """
        if tree.depth > self.max_depth:
            raise ConfigError(
                f"the tree is {tree.depth} deep, the drafter's block has "
                f"{self.max_depth} tokens; choose a shallower tree"
            )
        check_children(tree, self.target.vocab_size)

    def init(self, params: Params, ctx: InitContext) -> DFlashState:
        """See `Drafter`.

        Raises:
          ConfigError: see `check_tree`.
        """
        self.check_tree(ctx.tree)
        c, features, depth = self.config, ctx.features, ctx.tree.depth
        sequences, length, width = features.shape
        # The path and the block are written behind the last committed position.
        capacity = length + ctx.extra + max(c.block_size, depth + 1)
        cache = init_cache(
            c.layers, sequences, c.num_kv_heads, capacity, c.head_size, features.dtype
        )
        cache = self._commit(params, cache, features, ctx.lengths)
        pending = jnp.zeros((sequences, depth + 1, width), features.dtype)
        return DFlashState(cache, pending, jnp.zeros(sequences, jnp.int32))

    def propose(
        self, params: Params, state: DFlashState, ctx: DraftContext
    ) -> tuple[Draft, DFlashState]:
        """See `Drafter`."""
        depth = ctx.tree.depth
        cache = self._commit(params, state.cache, state.pending, state.counts)
        h, cache = self._block_outputs(params, cache, ctx, depth)
        base = self._logits(params, h, ctx)  # [B, depth, V]
        path, refined = None, base
        for _ in range(self.config.refinements):
            path = self._best_path(params, refined, ctx)
            h, cache = self._block_outputs(params, cache, ctx, depth, path)
            refined = self._logits(params, h, ctx)

        def step(depth, tokens, on_path, carry):
            logits = at_depth(base, depth)
            if path is not None:  # refined logits hold only along the refined path
                refined_path = jnp.concatenate([ctx.root[:, None], path], axis=1)
                on_path &= tokens == at_depth(refined_path[..., None], depth)[..., 0]
                logits = jnp.where(on_path[..., None], at_depth(refined, depth), logits)
            if self.config.markov_rank:
                # The bias is the same in both branches, so CFG does not change it.
                logits = logits + self.network(params["own"]).markov(tokens)
            logits = jnp.broadcast_to(logits, (*tokens.shape, logits.shape[-1]))
            return logits, on_path, carry

        draft, _ = grow(ctx, step, jnp.ones((len(ctx.root), 1), bool))
        if self.stop is not None or self.config.confidence:
            draft = replace(draft, confidence=self._confidence(params, h, draft, ctx))
        return draft, replace(state, cache=cache, counts=jnp.zeros_like(state.counts))

    def _confidence(self, params, h, draft, ctx) -> Float[Array, "B N"]:
        """Predicts each node's acceptance from the query that predicted its token."""
        shape = draft.topology(ctx.tree)
        h = gather_nodes(h[: len(draft.tokens)], jnp.maximum(shape.depths - 1, 0))
        if self.stop is not None:
            states = self.stop_states(params, h, draft.tokens)
            return self.stop.confidence(params["stop"], states)
        before = jnp.take_along_axis(draft.tokens, shape.parents, axis=1)
        return jax.nn.sigmoid(self.network(params["own"]).confidence(h, before))

    def observe(
        self, params: Params, state: DFlashState, result: RoundResult
    ) -> DFlashState:
        """See `Drafter`; the next `propose` reads the features."""
        branches = state.counts.shape[0] // result.counts.shape[0]
        return replace(
            state,
            pending=result.on_path(result.features),
            counts=repeat_branches(result.counts, branches),
        )

    def _commit(self, params, cache, features, counts) -> KVCache:
        """Writes keys and values of newly committed positions."""
        positions = cache.lengths[:, None] + jnp.arange(features.shape[1])[None]
        network = self.network(params["own"])
        contexts = network.context(features, self.angles(positions))
        layers = tuple(
            (write(old_k, k, cache.lengths), write(old_v, v, cache.lengths))
            for (old_k, old_v), (k, v) in zip(cache.layers, contexts, strict=True)
        )
        return replace(cache, layers=layers, lengths=cache.lengths + counts)

    def _logits(
        self, params: Params, h: Array, ctx: DraftContext
    ) -> Float[Array, "B G V"]:
        """Logits of the block's queries, guidance merged."""
        logits = head_scores(params["head"], h)
        index = ctx.index[:, None] + jnp.arange(h.shape[1])[None]
        return apply_cfg(logits, ctx.sampling, index)

    def _best_path(
        self, params: Params, logits: Array, ctx: DraftContext
    ) -> Int[Array, "B G"]:
        """Selects the path of rank-0 tokens, as `grow` would with these logits."""
        token, path = ctx.root, []
        for depth in range(logits.shape[1]):
            scores = logits[:, depth]
            if self.config.markov_rank:
                scores = scores + self.network(params["own"]).markov(token)
            scores = drafter_log_probs(ctx, scores[:, None])[:, 0]
            if ctx.selection == "coupled":
                scores = scores + ctx.noise[:, depth]
            token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
            path.append(token)
        return jnp.stack(path, axis=1)

    def _block_outputs(
        self,
        params: Params,
        cache: KVCache,
        ctx: DraftContext,
        depth: int,
        path: Int[Array, "B G"] | None = None,
    ) -> tuple[Float[Array, "R G D"], KVCache]:
        """Runs the network over the block; its keys and values are scratch.

        In a causal block queries do not attend to later ones, so only as many queries
        as the tree is deep are computed.

        Args:
          params: parameters, see `with_target_params`.
          cache: keys and values of the context.
          ctx: the round.
          depth: depth of the tree.
          path: int32 [B, G], tokens of the last refinement; None for mask tokens.

        Returns:
          Outputs of the predicting queries, and the cache with the block's keys and
          values behind its `lengths`.
        """
        first = self._first
        queries = first + depth if self.config.causal else self.config.block_size
        branches = cache.lengths.shape[0] // ctx.root.shape[0]
        root = repeat_branches(ctx.root, branches)
        starts = cache.lengths
        positions = starts[:, None] + jnp.arange(queries)[None]
        mask = block_mask(cache, queries, self.config)
        written: list[KeysValues] = []

        def join_at(layer):
            def join(block):
                k = write(cache.layers[layer][0], block[0], starts)
                v = write(cache.layers[layer][1], block[1], starts)
                written.append((k, v))
                return k, v

            return join

        network = self.network(params["own"])
        drafted = None
        if path is not None:
            drafted = params["embedding"][path[:, :-1]]
            missing = self.config.block_size - 1 - drafted.shape[1]
            drafted = jnp.pad(drafted, ((0, 0), (0, missing), (0, 0)))
            drafted = repeat_branches(drafted, branches)
        above = None
        if self.config.above:
            index = ctx.index[:, None] + jnp.arange(self.config.block_size)[None]
            above = self.embed_above(params, ctx.tokens, index)
            above = repeat_branches(above, branches)
        h = network.block_input(params["embedding"][root], drafted, above)[:, :queries]
        joins = [join_at(layer) for layer in range(self.config.layers)]
        h = network.block(h, self.angles(positions), mask, joins)
        return h[:, first : first + depth], replace(cache, layers=tuple(written))


def block_mask(
    cache: KVCache, queries: int, config: DFlashConfig
) -> Bool[Array, "R G S"]:
    """Attention mask of a block: the committed context and the block itself.

    Args:
      cache: keys and values of the context, the block behind them.
      queries: number of the block's queries, `G`.
      config: configuration of the network; `causal` and `window` are used.
    """
    slot = jnp.arange(cache.capacity)[None] - cache.lengths[:, None]  # [R, S]
    query = jnp.arange(queries)[None, :, None]
    last = query if config.causal else jnp.full_like(query, queries - 1)
    mask = slot[:, None, :] <= last
    return mask & (slot[:, None, :] >= -config.window) if config.window else mask
