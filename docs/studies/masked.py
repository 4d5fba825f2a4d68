"""Masked models: steps, policies and caches, beside generation token by token."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from docs.studies import ways
from docs.studies.command import run_study
from docs.studies.ways import TIME_AND_QUALITY, Columns, Comparison, Way, measure_way
from jaxspec.bench.description import Benchmark, Option
from jaxspec.bench.roofline.ceilings import measure_ceilings
from jaxspec.checkpoint import Checkpoint, checkpoint_of
from jaxspec.core.noise import batch_keys
from jaxspec.core.sampling import Sampling, active_steps
from jaxspec.errors import ConfigError
from jaxspec.evaluate.tables import environment, markdown_table, report_heading
from jaxspec.masked import (
    Blocks,
    Confidence,
    ContextCache,
    Guided,
    MaskedGenerator,
    MaskedVariables,
    MaskingSchedule,
    StopFilter,
    Window,
)
from jaxspec.masked.policies.named import named_policy
from jaxspec.masked.policy import Policy
from jaxspec.models.masked_lm.model import MASKED_OBJECTIVES, MaskedDiffusion
from jaxspec.pipeline.bundle import Bundle, load_bundle, load_prior
from jaxspec.speculative.engine import Engine
from jaxspec.train.stop_filter import final_tokens, train_stop_filter
from jaxspec.typing import Params

FAMILIES = ("autoregressive", "steps", "cache", "policies", "others", "distilled")
STEPS = (2, 4, 8, 12)
POLICIES = ("confidence-0", "halton")
# Passes from one that computes all tokens to the next, of 12.
EVERY = (2, 4)
# Other policies, their steps, and tokens of a block or a window.
OTHERS, OTHER_STEPS = ("random", "revision-0.1"), 8
BLOCK = 64
# Sequences whose steps a filter is trained on, and its training steps.
TRACES, FILTER_STEPS = 32, 300


def all_ways(
    bundle: Bundle,
    models: dict[str, Checkpoint],
    scale: float,
    families: Sequence[str] = FAMILIES,
) -> Iterator[Way]:
    """Every way of some families."""
    ways = [token_by_token(bundle, scale)]
    ways += [masked_ways(bundle, *each, scale) for each in models.items()]
    yield from (way for way in chain(*ways) if way.family in families)
    if "others" in families:  # a filter is trained for them
        yield from other_ways(bundle, models["masked"], scale)


def token_by_token(bundle: Bundle, scale: float) -> Iterator[Way]:
    """Plain generation of the autoregressive model."""
    order = active_steps(Sampling.create(cfg_scale=scale))
    target = bundle.prior.model.as_target(cfg=True)
    engine = Engine(target, bundle.prior.config.sequence_length, order=order)
    variables = engine.variables(target=bundle.prior.params)
    name = "token by token"
    yield Way("autoregressive", name, engine, variables, bundle, scale)


def way_of(
    bundle: Bundle,
    prior: Checkpoint,
    scale: float,
    family: str,
    words: str,
    steps: int,
    policy: str | Policy = "confidence",
    *,
    shape: str = "cosine",
    context: ContextCache | None = None,
    head: Params | None = None,
) -> Way:
    """A way of a masked model; `head` are the parameters of its policy."""
    length = prior.config.sequence_length
    generator = MaskedGenerator(
        MaskedDiffusion(prior.model),
        MaskingSchedule(length, steps, shape),
        named_policy(policy, length) if isinstance(policy, str) else policy,
        order=active_steps(Sampling.create(cfg_scale=scale)),
        context=context,
    )
    variables = MaskedVariables(prior.params, head)
    return Way(family, words, generator, variables, bundle, scale)


def masked_ways(
    bundle: Bundle, name: str, prior: Checkpoint, scale: float
) -> Iterator[Way]:
    """Ways of one masked model; of a distilled one its steps alone."""
    way = partial(way_of, bundle, prior, scale)
    if name == "distilled":
        # As it was trained: a linear schedule, and each token with the same chance.
        for steps in STEPS:
            words = f"distilled, {steps} steps"
            yield way("distilled", words, steps, "coins", shape="linear")
        return
    for steps in STEPS:
        words = f"coins, {steps} steps, linear"
        yield way("policies", words, steps, "coins", shape="linear")
    for steps in STEPS:
        yield way("steps", f"{steps} steps", steps)
    for every in EVERY:
        cache = ContextCache(every)
        yield way("cache", f"12 steps, all in every {every}", 12, context=cache)
    for policy in POLICIES:
        yield way("policies", f"{policy}, 8 steps", 8, policy)
    yield way("policies", "threshold-0.5, at most 12", 12, "threshold-0.5")


def other_ways(bundle: Bundle, prior: Checkpoint, scale: float) -> Iterator[Way]:
    """Other policies, and caches for them."""
    way = partial(way_of, bundle, prior, scale, "others")
    sure, steps = Confidence("sampled", 0.0), OTHER_STEPS
    for policy in OTHERS:
        yield way(f"{policy}, {steps} steps", steps, policy)
    blocks, words = Blocks(sure, BLOCK), f"blocks-{BLOCK}, {steps} steps"
    yield way(words, steps, blocks)
    left = ContextCache(every=None, kept="left", block=BLOCK)
    yield way(f"{words}, known ones kept", steps, blocks, context=left)
    window, words = Window(sure, BLOCK), f"window of {BLOCK}, {steps} steps"
    yield way(words, steps, window)
    inside = ContextCache(active=BLOCK, outer=2 * BLOCK)
    yield way(f"{words}, computed alone", steps, window, context=inside)
    guide, words = Guided(bundle.prior.model), f"guided, at most {steps} steps"
    yield way(words, steps, guide, head=bundle.prior.params)
    # A filter (Learn2PD), trained on passes without it of images that are not measured.
    policy = StopFilter(Confidence("likeliest", 0.0), block=BLOCK)
    plain = way(f"filtered, at most {steps} steps", steps, policy)
    keys = batch_keys(1 << 20, TRACES)
    settings = {"sampling": Sampling.create(cfg_scale=scale), "keys": keys}
    find = jax.jit(partial(final_tokens, plain.generator, **settings))
    traces = find(plain.variables, jnp.arange(TRACES) % prior.config.classes)
    train = jax.jit(partial(train_stop_filter, stop_filter=policy, steps=FILTER_STEPS))
    head, _ = train(jax.random.key(0), traces=traces)
    yield replace(plain, variables=MaskedVariables(prior.params, head))


def measure_masked(
    *,
    checkpoint: str | None = None,
    masked: str | None = None,
    distilled: str | None = None,
    families: Sequence[str] = FAMILIES,
    cfg_scale: float = 2.0,
    num: int = 192,
    seeds: int = 3,
    data_dir: str = "data",
    manual_dir: str | None = None,
    save=None,
) -> dict[str, Any]:
    """Generates images of all classes in every way, and measures them.

    Args:
      checkpoint: Bundle folder of an autoregressive model.
      masked: Folder of a masked model over the same tokens.
      distilled: Folder of a masked model that was distilled from it.
      families: Families of ways.
      cfg_scale: CFG scale.
      num: Number of images.
      seeds: Number of seeds.
      data_dir: Folder of the prepared data.
      manual_dir: Folder of files that tfds cannot download.
      save: Callback for unfinished reports.

    Returns:
      Report with one row for each way.

    Raises:
      ConfigError: A model is no masked one, or is missing.
    """
    bundle = load_bundle(checkpoint or "fruits64")
    if masked is None:
        raise ConfigError("name a masked model: --masked DIR")
    models = {"masked": load_prior(checkpoint_of(masked, "prior"))}
    if distilled is not None:
        models["distilled"] = load_prior(checkpoint_of(distilled, "prior"))
    for name, prior in models.items():
        masks = prior.metadata.get("objective") in MASKED_OBJECTIVES
        if not masks or replace(prior.config, extra_tokens=0) != bundle.prior.config:
            raise ConfigError(
                f"--{name}: this is no masked model of the sizes of '{bundle.name}'"
            )
    comparison = Comparison.on_fruits(bundle, num, seeds, data_dir, manual_dir)
    rows: list[dict[str, Any]] = []
    report = {
        "dtype": "float32",
        "repeats": seeds,
        "cfg_scale": cfg_scale,
        "num": num,
        "parameters": [bundle.prior.size, models["masked"].size],
        "heldout_accuracy": comparison.accuracy,
        "ceilings": measure_ceilings("float32").fields(),
        "rows": rows,
        **environment(),
    }
    for way in all_ways(bundle, models, cfg_scale, families):
        rows.append(measure_way(way, comparison).fields)
        if save is not None:
            save(report)
    return report


COLUMNS: Columns = {
    "generation": lambda row: row["way"],
    "calls": lambda row: f"{row['calls']:.1f}",
    **TIME_AND_QUALITY,
}


def masked_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `measure_masked`."""
    own, masked = (f"{n / 1e6:.1f} M" for n in result["parameters"])
    description = (
        f"An autoregressive ({own} parameters) and a masked model ({masked}) over the "
        f"same tokens of Fruits-360, {result['num']} images of each of "
        f"{result['repeats']} seeds, batch {ways.BATCH}, CFG scale "
        f"{result['cfg_scale']:g}. The distance is that of features of the embedded "
        "classifier to as many held-out images, of which the classifier gets "
        f"{100 * result['heldout_accuracy']:.0f} % right; mean and standard deviation "
        "over seeds. Steps without another policy are MaskGIT's. Among the others, "
        f"blocks and windows have {BLOCK} tokens, the guide is the autoregressive "
        "model (a probability of at least .1), and the filter was trained on the "
        f"passes of {TRACES} images."
    )
    return report_heading("Masked models", result, description) + markdown_table(
        [*COLUMNS], ways.cells_of(result["rows"], COLUMNS)
    )


def masked_plot(result: dict[str, Any]) -> np.ndarray:
    """Distance over time and over calls, one line for each family."""
    return ways.plot_distances(result["rows"])


STUDY = Benchmark(
    "masked",
    summary="steps, policies and caches of a masked model",
    description="Generates images with a masked model in several ways, and token by "
    "token, and measures time, calls and Frechet distance.",
    example="Example: python -m docs.studies.masked --masked runs/maskgit "
    "--out docs/reports/masked_cpu",
    options=(
        Option(
            "checkpoint", "bundle folder of the autoregressive model", metavar="DIR"
        ),
        Option("masked", "folder of the masked model", metavar="DIR"),
        Option("distilled", "folder of a distilled masked model", metavar="DIR"),
        Option(
            "families",
            "families of ways",
            default=FAMILIES,
            several=True,
            choices=FAMILIES,
        ),
        Option("cfg-scale", "CFG scale", float, default=2.0, metavar="S"),
        *ways.OPTIONS,
    ),
    measure=measure_masked,
    markdown=masked_markdown,
    plot=masked_plot,
    saves=True,
    program="python -m docs.studies.masked",
)

if __name__ == "__main__":
    sys.exit(run_study(STUDY))
