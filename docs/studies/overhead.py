"""Cost of a decoding round without its models: verifier, tree and cache updates.

The timed round is `Engine.step` with a target and a drafter that return
fixed arrays. It includes noise, verification, commits, cache moves and counters, and no
forward pass. Only rows that name filters include top-k and top-p and the near-ties they
cause; elsewhere filters are not part of the compiled program.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from docs.studies.command import run_study
from jaxspec.bench.description import Benchmark, Option
from jaxspec.bench.fixed_drafts import FixedDrafts
from jaxspec.config import TransformerConfig
from jaxspec.core.kv_cache import init_cache, tree_mask
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import LLAMAGEN_ORDER, Sampling
from jaxspec.evaluate.tables import environment, markdown_table
from jaxspec.models.transformer.model import Transformer
from jaxspec.models.transformer.presets import preset
from jaxspec.pipeline.interleaved import time_interleaved
from jaxspec.pipeline.timing import RATIO_NOTE, Timing, ratio_fields, shown
from jaxspec.pipeline.verifiers import parse_verifier
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.target import Prefill, Target
from jaxspec.speculative.trees.parsing import parse_tree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.neighbors import Neighbors, neighbor_table
from jaxspec.typing import Array

# Model of the cache, and of the verify pass that rounds are compared with.
MODEL = "gpt-l"
VERIFIERS = (
    "coupled",
    "rejection",
    "kseq",
    "greedy-set",
    "block",
    "typical",
    "lantern:k=100,delta=0.1",
    "coupled-relaxed:k=100,budget=0.1",
)

FILTERS = {"top_k": 1000, "top_p": 0.95}


def fixed_target(
    vocab_size: int, branches: int, config: TransformerConfig, dtype
) -> Target:
    """Makes a target with fixed logits and a real cache.

    The parameters of the target are `{"logits": [R, N, V]}`.

    Args:
      vocab_size: Vocabulary size `V`.
      branches: Number of CFG branches.
      config: Config that defines the size of the cache.
      dtype: Dtype of the cache.
    """
    return Target(
        vocab_size,
        branches,
        _FixedPrefill(branches, config, jnp.dtype(dtype)),
        _fixed_forward,
        _FixedRescore(branches),
    )


@dataclass(frozen=True)
class _FixedPrefill:
    branches: int
    config: TransformerConfig
    dtype: jnp.dtype

    def __call__(self, params, prompt, extra):
        batch, c = self.branches * prompt.shape[0], self.config
        cache = init_cache(
            c.layers, batch, c.num_kv_heads, 1 + extra, c.head_size, self.dtype
        )
        cache = replace(cache, lengths=jnp.ones(batch, jnp.int32))
        features = jnp.zeros((batch, 1, 0))
        return Prefill(params["logits"][:, 0], features, cache)


def _fixed_forward(params, cache, tokens, positions, mask):
    return params["logits"], jnp.zeros((*tokens.shape, 0)), cache


@dataclass(frozen=True)
class _FixedRescore:
    branches: int

    def __call__(self, params, prompt, tokens, index):
        return params["logits"][: self.branches, 0]


def measure_overhead(
    *,
    batch: int = 8,
    nodes: int = 64,
    vocab: int = 16384,
    repeats: int = 20,
    verifiers: tuple[str, ...] = VERIFIERS,
) -> dict[str, Any]:
    """Times rounds without models, interleaved with a softmax over the same logits.

    Args:
      batch: Number of sequences `B`.
      nodes: Number of nodes `N` of the optimal tree for the embedded model.
      vocab: Vocabulary size `V`.
      repeats: Number of timed runs of each.
      verifiers: Names of verifiers, see `parse_verifier`. Each is timed without CFG;
        the first also with CFG, and with CFG and filters.
    """
    dtype = jnp.float32 if _on_cpu() else jnp.bfloat16
    config = preset(MODEL, "class", grid=24)
    tree = parse_tree(f"optimal-{nodes}")
    assert isinstance(tree, Tree)
    inputs = _random_inputs(batch, tree.size, vocab)
    cells = [(verifiers[0], 2, FILTERS), (verifiers[0], 2, {})]
    cells += [(verifier, 1, {}) for verifier in verifiers]
    softmax = jax.jit(partial(jax.nn.softmax, axis=-1))
    logits = inputs.logits[:batch]
    verify = _verify_timing(config, tree, batch, repeats)
    rows = []
    for name, branches, filters in tqdm(cells, desc="overhead", unit="verifier"):
        draft_tree = Tree.chain(tree.depth) if name == "block" else tree
        engine = Engine(
            fixed_target(vocab, branches, config, dtype),
            config.sequence_length,
            FixedDrafts(),
            draft_tree,
            parse_verifier(name),
            order=LLAMAGEN_ORDER if filters else ("temperature",),
        )
        one_round = _round_program(engine, inputs, filters)
        calls = {
            "round": one_round,
            "softmax": partial(softmax, logits[:, : draft_tree.size]),
        }
        times = time_interleaved(calls, repeats)
        row = {
            "verifier": name,
            "branches": branches,
            "filters": filters,
            "nodes": draft_tree.size,
            "round_seconds": times["round"].median,
            "softmax_seconds": times["softmax"].median,
            **ratio_fields(ratio=(times["round"], times["softmax"])),
        }
        if verify:
            row |= ratio_fields(fraction_of_verify=(times["round"], verify))
        rows.append(row)
    return {
        "batch": batch,
        "vocab_size": vocab,
        "cache_model": MODEL,
        "cache_dtype": str(jnp.dtype(dtype)),
        "repeats": repeats,
        "rows": rows,
        "verify_seconds": verify.median if verify else None,
        **environment(),
    }


@dataclass(frozen=True)
class _Inputs:
    """Random inputs of a round.

    Attributes:
      logits: Target's logits of both CFG branches [2 B, N, V].
      log_q: Drafter's log-probabilities [B, 1, V].
      neighbors: Parameters of verifiers that use a codebook.
    """

    logits: Array
    log_q: Array
    neighbors: Neighbors


def _random_inputs(batch: int, nodes: int, vocab_size: int) -> _Inputs:
    keys = jax.random.split(jax.random.key(0), 4)
    logits = 3 * jax.random.normal(keys[0], (2 * batch, nodes, vocab_size))
    log_q = jax.nn.log_softmax(3 * jax.random.normal(keys[1], (batch, 1, vocab_size)))
    codebook = jax.random.normal(keys[3], (vocab_size, 8))
    return _Inputs(logits, log_q, neighbor_table(codebook, 100))


def _round_program(
    engine: Engine, inputs: _Inputs, filters: dict[str, Any]
) -> Callable[[], Any]:
    """Makes a call that runs one round and keeps the state for the next one.

    Args:
      engine: Engine with a fixed target and fixed drafts.
      inputs: Arrays that they return.
      filters: Further settings of `Sampling.create`.
    """
    batch, tree = len(inputs.log_q), engine.tree
    assert isinstance(tree, Tree)
    logits = inputs.logits[: engine.target.branches * batch, : tree.size]
    log_q_shape = batch, len(tree.internal), engine.target.vocab_size
    drafter_params = {
        "tokens": _likely_drafts(logits[:batch], tree),
        "log_q": jnp.broadcast_to(inputs.log_q, log_q_shape),
    }
    verifier_params = {"neighbors": inputs.neighbors}
    variables = Variables({"logits": logits}, drafter_params, verifier_params)
    state = engine.init(
        variables,
        jnp.zeros(batch, jnp.int32),
        sampling=Sampling.create(batch, cfg_scale=2.0, **filters),
        keys=batch_keys(0, batch),
    )
    step = jax.jit(engine.step, donate_argnums=1)
    donated = [state]

    def call():
        donated[0] = step(variables, donated[0])
        return donated[0]

    return call


def _likely_drafts(logits: Array, tree: Tree) -> Array:
    """Most likely tokens of the target [B, N], so that rounds accept some."""
    order = np.asarray(jax.lax.top_k(logits, tree.width)[1])  # [B, N, W]
    tokens = np.zeros(order.shape[:2], np.int32)
    for n in range(1, tree.size):
        tokens[:, n] = order[:, tree.parents[n], tree.ranks[n]]
    return jnp.asarray(tokens)


def _verify_timing(
    config: TransformerConfig, tree: Tree, batch: int, repeats: int
) -> Timing | None:
    """Time of a forward pass over the trees of a batch with CFG; None on CPUs."""
    if _on_cpu():
        return None
    model = Transformer(config)
    target = model.as_target()
    params = jax.jit(model.init)(jax.random.key(0))
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    prompt = jnp.zeros(batch, jnp.int32)
    _, _, cache = target.prefill(params, prompt, config.sequence_length + tree.size)
    cache = replace(cache, lengths=cache.lengths + config.sequence_length - 1)
    tokens = jnp.zeros((2 * batch, tree.size), jnp.int32)
    positions = cache.lengths[:, None] + jnp.asarray(tree.depths)
    mask = tree_mask(cache, jnp.asarray(tree.ancestors))
    forward = jax.jit(target.forward, donate_argnums=1)
    donated = [cache]

    def call():
        _, _, donated[0] = forward(params, donated[0], tokens, positions, mask)
        return donated[0]

    return time_interleaved({"verify": call}, repeats)["verify"]


def _format_filters(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in row["filters"].items())


def _on_cpu() -> bool:
    return jax.devices()[0].platform == "cpu"


def overhead_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_overhead`."""
    verify = result["verify_seconds"]
    columns = ["verifier", "filters", "branches", "nodes", "round ms", "softmax ms"]
    columns += ["round / softmax", "fraction of a verify pass"]
    rows = [
        [
            row["verifier"],
            _format_filters(row),
            row["branches"],
            row["nodes"],
            f"{1e3 * row['round_seconds']:.2f}",
            f"{1e3 * row['softmax_seconds']:.2f}",
            shown(row, "ratio"),
            shown(row, "fraction_of_verify", "%") if verify else "",
        ]
        for row in result["rows"]
    ]
    note = "The last column is empty: verify passes are timed on accelerators only."
    if verify:
        note = f"A verify pass with CFG takes {1e3 * verify:.2f} ms."
    lines = [
        "# Cost of a round without target and drafter",
        "",
        f"`{result['command']}`",
        "",
        f"Device: {result['device']}, jax {result['versions']['jax']}. Batch "
        f"{result['batch']}, vocabulary {result['vocab_size']}, caches of "
        f"{result['cache_model']} in {result['cache_dtype']}, temperature 1. "
        f"Medians of {result['repeats']} rounds, interleaved with a softmax "
        f"over the logits of one CFG branch. {RATIO_NOTE}",
        "",
        markdown_table(columns, rows),
        note,
    ]
    return "\n".join(lines) + "\n"


STUDY = Benchmark(
    "overhead",
    summary="cost of a round without target and drafter",
    description="Times whole rounds without forward passes: noise, verifier, tree, "
    "cache moves and counters. Compares them with a softmax over the same logits and, "
    "on accelerators, with a verify pass of GPT-L.",
    example="Example: python -m docs.studies.overhead --out docs/reports/overhead_cpu",
    options=(
        Option("batch", "batch size in sequences", int, default=8, least=1),
        Option("nodes", "tree size", int, default=64, least=2),
        Option("vocab", "vocabulary size", int, default=16384, least=128),
        Option(
            "repeats",
            "number of timed rounds of each verifier",
            int,
            default=20,
            least=1,
        ),
    ),
    measure=measure_overhead,
    markdown=overhead_markdown,
    program="python -m docs.studies.overhead",
)

if __name__ == "__main__":
    sys.exit(run_study(STUDY))
