"""Simulated rounds of a verifier whose target and drafter ignore the context."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.noise import batch_keys, draw_noise, private_keys, seed_key
from jaxspec.core.sampling import Sampling
from jaxspec.drafters.tree_drafting import grow
from jaxspec.evaluate.relaxation.amounts import join_amounts, split_amounts
from jaxspec.speculative.draft import DraftContext
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Verifier
from jaxspec.typing import Array, BatchKeys, Float, Int, Params

_MOST_NUMBERS = 1 << 23  # of the target's scores in one call


@dataclass(frozen=True)
class Rounds:
    """Results of independent rounds.

    Attributes:
      tokens: Emitted tokens of each round (accepted and the one after them), int [M].
      first: First emitted token of each round, int [M].
    """

    tokens: np.ndarray
    first: np.ndarray


def simulate_rounds(
    verifier: Verifier,
    p: np.ndarray,
    q: np.ndarray,
    tree: Tree | DynamicTree,
    count: int,
    *,
    seed: int = 0,
    params: Params = None,
) -> Rounds:
    """Runs `verify` on drafts of a whole tree, made as the engine makes them.

    At every node the target's distribution is `p` and the drafter's is `q`. Real
    targets depend on the path, so this is what these two distributions alone yield.

    Args:
      verifier: Verifier.
      p: Target's probabilities [V].
      q: Drafter's probabilities [V].
      tree: Draft tree, or the bound of a dynamic one.
      count: Number of rounds, `M`.
      seed: Seed of drafts and noise.
      params: Arrays that the verifier reads.

    Raises:
      ConfigError: The verifier does not support drafts on this tree.
    """
    size = max(1, min(count, _MOST_NUMBERS // (len(p) * tree.size)))
    with np.errstate(divide="ignore"):
        log_p, log_q = (jnp.asarray(np.log(x), jnp.float32) for x in (p, q))
    template, amounts = split_amounts(verifier)
    parts, key = [], seed_key(seed)
    for start in range(0, count, size):
        index = jnp.arange(start, start + size)
        tokens, first = _rounds(
            template,
            tree,
            amounts,
            log_p,
            log_q,
            batch_keys(key, index),
            params,
        )
        parts.append((np.asarray(tokens), np.asarray(first)))
    tokens, first = (np.concatenate(x)[:count] for x in zip(*parts, strict=True))
    return Rounds(tokens, first)


@partial(jax.jit, static_argnums=(0, 1))
def _rounds(
    template: Any,
    tree: Tree | DynamicTree,
    amounts: dict[str, Any],
    log_p: Float[Array, "V"],
    log_q: Float[Array, "V"],
    keys: BatchKeys,
    params: Params,
) -> tuple[Int[Array, "B"], Int[Array, "B"]]:
    """Numbers of emitted tokens, and first tokens, of rounds."""
    verifier = join_amounts(template, amounts)
    batch, vocab_size = len(keys), len(log_p)
    zeros = jnp.zeros(batch, jnp.int32)
    positions = jnp.tile(jnp.arange(1, tree.depth + 2, dtype=jnp.int32), (batch, 1))
    noise = draw_noise(keys, positions, tree.size, vocab_size)
    ctx = DraftContext(
        root=zeros,
        tokens=zeros[:, None],
        position=zeros,
        index=zeros,
        noise=noise.coupled,
        keys=private_keys(keys, zeros),
        sampling=Sampling.create(batch),
        tree=tree,
        selection=verifier.selection,
        order=(),
    )

    def step(depth, tokens, node_state, carry):
        shape = (*tokens.shape, vocab_size)
        return jnp.broadcast_to(log_q, shape), node_state, carry

    draft, _ = grow(ctx, step)
    scores = jnp.broadcast_to(log_p, (batch, tree.size, vocab_size))
    emitted, count = verifier.verify(scores, draft, tree, noise, params).emitted(draft)
    return count, emitted[:, 0]
