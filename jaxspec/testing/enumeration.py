"""The exact law of what a rule emits, over every draft that could have been drawn.

For small vocabularies and trees nothing has to be sampled: all drafts are listed with
their chances, the rule says how likely each outcome is given each draft, and the sum is
the law of the tokens that come out. A lossless rule's equals the target's.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.errors import ConfigError
from jaxspec.spec.noise import batch_keys, draw_noise
from jaxspec.testing.drafts import Conditionals, Drafts

TOLERANCE = 1e-6


def output_law_per_draft(
    verifier: Any, p: Conditionals, drafts: Drafts, params: Any = None
) -> np.ndarray:
    """What comes out of a round given each draft, `[B, V**A]`, continued by the target.

    A round emits a path and one token; where that is less than the tree is deep, the
    target's own law goes on, so that all outcomes are sequences of `A` tokens.

    Raises:
      ConfigError: the rule has no `law`, or the target is shorter than the tree.
    """
    if not hasattr(verifier, "outcome"):
        raise ConfigError(
            f"{type(verifier).__name__} has no `outcome` to enumerate; assert_lossless "
            "samples from its `verify` instead"
        )
    log_p, before, depths = _seen_by_nodes(p, drafts)
    law = _law(verifier, jnp.asarray(log_p), drafts.draft, drafts.tree, params)
    stop, final = np.asarray(law.stop, np.float64), np.asarray(law.final, np.float64)
    outcome = _no_outcome(p, drafts, len(depths))
    row = np.arange(len(depths))
    for n in range(depths.shape[1]):
        weight = stop[:, n, None] * final[:, n]
        for d in np.unique(depths[:, n]):
            here = (depths[:, n] == d) & (stop[:, n] > 0)
            if here.any():
                place = (row[here], *before[here, n, :d].T)
                np.add.at(outcome[d], place, weight[here])
    return _continued(outcome, p).reshape(len(depths), -1)


def _seen_by_nodes(p: Conditionals, drafts: Drafts):
    """Of each node: the target's log-probabilities, the tokens above, the depth."""
    draft, tree = drafts.draft, drafts.tree
    if len(p.tables) <= tree.depth:
        raise ConfigError(
            f"the target is {len(p.tables)} tokens long; a tree of depth {tree.depth} "
            f"needs {tree.depth + 1}"
        )
    draft, shape = draft.checked(tree, p.vocab_size)
    tokens = np.asarray(draft.tokens)
    rows, size = tokens.shape
    depths = np.broadcast_to(np.asarray(shape.depths), (rows, size))
    ancestors = np.broadcast_to(np.asarray(shape.ancestors), (rows, size, size))
    depth = tree.depth
    chance = np.zeros((rows, size, p.vocab_size))
    before = np.zeros((rows, size, depth), np.int64)  # drafted tokens up to each node
    for n in range(size):
        order = np.argsort(~ancestors[:, n], axis=1, kind="stable")[:, 1 : depth + 1]
        order = np.pad(order, ((0, 0), (0, depth - order.shape[1])))
        before[:, n] = np.take_along_axis(tokens, order, axis=1)
        for d in np.unique(depths[:, n]):
            here = depths[:, n] == d
            chance[here, n] = p.after(before[here, n, :d])
    with np.errstate(divide="ignore"):
        return np.log(chance), before, depths


def _no_outcome(p: Conditionals, drafts: Drafts, rows: int) -> list[np.ndarray]:
    """`outcome[d]`: chance of each sequence of d + 1 tokens ending a row's round."""
    lengths = range(1, drafts.tree.depth + 2)
    return [np.zeros((rows, *(p.vocab_size,) * length)) for length in lengths]


def _continued(outcome: list[np.ndarray], p: Conditionals) -> np.ndarray:
    """All outcomes as the longest sequences, the target going on where they end."""
    total = outcome[0]
    for d in range(1, len(outcome)):
        total = total[..., None] * p.tables[d] + outcome[d]
    return total


def sampled_output_law(
    verifier: Any,
    p: Conditionals,
    drafts: Drafts,
    params: Any = None,
    *,
    draws: int = 20_000,
    seed: int = 0,
) -> np.ndarray:
    """The law of the next `A` tokens as `rule.verify` draws them, `[V] * A`.

    Args:
      rule: anything with `verify`.
      p: the target, at least `A` tokens long.
      drafts: as in `output_law`; they are drawn by their chances.
      params: the rule's.
      draws: rounds.
      seed: of drafts and noise.
    """
    log_p = _seen_by_nodes(p, drafts)[0].astype(np.float32)
    tree, chance = drafts.tree, drafts.chance / drafts.chance.sum()
    chosen = np.random.default_rng(seed).choice(len(chance), draws, p=chance)
    draft = jax.tree.map(lambda x: jnp.asarray(x)[chosen], drafts.draft)

    @jax.jit
    def judge(keys, log_p, draft, params):
        positions = jnp.tile(jnp.arange(tree.depth + 1), (draws, 1))
        noise = draw_noise(keys, positions, tree.size, p.vocab_size)
        return verifier.verify(log_p, draft, tree, noise, params).emitted(draft)

    found = judge(batch_keys(seed, draws), jnp.asarray(log_p[chosen]), draft, params)
    tokens, counts = map(np.asarray, found)
    outcome = _no_outcome(p, drafts, 1)
    for length in range(1, tree.depth + 2):
        here = tokens[counts == length, :length]
        place = (np.zeros(len(here), int), *here.T)
        np.add.at(outcome[length - 1], place, 1 / draws)
    return _continued(outcome, p)[0]


@partial(jax.jit, static_argnames=("verifier", "tree"))
def _law(verifier, log_p, draft, tree, params):
    return verifier.outcome(log_p, draft, tree, params=params)


def output_law(
    verifier: Any, p: Conditionals, drafts: Drafts, params: Any = None
) -> np.ndarray:
    """The law of the next `A` tokens under a rule, `[V] * A`, float64.

    Args:
      rule: anything with `law(log_p, draft, tree, params=...)`.
      p: the target, at least `A` tokens long.
      drafts: all drafts with their chances, or samples of them.
      params: the rule's.
    """
    size, length = p.vocab_size, drafts.tree.depth + 1
    with jax.enable_x64(True):
        drafts = _as_float64(drafts)
        each = output_law_per_draft(verifier, p, drafts, params)
    each = np.where(drafts.chance[:, None] > 0, each, 0.0)
    return (drafts.chance @ each).reshape((size,) * length)


def _as_float64(drafts: Drafts) -> Drafts:
    log_q = drafts.draft.log_q
    if log_q is None:
        return drafts
    wide = jnp.asarray(np.asarray(log_q, np.float64))
    return replace(drafts, draft=replace(drafts.draft, log_q=wide))


def distortion(
    verifier: Any, p: Conditionals, drafts: Drafts, params: Any = None
) -> float:
    """Total variation distance between a rule's output law and the target's."""
    length = drafts.tree.depth + 1
    wanted = Conditionals(p.tables[:length]).joint()
    return float(np.abs(output_law(verifier, p, drafts, params) - wanted).sum() / 2)


def assert_lossless(
    verifier: Any,
    p: Conditionals,
    drafts: Drafts,
    params: Any = None,
    *,
    draws: int = 20_000,
) -> None:
    """Holds a rule to the target's law: its `law`, and what its `verify` draws.

    Over all drafts the greatest error of a probability of `law` may be 1e-6. Over
    sampled drafts, and of what `verify` draws, none may be more than six standard
    errors away. A rule without a `law` is judged by its draws alone.

    Args:
      rule: anything with `verify`, and perhaps `law`.
      p: the target.
      drafts: all drafts with their chances, or samples of them.
      params: the rule's.
      draws: rounds of `verify`; 0 looks at `law` alone.

    Raises:
      AssertionError: the law of the output is not the target's; says where.
      ConfigError: there is nothing to look at.
    """
    length = drafts.tree.depth + 1
    wanted = Conditionals(p.tables[:length]).joint()
    if hasattr(verifier, "outcome") or not draws:
        if drafts.exact:
            total = drafts.chance.sum()
            assert abs(total - 1) < TOLERANCE, f"the drafts' chances sum to {total}"
            found = output_law(verifier, p, drafts, params)
            limit = np.full_like(wanted, TOLERANCE)
        else:
            with jax.enable_x64(True):
                each = output_law_per_draft(verifier, p, _as_float64(drafts), params)
            found = each.mean(0).reshape(wanted.shape)
            spread = each.std(0).reshape(wanted.shape) / np.sqrt(len(each))
            limit = 6 * spread + TOLERANCE
        _compare(verifier, "outcome", found, wanted, limit)
    if draws:
        found = sampled_output_law(verifier, p, drafts, params, draws=draws)
        spread = np.sqrt(wanted * (1 - wanted) / draws)
        limit = 6 * spread + np.where(wanted > 0, 6 / draws, TOLERANCE)
        _compare(verifier, "verify", found, wanted, limit)


def _compare(verifier: Any, part: str, found, wanted, limit) -> None:
    error = np.abs(found - wanted)
    worst = np.unravel_index(np.argmax(error - limit), error.shape)
    assert (error <= limit).all(), (
        f"{type(verifier).__name__}.{part} is biased: tokens "
        f"{tuple(map(int, worst))} have probability {found[worst]:.6f} instead of "
        f"{wanted[worst]:.6f}; total variation {error.sum() / 2:.2e}"
    )
