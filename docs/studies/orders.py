"""One model in several orders of its tokens: drafts, and what comes out."""

import sys
from functools import partial
from itertools import pairwise
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from docs.studies.command import run_study
from docs.studies.ways import OPTIONS, Comparison
from jaxspec.bench.description import Benchmark, Option
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.config.orders import Order
from jaxspec.config.token_kinds import tokens_of
from jaxspec.core.logits import apply_cfg, process_logits
from jaxspec.core.precision import full_precision
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.evaluate.image_metrics import frechet_distance
from jaxspec.evaluate.tables import environment, markdown_table, report_heading
from jaxspec.models.transformer.model import Transformer
from jaxspec.pipeline.bundle import Bundle, load_bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.decoding import decode_images
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.generation import generate
from jaxspec.pipeline.orders import with_order
from jaxspec.pipeline.prompts import Prompts
from jaxspec.speculative.trees.tree import Tree
from jaxspec.typing import Array, Float, Int, Params

# Parts of a sequence of which means are shown.
PARTS = 4
# Images of a pass.
BATCH = 16
# Calls that read a prompt and the tokens given with it, before the first round.
READING = 2


def measure_orders(
    *,
    checkpoint: str | None = None,
    orders: tuple[Order, ...] = get_args(Order),
    baselines: tuple[str, ...] = (),
    drafter: str = "jacobi",
    trees: tuple[str, ...] = ("chain-8", "chain-32", "chain-64"),
    cfg_scale: float = 2.0,
    num: int = 192,
    seeds: int = 3,
    data_dir: str = "data",
    manual_dir: str | None = None,
    save=None,
) -> dict[str, Any]:
    """Generates images in each order, and counts the tokens of a call.

    Args:
      checkpoint: Bundle of a prior trained with `objective="any_order"`; None for
        baselines alone.
      orders: Orders in which it generates.
      baselines: Bundles of priors over the same tokens in one order, each with the
        temperature of its row behind an `@`, 1 if there is none.
      drafter: Drafter of the tokens per call, as for `--drafter`.
      trees: Its trees.
      cfg_scale: CFG scale.
      num: Number of images of each seed.
      seeds: Number of seeds.
      data_dir: Folder of the prepared data.
      manual_dir: Folder of files that tfds cannot download.
      save: Callback for unfinished reports.

    Returns:
      Report with one row for each order.

    Raises:
      ConfigError: the prior of `checkpoint` was trained in one order alone, or there is
        no model.
    """
    bundles: dict[str, tuple[Bundle, float]] = {}
    if checkpoint is not None:
        loaded = load_bundle(checkpoint)
        bundles = {order: (with_order(loaded, order), 1.0) for order in orders}
    bundles |= dict(map(_baseline, baselines))
    if not bundles:
        raise ConfigError("name a model: --checkpoint DIR, or --baselines DIR")
    any_bundle, _ = next(iter(bundles.values()))
    comparison = Comparison.on_fruits(any_bundle, num, seeds, data_dir, manual_dir)
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
    for order, (bundle, temperature) in bundles.items():
        fields: dict[str, Any] = {"order": order, "tokens_per_call": {}, "equal": []}
        fields |= {"distance": [], "accuracy": [], "entropy": [], "calls": []}
        asked = comparison.classes.reshape(-1)
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
            if seed == 0:
                tree = own.tree(trees[0])
                fields["calls"] = _calls(bundle, prompts, config, tree, own, tokens)
            features, found = comparison.extract(decode_images(bundle, tokens))
            fields["distance"].append(frechet_distance(comparison.real, features))
            fields["accuracy"].append(float((found == asked).mean()))
            sampling = {"cfg_scale": cfg_scale, "temperature": temperature}
            entropy = _entropy(bundle, tokens, asked, sampling)
            fields["entropy"].append(_by_part(entropy))
        part = tokens.shape[1] / PARTS
        fields["by_part"] = [
            part / (calls - later) for calls, later in pairwise([*fields["calls"], 0.0])
        ]
        rows.append(fields)
        if save is not None:
            save(report)
    return report


def _baseline(text: str) -> tuple[str, tuple[Bundle, float]]:
    """Name of a row, bundle and temperature, of a model of one order.

    Raises:
      ConfigError: the temperature is no number.
    """
    name, _, degrees = text.partition("@")
    try:
        temperature = float(degrees or 1)
    except ValueError:
        raise ConfigError(f"'{text}': a temperature follows the @") from None
    bundle = load_bundle(name)
    heat = "" if temperature == 1 else f", temperature {temperature:g}"
    config = bundle.prior.config
    kind = f"{config.order}, trained in it alone"
    if config.rope == "sequence":
        kind = tokens_of(config)
    return f"{kind} ({bundle.name}){heat}", (bundle, temperature)


def _entropy(bundle, tokens, classes, sampling) -> np.ndarray:
    """Means over images of `entropy_of`, [T]."""
    model, params = Transformer(bundle.prior.config), bundle.prior.params
    parts = [
        entropy_of(
            model,
            params,
            jnp.asarray(tokens[i : i + BATCH]),
            jnp.asarray(classes[i : i + BATCH], jnp.int32),
            Sampling.create(BATCH, **sampling),
        )
        for i in range(0, len(tokens), BATCH)
    ]
    return np.concatenate(parts).mean(axis=0)


@partial(jax.jit, static_argnums=0)
@full_precision
def entropy_of(
    model: Transformer,
    params: Params,
    tokens: Int[Array, "B T"],
    classes: Int[Array, "B"],
    sampling: Sampling,
) -> Float[Array, "B T"]:
    """Entropy of the processed distribution of each token, in nats.

    Args:
      model: model of the tokens.
      params: its parameters.
      tokens: tokens of images.
      classes: their classes.
      sampling: guidance and temperature.
    """
    batch, length = tokens.shape
    branches = [
        model.score(params, classes, tokens[:, :-1], null=jnp.full(batch, null))[0]
        for null in (False, True)
    ]
    logits = jnp.concatenate(branches)[:, model.config.prefix_length - 1 :]
    index = jnp.broadcast_to(jnp.arange(length), (batch, length))
    guided = process_logits(apply_cfg(logits, sampling, index), sampling)
    log_p = jax.nn.log_softmax(guided)
    return -jnp.sum(jnp.exp(log_p) * jnp.maximum(log_p, -1e3), axis=-1)


def _calls(bundle, prompts, config, tree, own, tokens) -> list[float]:
    """Mean calls for what follows the first quarters of the images, by their number.

    Those that read the quarters given are not counted.
    """
    length = tokens.shape[1]
    result = []
    for part in range(PARTS):
        given = prompts.with_prefix(
            tokens[:, : part * length // PARTS], bundle.prior.config
        )
        run = generate(bundle, given, config, tree, loaded=own)
        result.append(float(run.calls.mean()) - (READING if part else 0))
    return result


def _by_part(values: np.ndarray) -> list[float]:
    """Means of parts of a sequence."""
    return [float(part.mean()) for part in np.array_split(values, PARTS)]


def orders_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_orders`."""

    names = list(result["rows"][0]["tokens_per_call"])
    columns = ["order", *(f"tokens a call, {name}" for name in names), "same tokens"]
    columns += [f"{names[0]}, by quarter", "nats a token, by quarter"]
    columns += ["Frechet distance", "class accuracy"]
    cells = []
    for row in result["rows"]:
        distance = np.array(row["distance"])
        cells.append(
            [
                row["order"],
                *(f"{np.mean(x):.2f}" for x in row["tokens_per_call"].values()),
                "yes" if all(row["equal"]) else "NO",
                ", ".join(f"{x:.1f}" for x in row["by_part"]),
                ", ".join(f"{x:.2f}" for x in np.mean(row["entropy"], axis=0)),
                f"{distance.mean():.2f} ± {distance.std(ddof=1):.2f}",
                f"{100 * np.mean(row['accuracy']):.0f} %",
            ]
        )
    description = (
        f"{result['num']} images of each of {result['repeats']} seeds, CFG scale "
        f"{result['cfg_scale']:g}, temperature 1 but where another is named, no "
        f"filters. Tokens a call are those with the drafter {result['drafter']} on "
        "each tree, the prefill counted; by quarter of a sequence, of the first seed, "
        "calls are those that generations need which are given the quarters before, "
        "less those with one more, without the two that read them. Nats are the "
        "entropy of the model's processed distribution. Distances are those of "
        "features of the embedded classifier to as many held-out images, of which it "
        f"gets {100 * result['heldout_accuracy']:.0f} % right; their deviation is that "
        "of the seeds."
    )
    heading = report_heading("Orders of tokens", result, description)
    return heading + markdown_table(columns, cells)


STUDY = Benchmark(
    "orders",
    summary="one model in several orders of its tokens",
    description="Generates images of Fruits-360 with a model of any order, in each "
    "order of its tokens, and with other models of one order.",
    example="Example: python -m docs.studies.orders --checkpoint runs/any --out "
    "reports/orders",
    options=(
        Option("checkpoint", "bundle of a model of any order", metavar="DIR"),
        Option(
            "orders",
            "its orders",
            several=True,
            default=get_args(Order),
            metavar="ORDER",
        ),
        Option(
            "baselines",
            "bundles of models of one order, with a temperature behind an @",
            several=True,
            default=(),
            metavar="DIR[@T]",
        ),
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
        *OPTIONS,
    ),
    measure=measure_orders,
    markdown=orders_markdown,
    saves=True,
    program="python -m docs.studies.orders",
)

if __name__ == "__main__":
    sys.exit(run_study(STUDY))
