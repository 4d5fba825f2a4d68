"""One model in several orders of its tokens: drafts, and what comes out."""

import sys
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from docs.studies.command import run_study
from docs.studies.ways import OPTIONS, Comparison
from jaxspec.bench.description import Benchmark, Option
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.config.orders import Order
from jaxspec.core.logits import apply_cfg, process_logits
from jaxspec.core.precision import full_precision
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.evaluate.image_metrics import frechet_distance
from jaxspec.evaluate.tables import environment, markdown_table, report_heading
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.decoding import decode_images
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.generation import generate
from jaxspec.pipeline.orders import with_order
from jaxspec.pipeline.prompts import Prompts
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Array, Float, Int, Params

# Tokens that a chain of drafts is ahead of the last known one.
AHEAD = 16
# Numbers of tokens ahead of which shares are shown.
SHOWN = (2, 4, 8, 16)
# Parts of a sequence of which means are shown.
PARTS = 4
# Images of a pass.
BATCH = 16


def measure_orders(
    *,
    checkpoint: str | None = None,
    baseline: str | None = None,
    drafter: str = "jacobi",
    trees: tuple[str, ...] = ("chain-8", "chain-32", "chain-64"),
    cfg_scale: float = 2.0,
    temperatures: tuple[float, ...] = (1.0,),
    num: int = 192,
    seeds: int = 3,
    data_dir: str = "data",
    manual_dir: str | None = None,
    save=None,
) -> dict[str, Any]:
    """Generates images in each order, and measures how far ahead one can draft.

    Args:
      checkpoint: Bundle of a prior trained with `objective="any_order"`.
      baseline: Bundle of a prior over the same tokens in one order; None for no such
        row.
      drafter: Drafter of the tokens per call, as for `--drafter`.
      trees: Its trees.
      cfg_scale: CFG scale.
      temperatures: Temperatures of the rows of the baseline; others have 1.
      num: Number of images of each seed.
      seeds: Number of seeds.
      data_dir: Folder of the prepared data.
      manual_dir: Folder of files that tfds cannot download.
      save: Callback for unfinished reports.

    Returns:
      Report with one row for each order.

    Raises:
      ConfigError: the prior was trained in one order alone.
    """
    if checkpoint is None:
        raise ConfigError("name a model of any order: --checkpoint DIR")
    loaded = load_bundle(checkpoint)
    comparison = Comparison.on_fruits(loaded, num, seeds, data_dir, manual_dir)
    prompts = Prompts.from_classes(comparison.classes.reshape(-1).tolist())
    rows: list[dict[str, Any]] = []
    report = {
        "dtype": "float32",
        "repeats": seeds,
        "cfg_scale": cfg_scale,
        "num": num,
        "drafter": drafter,
        "heldout_accuracy": comparison.accuracy,
        "ceilings": measure_ceilings("float32").fields(),
        "rows": rows,
        **environment(),
    }
    bundles = {order: (with_order(loaded, order), 1.0) for order in get_args(Order)}
    if baseline is not None:
        other, name = load_bundle(baseline), "raster, trained in it alone"
        for t in temperatures:
            heat = "" if t == 1 else f", temperature {t:g}"
            bundles[name + heat] = other, t
    for order, (bundle, temperature) in bundles.items():
        ahead = bundle.prior.config.next_cell
        fields: dict[str, Any] = {"order": order, "tokens_per_call": {}, "equal": []}
        distances, accuracies, laws = [], [], []
        for seed in range(seeds):
            config = GenerationConfig(
                seed=seed, cfg_scale=cfg_scale, temperature=temperature, batch_size=32
            )
            own = load_drafter(drafter, bundle)
            plain = generate(bundle, prompts, config, Tree.root(), loaded=own)
            tokens = plain.tokens
            for name in trees:
                run = generate(bundle, prompts, config, own.tree(name), loaded=own)
                per_call = fields["tokens_per_call"].setdefault(name, [])
                per_call.append(run.tokens_per_call)
                fields["equal"].append(bool(np.array_equal(run.tokens, tokens)))
            features, found = comparison.extract(decode_images(bundle, tokens))
            distances.append(frechet_distance(comparison.real, features))
            asked = comparison.classes.reshape(-1)
            accuracies.append(float((found == asked).mean()))
            sampling = {"cfg_scale": cfg_scale, "temperature": temperature}
            most = AHEAD if ahead else 1
            laws.append(_laws(bundle, tokens, asked, sampling, most))
        entropy, overlap = (np.mean(x, axis=0) for x in zip(*laws, strict=True))
        fields |= {
            "distance": distances,
            "accuracy": accuracies,
            "entropy": _by_part(entropy),
            "overlap": [_by_part(row) for row in overlap] if ahead else None,
            "expected": _by_part(expected_tokens(overlap)) if ahead else None,
        }
        rows.append(fields)
        if save is not None:
            save(report)
    return report


def _laws(bundle, tokens, classes, sampling, most) -> tuple[np.ndarray, np.ndarray]:
    """Means of `laws_ahead` over images."""
    model, params = Transformer(bundle.prior.config), bundle.prior.params
    parts = [
        laws_ahead(
            model,
            params,
            jnp.asarray(tokens[i : i + BATCH]),
            jnp.asarray(classes[i : i + BATCH], jnp.int32),
            Sampling.create(BATCH, **sampling),
            most,
        )
        for i in range(0, len(tokens), BATCH)
    ]
    entropy, overlap = zip(*parts, strict=True)
    return np.mean(entropy, axis=0), np.mean(overlap, axis=0)


@partial(jax.jit, static_argnums=(0, 5))
@full_precision
def laws_ahead(
    model: Transformer,
    params: Params,
    tokens: Int[Array, "B T"],
    classes: Int[Array, "B"],
    sampling: Sampling,
    most: int = AHEAD,
) -> tuple[Float[Array, "T"], Float[Array, "A T"]]:
    """Entropy of tokens, and overlap of their laws with those of fewer known tokens.

    A model of any order predicts each later token from the same known ones. The sum of
    the lesser probability of each code is the share of such drafts that are accepted,
    if all drafts before it were.

    Args:
      model: model with `next_cell`; without, for `most=1`.
      params: its parameters.
      tokens: tokens of images.
      classes: their classes.
      sampling: guidance and temperature.
      most: largest number of tokens ahead.

    Returns:
      Nats; and, by the number of tokens ahead from one on, the overlap, means over
      images, 1 for tokens that are nearer to the start.
    """
    batch, length = tokens.shape
    prefix = model.config.prefix_length
    positions = jnp.arange(prefix + length - 1, dtype=jnp.int32)
    index = jnp.broadcast_to(jnp.arange(length), (batch, length))

    def law(ahead: int) -> Float[Array, "B T V"]:
        following = jnp.minimum(positions + ahead, prefix + length - 1)
        branches = [
            model.score(
                params,
                classes,
                tokens[:, :-1],
                null=jnp.full(batch, null),
                following=None
                if most == 1
                else jnp.broadcast_to(following, (batch, len(following))),
            )[0][:, prefix - 1 :]
            for null in (False, True)
        ]
        guided = apply_cfg(jnp.concatenate(branches), sampling, index)
        return jax.nn.softmax(process_logits(guided, sampling))

    exact = law(1)
    entropy = -jnp.sum(exact * jnp.log(jnp.maximum(exact, 1e-20)), axis=-1)
    overlaps = []
    for ahead in range(1, most + 1):
        # Row `i` of the law is that of token `i + ahead - 1`, given those before `i`.
        draft = law(ahead)[:, : length - ahead + 1]
        share = jnp.sum(jnp.minimum(exact[:, ahead - 1 :], draft), axis=-1)
        share = jnp.pad(share, ((0, 0), (ahead - 1, 0)), constant_values=1.0)
        overlaps.append(share.mean(axis=0))
    return entropy.mean(axis=0), jnp.stack(overlaps)


def expected_tokens(overlap: np.ndarray) -> np.ndarray:
    """Tokens of a round, by the first of them: a chain of drafts, and one more.

    As if acceptances were independent of each other.

    Args:
      overlap: shares as from `laws_ahead`, [A, T].
    """
    ahead, length = overlap.shape
    result = np.ones(length)
    for first in range(length):
        reached = 1.0
        for k in range(min(ahead, length - first)):
            reached *= overlap[k, first + k]
            result[first] += reached
    return result


def _by_part(values: np.ndarray) -> list[float]:
    """Means of parts of a sequence."""
    return [float(part.mean()) for part in np.array_split(values, PARTS)]


def orders_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_orders`."""

    def percent(overlap: list[list[float]] | None, ahead: int) -> str:
        if overlap is None:
            return ""
        return ", ".join(f"{100 * x:.0f}" for x in overlap[ahead - 1]) + " %"

    names = list(result["rows"][0]["tokens_per_call"])
    columns = ["order", *(f"tokens a call, {name}" for name in names), "same tokens"]
    columns += ["nats a token", *(f"accepted {n} ahead" for n in SHOWN)]
    columns += ["expected tokens a round", "Frechet distance", "class accuracy"]
    cells = []
    for row in result["rows"]:
        distance = np.array(row["distance"])
        cells.append(
            [
                row["order"],
                *(f"{np.mean(x):.2f}" for x in row["tokens_per_call"].values()),
                "yes" if all(row["equal"]) else "NO",
                ", ".join(f"{x:.2f}" for x in row["entropy"]),
                *(percent(row["overlap"], n) for n in SHOWN),
                ", ".join(f"{x:.1f}" for x in row["expected"] or ()),
                f"{distance.mean():.2f} ± {distance.std(ddof=1):.2f}",
                f"{100 * np.mean(row['accuracy']):.0f} %",
            ]
        )
    description = (
        f"{result['num']} images of each of {result['repeats']} seeds, CFG scale "
        f"{result['cfg_scale']:g}, temperature 1 but where another is named, no "
        "filters. Four numbers are those "
        "of the quarters of a sequence. Tokens a call are those with the drafter "
        f"{result['drafter']} on each tree, the prefill counted. Nats are the entropy "
        "of the model. Then the model itself drafts: shares of drafts that are "
        "accepted if it predicts a token from all but the last tokens before it, and "
        f"the expected tokens of a round of {AHEAD} such drafts, which takes two "
        "passes of the model, one to draft and one to verify; plain passes make two. "
        "Distances are those of features of the embedded classifier to as many "
        "held-out images, of which it gets "
        f"{100 * result['heldout_accuracy']:.0f} % right."
    )
    heading = report_heading("Orders of tokens", result, description)
    return heading + markdown_table(columns, cells)


STUDY = Benchmark(
    "orders",
    summary="one model in several orders of its tokens",
    description="Generates images of Fruits-360 with a model of any order, in each "
    "order of its tokens, and measures how far ahead drafts are accepted.",
    example="Example: python -m docs.studies.orders --checkpoint runs/any --out "
    "reports/orders",
    options=(
        Option("checkpoint", "bundle of a model of any order", metavar="DIR"),
        Option("baseline", "bundle of a model of one order", metavar="DIR"),
        Option(
            "drafter", "drafter to count tokens with", default="jacobi", metavar="D"
        ),
        Option(
            "trees",
            "its trees",
            several=True,
            default=("chain-8", "chain-32", "chain-64"),
            metavar="TREE",
        ),
        Option("cfg-scale", "CFG scale", float, default=2.0, metavar="S"),
        Option(
            "temperatures",
            "temperatures of the baseline",
            float,
            several=True,
            default=(1.0,),
            metavar="T",
        ),
        *OPTIONS,
    ),
    measure=measure_orders,
    markdown=orders_markdown,
    saves=True,
    program="python -m docs.studies.orders",
)

if __name__ == "__main__":
    sys.exit(run_study(STUDY))
