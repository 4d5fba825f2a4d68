"""Programs of the two costs of a round: a pass of the target, and a draft."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.config import TransformerConfig
from jaxspec.core.kv_cache import KVCache, init_cache, tree_mask
from jaxspec.core.noise import batch_keys
from jaxspec.models.transformer.model import Transformer
from jaxspec.models.transformer.parameters import activation_dtype
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.engine import bundle_for, make_engine
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.tree_choice.compiling import Compiler, Program, local_compiler
from jaxspec.speculative.draft import DraftContext, InitContext
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.prefix import prefill
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Params, PyTree

# Iterations of each timed program: forward passes, or drafts.
ITERATIONS = 16


def pass_program(
    model: Transformer,
    params: Params,
    batch: int,
    tree: Tree,
    filled: int,
    iterations: int,
    compiler: Compiler,
    cfg: bool = True,
    capacity: int | None = None,
) -> Program:
    """Compiles forward passes of a target over the nodes of a draft tree.

    Args:
      model: target.
      params: parameters of the target.
      batch: number of sequences.
      tree: draft tree.
      filled: cache slots in use before each pass.
      iterations: number of passes in the program.
      compiler: compiler of the program.
      cfg: whether both CFG branches are computed.
      capacity: slots of the cache; None for those of a whole sequence.
    """
    target, config = model.as_target(cfg=cfg), model.config
    branch_batch = target.branches * batch
    if capacity is None:
        capacity = config.prefix_length + config.sequence_length + tree.size
    slots, dtype = model.cache_slots(capacity), activation_dtype(params)
    cache = _filled_cache(config, branch_batch, slots, dtype, filled)
    tokens = _zeros(jax.ShapeDtypeStruct((branch_batch, tree.size), jnp.int32))

    def run(params, cache, tokens):
        mask = tree_mask(cache, jnp.asarray(tree.ancestors))
        positions = cache.lengths[:, None] + jnp.asarray(tree.depths)

        def step(_, carry):
            cache, tokens = carry
            logits, _, cache = target.forward(params, cache, tokens, positions, mask)
            return cache, jnp.argmax(logits, axis=-1).astype(jnp.int32)

        return jax.lax.fori_loop(0, iterations, step, (cache, tokens))

    program = compiler(run, params, cache, tokens, donate=(1,))
    donated = [cache]

    def call():
        donated[0], last = program(params, donated[0], tokens)
        return last

    return call


def draft_program(
    bundle: Bundle,
    prompts: Prompts,
    config: GenerationConfig,
    tree: Tree | DynamicTree,
    loaded: LoadedDrafter,
    batch: int,
) -> Program:
    """Compiles `ITERATIONS` calls of `propose` for a full batch, half way through.

    The root of each draft is the last token of the previous one.

    Args:
      bundle: models.
      prompts: prompts, of which only shapes matter.
      config: generation settings.
      tree: shape of the drafts.
      loaded: drafter.
      batch: number of sequences.
    """
    half = _HalfMade.of(bundle, prompts, config, tree, loaded, batch)

    def run(params, state, *arrays):
        def step(_, carry):
            draft, state = half.propose(params, *carry, *arrays)
            return draft.tokens[:, -1], state

        root = jnp.zeros(batch, jnp.int32)
        return jax.lax.fori_loop(0, ITERATIONS, step, (root, state))[0]

    program = local_compiler()(run, loaded.params, half.state, *half.arrays)
    return lambda: program(loaded.params, half.state, *half.arrays)


def round_program(
    bundle: Bundle,
    prompts: Prompts,
    config: GenerationConfig,
    tree: Tree | DynamicTree,
    loaded: LoadedDrafter,
    batch: int,
    iterations: int = ITERATIONS,
) -> Program:
    """Compiles drafts, each with the target's pass over it.

    This is a round without verification, commits and stopping. Drafts and passes take
    turns as in a generation, so that they evict each other's weights from caches.
    Arguments as in `draft_program`, and the number of drafts in the program.
    """
    target = bundle_for(bundle, loaded).prior
    half = _HalfMade.of(bundle, prompts, config, tree, loaded, batch)
    engine = half.engine
    model = Transformer(target.config, config.attention)
    queries = Tree.chain(engine.window - 1)
    cache = _filled_cache(
        target.config,
        engine.target.branches * batch,
        model.cache_slots(room_of(engine, prompts, target.config)),
        activation_dtype(target.params),
        half_of(engine, prompts, target.config),
    )

    def run(target_params, params, state, cache, *arrays):
        mask = tree_mask(cache, jnp.asarray(queries.ancestors))
        positions = cache.lengths[:, None] + jnp.asarray(queries.depths)

        def step(_, carry):
            root, state, cache = carry
            draft, state = half.propose(params, root, state, *arrays)
            tokens = jnp.pad(draft.tokens, ((0, 0), (0, engine.window - tree.size)))
            tokens = jnp.tile(tokens, (engine.target.branches, 1))
            logits, _, cache = engine.target.forward(
                target_params, cache, tokens, positions, mask
            )
            root = jnp.argmax(logits[:batch, 0], axis=-1).astype(jnp.int32)
            return root, state, cache

        root = jnp.zeros(batch, jnp.int32)
        return jax.lax.fori_loop(0, iterations, step, (root, state, cache))

    arguments = target.params, loaded.params, half.state
    program = local_compiler()(run, *arguments, cache, *half.arrays, donate=(3,))
    donated = [cache]

    def call():
        root, _, donated[0] = program(*arguments, donated[0], *half.arrays)
        return root

    return call


def room_of(engine: Engine, prompts: Prompts, config: TransformerConfig) -> int:
    """Slots of the cache of a generation."""
    prompt = config.prefix_length + prompts.length
    return prompt + engine.max_new_tokens + engine.window


def half_of(engine: Engine, prompts: Prompts, config: TransformerConfig) -> int:
    """Filled slots half way through a generation."""
    return config.prefix_length + prompts.length + engine.max_new_tokens // 2


@dataclass(frozen=True)
class _HalfMade:
    """Sequences that are half generated, for a drafter whose arrays are zeros.

    Attributes:
      engine: static settings.
      config: generation settings.
      start: position of the first generated token.
      state: state of the drafter.
      arrays: tokens int32 [B, T], and noise float32 [B, A, V].
    """

    engine: Engine
    config: GenerationConfig
    start: int
    state: PyTree
    arrays: tuple[jax.Array, jax.Array]

    @classmethod
    def of(cls, bundle, prompts, config, tree, loaded, batch) -> "_HalfMade":
        """Evaluates the target's prefill and `Drafter.init` abstractly."""
        bundle = bundle_for(bundle, loaded)
        engine = make_engine(bundle, config, tree, loaded, prompt_length=prompts.length)
        values = prompts.take(np.resize(np.arange(len(prompts)), batch))
        room = engine.max_new_tokens + engine.window

        def first_state(params, own, prompt):
            _, features, cache = prefill(engine.target, params, prompt, room)
            ctx = InitContext(prompt, features, cache.lengths, tree, batch, room)
            return loaded.drafter.init(own, ctx)

        values = jax.tree.map(jnp.asarray, values)
        shapes = jax.eval_shape(first_state, bundle.prior.params, loaded.params, values)
        total = prompts.length + engine.max_new_tokens + engine.path_length
        noise = batch, engine.path_length, engine.target.vocab_size
        return cls(
            engine,
            config,
            bundle.prior.config.prefix_length,
            jax.tree.map(_zeros, shapes),
            (
                _zeros(jax.ShapeDtypeStruct((batch, total), jnp.int32)),
                jax.device_put(
                    np.random.default_rng(0).gumbel(size=noise).astype(np.float32)
                ),
            ),
        )

    def propose(self, params, root, state, tokens, noise):
        """Draft, and state after it; barriers keep XLA from moving work out."""
        root, state, tokens, noise = jax.lax.optimization_barrier(
            (root, state, tokens, noise)
        )
        batch, engine = len(root), self.engine
        done = jnp.full(batch, max(engine.max_new_tokens // 2, 1), jnp.int32)
        ctx = DraftContext(
            root=root,
            tokens=tokens,
            position=self.start + done - 1,
            index=done,
            noise=noise,
            keys=batch_keys(self.config.seed, batch),
            sampling=self.config.sampling(batch),
            tree=engine.tree,
            selection=engine.candidates,
            order=engine.order,
        )
        assert engine.drafter is not None
        return jax.lax.optimization_barrier(engine.drafter.propose(params, state, ctx))


def _filled_cache(
    config: TransformerConfig, rows: int, slots: int, dtype: Any, filled: int
) -> KVCache:
    """A cache of zeros of which some slots are in use."""
    heads, size = config.num_kv_heads, config.head_size
    shapes = jax.eval_shape(
        lambda: init_cache(config.layers, rows, heads, slots, size, dtype)
    )
    cache = jax.tree.map(_zeros, shapes)
    return replace(
        cache,
        lengths=jax.device_put(np.full(rows, filled, np.int32)),
        visible=jax.device_put(np.ones(shapes.visible.shape, bool)),
    )


def _zeros(x: jax.ShapeDtypeStruct) -> jax.Array:
    """Zeros, or any keys; of the host, where making them takes no compilation."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), x.shape)
    return jax.device_put(np.zeros(x.shape, x.dtype))
