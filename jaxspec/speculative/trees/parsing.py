"""Draft trees by name, and the default tree of each kind of device."""

import re
from collections.abc import Sequence
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

Acceptance = Sequence[Sequence[float]]

# Probability that the accepted child has rank 0, 1, ..., given that its parent was
# accepted, for drafters that it was not measured for. An assumption: half of all tokens
# are the drafter's first choice, and each further choice is right less than half as
# often as the one before. `jaxspec bench plan` measures it for a checkpoint.
ASSUMED_ACCEPTANCE = ((0.5, 0.2, 0.09, 0.04, 0.02),)
# The same for drafters without training, of which many find nothing to draft from.
UNTRAINED_ACCEPTANCE = ((0.25, 0.1, 0.05, 0.03, 0.02),)
MAX_DEPTH = 8
# docs/reports/ has the measurements for the CPU; those of accelerators are open, and
# there the widest published tree that an idle device verifies at little cost is taken.
_DEFAULTS = {"cpu": "optimal-5"}
_ACCELERATOR = "optimal-58"
_OPTIMAL = re.compile(r"optimal-(\d{1,4})")


def parse_tree(
    name: str,
    max_depth: int = MAX_DEPTH,
    acceptance: Acceptance = ASSUMED_ACCEPTANCE,
) -> Tree | DynamicTree:
    """Draft tree by name.

    Args:
      name: a name of `Tree.named`; or "optimal-NODES", the static tree with the most
        expected accepted tokens; or "beam-NODES", "best-first-NODES" or
        "stochastic-beam-DEPTHxBEAM", which grow anew in each round.
      max_depth: largest depth of all but published and stochastic trees, see `deepest`.
      acceptance: acceptance by depth and rank, see `Tree.optimal`.

    Raises:
      ConfigError: no such tree.
    """
    if match := _OPTIMAL.fullmatch(name):
        return Tree.optimal(acceptance, int(match[1]), max_depth)
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


def default_tree(
    platform: str | None = None,
    max_depth: int = MAX_DEPTH,
    acceptance: Acceptance = ASSUMED_ACCEPTANCE,
) -> Tree | DynamicTree:
    """Draft tree that is used on a kind of device when none is named.

    Args:
      platform: "cpu", "gpu" or "tpu"; by default that of the first device.
      max_depth: largest depth.
      acceptance: acceptance by depth and rank.
    """
    return parse_tree(_default(platform), max_depth, acceptance)


def tree_size(name: str | None = None) -> int | None:
    """Nodes of the tree "optimal-NODES"; None for other names.

    Args:
      name: name for `parse_tree`; None for the default of the device.
    """
    match = _OPTIMAL.fullmatch(_default() if name is None else name)
    return int(match[1]) if match else None


def _default(platform: str | None = None) -> str:
    """Name of the default tree of a kind of device, or of the first device."""
    platform = platform or jax.devices()[0].platform
    return _DEFAULTS.get(platform, _ACCELERATOR)


def deepest(drafter: Any, acceptance: Acceptance | None = None) -> int:
    """Largest depth of trees for a drafter.

    It is at most the drafter's `max_depth`, and at most `MAX_DEPTH` or the number of
    depths whose acceptance was measured, if there are more.

    Args:
      drafter: the drafter.
      acceptance: acceptance by depth and rank; None if it was not measured.
    """
    most = max(MAX_DEPTH, len(acceptance or ()))
    return min(most, getattr(drafter, "max_depth", most))


def tree_for(
    drafter: Any, name: str | None = None, acceptance: Acceptance | None = None
) -> Tree | DynamicTree:
    """Draft tree for a drafter, no deeper than it can draft.

    Args:
      drafter: the drafter.
      name: name for `parse_tree`; None for the default of the device.
      acceptance: acceptance by depth and rank; None for `ASSUMED_ACCEPTANCE`.

    Raises:
      ConfigError: no such tree.
    """
    depth = deepest(drafter, acceptance)
    acceptance = acceptance or ASSUMED_ACCEPTANCE
    if name is None:
        return default_tree(max_depth=depth, acceptance=acceptance)
    return parse_tree(name, depth, acceptance)
