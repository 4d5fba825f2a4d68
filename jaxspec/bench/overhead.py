"""What a round costs beside the two models: rule, tree and overhead.

The round is the engine's own `spec_step`, with a target and a drafter that hand over
finished arrays. So noise, verification, commits, cache moves and counters are all in
it, and no forward pass is. Filters, and the near-ties that they leave, are in the rows
that name them: they are not compiled where nobody asks for them.
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
from jaxspec.bench.given_drafts import FixedDrafts
from jaxspec.config import TransformerConfig
from jaxspec.device import device_name
from jaxspec.models.presets import preset
from jaxspec.models.target import make_target
from jaxspec.models.transformer import Transformer
from jaxspec.rules import parse_verifier
from jaxspec.spec.cache import init_cache, tree_mask
from jaxspec.spec.loop import init_state, spec_step
from jaxspec.spec.neighbors import neighbor_table
from jaxspec.spec.noise import batch_keys
from jaxspec.spec.sampling import LLAMAGEN_ORDER, make_sampling
from jaxspec.spec.state import Engine
from jaxspec.spec.target import Prefill, Target
from jaxspec.spec.tree import Tree
from jaxspec.timing import RATIO_NOTE, Timing, ratio_fields, shown
from jaxspec.trees import parse_tree
from jaxspec.typing import Array

MODEL = "gpt-l"  # whose cache is moved, and whose verify pass is the yardstick
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
    vocab_size: int, streams: int, config: TransformerConfig, dtype
) -> Target:
    """A target whose scores are its parameters, `logits` [R, N, V]; a real cache."""
    return Target(
        vocab_size,
        streams,
        _FixedPrefill(streams, config, jnp.dtype(dtype)),
        _fixed_forward,
        _FixedRescore(streams),
    )


@dataclass(frozen=True)
class _FixedPrefill:
    streams: int
    config: TransformerConfig
    dtype: jnp.dtype

    def __call__(self, params, prompt, extra):
        rows, c = self.streams * prompt.shape[0], self.config
        cache = init_cache(
            c.layers, rows, c.num_kv_heads, 1 + extra, c.head_size, self.dtype
        )
        cache = replace(cache, lengths=jnp.ones(rows, jnp.int32))
        features = jnp.zeros((rows, 1, 0))
        return Prefill(params["logits"][:, 0], features, cache)


def _fixed_forward(params, cache, tokens, positions, mask):
    return params["logits"], jnp.zeros((*tokens.shape, 0)), cache


@dataclass(frozen=True)
class _FixedRescore:
    streams: int

    def __call__(self, params, prompt, tokens, index):
        return params["logits"][: self.streams, 0]


def measure_overhead(
    *,
    batch: int = 8,
    nodes: int = 64,
    vocab_size: int = 16384,
    repeats: int = 20,
    rules: tuple[str, ...] = VERIFIERS,
) -> dict[str, Any]:
    """Medians, side by side, of a round without models and of one softmax.

    Args:
      batch: `B`.
      nodes: `N`, of the tree that is best for the embedded model.
      vocab_size: `V`.
      repeats: timed runs of each.
      rules: by name, see `parse_verifier`; each on one stream, the first also with
        guidance, and with guidance and filters.
    """
    dtype = jnp.float32 if _on_cpu() else jnp.bfloat16
    config = preset(MODEL, "class", grid=24)
    keys = jax.random.split(jax.random.key(0), 4)
    tree = parse_tree(f"optimal-{nodes}")
    assert isinstance(tree, Tree)
    logits = 3 * jax.random.normal(keys[0], (2 * batch, tree.size, vocab_size))
    q = jax.nn.log_softmax(3 * jax.random.normal(keys[1], (batch, 1, vocab_size)))
    codes = jax.random.normal(keys[3], (vocab_size, 8))
    params = {"neighbors": neighbor_table(codes, 100)}
    cells = [(rules[0], 2, True), (rules[0], 2, False)]
    cells += [(verifier, 1, False) for verifier in rules]
    softmax = jax.jit(partial(jax.nn.softmax, axis=-1))
    verify = _verify_timing(config, tree, batch, repeats)
    rows = []
    for name, streams, filters in tqdm(cells, desc="overhead", unit="verifier"):
        verifier = parse_verifier(name)
        shape = Tree.chain(tree.depth) if name == "block" else tree
        engine = Engine(
            fixed_target(vocab_size, streams, config, dtype),
            config.sequence_length,
            FixedDrafts(),
            shape,
            verifier,
            order=LLAMAGEN_ORDER if filters else ("temperature",),
        )
        given = {"logits": logits[: streams * batch, : shape.size]}
        drafted = {
            "tokens": _likely_drafts(given["logits"][:batch], shape),
            "log_q": jnp.broadcast_to(q, (batch, len(shape.internal), vocab_size)),
        }
        options = FILTERS if filters else {}
        sampling = make_sampling(batch, cfg_scale=2.0, **options)
        prompt = jnp.zeros(batch, jnp.int32)
        arguments = (given, drafted, prompt, sampling)
        state = init_state(engine, *arguments, batch_keys(0, batch))
        step = jax.jit(partial(spec_step, engine), donate_argnums=4)

        def one_round(held, step=step, arguments=arguments, params=params):
            return step(*arguments, held, params)

        state = one_round(state)  # compiles
        whole, yardstick = _time_interleaved(
            one_round, state, softmax, given["logits"][:batch], repeats
        )
        rows.append(
            {
                "verifier": name,
                "streams": streams,
                "filters": options,
                "nodes": shape.size,
                "round_seconds": whole.median,
                "softmax_seconds": yardstick.median,
                **ratio_fields(ratio=(whole, yardstick)),
                **(ratio_fields(fraction_of_verify=(whole, verify)) if verify else {}),
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
    """The target's own likeliest tokens, so that rounds accept some."""
    order = np.asarray(jax.lax.top_k(logits, tree.width)[1])  # [B, N, W]
    tokens = np.zeros(order.shape[:2], np.int32)
    for n in range(1, tree.size):
        tokens[:, n] = order[:, tree.parents[n], tree.ranks[n]]
    return jnp.asarray(tokens)


def _time_interleaved(
    one_round: Callable, state: Any, softmax: Callable, logits: Array, repeats: int
) -> tuple[Timing, Timing]:
    """A round and a softmax, taken in turn."""
    times = []
    jax.block_until_ready(softmax(logits))
    for _ in range(repeats):
        began = time.perf_counter()
        state = jax.block_until_ready(one_round(state))
        between = time.perf_counter()
        jax.block_until_ready(softmax(logits))
        times.append((between - began, time.perf_counter() - between))
    rounds, softmaxes = zip(*times, strict=True)
    return Timing.of(rounds), Timing.of(softmaxes)


def _verify_timing(
    config: TransformerConfig, tree: Tree, batch: int, repeats: int
) -> Timing | None:
    """The model's pass over the trees of a guided batch; None on a CPU."""
    if _on_cpu():
        return None
    model = Transformer(config)
    target = make_target(model)
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


def _filter_words(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in row["filters"].items())


def _on_cpu() -> bool:
    return jax.devices()[0].platform == "cpu"


def overhead_markdown(result: dict[str, Any]) -> str:
    """The rows as a table."""
    verify = result["verify_seconds"]
    lines = [
        "# Cost of a round beside target and drafter",
        "",
        f"`{result['command']}`",
        "",
        f"Device: {result['device']}, jax {result['versions']['jax']}. Batch "
        f"{result['batch']}, vocabulary {result['vocab_size']}, caches of "
        f"{result['cache_model']} in {result['cache_dtype']}, temperature 1. "
        f"Medians of {result['repeats']} rounds, each in turn with a softmax "
        f"over the same logits (of one guidance stream). {RATIO_NOTE}",
        "",
        "| rule | filters | streams | nodes | round ms | softmax ms "
        "| rounds / softmax | of a verify pass |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        share = shown(row, "fraction_of_verify", "%") if verify else ""
        lines.append(
            f"| {row['verifier']} | {_filter_words(row)} | {row['streams']} "
            f"| {row['nodes']} "
            f"| {1e3 * row['round_seconds']:.2f} | {1e3 * row['softmax_seconds']:.2f} "
            f"| {shown(row, 'ratio')} | {share} |"
        )
    if verify:
        lines += ["", f"A guided verify pass takes {1e3 * verify:.2f} ms."]
    else:
        lines += ["", "The last column is for accelerators; none was at hand."]
    return "\n".join(lines) + "\n"
