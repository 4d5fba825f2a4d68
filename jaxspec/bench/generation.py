"""Speculative against plain decoding, side by side."""

import itertools
from typing import Any

from tqdm import tqdm

from jaxspec.bundle import Bundle
from jaxspec.pipeline import Settings, draw, make_engine, spread_classes
from jaxspec.report import generation_report
from jaxspec.spec.envelopes import Envelope
from jaxspec.spec.tree import Tree


def bench_generation(
    bundle: Bundle,
    trees: dict[str, Tree | Envelope],
    batches: list[int],
    scales: list[float],
    *,
    num: int,
    repeats: int,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One report (see `generation_report`) for each combination.

    Classes are spread evenly. The first run of each program is a warm-up and is not
    counted; plain decoding is measured anew for each batch and scale.
    """
    classes = spread_classes(len(bundle.class_names), num)
    for tree in trees.values():  # an impossible one is told before anything is timed
        make_engine(bundle, Settings(classes), tree)
    rows = []
    cells = list(itertools.product(batches, scales))
    runs = len(cells) * (len(trees) + 1)
    with tqdm(total=runs * (repeats + 1) * num, desc="bench", unit="picture") as bar:
        for batch, scale in cells:
            settings = Settings(classes=classes, seed=seed, guidance=scale, batch=batch)

            def measure(tree, settings=settings):
                return draw(
                    bundle,
                    settings,
                    tree,
                    repeats=repeats,
                    warm_up=True,
                    progress=bar.update,
                )

            plain = measure(Tree.root())
            for name, tree in trees.items():
                fast = measure(tree)
                report = generation_report(bundle, settings, tree, fast, plain)
                hits = fast.hits.sum(axis=0).tolist()
                rows.append({"tree_name": name, **report, "hits": hits})
    return rows


def generation_markdown(result: dict[str, Any]) -> str:
    """The rows as a table."""
    rows = result["rows"]
    first = rows[0]
    lines = [
        f"# Generation: {result['checkpoint']}",
        "",
        f"`{result['command']}`",
        "",
        f"Device: {first['device']}, {first['dtype']}, jax "
        f"{first['versions']['jax']}. {first['pictures']} pictures of "
        f"{first['tokens'] // first['pictures']} tokens, temperature "
        f"{first['temperature']:g}. Tokens per call count the prefill as a call. "
        "Seconds are medians without compilation.",
        "",
        "| batch | cfg | tree | nodes | depth | tokens/call | seconds | plain seconds "
        "| speedup | identical | near-ties decided again |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        tree = row["tree"]
        cells = [
            row["batch"],
            f"{row['cfg_scale']:g}",
            row["tree_name"],
            tree["nodes"],
            tree["depth"],
            f"{row['tokens_per_call']:.2f}",
            f"{row['seconds']:.2f}",
            f"{row['baseline_seconds']:.2f}",
            f"{row['speedup']:.2f}",
            "yes" if row["identical_to_autoregressive"] else "NO",
            row["near_ties_decided_again"],
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"
