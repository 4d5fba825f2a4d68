"""Properties of every drafter: tokens as in plain decoding, and a correct KV cache."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.kv_cache import KVCache, commit_path, tree_mask
from jaxspec.core.noise import batch_keys
from jaxspec.core.result import Generation
from jaxspec.core.sampling import LLAMAGEN_ORDER, Sampling, Step
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.speculative.draft import Drafter
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.prefix import without_prefix
from jaxspec.speculative.state import SpecState, Variables
from jaxspec.speculative.target import Target
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Coupled, Verifier
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
    batch: int,
    sampling: Sampling | None = None,
    stopping: StoppingCriteria | None = None,
    order: tuple[Step, ...] = LLAMAGEN_ORDER,
    seed: int = 0,
) -> Generation:
    """Asserts that decoding with a drafter yields the tokens of plain decoding.

    Both runs use the same random keys.

    Args:
      target: target model.
      params: parameters of the target.
      drafter: drafter to check.
      drafter_params: parameters of the drafter.
      tree: draft tree.
      prompt: prompts of `batch` sequences.
      length: largest number of tokens per sequence.
      batch: number of sequences, `B`.
      sampling: sampling settings of the sequences; by default temperature 1.
      stopping: stopping criteria of the sequences.
      order: order of the logits processors; fewer compile faster.
      seed: seed of the random keys.

    Returns:
      Result of decoding with the drafter, with its counters.

    Raises:
      AssertionError: a token or a length differs.
    """
    sampling = Sampling.create(batch) if sampling is None else sampling
    options = {
        "sampling": sampling,
        "keys": batch_keys(seed, batch),
        "stopping": stopping,
    }
    plain = Engine(target, length, order=order)
    speculative = Engine(target, length, drafter, tree, order=order)
    variables = Variables(params, drafter_params)
    expected = jax.jit(plain.generate)(Variables(params), prompt, **options)
    actual = jax.jit(speculative.generate)(variables, prompt, **options)
    np.testing.assert_array_equal(actual.lengths, expected.lengths)
    np.testing.assert_array_equal(actual.tokens, expected.tokens)
    return actual


def run_rounds(
    target: Target,
    params: Params,
    drafter: Drafter | None,
    drafter_params: Params,
    tree: Tree | DynamicTree,
    prompt: PyTree,
    *,
    length: int,
    batch: int,
    verifier: Verifier | None = None,
    sampling: Sampling | None = None,
    stopping: StoppingCriteria | None = None,
    order: tuple[Step, ...] = LLAMAGEN_ORDER,
    seed: int = 0,
) -> tuple[Engine, SpecState]:
    """Runs an engine round by round until all sequences are done.

    Arguments are those of `assert_same_tokens`; the verifier is `Coupled` by default.

    Returns:
      The engine, and its state after the last round.
    """
    sampling = Sampling.create(batch) if sampling is None else sampling
    engine = Engine(target, length, drafter, tree, verifier or Coupled(), order)
    variables = Variables(params, drafter_params)
    step = jax.jit(engine.step)
    state = jax.jit(engine.init)(
        variables,
        prompt,
        sampling=sampling,
        keys=batch_keys(seed, batch),
        stopping=stopping,
    )
    while not bool(state.done.all()):
        state = step(variables, state)
    return engine, state


def committed(engine: Engine, state: SpecState) -> KVCache:
    """Cache of the target after the path of the last round is committed."""
    branches = engine.target.branches
    path = jnp.concatenate([state.path] * branches)
    counts = jnp.concatenate([state.counts] * branches)
    return commit_path(state.cache, engine.tree.size, path, counts, engine.target.move)


def cache_error(
    engine: Engine, params: Params, prompt: PyTree, tokens: Any, cache: KVCache
) -> float:
    """Largest difference between a cache and that of one pass over the same tokens.

    Args:
      engine: engine that generated the tokens.
      params: parameters of the target.
      prompt: prompts of the sequences.
      tokens: generated tokens, int32 [B, T].
      cache: cache with the prompt and all generated tokens but the last of each
        sequence.

    Returns:
      Largest absolute difference over layers, keys and values, branches, sequences and
      committed slots; NaN if one of them is NaN.

    Raises:
      AssertionError: the cache has more committed slots than prompt and tokens.
    """
    target = engine.target
    tokens = jnp.concatenate([jnp.asarray(tokens)] * target.branches)
    length = tokens.shape[1]
    _, _, fresh = target.prefill(params, prompt, length)
    positions = fresh.lengths[:, None] + jnp.arange(length)[None]
    mask = tree_mask(fresh, jnp.tril(jnp.ones((length, length), bool)))
    total = fresh.lengths + length
    _, _, fresh = target.forward(params, fresh, tokens, positions, mask)
    assert bool((cache.lengths <= total).all()), (
        "the cache has more committed slots than prompt and generated tokens"
    )
    slots = fresh.capacity
    filled = np.arange(slots) < np.asarray(cache.lengths)[:, None]  # [R, S]
    worst = 0.0
    for layer, fresh_layer in zip(cache.layers, fresh.layers, strict=True):
        for x, y in zip(layer, fresh_layer, strict=True):
            error = np.abs(np.asarray(x[:, :, :slots], np.float64) - np.asarray(y))
            error = np.where(filled[:, None, :, None], error, 0.0).max()
            worst = float(np.maximum(worst, error))  # keeps NaN
    return worst


def assert_fresh_cache(
    engine: Engine,
    params: Params,
    prompt: PyTree,
    state: SpecState,
    tolerance: float = 1e-4,
) -> None:
    """Asserts that the cache after a run equals that of one pass over its tokens.

    Args:
      engine: engine that generated the tokens.
      params: parameters of the target.
      prompt: prompts of the sequences.
      state: state after the last round.
      tolerance: largest allowed difference of a key or value.

    Raises:
      AssertionError: a key or value differs by more than `tolerance`, or no draft was
        accepted, so that the check would be empty.
    """
    assert int(state.stats.hits.sum()) > 0, (
        "no draft was accepted, so that no cache slot was moved; use a better drafter"
    )
    tokens = state.tokens[:, : state.prefix_length + engine.max_new_tokens]
    bare = without_prefix(prompt)
    error = cache_error(engine, params, bare, tokens, committed(engine, state))
    assert error <= tolerance, f"keys or values differ by {error:.2g}"
