"""What has to hold for every drafter: the same tokens, and a cache like new."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.spec.cache import KVCache, commit_path, tree_mask
from jaxspec.spec.draft import Drafter
from jaxspec.spec.envelopes import DynamicTree
from jaxspec.spec.loop import generate, init_state, spec_step
from jaxspec.spec.noise import batch_keys
from jaxspec.spec.sampling import LLAMAGEN_ORDER, Sampling, Step, make_sampling
from jaxspec.spec.state import Engine, Generation, SpecState, StoppingCriteria
from jaxspec.spec.target import Target
from jaxspec.spec.tree import Tree
from jaxspec.spec.verify import Coupled, Verifier
from jaxspec.typing import Params, PyTree


def assert_same_tokens(
    target: Target,
    params: Params,
    drafter: Drafter,
    drafter_params: Params,
    tree: Tree | DynamicTree,
    prompt: PyTree,
    *,
    length: int,
    rows: int,
    sampling: Sampling | None = None,
    stopping: StoppingCriteria | None = None,
    order: tuple[Step, ...] = LLAMAGEN_ORDER,
    seed: int = 0,
) -> Generation:
    """Holds a drafter to plain decoding from the same keys, token for token.

    Args:
      target: what is sped up.
      params: the target's parameters.
      drafter: whose drafts must change nothing but the speed.
      drafter_params: the drafter's parameters.
      tree: shape of the drafts.
      prompt: `rows` rows.
      length: tokens a row.
      rows: `B`.
      sampling: settings of the rows; temperature 1 by default.
      stopping: when rows end.
      order: processing steps; fewer compile faster.
      seed: of the rows' keys.

    Returns:
      The generation with the drafter, for its counters.

    Raises:
      AssertionError: a token differs.
    """
    sampling = make_sampling(rows) if sampling is None else sampling
    arguments = (prompt, sampling, batch_keys(seed, rows), stopping)
    alone = Engine(target, length, order=order)
    plain = jax.jit(partial(generate, alone))
    helped = Engine(target, length, drafter, tree, order=order)
    fast = jax.jit(partial(generate, helped))
    wanted = plain(params, None, *arguments)
    found = fast(params, drafter_params, *arguments)
    np.testing.assert_array_equal(found.lengths, wanted.lengths)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    return found


def run_rounds(
    target: Target,
    params: Params,
    drafter: Drafter | None,
    drafter_params: Params,
    tree: Tree | DynamicTree,
    prompt: PyTree,
    *,
    length: int,
    rows: int,
    verifier: Verifier | None = None,
    sampling: Sampling | None = None,
    stopping: StoppingCriteria | None = None,
    order: tuple[Step, ...] = LLAMAGEN_ORDER,
    seed: int = 0,
) -> tuple[Engine, SpecState]:
    """The engine, and its state after the last round; arguments as above."""
    sampling = make_sampling(rows) if sampling is None else sampling
    engine = Engine(target, length, drafter, tree, verifier or Coupled(), order)
    arguments = (params, drafter_params, prompt, sampling)
    step = jax.jit(partial(spec_step, engine))
    state = jax.jit(partial(init_state, engine))(
        *arguments, batch_keys(seed, rows), stopping
    )
    while not bool(state.done.all()):
        state = step(*arguments, state)
    return engine, state


def committed(engine: Engine, state: SpecState) -> KVCache:
    """The target's cache with the last path moved into place."""
    streams = engine.target.streams
    path = jnp.concatenate([state.path] * streams)
    counts = jnp.concatenate([state.counts] * streams)
    return commit_path(state.cache, engine.tree.size, path, counts, engine.target.move)


def cache_error(
    engine: Engine, params: Params, prompt: PyTree, tokens: Any, cache: KVCache
) -> float:
    """Greatest difference between a cache and that of one pass over the same tokens.

    Args:
      engine: as it ran.
      params: the target's parameters.
      prompt: as it was given.
      tokens: int32 [B, T], what was generated.
      cache: holds the prompt and all generated tokens but each row's newest.

    Returns:
      The maximum over layers, keys and values, rows, streams and committed slots; NaN
      if one of them is NaN.

    Raises:
      AssertionError: the cache is longer than the tokens.
    """
    target = engine.target
    tokens = jnp.concatenate([jnp.asarray(tokens)] * target.streams)
    length = tokens.shape[1]
    _, _, fresh = target.prefill(params, prompt, length)
    positions = fresh.lengths[:, None] + jnp.arange(length)[None]
    mask = tree_mask(fresh, jnp.tril(jnp.ones((length, length), bool)))
    last = fresh.lengths + length
    _, _, fresh = target.forward(params, fresh, tokens, positions, mask)
    assert bool((cache.lengths <= last).all()), (
        "the cache holds more than was generated"
    )
    slots = fresh.capacity
    filled = np.arange(slots) < np.asarray(cache.lengths)[:, None]  # [R, S]
    worst = 0.0
    for mine, theirs in zip(cache.layers, fresh.layers, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            gap = np.abs(np.asarray(a[:, :, :slots], np.float64) - np.asarray(b))
            gap = np.where(filled[:, None, :, None], gap, 0.0).max()
            worst = float(np.maximum(worst, gap))  # NaN stays
    return worst


def assert_fresh_cache(
    engine: Engine,
    params: Params,
    prompt: PyTree,
    state: SpecState,
    tolerance: float = 1e-4,
) -> None:
    """Holds every layer's cache after a run to one pass over what was generated.

    Raises:
      AssertionError: they differ by more than `tolerance`, or nothing was accepted, so
        that nothing was shown.
    """
    assert int(state.stats.hits.sum()) > 0, "no draft was accepted; nothing moved"
    tokens = state.tokens[:, : engine.max_new_tokens]
    error = cache_error(engine, params, prompt, tokens, committed(engine, state))
    assert error <= tolerance, f"keys or values differ by {error:.2g}"
