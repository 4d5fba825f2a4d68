"""How the embedded model is best drawn: measured acceptance, defaults by device."""

import re
from typing import Any

import jax

from jaxspec.errors import ConfigError
from jaxspec.speculative.trees.dynamic import (
    Beam,
    BestFirst,
    DynamicTree,
    StochasticBeam,
)
from jaxspec.speculative.trees.tree import Tree

# Chance that the accepted child has rank 0, 1, ..., given that its parent was accepted:
# embedded model, cfg 2, temperature 1, 64 images, tree naive_extend_57, depths 1 to 3
# (`hits` of `jaxspec bench generate`). It hardly depends on the depth.
ACCEPTANCE = ((0.60, 0.17, 0.075, 0.043, 0.032),)
MAX_DEPTH = 8
# docs/reports/ has the measurements for the CPU; those of accelerators are open, and
# there the widest published tree that an idle device verifies at little cost is taken.
_DEFAULTS = {"cpu": "optimal-5"}
_ACCELERATOR = "optimal-58"


def parse_tree(name: str, max_depth: int = MAX_DEPTH) -> Tree | DynamicTree:
    """A tree by the names of `Tree.named`, or one of these.

    `optimal-NODES` is the best static tree for the embedded model; `beam-NODES`,
    `best-first-NODES` and `stochastic-beam-DEPTHxBEAM` grow anew in each round. The
    first three are no deeper than `max_depth`; see `deepest`.

    Raises:
      ConfigError: no such tree.
    """
    if match := re.fullmatch(r"optimal-(\d{1,4})", name):
        return Tree.optimal(ACCEPTANCE, int(match[1]), max_depth)
    if match := re.fullmatch(r"(beam|best-first)-(\d{1,4})", name):
        nodes = int(match[2])
        if match[1] == "beam":
            return Beam(nodes, max_depth, beam=max(nodes - 1, 1), branch=10)
        return BestFirst(nodes, max_depth)
    if match := re.fullmatch(r"stochastic-beam-(\d{1,2})x(\d{1,3})", name):
        return StochasticBeam(int(match[1]), int(match[2]))
    try:
        return Tree.named(name)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; or optimal-NODES, beam-NODES, best-first-NODES, "
            "stochastic-beam-DEPTHxBEAM"
        ) from None


def default_batch() -> int:
    """Images side by side; a CPU has no idle arithmetic to verify more with."""
    return 1 if jax.devices()[0].platform == "cpu" else 8


def default_tree(
    platform: str | None = None, max_depth: int = MAX_DEPTH
) -> Tree | DynamicTree:
    """The tree that `jaxspec generate` uses when none is named."""
    platform = platform or jax.devices()[0].platform
    return parse_tree(_DEFAULTS.get(platform, _ACCELERATOR), max_depth)


def deepest(drafter: Any) -> int:
    """How deep trees by name should be for a drafter: `MAX_DEPTH`, or its reach."""
    return min(MAX_DEPTH, getattr(drafter, "max_depth", MAX_DEPTH))


def tree_for(drafter: Any, name: str | None = None) -> Tree | DynamicTree:
    """A drafter's tree by name, no deeper than it reaches, or the device's default.

    Raises:
      ConfigError: no such tree.
    """
    depth = deepest(drafter)
    return parse_tree(name, depth) if name else default_tree(max_depth=depth)
