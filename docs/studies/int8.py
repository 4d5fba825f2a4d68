"""Effect of int8 weight quantization on logits and on acceptance."""

import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from docs.studies.command import run_study
from jaxspec.bench.description import Benchmark
from jaxspec.bench.registry import BATCH, CHECKPOINT, NUM, SEED, TREE
from jaxspec.checkpoint import named_leaves
from jaxspec.evaluate.tables import markdown_table
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.bundle import Bundle, load_bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.embedded import CLASSES
from jaxspec.pipeline.generation import generate
from jaxspec.pipeline.prompts import Prompts, spread_classes
from jaxspec.sharding.device import device_name
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Params


def measure_int8(
    *,
    checkpoint: str | None = None,
    num: int = 32,
    batch: int = 8,
    seed: int = 0,
    tree: str | None = None,
) -> dict[str, Any]:
    """Compares a bundle with its int8 version, see `bench_int8`.

    Args:
      checkpoint: Bundle folder; None for the embedded bundle.
      num: Number of images.
      batch: Batch size in images.
      seed: Seed of images and noise.
      tree: Name of the draft tree; None for the device's default.
    """
    bundle = load_bundle(checkpoint or CLASSES)
    draft_tree = load_drafter("own", bundle).tree(tree)
    quantized = load_bundle(checkpoint or CLASSES, int8=True)
    return bench_int8(bundle, quantized, draft_tree, num=num, batch=batch, seed=seed)


def bench_int8(
    bundle: Bundle,
    quantized: Bundle,
    tree: Tree | DynamicTree,
    *,
    drafter: str = "own",
    num: int,
    batch: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares a float32 model with its int8 version.

    Both models score images that the float32 model generated, without CFG, and
    generate images of their own, speculatively and plainly.

    Args:
      bundle: Models in float32.
      quantized: The same models, loaded with `int8`.
      tree: Draft tree.
      drafter: Name of the drafter, see `load_drafter`.
      num: Number of images.
      batch: Batch size in images.
      seed: Seed of images and noise.

    Returns:
      Report with the RMS and maximum error of logits, the mean KL divergence to the
      quantized model in nats, the rate of equal top-1 tokens, negative
      log-likelihoods, bytes of parameters, and tokens per call. "identical" is whether
      each model generates the same tokens speculatively and plainly.
    """
    classes = spread_classes(len(bundle.class_names), num)
    prompts = Prompts.from_classes(classes)
    settings = GenerationConfig(seed=seed, batch_size=batch)
    plain = generate(bundle, prompts, settings, Tree.root())
    fast = generate(
        bundle, prompts, settings, tree, loaded=load_drafter(drafter, bundle)
    )
    int8_plain = generate(quantized, prompts, settings, Tree.root())
    int8_fast = generate(
        quantized, prompts, settings, tree, loaded=load_drafter(drafter, quantized)
    )
    score = jax.jit(partial(_compare_logits, Transformer(bundle.prior.config)))
    parts = []
    for start in range(0, num, batch):
        indices = np.resize(np.arange(start, min(start + batch, num)), batch)
        labels = np.array(classes, np.int32)[indices]
        inputs = jnp.asarray(labels), jnp.asarray(plain.tokens[indices])
        parts.append(score(bundle.prior.params, quantized.prior.params, *inputs))
    stats = {k: np.array([float(part[k]) for part in parts]) for k in parts[0]}

    def size(params: Params) -> int:
        return sum(x.nbytes for _, x in named_leaves(params))

    return {
        "checkpoint": bundle.name,
        "images": num,
        "nodes": tree.size,
        "logit_rms": float(np.sqrt(stats["squared_error"].mean())),
        "logit_rms_relative": float(
            np.sqrt(stats["squared_error"].mean() / stats["variance"].mean())
        ),
        "logit_max": float(stats["max_error"].max()),
        "kl": float(stats["kl"].mean()),
        "top1_agreement": float(stats["top1"].mean()),
        "nll": float(stats["nll"].mean()),
        "nll_int8": float(stats["nll_int8"].mean()),
        "bytes": size(bundle.prior.params),
        "bytes_int8": size(quantized.prior.params),
        "tokens_per_call": fast.tokens_per_call,
        "tokens_per_call_int8": int8_fast.tokens_per_call,
        "identical": bool(
            np.array_equal(int8_fast.tokens, int8_plain.tokens)
            and np.array_equal(fast.tokens, plain.tokens)
        ),
        "token_agreement": float((int8_fast.tokens == plain.tokens).mean()),
        "device": device_name(),
        "jax": jax.__version__,
    }


def _compare_logits(
    model: Transformer, params: Params, int8_params: Params, labels, tokens
):
    """Statistics of the difference of two models' logits, means over positions."""
    first = model.config.prefix_length - 1
    exact, _ = model.score(params, labels, tokens)
    rounded, _ = model.score(int8_params, labels, tokens)
    exact, rounded = exact[:, first:-1], rounded[:, first:-1]
    log_p, log_q = jax.nn.log_softmax(exact), jax.nn.log_softmax(rounded)
    indices = tokens[..., None]
    # Softmax ignores a constant in all logits, so each side is centered.
    centered = exact - jnp.mean(exact, axis=-1, keepdims=True)
    error = rounded - jnp.mean(rounded, axis=-1, keepdims=True) - centered
    top1 = jnp.argmax(log_p, axis=-1) == jnp.argmax(log_q, axis=-1)
    return {
        "squared_error": jnp.mean(error**2),
        "variance": jnp.mean(centered**2),
        "max_error": jnp.max(jnp.abs(error)),
        "kl": jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)),
        "top1": jnp.mean(top1),
        "nll": -jnp.mean(jnp.take_along_axis(log_p, indices, axis=-1)),
        "nll_int8": -jnp.mean(jnp.take_along_axis(log_q, indices, axis=-1)),
    }


def int8_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `bench_int8`."""
    r = result
    yes = "yes" if r["identical"] else "NO"
    rows = [
        ("bytes of the prior's parameters", "bytes", ","),
        ("nats per token, same images", "nll", ".4f"),
        (f"tokens per call, {r['nodes']} nodes", "tokens_per_call", ".2f"),
    ]
    lines = [
        f"# int8 weights: {r['checkpoint']}",
        "",
        f"`{r['command']}`",
        "",
        f"Device: {r['device']}, jax {r['jax']}. {r['images']} images generated by the "
        "float32 model (cfg 2, temperature 1) and scored by both models without CFG.",
        "",
        markdown_table(
            ["", "float32", "int8"],
            [
                [label, f"{r[name]:{form}}", f"{r[name + '_int8']:{form}}"]
                for label, name, form in rows
            ],
        ),
        f"Error of the logits: RMS {r['logit_rms']:.4f} "
        f"({100 * r['logit_rms_relative']:.2f} % of their standard deviation), maximum "
        f"{r['logit_max']:.3f}. KL divergence: {r['kl']:.2e} nats per token. The top-1 "
        f"tokens agree at {100 * r['top1_agreement']:.1f} % of positions. Images "
        "generated by both models with the same noise agree in "
        f"{100 * r['token_agreement']:.0f} % of tokens; they diverge after the first "
        "difference. Speculative and plain decoding give identical tokens, for each "
        f"model: {yes}.",
    ]
    return "\n".join(lines) + "\n"


STUDY = Benchmark(
    "int8",
    summary="effect of int8 weights on logits and acceptance",
    description="Compares the logits of a model with those of its int8 version on "
    "images that the model generated, and generates images with both.",
    example="Example: python -m docs.studies.int8 --out docs/reports/fruits64_cpu_int8",
    options=(CHECKPOINT, NUM, BATCH, SEED, TREE),
    measure=measure_int8,
    markdown=int8_markdown,
    program="python -m docs.studies.int8",
)

if __name__ == "__main__":
    sys.exit(run_study(STUDY))
