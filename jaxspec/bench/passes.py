"""The target's own passes, one token or a tree at a time, and whole rounds."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec.bench.given_drafts import GivenDrafts
from jaxspec.models.target import make_target
from jaxspec.models.transformer import Transformer, activation_dtype
from jaxspec.spec.cache import init_cache, tree_mask
from jaxspec.spec.loop import generate, init_state, spec_step
from jaxspec.spec.noise import batch_keys
from jaxspec.spec.sampling import active_steps, apply_cfg, make_sampling
from jaxspec.spec.state import Engine, SpecState, StoppingCriteria
from jaxspec.spec.tree import Tree
from jaxspec.typing import Params

Program = Callable[[], Any]
# Compiles a function for arguments: `build(run, *arguments, donate=())`.
Build = Callable[..., Any]
GUIDANCE = 2.0


def decode_loop(
    model: Transformer,
    params: Params,
    batch: int,
    length: int,
    build: Build,
    filters: dict | None = None,
    cache_stages: int = 1,
) -> Program:
    """Plain decoding as users run it: noise, guidance, choice, all in one program.

    `filters` are settings of `make_sampling`, `cache_stages` those of `Engine`.
    """
    prompt, _, keys = _rows(batch)
    sampling = make_sampling(batch, cfg_scale=GUIDANCE, **(filters or {}))
    order = active_steps(sampling)
    engine = Engine(
        make_target(model),
        length,
        order=order,
        tie_margin=_margin(params),
        cache_stages=cache_stages,
    )
    given = prompt, sampling, keys

    def run(params, prompt, sampling, keys):
        return generate(engine, params, None, prompt, sampling, keys).tokens

    program = build(run, params, *given)
    return lambda: program(params, *given)


def forward_loop(
    model: Transformer, params: Params, batch: int, length: int, build: Build
) -> Program:
    """`length - 1` passes over one token each, the likeliest following; no noise."""
    target = make_target(model)
    prompt, sampling, _ = _rows(batch)

    def run(params, prompt):
        first, _, cache = target.prefill(params, prompt, length)

        def step(_, carry):
            token, cache = carry
            mask = tree_mask(cache, jnp.ones((1, 1), bool))
            tokens = jnp.concatenate([token, token])[:, None]
            places = cache.lengths[:, None]
            logits, _, cache = target.forward(params, cache, tokens, places, mask)
            token = best(logits[:, 0])
            return token, replace(cache, lengths=cache.lengths + 1)

        def best(logits):
            index = jnp.zeros(batch, jnp.int32)
            return jnp.argmax(apply_cfg(logits, sampling, index), axis=-1)

        return jax.lax.fori_loop(0, length - 1, step, (best(first), cache))[0]

    program = build(run, params, prompt)
    return lambda: program(params, prompt)


def tree_passes(
    model: Transformer,
    params: Params,
    batch: int,
    tree: Tree,
    filled: int,
    passes: int,
    build: Build,
    guided: bool = True,
) -> Program:
    """So many passes over the nodes of a tree, behind `filled` slots of every row."""
    target, config = make_target(model, guided=guided), model.config
    rows = target.streams * batch
    cache = init_cache(
        config.layers,
        rows,
        config.num_kv_heads,
        model.cache_slots(config.prefix_length + config.sequence_length + tree.size),
        config.head_size,
        activation_dtype(params),
    )
    cache = replace(cache, lengths=jnp.full(rows, filled, jnp.int32))
    tokens = jnp.zeros((rows, tree.size), jnp.int32)

    def run(params, cache, tokens):
        mask = tree_mask(cache, jnp.asarray(tree.ancestors))
        places = cache.lengths[:, None] + jnp.asarray(tree.depths)

        def step(_, carry):
            cache, tokens = carry
            logits, _, cache = target.forward(params, cache, tokens, places, mask)
            return cache, jnp.argmax(logits, axis=-1).astype(jnp.int32)

        return jax.lax.fori_loop(0, passes, step, (cache, tokens))

    program = build(run, params, cache, tokens, donate=(1,))
    held = [cache]

    def call():
        held[0], last = program(params, held[0], tokens)
        return last

    return call


def rounds(
    model: Transformer,
    params: Params,
    batch: int,
    tree: Tree,
    filled: int,
    count: int,
    build: Build,
) -> Program:
    """So many rounds whose drafts are given: a pass, and everything but drafting."""
    engine = Engine(
        make_target(model),
        model.config.sequence_length,
        GivenDrafts(),
        tree,
        order=("temperature",),
        tie_margin=_margin(params),
    )
    prompt, sampling, keys = _rows(batch)
    drafts = {
        "tokens": jnp.zeros((batch, tree.size), jnp.int32),
        "log_q": jnp.zeros((batch, len(tree.internal), engine.target.vocab_size)),
    }
    start = model.config.prefix_length
    given = drafts, prompt, sampling
    state = _state(engine, filled - start + 1, start, params, *given, keys)

    def run(params, state, drafts, prompt, sampling):
        def step(_, state):
            return spec_step(engine, params, drafts, prompt, sampling, state)

        last = jax.lax.fori_loop(0, count, step, state)
        # The same place again for the next call.
        lengths = state.cache.lengths
        return replace(
            last,
            length=state.length,
            counts=jnp.zeros_like(state.counts),
            cache=replace(last.cache, lengths=lengths),
        )

    program = build(run, params, state, *given, donate=(1,))
    held = [state]

    def call():
        held[0] = program(params, held[0], *given)
        return held[0].tokens

    return call


def build_here(options: dict[str, str] | None = None) -> Build:
    """Compiles for the default device, with options of XLA's."""

    def build(run, *arguments, donate=()):
        return lowered(run, *arguments, donate=donate).compile(
            compiler_options=options or None
        )

    return build


def lowered(run: Callable, *arguments, donate: tuple[int, ...] = ()) -> Any:
    """Traced in the engine's precision; arguments may be shapes."""
    with jax.default_matmul_precision("highest"):
        return jax.jit(run, donate_argnums=donate).lower(*arguments)


def _rows(batch: int):
    """Prompts, settings and keys of guided rows at temperature 1."""
    prompt = jnp.zeros(batch, jnp.int32)
    return prompt, make_sampling(batch, cfg_scale=GUIDANCE), batch_keys(0, batch)


def _state(engine: Engine, length: int, start: int, params, *given) -> SpecState:
    """A state in which every row has drawn `length` tokens; its caches are empty.

    Not computed by `init_state`: a program for the prompt would take as long to compile
    as the one that is timed.
    """
    shapes = jax.eval_shape(partial(init_state, engine), params, *given)
    keys = given[-1]
    blank = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), replace(shapes, keys=(), stopping=())
    )
    filled = jnp.full_like(blank.cache.lengths, start + length - 1)
    visible = jnp.ones_like(blank.cache.visible)
    return replace(
        blank,
        keys=jax.random.clone(keys),
        stopping=StoppingCriteria.create(len(keys), engine.max_new_tokens),
        start=jnp.full_like(blank.start, start),
        length=jnp.full_like(blank.length, length),
        cache=replace(blank.cache, lengths=filled, visible=visible),
    )


def _margin(params: Params) -> float:
    exact = params["embedding"]["embedding"].dtype == jnp.float32
    return Engine.tie_margin if exact else 0.0
