"""Two drafters whose trees are verified together."""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import (
    Draft,
    DraftContext,
    Drafter,
    InitContext,
    RoundResult,
    join_target_params,
    num_extra_queries,
)
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Params


@dataclass(frozen=True)
class MergedDrafter:
    """Verifies the trees of two drafters side by side, under one root.

    Both trees are scored in one pass of the target, and both drafters observe the whole
    result. The engine's tree must be `MergedDrafter.tree`. The merged tokens follow no
    known distribution, so the draft's selection is "guess": use `Coupled` or another
    verifier that does not rely on `q`. Source: RASD (arXiv 2503.03434), which merges
    common prefixes to save nodes; here the number of nodes is fixed.

    Parameters: a pair, one for each drafter.

    Attributes:
      first: a drafter.
      second: another drafter.
      first_tree: static tree that `first` fills.
      second_tree: static tree that `second` fills.
    """

    first: Drafter
    second: Drafter
    first_tree: Tree
    second_tree: Tree

    def __post_init__(self):
        parts = (self.first, self.first_tree), (self.second, self.second_tree)
        if any(num_extra_queries(drafter, tree) for drafter, tree in parts):
            raise ConfigError("drafters with extra queries cannot be merged")

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """Layers that the drafters read; missing if neither names any.

        Raises:
          ConfigError: the drafters read different layers.
        """
        layers = {
            getattr(drafter, "feature_layers")  # noqa: B009
            for drafter in (self.first, self.second)
            if hasattr(drafter, "feature_layers")
        }
        if not layers:
            raise AttributeError("neither drafter names feature layers")
        if len(layers) > 1:
            raise ConfigError(f"merged drafters read the same layers, not {layers}")
        return layers.pop()

    def with_target_params(self, own: Params, target_params: Params) -> Params:
        """Joins the parameters of both drafters with the target's that they read.

        Args:
          own: pair of the drafters' own parameters.
          target_params: parameters of the target.
        """
        return tuple(
            join_target_params(drafter, params, target_params)
            for drafter, params, _ in self._parts(own)
        )

    @property
    def tree(self) -> Tree:
        """Both trees under one root; the second's ranks follow the first's."""
        return self._layout()[0]

    def init(self, params: Params, ctx: InitContext) -> Any:
        """See `Drafter`.

        Raises:
          ConfigError: the engine has another tree.
        """
        if ctx.tree != self.tree:
            raise ConfigError(
                "a MergedDrafter fills its own `tree`; give that tree to the engine"
            )
        return tuple(
            drafter.init(drafter_params, replace(ctx, tree=tree))
            for drafter, drafter_params, tree in self._parts(params)
        )

    def propose(
        self, params: Params, state: Any, ctx: DraftContext
    ) -> tuple[Draft, Any]:
        """See `Drafter`."""
        drafts, states = [], []
        for (drafter, drafter_params, tree), old in zip(
            self._parts(params), state, strict=True
        ):
            draft, new = drafter.propose(drafter_params, old, replace(ctx, tree=tree))
            drafts.append(draft)
            states.append(new)
        order = self._layout()[1]
        tokens = jnp.concatenate([drafts[0].tokens, drafts[1].tokens[:, 1:]], axis=1)
        valid = jnp.concatenate([drafts[0].valid, drafts[1].valid[:, 1:]], axis=1)
        return Draft(tokens[:, order], valid[:, order]), tuple(states)

    def observe(self, params: Params, state: Any, result: RoundResult) -> Any:
        """See `Drafter`; each drafter observes the merged tree."""
        return tuple(
            drafter.observe(drafter_params, old, result)
            for (drafter, drafter_params, _), old in zip(
                self._parts(params), state, strict=True
            )
        )

    def _parts(self, params: Params):
        first, second = (None, None) if params is None else params
        return (
            (self.first, first, self.first_tree),
            (self.second, second, self.second_tree),
        )

    def _layout(self) -> tuple[Tree, np.ndarray]:
        """Builds the merged tree, and the order that its nodes have in it.

        The order indexes the nodes of the first tree, followed by those of the second
        without its root.
        """
        first, second = self.first_tree.rank_paths, self.second_tree.rank_paths
        shift = 1 + max((path[0] for path in first if len(path) == 1), default=-1)
        paths = [*first, *((path[0] + shift, *path[1:]) for path in second[1:])]
        order = sorted(range(len(paths)), key=lambda n: (len(paths[n]), paths[n]))
        return Tree.from_paths(paths), np.array(order)
