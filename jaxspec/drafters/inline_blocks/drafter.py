"""Inline draft blocks: extra queries in the verify pass that draft the next round."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxspec.config import TransformerConfig
from jaxspec.drafters.tree_drafting import grow_by_depth
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import (
    Draft,
    DraftContext,
    ExtraQueries,
    InitContext,
    RoundResult,
)
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.topology import gather_nodes
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Array, Bool, Float, Params


@register_dataclass
@dataclass(frozen=True)
class InlineState:
    """Predictions of the block behind the last accepted node.

    Attributes:
      logits: float32 [B, G, V], logits of the `G` tokens after the root.
      known: bool [B], whether there were such predictions; False before the first pass.
    """

    logits: Float[Array, "B G V"]
    known: Bool[Array, "B"]


@dataclass(frozen=True)
class InlineBlocks:
    """Appends to each node of the draft tree a block that predicts its continuation.

    Whichever node is accepted last, the pass that accepted it has also drafted what
    comes after it. A block attends to the committed past, its node, the node's
    ancestors and itself; no other query attends to a block.

    `tidar` and `ppd_blocks` make the published kinds. No parameters: trained are the
    target (TiDAR) or embeddings of its extra tokens (PPD).

    Attributes:
      vocab_size: vocabulary size `V`.
      ids: token ids of a block's queries, usually the target's `extra_tokens`.
      whole: whether the queries of a block attend to each other in both directions;
        else causally.
      shift: offset of the predicted token from the query's own position: 1 for
        next-token prediction, 0 for queries that predict the token at their own
        position. Query `j` (from 1) has the position `j` after its node.
    """

    vocab_size: int
    ids: tuple[int, ...]
    whole: bool
    shift: int

    def __post_init__(self):
        if not self.ids or self.shift not in (0, 1):
            raise ConfigError(
                f"ids={self.ids}, shift={self.shift}: use a block of at least 1 query, "
                "and a shift of 0 or 1"
            )

    @property
    def max_depth(self) -> int:
        """Tokens that a block predicts beyond the next root."""
        return len(self.ids) + self.shift - 1

    def num_extra_queries(self, tree: Tree | DynamicTree) -> int:
        """Extra queries: one block for each node of the tree."""
        return tree.size * len(self.ids)

    def check_tree(self, tree: Tree | DynamicTree) -> None:
        """Checks that blocks can draft a tree.

        Raises:
          ConfigError: the tree is deeper than the blocks, or not static.
        """
        if not isinstance(tree, Tree):
            raise ConfigError("inline blocks need a static tree, such as chain-3")
        if tree.depth > self.max_depth:
            raise ConfigError(
                f"the tree is {tree.depth} deep, blocks of {len(self.ids)} queries "
                f"draft {self.max_depth} tokens after the root; choose a shallower tree"
            )

    def init(self, params: Params, ctx: InitContext) -> InlineState:
        """See `Drafter`.

        Raises:
          ConfigError: see `check_tree`.
        """
        self.check_tree(ctx.tree)
        logits = jnp.zeros((ctx.batch, self.max_depth, self.vocab_size), jnp.float32)
        return InlineState(logits, jnp.zeros(ctx.batch, bool))

    def propose(
        self, params: Params, state: InlineState, ctx: DraftContext
    ) -> tuple[Draft, InlineState]:
        """See `Drafter`; before the first pass all nodes are invalid."""
        draft = grow_by_depth(ctx, state.logits)
        draft = draft.keep(state.known[:, None], past=True)
        return replace(draft, extra=self._extra_queries(ctx)), state

    def observe(
        self, params: Params, state: InlineState, result: RoundResult
    ) -> InlineState:
        """Stores the predictions of the block behind the last accepted node."""
        assert result.extra_logits is not None
        batch, size = len(result.path), len(self.ids)
        last = jnp.take_along_axis(result.path, result.accepted[:, None], axis=1)
        blocks = result.extra_logits.reshape(batch, result.tree.size, size, -1)
        logits = gather_nodes(blocks, last)[:, 0, size - self.max_depth :]
        return InlineState(logits, jnp.ones(batch, bool))

    def _extra_queries(self, ctx: DraftContext) -> ExtraQueries:
        """Makes the blocks of all nodes, ordered by node."""
        tree, size = ctx.tree, len(self.ids)
        assert isinstance(tree, Tree)  # see `check_tree`
        count, batch = self.num_extra_queries(tree), ctx.root.shape[0]
        node, query = np.divmod(np.arange(count), size)
        offset = jnp.asarray(tree.depths[node] + 1 + query, jnp.int32)
        positions = ctx.position[:, None] + offset[None]
        same_block = node[:, None] == node
        if not self.whole:
            same_block &= query[:, None] >= query
        mask = np.concatenate([tree.ancestors[node], same_block], axis=1)
        tokens = jnp.asarray(np.array(self.ids, np.int32)[query])
        return ExtraQueries(
            jnp.broadcast_to(tokens, (batch, count)),
            positions,
            jnp.broadcast_to(mask, (batch, *mask.shape)),
            self.shift,
        )


def tidar(target: TransformerConfig, block: int) -> InlineBlocks:
    """Makes TiDAR's blocks of mask tokens (arXiv 2511.08923).

    The first query of a block has the position of the next root. It is not used: the
    target's next-token logits decide the root. The paper's tree is
    `Tree.chain(block - 1)`.

    Args:
      target: configuration of a target trained as TiDAR; its first extra token is the
        mask.
      block: number of queries of a block, 4 to 16 in the paper.
    """
    _check_extra_tokens(target, 1)
    ids = (target.vocab_size,) * block
    return InlineBlocks(target.vocab_size, ids, whole=True, shift=0)


def ppd_blocks(target: TransformerConfig, count: int) -> InlineBlocks:
    """Makes parallel prompt decoding (arXiv 2405.18628): trained tokens per node.

    Args:
      target: configuration of a target whose extra tokens are the prompt tokens.
      count: number of prompt tokens; 3 in the paper.
    """
    _check_extra_tokens(target, count)
    ids = tuple(range(target.vocab_size, target.vocab_size + count))
    return InlineBlocks(target.vocab_size, ids, whole=False, shift=1)


def _check_extra_tokens(target: TransformerConfig, count: int) -> None:
    """Raises `ConfigError` if the target has too few extra tokens."""
    if target.extra_tokens < count:
        raise ConfigError(
            f"the target has {target.extra_tokens} extra tokens, {count} are needed; "
            "set TransformerConfig.extra_tokens and see `with_extra_tokens`"
        )


def with_extra_tokens(params: Params, rows: Float[Array, "M D"]) -> Params:
    """Appends embeddings of extra tokens to a target's parameters.

    The vocabulary and the output head stay as they are, so the target generates the
    same tokens as before.

    Args:
      params: parameters of the target.
      rows: float [M, D], embeddings of `M` extra tokens.
    """
    table = params["embedding"]["embedding"]
    table = jnp.concatenate([table, rows.astype(table.dtype)])
    return {**params, "embedding": {**params["embedding"], "embedding": table}}
