"""First state of a generation, after the first token."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxspec.core.arguments import batch_size, check_batch, check_keys
from jaxspec.core.logit_bounds import process_logits_with_bounds
from jaxspec.core.logits import apply_cfg
from jaxspec.core.mesh_sync import varying
from jaxspec.core.noise import batch_keys, position_noise
from jaxspec.core.precision import full_precision
from jaxspec.core.result import Stats
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.core.vocab_parallel import argmax_with_margin
from jaxspec.speculative.draft import InitContext
from jaxspec.speculative.engine_config import EngineConfig
from jaxspec.speculative.input_checks import check_call, checked_prefill
from jaxspec.speculative.log_probs import no_log_probs, token_log_probs
from jaxspec.speculative.prefix import checked_prefix, prefix_of
from jaxspec.speculative.state import SpecState, Variables
from jaxspec.speculative.tie_break import is_near_tie, margin_with_filters, resolve_ties
from jaxspec.typing import Array, BatchKeys, Float, Int, Key, PyTree


@full_precision
def init_state(
    engine: EngineConfig,
    variables: Variables,
    prompt: PyTree,
    sampling: Sampling,
    keys: BatchKeys | Key[Array, ""],
    stopping: StoppingCriteria | None = None,
    room: int | None = None,
) -> SpecState:
    """Reads the prompts and chooses the first token of each sequence.

    Given tokens of a `Prefixed` prompt take the place of the first token; the first
    round then chooses the first new ones.

    Args:
      engine: static settings.
      variables: arrays of the batch.
      prompt: prompts as `Target.prefill` takes them, `B` sequences, or a `Prefixed`.
      sampling: sampling settings, of all sequences or of each.
      keys: typed keys [B], or one key, from which `batch_keys` derives them. Equal key,
        prompt and settings give equal tokens in any batch, with any drafter and tree.
      stopping: stopping criteria; by default `engine.max_new_tokens`.
      room: number of generated tokens that the target's cache holds; by default
        `engine.max_new_tokens`. No sequence may start a round with more.

    Raises:
      ConfigError: keys are raw or not one per sequence, given tokens are not ints, or
        arguments have different numbers of sequences.
    """
    check_call(engine.target, variables, sampling, stopping)
    batch = batch_size(prompt, keys)
    prompt, known_prefix = checked_prefix(prompt, engine.target.vocab_size)
    if not getattr(keys, "ndim", 1):
        keys = batch_keys(keys, batch)
    check_keys(keys)
    # Copies: the state may be donated, the arguments may not.
    prompt, sampling = jax.tree.map(jnp.copy, (prompt, sampling.for_batch(batch)))
    stopping = _stopping_of(engine, stopping, batch)
    check_batch(batch, prompt=prompt)
    slots = engine.max_new_tokens + engine.window  # beyond those of the prompt
    extra = slots if room is None else room + engine.window
    logits, features, cache = checked_prefill(
        engine.target, variables.target, prompt, extra
    )
    start = jnp.copy(cache.lengths[:batch])  # the cache's own buffer may be donated
    given = prefix_of(prompt, batch)
    if given.shape[1]:  # the first round reads the last of them
        assert known_prefix is not None
        tokens, near, finite = given, jnp.zeros(batch, bool), known_prefix
        log_probs, done = no_log_probs(engine, variables, given), jnp.zeros(batch, bool)
        start -= given.shape[1] - 1
    else:
        token, near, finite, log_probs = _first_token(
            engine, variables, prompt, sampling, logits, keys, start
        )
        tokens = token[:, None]
        done = (stopping.max_new_tokens <= 1) | stopping.is_stop(token)
    drafter = None
    if engine.drafter is not None:
        ctx = InitContext(prompt, features, cache.lengths, engine.tree, batch, slots)
        drafter = engine.drafter.init(variables.drafter, ctx)
    length, known = engine.path_length, tokens.shape[1]
    path = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    total = given.shape[1] + engine.max_new_tokens + length
    state = SpecState(
        prompt=prompt,
        sampling=sampling,
        tokens=jnp.zeros((batch, total), jnp.int32).at[:, :known].set(tokens),
        length=jnp.full(batch, known, jnp.int32),
        start=start,
        cache=cache,
        path=path,
        counts=jnp.zeros(batch, jnp.int32),
        drafter=drafter,
        keys=jax.random.clone(keys),
        stopping=stopping,
        done=done,
        stats=_first_stats(engine, near.astype(jnp.int32), 2 if known > 1 else 1),
        finite=finite,
        log_probs=jax.tree.map(lambda x: _padded(x, total), log_probs),
    )
    return varying(state, tokens, stopping.max_new_tokens)


def _stopping_of(
    engine: EngineConfig, stopping: StoppingCriteria | None, batch: int
) -> StoppingCriteria:
    """Stopping criteria of each sequence, within the engine's `max_new_tokens`."""
    if stopping is None:
        stopping = StoppingCriteria.create(max_new_tokens=engine.max_new_tokens)
    stopping = stopping.for_batch(batch)
    return replace(
        stopping,
        max_new_tokens=jnp.minimum(stopping.max_new_tokens, engine.max_new_tokens),
        stop_tokens=jnp.copy(stopping.stop_tokens),
    )


def _first_token(engine, variables, prompt, sampling, logits, keys, start):
    """First tokens, masks of near-ties and of finite logits, and log-probabilities."""
    batch = start.shape[0]
    index = jnp.zeros(batch, jnp.int32)
    noise = position_noise(keys, start[:, None], engine.target.vocab_size)[:, 0]
    noise = jnp.where(sampling.temperature[:, None] > 0, noise, 0.0)
    merged = apply_cfg(logits, sampling, index)
    scores, uncertain = process_logits_with_bounds(
        merged, sampling, engine.order, engine.tie_margin
    )
    token, margin = argmax_with_margin(scores + noise)
    margin = margin_with_filters(margin, scores, uncertain, noise)
    near = is_near_tie(engine, sampling, margin)
    no_tokens = jnp.zeros((batch, engine.max_new_tokens), jnp.int32)
    token = resolve_ties(
        engine,
        variables.target,
        prompt,
        sampling,
        noise,
        no_tokens,
        index,
        token,
        near,
    )
    log_probs = token_log_probs(
        engine, variables, merged[:, None], scores[:, None], token[:, None]
    )
    return token, near, ~jnp.isnan(margin), log_probs


def _first_stats(engine: EngineConfig, rescored: Int[Array, "B"], calls: int) -> Stats:
    batch, depth, width = len(rescored), max(engine.tree.depth, 1), engine.tree.width
    return Stats(
        calls=jnp.full(batch, calls, jnp.int32),
        rounds=jnp.zeros((), jnp.int32),
        proposed=jnp.zeros(batch, jnp.int32),
        rescored=rescored,
        accepted=jnp.zeros((batch, engine.path_length), jnp.int32),
        hits=jnp.zeros((batch, depth, width), jnp.int32),
    )


def _padded(x: Float[Array, "B t ..."], total: int) -> Float[Array, "B T ..."]:
    """Pads the second axis with zeros to size `total`."""
    return jnp.pad(x, ((0, 0), (0, total - x.shape[1]), *((0, 0),) * (x.ndim - 2)))
