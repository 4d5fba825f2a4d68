"""Comparison of drafters on one target: tokens per call, cost, wall-clock time."""

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxspec.bench.costs import draft_timing, target_bound
from jaxspec.errors import ConfigError, DataError
from jaxspec.evaluate.plot import Line, Panel, plot_panels
from jaxspec.evaluate.tables import environment, markdown_table
from jaxspec.io.text_files import read_text, split_lines
from jaxspec.pipeline.bundle import Bundle, load_bundle, token_by_token
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.embedded import CLASSES
from jaxspec.pipeline.generation import GenerationResult, batches_of, generate
from jaxspec.pipeline.loaded_drafter import LoadedDrafter
from jaxspec.pipeline.prompts import Prompts, spread_classes
from jaxspec.pipeline.report import generation_report
from jaxspec.pipeline.timing import RATIO_NOTE, ratio_fields, shown
from jaxspec.pipeline.verifiers import parse_verifier, verifier_spec
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree


def tree_of_size(loaded: LoadedDrafter, nodes: int) -> Tree | DynamicTree:
    """Beam of a number of nodes; a static tree where the drafter needs one.

    Raises:
      ConfigError: The drafter supports neither.
    """
    for name in (f"beam-{nodes}", f"optimal-{nodes}"):
        tree = loaded.tree(name)
        try:
            loaded.check_tree(tree)
        except ConfigError:
            continue
        return tree
    raise ConfigError(
        f"drafter '{loaded.name}' supports no tree of {nodes} nodes; choose fewer nodes"
    )


def measure_drafters(
    *,
    checkpoint: str | None = None,
    drafters: Sequence[str] = ("own",),
    nodes: Sequence[int] = (16, 57, 128),
    cfg_scales: Sequence[float] = (2.0, 3.0),
    verifiers: Sequence[str] = ("coupled",),
    prompts: str | None = None,
    length: int | None = None,
    num: int = 32,
    batch: int = 16,
    repeats: int = 1,
    seed: int = 0,
    earlier: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], object] = lambda result: None,
) -> dict[str, Any]:
    """Compares drafters by name, see `bench_drafters`.

    Args:
      checkpoint: Bundle folder; None for the embedded bundle.
      drafters: Names, see `load_drafter`.
      nodes: Tree sizes.
      cfg_scales: CFG scales; models of text are not guided.
      verifiers: Names, see `parse_verifier`.
      prompts: File of passages, for models of text.
      length: Tokens of each sequence; None for the length of the model.
      num: Number of sequences.
      batch: Batch size in sequences.
      repeats: Number of timed runs.
      seed: Seed of images and noise.
      earlier: Report of an interrupted run, whose rows are not measured again.
      save: Callback that receives the report after each row.

    Raises:
      ConfigError: A name is unknown, or a model of text has no prompts.
      DataError: The passages cannot be read, or the earlier report does not fit.
    """
    for name in verifiers:  # raises before models are loaded
        parse_verifier(name)
    finished_rows = _finished_rows(earlier, num, batch) if earlier else []
    bundle = token_by_token(load_bundle(checkpoint or CLASSES))
    loaded_drafters = [load_drafter(name, bundle) for name in drafters]
    if bundle.image_tokenizer is None:
        texts, cfg_scales = _read_texts(prompts, num, bundle), [1.0]
        sequences = Prompts.from_texts(texts)
    else:
        classes = spread_classes(len(bundle.class_names), num)
        sequences = Prompts.from_classes(classes)
    settings = GenerationConfig(
        seed=seed, batch_size=batch, cfg_scale=cfg_scales[0], max_new_tokens=length
    )
    return bench_drafters(
        bundle,
        loaded_drafters,
        sequences,
        settings,
        nodes=nodes,
        cfg_scales=cfg_scales,
        verifiers=verifiers,
        repeats=repeats,
        finished_rows=finished_rows,
        save=save,
    )


def _finished_rows(
    earlier: dict[str, Any], num: int, batch: int
) -> list[dict[str, Any]]:
    """Rows of an earlier report.

    Raises:
      DataError: The report has no rows, or other images.
    """
    try:
        sizes = earlier["images"], earlier["batch"]
        rows = [
            {**row, "cfg_scale": float(row["cfg_scale"])} for row in earlier["rows"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"cannot resume: the earlier report is not one of this benchmark "
            f"({error!r}); write to another --out"
        ) from None
    if sizes != (num, batch):
        raise DataError(
            f"the earlier report has {sizes[0]} images in batches of {sizes[1]}; "
            "resume with the same --num and --batch, or write to another --out"
        )
    return rows


def _read_texts(file: str | None, count: int, bundle: Bundle) -> tuple[bytes, ...]:
    """Reads the beginnings of a file's passages, as prompts.

    Prompts are at most a quarter of the model's sequence length.

    Raises:
      ConfigError: No file was named.
      DataError: The file cannot be read, or has too few passages.
    """
    if file is None:
        raise ConfigError(f"bundle '{bundle.name}' generates text; give --prompts FILE")
    passages = "\n".join(split_lines(read_text(file))).split("\n\n")
    passages = [passage.strip().encode() for passage in passages]
    limit = bundle.prior.config.sequence_length // 4
    texts = [passage[:limit] for passage in passages if passage]
    if len(texts) < count:
        raise DataError(f"'{file}' has {len(texts)} passages; --num asks for {count}")
    step = len(texts) // count
    return tuple(texts[::step][:count])


def bench_drafters(
    bundle: Bundle,
    loaded_drafters: Sequence[LoadedDrafter],
    prompts: Prompts,
    settings: GenerationConfig,
    *,
    nodes: Sequence[int] = (16, 57, 128),
    cfg_scales: Sequence[float] = (2.0, 3.0),
    verifiers: Sequence[str] = ("coupled",),
    repeats: int = 1,
    finished_rows: Sequence[dict[str, Any]] = (),
    save: Callable[[dict[str, Any]], object] = lambda result: None,
) -> dict[str, Any]:
    """Measures each drafter with each tree size, CFG scale and verifier.

    Plain decoding is timed once for each CFG scale and target, in the same run.

    Args:
      bundle: Models.
      loaded_drafters: Drafters to compare.
      prompts: Prompts of the images.
      settings: Generation settings; CFG scale and verifier are replaced.
      nodes: Tree sizes.
      cfg_scales: CFG scales.
      verifiers: Names of verifiers, see `parse_verifier`; combinations of drafter and
        verifier that do not fit are skipped.
      repeats: Number of timed runs; more than one are preceded by a warm-up.
      finished_rows: Rows of an earlier run, which are not measured again.
      save: Callback that receives the report after each row.

    Returns:
      Report with one row per combination.
    """
    rows: list[dict[str, Any]] = list(finished_rows)
    identity = operator.itemgetter("drafter", "nodes", "verifier", "cfg_scale")
    finished = set(map(identity, finished_rows))
    cells = list(itertools.product(loaded_drafters, nodes, verifiers))
    result = {
        "checkpoint": bundle.name,
        "images": len(prompts),
        "batch": settings.batch_size,
        "repeats": repeats,
        "rows": rows,
        **environment(),
    }
    targets = len({id(loaded.prior) for loaded in loaded_drafters})
    total = len(cfg_scales) * (targets + len(cells))
    with tqdm(total=total, desc="drafters", unit="run") as bar:
        for cfg_scale in cfg_scales:
            plain_settings = replace(
                settings, cfg_scale=cfg_scale, verifier=parse_verifier("coupled")
            )
            run = partial(
                generate, bundle, prompts, repeats=repeats, warm_up=repeats > 1
            )
            # A drafter may replace the target.
            plain_runs: dict[int, GenerationResult] = {}
            for loaded, count, name in cells:
                cell_settings = replace(plain_settings, verifier=parse_verifier(name))
                spec = verifier_spec(cell_settings.verifier)
                if (loaded.name, count, spec, cfg_scale) in finished:
                    bar.update()
                    continue
                target = id(loaded.prior)
                if target not in plain_runs:
                    plain = run(plain_settings, Tree.root(), loaded=loaded)
                    plain_runs[target] = plain
                    bar.update()
                args = loaded, cell_settings, count, plain_runs[target], run
                row = _report_row(bundle, prompts, *args)
                if row is not None:
                    rows.append(row)
                    save(result)
                bar.update()
    return result


def _report_row(
    bundle, prompts, loaded, settings, count, plain: GenerationResult, run
) -> dict[str, Any] | None:
    """Measures one combination; None if drafter, tree and verifier do not fit."""
    tree = tree_of_size(loaded, count)
    try:
        fast = run(settings, tree, loaded=loaded)
    except ConfigError:
        static_tree = loaded.tree(f"optimal-{count}")
        try:
            tree, fast = static_tree, run(settings, static_tree, loaded=loaded)
        except ConfigError:
            return None
    report = generation_report(bundle, prompts, settings, tree, fast, plain, loaded)
    drafting = draft_timing(bundle, prompts, settings, tree, loaded)
    batches = batches_of(bundle, len(prompts), settings.batch_size)[0]
    step = plain.timing.per(plain.calls.max() * batches)
    return {
        "drafter": loaded.name,
        "verifier": report["verifier"],
        "lossless": report["lossless"],
        "cfg_scale": settings.cfg_scale,
        "tree": type(tree).__name__,
        "nodes": tree.size,
        "depth": tree.depth,
        "tokens_per_call": fast.tokens_per_call,
        **fast.timing.fields(),
        "plain_seconds": plain.seconds,
        **ratio_fields(
            speedup=(plain.timing, fast.timing), drafter_cost=(drafting, step)
        ),
        "identical": report["identical_to_autoregressive"],
        **target_bound(bundle, prompts, settings, tree, fast, loaded),
        "parameters": loaded.size,
        "trained_seconds": loaded.trained_seconds,
    }


def drafters_markdown(result: dict[str, Any]) -> str:
    """Formats a report of `bench_drafters`, one table per CFG scale and verifier.

    Rows are sorted by tokens per call.
    """
    lines = [
        f"# Drafters: {result['checkpoint']}",
        "",
        f"`{result['command']}`",
        "",
        f"Device: {result['device']}, jax {result['versions']['jax']}. "
        f"{result['images']} sequences, batch {result['batch']}, temperature 1. "
        "Tokens per call count the prefill as a call. Draft cost is one `propose` "
        "relative to one plain decoding step. Speedup is relative to plain decoding in "
        "the same run. Achieved is the roofline bound of the target's forward passes "
        f"over the measured time. {RATIO_NOTE}",
    ]
    columns = ["drafter", "tree", "nodes", "depth", "tokens/call", "draft cost"]
    columns += ["speedup", "achieved", "identical", "parameters", "training time"]
    sections = {(row["cfg_scale"], row["verifier"]) for row in result["rows"]}
    for scale, verifier in sorted(sections):
        rows = [
            row
            for row in result["rows"]
            if (row["cfg_scale"], row["verifier"]) == (scale, verifier)
        ]
        kind = "lossless" if rows[0]["lossless"] else "LOSSY"
        cells = []
        for row in sorted(rows, key=lambda row: -row["tokens_per_call"]):
            trained = row["trained_seconds"]
            cells.append(
                [
                    row["drafter"],
                    row["tree"],
                    row["nodes"],
                    row["depth"],
                    f"{row['tokens_per_call']:.2f}",
                    shown(row, "drafter_cost"),
                    shown(row, "speedup"),
                    shown(row, "achieved", "%") if row.get("achieved") else "",
                    "yes" if row["identical"] else "no",
                    f"{row['parameters']:,}" if row["parameters"] else "",
                    f"{trained / 60:.0f} min" if trained else "",
                ]
            )
        lines += ["", f"## cfg {scale:g}, {verifier} ({kind})", ""]
        lines.append(markdown_table(columns, cells).rstrip())
    return "\n".join(lines) + "\n"


def drafters_plot(result: dict[str, Any]) -> np.ndarray:
    """Plots tokens per call over nodes, one panel per CFG scale and verifier."""
    panels = []
    rows = result["rows"]
    for scale, verifier in sorted({(r["cfg_scale"], r["verifier"]) for r in rows}):
        lines = []
        for name in dict.fromkeys(r["drafter"] for r in rows):
            cell = name, scale, verifier
            points = [
                row
                for row in rows
                if (row["drafter"], row["cfg_scale"], row["verifier"]) == cell
            ]
            x = [row["nodes"] for row in points]
            y = [row["tokens_per_call"] for row in points]
            lines.append(Line(name, x, y))
        panels.append(Panel(f"cfg {scale:g}, {verifier}", lines))
    return plot_panels(panels, "nodes", "tokens per call")
