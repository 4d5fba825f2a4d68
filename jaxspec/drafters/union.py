"""Two drafters in one tree."""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxspec.errors import ConfigError
from jaxspec.spec.draft import (
    Draft,
    DraftContext,
    Drafter,
    InitContext,
    RoundResult,
    extra_rows,
)
from jaxspec.spec.tree import Tree
from jaxspec.typing import Params


@dataclass(frozen=True)
class MergedDrafter:
    """Verifies the trees of two drafters side by side, under one root.

    Both share the target's pass, and learn from all of it. The round's tree has to be
    `union.tree`. Which drafter a token comes from follows no law, so the draft is a
    guess: for `Coupled` and other rules that do not rely on `q`. Source: RASD (arXiv
    2503.03434), whose merged prefixes save nodes; here the number of nodes is fixed.

    Parameters: a pair, the drafters'.

    Attributes:
      first: a drafter.
      second: another.
      first_tree: the static tree that `first` fills.
      second_tree: the static tree that `second` fills.
    """

    first: Drafter
    second: Drafter
    first_tree: Tree
    second_tree: Tree

    def __post_init__(self):
        parts = (self.first, self.first_tree), (self.second, self.second_tree)
        if any(extra_rows(drafter, tree) for drafter, tree in parts):
            raise ConfigError("drafters whose extra rows ride along cannot be united")

    @property
    def tree(self) -> Tree:
        """Both trees under one root; the second's ranks come behind the first's."""
        return self._layout()[0]

    def init(self, params: Params, ctx: InitContext) -> Any:
        """See `spec.draft.Drafter`.

        Raises:
          ConfigError: the engine's tree is another.
        """
        if ctx.tree != self.tree:
            raise ConfigError("a Union drafts on `union.tree`; give it to the engine")
        return tuple(
            drafter.init(own, replace(ctx, tree=tree))
            for drafter, own, tree in self._parts(params)
        )

    def propose(
        self, params: Params, state: Any, ctx: DraftContext
    ) -> tuple[Draft, Any]:
        """See `spec.draft.Drafter`."""
        drafts, states = [], []
        for (drafter, own, tree), before in zip(
            self._parts(params), state, strict=True
        ):
            draft, after = drafter.propose(own, before, replace(ctx, tree=tree))
            drafts.append(draft)
            states.append(after)
        order = self._layout()[1]
        tokens = jnp.concatenate([drafts[0].tokens, drafts[1].tokens[:, 1:]], axis=1)
        valid = jnp.concatenate([drafts[0].valid, drafts[1].valid[:, 1:]], axis=1)
        return Draft(tokens[:, order], valid[:, order]), tuple(states)

    def observe(self, params: Params, state: Any, result: RoundResult) -> Any:
        """See `spec.draft.Drafter`; each sees the whole tree."""
        return tuple(
            drafter.observe(own, before, result)
            for (drafter, own, _), before in zip(
                self._parts(params), state, strict=True
            )
        )

    def _parts(self, params: Params):
        own = (None, None) if params is None else params
        return (
            (self.first, own[0], self.first_tree),
            (self.second, own[1], self.second_tree),
        )

    def _layout(self) -> tuple[Tree, np.ndarray]:
        """The joint tree, and where each of its nodes is in both trees side by side."""
        first, second = self.first_tree.rank_paths, self.second_tree.rank_paths
        shift = 1 + max((path[0] for path in first if len(path) == 1), default=-1)
        paths = [*first, *((path[0] + shift, *path[1:]) for path in second[1:])]
        order = sorted(range(len(paths)), key=lambda n: (len(paths[n]), paths[n]))
        return Tree.from_paths(paths), np.array(order)
