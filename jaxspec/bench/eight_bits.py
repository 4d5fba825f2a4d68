"""What rounding matrices to eight bits does to a model's scores."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.bundle import Bundle
from jaxspec.checkpoint import named_leaves
from jaxspec.device import device_name
from jaxspec.helpers import load_drafter
from jaxspec.models.transformer import Transformer
from jaxspec.pipeline import Settings, draw, spread_classes
from jaxspec.spec.envelopes import DynamicTree
from jaxspec.spec.tree import Tree
from jaxspec.typing import Params


def bench_int8(
    bundle: Bundle,
    rounded: Bundle,
    tree: Tree | DynamicTree,
    *,
    drafter: str = "own",
    num: int,
    batch: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of both models on images that the unrounded one drew.

    Args:
      bundle: as trained.
      rounded: the same, loaded with `int8`.
      tree: with which both draw speculatively.
      drafter: see `load_drafter`.
      num: images.
      batch: images side by side.
      seed: of images and noise.

    Returns:
      Errors of logits (RMS and largest), mean KL divergence from the rounded model's
      law (nats), how often the likeliest token is the same, likelihood of the same
      tokens under both, bytes of parameters, and tokens per call of each drawing
      speculatively; "identical" says that both drew what they draw plainly.
    """
    classes = spread_classes(len(bundle.class_names), num)
    settings = Settings(classes, seed=seed, batch=batch)
    plain = draw(bundle, settings, Tree.root())
    fast = draw(bundle, settings, tree, loaded=load_drafter(drafter, bundle))
    own = draw(rounded, settings, tree, loaded=load_drafter(drafter, rounded))
    own_plain = draw(rounded, settings, Tree.root())
    score = jax.jit(partial(_compare, Transformer(bundle.prior.config)))
    parts = []
    for start in range(0, num, batch):
        rows = np.resize(np.arange(start, min(start + batch, num)), batch)
        labels = np.array(classes, np.int32)[rows]
        given = jnp.asarray(labels), jnp.asarray(plain.tokens[rows])
        parts.append(score(bundle.prior.params, rounded.prior.params, *given))
    found = {k: np.array([float(part[k]) for part in parts]) for k in parts[0]}

    def size(params: Params) -> int:
        return sum(x.nbytes for _, x in named_leaves(params))

    return {
        "checkpoint": bundle.name,
        "images": num,
        "nodes": tree.size,
        "logit_rms": float(np.sqrt((found["square"]).mean())),
        "logit_rms_relative": float(
            np.sqrt(found["square"].mean() / found["power"].mean())
        ),
        "logit_max": float(found["most"].max()),
        "kl": float(found["kl"].mean()),
        "top1_agreement": float(found["same"].mean()),
        "nll": float(found["nll"].mean()),
        "nll_rounded": float(found["nll_rounded"].mean()),
        "bytes": size(bundle.prior.params),
        "bytes_rounded": size(rounded.prior.params),
        "tokens_per_call": fast.tokens_per_call,
        "tokens_per_call_rounded": own.tokens_per_call,
        "identical": bool(
            np.array_equal(own.tokens, own_plain.tokens)
            and np.array_equal(fast.tokens, plain.tokens)
        ),
        "same_tokens": float((own.tokens == plain.tokens).mean()),
        "device": device_name(),
        "jax": jax.__version__,
    }


def _compare(model: Transformer, params: Params, rounded: Params, labels, tokens):
    first = model.config.prefix_length - 1
    exact, _ = model.score(params, labels, tokens)
    other, _ = model.score(rounded, labels, tokens)
    exact, other = exact[:, first:-1], other[:, first:-1]
    p, q = jax.nn.log_softmax(exact), jax.nn.log_softmax(other)
    own = tokens[..., None]
    centered = exact - jnp.mean(exact, axis=-1, keepdims=True)
    wrong = other - jnp.mean(other, axis=-1, keepdims=True) - centered
    return {
        "square": jnp.mean(wrong**2),
        "power": jnp.mean(centered**2),
        "most": jnp.max(jnp.abs(wrong)),
        "kl": jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1)),
        "same": jnp.mean(jnp.argmax(p, axis=-1) == jnp.argmax(q, axis=-1)),
        "nll": -jnp.mean(jnp.take_along_axis(p, own, axis=-1)),
        "nll_rounded": -jnp.mean(jnp.take_along_axis(q, own, axis=-1)),
    }


def int8_markdown(result: dict[str, Any]) -> str:
    """The table for people."""
    r = result
    yes = "yes" if r["identical"] else "NO"
    rows = [
        ("bytes of the prior's parameters", "bytes", ","),
        ("nats a token, on the same images", "nll", ".4f"),
        (f"tokens per call, {r['nodes']} nodes", "tokens_per_call", ".2f"),
    ]
    lines = [
        f"# Matrices in eight bits: {r['checkpoint']}",
        "",
        f"`{r['command']}`",
        "",
        f"Device: {r['device']}, jax {r['jax']}. {r['images']} images that the "
        "float32 model drew (cfg 2, temperature 1), scored by both without guidance.",
        "",
        "| | float32 | int8 |",
        "|---|---|---|",
        *(
            f"| {words} | {r[name]:{form}} | {r[name + '_rounded']:{form}} |"
            for words, name, form in rows
        ),
        "",
        f"Error of the logits: RMS {r['logit_rms']:.4f} "
        f"({100 * r['logit_rms_relative']:.2f} % of their own), at most "
        f"{r['logit_max']:.3f}. KL divergence {r['kl']:.2e} nats a token; the "
        f"likeliest token is the same {100 * r['top1_agreement']:.1f} % of the time. With "
        f"the same noise {100 * r['same_tokens']:.0f} % of tokens are the same, place "
        "by place: an image goes its own method from the first token that differs. "
        "Speculative and "
        f"plain decoding identical, each model for itself: {yes}.",
    ]
    return "\n".join(lines) + "\n"
