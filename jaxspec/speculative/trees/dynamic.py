"""Bounds of dynamic draft trees, whose shape is decided in each round.

A bound is static and hashable, and fixes the shapes of compiled programs; the shape of
the tree is data. `drafters.tree_drafting` grows the trees.
"""

from dataclasses import dataclass

from jaxspec.core.numbers import within
from jaxspec.errors import ConfigError


class _BoundedNodes:
    """Sizes of trees that are bounded by a number of nodes."""

    nodes: int
    max_depth: int
    branch: int

    @property
    def size(self) -> int:
        """Number of nodes, `N`."""
        return self.nodes

    @property
    def depth(self) -> int:
        """Largest number of drafted tokens on a path."""
        return self.max_depth

    @property
    def width(self) -> int:
        """Largest number of children of a node, `W`."""
        return min(self.branch, self.nodes - 1)


@dataclass(frozen=True)
class Beam(_BoundedNodes):
    """Tree of the likeliest paths under the drafter, by beam search.

    At each depth the best `beam` nodes are expanded by their best `branch` children. Of
    all nodes, the best `nodes - 1` are kept. Sources: EAGLE-2 (arXiv 2406.16858);
    DDTree (arXiv 2604.12989).

    Attributes:
      nodes: number of nodes, `N`, root included.
      max_depth: largest number of drafted tokens on a path.
      beam: number of nodes expanded at one depth; 10 in EAGLE-2.
      branch: number of children of an expanded node; 10 in EAGLE-2. If the drafter is
        factorized, `nodes - 1` for both yields the optimal tree (DDTree).
      sharpness: factor in the score of a path with coupled candidates, the sum of
        `log_softmax(sharpness * (log q + noise))`. It estimates the log-probability
        that the target accepts the path, given the noise. Of .5, 1, 2, 3 and 4, 2 had
        the highest acceptance on the embedded model. Unused with other candidates.
    """

    nodes: int
    max_depth: int
    beam: int = 10
    branch: int = 10
    sharpness: float = 2.0

    def __post_init__(self):
        if min(self.nodes - 1, self.max_depth, self.beam, self.branch) < 1:
            raise ConfigError(f"{self}: use at least 2 nodes, and 1 for other counts")
        within("sharpness", self.sharpness, above=True)


@dataclass(frozen=True)
class StochasticBeam:
    """RSD-S (arXiv 2402.14160): paths sampled without replacement from the drafter.

    Attributes:
      max_depth: number of drafted tokens of every path.
      beam: number of nodes at each depth.
    """

    max_depth: int
    beam: int

    def __post_init__(self):
        if min(self.max_depth, self.beam) < 1:
            raise ConfigError(f"{self}: use at least depth 1 and a beam of 1")

    @property
    def size(self) -> int:
        """Number of nodes, `N`."""
        return 1 + self.max_depth * self.beam

    @property
    def depth(self) -> int:
        """Largest number of drafted tokens on a path."""
        return self.max_depth

    @property
    def width(self) -> int:
        """Largest number of children of a node, `W`."""
        return self.beam


@dataclass(frozen=True)
class BestFirst(_BoundedNodes):
    """DySpec (arXiv 2410.11744): adds one node at a time, by estimated acceptance.

    The position of a node is chosen before its token is sampled, so tokens remain
    samples of the drafter, which every verifier supports.

    Attributes:
      nodes: number of nodes, `N`, root included.
      max_depth: largest number of drafted tokens on a path.
      branch: largest number of children of one node.
    """

    nodes: int
    max_depth: int
    branch: int = 10

    def __post_init__(self):
        if min(self.nodes - 1, self.max_depth, self.branch) < 1:
            raise ConfigError(f"{self}: use at least 2 nodes, depth 1 and branch 1")


DynamicTree = Beam | StochasticBeam | BestFirst
