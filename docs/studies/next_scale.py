"""Next-scale models: two models, fewer layers, shortcuts, and coupled scales."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from docs.studies import ways
from docs.studies.command import run_study
from docs.studies.ways import TIME_AND_QUALITY, Columns, Comparison, Way, measure_way
from jaxspec.bench.description import Benchmark, Option
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.checkpoint import Checkpoint, checkpoint_of, load_checkpoint
from jaxspec.config import NextScaleConfig
from jaxspec.core.generator import generate
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling
from jaxspec.errors import ConfigError
from jaxspec.evaluate.tables import environment, markdown_table, report_heading
from jaxspec.next_scale import (
    LocalAttention,
    NextScaleVariables,
    ScaleSampling,
    TokenSkipping,
    collaborative,
    coupled_scales,
    fewer_layers,
    one_model,
)
from jaxspec.pipeline.bundle import Bundle, load_bundle
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.generators import make_generator
from jaxspec.speculative.prefix import Prefixed
from jaxspec.speculative.trees.tree import Tree
from jaxspec.tokenizers.multi_scale.scales import QUANTIZER

RADII = 0.0, 0.05, 0.1, 0.2


def all_ways(
    large: Bundle, small: Checkpoint, tokens: Bundle, cfg_scale: float
) -> Iterator[Way]:
    """All ways that are compared; the first one is plain.

    Args:
      large: The large model, with its tokenizer.
      small: The small model.
      tokens: Models that generate token by token.
      cfg_scale: CFG scale.
    """
    model, scales = large.prior.model, large.tokenizer.model.scales
    quantizer = {k: large.tokenizer.params[k] for k in QUANTIZER}
    own = NextScaleVariables((large.prior.params,), quantizer)
    both = NextScaleVariables((large.prior.params, small.params), quantizer)
    count, layers = len(scales), model.config.layers
    unwarmed = ScaleSampling(count)

    def way(family, name, generator, variables=own):
        return Way(family, name, generator, variables, large, cfg_scale)

    yield way("plain", "plain", one_model(model, scales))
    alone = NextScaleVariables((small.params,), quantizer)
    yield way("CoDe", "the small model alone", one_model(small.model, scales), alone)
    for n in range(1, count):
        code = collaborative(model, small.model, scales, n, sampling=unwarmed)
        yield way("CoDe", f"CoDe, N = {n}", code, both)
    for n in range(2, layers, 2):
        for full in range(2, count, 2):
            subset = fewer_layers(model, scales, full, n)
            name = f"{n} layers after {full} maps"
            yield way(f"{n} layers", name, subset)
    for n in range(count - 3, count):
        sampling = ScaleSampling(count, guided=n)
        name = f"guidance in {n} maps (SkipVAR)"
        yield way("SkipVAR", name, one_model(model, scales, sampling=sampling))
    for share in (0.75, 0.5):
        skipping = TokenSkipping((share, share), first_layer=min(3, layers - 1))
        name = f"{share:g} of the tokens of 2 maps (FastVAR)"
        yield way("FastVAR", name, one_model(model, scales, skipping=skipping))
    for n, radius in ((2, 1), (2, 0), (4, 1)):
        local = LocalAttention(n, whole=1, radius=radius, block=4)
        beside = "no cell" if radius == 0 else "1 cell"
        name = f"{n} maps attend to {beside} beside blocks (SparVAR)"
        yield way("SparVAR", name, one_model(model, scales, local=local))
    for radius in RADII:
        coupled = coupled_scales(model, small.model, scales, radius=radius)
        yield way("coupled", f"coupled, radius {radius:g}", coupled, both)
    config = GenerationConfig(cfg_scale=cfg_scale, batch_size=ways.BATCH)
    generator, variables = make_generator(tokens, config, Tree.root())
    yield Way("tokens", "token by token", generator, variables, tokens, cfg_scale)


def measure_survival(
    large: Bundle, small: Checkpoint, cfg_scale: float, count: int
) -> list[dict[str, float]]:
    """Maps of the small model that are the large one's, each after the large one's own.

    Args:
      large: The large model, with its tokenizer.
      small: The small model.
      cfg_scale: CFG scale.
      count: Number of images.

    Returns:
      For each map its side, the shares of tokens and of whole maps that are equal, and
      the root mean square of the difference of the features that they add.
    """
    model, scales = large.prior.model, large.tokenizer.model.scales
    quantizer = {k: large.tokenizer.params[k] for k in QUANTIZER}
    classes = jnp.arange(count, dtype=jnp.int32) % model.config.classes
    options = {
        "sampling": Sampling.create(cfg_scale=cfg_scale),
        "keys": batch_keys(0, count),
    }

    def tokens_of(generator, params, prompt):
        variables = NextScaleVariables((params,), quantizer)
        run = jax.jit(partial(generate, generator))
        return run(variables, prompt, **options).tokens

    target = tokens_of(one_model(model, scales), large.prior.params, classes)
    drafter, found = one_model(small.model, scales), []
    for k, side in enumerate(scales.sides):
        here = scales.tokens_of(k)
        own, prompt = target[:, here], classes
        if here.start:
            prompt = Prefixed(classes, target[:, : here.start])
        cut = replace(drafter, prefix=here.start, limit=here.stop - here.start)
        draft = tokens_of(cut, small.params, prompt)
        added = partial(scales.added, quantizer, scale=k)
        moved = jnp.mean((added(draft) - added(own)) ** 2, axis=(1, 2, 3)) ** 0.5
        equal = np.asarray(draft == own)
        found.append(
            {
                "side": side,
                "tokens": float(equal.mean()),
                "maps": float(equal.all(axis=1).mean()),
                "moved": float(jnp.median(moved)),
            }
        )
    return found


def measure_next_scale(
    *,
    checkpoint: str | None = None,
    drafter: str | None = None,
    tokens: str = "fruits64",
    cfg_scale: float = 2.0,
    num: int = 192,
    seeds: int = 3,
    data_dir: str = "data",
    manual_dir: str | None = None,
    save=None,
) -> dict[str, Any]:
    """Generates images of all classes in every way, and measures them.

    Args:
      checkpoint: Bundle folder of the large model.
      drafter: Folder of the small model.
      tokens: Bundle that generates token by token.
      cfg_scale: CFG scale.
      num: Number of images.
      seeds: Number of seeds.
      data_dir: Folder of the prepared data.
      manual_dir: Folder of files that tfds cannot download.
      save: Callback for unfinished reports.

    Returns:
      Report with one row for each way, and one for each map.

    Raises:
      ConfigError: A model is no next-scale model, or the small one is missing.
    """
    large, other = load_bundle(checkpoint), load_bundle(tokens)
    if drafter is None or not isinstance(large.prior.config, NextScaleConfig):
        raise ConfigError("name two next-scale models: --checkpoint --drafter")
    small = load_checkpoint(checkpoint_of(drafter, "prior"), "next_scale")
    comparison = Comparison.on_fruits(large, num, seeds, data_dir, manual_dir)
    report = {
        "dtype": "float32",
        "repeats": seeds,
        "cfg_scale": cfg_scale,
        "num": num,
        "parameters": [large.prior.size, small.size, other.prior.size],
        "heldout_accuracy": comparison.accuracy,
        "ceilings": measure_ceilings("float32").fields(),
        "maps": measure_survival(large, small, cfg_scale, num),
        "rows": [],
        **environment(),
    }
    rows: list[dict[str, Any]] = report["rows"]
    plain = None
    for way in all_ways(large, small, other, cfg_scale):
        outcome = measure_way(way, comparison)
        plain = plain or outcome
        errors = outcome.errors(plain) if way.bundle is large else {}
        rows.append({**outcome.fields, **errors})
        if save is not None:
            save(report)
    return report


def _difference(row: dict[str, Any]) -> str:
    """Mean PSNR to the images of plain generation."""
    if "psnr" not in row:
        return "n/a"
    found = [value for value in row["psnr"] if value is not None]
    return f"{np.mean(found):.1f}" if found else "equal"


COLUMNS: Columns = {
    "generation": lambda row: row["way"],
    "calls": lambda row: f"{row['calls']:.1f}",
    **TIME_AND_QUALITY,
    "tokens as plain": lambda row: (
        f"{100 * np.mean(row['same_tokens']):.0f} %" if "same_tokens" in row else "n/a"
    ),
    "dB to plain": _difference,
}
MAP_COLUMNS: Columns = {
    "map": lambda row: f"{row['side']}x{row['side']}",
    "equal tokens": lambda row: f"{100 * row['tokens']:.0f} %",
    "equal maps": lambda row: f"{100 * row['maps']:.0f} %",
    "features moved": lambda row: f"{row['moved']:.3f}",
}


def next_scale_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_next_scale`."""
    large, small, tokens = (f"{n / 1e6:.1f} M" for n in result["parameters"])
    description = (
        f"Two next-scale models of Fruits-360 ({large} and {small} parameters) and one "
        f"that generates token by token ({tokens}), {result['num']} images of each of "
        f"{result['repeats']} seeds, batch {ways.BATCH}, CFG scale "
        f'{result["cfg_scale"]:g}. "Calls" are passes of any model, of coupled scales '
        "of the large one. The distance is that of features of the embedded classifier "
        "to as many held-out images, of which the classifier gets "
        f"{100 * result['heldout_accuracy']:.0f} % right; mean and standard deviation "
        "over seeds. Differences to plain generation are those with the same noise."
    )
    title = "Next-scale models"
    tables = [
        markdown_table([*columns], ways.cells_of(rows, columns))
        for columns, rows in (
            (COLUMNS, result["rows"]),
            (MAP_COLUMNS, result["maps"]),
        )
    ]
    between = (
        "\n\nMaps that the small model makes after the large one's earlier maps, with "
        "the same noise, compared with the large one's own (the last column is the "
        "median root mean square over cells and channels, the unit of the radius):\n\n"
    )
    return report_heading(title, result, description) + between.join(tables)


def next_scale_plot(result: dict[str, Any]) -> np.ndarray:
    """Distance over time and over calls, one line for each family."""
    return ways.plot_distances(result["rows"])


STUDY = Benchmark(
    "next-scale",
    summary="next-scale models, plain and faster",
    description="Generates images with a next-scale model in several ways, and "
    "measures time, Frechet distance and the difference to plain generation.",
    example="Example: python -m docs.studies.next_scale --checkpoint runs/scales "
    "--drafter runs/scales_small --out docs/reports/next_scale_cpu",
    options=(
        Option("checkpoint", "bundle folder of the large model", metavar="DIR"),
        Option("drafter", "folder of the small model", metavar="DIR"),
        Option(
            "tokens",
            "bundle of a model that generates token by token",
            default="fruits64",
            metavar="DIR",
        ),
        Option("cfg-scale", "CFG scale", float, default=2.0, metavar="S"),
        *ways.OPTIONS,
    ),
    measure=measure_next_scale,
    markdown=next_scale_markdown,
    plot=next_scale_plot,
    saves=True,
    program="python -m docs.studies.next_scale",
)

if __name__ == "__main__":
    sys.exit(run_study(STUDY))
