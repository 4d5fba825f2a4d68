"""Which tree pays on this device: measured acceptance against measured cost."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec import __version__
from jaxspec.bundle import Bundle
from jaxspec.device import device_name
from jaxspec.errors import ConfigError
from jaxspec.helpers import LoadedDrafter, bundled_drafter
from jaxspec.pipeline import Settings, draw, make_engine
from jaxspec.rules import verifier_params, verifier_spec
from jaxspec.spec.envelopes import DynamicTree
from jaxspec.spec.loop import init_state, spec_step
from jaxspec.spec.noise import batch_keys
from jaxspec.spec.tree import Tree
from jaxspec.timing import RATIO_NOTE, Timing, counts, ratio_fields, shown
from jaxspec.trees import deepest

NODES = (2, 3, 5, 8, 16, 32, 64, 128)


def spine(depth: int, width: int) -> Tree:
    """A chain of first children, each with all of its siblings."""
    paths = [(0,) * d + (rank,) for d in range(depth) for rank in range(width)]
    return Tree.from_paths(paths)


def rank_acceptance(hits: np.ndarray, rounds: int) -> list[list[float]]:
    """Chance of each rank at each depth of a `spine`, given that its parent was taken.

    Args:
      hits: `[D, W]`, accepted tokens by depth and rank.
      rounds: how often the root was verified.

    Returns:
      A row for each depth that was reached in a hundred rounds or more.
    """
    table, reached = [], rounds
    for row in hits:
        if reached < 100 and table:
            break
        table.append([float(x) / max(reached, 1) for x in row])
        reached = int(row[0])
    return table


def plan_tree(
    bundle: Bundle,
    settings: Settings,
    *,
    loaded: LoadedDrafter | None = None,
    nodes: Sequence[int] = NODES,
    max_depth: int = 8,
    width: int = 8,
    repeats: int = 10,
) -> dict[str, Any]:
    """Measures both sides and names the tree with the best expected speed.

    Acceptance by depth and rank is counted while the images of `settings` are drawn
    with a `spine`; whole rounds (target, drafter, rule) are timed for each number of
    nodes, and for plain decoding. The expected speedup of a tree is its expected tokens
    a call, times a plain round's seconds, over its own round's.

    Args:
      bundle: models.
      settings: what is drawn, at which batch, by which rule.
      loaded: who drafts; by default the bundle's own drafter.
      nodes: sizes to look at.
      max_depth: most drafted tokens on a path.
      width: ranks that are looked at.
      repeats: timed rounds; medians count.

    Raises:
      ConfigError: nothing to plan with, or a tree does not suit the drafter.
    """
    loaded = loaded or bundled_drafter(bundle)
    if width > 10:
        raise ConfigError("ranks beyond 9 cannot be written as a path; use width 10")
    max_depth = min(max_depth, deepest(loaded.drafter))
    if min(nodes) < 2:
        raise ConfigError("a tree with drafts has at least 2 nodes")
    with tqdm(total=len(nodes) + 2, desc="plan", unit="tree") as bar:
        seen = draw(bundle, settings, spine(max_depth, width), loaded=loaded)
        bar.update()
        rounds = int(seen.calls.sum()) - len(settings.classes)
        acceptance = rank_acceptance(seen.hits.sum(axis=0), rounds)
        plain = round_timing(bundle, settings, Tree.root(), None, repeats)
        bar.update()
        rows = []
        for count in nodes:
            tree = Tree.optimal(acceptance, count, max_depth)
            timing = round_timing(bundle, settings, tree, loaded, repeats)
            expected = tree.expected_tokens(acceptance)
            rows.append(
                {
                    "nodes": tree.size,
                    "depth": tree.depth,
                    "round_seconds": timing.median,
                    "expected_tokens_per_call": expected,
                    **ratio_fields(
                        cost=(timing, plain),
                        expected_speedup=(plain.per(1 / expected), timing),
                    ),
                    "paths": _words(tree),
                }
            )
            bar.update()
    known = [row for row in rows if counts(row, "expected_speedup")]
    best = max(known, key=lambda row: row["expected_speedup"], default=None)
    if best and best["expected_speedup"] <= 1:
        best = None
    return {
        "checkpoint": bundle.name,
        "verifier": verifier_spec(settings.verifier),
        "batch": settings.batch,
        "cfg_scale": settings.cfg_scale,
        "temperature": settings.temperature,
        "images": len(settings.classes),
        "plain_round_seconds": plain.median,
        "acceptance": acceptance,
        "rows": rows,
        "best": best,
        "device": device_name(),
        "versions": {"jaxspec": __version__, "jax": jax.__version__},
    }


def round_timing(
    bundle: Bundle,
    settings: Settings,
    tree: Tree | DynamicTree,
    loaded: LoadedDrafter | None,
    repeats: int,
) -> Timing:
    """One round of a full batch, without compilation."""
    engine = make_engine(bundle, settings, tree, loaded)
    batch, params = settings.batch, bundle.prior.params
    drafter_params = loaded.params if loaded and engine.drafter else None
    classes = jnp.asarray(np.resize(np.array(settings.classes, np.int32), batch))
    arguments = (params, drafter_params, classes, settings.sampling(batch))
    for_rule = verifier_params(engine.verifier, bundle)
    start = jax.jit(partial(init_state, engine))
    state = start(*arguments, batch_keys(settings.seed, batch))
    step = jax.jit(partial(spec_step, engine), donate_argnums=4)
    state = jax.block_until_ready(step(*arguments, state, for_rule))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        state = jax.block_until_ready(step(*arguments, state, for_rule))
        times.append(time.perf_counter() - began)
    return Timing.of(times)


def plan_text(result: dict[str, Any]) -> str:
    """The plan as a table, and its advice."""
    lines = [
        f"{result['checkpoint']}, {result['device']}, batch {result['batch']}, "
        f"cfg {result['cfg_scale']:g}, rule {result['verifier']}",
        f"acceptance by rank at the root: "
        f"{' '.join(f'{x:.3f}' for x in result['acceptance'][0])}",
        f"a plain round takes {1e3 * result['plain_round_seconds']:.2f} ms",
        "",
        "nodes  depth  round ms      cost  tokens/call  speedup (expected)",
    ]
    for row in result["rows"]:
        lines.append(
            f"{row['nodes']:5}  {row['depth']:5}  {1e3 * row['round_seconds']:8.2f}  "
            f"{shown(row, 'cost', 'x'):>8}  {row['expected_tokens_per_call']:11.2f}  "
            f"{shown(row, 'expected_speedup', 'x'):>8}"
        )
    best = result["best"]
    advice = "decode plainly here: no tree is expected to be faster (--drafter none)"
    if not any(counts(row, "expected_speedup") for row in result["rows"]):
        advice = "times vary too much to advise; plan again when the machine is idle"
    elif best:
        advice = (
            f"best: {best['nodes']} nodes, {best['expected_speedup']:.2f}x expected\n"
            f"--tree {best['paths']}"
        )
    return "\n".join([*lines, "", RATIO_NOTE, "", advice])


def _words(tree: Tree) -> str:
    """The tree as `named_tree` reads it: leaves as paths of ranks."""
    leaves = sorted(set(range(tree.size)) - set(tree.internal.tolist()))
    words = []
    for leaf in leaves:
        ranks = [tree.ranks[n] for n in np.flatnonzero(tree.ancestors[leaf]) if n]
        words.append("".join(map(str, ranks)))
    return ",".join(words)
