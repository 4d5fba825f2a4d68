"""DEER: a masked-diffusion draft model that fills a block in one denoising step."""

from dataclasses import dataclass, replace

import jax.numpy as jnp

from jaxspec.core.branches import repeat_branches
from jaxspec.core.kv_cache import tree_mask
from jaxspec.core.logits import apply_cfg
from jaxspec.drafters.draft_model.drafter import ModelState, prefill
from jaxspec.drafters.tree_drafting import grow_by_depth
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.speculative.target import Target
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Params


@dataclass(frozen=True)
class Deer:
    """A block of mask tokens behind the committed tokens, filled in one pass.

    Committed tokens attend causally; the block attends to all of them and to itself. So
    the drafter's KV cache is exact and every token is read once. The drafter reads
    nothing of the target (DEER, arXiv 2512.15176). SpecDiff (arXiv 2408.05636) is the
    same with another training.

    Parameters: those of `model`.

    Attributes:
      model: the draft model as a `Target`; see `DraftModel.model`.
      block: number of mask tokens, `G`.
      mask_token: id of the mask token, which is read and never generated.
      shift: 0 if a query predicts the token at its own position (MDLM, LLaDA), 1 if it
        predicts the next one (Dream).
    """

    model: Target
    block: int
    mask_token: int
    shift: int = 0

    def __post_init__(self):
        if self.block < 1 or self.shift not in (0, 1):
            raise ConfigError(
                f"block={self.block}, shift={self.shift}: use a block of at least 1 "
                "mask, and a shift of 0 or 1"
            )

    @property
    def max_depth(self) -> int:
        """Most drafted tokens on a path."""
        return self.block + self.shift

    def check_tree(self, tree: Tree | DynamicTree) -> None:
        """Checks that this drafter can fill a tree.

        Raises:
          ConfigError: the tree is deeper than the block.
        """
        if tree.depth > self.max_depth:
            raise ConfigError(
                f"the tree is {tree.depth} deep, the block drafts {self.max_depth} "
                "tokens; choose a shallower tree"
            )

    def init(self, params: Params, ctx: InitContext) -> ModelState:
        """See `Drafter`.

        Raises:
          ConfigError: see `check_tree`.
        """
        self.check_tree(ctx.tree)
        return prefill(self.model, params, ctx, self.block)

    def propose(
        self, params: Params, state: ModelState, ctx: DraftContext
    ) -> tuple[Draft, ModelState]:
        """See `Drafter`."""
        batch, path = state.tokens.shape
        branches = self.model.branches
        last = jnp.maximum(state.counts - 1, 0)
        offsets = jnp.arange(path)[None]
        tokens = jnp.where(offsets == last[:, None], ctx.root[:, None], state.tokens)
        masks = jnp.full((batch, self.block), self.mask_token, jnp.int32)
        start = (ctx.position - last)[:, None]
        block_positions = ctx.position[:, None] + 1 + jnp.arange(self.block)[None]
        width = path + self.block
        is_committed = jnp.arange(width)[None, None] <= last[:, None, None]
        is_block = jnp.arange(width)[None, None] >= path
        causal = jnp.tril(jnp.ones((path, width), bool))
        mask = jnp.concatenate(
            [
                jnp.broadcast_to(causal, (batch, path, width)),
                jnp.broadcast_to(is_committed | is_block, (batch, self.block, width)),
            ],
            axis=1,
        )
        queries = jnp.concatenate([tokens, masks], axis=1)
        positions = jnp.concatenate([start + offsets, block_positions], axis=1)
        logits, _, cache = self.model.forward(
            params,
            state.cache,
            repeat_branches(queries, branches),
            repeat_branches(positions, branches),
            tree_mask(state.cache, repeat_branches(mask, branches)),
        )
        block_logits = logits[:, path:]
        if self.shift:
            root = repeat_branches(last, branches)[:, None, None]
            root = jnp.take_along_axis(logits, root, axis=1)
            block_logits = jnp.concatenate([root, block_logits], axis=1)
        block_logits = block_logits[:, : ctx.tree.depth]
        index = ctx.index[:, None] + jnp.arange(block_logits.shape[1])[None]
        marginals = apply_cfg(block_logits, ctx.sampling, index)
        draft = grow_by_depth(ctx, marginals)
        lengths = cache.lengths + repeat_branches(state.counts, branches)
        cache = replace(cache, lengths=lengths)
        return draft, replace(state, cache=cache, counts=jnp.zeros_like(state.counts))

    def observe(
        self, params: Params, state: ModelState, result: RoundResult
    ) -> ModelState:
        """See `Drafter`; the next `propose` reads the tokens."""
        return replace(state, tokens=result.tokens, counts=result.counts)
