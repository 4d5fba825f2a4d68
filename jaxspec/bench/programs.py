"""Compiled programs that benchmarks time: decoding, verification, whole rounds."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxspec.bench.fixed_drafts import FixedDrafts
from jaxspec.core.kv_cache import tree_mask
from jaxspec.core.logits import apply_cfg
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling, active_steps
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.errors import ConfigError
from jaxspec.models.transformer.model import Transformer
from jaxspec.models.transformer.parameters import activation_dtype
from jaxspec.pipeline.tree_choice.compiling import Compiler, Program
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import SpecState, Variables
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Params

CFG_SCALE = 2.0


def decode_program(
    model: Transformer,
    params: Params,
    batch: int,
    length: int,
    compiler: Compiler,
    filters: dict | None = None,
    cache_stages: int = 1,
) -> Program:
    """Plain decoding with noise, CFG and sampling, in one program.

    Args:
      model: Target.
      params: Parameters of the target.
      batch: Number of sequences.
      length: Tokens of each sequence.
      compiler: Compiler of the program.
      filters: Further settings of `Sampling.create`.
      cache_stages: Number of cache sizes, see `Engine`.
    """
    prompt, _, keys = _batch_inputs(batch)
    sampling = Sampling.create(batch, cfg_scale=CFG_SCALE, **(filters or {}))
    order = active_steps(sampling)
    engine = Engine(
        model.as_target(),
        length,
        order=order,
        tie_margin=_tie_margin(params),
        cache_stages=cache_stages,
    )
    inputs = prompt, sampling, keys

    def run(params, prompt, sampling, keys):
        return engine.generate(
            Variables(params), prompt, sampling=sampling, keys=keys
        ).tokens

    program = compiler(run, params, *inputs)
    return lambda: program(params, *inputs)


def forward_program(
    model: Transformer, params: Params, batch: int, length: int, compiler: Compiler
) -> Program:
    """Greedy decoding without noise: a prefill and `length - 1` one-token passes.

    Arguments as in `decode_program`. The program returns the last token of each
    sequence.
    """
    target = model.as_target()
    prompt, sampling, _ = _batch_inputs(batch)

    def run(params, prompt):
        first, _, cache = target.prefill(params, prompt, length)

        def step(_, carry):
            token, cache = carry
            mask = tree_mask(cache, jnp.ones((1, 1), bool))
            tokens = jnp.concatenate([token, token])[:, None]
            positions = cache.lengths[:, None]
            logits, _, cache = target.forward(params, cache, tokens, positions, mask)
            token = greedy(logits[:, 0])
            return token, replace(cache, lengths=cache.lengths + 1)

        def greedy(logits):
            index = jnp.zeros(batch, jnp.int32)
            return jnp.argmax(apply_cfg(logits, sampling, index), axis=-1)

        return jax.lax.fori_loop(0, length - 1, step, (greedy(first), cache))[0]

    program = compiler(run, params, prompt)
    return lambda: program(params, prompt)


def round_program(
    model: Transformer,
    params: Params,
    batch: int,
    tree: Tree,
    filled: int,
    iterations: int,
    compiler: Compiler,
) -> Program:
    """Whole rounds with fixed drafts: a forward pass and everything but drafting.

    Arguments as in `pass_program`. The verifier is `Coupled` at temperature 1. Each
    call starts from the same cache lengths.
    """
    engine = Engine(
        model.as_target(),
        model.config.sequence_length,
        FixedDrafts(),
        tree,
        order=("temperature",),
        tie_margin=_tie_margin(params),
    )
    prompt, sampling, keys = _batch_inputs(batch)
    drafts = {
        "tokens": jnp.zeros((batch, tree.size), jnp.int32),
        "log_q": jnp.zeros((batch, len(tree.internal), engine.target.vocab_size)),
    }
    start = model.config.prefix_length
    state = _state_at(
        engine,
        filled - start + 1,
        start,
        Variables(params, drafts),
        prompt,
        sampling=sampling,
        keys=keys,
    )

    def run(params, state, drafts):
        def step(_, state):
            return engine.step(Variables(params, drafts), state)

        last = jax.lax.fori_loop(0, iterations, step, state)
        # Restores the lengths, so that the next call does the same work.
        lengths = state.cache.lengths
        return replace(
            last,
            length=state.length,
            counts=jnp.zeros_like(state.counts),
            cache=replace(last.cache, lengths=lengths),
        )

    program = compiler(run, params, state, drafts, donate=(1,))
    donated = [state]

    def call():
        donated[0] = program(params, donated[0], drafts)
        return donated[0].tokens

    return call


def parse_compiler_options(pairs: Sequence[str]) -> dict[str, str]:
    """Parses options of XLA, `KEY=VALUE`.

    Raises:
      ConfigError: A pair has another form.
    """
    for pair in pairs:
        if "=" not in pair.strip("="):
            raise ConfigError(f"--compiler-options {pair!r} must be KEY=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


def _batch_inputs(batch: int):
    """Prompts, sampling settings (CFG, temperature 1) and keys of a batch."""
    prompt = jnp.zeros(batch, jnp.int32)
    return prompt, Sampling.create(batch, cfg_scale=CFG_SCALE), batch_keys(0, batch)


def _state_at(
    engine: Engine, length: int, start: int, variables: Variables, prompt, **options
) -> SpecState:
    """State of sequences that have `length` generated tokens, with zeros for caches.

    `init_state` is only evaluated abstractly: compiling the prefill would take as long
    as compiling the timed program.

    Args:
      engine: static settings.
      length: number of generated tokens of each sequence.
      start: position of the first generated token.
      variables: arrays of the batch.
      prompt: prompts of the batch.
      **options: sampling settings and keys, see `Engine.init`.
    """
    shapes = jax.eval_shape(engine.init, variables, prompt, **options)
    keys = options["keys"]
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        replace(shapes, keys=(), stopping=(), sampling=(), prompt=()),
    )
    cache_lengths = jnp.full_like(zeros.cache.lengths, start + length - 1)
    visible = jnp.ones_like(zeros.cache.visible)
    return replace(
        zeros,
        prompt=jax.tree.map(jnp.copy, prompt),
        sampling=jax.tree.map(jnp.copy, options["sampling"]),
        keys=jax.random.clone(keys),
        stopping=StoppingCriteria.create(
            len(keys), max_new_tokens=engine.max_new_tokens
        ),
        start=jnp.full_like(zeros.start, start),
        length=jnp.full_like(zeros.length, length),
        cache=replace(zeros.cache, lengths=cache_lengths, visible=visible),
    )


def _tie_margin(params: Params) -> float:
    """Default tie margin for float32 weights; 0, no tie-breaking, for others."""
    exact = activation_dtype(params) == jnp.float32
    return Engine.tie_margin if exact else 0.0
