"""Programs of the two costs of a round: a pass of the target, and a draft."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.core.kv_cache import init_cache, tree_mask
from jaxspec.core.noise import batch_keys
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.models.transformer.model import Transformer
from jaxspec.models.transformer.parameters import activation_dtype
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.engine import bundle_for, make_engine
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.tree_choice.compiling import Compiler, Program, local_compiler
from jaxspec.speculative.draft import DraftContext
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import SpecState, Variables
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Params

# Iterations of each timed program: forward passes, or drafts.
ITERATIONS = 8


def pass_program(
    model: Transformer,
    params: Params,
    batch: int,
    tree: Tree,
    filled: int,
    iterations: int,
    compiler: Compiler,
    cfg: bool = True,
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
    """
    target, config = model.as_target(cfg=cfg), model.config
    branch_batch = target.branches * batch
    cache = init_cache(
        config.layers,
        branch_batch,
        config.num_kv_heads,
        model.cache_slots(config.prefix_length + config.sequence_length + tree.size),
        config.head_size,
        activation_dtype(params),
    )
    cache = replace(cache, lengths=jnp.full(branch_batch, filled, jnp.int32))
    tokens = jnp.zeros((branch_batch, tree.size), jnp.int32)

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
    bundle = bundle_for(bundle, loaded)
    engine = make_engine(bundle, config, tree, loaded, prompt_length=prompts.length)
    drafter = loaded.drafter
    values = prompts.take(np.resize(np.arange(len(prompts)), batch))
    sampling, keys = config.sampling(batch), batch_keys(config.seed, batch)
    state = mid_generation_state(
        engine,
        max(engine.max_new_tokens // 2, 1),
        bundle.prior.config.prefix_length,
        Variables(bundle.prior.params, loaded.params),
        jax.tree.map(jnp.asarray, values),
        sampling=sampling,
        keys=keys,
    )
    shape = batch, tree.depth + 1, engine.target.vocab_size
    noise = jax.random.gumbel(jax.random.key(0), shape)

    def run(params, state, gumbel):
        def step(_, carry):
            # The barriers keep XLA from hoisting work out of the loop or removing it.
            root, drafter_state, tokens, index, noise = jax.lax.optimization_barrier(
                (*carry, state.tokens, state.length, gumbel)
            )
            ctx = DraftContext(
                root=root,
                tokens=tokens,
                position=state.start + index - 1,
                index=index,
                noise=noise,
                keys=keys,
                sampling=sampling,
                tree=tree,
                selection=engine.candidates,
                order=engine.order,
            )
            draft, drafter_state = jax.lax.optimization_barrier(
                drafter.propose(params, drafter_state, ctx)
            )
            return draft.tokens[:, -1], drafter_state

        initial = state.tokens[:, 0], state.drafter
        return jax.lax.fori_loop(0, ITERATIONS, step, initial)[0]

    program = local_compiler()(run, loaded.params, state, noise)
    return lambda: program(loaded.params, state, noise)


def mid_generation_state(
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
