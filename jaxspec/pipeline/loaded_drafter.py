"""A drafter with its parameters, ready for the prior of a bundle."""

from dataclasses import dataclass

from jaxspec.checkpoint import Checkpoint
from jaxspec.speculative.draft import Drafter
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.parsing import tree_for
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
      overlap: overlap `sum min(p, q)` of the first drafted token with the target, as
        training measured it; None without a record.
    """

    name: str
    drafter: Drafter
    params: Params
    size: int = 0
    trained_seconds: float | None = None
    prior: Checkpoint | None = None
    acceptance: tuple[tuple[float, ...], ...] | None = None
    overlap: float | None = None

    def tree(self, name: str | None = None) -> Tree | DynamicTree:
        """Draft tree by name, or the default of the device, see `tree_for`.

        Raises:
          ConfigError: no such tree.
        """
        return tree_for(self.drafter, name, self.acceptance)

    def check_tree(self, tree: Tree | DynamicTree) -> None:
        """Refuses trees that the drafter cannot fill.

        Raises:
          ConfigError: the drafter cannot fill the tree.
        """
        check = getattr(self.drafter, "check_tree", None)
        if check is not None:
            check(tree)


def recorded_acceptance(
    checkpoint: Checkpoint, name: str | None = None
) -> tuple[tuple[float, ...], ...] | None:
    """Acceptance that was measured for a checkpoint and is part of its metadata.

    Args:
      checkpoint: drafter; or prior, whose record has one entry for each drafter without
        parameters that was measured with it.
      name: name of such a drafter.
    """
    rows = checkpoint.metadata.get("acceptance")
    if name is not None:
        rows = (rows or {}).get(name)
    return rows and tuple(tuple(map(float, row)) for row in rows)
