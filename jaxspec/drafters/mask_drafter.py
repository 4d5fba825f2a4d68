"""DEER: a masked-diffusion model of the tokens alone, in one denoising step."""

from dataclasses import dataclass, replace
from functools import partial

import jax.numpy as jnp

from jaxspec.drafters.grow import at_depth, grow
from jaxspec.drafters.small_model import ModelState, begin, both
from jaxspec.errors import ConfigError
from jaxspec.spec.cache import tree_mask
from jaxspec.spec.draft import Draft, DraftContext, InitContext, RoundResult
from jaxspec.spec.envelopes import DynamicTree
from jaxspec.spec.sampling import apply_cfg
from jaxspec.spec.target import Target
from jaxspec.spec.tree import Tree
from jaxspec.typing import Params


@dataclass(frozen=True)
class Deer:
    """A block of masks behind the committed tokens, filled in one pass.

    Committed tokens see what stands before them alone, and a block sees all of them and
    itself: so the drafter's cache is exact, and no token is read twice. It sees nothing
    of the target (DEER, arXiv 2512.15176); SpecDiff (arXiv 2408.05636) is the same with
    another training.

    Parameters: those of `model`.

    Attributes:
      model: the drafter as a `Target`; see `DraftModel.model`.
      block: masks, `G`.
      mask_token: id of the mask, one that is read and never drawn.
      shift: 0 if a row predicts the token in its own place (MDLM, LLaDA), 1 if the next
        one (Dream).
    """

    model: Target
    block: int
    mask_token: int
    shift: int = 0

    def __post_init__(self):
        if self.block < 1 or self.shift not in (0, 1):
            raise ConfigError("a block needs rows, and a shift of 0 or 1")

    @property
    def max_depth(self) -> int:
        """Most drafted tokens on a path."""
        return self.block + self.shift

    def check_tree(self, tree: Tree | DynamicTree) -> None:
        """Refuses trees that this drafter cannot fill.

        Raises:
          ConfigError: the tree is deeper than the block.
        """
        if tree.depth > self.max_depth:
            raise ConfigError(
                f"the tree is {tree.depth} deep, the block reaches {self.max_depth}; "
                "choose a shallower tree"
            )

    def init(self, params: Params, ctx: InitContext) -> ModelState:
        """See `spec.draft.Drafter`.

        Raises:
          ConfigError: see `check_tree`.
        """
        self.check_tree(ctx.tree)
        return begin(self.model, params, ctx, self.block)

    def propose(
        self, params: Params, state: ModelState, ctx: DraftContext
    ) -> tuple[Draft, ModelState]:
        """See `spec.draft.Drafter`."""
        rows, path = state.tokens.shape
        both_streams = partial(both, self.model)
        last = jnp.maximum(state.counts - 1, 0)
        place = jnp.arange(path)[None]
        fresh = jnp.where(place == last[:, None], ctx.root[:, None], state.tokens)
        masks = jnp.full((rows, self.block), self.mask_token, jnp.int32)
        begin = (ctx.position - last)[:, None]
        ahead = ctx.position[:, None] + 1 + jnp.arange(self.block)[None]
        width = path + self.block
        committed = jnp.arange(width)[None, None] <= last[:, None, None]  # [B, 1, U]
        block = jnp.arange(width)[None, None] >= path
        seen = jnp.tril(jnp.ones((path, width), bool))
        window = jnp.concatenate(
            [
                jnp.broadcast_to(seen, (rows, path, width)),
                jnp.broadcast_to(committed | block, (rows, self.block, width)),
            ],
            axis=1,
        )
        logits, _, cache = self.model.forward(
            params,
            state.cache,
            both_streams(jnp.concatenate([fresh, masks], axis=1)),
            both_streams(jnp.concatenate([begin + place, ahead], axis=1)),
            tree_mask(state.cache, both_streams(window)),
        )
        guesses = logits[:, path:]
        if self.shift:
            root = jnp.take_along_axis(
                logits, both_streams(last)[:, None, None], axis=1
            )
            guesses = jnp.concatenate([root, guesses], axis=1)
        guesses = guesses[:, : ctx.tree.depth]
        index = ctx.index[:, None] + jnp.arange(guesses.shape[1])[None]
        marginals = apply_cfg(guesses, ctx.sampling, index)

        def step(depth, tokens, own, shared):
            wide = (*tokens.shape, marginals.shape[-1])
            return jnp.broadcast_to(at_depth(marginals, depth), wide), own, shared

        draft, _ = grow(ctx, step)
        cache = replace(cache, lengths=cache.lengths + both_streams(state.counts))
        return draft, replace(state, cache=cache, counts=jnp.zeros_like(state.counts))

    def observe(
        self, params: Params, state: ModelState, result: RoundResult
    ) -> ModelState:
        """See `spec.draft.Drafter`; the tokens are read by the next `propose`."""
        return replace(state, tokens=result.tokens, counts=result.counts)
