"""Choice between draft trees and plain decoding, by expected time for a token."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import jax

from jaxspec.errors import ConfigError
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.engine import bundle_for
from jaxspec.pipeline.generation import batches_of
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.tree_choice.costs import RoundCosts, measure_costs
from jaxspec.pipeline.tree_choice.record import costs_key, load_costs, save_costs
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.parsing import (
    ASSUMED_ACCEPTANCE,
    UNTRAINED_ACCEPTANCE,
    Acceptance,
    deepest,
)
from jaxspec.speculative.trees.tree import Tree

# Name of the automatic choice, for `--tree` and `tree=`.
AUTO = "auto"
# Tree sizes that are measured on a kind of device, and the number of nodes by which a
# pass takes a step longer, which only orders them: about that of two CPU cores, and for
# accelerators an assumption.
SIZES = {"cpu": (4, 8, 2)}
ACCELERATOR_SIZES = (32, 64, 16)
NODES_A_STEP = {"cpu": 8.0}
ACCELERATOR_NODES_A_STEP = 256.0
# Factor of costs that are estimated from those of smaller trees.
ESTIMATE = 1.1
# Least expected speed of a tree, plain decoding as 1, and that of one whose timings
# varied. Whole rounds also verify, commit and draw noise: measured speeds were .8 to
# 1.3 times the expected ones on the CPUs at hand.
MIN_SPEEDUP, MIN_UNSTEADY_SPEEDUP = 1.2, 1.4
# Operations of a generation below which measuring takes longer than it saves: about a
# second of two CPU cores, or of a GPU.
MIN_OPERATIONS = {"cpu": 2e10}
ACCELERATOR_MIN_OPERATIONS = 2e12
# Layers of a target for which that holds.
LAYERS = 6


@dataclass(frozen=True)
class TreeChoice:
    """A draft tree, and the reason for it.

    Attributes:
      tree: shape of the drafts; the root alone for plain decoding.
      reason: one sentence part, for a person to read.
      speedup: expected speed, plain decoding as 1; None if it was not measured.
    """

    tree: Tree | DynamicTree
    reason: str
    speedup: float | None = None

    def __str__(self) -> str:
        kind = f"{self.tree.size} nodes" if self.tree.size > 1 else "plain decoding"
        return f"{kind}: {self.reason}"


def choose_tree(
    bundle: Bundle,
    prompts: Prompts,
    config: GenerationConfig,
    loaded: LoadedDrafter,
    known: dict[str, RoundCosts] | None = None,
    *,
    count: int | None = None,
) -> TreeChoice:
    """Chooses the fastest tree for a generation, or plain decoding.

    Costs are measured once for a device, a model and a batch size: see `measure_costs`.
    They are kept beside JAX's compiled programs, if these are kept. Nothing is measured
    for short generations, which are decoded plainly on a CPU, on a mesh, and for
    verifiers whose tokens depend on the tree.

    Args:
      bundle: models.
      prompts: prompts of the sequences, or some of them.
      config: generation settings.
      loaded: drafter, with the acceptance that was measured for its checkpoint.
      known: costs by key of earlier calls, which are used and added to.
      count: number of sequences; None for that of the prompts.
    """
    known = {} if known is None else known
    exact = [getattr(config.verifier, x, False) for x in ("lossless", "token_exact")]
    if not all(exact):
        return TreeChoice(loaded.tree(), "the tokens of this verifier depend on it")
    if bundle.mesh is not None or jax.process_count() > 1:
        return TreeChoice(loaded.tree(), "nothing is measured on a mesh")
    assumed = ASSUMED_ACCEPTANCE if loaded.size else UNTRAINED_ACCEPTANCE

    def acceptance(nodes: int) -> Acceptance:
        return loaded.acceptance_at(nodes) or assumed

    def depth(nodes: int) -> int:
        return deepest(loaded.drafter, loaded.acceptance_at(nodes))

    def promise(nodes: int) -> float:
        """Expected speed on devices of the kind."""
        table = acceptance(nodes)
        tokens = Tree.optimal(table, nodes, depth(nodes)).expected_tokens(table)
        return tokens / (
            1 + nodes / NODES_A_STEP.get(platform, ACCELERATOR_NODES_A_STEP)
        )

    platform = jax.devices()[0].platform
    count = len(prompts) if count is None else count
    batches, batch = batches_of(bundle, count, config.batch_size)
    key = costs_key(bundle, prompts, config, loaded, batch)
    costs = known.get(key) or load_costs(key)
    source = "as measured before"
    if costs is None:
        target = bundle.prior.config
        least = MIN_OPERATIONS.get(platform, ACCELERATOR_MIN_OPERATIONS)
        # Programs of more layers take longer to compile.
        least *= max(target.layers / LAYERS, 1.0)
        if count * _operations(bundle, prompts, config, loaded) < least:
            return _unmeasured(loaded, "too little to generate to measure", platform)
        began = time.perf_counter()
        sizes = _possible_sizes(loaded, SIZES.get(platform, ACCELERATOR_SIZES))
        if not sizes:
            return _unmeasured(loaded, "the drafter fills no tree to measure", platform)
        sizes.sort(key=promise, reverse=True)
        costs = measure_costs(bundle, prompts, config, loaded, sizes, batch)
        save_costs(key, costs)
        source = f"measured in {time.perf_counter() - began:.1f} s"
    known[key] = costs
    largest = max(costs.rounds)
    others = {2 * largest}
    if len(costs.rounds) == 1:
        others |= {x for x in SIZES.get(platform, ACCELERATOR_SIZES) if x < largest}
    others = [
        nodes
        for nodes in _possible_sizes(loaded, sorted(others))
        if Tree.optimal(acceptance(nodes), nodes, depth(nodes)).size == nodes
    ]
    choice = fastest_tree(with_estimates(costs, others), acceptance, depth, source)
    steps = batches * _new_tokens(bundle, prompts, config, loaded)
    seconds = steps * costs.step / (choice.speedup or 1.0)
    return replace(choice, reason=f"{choice.reason}; about {seconds:.0f} s to decode")


def _unmeasured(loaded: LoadedDrafter, reason: str, platform: str) -> TreeChoice:
    """Choice without costs: the device's default tree; no drafts on a CPU.

    On some CPUs drafts pay, on others they take twice the time.
    """
    if platform == "cpu":
        return TreeChoice(Tree.root(), f"{reason}, and not every CPU gains from drafts")
    return TreeChoice(loaded.tree(), reason)


def with_estimates(costs: RoundCosts, sizes: Sequence[int]) -> RoundCosts:
    """Costs with those of other trees, by a line through a step and the largest one.

    Trees may cost more than the line, so a tenth is added.

    Args:
      costs: measured costs.
      sizes: numbers of nodes.
    """
    nodes = max(costs.rounds)
    measured = costs.rounds[nodes]
    slope = max(measured - costs.step, 0.0) / (nodes - 1)
    estimates = {size: ESTIMATE * (measured + (size - nodes) * slope) for size in sizes}
    rounds = {**costs.rounds, **estimates}
    return replace(costs, rounds=rounds, estimated=tuple(sizes))


def fastest_tree(
    costs: RoundCosts,
    acceptance: Callable[[int], Acceptance],
    max_depth: Callable[[int], int],
    source: str,
) -> TreeChoice:
    """The tree with the greatest expected speed, or plain decoding.

    Args:
      costs: costs of a round.
      acceptance: acceptance by depth and rank, see `Tree.optimal`, by number of nodes.
      max_depth: largest depth, by number of nodes.
      source: origin of the costs, for the reason.
    """
    tables = {nodes: acceptance(nodes) for nodes in costs.rounds}
    if not any(table[0][0] > 0 for table in tables.values()):
        return TreeChoice(Tree.root(), "no draft was ever accepted", 1.0)
    trees = {n: Tree.optimal(table, n, max_depth(n)) for n, table in tables.items()}
    expectations = {n: tree.expected_tokens(tables[n]) for n, tree in trees.items()}
    speeds = {
        n: expected * costs.step / max(costs.rounds[n], costs.step)
        for n, expected in expectations.items()
    }
    nodes = max(speeds, key=speeds.__getitem__)
    tree, speed, expected = trees[nodes], speeds[nodes], expectations[nodes]
    if nodes in costs.estimated:
        measured = max(costs.rounds.keys() - costs.estimated)
        source = f"estimated from {measured} nodes, {source}"
    terms = (
        f"{expected:.2f} tokens a call, a call costs "
        f"{costs.rounds[nodes] / costs.step:.2f} steps, {source}"
    )
    if speed >= (MIN_SPEEDUP if costs.steady else MIN_UNSTEADY_SPEEDUP):
        reason = f"{speed:.2f} times plain decoding expected ({terms})"
        return TreeChoice(tree, reason, speed)
    unsteady = "" if costs.steady else ", by timings that vary,"
    return TreeChoice(
        Tree.root(),
        f"{nodes} nodes would reach{unsteady} {speed:.2f} of its speed ({terms})",
        1.0,
    )


def _possible_sizes(loaded: LoadedDrafter, sizes: Sequence[int]) -> list[int]:
    """Sizes whose trees the drafter can fill."""
    possible = []
    for nodes in sizes:
        with suppress(ConfigError):
            loaded.check_tree(loaded.tree(f"optimal-{nodes}"))
            possible.append(nodes)
    return possible


def _operations(
    bundle: Bundle, prompts: Prompts, config: GenerationConfig, loaded: LoadedDrafter
) -> float:
    """Operations of plain decoding of a sequence, without attention."""
    tokens = _new_tokens(bundle, prompts, config, loaded)
    weights = bundle_for(bundle, loaded).prior.size
    return 2.0 * weights * tokens * (1 + (config.cfg_scale != 1.0))


def _new_tokens(
    bundle: Bundle, prompts: Prompts, config: GenerationConfig, loaded: LoadedDrafter
) -> int:
    """Most tokens that a sequence gets."""
    target = bundle_for(bundle, loaded).prior
    room = target.config.sequence_length - prompts.length
    return min(room, config.max_new_tokens or room)
