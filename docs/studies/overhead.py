"""Cost of a decoding round without its models: verifier, tree and cache updates.

The timed round is `Engine.step` with a target and a drafter that return
fixed arrays. It includes noise, verification, commits, cache moves and counters, and no
forward pass. Only rows that name filters include top-k and top-p and the near-ties they
cause; elsewhere filters are not part of the compiled program.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxspec import __version__
from jaxspec.bench.fixed_drafts import FixedDrafts
from jaxspec.config import TransformerConfig
from jaxspec.core.kv_cache import init_cache, tree_mask
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import LLAMAGEN_ORDER, Sampling
from jaxspec.evaluate.tables import markdown_table
from jaxspec.models.transformer.model import Transformer
from jaxspec.models.transformer.presets import preset
from jaxspec.pipeline.timing import RATIO_NOTE, Timing, ratio_fields, shown
from jaxspec.pipeline.verifiers import parse_verifier
from jaxspec.sharding.device import device_name
from jaxspec.speculative.engine import Engine
from jaxspec.speculative.state import Variables
from jaxspec.speculative.target import Prefill, Target
from jaxspec.speculative.trees.parsing import parse_tree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify.neighbors import neighbor_table
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
    vocab_size: int = 16384,
    repeats: int = 20,
    verifiers: tuple[str, ...] = VERIFIERS,
) -> dict[str, Any]:
    """Times rounds without models, interleaved with a softmax over the same logits.

    Args:
      batch: Number of sequences `B`.
      nodes: Number of nodes `N` of the optimal tree for the embedded model.
      vocab_size: Vocabulary size `V`.
      repeats: Number of timed runs of each.
      verifiers: Names of verifiers, see `parse_verifier`. Each is timed without CFG;
        the first also with CFG, and with CFG and filters.
    """
    dtype = jnp.float32 if _on_cpu() else jnp.bfloat16
    config = preset(MODEL, "class", grid=24)
    keys = jax.random.split(jax.random.key(0), 4)
    tree = parse_tree(f"optimal-{nodes}")
    assert isinstance(tree, Tree)
    logits = 3 * jax.random.normal(keys[0], (2 * batch, tree.size, vocab_size))
    log_q = jax.nn.log_softmax(3 * jax.random.normal(keys[1], (batch, 1, vocab_size)))
    codebook = jax.random.normal(keys[3], (vocab_size, 8))
    params = {"neighbors": neighbor_table(codebook, 100)}
    cells = [(verifiers[0], 2, True), (verifiers[0], 2, False)]
    cells += [(verifier, 1, False) for verifier in verifiers]
    softmax = jax.jit(partial(jax.nn.softmax, axis=-1))
    verify = _verify_timing(config, tree, batch, repeats)
    rows = []
    for name, branches, filters in tqdm(cells, desc="overhead", unit="verifier"):
        verifier = parse_verifier(name)
        draft_tree = Tree.chain(tree.depth) if name == "block" else tree
        engine = Engine(
            fixed_target(vocab_size, branches, config, dtype),
            config.sequence_length,
            FixedDrafts(),
            draft_tree,
            verifier,
            order=LLAMAGEN_ORDER if filters else ("temperature",),
        )
        target_params = {"logits": logits[: branches * batch, : draft_tree.size]}
        first_branch = target_params["logits"][:batch]
        log_q_shape = batch, len(draft_tree.internal), vocab_size
        drafter_params = {
            "tokens": _likely_drafts(first_branch, draft_tree),
            "log_q": jnp.broadcast_to(log_q, log_q_shape),
        }
        options = FILTERS if filters else {}
        sampling = Sampling.create(batch, cfg_scale=2.0, **options)
        prompt = jnp.zeros(batch, jnp.int32)
        variables = Variables(target_params, drafter_params, params)
        state = engine.init(
            variables, prompt, sampling=sampling, keys=batch_keys(0, batch)
        )
        step = jax.jit(engine.step, donate_argnums=1)

        def one_round(state, step=step, variables=variables):
            return step(variables, state)

        state = one_round(state)  # compiles
        round_timing, softmax_timing = _time_interleaved(
            one_round, state, softmax, first_branch, repeats
        )
        rows.append(
            {
                "verifier": name,
                "branches": branches,
                "filters": options,
                "nodes": draft_tree.size,
                "round_seconds": round_timing.median,
                "softmax_seconds": softmax_timing.median,
                **ratio_fields(ratio=(round_timing, softmax_timing)),
                **(
                    ratio_fields(fraction_of_verify=(round_timing, verify))
                    if verify
                    else {}
                ),
            }
        )
    return {
        "batch": batch,
        "vocab_size": vocab_size,
        "cache_model": MODEL,
        "cache_dtype": str(jnp.dtype(dtype)),
        "repeats": repeats,
        "rows": rows,
        "verify_seconds": verify.median if verify else None,
        "device": device_name(),
        "versions": {"jaxspec": __version__, "jax": jax.__version__},
    }


def _likely_drafts(logits: Array, tree: Tree) -> Array:
    """Most likely tokens of the target [B, N], so that rounds accept some."""
    order = np.asarray(jax.lax.top_k(logits, tree.width)[1])  # [B, N, W]
    tokens = np.zeros(order.shape[:2], np.int32)
    for n in range(1, tree.size):
        tokens[:, n] = order[:, tree.parents[n], tree.ranks[n]]
    return jnp.asarray(tokens)


def _time_interleaved(
    one_round: Callable, state: Any, softmax: Callable, logits: Array, repeats: int
) -> tuple[Timing, Timing]:
    """Timings of a round and of a softmax, interleaved; the round donates its state."""
    times = []
    jax.block_until_ready(softmax(logits))
    for _ in range(repeats):
        began = time.perf_counter()
        state = jax.block_until_ready(one_round(state))
        middle = time.perf_counter()
        jax.block_until_ready(softmax(logits))
        times.append((middle - began, time.perf_counter() - middle))
    rounds, softmaxes = zip(*times, strict=True)
    return Timing.of(rounds), Timing.of(softmaxes)


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
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        _, _, cache = jax.block_until_ready(
            forward(params, cache, tokens, positions, mask)
        )
        times.append(time.perf_counter() - began)
    return Timing.of(times[1:])


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
