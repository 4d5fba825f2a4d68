"""Generation in steps, with what has been generated so far."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxspec.core.generator import Generator, advance
from jaxspec.core.noise import batch_keys
from jaxspec.core.numbers import whole
from jaxspec.core.result import Generation, present
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.decoding import decode_images
from jaxspec.pipeline.engine import bundle_for
from jaxspec.pipeline.generation import (
    after_prefix,
    batches_of,
    check_finite,
    shapes_of,
)
from jaxspec.pipeline.generators import make_generator
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.prompts import Prompts
from jaxspec.sharding import over_batch
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree


@dataclass(frozen=True)
class Preview:
    """Unfinished sequences of one batch.

    Attributes:
      bundle: models.
      indices: int [B], prompts of the batch.
      result: new tokens so far.
      done: whether every sequence of the batch has ended.
      seconds: time of generation so far, of all batches, without compilation and
        without what was done with the previews.
      compile_seconds: time of tracing and compiling, in seconds.
      prefix: given tokens, int32 [B, P]; None without.
    """

    bundle: Bundle = field(repr=False)
    indices: np.ndarray
    result: Generation = field(repr=False)
    done: bool
    seconds: float = 0.0
    compile_seconds: float = 0.0
    prefix: np.ndarray | None = field(default=None, repr=False)

    @property
    def tokens(self) -> np.ndarray:
        """Tokens so far, given ones first; see `Generation.tokens`."""
        new = np.asarray(self.result.tokens)[: len(self.indices)]
        return after_prefix(self.prefix, new)

    @property
    def fraction(self) -> float:
        """Share of the tokens that exist."""
        return float(present(self.tokens).mean())

    @property
    def images(self) -> np.ndarray:
        """Images so far, uint8 [B, height, width, 3]; gray where tokens are missing.

        Where tokens are coarse to fine, images of those that exist.
        """
        return decode_images(self.bundle, self.tokens, partial=True)


def generate_previews(
    bundle: Bundle,
    prompts: Prompts,
    config: GenerationConfig,
    tree: Tree | DynamicTree,
    *,
    loaded: LoadedDrafter | None = None,
    rounds: int = 8,
    programs: dict[Any, Any] | None = None,
) -> Iterator[Preview]:
    """Generates all prompts, and yields what exists after every few rounds.

    The tokens are those of `generate`.

    Args:
      bundle: models.
      prompts: prompts of the sequences.
      config: generation settings.
      tree: shape of the drafts; the root alone for plain decoding.
      loaded: drafter; None for the bundle's own.
      rounds: target calls between two previews.
      programs: compiled programs of earlier calls, which are used and added to.

    Yields:
      Previews of the first batch, then of the next; the last of each has `done`.

    Raises:
      ConfigError: settings, prompts, tree and models do not go together.
      NonFiniteError: the model gave NaN.
    """
    whole("rounds", rounds)
    prompts.check(bundle_for(bundle, loaded).prior.config)
    began = time.perf_counter()
    generator, variables = make_generator(
        bundle, config, tree, loaded, prompt_length=prompts.length
    )
    count = len(prompts)
    batches, size = batches_of(bundle, count, config.batch_size)
    keys = batch_keys(config.seed, size * batches).reshape(batches, size)
    programs = {} if programs is None else programs
    shapes = shapes_of(prompts.take(np.arange(1)))
    key = generator, "previews", rounds, shapes, size, len(config.stop_tokens)
    compile_seconds, seconds = time.perf_counter() - began, 0.0
    for i in range(batches):
        indices, began = (
            np.arange(i * size, (i + 1) * size) % count,
            time.perf_counter(),
        )
        arguments = variables, prompts.take(indices)
        options = {
            "sampling": config.sampling(size),
            "stopping": config.stopping(generator.max_new_tokens),
            "keys": keys[i],
        }
        if key not in programs:
            programs[key] = _compiled(bundle, generator, rounds, arguments, options)
            compile_seconds += time.perf_counter() - began
            began = time.perf_counter()
        init, step, result = programs[key]
        state, done = init(*arguments, **options), False
        while not done:
            state = step(variables, state)
            preview, done = result(state), bool(state.done.all())
            check_finite(bundle, preview.finite)
            seconds += time.perf_counter() - began
            shown = indices[: count - i * size]
            prefix = None if prompts.prefix is None else prompts.prefix[shown]
            times = seconds, compile_seconds
            yield Preview(bundle, shown, preview, done, *times, prefix)
            began = time.perf_counter()


def _compiled(
    bundle: Bundle, generator: Generator[Any], rounds: int, arguments: Any, options: Any
):
    """Compiles programs for the first state, for some rounds, and for the result."""
    init, step = generator.init, partial(advance, generator, steps=rounds)
    if bundle.mesh:
        init, step = over_batch(bundle.mesh, init), over_batch(bundle.mesh, step)
    init = jax.jit(init).lower(*arguments, **options).compile()
    state = init(*arguments, **options)
    options = {}
    if bundle.mesh:  # a step is compiled once, so its result must be as its argument
        options["out_shardings"] = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(step, donate_argnums=1, **options)
    step = step.lower(arguments[0], state).compile()
    return init, step, jax.jit(generator.result).lower(state).compile()
