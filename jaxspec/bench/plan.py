"""Choice of the fastest draft tree from measured acceptance and measured cost."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec.core.noise import batch_keys
from jaxspec.errors import ConfigError
from jaxspec.evaluate.tables import environment
from jaxspec.pipeline.bundle import Bundle, load_bundle, token_by_token
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.embedded import CLASSES
from jaxspec.pipeline.engine import make_engine, make_variables
from jaxspec.pipeline.generation import generate
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.prompt_inputs import resolve_prompts
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.settings import resolve_config
from jaxspec.pipeline.timing import RATIO_NOTE, Timing, is_steady, ratio_fields, shown
from jaxspec.pipeline.verifiers import verifier_spec
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree

NODES = (2, 3, 5, 8, 16, 32, 64, 128)


def spine(depth: int, width: int) -> Tree:
    """Tree of a chain of first children, each with `width - 1` siblings."""
    paths = [(0,) * d + (rank,) for d in range(depth) for rank in range(width)]
    return Tree.from_paths(paths)


def rank_acceptance(hits: np.ndarray, rounds: int) -> list[list[float]]:
    """Acceptance rate of each rank at each depth of a `spine`.

    Rates are conditional on the acceptance of the parent.

    Args:
      hits: Numbers of accepted tokens by depth and rank, int `[M, W]`.
      rounds: Number of verified roots.

    Returns:
      A list of rates for each depth that was reached at least 100 times; the first
      depth is always included.
    """
    table, reached = [], rounds
    for counts in hits:
        if reached < 100 and table:
            break
        table.append([float(x) / max(reached, 1) for x in counts])
        reached = int(counts[0])
    return table


def measure_plan(
    *,
    checkpoint: str | None = None,
    drafter: str = "own",
    batch: int | None = None,
    cfg_scale: float | None = None,
    num: int = 16,
    depth: int = 8,
    nodes: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Finds the fastest tree for a drafter, see `plan_tree`.

    Images are of classes spread over all, or of the captions that a bundle has as
    examples.

    Args:
      checkpoint: Bundle folder; None for the embedded bundle of classes.
      drafter: Drafter, as for `--drafter`.
      batch: Batch size in images; None for `DEFAULT_BATCH`.
      cfg_scale: CFG scale; None for that recorded with the checkpoint, else 2.
      num: Number of images to count acceptance on.
      depth: Most drafted tokens on a path.
      nodes: Tree sizes to compare; None for `NODES`.
    """
    bundle = token_by_token(load_bundle(checkpoint or CLASSES))
    prompts = resolve_prompts(bundle, None, None, count=num)
    given = {"cfg_scale": cfg_scale, "batch_size": batch}
    settings = resolve_config(bundle, given)
    loaded = load_drafter(drafter, bundle)
    return plan_tree(
        bundle,
        prompts,
        settings,
        loaded=loaded,
        nodes=nodes or NODES,
        max_depth=depth,
    )


def plan_tree(
    bundle: Bundle,
    prompts: Prompts,
    settings: GenerationConfig,
    *,
    loaded: LoadedDrafter | None = None,
    nodes: Sequence[int] = NODES,
    max_depth: int = 8,
    width: int = 8,
    repeats: int = 10,
) -> dict[str, Any]:
    """Measures acceptance and cost, and finds the tree with the best expected speed.

    Acceptance by depth and rank is counted while images are generated with a `spine`.
    Whole rounds (target, drafter, verifier) are timed for each number of nodes and for
    plain decoding. The expected speedup of a tree is its expected number of tokens per
    call, times the time of a plain round, over the time of its own round.

    Args:
      bundle: Models.
      prompts: Prompts of the images.
      settings: Generation settings, with batch size and verifier.
      loaded: Drafter; None for the bundle's drafter.
      nodes: Tree sizes to compare.
      max_depth: Maximum number of drafted tokens on a path.
      width: Number of ranks whose acceptance is counted.
      repeats: Number of timed rounds.

    Returns:
      Report with "acceptance", one row per tree size, and "best", the row with the
      greatest expected speedup, or None if no tree is expected to be faster than plain
      decoding.

    Raises:
      ConfigError: The drafter does not support a tree, or
        `nodes` or `width` is out of range.
    """
    loaded = loaded or load_drafter("own", bundle)
    if width > 10:
        raise ConfigError(f"width {width} is too large; use at most 10")
    max_depth = min(max_depth, getattr(loaded.drafter, "max_depth", max_depth))
    if min(nodes) < 2:
        raise ConfigError(f"nodes={min(nodes)}: draft trees need at least 2 nodes")
    with tqdm(total=len(nodes) + 2, desc="plan", unit="tree") as bar:
        run = generate(
            bundle, prompts, settings, spine(max_depth, width), loaded=loaded
        )
        bar.update()
        rounds = int(run.calls.sum()) - len(prompts)
        acceptance = rank_acceptance(run.hits.sum(axis=0), rounds)
        plain = round_timing(bundle, prompts, settings, Tree.root(), None, repeats)
        bar.update()
        rows = []
        for count in nodes:
            tree = Tree.optimal(acceptance, count, max_depth)
            timing = round_timing(bundle, prompts, settings, tree, loaded, repeats)
            rows.append(_tree_row(tree, acceptance, timing, plain))
            bar.update()
    return {
        "checkpoint": bundle.name,
        "drafter": loaded.name,
        "verifier": verifier_spec(settings.verifier),
        "batch": settings.batch_size,
        "cfg_scale": settings.cfg_scale,
        "temperature": settings.temperature,
        "images": len(prompts),
        "plain_round_seconds": plain.median,
        "acceptance": acceptance,
        "rows": rows,
        "best": _best_row(rows),
        **environment(),
    }


def _tree_row(
    tree: Tree, acceptance: list[list[float]], timing: Timing, plain: Timing
) -> dict[str, Any]:
    """Fields of a tree: expected tokens, cost and expected speedup."""
    expected = tree.expected_tokens(acceptance)
    return {
        "nodes": tree.size,
        "depth": tree.depth,
        "round_seconds": timing.median,
        "expected_tokens_per_call": expected,
        **ratio_fields(
            cost=(timing, plain), expected_speedup=(plain.per(1 / expected), timing)
        ),
        "paths": _path_string(tree),
    }


def _best_row(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Row with the greatest expected speedup; None if that is not above 1."""
    steady = [row for row in rows if is_steady(row, "expected_speedup")]
    best = max(steady, key=lambda row: row["expected_speedup"], default=None)
    return best if best and best["expected_speedup"] > 1 else None


def round_timing(
    bundle: Bundle,
    prompts: Prompts,
    settings: GenerationConfig,
    tree: Tree | DynamicTree,
    loaded: LoadedDrafter | None,
    repeats: int,
) -> Timing:
    """Times one round of a full batch, without compilation."""
    engine = make_engine(bundle, settings, tree, loaded)
    batch = settings.batch_size
    variables = make_variables(engine, bundle, loaded)
    indices = np.resize(np.arange(len(prompts)), batch)
    state = jax.jit(engine.init)(
        variables,
        jax.tree.map(jnp.asarray, prompts.take(indices)),
        sampling=settings.sampling(batch),
        keys=batch_keys(settings.seed, batch),
    )
    step = jax.jit(engine.step, donate_argnums=1)
    state = jax.block_until_ready(step(variables, state))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        state = jax.block_until_ready(step(variables, state))
        times.append(time.perf_counter() - began)
    return Timing.of(times)


def plan_text(result: dict[str, Any]) -> str:
    """Formats a report of `plan_tree` as a table and a recommendation."""
    lines = [
        f"{result['checkpoint']}, drafter {result['drafter']}, {result['device']}, "
        f"batch {result['batch']}, cfg {result['cfg_scale']:g}, verifier "
        f"{result['verifier']}",
        f"acceptance by rank at the root: "
        f"{' '.join(f'{x:.3f}' for x in result['acceptance'][0])}",
        "acceptance of rank 0 by depth: "
        f"{' '.join(f'{row[0]:.3f}' for row in result['acceptance'])}",
        f"plain round: {1e3 * result['plain_round_seconds']:.2f} ms",
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
    advice = "decode plainly: no tree is expected to be faster (--drafter none)"
    if not any(is_steady(row, "expected_speedup") for row in result["rows"]):
        advice = "no recommendation: times vary too much; rerun on an idle machine"
    elif best:
        advice = (
            f"best: {best['nodes']} nodes, {best['expected_speedup']:.2f}x expected\n"
            f"--tree {best['paths']}"
        )
    return "\n".join([*lines, "", RATIO_NOTE, "", advice])


def _path_string(tree: Tree) -> str:
    """Leaves as paths of ranks, in the format that `Tree.named` parses."""
    leaves = sorted(set(range(tree.size)) - set(tree.internal.tolist()))
    paths = []
    for leaf in leaves:
        ranks = [tree.ranks[n] for n in np.flatnonzero(tree.ancestors[leaf]) if n]
        paths.append("".join(map(str, ranks)))
    return ",".join(paths)
