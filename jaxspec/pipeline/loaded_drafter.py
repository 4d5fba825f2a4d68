"""A drafter with its parameters, ready for the prior of a bundle."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from jaxspec.checkpoint import Checkpoint
from jaxspec.speculative.draft import Drafter
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.parsing import Acceptance, tree_for, tree_size
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Params


@dataclass(frozen=True)
class LoadedDrafter:
    """Drafter with its parameters, for the prior of a bundle.

    Attributes:
      name: name in reports.
      drafter: static functions of the drafter.
      params: parameters, together with those of the target that the drafter reads.
      size: number of parameters of the drafter alone.
      trained_seconds: time of its training, in seconds; None if it was not trained.
      prior: the target, if the drafter is part of it.
      acceptance: measured acceptance by depth and rank, see `Tree.optimal`; None if it
        was not measured.
      by_size: the same for trees of several numbers of nodes, ascending, of a drafter
        whose drafts depend on the tree; empty for others.
      overlap: overlap `sum min(p, q)` of the first drafted token with the target, as
        training measured it; None without a record.
    """

    name: str
    drafter: Drafter
    params: Params
    size: int = 0
    trained_seconds: float | None = None
    prior: Checkpoint | None = None
    acceptance: Acceptance | None = None
    overlap: float | None = None
    by_size: tuple[tuple[int, Acceptance], ...] = ()

    def acceptance_at(self, nodes: int) -> Acceptance | None:
        """Acceptance measured with a tree of about as many nodes, but no more.

        Args:
          nodes: nodes of a tree, its root included.
        """
        sizes = [size for size, _ in self.by_size]
        if not sizes:
            return self.acceptance
        return self.by_size[max(bisect_right(sizes, nodes) - 1, 0)][1]

    def tree(self, name: str | None = None) -> Tree | DynamicTree:
        """Draft tree by name, or the default of the device, see `tree_for`.

        Raises:
          ConfigError: no such tree.
        """
        nodes = tree_size(name)
        acceptance = self.acceptance if nodes is None else self.acceptance_at(nodes)
        return tree_for(self.drafter, name, acceptance)

    def check_tree(self, tree: Tree | DynamicTree) -> None:
        """Refuses trees that the drafter cannot fill.

        Raises:
          ConfigError: the drafter cannot fill the tree.
        """
        check = getattr(self.drafter, "check_tree", None)
        if check is not None:
            check(tree)


def recorded_acceptance(checkpoint: Checkpoint) -> Acceptance | None:
    """Acceptance that was measured for a drafter and is part of its metadata."""
    rows = checkpoint.metadata.get("acceptance")
    return rows and _table(rows)


def recorded_by_size(
    checkpoint: Checkpoint, name: str
) -> tuple[tuple[int, Acceptance], ...]:
    """Acceptance of a drafter without parameters, measured with a prior; see `by_size`.

    Args:
      checkpoint: prior. Its metadata have, by name of the drafter, tables by the number
        of nodes of the tree that they were measured with.
      name: name of the drafter.
    """
    tables = checkpoint.metadata.get("acceptance", {}).get(name, {})
    return tuple(sorted((int(size), _table(rows)) for size, rows in tables.items()))


def _table(rows: Sequence[Sequence[float]]) -> Acceptance:
    return tuple(tuple(map(float, row)) for row in rows)
