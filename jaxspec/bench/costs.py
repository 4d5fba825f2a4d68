"""What a round is made of, in decode steps, and what its passes must take at least."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.bench import passes
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.bench.roofline.work import pass_work
from jaxspec.bench.timing import side_by_side
from jaxspec.bundle import Bundle
from jaxspec.helpers import LoadedDrafter
from jaxspec.models.transformer import Transformer, activation_dtype
from jaxspec.pipeline import Run, Settings, batches_of, bundle_for, make_engine
from jaxspec.spec.draft import DraftContext
from jaxspec.spec.envelopes import DynamicTree
from jaxspec.spec.loop import init_state
from jaxspec.spec.noise import batch_keys
from jaxspec.spec.tree import Tree
from jaxspec.timing import Timing, ratio_fields

# Passes, or drafts, in one timed program.
LOOPS = 8


def round_costs(
    bundle: Bundle,
    settings: Settings,
    tree: Tree | DynamicTree,
    loaded: LoadedDrafter,
    repeats: int = 5,
) -> dict[str, Any]:
    """A pass over the tree and a draft, in decode steps: what speed is to be expected.

    Returns:
      "verify_cost" and "draft_cost", of a full batch behind half an image; see
      `timing.ratio_fields`.
    """
    own, (_, rows) = bundle_for(bundle, loaded), batches_of(bundle, settings)
    config, params = own.prior.config, own.prior.params
    filled = config.prefix_length + config.sequence_length // 2
    shapes = {1: Tree.root(), tree.size: Tree.chain(tree.size - 1)}
    calls: dict[Any, passes.Program] = {
        size: passes.tree_passes(
            Transformer(config, settings.attention),
            params,
            rows,
            shape,
            filled,
            LOOPS,
            passes.build_here(),
            guided=settings.cfg_scale != 1.0,
        )
        for size, shape in shapes.items()
    }
    calls["draft"] = draft_call(bundle, settings, tree, loaded)
    times = side_by_side(calls, repeats)
    step = times[1]
    return ratio_fields(
        verify_cost=(times[tree.size], step), draft_cost=(times["draft"], step)
    )


def draft_timing(
    bundle: Bundle,
    settings: Settings,
    tree: Tree | DynamicTree,
    loaded: LoadedDrafter,
    repeats: int = 5,
) -> Timing:
    """One `propose` for a full batch."""
    call = draft_call(bundle, settings, tree, loaded)
    return side_by_side({"draft": call}, repeats)["draft"].per(LOOPS)


def draft_call(
    bundle: Bundle, settings: Settings, tree: Tree | DynamicTree, loaded: LoadedDrafter
) -> passes.Program:
    """`LOOPS` drafts for a full batch, each behind a token of the one before."""
    bundle = bundle_for(bundle, loaded)
    engine = make_engine(bundle, settings, tree, loaded)
    (_, rows), drafter = batches_of(bundle, settings), loaded.drafter
    some = np.resize(np.arange(len(settings.classes)), rows)
    prompts = jax.tree.map(lambda x: jnp.asarray(x[some]), settings.prompts())
    sampling, keys = settings.sampling(rows), batch_keys(settings.seed, rows)
    state = jax.jit(partial(init_state, engine))(
        bundle.prior.params, loaded.params, prompts, sampling, keys
    )
    shape = rows, tree.depth + 1, engine.target.vocab_size
    noise = jax.random.gumbel(jax.random.key(0), shape)

    def run(params, state, gumbel):
        def step(_, carry):
            # Nothing may be computed once for all drafts, and nothing left out of one.
            root, own, tokens, index, noise = jax.lax.optimization_barrier(
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
            draft, own = jax.lax.optimization_barrier(drafter.propose(params, own, ctx))
            return draft.tokens[:, -1], own

        return jax.lax.fori_loop(0, LOOPS, step, (state.tokens[:, 0], state.drafter))[0]

    program = passes.lowered(run, loaded.params, state, noise).compile()
    return lambda: program(loaded.params, state, noise)


def target_bound(
    bundle: Bundle,
    settings: Settings,
    tree: Tree | DynamicTree,
    run: Run,
    loaded: LoadedDrafter | None = None,
) -> dict[str, Any]:
    """Seconds that the target's passes of a run must take, and their share of its time.

    Drafting is not in it. Rows of a batch are taken to end together.
    """
    bundle = bundle_for(bundle, loaded)
    config, dtype = bundle.prior.config, activation_dtype(bundle.prior.params)
    _, rows = batches_of(bundle, settings)
    work = pass_work(
        config,
        rows=rows * (2 if settings.cfg_scale != 1.0 else 1),
        nodes=tree.size,
        filled=config.prefix_length + run.tokens.shape[1] / 2,
        itemsize=jnp.dtype(dtype).itemsize,
        int8=bundle.int8,
    )
    work *= int(run.calls.sum()) / rows
    bound = work.bound(measure_ceilings(str(dtype)))
    return {
        "bytes": work.bytes,
        "flops": work.flops,
        "bound_seconds": bound,
        **ratio_fields(achieved=(Timing.exact(bound), run.timing)),
    }
