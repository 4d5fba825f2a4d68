"""Costs of a decoding round in units of decode steps, and a roofline bound."""

from typing import Any

import jax.numpy as jnp

from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.bench.roofline.work import bound_fields, pass_work
from jaxspec.models.transformer.model import Transformer
from jaxspec.models.transformer.parameters import activation_dtype
from jaxspec.pipeline.bundle import Bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.engine import bundle_for
from jaxspec.pipeline.generation import GenerationResult, batches_of
from jaxspec.pipeline.interleaved import time_interleaved
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.prompts import Prompts
from jaxspec.pipeline.timing import Timing, ratio_fields
from jaxspec.pipeline.tree_choice.compiling import Program, local_compiler
from jaxspec.pipeline.tree_choice.programs import (
    ITERATIONS,
    draft_program,
    pass_program,
)
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree


def round_costs(
    bundle: Bundle,
    prompts: Prompts,
    settings: GenerationConfig,
    tree: Tree | DynamicTree,
    loaded: LoadedDrafter,
    repeats: int = 5,
) -> dict[str, Any]:
    """Measures the cost of verification and drafting in decode steps.

    Returns:
      "verify_cost", a forward pass over the tree, and "draft_cost", a call of
      `propose`, both over one decode step, for a full batch with caches filled by half
      an image; see `timing.ratio_fields`.
    """
    target, (_, batch) = (
        bundle_for(bundle, loaded),
        batches_of(bundle, len(prompts), settings.batch_size),
    )
    config, params = target.prior.config, target.prior.params
    filled = config.prefix_length + config.sequence_length // 2
    trees = {1: Tree.root(), tree.size: Tree.chain(tree.size - 1)}
    calls: dict[Any, Program] = {
        size: pass_program(
            Transformer(config, settings.attention),
            params,
            batch,
            static_tree,
            filled,
            ITERATIONS,
            local_compiler(),
            cfg=settings.cfg_scale != 1.0,
        )
        for size, static_tree in trees.items()
    }
    calls["draft"] = draft_program(bundle, prompts, settings, tree, loaded, batch)
    times = time_interleaved(calls, repeats)
    step = times[1]
    return ratio_fields(
        verify_cost=(times[tree.size], step), draft_cost=(times["draft"], step)
    )


def draft_timing(
    bundle: Bundle,
    prompts: Prompts,
    settings: GenerationConfig,
    tree: Tree | DynamicTree,
    loaded: LoadedDrafter,
    repeats: int = 5,
) -> Timing:
    """Times one `propose` for a full batch."""
    _, batch = batches_of(bundle, len(prompts), settings.batch_size)
    call = draft_program(bundle, prompts, settings, tree, loaded, batch)
    return time_interleaved({"draft": call}, repeats)["draft"].per(ITERATIONS)


def target_bound(
    bundle: Bundle,
    prompts: Prompts,
    settings: GenerationConfig,
    tree: Tree | DynamicTree,
    run: GenerationResult,
    loaded: LoadedDrafter | None = None,
) -> dict[str, Any]:
    """Roofline bound of the target's forward passes in a run.

    Drafting is not included. All sequences of a batch are assumed to take the same
    number of rounds.

    Returns:
      "bytes" and "flops" of the passes; "bound_seconds", their least time on this
      device; "achieved", that bound over the measured time of the run.
    """
    bundle = bundle_for(bundle, loaded)
    config, dtype = bundle.prior.config, activation_dtype(bundle.prior.params)
    _, batch = batches_of(bundle, len(prompts), settings.batch_size)
    work = pass_work(
        config,
        sequences=batch * (2 if settings.cfg_scale != 1.0 else 1),
        nodes=tree.size,
        filled=config.prefix_length + run.tokens.shape[1] / 2,
        itemsize=jnp.dtype(dtype).itemsize,
        int8=bundle.int8,
    )
    work *= int(run.calls.sum()) / batch
    return bound_fields(work, measure_ceilings(str(dtype)), run.timing)
