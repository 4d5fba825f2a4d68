"""Comparison of verifiers by name, as a report."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.special import softmax
from tqdm import tqdm

from jaxspec.errors import ConfigError
from jaxspec.evaluate.relaxation.compare import compare_verifiers
from jaxspec.evaluate.relaxation.distributions import Distributions
from jaxspec.evaluate.tables import environment
from jaxspec.pipeline.verifiers import parse_verifier
from jaxspec.speculative.trees.parsing import parse_tree
from jaxspec.speculative.trees.tree import Tree


def check_options(verifiers: Sequence[str], tree: str) -> Tree:
    """Reads the names of verifiers and of the tree, before anything is loaded.

    Raises:
      ConfigError: A name is unknown, a verifier is named twice, or the tree is dynamic.
    """
    parsed = parse_tree(tree)
    if not isinstance(parsed, Tree):
        raise ConfigError(
            f"--tree {tree} grows anew in each round; choose a static tree, such as "
            "chain-4 or optimal-16"
        )
    if len({parse_verifier(name) for name in verifiers}) < len(verifiers):
        raise ConfigError("--verifiers: name each verifier once")
    return parsed


def run_comparison(
    distributions: Distributions,
    verifiers: Sequence[str],
    *,
    tree: str = "chain-4",
    drafts: int = 4096,
    rounds: int = 1024,
    seed: int = 0,
) -> dict[str, Any]:
    """Runs `compare_verifiers` for names of verifiers.

    Args:
      distributions: Distributions and codebook.
      verifiers: Names of verifiers, see `parse_verifier`.
      tree: Name of a static tree.
      drafts: Number of sampled drafts, where not all are listed.
      rounds: Number of simulated rounds at each position.
      seed: Seed of drafts and rounds.

    Returns:
      Report for `comparison_report` and `comparison_plot`, without "command".

    Raises:
      ConfigError: See `check_options` and `compare_verifiers`.
    """
    shape = check_options(verifiers, tree)
    p, q = softmax(distributions.log_p, axis=-1), softmax(distributions.log_q, axis=-1)
    total = len(verifiers) * len(p)
    with tqdm(total=total, desc="comparing", unit="position") as bar:
        rows = compare_verifiers(
            distributions.log_p,
            distributions.log_q,
            distributions.codebook,
            [parse_verifier(name) for name in verifiers],
            tree=shape,
            drafts=drafts,
            rounds=rounds,
            seed=seed,
            neighbors=distributions.neighbors,
            progress=bar.update,
        )
    return {
        "origin": distributions.origin,
        "positions": len(p),
        "vocab_size": p.shape[1],
        "dimensions": distributions.codebook.shape[1],
        "overlap": float(np.minimum(p, q).sum(axis=-1).mean()),
        "tree": tree,
        "children": int(np.sum(np.asarray(shape.parents)[1:] == 0)),
        "drafts": drafts,
        "rounds": rounds,
        "seed": seed,
        "rows": [asdict(row) for row in rows],
        **environment(),
    }
